"""What becomes of videos that cannot be read: counted and named, never replaced by others."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple, get_args

from clipwise.data.decode import DecodeError

__all__ = ["Failure", "FailureAccount", "OnError", "TooManyFailuresError", "deaths_explained", "reader_died"]

OnError = Literal["raise", "skip", "report"]


class Failure(NamedTuple):
    """A video, or a segment of one, that could not be read."""

    path: str
    reason: str
    start: float | None = None
    end: float | None = None
    reversed: bool = False

    @property
    def video(self) -> tuple[str, float | None, float | None, bool]:
        """What tells it from others; the reason may depend on the frames that were wanted."""
        return self.path, self.start, self.end, self.reversed

    def __str__(self) -> str:
        end = "its end" if self.end is None else f"{self.end:g} s"
        segment = [] if self.start is None and self.end is None else [f"{self.start or 0:g} s to {end}"]
        said = ", ".join([*segment, *(["reversed"] if self.reversed else [])])
        return f"{self.path}{f' ({said})' if said else ''}: {self.reason}"


class TooManyFailuresError(ValueError):
    """More videos could not be read than the user allows."""


class FailureAccount:
    """The videos that could not be read so far, and what follows from one more.

    Args:
        on_error: ``raise`` stops at the first; ``skip`` and ``report`` leave it out and go on.
        max_failed: share of the videos that may fail.
        videos: how many there are.
        remedy: for the message of the one that stops.

    Raises:
        ValueError: for another policy, or a share outside 0 to 1.
    """

    def __init__(self, on_error: OnError, max_failed: float, videos: int, *, remedy: str) -> None:
        if on_error not in get_args(OnError):
            raise ValueError(f"on_error must be one of {', '.join(get_args(OnError))}, got {on_error!r}")
        if not 0 <= max_failed <= 1:
            raise ValueError(f"max_failed is a share, from 0 to 1, got {max_failed}")
        self.on_error = on_error
        self.max_failed = max_failed
        self.videos = videos
        self.remedy = remedy
        self._failures: dict[tuple[str, float | None, float | None, bool], Failure] = {}

    def __len__(self) -> int:
        return len(self._failures)

    def __iter__(self) -> Iterator[Failure]:
        return iter(list(self._failures.values()))

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
            if failure.video not in self._failures:
                self._failures[failure.video] = failure
                new.append(failure)
        if new and len(self) > self.max_failed * self.videos:
            some = "; ".join(map(str, list(self)[:3]))
            raise TooManyFailuresError(
                f"{len(self)} of {self.videos} videos could not be read, more than the {self.max_failed:g} that "
                f"max_failed allows: {some}. `clipwise data check` finds all of them and writes a list without"
            )
        return new


def reader_died(error: BaseException) -> bool:
    """Whether this is PyTorch's word of a loader process that was killed or exited; an error inside one is not."""
    return isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker (pid")


@contextmanager
def deaths_explained() -> Iterator[None]:
    """Say what it means when a loader process has died: PyTorch's own message names a signal and no remedy.

    Raises:
        ChildProcessError: in its place.
    """
    try:
        yield
    except RuntimeError as error:
        if not reader_died(error):
            raise
        raise ChildProcessError(
            f"a process that reads videos has died ({str(error).splitlines()[0]}): killed by the system for want of "
            "memory, or a decoder crashed on a damaged file. Fewer data.workers need less memory; `clipwise data "
            "check` finds files that crash. A training run goes on with --resume from where it last saved"
        ) from error
