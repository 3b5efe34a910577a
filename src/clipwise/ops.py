"""Temporal operations as pure functions on clips.

Legend: N clips, T frames, C channels, H × W pixels. A name ending in ``_NTCHW`` is such a five-dimensional
tensor; 2D layers see it *folded*, ``(N·T, C, H, W)`` with time fastest inside a clip. :func:`fold` and
:func:`unfold` are the only places that change between the two.

Every function keeps the channels-last layout: where a concatenation or padding is needed it happens on a view
with the channels innermost, since PyTorch would otherwise answer with a contiguous copy, and each following
convolution would pay for the conversion back.

Where an operation has several forms, the fastest is chosen by where it runs; which is measured in
``benchmarks/kernels.py`` and ``benchmarks/speed.py``. Eager on a GPU that can, it is a Triton kernel
(:mod:`clipwise.kernels`), with gradients. For a compiler it is plain arithmetic, which the compiler fuses with what
stands around; in training the temporal convolution is the kernel there, too, which reads and keeps less. Everywhere
else, and for exporters, it is PyTorch's operations as written here, the reference of all.

An operation with a ``causal`` form reads no later frame than the one it answers for. Where three frames meet, the
causal form takes t-2, t-1 and t in the places of t-1, t and t+1, so it is the two-sided one delayed by a frame, and
the same weights serve both. With a :class:`~clipwise.memory.Memory` it reads before a clip what a stream had there
instead of zeros.
"""

from collections.abc import Sequence
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipwise import kernels
from clipwise.memory import Memory

__all__ = [
    "fold",
    "height_as_time",
    "is_plain_inference",
    "motion",
    "motion_difference",
    "over_past",
    "running_mean",
    "shift",
    "temporal_conv",
    "temporal_pool",
    "time_as_height",
    "unfold",
]


def fold(x_NTCHW: Tensor) -> Tensor:
    """(N, T, C, H, W) → (N·T, C, H, W)."""
    if x_NTCHW.dim() == 5 and _is_compiled_for_gpu(x_NTCHW):
        return x_NTCHW.permute(0, 1, 3, 4, 2).flatten(0, 1).permute(0, 3, 1, 2)
    return x_NTCHW.flatten(0, 1)


def unfold(x: Tensor, frames: int) -> Tensor:
    """(N·T, C, H, W) → (N, T, C, H, W) with T = ``frames``.

    Raises:
        ValueError: if the batch is not a whole number of clips.
    """
    if x.shape[0] % frames:
        raise ValueError(f"a folded batch of {x.shape[0]} frames is no whole number of clips of {frames} frames")
    size = (x.shape[0] // frames, frames)
    clips: Tensor
    if x.dim() == 4 and _is_compiled_for_gpu(x):
        clips = x.permute(0, 2, 3, 1).unflatten(0, size).permute(0, 1, 4, 2, 3)
    else:
        clips = x.unflatten(0, size)
    return clips


def shift(x_NTCHW: Tensor, groups: Sequence[tuple[int, int]], *, memory: Memory | None = None) -> Tensor:
    """(N, T, C, H, W) → (N, T, C, H, W): move groups of channels along time.

    ``groups`` lists ``(channels, offset)`` in channel order: frame t of the output holds, for those channels,
    frame t + offset of the input, and zeros where that lies outside the clip. The offset is +1 for the next
    frame and -1 for the previous one. A shift counts nothing towards a network's MACs.

        time →   1 2 3 4
        +1       2 3 4 0
        -1       0 1 2 3
        -2       0 0 1 2
         0       1 2 3 4

    Where gradients, a compiler or an exporter follow, ``pad`` and ``cat`` are written, so that an ONNX export holds
    no ScatterND; in plain inference slices are assigned, which copies everything once instead of twice.

    Raises:
        ValueError: if the groups do not add up to C, or a stream is to give a later frame.
    """
    channels = x_NTCHW.shape[2]
    if sum(size for size, _ in groups) != channels:
        raise ValueError(f"shift groups {list(groups)} do not add up to {channels} channels")
    if memory is not None:
        return _shift_in_stream(x_NTCHW, groups, memory)
    if _takes_kernel(x_NTCHW):
        return kernels.shift(x_NTCHW, groups)
    x_NTHWC = x_NTCHW.permute(0, 1, 3, 4, 2)
    if is_plain_inference(x_NTCHW):
        return _assign_shifted(x_NTHWC, groups).permute(0, 1, 4, 2, 3)
    shifted = [
        _shift_time(part, offset)
        for part, (_, offset) in zip(x_NTHWC.split([size for size, _ in groups], dim=-1), groups, strict=True)
    ]
    return torch.cat(shifted, dim=-1).permute(0, 1, 4, 2, 3)


def _shift_in_stream(x_NTCHW: Tensor, groups: Sequence[tuple[int, int]], memory: Memory) -> Tensor:
    frames, shifted = x_NTCHW.shape[1], []
    for part, (size, offset) in zip(x_NTCHW.split([size for size, _ in groups], dim=2), groups, strict=True):
        if offset > 0:
            raise ValueError(f"a stream has no later frames, and a group of channels takes the one {offset} after")
        moved = memory.with_past(part, -offset)[:, :frames] if size and offset else part
        shifted.append(moved.permute(0, 1, 3, 4, 2))
    return torch.cat(shifted, dim=-1).permute(0, 1, 4, 2, 3)


def _shift_time(x_NTHWC: Tensor, offset: int) -> Tensor:
    if offset == 0:
        return x_NTHWC
    frames = x_NTHWC.shape[1]
    offset = max(-frames, min(offset, frames))  # of a clip shorter than the offset nothing is left
    # `pad` crops where its argument is negative: one call drops the frames that leave and adds those that enter.
    return F.pad(x_NTHWC, (0, 0, 0, 0, 0, 0, -offset, offset))


def _is_traced() -> bool:
    return torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined]


