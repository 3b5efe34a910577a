"""A trained network made ready for inference: the same function in fewer operations.

What is done is algebra, exact but for rounding: a BatchNorm goes into the convolution whose output it alone reads, the
last layer is applied to the mean of the frames' features instead of to each, and a ResNet's blocks become those of
:mod:`clipwise.inference.fused`. Which normalisation follows which convolution is not guessed from names but seen in
one forward pass, so that networks with modules of the user's own are treated alike.
"""

import copy
import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from clipwise import kernels
from clipwise.compiling import compile_frozen, compiler_missing
from clipwise.inference.fused import FusedConv, can_fuse, fuse_block, has_hooks, scale_and_shift
from clipwise.models.network import VideoNetwork, channels_last
from clipwise.models.resnet import Block, ResNet
from clipwise.models.temporal.layers import TemporalConv

__all__ = ["Deployed", "deploy", "ends_in_mean", "record"]

_log = logging.getLogger(__name__)

_ROUNDING = 1e-3
"""Of the largest logit: what is farther off in float32 is no rounding."""
_SIZES = (64, 224)
"""Pixels of a side with which a network is looked at: few, and those of image networks, some of which take no other."""
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_CONVOLUTIONS = (torch.conv1d, torch.conv2d, torch.conv3d, torch.nn.functional.linear)
# What tells a tensor's form and reads none of its values; so do its properties.
_ASK_FOR_FORM = (Tensor.size, Tensor.dim, Tensor.stride, Tensor.numel, Tensor.is_contiguous, Tensor.is_floating_point)


class Deployed(nn.Module):
    """A network for inference, made by :func:`deploy`. It can be neither trained nor saved as a checkpoint.

    Attributes:
        network: the rewritten network.
        dtype: in which its layers compute.
        compiled: whether torch.compile translates it; at the first clips of each shape.
    """

    def __init__(self, network: VideoNetwork, dtype: torch.dtype, *, compiled: bool, cuda_graph: bool) -> None:
        super().__init__()
        self.network = network
        self.dtype = dtype
        self.compiled = compiled
        self._mean_first = ends_in_mean(network)
        self._run: Callable[[Tensor], Tensor] = self._logits
        if compiled:
            self._run = compile_frozen(self._run)
        if cuda_graph:
            self._run = _Graphs(self._run)
        super().train(False)

    @property
    def num_frames(self) -> int:
        """T of a clip."""
        return self.network.num_frames

    @property
    def num_classes(self) -> int:
        """Outputs of the last layer."""
        return self.network.num_classes

    def train(self, mode: bool = True) -> Self:
        """Refuse to train.

        Raises:
            ValueError: for ``mode=True``.
        """
        if mode:
            raise ValueError("a deployed network cannot be trained: its BNs are folded; train the one it was made of")
        return self

    def _apply(self, *_: Any, **__: Any) -> Self:
        raise ValueError(
            "a deployed network stays where and in the dtype in which it was made; move the network it was made of, "
            "and deploy that"
        )

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError(
            "a deployed network can be neither copied nor pickled: what it compiled and captured belongs to this "
            "process; save the network it was made of, and call deploy where it is to run"
        )

    @torch.no_grad()
    def forward(self, clips: Tensor) -> Tensor:
        """(N, T, 3, H, W) float → (N, num_classes) float32 logits."""
        self.network.check_clips(clips)
        with torch.autocast(clips.device.type, enabled=False):  # the dtype was chosen already
            return self._run(clips)

    def _logits(self, clips: Tensor) -> Tensor:
        network = self.network
        clips = clips.to(self.dtype)
        if not self._mean_first:
            return network(clips).float()  # type: ignore[no-any-return]
        # The last layer is linear, so the mean of what it makes of the frames is what it makes of their mean.
        logits: Tensor = network.fc(network.last_frames(network.forward_features(clips)).float().mean(dim=1))
        return logits


