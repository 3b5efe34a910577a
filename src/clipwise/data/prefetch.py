"""Batches on their way to the GPU while it is busy with the one before."""

from collections.abc import Iterator, Sequence, Sized
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader

__all__ = ["DevicePrefetcher"]

_cuda: Any = torch.cuda


class DevicePrefetcher:
    """The batches of a loader, tensors ``names`` of each already on ``device``.

    On a GPU the next batch is copied on a stream of its own while the current one is computed with; that needs pinned
    memory (``pin_memory=True``), else the copy waits. On the CPU it is the loader itself.
    """

    def __init__(self, loader: DataLoader[Any], device: torch.device, names: Sequence[str] = ("clip", "label")) -> None:
        self.loader = loader
        self.device = device
        self.names = tuple(names)

    def __len__(self) -> int:
        return len(cast(Sized, self.loader))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if self.device.type == "cpu":
            yield from self.loader
            return
        side = _cuda.Stream(self.device)
        ahead: tuple[dict[str, Any], Any] | None = None
        for batch in self.loader:
            following = self._copied(batch, side)
            if ahead is not None:
                yield self._handed_over(*ahead)
            ahead = following
        if ahead is not None:
            yield self._handed_over(*ahead)

    def _copied(self, batch: dict[str, Any], side: Any) -> tuple[dict[str, Any], Any]:
        """The batch, its tensors on their way, and the event that says that they have arrived."""
        with _cuda.stream(side):
            moved = {
                name: value.to(self.device, non_blocking=True)
                if name in self.names and isinstance(value, Tensor)
                else value
                for name, value in batch.items()
            }
            arrived = _cuda.Event()
            arrived.record(side)
        return moved, arrived

    def _handed_over(self, batch: dict[str, Any], arrived: Any) -> dict[str, Any]:
        current = _cuda.current_stream(self.device)
        current.wait_event(arrived)  # not for the whole side stream: the following batch is under way there
        for name in self.names:
            if isinstance(batch.get(name), Tensor):
                # Its memory came from the side stream, which must not give it away while this one computes with it.
                batch[name].record_stream(current)
        return batch
