"""The processes of one run, where ``torchrun`` started several: each trains on its share of every batch.

Gradients travel by Lightning's DistributedDataParallel. Beside them a few numbers travel each step – clips read, videos
that failed, the loss, whether to stop – so that all processes take every decision together: none is left waiting for
another that has stopped.
"""

import atexit
import contextlib
import os
import pickle
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

__all__ = ["Processes", "join"]

_NUMBERS = 2  # that an exchange can carry
_talk: list[Any] = []  # the group for it, once there is one: of its own, so that it never meets with gradients


class Processes:
    """One process's view of all: who it is, how many there are, and what they tell each other.

    Args:
        rank: its number; the first, 0, writes files and reports.
        count: how many there are; with one, nothing travels.
        local_rank: its number on its machine, which is that of its GPU.
        local_count: how many there are on its machine.
    """

    def __init__(self, rank: int = 0, count: int = 1, local_rank: int = 0, local_count: int = 1) -> None:
        self.rank = rank
        self.count = count
        self.local_rank = local_rank
        self.local_count = local_count
        self._failed = False

    @property
    def first(self) -> bool:
        """Whether this one writes and reports."""
        return self.rank == 0

    def exchange(self, *numbers: float) -> list[list[float]]:
        """Each process's numbers, at most two, by rank; all must call. Without numbers: wait for all.

        Raises the error of a process that could not get here, and ChildProcessError if one has died.
        """
        return self._exchange(None, numbers)

    def gather(self, value: Any) -> list[Any]:
        """Each process's value, which must pickle, by rank; all must call. Raises as :meth:`exchange`."""
        self.exchange()
        return self._gather(value)

    def _gather(self, value: Any) -> list[Any]:
        if self.count == 1:
            return [value]
        values = [None] * self.count
        dist.all_gather_object(values, value, group=_talk[0])
        return values

    def _exchange(self, error: Exception | None, numbers: tuple[float, ...]) -> list[list[float]]:
        if self.count == 1:
            return [list(numbers)]
        mine = torch.zeros(1 + _NUMBERS, dtype=torch.float64)
        mine[: 1 + len(numbers)] = torch.tensor([error is not None, *numbers], dtype=torch.float64)
        rows = [torch.empty_like(mine) for _ in range(self.count)]
        try:
            dist.all_gather(rows, mine, group=_talk[0])
        except RuntimeError as broken:
            self._failed = True
            raise ChildProcessError(
                f"another of the {self.count} processes of this run is gone ({str(broken).splitlines()[0]}): killed by "
                "the system for want of memory, or ended by an error that stands above. The run goes on with --resume "
                "from where it last saved"
            ) from broken
        if any(row[0] for row in rows):
            self._failed = True
            raise next(found for found in self._gather(_sendable(error)) if found is not None)
        return [row[1 : 1 + len(numbers)].tolist() for row in rows]

    def same_buffers(self, module: torch.nn.Module) -> None:
        """Give all processes the first one's buffers: BatchNorm's statistics, of which each has its own clips'."""
        for buffer in module.buffers() if self.count > 1 else ():
            dist.broadcast(buffer, 0)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """End together: an error that a user can mend, in whichever process, is raised in all of them.

        Other errors end their process at once, and torchrun then ends the rest.
        """
        try:
            yield
            self.exchange()
        except (ValueError, OSError) as error:
            if not self._failed:
                with contextlib.suppress(Exception):  # its own is the one to raise
                    self._exchange(error, ())
            raise


def _sendable(error: Exception | None) -> Exception | None:
    """The error, or one with its message where it does not pickle."""
    try:
        copy: Exception | None = pickle.loads(pickle.dumps(error))
        return copy
    except Exception:
        return ValueError(str(error))


def join() -> Processes:
    """Meet the other processes that torchrun started; where it started none, this one is alone.

    Its environment variables say who is who.
    """
    if not dist.is_available() or not dist.is_torchelastic_launched() or os.environ["WORLD_SIZE"] == "1":
        return Processes()
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    rank, count, local_rank, local_count = (int(os.environ[name]) for name in names)
    if not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(local_rank % torch.cuda.device_count())
        dist.init_process_group()  # gloo for tensors on the CPU, and NCCL for those on a GPU
        atexit.register(dist.destroy_process_group)
    if not _talk:
        _talk.append(dist.new_group(backend="gloo"))
    return Processes(rank, count, local_rank, local_count)
