"""Efficient action recognition in video: the networks of five papers, and everything a user needs around them."""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from clipwise.data.manifest import Manifest
    from clipwise.evaluation.run import evaluate
    from clipwise.inference.deploy import deploy
    from clipwise.inference.predictor import Predictor, load
    from clipwise.inference.streaming import Stream
    from clipwise.models.registry import create_model, list_models
    from clipwise.models.temporalize import temporalize
    from clipwise.training.run import train

__all__ = [
    "Manifest",
    "Predictor",
    "Stream",
    "__version__",
    "create_model",
    "deploy",
    "evaluate",
    "list_models",
    "load",
    "temporalize",
    "train",
]

# Imported when first asked for: a network alone needs neither Lightning nor a decoder.
_HOMES = {
    "Manifest": "clipwise.data.manifest",
    "Predictor": "clipwise.inference.predictor",
    "Stream": "clipwise.inference.streaming",
    "create_model": "clipwise.models.registry",
    "deploy": "clipwise.inference.deploy",
    "evaluate": "clipwise.evaluation.run",
    "list_models": "clipwise.models.registry",
    "load": "clipwise.inference.predictor",
    "temporalize": "clipwise.models.temporalize",
    "train": "clipwise.training.run",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'clipwise' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