def _is_compiled_for_gpu(x: Tensor) -> bool:
    """There Inductor lays out what it writes as it first sees it, so it is to see channels innermost: a view of five
    dimensions of an image would have it write the image twice, the second time transposed."""
    return x.is_cuda and torch.compiler.is_compiling() and not torch.compiler.is_exporting()


def _takes_kernel(x: Tensor) -> bool:
    return not _is_traced() and kernels.usable(x)


def is_plain_inference(*inputs: Tensor) -> bool:
    """Whether nothing follows what is done to tensors: neither autograd nor a compiler nor an exporter."""
    return not (_is_traced() or (torch.is_grad_enabled() and any(x.requires_grad for x in inputs)))


def _assign_shifted(x_NTHWC: Tensor, groups: Sequence[tuple[int, int]]) -> Tensor:
    shifted = torch.empty_like(x_NTHWC, memory_format=torch.contiguous_format)
    frames, first = x_NTHWC.shape[1], 0
    for size, offset in groups:
        offset = max(-frames, min(offset, frames))
        channels = slice(first, first + size)
        inside = slice(max(0, -offset), frames - max(0, offset))
        shifted[:, inside, ..., channels] = x_NTHWC[:, max(0, offset) : frames - max(0, -offset), ..., channels]
        shifted[:, : inside.start, ..., channels] = 0
        shifted[:, inside.stop :, ..., channels] = 0
        first += size
    return shifted


