"""How long training waits for its data."""

import time
from collections.abc import Iterator
from typing import Any

from clipwise.data.prefetch import DevicePrefetcher

__all__ = ["WaitedFor"]


class WaitedFor:
    """The batches of a loader, and the seconds in which nobody had the next one ready.

    Nothing is asked of the device. Each step ends with a look at its loss, so that a GPU has, when the next batch is
    asked for, only the optimiser's step left to compute: while this waits, so does the GPU, to a millisecond or so.
    """

    def __init__(self, batches: DevicePrefetcher) -> None:
        self.batches = batches
        self.seconds = 0.0
        """Since the first batch was asked for."""
        self.for_first = 0.0
        """Of those, for the first batch: the readers start then."""

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        batches = iter(self.batches)
        first = True
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            waited = time.perf_counter() - asked
            if batch is None:
                return
            self.seconds += waited
            if first:
                self.for_first, first = waited, False
            yield batch