def deploy(
    model: VideoNetwork,
    *,
    dtype: torch.dtype = torch.float32,
    compile: bool = False,
    cuda_graph: bool = False,
    with_kernels: bool = False,
) -> Deployed:
    """Rewrite a network for inference on the device where it is.

    The argument stays as it is. In float32 the outputs are the network's but for rounding.

    Args:
        model: a network of this library, or one that :func:`clipwise.temporalize` made.
        dtype: ``torch.float32``, ``torch.bfloat16`` or ``torch.float16``, in which the layers compute; the last
            layer, where it is applied to the mean of the frames, and BNs that stay keep float32.
        compile: translate by torch.compile; without a compiler this is said once, and the network runs as it is.
        cuda_graph: record the kernels of each shape of input once and replay them, which makes small batches faster.
            GPUs only.
        with_kernels: in a ResNet's blocks, take the kernels of :mod:`clipwise.kernels` for 1×1 convolutions and
            temporal steps. GPUs only.

    Raises:
        TypeError: for something else than a network.
        ValueError: for another dtype, ``cuda_graph`` for a network that is not on a GPU, ``with_kernels`` where they
            cannot run, a network that takes no clips of a usual size, whose logits are not finite, or would not stay
            what they are.
    """
    if isinstance(model, Deployed):
        raise TypeError("this network is deployed already; deploy the one it was made of")
    if not isinstance(model, VideoNetwork):
        raise TypeError(f"deploy takes a network of clipwise.create_model or temporalize, got {type(model).__name__}")
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"dtype must be torch.float32, torch.bfloat16 or torch.float16, got {dtype}")
    device = next(model.parameters()).device
    if cuda_graph and device.type != "cuda":
        raise ValueError(f"cuda_graph needs a network on a GPU, and this one is on {device}; leave it out, or move it")
    if with_kernels and not kernels.usable(torch.empty(1, device=device, dtype=dtype)):
        raise ValueError(
            f"with_kernels needs triton and a GPU of NVIDIA's that has {dtype}, and this network is on {device}; "
            "leave it out, or move the network"
        )
    with torch.no_grad():
        network = _rewritten(model, for_gpu=device.type == "cuda" or with_kernels, with_kernels=with_kernels)
    channels_last(network).to(device, dtype)
    for module in network.modules():
        if isinstance(module, _NORMS):
            module.float()
    if ends_in_mean(network):
        network.fc.float()
    if compile and (missing := compiler_missing(device.type)):
        _log.warning("%s. Running without it", missing)
        compile = False
    return Deployed(network, dtype, compiled=compile, cuda_graph=cuda_graph)


def _rewritten(model: VideoNetwork, *, for_gpu: bool, with_kernels: bool) -> VideoNetwork:
    """A copy in float32 on the CPU, where what follows what is looked at, with BNs folded and layers fused.

    Raises:
        ValueError: if its logits are others than the network's: it does something that is not understood here; if they
            are not finite; or if it takes no clips.
    """
    network: VideoNetwork = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
    clips, pairs, expected = _looked_at(network)
    if not expected.isfinite().all():
        tensors = (*network.named_parameters(), *network.named_buffers())
        bad = next((f"; {name} holds such values" for name, value in tensors if not value.isfinite().all()), "")
        raise ValueError(
            f"this network has diverged: its logits are not finite{bad}; take weights from before that, or train it "
            "anew with a smaller training.lr"
        )
    for convolutions, norm in pairs:
        _fold(convolutions, norm)
        _replace_by_identity(network, norm)
    if isinstance(network, ResNet) and not with_kernels:
        _fuse(network, for_gpu=for_gpu, with_kernels=False)
    found = network(clips)
    off = float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-6))
    if not off < _ROUNDING:
        raise ValueError(
            f"rewritten, this network gives logits that differ by {off:.2g} of the largest one: it holds something "
            "that deploy does not understand, such as a layer that changes from pass to pass; use it as it is"
        )
    if isinstance(network, ResNet) and with_kernels:  # which need a GPU
        _fuse(network, for_gpu=for_gpu, with_kernels=True)
    return network


def _looked_at(network: VideoNetwork) -> tuple[Tensor, list[tuple[tuple[nn.Module, ...], nn.Module]], Tensor]:
    """Noise of a size that the network takes, and of that what :func:`_normalised_convolutions` finds."""
    sizes = [max(size, network.min_size) for size in _SIZES]
    for size in sizes:
        clips = torch.randn(1, network.num_frames, 3, size, size, generator=torch.Generator().manual_seed(0))
        try:
            return clips, *_normalised_convolutions(network, clips)
        except (RuntimeError, ValueError, AssertionError) as error:  # layers of a fixed size
            refused = error
    tried = " or ".join(f"{size}×{size}" for size in dict.fromkeys(sizes))
    why = (str(refused).strip() or type(refused).__name__).splitlines()[0]
    raise ValueError(
        f"this network takes no clips of {tried} pixels, by which deploy looks at it ({why}); use it as it is, or make "
        f"it for {size}×{size}"
    ) from refused


