"""Networks by name: ``<module>_<backbone>``, with options as keywords."""

import fnmatch
import inspect
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_type_hints

from clipwise.models.placement import placed_in
from clipwise.models.resnet import ResNet, Slot, resnet_depths
from clipwise.models.temporal.stc import stc
from clipwise.models.temporal.stm import stm
from clipwise.models.temporal.stw import stw
from clipwise.models.temporal.tam import tam
from clipwise.models.temporal.tsm import tsm
from clipwise.models.weights import load_weights

__all__ = ["create_model", "list_models"]

_log = logging.getLogger(__name__)

_TEMPORAL: dict[str, Callable[..., Slot] | None] = {
    "tsn": None,
    "tsm": tsm,
    "tam": tam,
    "stm": stm,
    "stc": stc,
    "stc_light": partial(stc, reduction=4),
    "stw": stw,
}


def _build(
    module: str,
    depth: int,
    *,
    num_classes: int,
    num_frames: int,
    dropout: float = 0.5,
    stages: Sequence[int] = (2, 3, 4, 5),
    placement: str | None = None,
    caffe_stride: bool = False,
    base_width: int = 64,
    **module_options: Any,
) -> ResNet:
    # TSM's authors shift every other block once a stage is as long as ResNet-101's conv4_x.
    usual = "alternate" if module == "tsm" and depth >= 101 else "all"
    temporal = _TEMPORAL[module]
    return ResNet(
        depth,
        num_classes=num_classes,
        num_frames=num_frames,
        temporal=partial(temporal, **module_options) if temporal else None,
        placed=placed_in(stages, placement or usual),
        dropout=dropout,
        caffe_stride=caffe_stride,
        base_width=base_width,
    )


_MODELS = {
    f"{module}_resnet{depth}": (module, partial(_build, module, depth))
    for module in _TEMPORAL
    for depth in resnet_depths()
}


def _keywords(function: Callable[..., Any]) -> set[str]:
    parameters = inspect.signature(function).parameters.values()
    return {parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}


def _check_types(name: str, function: Callable[..., Any], options: dict[str, Any]) -> None:
    """Refuse an option of another type than its parameter's, which may come unchecked from a file."""
    bare = function.func if isinstance(function, partial) else function
    for option, kind in get_type_hints(bare).items():
        value = options.get(option)
        if option not in options or (value is None and type(None) in get_args(kind)):
            continue
        kinds = (
            tuple(part for part in get_args(kind) if part is not type(None)) if isinstance(kind, UnionType) else (kind,)
        )
        accepted = {float: (int, float), Sequence[int]: (list, tuple)}.get(kinds[0], kinds)
        # A bool is an int to Python, and no number to us.
        if not isinstance(value, accepted) or (isinstance(value, bool) and bool not in accepted):
            wanted = getattr(kinds[0], "__name__", str(kinds[0]))
            raise ValueError(
                f"{name}: option {option} takes {'a list' if wanted == 'Sequence' else wanted}, got {value!r}"
            )


def list_models(pattern: str = "*") -> list[str]:
    """The names of the networks that match a shell-style pattern, in alphabetical order."""
    return sorted(fnmatch.filter(_MODELS, pattern))


def create_model(
    name: str,
    *,
    num_classes: int,
    num_frames: int = 8,
    weights: str | Path | None = None,
    **options: Any,
) -> ResNet:
    """Build a network by name.

    Args:
        name: one of :func:`list_models`.
        num_classes: classes of its head.
        num_frames: T, frames a clip.
        weights: ``"imagenet"`` for torchvision's file, or the path of a weight file; what matched is logged.
        options: for every network ``dropout`` (0.5), ``stages`` ((2, 3, 4, 5)), ``placement`` (see
            :mod:`clipwise.models.placement`), ``caffe_stride`` (False), ``base_width`` (64); besides them the
            keywords of the temporal module, such as STC's ``alpha`` or STM's ``modules``.

    Returns:
        A network that maps (N, T, 3, H, W) float to (N, num_classes) logits.

    Raises:
        ValueError: for a name, option or value that does not exist, or a weight file that does not fit.
    """
    if name not in _MODELS:
        near = fnmatch.filter(_MODELS, f"*{name.split('_')[0]}*")
        raise ValueError(
            f"no network is called {name!r}; "
            + (f"near it: {', '.join(sorted(near))}" if near else "`clipwise models` lists them all")
        )
    module, build = _MODELS[name]
    temporal = _TEMPORAL[module]
    known = _keywords(_build) | (_keywords(temporal) if temporal else set())
    unknown = sorted(set(options) - known)
    if unknown:
        takes = ", ".join(sorted(known - {"num_classes", "num_frames"}))
        raise ValueError(f"{name} has no option {', '.join(unknown)}; it takes {takes}")
    for function in (_build, temporal):
        if function is not None:
            _check_types(name, function, options)
    model: ResNet = build(num_classes=num_classes, num_frames=num_frames, **options)
    if weights is not None:
        report = load_weights(model, weights, name=name)
        _log.info("%s", report)
    return model
