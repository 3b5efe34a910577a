"""Temporal operations as GPU kernels, in Triton: one pass over memory each, where PyTorch's own forms need several.

    temporal_conv   channel-wise convolution over time, with what stands before and after it
    motion          CMM's depthwise 3×3 and difference of neighbouring frames
    shift           channels moved along time
    pointwise       a 1×1 convolution that reads its input shifted, and adds what follows (inference only)

The torch forms in :mod:`clipwise.ops` are the reference and serve wherever :func:`usable` says no. Triton is imported
by the first call and not before, and need not be installed.

Every kernel computes in single precision and answers in its input's dtype; weights may have another. The output is
laid out as the input: channels-last in, channels-last out. Channels-last is what they are fast on; any other strides
give the same numbers. Each kernel tries a few block sizes on the first call with a new shape (batches up to the next
power of two count as one) and keeps the fastest, so that call must not happen inside the capture of a CUDA graph.

For tests the kernels run on a CPU under ``TRITON_INTERPRET=1``, which must be set before triton is first imported.
"""

import contextlib
import functools
import importlib.util
import logging
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from clipwise.compiling import triton_missing

__all__ = ["motion", "pointwise", "shift", "temporal_conv", "usable"]

_log = logging.getLogger(__name__)

_INSTALLED = importlib.util.find_spec("triton") is not None
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_MOST_GROUPS = 4  # that a kernel tells apart

_Groups = Sequence[tuple[int, int]]


def usable(x: Tensor) -> bool:
    """Whether the kernels take ``x``: float32, float16 or bfloat16 on an NVIDIA GPU of capability 7.5 (bfloat16: 8.0)
    or newer, with Triton installed; under Triton's interpreter, on a CPU.
    """
    if not _INSTALLED or x.dtype not in (torch.float32, torch.float16, torch.bfloat16) or x.numel() == 0:
        return False
    if _INTERPRETED:
        return x.device.type == "cpu"
    if x.device.type != "cuda" or torch.version.hip is not None or not _starts():
        return False
    device = torch.cuda.get_device_properties(x.device)
    return (device.major, device.minor) >= ((8, 0) if x.dtype == torch.bfloat16 else (7, 5))


def _starts() -> bool:
    """Whether Triton can launch something."""
    return _tried()


# A compiler cannot trace how that is found out: it takes the answer. torch.compiler.assume_constant_result does no more
# than this, after it has imported all of Dynamo.
_starts._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def _tried() -> bool:
    """The same; why not is said once, for the torch forms are slower."""
    if missing := triton_missing():
        _log.warning("%s. Temporal operations run as PyTorch has them until then", missing)
    return not missing