def ends_in_mean(network: VideoNetwork) -> bool:
    """Whether the logits are the mean over the time steps of a linear layer of each, as they are unless a family or a
    user has it otherwise."""
    untouched = not any(map(has_hooks, (network, network.dropout, network.fc)))
    kind = type(network)
    usual = kind.forward is VideoNetwork.forward and kind.classify is VideoNetwork.classify
    return usual and type(network.fc) is nn.Linear and untouched


def _fuse(network: ResNet, *, for_gpu: bool, with_kernels: bool) -> None:
    """Put fused layers in the place of those that are as this library makes them; others stay."""
    stem = (network.conv1, network.bn1, network.relu)
    if isinstance(network.bn1, nn.Identity) and type(network.conv1) is nn.Conv2d and not any(map(has_hooks, stem)):
        network.add_module("conv1", FusedConv(network.conv1, relu=True))
        network.add_module("relu", nn.Identity())
    for stage in range(1, 5):
        layer: Sequence[Block] = getattr(network, f"layer{stage}")
        for index, block in enumerate(layer):
            if can_fuse(block):
                layer[index] = fuse_block(block, for_gpu=for_gpu, with_kernels=with_kernels)  # type: ignore[index]


# Which normalisation follows which convolution.


@dataclass(frozen=True)
class _Source:
    """What a tensor holds: the outputs of convolutions side by side, and the axis of their channels."""

    convolutions: tuple[nn.Module, ...]
    axis: int