def temporal_conv(
    x_NTCHW: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    causal: bool = False,
    memory: Memory | None = None,
) -> Tensor:
    """(N, T, C, H, W) → (N, T, C', H, W): convolution along time, zero padding, stride 1.

    ``weight`` has shape (C', C / groups, k) with k odd, so it is a ``conv1d`` weight: (C, 1, 3) is channel-wise,
    its taps in the order previous, current, next frame; in the causal form t-2, t-1, t. ``bias`` has shape (C',).

    The reference is a 2D convolution over (T, H·W): PyTorch's 2D kernels are several times as fast on a CPU as
    ``conv1d`` on a permuted copy or ``conv3d``.
    """
    channels = x_NTCHW.shape[2]
    if memory is not None and weight.shape[1] == 1 and channels == weight.shape[0]:
        return _taps(memory.with_past(x_NTCHW, weight.shape[-1] - 1), weight, bias, x_NTCHW.shape[1])
    if weight.shape == (channels, 1, 3) and memory is None:
        # A bias is there once a network is deployed, and then no gradient goes through it.
        if _takes_kernel(x_NTCHW) and (bias is None or is_plain_inference(x_NTCHW, weight, bias)):
            return kernels.temporal_conv(x_NTCHW, weight, bias, causal=causal)
        if _is_compiled_for_gpu(x_NTCHW):
            # For gradients Inductor writes out the padded clip, and keeps it; the kernel keeps its input alone.
            if bias is None and torch.is_grad_enabled() and kernels.usable(x_NTCHW):
                return kernels.temporal_conv(x_NTCHW, weight, causal=causal)
            return _sum_of_shifted(x_NTCHW, weight, bias, causal=causal)
    x = over_past(x_NTCHW, weight.shape[-1], memory) if causal else time_as_height(x_NTCHW)
    padding = (0 if causal else weight.shape[-1] // 2, 0)
    y = F.conv2d(x, weight.unsqueeze(-1), bias, padding=padding, groups=channels // weight.shape[1])
    return height_as_time(y, x_NTCHW)


def over_past(x_NTCHW: Tensor, kernel: int, memory: Memory | None) -> Tensor:
    """(N, T, C, H, W) → (N, C, T + kernel - 1, H·W): what a causal convolution of images reads, the frames before the
    first on top."""
    if memory is not None:
        return time_as_height(memory.with_past(x_NTCHW, kernel - 1))
    padded: Tensor = F.pad(time_as_height(x_NTCHW), (0, 0, kernel - 1, 0))
    return padded


def time_as_height(x_NTCHW: Tensor) -> Tensor:
    """(N, T, C, H, W) → (N, C, T, H·W), images that are T high; of a channels-last tensor a view."""
    return x_NTCHW.flatten(3).transpose(1, 2)


def height_as_time(y: Tensor, like_NTCHW: Tensor) -> Tensor:
    """(N, C', T, H·W) → (N, T, C', H, W), H and W as another tensor has them."""
    clips: Tensor = y.transpose(1, 2).unflatten(3, like_NTCHW.shape[3:])
    return clips


def _sum_of_shifted(x_NTCHW: Tensor, weight: Tensor, bias: Tensor | None, *, causal: bool) -> Tensor:
    frames, kernel = x_NTCHW.shape[1], weight.shape[-1]
    x = x_NTCHW.permute(0, 1, 3, 4, 2)
    before = kernel - 1 if causal else kernel // 2
    padded = F.pad(x, (0, 0, 0, 0, 0, 0, before, kernel - 1 - before))
    return _taps(padded.permute(0, 1, 4, 2, 3), weight, bias, frames)


def _taps(padded_NTCHW: Tensor, weight: Tensor, bias: Tensor | None, frames: int) -> Tensor:
    """(N, T + k - 1, C, H, W) → (N, T, C, H, W): the sum of the frames under each tap of a channel-wise convolution."""
    x = padded_NTCHW.permute(0, 1, 3, 4, 2)
    first, *others = weight[:, 0].t().contiguous()
    y = x[:, :frames] * first
    for tap, tap_weight in enumerate(others, start=1):
        y = torch.addcmul(y, x[:, tap : tap + frames], tap_weight)
    taken: Tensor = y if bias is None else y + bias
    return taken.permute(0, 1, 4, 2, 3)


def motion(x_NTCHW: Tensor, conv: nn.Module, *, causal: bool = False, memory: Memory | None = None) -> Tensor:
    """(N, T, C, H, W) → (N, T, C, H, W): ``H_t = conv(x_{t+1}) - x_t``, and ``H_T = 0``.

    ``conv`` maps images (B, C, H, W) to the same shape. The causal form is :func:`motion_difference`'s.

    Source: STM (ICCV 2019), equation 2.
    """
    if memory is None and _takes_kernel(x_NTCHW) and _is_depthwise_3x3(conv):
        return kernels.motion(x_NTCHW, conv.weight, causal=causal)
    convolved = unfold(conv(fold(x_NTCHW)), x_NTCHW.shape[1])
    return motion_difference(convolved, x_NTCHW, causal=causal, memory=memory)


def _is_depthwise_3x3(conv: nn.Module) -> TypeGuard[nn.Conv2d]:
    return (
        type(conv) is nn.Conv2d
        and conv.weight.shape == (conv.in_channels, 1, 3, 3)
        and (conv.groups, conv.stride, conv.padding, conv.dilation) == (conv.in_channels, (1, 1), (1, 1), (1, 1))
        and conv.bias is None
        and conv.padding_mode == "zeros"
    )


def motion_difference(
    features_NTCHW: Tensor, reference_NTCHW: Tensor, *, causal: bool = False, memory: Memory | None = None
) -> Tensor:
    """Two (N, T, C, H, W) → (N, T, C, H, W): ``H_t = features_{t+1} - reference_t``, and ``H_T = 0``.

    In the causal form ``H_t = features_t - reference_{t-1}``, and ``H_1 = 0``.

    Source: STM (ICCV 2019), equation 2.
    """
    if memory is not None:
        return memory.without_first(features_NTCHW - memory.with_past(reference_NTCHW, 1)[:, :-1])
    if is_plain_inference(features_NTCHW, reference_NTCHW) and features_NTCHW.dtype == reference_NTCHW.dtype:
        moved = torch.empty_like(features_NTCHW)
        seen, unseen = (slice(1, None), 0) if causal else (slice(None, -1), -1)
        moved[:, seen] = features_NTCHW[:, 1:] - reference_NTCHW[:, :-1]
        moved[:, unseen] = 0
        return moved
    features = features_NTCHW.permute(0, 1, 3, 4, 2)
    reference = reference_NTCHW.permute(0, 1, 3, 4, 2)
    difference = features[:, 1:] - reference[:, :-1]
    zero_frames = (1, 0) if causal else (0, 1)
    return F.pad(difference, (0, 0, 0, 0, 0, 0, *zero_frames)).permute(0, 1, 4, 2, 3)


def running_mean(x_NTCHW: Tensor, window: int, *, memory: Memory | None = None) -> Tensor:
    """(N, T, C, H, W) → (N, T, C, H, W): frame t, counted from 1, is the mean of the last min(t, ``window``) frames.

    The causal form of a mean over a clip of ``window`` frames; a longer clip means the same as a stream.
    """
    x = over_past(x_NTCHW, window, memory)
    # A pooling sums each window anew, in single precision: a running sum would gather rounding errors in bf16.
    mean = height_as_time(F.avg_pool2d(x, (window, 1), stride=1), x_NTCHW)
    numbers = torch.arange(1, x_NTCHW.shape[1] + 1, device=x.device)[None] if memory is None else memory.numbers
    return mean * (window / numbers.clamp(max=window)).to(mean.dtype)[..., None, None, None]


def temporal_pool(x_NTCHW: Tensor, kind: str) -> Tensor:
    """(N, T, C, H, W) → (N, T/2, C, H, W): pooling over time, kernel 3, stride 2, the clip's outside left out.

    ``kind`` is ``"max"`` or ``"average"``. T must be even. Source: Deep Analysis (CVPR 2021), section 3.

    Raises:
        ValueError: for another kind, or an odd T.
    """
    if kind not in ("max", "average"):
        raise ValueError(f"temporal pooling is 'max' or 'average', got {kind!r}")
    if x_NTCHW.shape[1] % 2:
        raise ValueError(f"temporal pooling halves the frames, and {x_NTCHW.shape[1]} is odd; take an even number")
    x_NTHWC = x_NTCHW.permute(0, 1, 3, 4, 2)
    now, after = x_NTHWC[:, 0::2], x_NTHWC[:, 1::2]
    before = after[:, :-1]
    if kind == "max":
        pair = torch.maximum(now, after)
        pooled = torch.cat((pair[:, :1], torch.maximum(pair[:, 1:], before)), dim=1)
    else:
        pair = now + after
        pooled = torch.cat((pair[:, :1] / 2, (pair[:, 1:] + before) / 3), dim=1)
    return pooled.permute(0, 1, 4, 2, 3)
