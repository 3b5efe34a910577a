"""Channels moved along time (TSM) as one copy.

Each element is read once and written once, 4 bytes an element in bfloat16: a copy's time. ``pad`` and ``cat`` read and
write the moved quarter of the channels twice, and slice assignment fills the whole output with zeros first. The
backward pass is the same copy with the offsets turned round.

Where a 1×1 convolution follows, :func:`clipwise.kernels.pointwise` reads the shifted frames itself and no copy is
needed.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from clipwise.kernels._common import (
    alignment,
    channel_block,
    group_arguments,
    group_offset,
    operation,
    pixel_offsets,
    size_class,
    tile,
    tuned,
    wrap_triton,
)

__all__ = ["move"]


@tuned(
    [
        triton.Config({"TILE": 2048}, num_warps=4),
        triton.Config({"TILE": 1024}, num_warps=4),
        triton.Config({"TILE": 4096}, num_warps=8),
    ],
    key=["size", "frames", "pixels", "CHANNELS"],
)
@triton.jit
def _shift(
    x,
    y,
    size,
    frames,
    pixels,
    width,
    x_n,
    x_t,
    x_c,
    x_h,
    x_w,
    y_n,
    y_t,
    y_c,
    y_h,
    y_w,
    CHANNELS: tl.constexpr,
    E0: tl.constexpr,
    E1: tl.constexpr,
    E2: tl.constexpr,
    O0: tl.constexpr,
    O1: tl.constexpr,
    O2: tl.constexpr,
    O3: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_C: tl.constexpr,
    TILE: tl.constexpr,
):
    BLOCK_P: tl.constexpr = TILE // BLOCK_C
    p, c, image, _ = tile(tl.cdiv(pixels, BLOCK_P), tl.cdiv(CHANNELS, BLOCK_C), BLOCK_P, BLOCK_C)
    n = (image // frames).to(tl.int64)
    t = image % frames
    frame = t + group_offset(c, E0, E1, E2, O0, O1, O2, O3)
    inside = (p < pixels)[:, None] & (c < CHANNELS)[None, :]
    there = (frame >= 0) & (frame < frames)
    rows = tl.multiple_of(pixel_offsets(p, width, x_h, x_w) + n * x_n, ALIGN)
    columns = c.to(tl.int64) * x_c + tl.multiple_of(frame.to(tl.int64) * x_t, ALIGN)
    value = tl.load(x + rows[:, None] + columns[None, :], mask=inside & there[None, :], other=0.0)
    rows = tl.multiple_of(pixel_offsets(p, width, y_h, y_w) + (n * y_n + t.to(tl.int64) * y_t), ALIGN)
    tl.store(y + rows[:, None] + (c.to(tl.int64) * y_c)[None, :], value, mask=inside)


@operation("shift")
def move(x: Tensor, ends: list[int], offsets: list[int]) -> Tensor:
    """:func:`clipwise.kernels.shift`, the groups by where they end."""
    n, t, _, h, w = x.shape
    y = torch.empty_like(x)
    begin = 0
    for number in range(0, len(ends), 4):  # as many as the kernel tells apart
        end = ends[min(number + 4, len(ends)) - 1]
        c, block_c = end - begin, channel_block(end - begin)
        source, target = (x, y) if c == x.shape[2] else (x[:, :, begin:end], y[:, :, begin:end])

        def grid(meta: dict[str, int], c: int = c, block_c: int = block_c) -> tuple[int]:
            return (n * t * triton.cdiv(h * w, meta["TILE"] // block_c) * triton.cdiv(c, block_c),)

        wrap_triton(_shift)[grid](
            source,
            target,
            size_class(n * t),
            t,
            h * w,
            w,
            *source.stride(),
            *target.stride(),
            CHANNELS=c,
            **group_arguments([last - begin for last in ends[number : number + 4]], offsets[number : number + 4]),
            ALIGN=alignment(source, target),
            BLOCK_C=block_c,
        )
        begin = end
    return y


@move.register_fake
def _(x: Tensor, ends: list[int], offsets: list[int]) -> Tensor:
    return torch.empty_like(x)


def _keep(ctx, inputs, output) -> None:
    _, ctx.ends, ctx.offsets = inputs


def _differentiate(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
    return move(grad, ctx.ends, [-offset for offset in ctx.offsets]), None, None


move.register_autograd(_differentiate, setup_context=_keep)
