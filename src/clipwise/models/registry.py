"""Networks by name: ``<module>_<backbone>``, with options as keywords."""

import difflib
import fnmatch
import inspect
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_type_hints

from clipwise.models import (
    deepmind_i3d,
    eco,
    inception,
    inception3d,
    mobilenet,
    resnet3d,
    slowfast,
    tea,
    torchvision_video,
    trn,
    x3d,
)
from clipwise.models.network import ModelEntry, ModuleEntry, VideoNetwork, pooling_kind
from clipwise.models.placement import placed_in
from clipwise.models.resnet import BlockSpec, ResNet, Slot, resnet_depths
from clipwise.models.temporal import c3d, gst, p3d, stc, stm, stw, tam, tanet, teinet, tin, tsm
from clipwise.models.temporal.nonlocal_block import with_nonlocal
from clipwise.models.weights import load_weights

__all__ = ["check_options", "create_model", "list_models", "model_entry", "model_options", "temporal_modules"]

_log = logging.getLogger(__name__)

# Temporal modules that fill the slots of residual blocks; `tsn` fills none.
_MODULES: dict[str, ModuleEntry] = {
    "tsn": ModuleEntry(None, "Wang et al. 2016, TSN"),
    **tsm.MODULES,
    **tam.MODULES,
    **stm.MODULES,
    **stc.MODULES,
    **stw.MODULES,
    **gst.MODULES,
    **c3d.MODULES,
    **p3d.MODULES,
    **tin.MODULES,
    **tanet.MODULES,
    **teinet.MODULES,
}

# Families with networks of their own.
_FAMILIES: tuple[dict[str, ModelEntry], ...] = (
    resnet3d.MODELS,
    torchvision_video.MODELS,
    inception.MODELS,
    inception3d.MODELS,
    deepmind_i3d.MODELS,
    tea.MODELS,
    mobilenet.MODELS,
    trn.MODELS,
    eco.MODELS,
    slowfast.MODELS,
    x3d.MODELS,
)


def _resnet(
    module: str,
    depth: int,
    *,
    num_classes: int,
    num_frames: int,
    dropout: float = 0.5,
    stages: Sequence[int] = (2, 3, 4, 5),
    placement: str | None = None,
    temporal_pooling: bool | str = False,
    caffe_stride: bool = False,
    base_width: int = 64,
    nonlocal_blocks: bool = False,
    **module_options: Any,
) -> ResNet:
    if module_options.get("causal") and temporal_pooling:
        raise ValueError(
            f"causal and {temporal_pooling = } exclude each other: the pooling reads the next frame; leave one out"
        )
    if module == "tsn" and (placement is not None or tuple(stages) != (2, 3, 4, 5)):
        raise ValueError(f"{stages = } and {placement = } place a temporal module, and TSN has none; leave them out")
    # TSM's authors shift every other block once a stage is as long as ResNet-101's conv4_x.
    usual = "alternate" if module == "tsm" and depth >= 101 else "all"
    slot = _MODULES[module].slot
    temporal: Callable[[BlockSpec], Slot] | None = partial(slot, **module_options) if slot else None
    placed = placed_in(stages, placement or usual)
    if nonlocal_blocks:
        temporal, placed = with_nonlocal(temporal, placed, causal=bool(module_options.get("causal")))
    network = ResNet(
        depth,
        num_classes=num_classes,
        num_frames=num_frames,
        temporal=temporal,
        placed=placed,
        temporal_pooling=pooling_kind(temporal_pooling),
        dropout=dropout,
        caffe_stride=caffe_stride,
        base_width=base_width,
    )
    network.causal = bool(module_options.get("causal"))
    return network


_MODELS: dict[str, ModelEntry] = {
    f"{module}_resnet{depth}": ModelEntry(
        partial(_resnet, module, depth),
        entry.paper,
        options_of=(_resnet,) if entry.slot is None else (_resnet, entry.slot),
        image_backbone=f"resnet{depth}",
    )
    for module, entry in _MODULES.items()
    for depth in resnet_depths()
}
for _family in _FAMILIES:
    _MODELS |= _family


