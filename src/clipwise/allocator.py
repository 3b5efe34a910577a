"""Freed memory stays with the process, where the C library would give it back to the system at once.

A network's activations are large and come and go with every step. glibc, which Linux has, returns such memory to the
system and asks for it again a moment later, and each page of it is then mapped and cleared anew: in training on a CPU
that takes as long as half of the arithmetic. A process of the command line computes until it ends, so it keeps what it
has had.
"""

import ctypes
import os
import sys

__all__ = ["freed_memory_is_kept", "keep_freed_memory"]

# The numbers of glibc's malloc.h.
_TRIM_THRESHOLD = -1
_MMAP_MAX = -4

_kept = False


def keep_freed_memory() -> None:
    """Tell glibc to keep the memory that is freed.

    Where the C library is another, or the user's environment says how memory is to be allocated (``GLIBC_TUNABLES``,
    ``MALLOC_…``, another allocator in ``LD_PRELOAD``), nothing is done.
    """
    global _kept
    told = "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "") or any(
        name.startswith("MALLOC_") for name in os.environ
    )
    if _kept or told or sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return
    # Neither trim the heap's end, ever, nor put large blocks outside the heap, where a free unmaps them.
    _kept = bool(libc.mallopt(_TRIM_THRESHOLD, -1) and libc.mallopt(_MMAP_MAX, 0))


def freed_memory_is_kept() -> bool:
    """Whether :func:`keep_freed_memory` had its effect in this process."""
    return _kept
