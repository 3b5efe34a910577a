"""All frames of a small set in memory, decoded once and shared by all loader processes."""

import mmap
import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import Callable
from contextlib import closing
from multiprocessing import reduction
from pathlib import Path
from typing import Any

import numpy as np

from clipwise.data.decode import DecodeError, Frames
from clipwise.data.manifest import Manifest
from clipwise.data.pack import Options, PackedFrames, chunks_in_order, resized_size
from clipwise.data.workers import available_cores

__all__ = ["FramesInMemory", "available_memory", "hold_in_memory"]

_SHARE = 0.8  # of the memory that is free, which the frames may take


class FramesInMemory:
    """Frames of many videos as pixels, in one block of memory that forked and spawned processes share.

    Args:
        sizes: (frames, height, width) of each video; frames 0 where it cannot be read.
    """

    def __init__(self, sizes: list[tuple[int, int, int]]) -> None:
        self._sizes = np.array(sizes, np.int64).reshape(-1, 3)
        self._offsets = np.concatenate([[0], np.cumsum(self._sizes.prod(axis=1) * 3)])
        self._fps: list[float | None] = [None] * len(sizes)
        self._failures: dict[int, tuple[str, str]] = {}
        self._handle, self._name = -1, f"clipwise-{uuid.uuid4().hex}"
        if sys.platform != "win32":
            self._handle = _file_without_name(max(1, self.nbytes))
        self._data = self._mapped()

    def __len__(self) -> int:
        return len(self._sizes)

    @property
    def nbytes(self) -> int:
        return int(self._offsets[-1])

    def put(self, index: int, first: int, pixels: bytes, fps: float | None) -> None:
        """Frames of video ``index`` from its frame ``first`` on."""
        start = int(self._offsets[index] + first * self._sizes[index, 1:].prod() * 3)
        if start + len(pixels) > self._offsets[index + 1]:
            raise ValueError(f"video {index} has more frames than it had")
        self._data[start : start + len(pixels)] = pixels
        self._fps[index] = fps

    def fail(self, index: int, path: str, reason: str) -> None:
        """Video ``index`` cannot be read: whoever asks for it hears so."""
        self._failures[index] = (path, reason)

    def frames(self, index: int, path: str | None = None, fps: float | None = None) -> Frames:
        """Those of video ``index``. Raises DecodeError, as its file did."""
        if index in self._failures:
            raise DecodeError(*self._failures[index])
        count, height, width = self._sizes[index].tolist()
        frame = height * width * 3
        start, end = int(self._offsets[index]), int(self._offsets[index + 1])
        return PackedFrames(
            path or f"<memory>[{index}]",
            fps or self._fps[index],
            "uint8",
            np.array([height, width], np.int32),
            np.arange(count + 1) * frame,
            np.frombuffer(self._data, np.uint8, end - start, start),
        )

    def _mapped(self) -> mmap.mmap:
        size = max(1, self.nbytes)
        if sys.platform == "win32":  # where memory has a name, and lasts as long as any process has it
            return mmap.mmap(-1, size, tagname=self._name)
        return mmap.mmap(self._handle, size)

    def __getstate__(self) -> dict[str, Any]:
        state = {**self.__dict__, "_data": None}
        if sys.platform != "win32":
            # Only on the way to a child process can an open file be passed on.
            state["_handle"] = reduction.DupFd(self._handle)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = state
        if sys.platform != "win32":
            self._handle = state["_handle"].detach()
        self._data = self._mapped()

    def __del__(self) -> None:
        if getattr(self, "_handle", -1) >= 0:
            os.close(self._handle)


def _file_without_name(size: int) -> int:
    """The handle of a file of so many bytes, which is gone with its last handle.

    Raises ValueError where it would have to be a temporary file and there is no room.
    """
    if hasattr(os, "memfd_create"):
        # Not POSIX shared memory, whose file system containers keep small.
        handle = os.memfd_create("clipwise")
    else:
        folder = tempfile.gettempdir()
        free = shutil.disk_usage(folder).free
        if free < size:
            raise ValueError(
                f"{folder}: data.in_memory shares its frames through a temporary file of {size / 1e9:.2f} GB, and "
                f"{free / 1e9:.2f} GB are free there; set TMPDIR to a folder with room, or leave data.in_memory out"
            )
        with tempfile.TemporaryFile() as file:
            handle = os.dup(file.fileno())
    os.ftruncate(handle, size)
    return handle


def hold_in_memory(
    manifest: Manifest,
    *,
    short_side: int | None,
    workers: int | None = None,
    available: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Manifest:
    """The same manifest, its frames decoded into memory.

    A video that cannot be read is held as such: it fails when it is asked for, as its file would.

    Args:
        manifest: the videos.
        short_side: pixels of the shorter side; larger videos are shrunk to it, smaller ones kept as they are.
        workers: processes that decode; one a core when None.
        available: bytes that there are; those that are free when None.
        progress: called with videos done and in all.

    Raises:
        ValueError: if the frames do not fit; the message has the numbers.
    """
    options = Options("uint8", short_side, 95, False)
    sizes, failures = [], {}
    for index in range(len(manifest)):
        try:
            with manifest.open(index) as video:
                _, height, width, _ = video.read([0]).shape
                height, width = resized_size(height, width, options)
                sizes.append((video.num_frames, height, width))
        except DecodeError as error:
            failures[index] = (error.path, error.reason)
            sizes.append((0, 0, 0))
    need = sum(3 * frames * height * width for frames, height, width in sizes)
    available = available_memory() if available is None else available
    if need > _SHARE * available:
        frames = sum(size[0] for size in sizes)
        raise ValueError(
            f"{manifest.source}: data.in_memory needs {need / 1e9:.2f} GB for {frames} frames of {len(sizes)} videos, "
            f"and of {available / 1e9:.2f} GB that are free it may take {_SHARE:.0%}; leave data.in_memory out, and "
            f"pack the videos instead: clipwise data pack … --short-side {short_side or 256}"
        )
    held = FramesInMemory(sizes)
    workers = min(len(manifest), available_cores() if workers is None else workers)
    filled = 0
    with closing(chunks_in_order(manifest, options, workers)) as chunks:
        for index, chunk in chunks:
            if isinstance(chunk, str):
                failures.setdefault(index, (manifest[index].path, chunk))
            elif index not in failures:
                held.put(index, filled, chunk.data, chunk.fps)
                filled += len(chunk.lengths)
                if chunk.more is not None:
                    continue
            filled = 0
            if progress:
                progress(index + 1, len(manifest))
    for index, failure in failures.items():
        held.fail(index, *failure)
    return manifest.with_frames(held)


def available_memory() -> int:
    """Bytes that this process may still take, by the system and by the container it runs in."""
    limits = []
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            limits.append(int(line.split()[1]) * 1024)
    if not limits and hasattr(os, "sysconf"):
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    limit, used = _lines("/sys/fs/cgroup/memory.max"), _lines("/sys/fs/cgroup/memory.current")
    if limit and used and limit[0] != "max":
        caches = [
            int(line.split()[1]) for line in _lines("/sys/fs/cgroup/memory.stat") if line.startswith("inactive_f")
        ]
        limits.append(max(0, int(limit[0]) - int(used[0]) + sum(caches)))
    return min(limits)


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
