"""A temporal module in the residual blocks of an image network that the user brings.

Every module of ``clipwise.models.temporal`` is written for a ResNet's block (:class:`clipwise.models.resnet.Slot`).
Here the same modules go into any network built of residual blocks of convolutions, at the places that correspond::

    x ──┬─ before ─ first conv ─ … ─ y ─ inner ─ spatial conv ─ … ─ s ─ merge(s, y) ─ next conv ─ … ─ + ─ after
        └───────────────────────────────── shortcut ────────────────────────────────────────────────┘

The *spatial* convolution is the branch's last one that is larger than 1×1: a bottleneck's conv2, a basic block's second
3×3, the depthwise one of MobileNet and ConvNeXt. Where none follows it (basic block), ``merge`` acts on the output of
the normalisation behind it. Where it comes first (ConvNeXt, no expansion), ``inner`` acts on the branch's input.

How a block is known: by the attributes that its authors gave it, not by its class, so that torchvision and timm need
not be importable (:func:`_skips`). Looked up in

    huggingface/pytorch-image-models   timm/models/resnet.py at 00c5be7, _efficientnet_blocks.py at 0141934,
                                       convnext.py at 03fa149
    pytorch/vision                     torchvision/models/mobilenetv2.py at 0256d65, mobilenetv3.py at 00542d9,
                                       convnext.py at 07a929e

What runs in a block, in which order, with which sizes, is measured by one pass of an image through a copy of the
network on the meta device, which computes nothing. A block without a skip connection (MobileNet's where the size
changes) is left alone: nothing would carry the image features past the module.

Decided here:
- The network is copied; the user's stays as it is.
- Stages are told by size: the maps of stage s have 1/2^s of the image's side, s = 2 … 5 as in a ResNet; larger maps
  count as stage 2, smaller as stage 5. ``placement`` counts the residual blocks found.
- TSM skips every other block where a stage has 23 or more, as its authors do in ResNet-101. It goes into every residual
  block; in MobileNets the authors leave out those without expansion (none at the usual width has a skip connection).
- STW's STFM is the block's own convolution, whatever its kernel, dilation and groups; a bias is added after the shift,
  so that it reaches the frames that the shift leaves empty. Where the channels change from input to output there is
  nothing for TWM to be added to, and ``modules="stfm"`` is needed.
- The other modules that replace conv2 (STC, GST, C3D, P3D) are defined for an ungrouped 3×3 without bias between as
  many channels, and take those of its weights that they can use.

Weights: the result holds the image network as ``network`` and its last linear layer as ``fc``; temporal parts stand
beside the layers of their block, under the names that they have in our own ResNets. An image network's file, and one of
our own ResNets' for a network with torchvision's names, load through ``load_weights``.
"""

import copy
import difflib
import logging
import math
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from clipwise.models.network import ModuleEntry, VideoNetwork, inflate
from clipwise.models.placement import placed_in
from clipwise.models.registry import check_options, temporal_modules
from clipwise.models.resnet import BlockSpec, Slot, TemporalModule, start_convolutions
from clipwise.models.temporal.nonlocal_block import with_nonlocal
from clipwise.models.temporal.stw import SpatioTemporalWeights
from clipwise.ops import fold, unfold

__all__ = ["Temporalized", "temporalize"]

_log = logging.getLogger(__name__)

_SIZE = 224
"""Pixels of a side of the image by which a network is measured."""
_NORMS = (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm, nn.SyncBatchNorm, nn.InstanceNorm2d)
_SHORTCUTS = ("downsample", "shortcut", "proj")


def _thread() -> int:
    return 0 if torch.compiler.is_compiling() else threading.get_ident()


class _Length:
    """Of the clips that go through a network just now; its hooks unfold them by it.

    Each thread has its own, for threads may share a network. One that has none computes again, for gradients, what
    another did last.
    """

    def __init__(self, frames: int) -> None:
        self._latest = frames
        self._of: dict[int, int] = {}

    @property
    def frames(self) -> int:
        return self._of.get(_thread(), self._latest)

    @frames.setter
    def frames(self, frames: int) -> None:
        self._latest = self._of[_thread()] = frames


