"""How many clips a second this machine's loader makes of the user's own videos, by the number of its processes."""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from statistics import median
from typing import Any, cast

import numpy as np
import torch

from clipwise.benchmark.timing import TimedFrames, account, data_condition, in_turns, quartiles
from clipwise.config import Config
from clipwise.data.dataset import Draw, DrawSampler, TrainingClips
from clipwise.data.failures import Failure
from clipwise.data.manifest import Item, Manifest
from clipwise.data.shared_buffers import ClipLoader
from clipwise.data.workers import available_cores

__all__ = ["benchmark_loader", "enough_workers", "usual_workers"]

_LITTLE = 1.05
"""More workers than make less than this many times as many clips are not worth their memory."""


def usual_workers() -> list[int]:
    """Numbers of workers worth trying here: none, then doubling up to the cores of this process."""
    cores = available_cores()
    powers = [2**power for power in range(cores.bit_length()) if 2**power < cores]
    return [0, *powers, cores]


def enough_workers(clips_per_second: dict[int, float]) -> int:
    """The fewest workers to which no other number adds 5 %."""
    most = max(clips_per_second.values())
    return min(workers for workers, speed in clips_per_second.items() if speed * _LITTLE >= most)


def benchmark_loader(
    manifest: Manifest,
    config: Config,
    *,
    workers: Sequence[int],
    rounds: int,
    seconds: float,
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Clips a second for each number of workers, by turns, and what a clip's time goes into.

    A loader is started anew for each turn, and timed once its processes are at work. Ctrl-C ends it with the whole
    rounds so far, and ``interrupted`` true.

    Args:
        manifest: the videos; of its splits, ``data.train_split`` where it is there.
        config: how clips are drawn, cropped and put into batches.
        workers: numbers of processes; 0 is the training's own.
        rounds: turns of each.
        seconds: of a turn.
        tell: hears a line about each turn.

    Raises:
        ValueError: for data in memory, which no worker reads, or if no video can be read.
    """
    if config.data.in_memory:
        raise ValueError("data.in_memory decodes everything before the first step; leave it out to time the loader")
    if not workers or min(workers) < 0 or len(set(workers)) < len(workers):
        raise ValueError(f"workers are different numbers from 0 on, such as 0,1,2; got {list(workers)}")
    if config.data.train_split in manifest.splits:
        manifest = manifest.select(config.data.train_split)
    manifest.check_files(config.data.on_error)
    clips = TrainingClips(
        manifest,
        num_frames=config.model.num_frames,
        size=config.views.size,
        data=config.data,
        augmentation=config.augmentation,
        seed=config.training.seed,
        twins=config.training.twins,
    )
    speeds: dict[int, list[float]] = {number: [] for number in workers}
    shares, unread, interrupted = {}, 0, False
    try:
        shares = _shares(clips, seconds)
        for turn, order in enumerate(in_turns(list(workers), rounds)):
            for number in order:
                speed, failed = _turn(clips, config, number, seconds)
                speeds[number].append(speed)
                unread += failed
                tell(f"round {turn + 1} of {rounds}, {number} workers: {speed:.1f} clips/s")
    except KeyboardInterrupt:
        interrupted = True
        whole = min(map(len, speeds.values()))
        speeds = {number: each[:whole] for number, each in speeds.items()}
    measured = {number: each for number, each in speeds.items() if each}
    return {
        "what": "training clips a second that reach the training's process; median and quartiles over turns",
        **account(torch.device("cpu")),
        "condition": {
            "data": data_condition(manifest),
            "videos": len(manifest),
            "frames": config.model.num_frames,
            "size": config.views.size,
            "twins": config.training.twins,
            "sampling": config.data.sampling,
            "batch": config.training.batch_size,
            "rounds": rounds,
            "seconds_a_turn": seconds,
        },
        "config_sha256": config.sha256,
        "interrupted": interrupted,
        "unreadable": unread,
        "of_a_clip": shares,
        "enough_workers": enough_workers({number: median(each) for number, each in measured.items()})
        if measured
        else None,
        "results": [
            {"workers": number, "rounds": len(each), "clips_per_second": quartiles(each)}
            for number, each in measured.items()
        ],
    }


def _batches(clips: TrainingClips, config: Config) -> DrawSampler:
    size = config.training.batch_size
    labels = np.zeros(len(clips.manifest), np.int64)  # their order matters to a balanced training alone
    # Epochs without end: a turn ends by its time.
    return DrawSampler(labels, batch_size=size, epochs=10**6, balanced=False, seed=config.training.seed)


def _turn(clips: TrainingClips, config: Config, workers: int, seconds: float) -> tuple[float, int]:
    """Clips a second, and how many could not be read."""
    loader = ClipLoader(
        clips,
        batch_sampler=_batches(clips, config),
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
    )
    batches: Iterator[dict[str, Any]] = iter(loader)
    for _ in islice(batches, 1 + 2 * workers):  # each has two under way; those of the start come in a heap
        pass
    made, failed, begin = 0, 0, time.perf_counter()
    while (took := time.perf_counter() - begin) < seconds or not made + failed:
        batch = next(batches)
        made += len(batch.get("label", ()))
        failed += len(batch["failures"])
        if not made:
            _refuse_unread(batch["failures"])
    return made / took, failed


def _refuse_unread(failures: Sequence[Failure]) -> None:
    raise ValueError(f"no clip of a whole batch could be read; the first: {failures[0]}")


class _Watched:
    """A manifest that counts the seconds of its videos' opening and reading."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self.frames: TimedFrames | None = None
        """The last ones that were opened."""

    def open(self, index: int) -> TimedFrames:
        self.frames = TimedFrames(partial(self._manifest.open, index))
        return self.frames

    def __len__(self) -> int:
        return len(self._manifest)

    def __getitem__(self, index: int) -> Item:
        return self._manifest[index]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._manifest, name)


def _shares(clips: TrainingClips, seconds: float) -> dict[str, Any]:
    """What a clip's time goes into, in this process alone: reading (opening, decoding, RGB), and the rest."""
    watched = _Watched(clips.manifest)
    clips = copy.copy(clips)
    clips.manifest = cast(Manifest, watched)
    reading: list[float] = []
    whole: list[float] = []
    order = np.random.default_rng(clips.seed).integers(0, len(clips), 10_000)
    begin = time.perf_counter()
    for number, video in enumerate(order):
        if number > 1 and time.perf_counter() - begin > seconds:
            break
        start = time.perf_counter()
        item = clips[Draw(int(video), number)]
        took = time.perf_counter() - start
        if number and not isinstance(item, Failure):  # the first finds nothing in any cache
            assert watched.frames is not None
            whole.append(took)
            reading.append(watched.frames.seconds)
    if not whole:
        raise ValueError(f"{watched.source}: no video that was tried can be read")
    share = sum(reading) / sum(whole)
    return {
        "clips": len(whole),
        "milliseconds": round(1e3 * median(whole), 3),
        "reading": round(share, 3),
        "crop_resize_flip": round(1 - share, 3),
    }
