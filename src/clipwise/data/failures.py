"""What becomes of videos that cannot be read: counted and named, never replaced by others."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

from clipwise.data.decode import DecodeError

__all__ = ["Failure", "FailureAccount", "OnError", "TooManyFailuresError", "deaths_explained"]

OnError = Literal["raise", "skip", "report"]


class Failure(NamedTuple):
    """A video that could not be read."""

    path: str
    reason: str


class TooManyFailuresError(ValueError):
    """More videos could not be read than the user allows."""


class FailureAccount:
    """The videos that could not be read so far, and what follows from one more.

    Args:
        on_error: ``raise`` stops at the first; ``skip`` and ``report`` leave it out and go on.
        max_failed: share of the videos that may fail.
        videos: how many there are.
        remedy: for the message of the one that stops.
    """

    def __init__(self, on_error: OnError, max_failed: float, videos: int, *, remedy: str) -> None:
        self.on_error = on_error
        self.max_failed = max_failed
        self.videos = videos
        self.remedy = remedy
        self._reasons: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._reasons)

    def __iter__(self) -> Iterator[Failure]:
        return iter([Failure(path, reason) for path, reason in self._reasons.items()])

    def add(self, failures: Iterable[Failure]) -> list[Failure]:
        """Take note of failures; returns those that are new.

        Raises:
            DecodeError: for the first one, where it is to stop.
            TooManyFailuresError: once more than the allowed share has failed.
        """
        new = []
        for failure in failures:
            if self.on_error == "raise":
                raise DecodeError(failure.path, f"{failure.reason} [{self.remedy}]")
            if failure.path not in self._reasons:
                self._reasons[failure.path] = failure.reason
                new.append(failure)
        if new and len(self) > self.max_failed * self.videos:
            some = "; ".join(f"{failure.path}: {failure.reason}" for failure in list(self)[:3])
            raise TooManyFailuresError(
                f"{len(self)} of {self.videos} videos could not be read, more than the {self.max_failed:g} that "
                f"max_failed allows: {some}. `clipwise data check` finds all of them and writes a list without"
            )
        return new


@contextmanager
def deaths_explained() -> Iterator[None]:
    """Say what it means when a loader process has died: PyTorch's own message names a signal and no remedy.

    Raises:
        ChildProcessError: in its place.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise ChildProcessError(
            f"a process that reads videos has died ({str(error).splitlines()[0]}): killed by the system for want of "
            "memory, or a decoder crashed on a damaged file. Fewer data.workers need less memory; `clipwise data "
            "check` finds files that crash. A training run goes on with --resume from where it last saved"
        ) from error
