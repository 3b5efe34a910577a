"""CMM's motion (STM, equation 2) in one pass, without writing the depthwise convolution's result.

    H_t = dw(x)_{t+1} - x_t,  H_T = 0            causal: H_t = dw(x)_t - x_{t-1},  H_1 = 0

PyTorch's eager form reads x and writes dw(x), reads both shifted and writes the difference, and copies it once more
to put the frame of zeros: 14 bytes an element in bfloat16 against 4 here. A program takes a tile of one frame; the
nine neighbours of a pixel, and the same pixel a frame before, come from the cache. The maps are small (C/16
channels), so at small batches what counts is that there is one launch and not three.

Backward, one pass: at pixel q of frame s, with D = 1 (causal: 0) and δ the nine displacements,

    ∂x_s[q] = Σ_δ w_δ g_{s-D}[q-δ] - g_{s+1-D}[q]        ∂w_δ = Σ_{s>0,q} x_s[q] g_{s-D}[q-δ]

so the nine neighbours serve both. The weight's gradient is summed over a tile, stored, and summed over the tiles: no
atomics, so two runs give the same bits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from clipwise.kernels._common import (
    alignment,
    channel_block,
    operation,
    pixel_offsets,
    size_class,
    tile,
    tuned,
    wrap_triton,
)

__all__ = ["difference"]

_BACKWARD_TILE = 1024  # elements; fixed, since the first sums are allocated before a launch


@tuned(
    [
        triton.Config({"TILE": 1024}, num_warps=4),
        triton.Config({"TILE": 512}, num_warps=2),
        triton.Config({"TILE": 512}, num_warps=4),
        triton.Config({"TILE": 2048}, num_warps=8),
    ],
    key=["size", "frames", "height", "width", "CHANNELS"],
)
@triton.jit
def _forward(
    x,
    weight,
    y,
    size,
    frames,
    height,
    width,
    w_c,
    w_k,
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
    D: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_C: tl.constexpr,
    TILE: tl.constexpr,
):
    BLOCK_P: tl.constexpr = TILE // BLOCK_C
    p, c, image, _ = tile(tl.cdiv(height * width, BLOCK_P), tl.cdiv(CHANNELS, BLOCK_C), BLOCK_P, BLOCK_C)
    n = (image // frames).to(tl.int64)
    t = image % frames
    frame = t + D  # that is convolved
    live = (frame >= 1) & (frame < frames)
    h = p // width
    w = p % width
    present = c < CHANNELS
    inside = (p < height * width)[:, None] & present[None, :]
    used = (p < tl.where(live, height * width, 0))[:, None] & present[None, :]
    columns = c.to(tl.int64) * x_c
    before = pixel_offsets(p, width, x_h, x_w) + (n * x_n + (frame - 1).to(tl.int64) * x_t)
    at = tl.multiple_of(before, ALIGN)
    value = -tl.load(x + at[:, None] + columns[None, :], mask=used, other=0.0).to(tl.float32)
    for tap in tl.static_range(9):
        down = tap // 3 - 1
        right = tap % 3 - 1
        on_map = (h + down >= 0) & (h + down < height) & (w + right >= 0) & (w + right < width)
        at = tl.multiple_of(before + (x_t + down * x_h + right * x_w), ALIGN)
        neighbour = tl.load(x + at[:, None] + columns[None, :], mask=used & on_map[:, None], other=0.0)
        taps = tl.load(weight + c * w_c + tap * w_k, mask=present, other=0.0).to(tl.float32)
        value += taps[None, :] * neighbour.to(tl.float32)
    at = tl.multiple_of(pixel_offsets(p, width, y_h, y_w) + (n * y_n + t.to(tl.int64) * y_t), ALIGN)
    tl.store(y + at[:, None] + (c.to(tl.int64) * y_c)[None, :], value.to(y.dtype.element_ty), mask=inside)


@tuned(
    [triton.Config({}, num_warps=4), triton.Config({}, num_warps=2), triton.Config({}, num_warps=8)],
    key=["size", "frames", "height", "width", "CHANNELS"],
)
@triton.jit
def _backward(
    grad,
    x,
    weight,
    grad_x,
    sums,
    size,
    frames,
    height,
    width,
    w_c,
    w_k,
    g_n,
    g_t,
    g_c,
    g_h,
    g_w,
    x_n,
    x_t,
    x_c,
    x_h,
    x_w,
    o_n,
    o_t,
    o_c,
    o_h,
    o_w,
    CHANNELS: tl.constexpr,
    D: tl.constexpr,
    NEED_X: tl.constexpr,
    NEED_WEIGHT: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    p, c, image, row = tile(tl.cdiv(height * width, BLOCK_P), tl.cdiv(CHANNELS, BLOCK_C), BLOCK_P, BLOCK_C)
    n = (image // frames).to(tl.int64)
    s = image % frames
    h = p // width
    w = p % width
    present = c < CHANNELS
    inside = (p < height * width)[:, None] & present[None, :]
    convolved = (p < tl.where(s >= 1, height * width, 0))[:, None] & present[None, :]
    subtracted = (p < tl.where(s + 1 < frames, height * width, 0))[:, None] & present[None, :]
    g_columns = c.to(tl.int64) * g_c
    own = pixel_offsets(p, width, g_h, g_w) + (n * g_n + (s - D).to(tl.int64) * g_t)
    value = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    frame = value
    if NEED_X:
        at = tl.multiple_of(own + g_t, ALIGN)
        value = -tl.load(grad + at[:, None] + g_columns[None, :], mask=subtracted, other=0.0).to(tl.float32)
    if NEED_WEIGHT:
        at = tl.multiple_of(pixel_offsets(p, width, x_h, x_w) + (n * x_n + s.to(tl.int64) * x_t), ALIGN)
        columns = c.to(tl.int64) * x_c
        frame = tl.load(x + at[:, None] + columns[None, :], mask=convolved, other=0.0).to(tl.float32)
    first = sums + row.to(tl.int64) * (9 * CHANNELS) + c
    for tap in tl.static_range(9):
        up = tap // 3 - 1
        left = tap % 3 - 1
        on_map = (h - up >= 0) & (h - up < height) & (w - left >= 0) & (w - left < width)
        at = tl.multiple_of(own - (up * g_h + left * g_w), ALIGN)
        live = convolved & on_map[:, None]
        neighbour = tl.load(grad + at[:, None] + g_columns[None, :], mask=live, other=0.0).to(tl.float32)
        if NEED_X:
            taps = tl.load(weight + c * w_c + tap * w_k, mask=present, other=0.0).to(tl.float32)
            value += taps[None, :] * neighbour
        if NEED_WEIGHT:
            tl.store(first + tap * CHANNELS, tl.sum(frame * neighbour, axis=0), mask=present)
    if NEED_X:
        at = tl.multiple_of(pixel_offsets(p, width, o_h, o_w) + (n * o_n + s.to(tl.int64) * o_t), ALIGN)
        columns = c.to(tl.int64) * o_c
        tl.store(grad_x + at[:, None] + columns[None, :], value.to(grad_x.dtype.element_ty), mask=inside)


@operation("motion")
def difference(x: Tensor, weight: Tensor, causal: bool) -> Tensor:
    """:func:`clipwise.kernels.motion`."""
    n, t, c, h, w = x.shape
    y = torch.empty_like(x)
    taps = weight.reshape(c, 9)
    block_c = channel_block(c)

    def grid(meta: dict[str, int]) -> tuple[int]:
        return (n * t * triton.cdiv(h * w, meta["TILE"] // block_c) * triton.cdiv(c, block_c),)

    wrap_triton(_forward)[grid](
        x,
        taps,
        y,
        size_class(n * t),
        t,
        h,
        w,
        *taps.stride(),
        *x.stride(),
        *y.stride(),
        CHANNELS=c,
        D=0 if causal else 1,
        ALIGN=alignment(x, y),
        BLOCK_C=block_c,
    )
    return y


@difference.register_fake
def _(x: Tensor, weight: Tensor, causal: bool) -> Tensor:
    return torch.empty_like(x)


@operation("motion_backward")
def _gradients(
    grad: Tensor, x: Tensor, weight: Tensor, causal: bool, need_x: bool, need_weight: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of x and weight, empty where they are not needed."""
    n, t, c, h, w = x.shape
    taps = weight.reshape(c, 9)
    block_c = channel_block(c)
    block_p = min(_BACKWARD_TILE // block_c, triton.next_power_of_2(int(h * w)))
    tiles = n * t * triton.cdiv(h * w, block_p)
    grad_x = torch.empty_like(x) if need_x else x.new_empty(0)
    sums = x.new_empty((tiles, 9, c) if need_weight else 0, dtype=torch.float32)
    wrap_triton(_backward)[(tiles * triton.cdiv(c, block_c),)](
        grad,
        x,
        taps,
        grad_x,
        sums,
        size_class(n * t),
        t,
        h,
        w,
        *taps.stride(),
        *grad.stride(),
        *x.stride(),
        *(grad_x if need_x else x).stride(),
        CHANNELS=c,
        D=0 if causal else 1,
        NEED_X=need_x,
        NEED_WEIGHT=need_weight,
        ALIGN=alignment(grad, x, grad_x if need_x else x),
        BLOCK_C=block_c,
        BLOCK_P=block_p,
    )
    if not need_weight:
        return grad_x, weight.new_empty(0)
    return grad_x, sums.sum(0).t().reshape(weight.shape).to(weight.dtype).contiguous()


@_gradients.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor, causal: bool, need_x: bool, need_weight: bool) -> tuple[Tensor, Tensor]:
    return (
        torch.empty_like(x) if need_x else x.new_empty(0),
        weight.new_empty(weight.shape if need_weight else 0),
    )


def _keep(ctx, inputs, output) -> None:
    x, weight, causal = inputs
    ctx.causal = causal
    ctx.save_for_backward(x, weight)


def _differentiate(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    need_x, need_weight = ctx.needs_input_grad[:2]
    grad_x, grad_weight = _gradients(grad, x, weight, ctx.causal, need_x, need_weight)
    return grad_x if need_x else None, grad_weight if need_weight else None, None


difference.register_autograd(_differentiate, setup_context=_keep)
