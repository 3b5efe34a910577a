"""Channel-wise convolution over time (STM's CSTM, TAM) in one pass.

    y_t = w_0 · x_{t-1} + w_1 · x_t + w_2 · x_{t+1}        causal: x_{t-2}, x_{t-1}, x_t

Three multiplications an element are nothing to a GPU; reading and writing is all there is to it. A program holds a
tile of pixels × channels and walks over the frames with three of them in registers, so each element is read once and
written once: 4 bytes an element in bfloat16. As its authors write it (permute, conv1d, permute back) the same step
moves 12 or more; as a sum of three shifted copies, fused by a compiler, 4 to 8, since a frame's neighbours may have
left the cache. Two
frames are on their way while one is computed.

With conv1's bias and ReLU read in passing (``input_bias``, ``relu_input``), a further pass of 4 bytes is spared, and
so with the ReLU after it (``relu``).

Backward, one pass again: 6 bytes an element, where a gradient each for input and weight takes 8 at least.

    ∂x_s = Σ_k w_k g_{s-k+left}         ∂w_k = Σ_s x_s g_{s-k+left}         left = 1, causal: 2

Both need the same three frames of g, and each x_s once. The sums for the weight's gradient are first taken over a tile
of pixels and all its frames and stored, then over the tiles: no atomics, so two runs give the same bits.
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

__all__ = ["convolve"]

_BACKWARD_TILE = 2048  # elements; fixed, since the first sums are allocated before a launch


@triton.jit
def _read(x, at, columns, p, present, pixels, there, ALIGN: tl.constexpr):
    """A tile of a frame; zeros where there is no such frame."""
    live = (p < tl.where(there, pixels, 0))[:, None] & present[None, :]
    rows = tl.multiple_of(at[:, None], (ALIGN, ALIGN))
    return tl.load(x + rows + columns[None, :], mask=live, other=0.0)


@triton.jit
def _before(frame, there, bias, BIAS: tl.constexpr, RELU: tl.constexpr):
    """f of a frame, rounded as if it had been written; still zeros where there is no frame."""
    value = frame
    if BIAS:
        value = tl.where(there, (value.to(tl.float32) + bias[None, :]).to(frame.dtype), value)
    if RELU:
        value = tl.where(value < 0, 0.0, value).to(frame.dtype)
    return value


@tuned(
    [
        triton.Config({"TILE": 1024}, num_warps=4),
        triton.Config({"TILE": 512}, num_warps=2),
        triton.Config({"TILE": 2048}, num_warps=4),
        triton.Config({"TILE": 2048}, num_warps=8),
        triton.Config({"TILE": 4096}, num_warps=8),
    ],
    key=["size", "frames", "pixels", "CHANNELS"],
)
@triton.jit
def _forward(
    x,
    weight,
    bias,
    input_bias,
    y,
    size,
    frames,
    pixels,
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
    LEFT: tl.constexpr,
    BIAS: tl.constexpr,
    INPUT_BIAS: tl.constexpr,
    RELU_INPUT: tl.constexpr,
    RELU: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_C: tl.constexpr,
    TILE: tl.constexpr,
):
    BLOCK_P: tl.constexpr = TILE // BLOCK_C
    p, c, n, _ = tile(tl.cdiv(pixels, BLOCK_P), tl.cdiv(CHANNELS, BLOCK_C), BLOCK_P, BLOCK_C)
    n = n.to(tl.int64)
    present = c < CHANNELS
    inside = (p < pixels)[:, None] & present[None, :]
    ahead = pixel_offsets(p, width, x_h, x_w) + n * x_n  # of the frame to be read next, here the first
    out = pixel_offsets(p, width, y_h, y_w) + n * y_n
    x_columns = c.to(tl.int64) * x_c
    y_columns = c.to(tl.int64) * y_c
    w0 = tl.load(weight + c * w_c, mask=present, other=0.0).to(tl.float32)[None, :]
    w1 = tl.load(weight + c * w_c + w_k, mask=present, other=0.0).to(tl.float32)[None, :]
    w2 = tl.load(weight + c * w_c + 2 * w_k, mask=present, other=0.0).to(tl.float32)[None, :]
    start = w0
    if INPUT_BIAS:
        start = tl.load(input_bias + c, mask=present, other=0.0).to(tl.float32)

    # The frames t-LEFT, t-LEFT+1 and t-LEFT+2, for t = 0, and the one after them as it was read.
    first = tl.zeros([BLOCK_P, BLOCK_C], x.dtype.element_ty)
    second = first
    if LEFT == 1:
        second = _read(x, ahead, x_columns, p, present, pixels, frames > 0, ALIGN)
        second = _before(second, frames > 0, start, INPUT_BIAS, RELU_INPUT)
        ahead += x_t
    third = _read(x, ahead, x_columns, p, present, pixels, frames > 2 - LEFT, ALIGN)
    third = _before(third, frames > 2 - LEFT, start, INPUT_BIAS, RELU_INPUT)
    ahead += x_t
    coming = _read(x, ahead, x_columns, p, present, pixels, frames > 3 - LEFT, ALIGN)
    for t in range(frames):
        ahead += x_t
        later = _read(x, ahead, x_columns, p, present, pixels, t + 4 - LEFT < frames, ALIGN)
        value = w0 * first.to(tl.float32) + w1 * second.to(tl.float32) + w2 * third.to(tl.float32)
        if BIAS:
            value += tl.load(bias + c, mask=present, other=0.0).to(tl.float32)[None, :]
        if RELU:
            value = tl.where(value < 0, 0.0, value)
        at = tl.multiple_of(out, ALIGN)
        tl.store(y + at[:, None] + y_columns[None, :], value.to(y.dtype.element_ty), mask=inside)
        out += y_t
        first = second
        second = third
        third = _before(coming, t + 3 - LEFT < frames, start, INPUT_BIAS, RELU_INPUT)
        coming = later


@tuned(
    [triton.Config({}, num_warps=4), triton.Config({}, num_warps=8), triton.Config({}, num_warps=16)],
    key=["size", "frames", "pixels", "CHANNELS"],
)
@triton.jit
def _backward(
    grad,
    x,
    weight,
    y,
    grad_x,
    sums,
    size,
    frames,
    pixels,
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
    y_n,
    y_t,
    y_c,
    y_h,
    y_w,
    o_n,
    o_t,
    o_c,
    o_h,
    o_w,
    CHANNELS: tl.constexpr,
    LEFT: tl.constexpr,
    RELU: tl.constexpr,
    NEED_X: tl.constexpr,
    NEED_WEIGHT: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    p, c, n, row = tile(tl.cdiv(pixels, BLOCK_P), tl.cdiv(CHANNELS, BLOCK_C), BLOCK_P, BLOCK_C)
    n = n.to(tl.int64)
    present = c < CHANNELS
    inside = (p < pixels)[:, None] & present[None, :]
    g_at = pixel_offsets(p, width, g_h, g_w) + n * g_n
    y_at = pixel_offsets(p, width, y_h, y_w) + n * y_n
    x_at = pixel_offsets(p, width, x_h, x_w) + n * x_n
    out = pixel_offsets(p, width, o_h, o_w) + n * o_n
    g_columns = c.to(tl.int64) * g_c
    y_columns = c.to(tl.int64) * y_c
    x_columns = c.to(tl.int64) * x_c
    o_columns = c.to(tl.int64) * o_c
    w0 = tl.load(weight + c * w_c, mask=present, other=0.0).to(tl.float32)[None, :]
    w1 = tl.load(weight + c * w_c + w_k, mask=present, other=0.0).to(tl.float32)[None, :]
    w2 = tl.load(weight + c * w_c + 2 * w_k, mask=present, other=0.0).to(tl.float32)[None, :]
    sum0 = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    sum1 = sum0
    sum2 = sum0

    # The gradients of the frames s+LEFT-2, s+LEFT-1 and s+LEFT, for s = 0; y is read with them where it tells which
    # of them a ReLU let through.
    first = tl.zeros([BLOCK_P, BLOCK_C], grad.dtype.element_ty)
    second = first
    third = first
    for k in tl.static_range(LEFT + 1):
        first = second
        second = third
        third = _read(grad, g_at, g_columns, p, present, pixels, frames > k, ALIGN)
        g_at += g_t
        if RELU:
            clipped = _read(y, y_at, y_columns, p, present, pixels, frames > k, ALIGN)
            third = tl.where(clipped > 0, third, 0.0).to(grad.dtype.element_ty)
            y_at += y_t
    frame = first
    if NEED_WEIGHT:
        frame = _read(x, x_at, x_columns, p, present, pixels, frames > 0, ALIGN)
    for s in range(frames):
        coming = _read(grad, g_at, g_columns, p, present, pixels, s + 1 + LEFT < frames, ALIGN)
        g_at += g_t
        clipped = coming
        if RELU:
            clipped = _read(y, y_at, y_columns, p, present, pixels, s + 1 + LEFT < frames, ALIGN)
            y_at += y_t
        g0 = third.to(tl.float32)
        g1 = second.to(tl.float32)
        g2 = first.to(tl.float32)
        if NEED_WEIGHT:
            x_at += x_t
            next_frame = _read(x, x_at, x_columns, p, present, pixels, s + 1 < frames, ALIGN)
            value = frame.to(tl.float32)
            sum0 += value * g0
            sum1 += value * g1
            sum2 += value * g2
            frame = next_frame
        if NEED_X:
            at = tl.multiple_of(out, ALIGN)
            value = w0 * g0 + w1 * g1 + w2 * g2
            tl.store(grad_x + at[:, None] + o_columns[None, :], value.to(grad_x.dtype.element_ty), mask=inside)
            out += o_t
        first = second
        second = third
        if RELU:
            coming = tl.where(clipped > 0, coming, 0.0).to(grad.dtype.element_ty)
        third = coming
    if NEED_WEIGHT:
        at = sums + row.to(tl.int64) * (3 * CHANNELS) + c
        tl.store(at, tl.sum(sum0, axis=0), mask=present)
        tl.store(at + CHANNELS, tl.sum(sum1, axis=0), mask=present)
        tl.store(at + 2 * CHANNELS, tl.sum(sum2, axis=0), mask=present)


@operation("temporal_conv")
def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    input_bias: Tensor | None,
    causal: bool,
    relu_input: bool,
    relu: bool,
) -> Tensor:
    """:func:`clipwise.kernels.temporal_conv`."""
    n, t, c, h, w = x.shape
    y = torch.empty_like(x)
    block_c = channel_block(c)
    taps = weight.reshape(c, 3)

    def grid(meta: dict[str, int]) -> tuple[int]:
        return (n * triton.cdiv(h * w, meta["TILE"] // block_c) * triton.cdiv(c, block_c),)

    wrap_triton(_forward)[grid](
        x,
        taps,
        taps if bias is None else bias.contiguous(),
        taps if input_bias is None else input_bias.contiguous(),
        y,
        size_class(n),
        t,
        h * w,
        w,
        *taps.stride(),
        *x.stride(),
        *y.stride(),
        CHANNELS=c,
        LEFT=2 if causal else 1,
        BIAS=bias is not None,
        INPUT_BIAS=input_bias is not None,
        RELU_INPUT=relu_input,
        RELU=relu,
        ALIGN=alignment(x, y),
        BLOCK_C=block_c,
    )
    return y


@convolve.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    input_bias: Tensor | None,
    causal: bool,
    relu_input: bool,
    relu: bool,
) -> Tensor:
    return torch.empty_like(x)


@operation("temporal_conv_backward")
def _gradients(
    grad: Tensor, x: Tensor, weight: Tensor, y: Tensor | None, causal: bool, need_x: bool, need_weight: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of x and weight, empty where they are not needed; ``y`` is the output where a ReLU ended it."""
    n, t, c, h, w = x.shape
    taps = weight.reshape(c, 3)
    block_c = channel_block(c)
    block_p = min(_BACKWARD_TILE // block_c, triton.next_power_of_2(int(h * w)))
    tiles = n * triton.cdiv(h * w, block_p)
    grad_x = torch.empty_like(x) if need_x else x.new_empty(0)
    sums = x.new_empty((tiles, 3, c) if need_weight else 0, dtype=torch.float32)
    shaped = [part for part in (grad, x, y, grad_x) if part is not None and part.dim() == 5]
    wrap_triton(_backward)[(tiles * triton.cdiv(c, block_c),)](
        grad,
        x,
        taps,
        grad if y is None else y,
        grad_x,
        sums,
        size_class(n),
        t,
        h * w,
        w,
        *taps.stride(),
        *grad.stride(),
        *x.stride(),
        *(grad if y is None else y).stride(),
        *(grad_x if need_x else x).stride(),
        CHANNELS=c,
        LEFT=2 if causal else 1,
        RELU=y is not None,
        NEED_X=need_x,
        NEED_WEIGHT=need_weight,
        ALIGN=alignment(*shaped),
        BLOCK_C=block_c,
        BLOCK_P=block_p,
    )
    if not need_weight:
        return grad_x, weight.new_empty(0)
    return grad_x, sums.sum(0).t().unsqueeze(1).to(weight.dtype).contiguous()


@_gradients.register_fake
def _(
    grad: Tensor, x: Tensor, weight: Tensor, y: Tensor | None, causal: bool, need_x: bool, need_weight: bool
) -> tuple[Tensor, Tensor]:
    return (
        torch.empty_like(x) if need_x else x.new_empty(0),
        weight.new_empty(weight.shape if need_weight else 0),
    )


def _keep(ctx, inputs, output) -> None:
    x, weight, _, _, causal, _, relu = inputs
    ctx.causal = causal
    ctx.save_for_backward(x, weight, output if relu else None)


def _differentiate(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, y = ctx.saved_tensors
    need_x, need_weight = ctx.needs_input_grad[:2]
    grad_x, grad_weight = _gradients(grad, x, weight, y, ctx.causal, need_x, need_weight)
    return (grad_x if need_x else None, grad_weight if need_weight else None, None, None, None, None, None)


convolve.register_autograd(_differentiate, setup_context=_keep)
