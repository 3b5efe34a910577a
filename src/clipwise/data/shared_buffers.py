"""Batches on their way from a loader's processes to the main one, in memory that is used again and again.

PyTorch gives each tensor that a worker sends memory of its own: made, passed on as an open file, mapped, filled page by
page, and thrown away. For clips of a few milliseconds that costs a third of what reading them does. Here each worker
has a few slots, each for one batch, which it fills in place; it sends a slot's number, and the slot is free again once
nobody in the main process holds the batch or a view of it::

    worker  | clips into slot 0 | into slot 1  | into slot 2 …         | into slot 0 again
    main                        | maps slot 0, computes … lets go of it |

Each clip goes there as soon as it is made, while the processor's caches still have it. With no slot free, or a batch
that is larger than the first was, a tensor is sent as PyTorch does it: nobody waits, and no batch changes while
somebody has it. The memory has no name, so that nothing of it is left behind however a process ends, and takes no room
in ``/dev/shm``, which containers keep small.
"""

import itertools
import math
import mmap
import os
import weakref
from collections.abc import Iterable, Sequence
from multiprocessing import reduction
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from clipwise.data.dataset import TrainingClips, collate
from clipwise.data.failures import Failure
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
        options: as ``DataLoader`` takes them, but for ``collate_fn`` and ``worker_init_fn``, which are this one's, and
            a ``batch_size`` of None, for it gives batches.
    """

    def __init__(self, dataset: Dataset[Any], **options: Any) -> None:
        self._batches = _Batches(dataset)
        super().__init__(self._batches, collate_fn=_made, worker_init_fn=leave_signals_to_parent, **options)

    def __iter__(self) -> Any:
        if not self.num_workers or not hasattr(os, "memfd_create"):
            return super().__iter__()
        # Anew for each pass: what an earlier one has left in its slots need not be waited for. Only of persistent
        # workers the second pass has the first one's processes, and their slots.
        self._batches.slots = _Slots(self.num_workers, (self.prefetch_factor or 0) + _HELD)
        iterator: Any = super().__iter__()
        iterator.slots = getattr(iterator, "slots", self._batches.slots)  # they last as long as the pass
        self._batches.slots = None
        return iterator


class _Batches(Dataset[Any]):
    """A data set that gives its items by batches, as ``collate`` makes them; in a worker, in that worker's slots."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset
        self.slots: _Slots | None = None

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitems__(self, places: Sequence[Any]) -> dict[str, Any]:
        worker = get_worker_info()
        if worker is None or self.slots is None:
            return collate([self._dataset[place] for place in places])
        rows = _Rows(self.slots, worker.id, len(places))
        if isinstance(self._dataset, TrainingClips):
            return rows.collated(self._dataset.item(place, rows.room) for place in places)
        return rows.collated(self._dataset[place] for place in places)


def _made(batch: Any) -> Any:
    """What a loader is to make of a batch that is one."""
    return batch