class Temporalized(VideoNetwork):
    """An image network over clips, made by :func:`temporalize`.

    Attributes:
        network: the image network with temporal modules in its blocks and without its last linear layer.
        placed: names of the blocks of ``network`` that have the module.
        unplaced: names of the residual blocks that could have it and were not chosen.
        skipless: names of the blocks that were left alone because they have no skip connection.
    """

    def __init__(
        self, network: nn.Module, head: nn.Linear | int, *, head_name: str | None, num_classes: int, **options: Any
    ) -> None:
        super().__init__(num_classes=num_classes, **options)
        self.network = network
        if isinstance(head, int):
            self._make_head(head)
        else:
            self.fc = head
        self._head_name = head_name
        self._length = _Length(self.num_frames)
        self.placed: tuple[str, ...] = ()
        self.unplaced: tuple[str, ...] = ()
        self.skipless: tuple[str, ...] = ()

    def _require_all_but(self, temporal: set[str]) -> None:
        """Say that a weight file must fill the image network's parts, all but these keys."""
        parts = {key.split(".")[0] for key in self.network.state_dict()}
        alike, new = ("|".join(map(re.escape, sorted(keys))) for keys in (parts, temporal))
        pattern = rf"network\.(?!(?:{new})$)(?:{alike})(?:\..*)?(?<!num_batches_tracked)"
        self.image_keys = re.compile(pattern)  # type: ignore[misc]  # each network's own

    def forward_features(self, clips: Tensor) -> Tensor:
        """(N, T, 3, H, W) → (N, T, C): each frame's features, as the image network gives them to its last layer."""
        self.check_clips(clips)
        self._length.frames = clips.shape[1]
        features: Tensor = self.network(fold(clips).contiguous(memory_format=torch.channels_last))
        return unfold(features, clips.shape[1])

    def from_image(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The image network's keys, or those of one of our ResNets, under this network's."""
        if any(key.startswith("network.") for key in state):
            return state
        head = f"{self._head_name}."
        state = {f"fc.{key.removeprefix(head)}" if key.startswith(head) else key: value for key, value in state.items()}
        return {key if key.startswith("fc.") else f"network.{key}": value for key, value in state.items()}

    def stages(self) -> Iterator[tuple[str, nn.Module]]:
        """The image network's parts, then ``fc``."""
        for name, module in self.network.named_children():
            if any(True for _ in module.parameters()):
                yield name, module
        yield "fc", self.fc

    def blocks(self) -> Iterator[nn.Module]:
        """The blocks that were found, with a temporal module or without."""
        for name in (*self.placed, *self.unplaced, *self.skipless):
            yield self.network.get_submodule(name)


def temporalize(
    network: nn.Module,
    module: str,
    *,
    num_frames: int = 8,
    num_classes: int | None = None,
    dropout: float = 0.5,
    stages: Sequence[int] = (2, 3, 4, 5),
    placement: str | None = None,
    nonlocal_blocks: bool = False,
    **options: Any,
) -> Temporalized:
    """Put a temporal module into the residual blocks of a 2D image network.

    Time is folded into the batch; a clip's logits are the mean of its frames'. The network given is copied and stays
    as it is.

    Example::

        network = torchvision.models.resnext50_32x4d(weights="DEFAULT")
        model = clipwise.temporalize(network, "tsm", num_frames=8, num_classes=174)
        logits = model(torch.randn(2, 8, 3, 224, 224))  # (2, 174)

    Args:
        network: maps images (N, 3, H, W) to (N, classes); a ResNet, ResNeXt, RegNet, MobileNet, EfficientNet, ConvNeXt
            or another network of residual blocks of convolutions, with torchvision's or timm's attribute names.
        module: the first part of a name of ``list_models()``, such as ``tsm``, ``tam``, ``stm`` or ``stw``; ``tsn``
            adds nothing.
        num_frames: T of a clip.
        num_classes: a new last layer for so many classes; None keeps the network's own.
        dropout: probability before the last layer, besides what the network has of its own.
        stages: which stages have it; stage s has maps of 1/2^s of the image's side.
        placement: which blocks of these stages: ``all``, ``first``, ``top``, ``bottom`` or ``alternate``; the module's
            usual one when None.
        nonlocal_blocks: attention besides the module, two blocks in stage 3 and three in stage 4.
        options: the module's own, as for :func:`clipwise.create_model`.

    Returns:
        A network that maps (N, T, 3, H, W) float to (N, classes) logits; its ``placed`` names the blocks that have
        the module.

    Raises:
        ValueError: for a module or option that does not exist, or an option of another type; a network without
            residual blocks that are known, that is no image network, or that cannot be changed (``torch.jit``'s, or
            temporalized already); a block that the module cannot go into.
        TypeError: if ``network`` is no module.
    """
    modules = temporal_modules()
    if module not in modules:
        near = difflib.get_close_matches(module, modules, n=3)
        raise ValueError(
            f"no temporal module is called {module!r}; "
            + (f"near it: {', '.join(near)}" if near else f"there are {', '.join(modules)}")
        )
    if not isinstance(network, nn.Module):
        raise TypeError(f"give an image network, an nn.Module that is built already; got {network!r}")
    if isinstance(network, VideoNetwork):
        raise ValueError(f"{type(network).__name__} takes clips already; give a network that takes images")
    for part in network.modules():
        if isinstance(part, torch.jit.ScriptModule):
            raise ValueError(f"{type(network).__name__} is scripted or traced by torch.jit; give the module itself")
        hooks = (*part._forward_pre_hooks.values(), *part._forward_hooks.values())
        if any(isinstance(getattr(hook, "__self__", None), _Hooks) for hook in hooks):
            raise ValueError(f"{type(network).__name__} is temporalized already; give the image network it came from")
    entry = modules[module]
    own = {"dropout": dropout, "stages": stages, "placement": placement, "nonlocal_blocks": nonlocal_blocks}
    check_options(module, (temporalize, entry.slot) if entry.slot else (temporalize,), own | options)
    network = copy.deepcopy(network)
    trace = _Trace(network)
    head_name, head, channels = _last_layer(network, trace, keep=num_classes is None)
    if head_name is not None:
        _put(network, head_name, nn.Identity())
    model = Temporalized(
        network,
        head if head is not None and num_classes is None else channels,
        head_name=head_name,
        num_classes=num_classes if num_classes is not None else channels if head is None else head.out_features,
        num_frames=num_frames,
        dropout=dropout,
    )
    parameter = next(network.parameters())
    model.fc.to(parameter.device, parameter.dtype)
    image_keys = set(network.state_dict())
    model.causal = bool(options.get("causal"))
    if entry.slot is not None or nonlocal_blocks:
        _place(model, module, entry, trace, stages, placement, nonlocal_blocks, options)
    model._require_all_but(set(network.state_dict()) - image_keys)
    return model


class _Trace:
    """What ran, in which order and with which sizes, when one image went through the network."""

    def __init__(self, network: nn.Module) -> None:
        self.order: list[str] = []
        self.shapes: dict[str, tuple[torch.Size, torch.Size]] = {}
        self.last_linear: tuple[str, Tensor] | None = None
        meta = copy.deepcopy(network).to("meta").eval()
        for name, layer in meta.named_modules():
            layer.register_forward_hook(self._recorder(name, isinstance(layer, nn.Linear)))
        dtype = next((parameter.dtype for parameter in meta.parameters()), torch.float32)
        try:
            with torch.no_grad():
                self.output = meta(torch.empty(1, 3, _SIZE, _SIZE, device="meta", dtype=dtype))
        except Exception as error:
            raise ValueError(
                f"{type(network).__name__} does not run on an image of shape (1, 3, {_SIZE}, {_SIZE}) ({error}); "
                "give an image network that takes one tensor"
            ) from error

    def _recorder(self, name: str, linear: bool) -> Any:
        def record(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if inputs and isinstance(inputs[0], Tensor) and isinstance(output, Tensor):
                self.order.append(name)
                self.shapes[name] = inputs[0].shape, output.shape
                if linear:
                    self.last_linear = name, output

        return record


def _last_layer(network: nn.Module, trace: _Trace, *, keep: bool) -> tuple[str | None, nn.Linear | None, int]:
    """The name of the layer that makes the logits, the layer, and the channels of its input; without such a layer
    the channels of the network's output.
    """
    if trace.last_linear is not None and trace.last_linear[1] is trace.output:
        name = trace.last_linear[0]
        layer = network.get_submodule(name)
        if isinstance(layer, nn.Linear) and len(trace.shapes[name][0]) == 2:
            return name, layer, layer.in_features
    if keep or not isinstance(trace.output, Tensor) or trace.output.ndim != 2:
        given = tuple(trace.output.shape) if isinstance(trace.output, Tensor) else type(trace.output).__name__
        raise ValueError(
            f"{type(network).__name__} does not end in a linear layer that gives (N, classes), but in {given}; give it "
            "without its head (timm: num_classes=0), so that it gives (N, features), and say num_classes"
        )
    return None, None, trace.output.shape[1]


def _put(network: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, layer)


# Finding the blocks.


def _skips(block: nn.Module) -> bool | None:
    """Whether a residual block has a skip connection; None if this is no residual block that we know."""

    def has(*names: str) -> bool:
        return all(hasattr(block, name) for name in names)

    for flag in ("has_skip", "has_residual", "use_res_connect"):  # timm, older timm, torchvision
        if isinstance(getattr(block, flag, None), bool):
            return bool(getattr(block, flag))
    known = (
        (has("conv1", "conv2") and (has("downsample") or has("shortcut")))  # ResNet, ResNeXt; timm's RegNet
        or has("f", "proj")  # torchvision's RegNet
        or has("conv_dw", "mlp")  # timm's ConvNeXt
        or has("block", "layer_scale")  # torchvision's
        or has("dwconv", "pwconv1")  # its authors'
    )
    return True if known else None


_LOOKED_FOR = (
    "conv1, conv2 and downsample or shortcut (ResNet, ResNeXt, RegNet); has_skip or use_res_connect (MobileNet, "
    "EfficientNet); f and proj (torchvision's RegNet); conv_dw and mlp, block and layer_scale, or dwconv and pwconv1 "
    "(ConvNeXt)"
)


@dataclass(frozen=True)
class _Branch:
    """A residual block and the places in it."""

    name: str
    block: nn.Module
    spec: BlockSpec
    first: nn.Module
    spatial: nn.Conv2d | None
    spatial_name: str
    following: nn.Module | None
    """The layer whose input ``merge`` joins, or the normalisation whose output it joins; None where there is none."""
    obstacle: str
    """Why ``merge`` cannot join anything, if it cannot."""


def _on_branch(block: nn.Module, path: str) -> bool:
    """Whether a layer of a block is one of its branch's own, not of its shortcut or of a gate inside it."""
    *above, _ = path.split(".")
    if above and above[0] in _SHORTCUTS:
        return False
    layer, parent = block.get_submodule(path), block
    for part in above:
        parent = getattr(parent, part)
        # A gate is a module of its own; a convolution with its normalisation is a Sequential, or timm's ConvNormAct.
        if not isinstance(parent, nn.Sequential) and part != "mlp" and getattr(parent, "conv", None) is not layer:
            return False
    return True


def _branch(network: nn.Module, name: str, trace: _Trace, num_frames: int) -> _Branch | None:
    """The places in a residual block, or None where its branch does not begin with a convolution of maps."""
    block = network.get_submodule(name)
    run = [key for key in trace.order if key.startswith(f"{name}.")]
    weighted = [key for key in run if isinstance(network.get_submodule(key), nn.Conv1d | nn.Conv2d | nn.Linear)]
    own = [key for key in weighted if _on_branch(block, key.removeprefix(f"{name}."))]
    if not own or name not in trace.shapes:
        return None
    first = network.get_submodule(own[0])
    if not isinstance(first, nn.Conv2d):
        return None
    layers = {key: network.get_submodule(key) for key in own}
    larger = [key for key, layer in layers.items() if isinstance(layer, nn.Conv2d) and max(layer.kernel_size) > 1]
    spatial_name, spatial, following, obstacle = "", None, None, ""
    width, stride = first.out_channels, 1
    out = trace.shapes[name][1]
    if larger:
        spatial_name = larger[-1]
        layer = layers[spatial_name]
        assert isinstance(layer, nn.Conv2d)
        spatial, width = layer, layer.in_channels
        following, obstacle = _join(network, spatial_name, run, weighted, own, trace)
        # Not the convolution's own: some networks blur and stride after it.
        stride = round(trace.shapes[spatial_name][0][2] / out[2])
    stage = min(max(round(math.log2(_SIZE / out[2])), 2), 5)
    spec = BlockSpec(stage, 0, first.in_channels, width, stride, num_frames, out[1])
    return _Branch(name, block, spec, first, spatial, spatial_name, following, obstacle)


def _join(
    network: nn.Module, spatial: str, run: list[str], weighted: list[str], own: list[str], trace: _Trace
) -> tuple[nn.Module | None, str]:
    """The layer after the spatial convolution, and why nothing can be joined there, if so."""
    incoming = trace.shapes[spatial][0]
    later = own[own.index(spatial) + 1 :]
    if not later:
        behind = run[run.index(spatial) + 1 :]
        key = next((key for key in behind if isinstance(network.get_submodule(key), _NORMS)), "")
        # timm's normalisations hold their activation, which finishes before them.
        if not key or not all(earlier.startswith(f"{key}.") for earlier in behind[: behind.index(key)]):
            return None, "neither a convolution nor a normalisation follows its spatial convolution"
        shape = trace.shapes[key][1]
    else:
        key, shape = later[0], trace.shapes[later[0]][0]
        if weighted.index(key) != weighted.index(spatial) + 1:
            return None, f"a gate (squeeze-and-excitation or the like) stands between {spatial} and {key}"
        if not isinstance(network.get_submodule(key), nn.Conv2d):
            return None, f"{key} after its spatial convolution is linear and takes channels last"
    if shape[1] != incoming[1]:
        return None, f"its channels change from {incoming[1]} to {shape[1]} at its spatial convolution"
    return network.get_submodule(key), ""


def _find(network: nn.Module, trace: _Trace, num_frames: int) -> tuple[list[_Branch], list[str]]:
    """The residual blocks in the order they run, and the names of those without a skip connection."""
    found: dict[str, _Branch] = {}
    skipless: list[str] = []
    for name, candidate in network.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in (*found, *skipless))
        skips = None if inside or not name else _skips(candidate)
        if skips is False:
            skipless.append(name)
        elif skips and (branch := _branch(network, name, trace, num_frames)):
            found[name] = branch
    branches = sorted(found.values(), key=lambda branch: trace.order.index(branch.name))
    seen = dict.fromkeys(range(2, 6), 0)
    indexed = []
    for branch in branches:
        stage = branch.spec.stage
        indexed.append(replace(branch, spec=replace(branch.spec, index=seen[stage])))
        seen[stage] += 1
    return indexed, skipless


# Filling them.


def _place(
    model: Temporalized,
    module: str,
    entry: ModuleEntry,
    trace: _Trace,
    stages: Sequence[int],
    placement: str | None,
    nonlocal_blocks: bool,
    options: dict[str, Any],
) -> None:
    branches, skipless = _find(model.network, trace, model.num_frames)
    if not branches:
        without = f"; {len(skipless)} blocks have no skip connection" if skipless else ""
        raise ValueError(
            f"found no residual block in {type(model.network).__name__}{without}. Blocks are known by their "
            f"attributes: {_LOOKED_FOR}. Name those of your blocks so, with nn.Conv2d for their convolutions"
        )
    longest = max(branch.spec.index for branch in branches) + 1
    usual = "alternate" if module == "tsm" and longest >= 23 else "all"
    positions = {(branch.spec.stage, branch.spec.index): branch for branch in branches}
    temporal: Callable[[BlockSpec], Slot] | None = partial(entry.slot, **options) if entry.slot else None
    placed_at = placed_in(stages, placement or usual)
    wanted = placed_at(list(positions))
    if nonlocal_blocks:
        temporal, placed_at = with_nonlocal(temporal, placed_at, causal=bool(options.get("causal")))
    assert temporal is not None
    chosen = placed_at(list(positions))
    if not wanted:
        have = ", ".join(map(str, sorted({stage for stage, _ in positions})))
        raise ValueError(
            f"{stages = } and {placement = } choose none of the residual blocks; those found: stages {have}"
        )
    placed: list[str] = []
    unplaced: list[str] = []
    for position, branch in positions.items():
        if position not in chosen:
            unplaced.append(branch.name)
            continue
        slot = temporal(branch.spec)
        if branch.spatial is not None and isinstance(slot.conv2, SpatioTemporalWeights) and slot.conv2.twm is None:
            slot = temporal(replace(branch.spec, width=branch.spatial.out_channels))  # STFM alone shifts its output
        problem = _problem(slot, branch)
        if problem:
            raise ValueError(
                f"{module} cannot go into {branch.name} ({type(branch.block).__name__}): {problem}. Take one that can "
                f"({', '.join(_fitting(branch)) or 'none'}), or leave {branch.spec.stage} out of stages"
            )
        _fill(model.network, branch, slot, model._length)
        has_it = slot != Slot() and (position in wanted or entry.slot is None)
        (placed if has_it else unplaced).append(branch.name)
    model.placed, model.unplaced, model.skipless = tuple(placed), tuple(unplaced), tuple(skipless)
    _log.info(
        "%s in %d of %d residual blocks of %s%s",
        module,
        len(placed),
        len(branches),
        type(model.network).__name__,
        f"; {len(skipless)} blocks without a skip connection left alone" if skipless else "",
    )


def _problem(slot: Slot, branch: _Branch) -> str:
    """Why a slot's modules cannot go into a block; empty if they can."""
    for key in (part.key for part in (slot.before, slot.inner, slot.merge, slot.after) if part is not None):
        if hasattr(branch.block, key):
            return f"it has a part called {key} already"
    if branch.spatial is None:
        inside = slot.inner or slot.merge or slot.conv2
        return "it has no spatial convolution (one larger than 1×1)" if inside else ""
    if slot.merge is not None and branch.following is None:
        return branch.obstacle
    if slot.conv2 is None:
        return ""
    conv = branch.spatial
    if type(conv) is not nn.Conv2d or conv.padding_mode != "zeros":
        return f"its spatial convolution is a {type(conv).__name__} with padding of its own"
    if branch.spec.stride != conv.stride[0]:
        return "its stride is not in its spatial convolution but after it"
    if isinstance(slot.conv2, SpatioTemporalWeights):
        if conv.in_channels != conv.out_channels and slot.conv2.twm is not None:
            return (
                f"its spatial convolution makes {conv.out_channels} channels of {conv.in_channels}, so TWM's cannot be "
                "added to STFM's (modules='stfm' leaves TWM out)"
            )
        return ""
    form = (conv.kernel_size, conv.padding, conv.dilation, conv.groups, conv.bias, conv.out_channels)
    if form != ((3, 3), (1, 1), (1, 1), 1, None, conv.in_channels):
        return (
            "it replaces an ungrouped 3×3 convolution without bias between as many channels, and here stands "
            f"{type(conv).__name__}({conv.extra_repr()})"
        )
    return ""


def _fitting(branch: _Branch) -> list[str]:
    """The modules that can go into a block with their usual options."""
    names = []
    for name, entry in temporal_modules().items():
        if entry.slot is None:
            continue
        try:
            fits = not _problem(entry.slot(branch.spec), branch)
        except ValueError:
            continue
        if fits:
            names.append(name)
    return names


class _Hooks:
    """Through them a module of clips works on a layer's folded input or output.

    A class, and no closures, so that copies and pickles of the network take the module along.
    """

    def __init__(self, module: nn.Module, length: _Length) -> None:
        self.module, self.length = module, length

    def unfold(self, x: Tensor) -> Tensor:
        return unfold(x, self.length.frames)

    def before(self, _: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        return (fold(self.module(self.unfold(inputs[0]))),)

    def after(self, _: nn.Module, __: tuple[Tensor], output: Tensor) -> Tensor:
        return fold(self.module(self.unfold(output)))

    # For the module itself, where a convolution of images stood.

    def unfolded(self, _: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        return (self.unfold(inputs[0]),)

    def folded(self, _: nn.Module, __: tuple[Tensor], output: Tensor) -> Tensor:
        return fold(output)


class _Joined(_Hooks):
    """Hooks that carry the spatial convolution's input y to where ``merge`` joins it, within one forward pass.

    Each thread has a y of its own, for threads may share a network; while it is compiled there is one.
    """

    def __init__(self, module: nn.Module, length: _Length) -> None:
        super().__init__(module, length)
        self.y: dict[int, Tensor] = {}

    def keep(self, _: nn.Module, inputs: tuple[Tensor]) -> None:
        self.y[_thread()] = inputs[0]

    def _join(self, s: Tensor) -> Tensor:
        y = self.y.pop(_thread())
        return fold(self.module(self.unfold(s), self.unfold(y)))

    def at_input(self, _: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        return (self._join(inputs[0]),)

    def at_output(self, _: nn.Module, __: tuple[Tensor], output: Tensor) -> Tensor:
        return self._join(output)


def _fill(network: nn.Module, branch: _Branch, slot: Slot, length: _Length) -> None:
    """Put a slot's modules into a block."""
    like = branch.first.weight
    assert isinstance(like, Tensor)
    for part in (slot.before, slot.inner, slot.conv2, slot.merge, slot.after):
        if part is None:
            continue
        start_convolutions(part)
        part.to(like.device, like.dtype).train(branch.block.training)
        if isinstance(part, TemporalModule):
            branch.block.add_module(part.key, part)
    spatial: nn.Module | None = branch.spatial
    if slot.conv2 is not None and branch.spatial is not None:
        _take_over(slot.conv2, branch.spatial)
        _put(network, branch.spatial_name, slot.conv2)
        spatial = slot.conv2
    if slot.before is not None:
        branch.first.register_forward_pre_hook(_Hooks(slot.before, length).before)
    if slot.merge is not None and spatial is not None and branch.following is not None:
        # Before `inner`: as in our ResNets, y is what conv1-BN-ReLU gives.
        joined = _Joined(slot.merge, length)
        spatial.register_forward_pre_hook(joined.keep)
        if isinstance(branch.following, nn.Conv2d):
            branch.following.register_forward_pre_hook(joined.at_input)
        else:
            branch.following.register_forward_hook(joined.at_output)
    if slot.inner is not None and spatial is not None:
        spatial.register_forward_pre_hook(_Hooks(slot.inner, length).before)
    if slot.conv2 is not None:
        in_place = _Hooks(slot.conv2, length)
        slot.conv2.register_forward_pre_hook(in_place.unfolded)
        slot.conv2.register_forward_hook(in_place.folded)
    if slot.after is not None:
        branch.block.register_forward_hook(_Hooks(slot.after, length).after)


def _take_over(module: Any, conv: nn.Conv2d) -> None:
    """Give the module that replaces a convolution its weights."""
    if isinstance(module, SpatioTemporalWeights):
        module.weight, module.bias = conv.weight, conv.bias
        module.in_channels = conv.in_channels
        module.kernel_size, module.padding = conv.kernel_size, conv.padding
        module.dilation, module.groups = conv.dilation, conv.groups
        return
    weight, own = conv.weight.detach(), module.state_dict()
    parts: dict[str, Tensor] = {}
    if hasattr(module, "from_image_conv"):
        parts = module.from_image_conv(weight)
    elif "weight" in own:
        parts = {"weight": weight if own["weight"].ndim == 4 else inflate(weight, own["weight"].shape)}
    module.load_state_dict({**own, **parts})