def _option_functions(entry: ModelEntry) -> tuple[Callable[..., Any], ...]:
    return entry.options_of or (entry.build,)


def _keywords(function: Callable[..., Any]) -> dict[str, Any]:
    """The keyword-only parameters of a function with their defaults."""
    parameters = inspect.signature(function).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}


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


def check_options(name: str, functions: Sequence[Callable[..., Any]], options: dict[str, Any]) -> None:
    """Refuse what is no keyword-only parameter of these functions, or of another type.

    Raises:
        ValueError: for such an option; ``name`` opens the message.
    """
    known = {key for function in functions for key in _keywords(function)} - {"num_classes", "num_frames"}
    unknown = sorted(set(options) - known)
    if unknown:
        raise ValueError(f"{name} has no option {', '.join(unknown)}; it takes {', '.join(sorted(known))}")
    for function in functions:
        _check_types(name, function, options)


def temporal_modules() -> dict[str, ModuleEntry]:
    """The temporal modules of residual blocks by the first part of their networks' names."""
    return dict(_MODULES)


def list_models(pattern: str = "*") -> list[str]:
    """The names of the networks that match a shell-style pattern, in alphabetical order."""
    return sorted(fnmatch.filter(_MODELS, pattern))


def model_entry(name: str, backbone: str | None = None) -> ModelEntry:
    """What is registered under a name, or what a temporal module's name means on a ``backbone`` of timm.

    Raises:
        ValueError: if nothing is; the message gives the nearest names.
    """
    if backbone is not None:
        from clipwise.models.timm import timm_entry

        return timm_entry(name, backbone)
    if name not in _MODELS:
        near = [known for known in sorted(_MODELS) if name in known] or difflib.get_close_matches(name, _MODELS, n=6)
        raise ValueError(
            f"no network is called {name!r}; "
            + (f"near it: {', '.join(near[:6])}" if name and near else "`clipwise models` lists them all")
        )
    return _MODELS[name]


def model_options(name: str, backbone: str | None = None) -> dict[str, Any]:
    """The options that a network takes besides classes and frames, with their defaults.

    Raises:
        ValueError: see :func:`model_entry`.
    """
    entry = model_entry(name, backbone)
    options: dict[str, Any] = {}
    for function in _option_functions(entry):
        options |= _keywords(function)
    return {key: value for key, value in options.items() if key not in ("num_classes", "num_frames")}


def create_model(
    name: str,
    *,
    num_classes: int,
    num_frames: int | None = None,
    weights: str | Path | None = None,
    reset_head: bool = False,
    backbone: str | None = None,
    **options: Any,
) -> VideoNetwork:
    """Build a network by name.

    Args:
        name: one of :func:`list_models`.
        num_classes: classes of its head.
        num_frames: T, frames a clip; the network's usual number when None, which is 8 unless ``clipwise models`` says
            otherwise.
        weights: ``"imagenet"`` for torchvision's file (timm's for its backbones), or the path of a weight file; what
            matched is logged.
        reset_head: leave the file's head where it has another number of classes, which is refused otherwise.
        backbone: ``"timm/NAME"`` puts the temporal module called ``name`` (``"tsm"``) into that network of timm; see
            :func:`clipwise.temporalize`.
        options: for every network ``dropout`` (0.5); besides it the keywords of its family (``stages``, ``placement``,
            ``temporal_pooling``, ``base_width`` …) and of its temporal module, such as STC's ``alpha`` or STM's
            ``modules``.

    Returns:
        A network that maps (N, T, 3, H, W) float to (N, num_classes) logits.

    Raises:
        ValueError: for a name, option or value that does not exist, or a weight file that does not fit.
    """
    entry = model_entry(name, backbone)
    check_options(name, _option_functions(entry), options)
    model = entry.build(
        num_classes=num_classes, num_frames=entry.num_frames if num_frames is None else num_frames, **options
    )
    if weights is not None:
        report = load_weights(model, weights, name=name, image_backbone=entry.image_backbone, reset_head=reset_head)
        _log.info("%s", report)
    return model
