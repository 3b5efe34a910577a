"""Batches on their way from a loader's processes to the main one, in memory that is used again and again.

PyTorch gives each tensor that a worker sends memory of its own: made, passed on as an open file, mapped, filled page by
page, and thrown away. For clips of a few milliseconds that costs a third of what reading them does. Here each worker
has a few slots, each for one batch, which it fills in place; it sends a slot's number, and the slot is free again once
nobody in the main process holds the batch or a view of it::

    worker  | stack into slot 0 | into slot 1  | into slot 2 …         | into slot 0 again
    main                        | maps slot 0, computes … lets go of it |

With no slot free, or a batch that is larger than the first was, a tensor is sent as PyTorch does it: nobody waits, and
no batch changes while somebody has it. The memory has no name, so that nothing of it is left behind however a process
ends, and takes no room in ``/dev/shm``, which containers keep small.
"""

import itertools
import mmap
import os
import weakref
from collections.abc import Sequence
from functools import partial
from multiprocessing import reduction
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from clipwise.data.dataset import collate
from clipwise.data.workers import leave_signals_to_parent

__all__ = ["ClipLoader"]

_HELD = 4
"""Batches of one worker that the main process may hold, besides those that wait: what is computed with, the next on
its way to the device, and what an evaluation keeps of others. Memory that is never needed is never taken."""
_PAGE = mmap.PAGESIZE
_SMALL = 65536
"""Bytes up to which a tensor is sent with the message itself."""

_numbers = itertools.count()
_slots_by_number: weakref.WeakValueDictionary[int, "_Slots"] = weakref.WeakValueDictionary()


class ClipLoader(DataLoader[dict[str, Any]]):
    """Batches of a data set's clips, as ``collate`` makes them, from processes that leave signals to this one.

    The clips of a batch are this process's alone, to keep or to change; only a process that is forked while it holds
    them sees others in their place once they are let go of here. Memory is as for three or four batches a worker, more
    where more are held, and is given back when the pass ends and its last batch is let go of.

    Args:
        dataset: the clips or views.
        options: as ``DataLoader`` takes them.
    """

    def __init__(self, dataset: Dataset[Any], **options: Any) -> None:
        super().__init__(dataset, collate_fn=collate, worker_init_fn=leave_signals_to_parent, **options)

    def __iter__(self) -> Any:
        # Anew for each pass: what an earlier one has left in its slots need not be waited for.
        if self.num_workers and hasattr(os, "memfd_create"):
            self.collate_fn = _Slots(self.num_workers, (self.prefetch_factor or 0) + _HELD)
        return super().__iter__()


class _Slots:
    """``collate`` into slots of shared memory: a file without a name for each worker, which that worker alone fills.

    A file begins with a byte for each slot, 1 while it is taken: set by the worker, and set back by the main process.
    """

    def __init__(self, workers: int, slots: int) -> None:
        self._count = slots
        self._files = [os.memfd_create("clipwise") for _ in range(workers)]
        self._maps: dict[int, mmap.mmap] = {}  # by worker; a worker has its own
        self._number = next(_numbers)
        _slots_by_number[self._number] = self

    def __call__(self, samples: Sequence[Any]) -> dict[str, Any]:
        worker = get_worker_info()
        assert worker is not None
        batch = collate(samples, stack=partial(self._stack, worker.id, len(samples)))
        return {name: _InMessage.where_small(value) for name, value in batch.items()}

    def _stack(self, worker: int, wanted: int, parts: list[Tensor]) -> "Tensor | _InSlot":
        """As ``torch.stack``, but in the layout of the first part; ``wanted`` parts some of which may be missing."""
        shape, stride = (len(parts), *parts[0].shape), (parts[0].numel(), *parts[0].stride())
        size = len(parts) * parts[0].nbytes
        if worker not in self._maps:  # the first batch is as large as any
            pages = -(-max(wanted, len(parts)) * parts[0].nbytes // _PAGE)
            os.ftruncate(self._files[worker], _PAGE * (1 + self._count * pages))
            self._maps[worker] = mmap.mmap(self._files[worker], 0)
        memory = self._maps[worker]
        room = (len(memory) // _PAGE - 1) // self._count * _PAGE
        slot = memory.find(b"\0", 0, self._count)  # the lowest: what is never needed takes no memory
        alike = len({(part.shape, part.dtype) for part in parts}) == 1  # else stack says what is wrong
        if slot < 0 or not 0 < size <= room or not alike or not _is_dense(parts[0]):
            return torch.stack(parts)
        memory[slot] = 1
        place = (slot, _PAGE + slot * room, size, parts[0].dtype, shape, stride)
        for row, part in zip(_tensor(_pixels(memory, *place[1:3]), *place[3:]), parts, strict=True):
            row.copy_(part)
        return _InSlot(self._number, worker, place)

    def received(self, worker: int, place: tuple[Any, ...]) -> Tensor:
        """In the main process: what a worker has put into a slot."""
        if worker not in self._maps:
            self._maps[worker] = mmap.mmap(self._files[worker], 0)
        memory = self._maps[worker]
        slot, *where, dtype, shape, stride = place
        pixels = _pixels(memory, *where)
        # The tensor's storage holds the array; every view and slice of the tensor holds the storage.
        weakref.finalize(pixels, _let_go, memory, slot, os.getpid()).atexit = False
        return _tensor(pixels, dtype, shape, stride)

    def __getstate__(self) -> dict[str, Any]:
        # On its way to a process that is spawned.
        return {**self.__dict__, "_files": [reduction.DupFd(file) for file in self._files], "_maps": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = {**state, "_files": [file.detach() for file in state["_files"]]}

    def __del__(self) -> None:
        for file in getattr(self, "_files", ()):
            os.close(file)


def _is_dense(part: Tensor) -> bool:
    """Whether it fills its memory from first to last byte, in whichever order of dimensions."""
    expected = 1
    for stride, size in sorted(zip(part.stride(), part.shape, strict=True)):
        if size > 1 and stride != expected:
            return False
        expected *= size
    return True


def _pixels(memory: mmap.mmap, offset: int, size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.frombuffer(memory, np.uint8, size, offset)


def _tensor(pixels: Any, dtype: torch.dtype, shape: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(pixels).view(dtype).as_strided(shape, stride)


def _let_go(memory: mmap.mmap, slot: int, owner: int) -> None:
    if os.getpid() == owner:  # a process that was forked meanwhile has the batch, too, but no say
        memory[slot] = 0


class _InSlot:
    """Stands for a tensor in a slot, and arrives as that tensor."""

    def __init__(self, number: int, worker: int, place: tuple[Any, ...]) -> None:
        self._arguments = number, worker, place

    def __reduce__(self) -> tuple[Any, ...]:
        return _from_slot, self._arguments


def _from_slot(number: int, worker: int, place: tuple[Any, ...]) -> Tensor:
    return _slots_by_number[number].received(worker, place)


class _InMessage:
    """Stands for a small tensor, and arrives as one: for its few bytes no memory need be shared."""

    def __init__(self, tensor: Tensor) -> None:
        self._array = tensor.numpy()

    @classmethod
    def where_small(cls, value: Any) -> Any:
        return cls(value) if isinstance(value, Tensor) and value.nbytes <= _SMALL else value

    def __reduce__(self) -> tuple[Any, ...]:
        return torch.from_numpy, (self._array,)