class _Readers(TorchFunctionMode):
    """Follows the outputs of convolutions through one forward pass: who reads them.

    What only moves the channels, or puts outputs side by side, is followed; every other function is a reader.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        # A weight that is computed anew at each pass (torch.nn.utils.parametrizations) is no parameter, and nobody's.
        self.owners = {
            id(module._parameters["weight"]): module
            for module in network.modules()
            if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear) and "weight" in module._parameters
        }
        self.sources: dict[int, _Source] = {}
        """By a tensor's id."""
        self.calls: dict[nn.Module, int] = defaultdict(int)
        self.readers: dict[nn.Module, int] = defaultdict(int)
        self.kept: list[Any] = []
        """Tensors stay alive, since a tensor is known by its id."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        self.kept.append(result)
        if func in _ASK_FOR_FORM or getattr(func, "__name__", "") == "__get__":
            return result
        if isinstance(result, Tensor):
            if (owner := self._owner(func, args, kwargs)) is not None:
                self.made(owner, result, axis=result.ndim - 1 if isinstance(owner, nn.Linear) else 1)
            elif moved := self._moved(func, args, kwargs):
                self.sources[id(result)] = moved
                return result
        for read in _tensors((args, kwargs)):
            for convolution in self.sources[id(read)].convolutions if id(read) in self.sources else ():
                self.readers[convolution] += 1
        return result

    def made(self, convolution: nn.Module, output: Tensor, axis: int) -> None:
        """Note a convolution's output."""
        self.calls[convolution] += 1
        self.sources[id(output)] = _Source((convolution,), axis)
        self.kept.append(output)

    def _owner(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> nn.Module | None:
        """Whose convolution a call is, with that module's weight and bias; of a layer's own call they come in order."""
        if func not in _CONVOLUTIONS or len(args) < 3:
            return None
        owner = self.owners.get(id(args[1]))
        return owner if owner is not None and args[2] is owner.bias else None

    def _moved(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Source | None:
        """What the result of folding, unfolding, exchanging axes 1 and 2 or concatenating channels holds."""
        if not args:
            return None
        if func is torch.cat:
            parts = [self.sources.get(id(part)) for part in args[0]]
            axis = kwargs.get("dim", args[1] if len(args) > 1 else 0)
            if not all(part is not None and part.axis == axis for part in parts):
                return None
            return _Source(tuple(one for part in parts if part is not None for one in part.convolutions), axis)
        source = self.sources.get(id(args[0]))
        if source is None:
            return None
        axis = source.axis
        if func is Tensor.flatten and args[1:] == (0, 1) and axis == 2:
            return _Source(source.convolutions, 1)
        if func is Tensor.unflatten and args[1:2] == (0,) and axis == 1:
            return _Source(source.convolutions, 2)
        if func is Tensor.transpose and args[1:] == (1, 2) and axis in (1, 2):
            return _Source(source.convolutions, 3 - axis)
        return None


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, tuple | list):
        return []
    return [tensor for part in value for tensor in _tensors(part)]


def _normalised_convolutions(
    network: VideoNetwork, clips: Tensor
) -> tuple[list[tuple[tuple[nn.Module, ...], nn.Module]], Tensor]:
    """The pairs of convolutions and the BatchNorm that alone reads their output, each used once in a forward pass, and
    that pass's logits.

    There is one convolution, or several whose outputs stand side by side.
    """
    readers = _Readers(network)
    inputs: dict[nn.Module, list[Tensor]] = defaultdict(list)
    hooks = []
    for module in network.modules():
        if isinstance(module, TemporalConv):
            hooks.append(
                module.register_forward_hook(lambda convolution, _, output: readers.made(convolution, output, axis=2))
            )
        if type(module) in _NORMS and module.running_mean is not None:
            # The last of its hooks, so that it sees what those of the network's own have made of the input.
            hooks.append(module.register_forward_pre_hook(lambda norm, given: inputs[norm].append(given[0])))
    try:
        with readers:
            logits: Tensor = network(clips)
    finally:
        for hook in hooks:
            hook.remove()
    pairs = []
    for norm, given in inputs.items():
        source = readers.sources.get(id(given[0]))
        if source is None or source.axis != 1 or len(given) > 1:
            continue
        if all((readers.calls[one], readers.readers[one]) == (1, 1) for one in source.convolutions):
            pairs.append((source.convolutions, norm))
    return pairs, logits


def _fold(convolutions: tuple[Any, ...], norm: Any) -> None:
    """Put a BatchNorm, as it normalises in evaluation, into the convolutions before it."""
    scale, shift = scale_and_shift(norm)
    first = 0
    for convolution in convolutions:
        weight, bias = convolution.weight, convolution.bias
        channels = slice(first, first + weight.shape[0])
        own_scale, own_shift = scale[channels], shift[channels]
        if bias is not None:
            own_shift = own_shift + bias.double() * own_scale
        convolution.weight = _like(weight.double() * own_scale.reshape(-1, *[1] * (weight.ndim - 1)), weight)
        convolution.bias = _like(own_shift, weight)
        first = channels.stop


def _like(value: Tensor, parameter: Tensor) -> nn.Parameter:
    return nn.Parameter(value.to(parameter), requires_grad=False)


def _replace_by_identity(network: nn.Module, norm: nn.Module) -> None:
    """A normalisation's hooks, by which ``temporalize`` places modules, stay."""
    identity = nn.Identity()
    identity._forward_hooks, identity._forward_pre_hooks = norm._forward_hooks, norm._forward_pre_hooks
    for parent in network.modules():
        for name, child in list(parent._modules.items()):  # under every name that it has
            if child is norm:
                parent.add_module(name, identity)


class _Graphs:
    """A function's kernels, recorded once for each shape of input and replayed after; one thread at a time."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function = function
        self.recorded: dict[tuple[Any, ...], tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = {}
        self.one_at_a_time = threading.Lock()

    def __call__(self, clips: Tensor) -> Tensor:
        key = (clips.shape, clips.dtype)
        # Outside inference mode, whose tensors could not be written into by a later call outside of it.
        with self.one_at_a_time, torch.cuda.device(clips.device), torch.inference_mode(False), torch.no_grad():
            if key not in self.recorded:
                self.recorded[key] = self._record(clips)
            graph, given, result = self.recorded[key]
            given.copy_(clips)
            graph.replay()
            return result.clone()

    def _record(self, clips: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor]:
        given = clips.clone()
        graph, result = record(lambda: self.function(given))
        return graph, given, result


_RECORDING = threading.Lock()
"""A process records one graph at a time."""


def record(function: Callable[[], Tensor]) -> tuple[torch.cuda.CUDAGraph, Tensor]:
    """A function's kernels on the current GPU, and the tensor in which each replay leaves its result."""
    with _RECORDING:
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # what compiles, tunes or allocates at a first call must not be recorded
            for _ in range(3):
                function()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # The usual stream for it belongs to whichever GPU recorded first. What other threads allocate meanwhile is none
        # of its concern.
        with torch.cuda.graph(graph, stream=aside, capture_error_mode="thread_local"):
            result = function()
    return graph, result
