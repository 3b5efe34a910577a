"""What the kernels' files share. Imports triton, so only they import it."""

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch._library.triton import is_wrap_triton_enabled
from torch.library import custom_op, triton_op
from torch.library import wrap_triton as _wrap_triton

__all__ = [
    "INTERPRETED",
    "alignment",
    "channel_block",
    "group_arguments",
    "group_offset",
    "operation",
    "pixel_offsets",
    "size_class",
    "tile",
    "tuned",
    "wrap_triton",
]

INTERPRETED = triton.knobs.runtime.interpret


def operation(name: str) -> Callable[[Callable[..., Any]], Any]:
    """Register a function as the operation ``clipwise::name``, into which torch.compile sees.

    The interpreter runs on values alone, so under it the compiler is to leave the operation closed.
    """
    return (custom_op if INTERPRETED else triton_op)(f"clipwise::{name}", mutates_args=())


def wrap_triton(kernel: Any) -> Any:
    """A kernel as a compiler can trace its launch; torch below 2.13 refuses the interpreter's kernels.

    Where no compiler asks, PyTorch would give the kernel back, after 70 µs of looking at its signature.
    """
    return _wrap_triton(kernel) if not INTERPRETED and is_wrap_triton_enabled() else kernel


def tuned(configs: list[triton.Config], key: list[str]) -> Callable[[Any], Any]:
    """Let a kernel choose among ``configs`` for each new value of the arguments ``key``; interpreted, it takes one."""
    tried = configs[:1] if INTERPRETED else configs
    decorate: Callable[[Any], Any] = triton.autotune(configs=tried, key=key, do_bench=_time)
    return decorate


def _time(launch: Callable[[], object], quantiles: list[float]) -> Any:
    # A fifth of Triton's usual time: what differs by less than that shows, a network does not notice.
    return triton.testing.do_bench(launch, warmup=5, rep=20, quantiles=quantiles)


def channel_block(channels: int) -> int:
    """Channels that a program takes: 64 of bfloat16 fill a line of the cache."""
    return min(64, int(triton.next_power_of_2(int(channels))))


def size_class(count: int) -> int:
    """A batch's size as far as a choice of blocks depends on it, so that an epoch's last batch starts no new search."""
    return count if isinstance(count, torch.SymInt) else int(triton.next_power_of_2(count))


def alignment(*tensors: Tensor) -> int:
    """The largest power of two up to 16 that divides every stride other than the channels' (the third from the end).

    Triton finds out by itself that 64 channels in a row can be read 16 bytes at a time, but not so with 8 or 24.
    """
    strides = [
        stride
        for tensor in tensors
        for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True))
        if dim != tensor.dim() - 3 and size > 1
    ]
    return next(power for power in (16, 8, 4, 2, 1) if all(stride % power == 0 for stride in strides))


@triton.jit
def tile(blocks_p, blocks_c, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """This program's pixels and channels, and the number of what it walks over besides (clips, or frames).

    Channels vary fastest, then pixels: programs that run together read memory that lies together.
    """
    program = tl.program_id(0)
    rest = program // blocks_c
    c = (program % blocks_c) * BLOCK_C + tl.arange(0, BLOCK_C)
    p = (rest % blocks_p) * BLOCK_P + tl.arange(0, BLOCK_P)
    return p, c, rest // blocks_p, rest


@triton.jit
def pixel_offsets(p, width, stride_h, stride_w):
    """Where pixels p of a map of any strides lie, in 64 bits: a clip can be larger than 32 tell apart."""
    return (p // width).to(tl.int64) * stride_h + (p % width).to(tl.int64) * stride_w


@triton.jit
def group_offset(
    c,
    E0: tl.constexpr,
    E1: tl.constexpr,
    E2: tl.constexpr,
    O0: tl.constexpr,
    O1: tl.constexpr,
    O2: tl.constexpr,
    O3: tl.constexpr,
):
    """By how many frames each channel moves; the first three groups end before E0, E1 and E2."""
    return tl.where(c < E0, O0, tl.where(c < E1, O1, tl.where(c < E2, O2, O3)))


def group_arguments(ends: list[int], offsets: list[int]) -> dict[str, int]:
    """At most four groups as the arguments of :func:`group_offset`."""
    missing = 4 - len(ends)
    ends, offsets = ends + ends[-1:] * missing, offsets + offsets[-1:] * missing
    names = ("E0", "E1", "E2", "O0", "O1", "O2", "O3")
    return dict(zip(names, (*ends[:3], *offsets), strict=True))
