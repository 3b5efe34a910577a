"""What all measurements have in common: turns, quartiles, and the account of the machine."""

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from clipwise.allocator import freed_memory_is_kept
from clipwise.checkpoint import device_name, versions
from clipwise.data.decode import Frames
from clipwise.data.manifest import Manifest
from clipwise.data.workers import available_cores
from clipwise.files import portable_path
from clipwise.training.account import videos_hash

__all__ = ["TimedFrames", "account", "data_condition", "device_tag", "in_turns", "quartiles", "seconds_of", "wait_for"]

_Kind = TypeVar("_Kind")


def quartiles(values: Iterable[float]) -> dict[str, float]:
    """Median and quartiles, to five digits."""
    q1, median, q3 = np.quantile(list(values), (0.25, 0.5, 0.75))
    return {"median": _five(median), "q1": _five(q1), "q3": _five(q3)}


def _five(value: float) -> float:
    return float(f"{value:.5g}")


def in_turns(competitors: Sequence[_Kind], rounds: int) -> Iterator[list[_Kind]]:
    """The order of each round: everyone begins and ends by turns, so that no one always follows the same other."""
    for turn in range(rounds):
        first = turn % len(competitors) if competitors else 0
        order = [*competitors[first:], *competitors[:first]]
        yield order if turn % 2 == 0 else order[::-1]


def wait_for(device: torch.device) -> None:
    """Return when the device has done all that it was given; a CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(action: Callable[[], object], device: torch.device, times: int = 1) -> float:
    """Wall seconds of an action done ``times`` times over, from an idle device to an idle device."""
    wait_for(device)
    begin = time.perf_counter()
    for _ in range(times):
        action()
    wait_for(device)
    return time.perf_counter() - begin


class TimedFrames:
    """Frames of a video, with the seconds that opening and reading them took.

    Args:
        source: opens them.
    """

    def __init__(self, source: Callable[[], Frames]) -> None:
        begin = time.perf_counter()
        self._frames = source()
        self.seconds = time.perf_counter() - begin
        self.path, self.num_frames, self.fps = self._frames.path, self._frames.num_frames, self._frames.fps

    def read(self, indices: Sequence[int] | NDArray[np.integer[Any]]) -> NDArray[np.uint8]:
        """As :class:`clipwise.data.decode.Frames` has it."""
        begin = time.perf_counter()
        try:
            return self._frames.read(indices)
        finally:
            self.seconds += time.perf_counter() - begin

    def close(self) -> None:
        """Close what was opened."""
        self._frames.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def device_tag(device: torch.device) -> str:
    """The device in a file's name: ``h200``, ``cpu_2threads``."""
    if device.type == "cpu":
        return f"cpu_{torch.get_num_threads()}threads"
    name = re.sub(r"nvidia|geforce", "", torch.cuda.get_device_name(device).lower())
    return re.sub(r"[^a-z0-9]+", "-", name).strip("-")


def data_condition(manifest: Manifest) -> dict[str, str]:
    """Which data something was measured on: where it lies, and its videos with their labels and segments."""
    return {"source": portable_path(manifest.source, Path.cwd()), "videos_sha256": videos_hash(manifest, None)}


def account(device: torch.device) -> dict[str, Any]:
    """Versions and the machine, as every result holds them; the load is that of the last minute."""
    libraries: dict[str, str | None] = dict(versions())
    with contextlib.suppress(metadata.PackageNotFoundError):
        libraries["triton"] = metadata.version("triton")
    if device.type == "cuda":
        libraries |= {"cuda": torch.version.cuda, "cudnn": str(torch.backends.cudnn.version())}
    told = {
        "versions": libraries,
        "device": device_name(device),
        "cores": available_cores(),
        "threads": torch.get_num_threads(),
        "freed_memory_is_kept": freed_memory_is_kept(),
    }
    if hasattr(os, "getloadavg"):
        told["load_average_1_minute"] = round(os.getloadavg()[0], 2)
    return told
