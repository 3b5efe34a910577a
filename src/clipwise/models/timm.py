"""Networks of timm as backbones: ``create_model("tsm", backbone="timm/NAME")``.

timm is imported when one is asked for, and need not be installed otherwise.
"""

import difflib
import importlib
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from clipwise.files import written_whole
from clipwise.models.network import ModelEntry
from clipwise.models.registry import temporal_modules
from clipwise.models.temporalize import Temporalized, temporalize

__all__ = ["timm_entry", "timm_file", "timm_network"]


def _timm() -> Any:
    try:
        return importlib.import_module("timm")
    except (ImportError, OSError, RuntimeError) as error:  # a torchvision of another torch raises RuntimeError
        raise ValueError(
            f"a backbone of timm needs timm, which cannot be imported here ({error}): pip install 'clipwise[timm]', "
            "with the torchvision that belongs to your torch"
        ) from error


def timm_network(name: str, num_classes: int, pretrained: bool = False) -> nn.Module:
    """An image network of timm.

    Args:
        name: timm's, such as ``resnext50_32x4d``.
        num_classes: of its head; 0 for features without a head.
        pretrained: with the weights that timm fetches for it.

    Raises:
        ValueError: if timm cannot be imported or has no such network, or no weights for it.
        ConnectionError: if the weights cannot be fetched.
    """
    timm = _timm()
    if not timm.is_model(name):
        near = difflib.get_close_matches(name.split(".")[0], timm.list_models(), n=5)
        raise ValueError(f"timm has no network called {name!r}" + (f"; near it: {', '.join(near)}" if near else ""))
    if not pretrained:
        network: nn.Module = timm.create_model(name, num_classes=num_classes)
        return network
    if not timm.is_model_pretrained(name):
        raise ValueError(f"timm has no weights for {name!r}; leave weights out, or give the path of a weight file")
    try:
        network = timm.create_model(name, num_classes=num_classes, pretrained=True)
    except OSError as error:
        raise ConnectionError(
            f"cannot fetch timm's weights for {name!r} ({error}); give the path of a weight file instead "
            "(--set model.weights=PATH), or start from random weights (--set model.weights=null)"
        ) from error
    return network


def timm_file(backbone: str, folder: Path) -> Path:
    """timm's weights for a backbone (``timm/NAME``), without its head, fetched once and kept in a folder.

    Raises:
        ValueError, ConnectionError: see :func:`timm_network`.
    """
    name = backbone.removeprefix("timm/")
    target = folder / f"timm-{name}.safetensors"
    if not target.is_file():
        state = timm_network(name, 0, pretrained=True).state_dict()
        folder.mkdir(parents=True, exist_ok=True)
        with written_whole(target) as partial:
            save_file({key: value.contiguous() for key, value in state.items()}, partial)
    return target


def timm_entry(module: str, backbone: str) -> ModelEntry:
    """What ``create_model(module, backbone="timm/NAME")`` builds.

    Raises:
        ValueError: for a module or a kind of backbone that does not exist.
    """
    modules = temporal_modules()
    if module not in modules:
        raise ValueError(f"with a backbone, the name is a temporal module's: {', '.join(modules)}; got {module!r}")
    if not backbone.startswith("timm/"):
        raise ValueError(f"backbone must be 'timm/' and the name of one of timm's networks, got {backbone!r}")
    entry = modules[module]

    def build(*, num_classes: int, num_frames: int, **options: Any) -> Temporalized:
        name = backbone.removeprefix("timm/")
        network: Any = timm_network(name, num_classes)
        if not isinstance(network.get_classifier(), nn.Linear):  # in some families a 1×1 convolution
            network = timm_network(name, 0)
        return temporalize(network, module, num_classes=num_classes, num_frames=num_frames, **options)

    options_of = (temporalize,) if entry.slot is None else (temporalize, entry.slot)
    return ModelEntry(build, entry.paper, options_of=options_of, image_backbone=backbone)