def _on_device_of(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """Triton launches on the current device, whichever holds the data; a compiler's launches see to that themselves."""
    if x.device.type != "cuda" or torch.compiler.is_compiling():
        return contextlib.nullcontext()
    return torch.cuda.device(x.device)


def temporal_conv(
    x_NTCHW: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    causal: bool = False,
    input_bias: Tensor | None = None,
    relu_input: bool = False,
    relu: bool = False,
) -> Tensor:
    """(N, T, C, H, W) → (N, T, C, H, W): channel-wise convolution along time, zero padding, for any T.

        out = tconv(f(x)) + bias,   f(x) = x + input_bias and then ReLU (relu_input);   at the end ReLU (relu)

    ``weight`` (C, 1, 3) and ``causal`` are as in :func:`clipwise.ops.temporal_conv`. The frames outside a clip are
    zero after f. With gradients for ``x`` and ``weight`` unless f or ``bias`` is there, which are for inference.

    Raises:
        ValueError: for another shape of weight or biases, or where a gradient would go through f or ``bias``.
    """
    channels = x_NTCHW.shape[2]
    _check_shape("weight", weight, (channels, 1, 3))
    for name, given in (("bias", bias), ("input_bias", input_bias)):
        if given is not None:
            _check_shape(name, given, (channels,))
    inference = relu_input or bias is not None or input_bias is not None
    if inference and _wants_gradient(x_NTCHW, weight, bias, input_bias):
        raise ValueError(
            "temporal_conv has no gradient through bias, input_bias or relu_input; call it under torch.no_grad() "
            "or add and clip outside"
        )
    from clipwise.kernels._temporal_conv import convolve

    with _on_device_of(x_NTCHW):
        y: Tensor = convolve(x_NTCHW, weight, bias, input_bias, causal, relu_input, relu)
    return y


def motion(x_NTCHW: Tensor, weight: Tensor, *, causal: bool = False) -> Tensor:
    """(N, T, C, H, W) → (N, T, C, H, W): ``H_t = dw(x)_{t+1} - x_t``, ``H_T = 0``, dw a depthwise 3×3 in space.

    ``weight`` has shape (C, 1, 3, 3). In the causal form ``H_t = dw(x)_t - x_{t-1}``, ``H_1 = 0``.
    Source: STM (ICCV 2019), equation 2.

    Raises:
        ValueError: for another shape of weight.
    """
    _check_shape("weight", weight, (x_NTCHW.shape[2], 1, 3, 3))
    from clipwise.kernels._motion import difference

    with _on_device_of(x_NTCHW):
        y: Tensor = difference(x_NTCHW, weight, causal)
    return y


def shift(x_NTCHW: Tensor, groups: _Groups) -> Tensor:
    """(N, T, C, H, W) → (N, T, C, H, W): move groups of channels along time, as :func:`clipwise.ops.shift` does.

    Raises:
        ValueError: if the groups do not add up to C.
    """
    ends, offsets = _boundaries(groups, x_NTCHW.shape[2])
    from clipwise.kernels._shift import move

    with _on_device_of(x_NTCHW):
        y: Tensor = move(x_NTCHW, ends, offsets)
    return y


def pointwise(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    frames: int,
    groups: _Groups | None = None,
    also: tuple[Tensor, Tensor] | None = None,
    residual: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """Folded (N·T, C, H, W) or (N, T, C, H, W) → the same with C', channels-last: a 1×1 convolution and what is near.

        out = weight · shift(x, groups) + also[1] · also[0] + bias + residual,   at the end ReLU (relu)

    Args:
        weight: (C', C), or a 1×1 convolution's (C', C, 1, 1).
        frames: T.
        groups: of :func:`clipwise.ops.shift`, at most 4 after joining neighbours of the same offset; None for no shift.
        also: a second input with as many frames and pixels, and its weight (C', C2); it is not shifted.
        residual: of the output's shape.

    Inference only. float32 is multiplied exactly, or in TF32 where ``torch.backends.cudnn.allow_tf32`` lets
    convolutions do so. Below capability 8.0 Triton does not use the matrix units, and conv2d is faster.

    Raises:
        ValueError: for shapes that do not fit together, more groups, or where a gradient would be needed.
    """
    second, second_weight = also if also is not None else (None, None)
    if _wants_gradient(x, weight, bias, second, second_weight, residual):
        raise ValueError("pointwise has no gradient; call it under torch.no_grad(), or use conv2d")
    clips = x.dim() == 5
    x, second, residual = _folded(x), _folded(second), _folded(residual)
    n, channels, h, w = x.shape
    if n % frames:
        raise ValueError(f"a folded batch of {n} frames is no whole number of clips of {frames} frames")
    weight, out_channels = weight.reshape(weight.shape[0], -1), weight.shape[0]
    _check_shape("weight", weight, (out_channels, channels))
    if bias is not None:
        _check_shape("bias", bias, (out_channels,))
    if residual is not None:
        _check_shape("residual", residual, (n, out_channels, h, w))
    if second is not None and second_weight is not None:
        _check_shape("also[0]", second, (n, second.shape[1], h, w))
        second_weight = second_weight.reshape(second_weight.shape[0], -1)
        _check_shape("also[1]", second_weight, (out_channels, second.shape[1]))
    ends, offsets = _boundaries(groups or [(channels, 0)], channels)
    if len(ends) > _MOST_GROUPS:
        raise ValueError(f"pointwise tells at most {_MOST_GROUPS} groups apart, got {len(ends)}; shift before it")
    from clipwise.kernels._pointwise import product

    tf32 = torch.backends.cudnn.allow_tf32
    with _on_device_of(x):
        y: Tensor = product(x, weight, bias, second, second_weight, residual, frames, ends, offsets, relu, tf32)
    return y.unflatten(0, (n // frames, frames)) if clips else y


def _folded(x: Tensor | None) -> Any:
    return x.flatten(0, 1) if x is not None and x.dim() == 5 else x


def _wants_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def _check_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}")


def _boundaries(groups: _Groups, channels: int) -> tuple[list[int], list[int]]:
    """Where each group of channels ends, and its offset; empty groups left out, neighbours of one offset joined."""
    if sum(size for size, _ in groups) != channels:
        raise ValueError(f"shift groups {list(groups)} do not add up to {channels} channels")
    ends: list[int] = []
    offsets: list[int] = []
    end = 0
    for size, offset in groups:
        end += size
        if size and offsets and offsets[-1] == offset:
            ends[-1] = end
        elif size:
            ends.append(end)
            offsets.append(offset)
    return ends, offsets