class _Slots:
    """Shared memory for batches: a file without a name for each worker, which that worker alone fills.

    A file begins with a byte for each slot, 1 while it is taken: set by the worker, and set back by the main process.
    """

    def __init__(self, workers: int, slots: int) -> None:
        self._count = slots
        self._files = [os.memfd_create("clipwise") for _ in range(workers)]
        self._maps: dict[int, mmap.mmap] = {}  # by worker; a worker has its own
        self.number = next(_numbers)
        _slots_by_number[self.number] = self

    def taken(self, worker: int, bytes_each: int, count: int) -> tuple[int, int] | None:
        """A slot that has room for so many clips, and where it begins; None where there is none."""
        if worker not in self._maps:  # the first batch is as large as any
            pages = -(-count * bytes_each // _PAGE)
            os.ftruncate(self._files[worker], _PAGE * (1 + self._count * pages))
            self._maps[worker] = mmap.mmap(self._files[worker], 0)
        memory = self._maps[worker]
        room = (len(memory) // _PAGE - 1) // self._count * _PAGE
        slot = memory.find(b"\0", 0, self._count)  # the lowest: what is never needed takes no memory
        if slot < 0 or not 0 < count * bytes_each <= room:
            return None
        memory[slot] = 1
        return slot, _PAGE + slot * room

    def give_back(self, worker: int, slot: int) -> None:
        self._maps[worker][slot] = 0

    def tensor(self, worker: int, *layout: Any) -> Tensor:
        """Clips in a worker's file: offset, type, shape, stride."""
        return self._tensor(worker, *layout)[1]

    def _tensor(
        self, worker: int, offset: int, dtype: torch.dtype, shape: tuple[int, ...], stride: tuple[int, ...]
    ) -> tuple[Any, Tensor]:
        """And the array that it is made from."""
        pixels = np.frombuffer(self._maps[worker], np.uint8, math.prod(shape) * dtype.itemsize, offset)
        return pixels, torch.from_numpy(pixels).view(dtype).as_strided(shape, stride)

    def received(self, worker: int, place: tuple[Any, ...]) -> Tensor:
        """In the main process: what a worker has put into a slot."""
        if worker not in self._maps:
            self._maps[worker] = mmap.mmap(self._files[worker], 0)
        slot, *where = place
        pixels, tensor = self._tensor(worker, *where)
        # The tensor's storage holds the array; every view and slice of the tensor holds the storage.
        weakref.finalize(pixels, _let_go, self._maps[worker], slot, os.getpid()).atexit = False
        return tensor

    def __getstate__(self) -> dict[str, Any]:
        # On its way to a process that is spawned.
        return {**self.__dict__, "_files": [reduction.DupFd(file) for file in self._files], "_maps": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = {**state, "_files": [file.detach() for file in state["_files"]]}

    def __del__(self) -> None:
        for file in getattr(self, "_files", ()):
            os.close(file)


class _Rows:
    """In a worker: the clips of a batch, side by side in a slot where one is free, in the layout of the first."""

    def __init__(self, slots: _Slots, worker: int, count: int) -> None:
        self._slots, self._worker, self._count = slots, worker, count
        self._slot: tuple[int, int] | None = None
        self._rows: Tensor | None = None
        self._filled = 0
        self._sent = False

    def collated(self, samples: Iterable[Any]) -> dict[str, Any]:
        """As ``collate``."""
        try:
            samples = [
                sample if isinstance(sample, Failure) else {**sample, "clip": self._put(sample["clip"])}
                for sample in samples
            ]
            batch = collate(samples, stack=self._stacked)
        finally:
            if self._slot is not None and not self._sent:
                self._slots.give_back(self._worker, self._slot[0])
        return {name: _InMessage.where_small(value) for name, value in batch.items()}

    def room(self, frames: int, height: int, width: int) -> Tensor | None:
        """The next clip's row, if such clips of frames lie in a slot."""
        shape, channels_last = (frames, 3, height, width), (3 * height * width, 1, 3 * width, 3)
        return self._next(torch.uint8, shape, channels_last)

    def _put(self, clip: Tensor) -> Tensor:
        """The clip where it is from now on: in its row, or as it was."""
        row = self._next(clip.dtype, clip.shape, clip.stride()) if _is_dense(clip) else None
        self._filled += 1
        if row is None:
            return clip
        return row if row.data_ptr() == clip.data_ptr() else row.copy_(clip)

    def _next(self, dtype: torch.dtype, shape: tuple[int, ...], stride: tuple[int, ...]) -> Tensor | None:
        if self._rows is None and not self._filled:
            size = math.prod(shape)
            layout = dtype, (self._count, *shape), (size, *stride)
            self._slot = self._slots.taken(self._worker, size * dtype.itemsize, self._count)
            if self._slot is not None:
                self._rows = self._slots.tensor(self._worker, self._slot[1], *layout)
        rows = self._rows
        if rows is None or (dtype, shape) != (rows.dtype, rows.shape[1:]):
            return None
        return rows[self._filled]

    def _stacked(self, clips: list[Tensor]) -> "Tensor | _InSlot":
        """As ``torch.stack`` of what :meth:`_put` gave."""
        rows, slot = self._rows, self._slot
        if rows is None or slot is None:
            return torch.stack(clips)
        if any(clip.data_ptr() != row.data_ptr() for clip, row in zip(clips, rows, strict=False)):
            return torch.stack(clips)  # which says what does not fit
        self._sent = True
        layout = rows.dtype, (len(clips), *rows.shape[1:]), rows.stride()
        return _InSlot(self._slots.number, self._worker, (*slot, *layout))


def _is_dense(part: Tensor) -> bool:
    """Whether it fills its memory from first to last byte, in whichever order of dimensions."""
    expected = 1
    for stride, size in sorted(zip(part.stride(), part.shape, strict=True)):
        if size > 1 and stride != expected:
            return False
        expected *= size
    return True


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
