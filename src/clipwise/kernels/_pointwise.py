"""A 1×1 convolution as a matrix product that reads its input shifted in time and adds what follows; for inference.

    out = W · shift(x) + W2 · x2 + bias + residual, and ReLU

A row of the product is a pixel of a frame, a column an output channel. Where it reads channel c of frame t it can as
well read channel c of frame t + offset(c): TSM's shift then costs no pass at all, where a copy costs 4 bytes an
element of the input, which at a block's entrance is the widest map there is. A second product into the same sums
(CMM's ``restore`` folded into conv3: W2 = W·restore, x2 of C/16 channels) spares writing and reading restore's output
and the addition, 10 bytes an element; bias, residual and ReLU in the end spare what a convolution without them leaves
to further passes.

In bfloat16 a product of 256 channels or fewer is limited by memory on a GPU that reads 4 TB/s and multiplies at
700 TFLOP/s, and a wider one by its matrix units, where a vendor's library may be ahead: measure which is to serve
(``benchmarks/kernels.py``).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from clipwise.kernels._common import (
    INTERPRETED,
    alignment,
    group_arguments,
    group_offset,
    operation,
    pixel_offsets,
    size_class,
    tuned,
    wrap_triton,
)

__all__ = ["product"]


def _config(block_m: int, block_n: int, block_k: int, warps: int, stages: int) -> triton.Config:
    blocks = {"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k}
    return triton.Config(blocks, num_warps=warps, num_stages=stages)


@triton.jit
def _multiply(a, b, total, PRECISION: tl.constexpr, WIDEN: tl.constexpr):
    if WIDEN:
        a = a.to(tl.float32)
    return tl.dot(a, b.to(a.dtype), total, input_precision=PRECISION)


@triton.jit
def _product(
    x,
    weight,
    bias,
    x2,
    weight2,
    residual,
    y,
    size,
    rows,
    frames,
    pixels,
    width,
    x_n,
    x_c,
    x_h,
    x_w,
    s_n,
    s_c,
    s_h,
    s_w,
    r_n,
    r_c,
    r_h,
    r_w,
    y_n,
    y_c,
    y_h,
    y_w,
    CHANNELS: tl.constexpr,
    SECOND: tl.constexpr,
    OUTPUTS: tl.constexpr,
    E0: tl.constexpr,
    E1: tl.constexpr,
    E2: tl.constexpr,
    O0: tl.constexpr,
    O1: tl.constexpr,
    O2: tl.constexpr,
    O3: tl.constexpr,
    SHIFT: tl.constexpr,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    RELU: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    DENSE: tl.constexpr,
    SECOND_DENSE: tl.constexpr,
    ALIGN: tl.constexpr,
    SECOND_ALIGN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    # Programs that run together take the same rows, so that the wide input is fetched from memory once.
    program = tl.program_id(0)
    blocks_n = tl.cdiv(OUTPUTS, BLOCK_N)
    row = (program // blocks_n).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    o = (program % blocks_n) * BLOCK_N + tl.arange(0, BLOCK_N)
    exists = row < rows
    wanted = o < OUTPUTS
    # What is not used of these is not computed: of dense tensors a row lies where its number says, which spares the
    # divisions; they take longer than the products of a narrow input.
    image = row // pixels
    p = (row % pixels).to(tl.int32)
    t = (image % frames).to(tl.int32)
    if DENSE:
        x_rows = tl.multiple_of(row * CHANNELS, ALIGN)
    else:
        x_rows = tl.multiple_of(pixel_offsets(p, width, x_h, x_w) + image * x_n, ALIGN)
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for k in range(0, CHANNELS, BLOCK_K):
        c = k + tl.arange(0, BLOCK_K)
        present = c < CHANNELS
        mask = exists[:, None] & present[None, :]
        columns = c.to(tl.int64) * x_c
        if SHIFT:
            offset = group_offset(c, E0, E1, E2, O0, O1, O2, O3)
            frame = t[:, None] + offset[None, :]
            mask = mask & (frame >= 0) & (frame < frames)
            columns = columns + tl.multiple_of(offset.to(tl.int64) * x_n, ALIGN)
        a = tl.load(x + x_rows[:, None] + columns[None, :], mask=mask, other=0.0)
        b = tl.load(weight + o[None, :] * CHANNELS + c[:, None], mask=present[:, None] & wanted[None, :], other=0.0)
        total = _multiply(a, b, total, PRECISION, WIDEN)
    if SECOND:
        if SECOND_DENSE:
            s_rows = tl.multiple_of(row * SECOND, SECOND_ALIGN)
        else:
            s_rows = tl.multiple_of(pixel_offsets(p, width, s_h, s_w) + image * s_n, SECOND_ALIGN)
        for k in range(0, SECOND, 16):
            c = k + tl.arange(0, 16)
            present = c < SECOND
            columns = c.to(tl.int64) * s_c
            a = tl.load(x2 + s_rows[:, None] + columns[None, :], mask=exists[:, None] & present[None, :], other=0.0)
            b = tl.load(weight2 + o[None, :] * SECOND + c[:, None], mask=present[:, None] & wanted[None, :], other=0.0)
            total = _multiply(a, b, total, PRECISION, WIDEN)
    inside = exists[:, None] & wanted[None, :]
    if BIAS:
        total += tl.load(bias + o, mask=wanted, other=0.0).to(tl.float32)[None, :]
    if RESIDUAL:
        if DENSE:
            at = tl.multiple_of(row * OUTPUTS, ALIGN)
        else:
            at = tl.multiple_of(pixel_offsets(p, width, r_h, r_w) + image * r_n, ALIGN)
        columns = o.to(tl.int64) * r_c
        total += tl.load(residual + at[:, None] + columns[None, :], mask=inside, other=0.0).to(tl.float32)
    if RELU:
        total = tl.where(total < 0, 0.0, total)
    if DENSE:
        at = tl.multiple_of(row * OUTPUTS, ALIGN)
    else:
        at = tl.multiple_of(pixel_offsets(p, width, y_h, y_w) + image * y_n, ALIGN)
    tl.store(y + at[:, None] + (o.to(tl.int64) * y_c)[None, :], total.to(y.dtype.element_ty), mask=inside)


# Tiles of 4-byte numbers take twice the shared memory, and without TF32 they are multiplied outside the matrix units.
_small_tiles = [_config(64, 64, 32, 4, 3), _config(128, 64, 32, 4, 3), _config(64, 32, 32, 4, 3)]
_large_tiles = [
    _config(128, 128, 64, 8, 3),
    _config(128, 256, 64, 8, 3),
    _config(128, 64, 64, 4, 4),
    _config(64, 128, 64, 4, 4),
    _config(64, 64, 64, 4, 4),
    _config(128, 16, 64, 4, 4),  # what STM's motion module squeezes is 4 to 32 channels wide
    _config(128, 32, 64, 4, 4),
]
# What they do beside the product makes some of them spill registers.
_KEY = ["size", "CHANNELS", "SECOND", "OUTPUTS", "SHIFT", "RESIDUAL"]
if INTERPRETED:
    _small_tiles = _large_tiles = [_config(32, 32, 16, 4, 2)]
_product_single = tuned(_small_tiles, _KEY)(_product)
_product_half = tuned(_large_tiles, _KEY)(_product)


def _empty(x: Tensor, channels: int) -> Tensor:
    n, _, h, w = x.shape
    # A compiler forgets a memory format, and would copy what is not yet written into that layout.
    return torch.empty((n, h, w, channels), dtype=x.dtype, device=x.device).permute(0, 3, 1, 2)


def _dense(x: Tensor) -> bool:
    """Whether pixels follow one another without gaps, channels innermost."""
    return x.is_contiguous(memory_format=torch.channels_last)


@operation("pointwise")
def product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    x2: Tensor | None,
    weight2: Tensor | None,
    residual: Tensor | None,
    frames: int,
    ends: list[int],
    offsets: list[int],
    relu: bool,
    tf32: bool,
) -> Tensor:
    """:func:`clipwise.kernels.pointwise` of folded inputs, the groups by where they end."""
    n, c, h, w = x.shape
    outputs = weight.shape[0]
    y = _empty(x, outputs)
    # In the places of what is not there. `x` would do, but a compiler writes it once for each place that reads it.
    unused = weight.reshape(outputs, c, 1, 1)
    second = unused if x2 is None else x2
    added = unused if residual is None else residual
    rows = n * h * w

    def grid(meta: dict[str, int]) -> tuple[int]:
        return (triton.cdiv(rows, meta["BLOCK_M"]) * triton.cdiv(outputs, meta["BLOCK_N"]),)

    kernel = _product_single if x.dtype == torch.float32 else _product_half
    wrap_triton(kernel)[grid](
        x,
        weight.contiguous(),
        weight if bias is None else bias.contiguous(),
        second,
        weight if weight2 is None else weight2.contiguous(),
        added,
        y,
        size_class(rows),
        rows,
        frames,
        h * w,
        w,
        *x.stride(),
        *second.stride(),
        *added.stride(),
        *y.stride(),
        CHANNELS=c,
        SECOND=0 if x2 is None else second.shape[1],
        OUTPUTS=outputs,
        **group_arguments(ends, offsets),
        SHIFT=any(offsets),
        BIAS=bias is not None,
        RESIDUAL=residual is not None,
        RELU=relu,
        PRECISION="tf32" if tf32 else "ieee",
        WIDEN=INTERPRETED and x.dtype == torch.bfloat16,  # whose bits the interpreter would take for integers
        DENSE=_dense(x) and (residual is None or _dense(residual)),
        SECOND_DENSE=x2 is not None and _dense(x2),
        ALIGN=alignment(x, y) if residual is None else alignment(x, residual, y),
        SECOND_ALIGN=1 if x2 is None else alignment(x2),
    )
    return y


@product.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    x2: Tensor | None,
    weight2: Tensor | None,
    residual: Tensor | None,
    frames: int,
    ends: list[int],
    offsets: list[int],
    relu: bool,
    tf32: bool,
) -> Tensor:
    return _empty(x, weight.shape[0])
