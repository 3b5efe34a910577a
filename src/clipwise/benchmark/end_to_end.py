"""From a video file to its label, and from a data set to epochs an hour."""

import contextlib
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from clipwise.benchmark.networks import DTYPES, Condition, check_forms, inference_form, settings_for
from clipwise.benchmark.timing import TimedFrames, account, data_condition, in_turns, quartiles, wait_for
from clipwise.config import Config, ViewsConfig
from clipwise.data.dataset import identity_of, read_views
from clipwise.data.decode import open_frames
from clipwise.data.manifest import Manifest
from clipwise.data.transforms import Normalise
from clipwise.models.network import VideoNetwork

if TYPE_CHECKING:
    from clipwise.evaluation.protocols import Evaluation
    from clipwise.training.account import EpochLog
    from clipwise.training.run import RunStart

__all__ = ["STAGES", "benchmark_training", "benchmark_videos"]

STAGES = ("decode", "preprocess", "network")
"""decode: opening, index, decoding, RGB. preprocess: crop, resize, copy to the device, normalise. network: logits,
softmax and the label back on the CPU."""

_WARM_UP = 2
_PREFETCHED = 2
"""Batches that each worker of a loader reads ahead, as PyTorch has it."""


def benchmark_videos(
    videos: Sequence[Path],
    network: VideoNetwork,
    views: ViewsConfig,
    *,
    form: str,
    dtype: str,
    device: torch.device,
    rounds: int,
) -> dict[str, Any]:
    """Milliseconds of each stage, warm: after two passes over all videos, which take their turns in each round.

    Args:
        videos: files.
        network: any.
        views: what it is shown of a video.
        form: of :data:`clipwise.benchmark.networks.FORMS`.
        dtype: of :data:`clipwise.benchmark.networks.DTYPES`.
        device: where the network runs.
        rounds: passes over all videos.

    Ctrl-C ends it with the whole rounds so far, and ``interrupted`` true.

    Raises:
        DecodeError: for a video that cannot be read.
        ValueError: for a form or dtype that does not exist, or not on this device.
    """
    if not videos or rounds < 1:
        raise ValueError(f"there must be at least one video and one round, got {len(videos)} and {rounds}")
    condition = Condition("infer", dtype, views.clips * views.crops, network.num_frames, views.size, device)
    check_forms((form,), condition)
    taken: dict[Path, list[dict[str, float]]] = {video: [] for video in videos}
    interrupted = False
    with settings_for(condition, (form,)):
        run = inference_form(network.to(device), form, DTYPES[dtype])
        normalise = Normalise(views.mean, views.std).to(device)

        @torch.inference_mode()
        def label(video: Path) -> dict[str, float]:
            begin = time.perf_counter()
            with TimedFrames(partial(open_frames, video)) as frames:
                shown = read_views(frames, network.num_frames, views, identity=identity_of(video))
            clips = normalise(shown.to(device)).to(DTYPES[dtype])
            wait_for(device)
            normalised = time.perf_counter()
            int(run(clips).float().softmax(-1).mean(0).argmax())
            end = time.perf_counter()
            return {
                "decode": frames.seconds,
                "preprocess": normalised - begin - frames.seconds,
                "network": end - normalised,
                "whole": end - begin,
            }

        try:
            for turn, order in enumerate(in_turns(list(videos), _WARM_UP + rounds)):
                for video in order:
                    stages = label(video)
                    if turn >= _WARM_UP:
                        taken[video].append(stages)
        except KeyboardInterrupt:
            interrupted = True
            whole = min(map(len, taken.values()))
            taken = {video: each[:whole] for video, each in taken.items()}
    measured = [one for each in taken.values() for one in each]
    return {
        "what": "milliseconds from a video file to its label, warm; median and quartiles",
        **account(device),
        "condition": {
            "form": form,
            "dtype": dtype,
            "frames": network.num_frames,
            "size": views.size,
            "views": asdict(views),
            "videos": [{"name": video.name, "bytes": video.stat().st_size} for video in videos],
            "rounds": rounds,
        },
        "interrupted": interrupted,
        "milliseconds": _milliseconds(measured) if measured else None,
        "videos": [{"video": video.name, **_milliseconds(each)} for video, each in taken.items() if each],
    }


def _milliseconds(taken: Sequence[dict[str, float]]) -> dict[str, dict[str, float]]:
    return {stage: quartiles(1e3 * one[stage] for one in taken) for stage in (*STAGES, "whole")}


class _Enough(Exception):
    """As many steps as were wanted."""


@dataclass
class _Stopwatch:
    """Listens to a training, and ends it after some steps."""

    wanted: int
    warm_up: int
    tell: Callable[[str], None]
    steps_an_epoch: int = 0
    videos: int = 0
    before: float = 0.0
    seen: int = 0
    seconds: list[float] = field(default_factory=list)
    clips: list[int] = field(default_factory=list)

    def started(self, start: "RunStart") -> None:
        self.videos = start.training_videos
        self.steps_an_epoch = -(-start.training_videos // start.config.batch_size)
        self.before = time.perf_counter()
        self.tell(f"{start.training_videos} videos, {self.steps_an_epoch} steps an epoch")

    def stepped(self, *, clips: int, **_: Any) -> None:
        now = time.perf_counter()
        self.seen += 1
        if self.seen > self.warm_up:
            self.seconds.append(now - self.before)
            self.clips.append(clips)
        self.before = now
        if len(self.seconds) >= self.wanted:
            raise _Enough

    def failed(self, failures: Sequence[Any]) -> None:
        """Unreadable videos are left out, as in training."""

    def epoch_ended(self, log: "EpochLog", evaluation: "Evaluation | None") -> None:
        self.before = time.perf_counter()  # validation is no step


def benchmark_training(
    data: str | Path | Manifest, config: Config, *, steps: int, tell: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """Epochs an hour of a training as ``clipwise train`` runs it, from some of its steps; nothing of it is kept.

    The steps are the training's own, with its loader; validation is not in them. The first ones, whose clips were read
    while the training began, do not count. Weights to start from are left out, for they change nothing about the speed.

    Args:
        data: as :func:`clipwise.train` takes it.
        config: the experiment.
        steps: to time.
        tell: hears what is about to be timed.

    Raises:
        ValueError: see :func:`clipwise.train`.
    """
    from clipwise.training.run import train

    if steps < 1:
        raise ValueError(f"at least one step is timed, got {steps}")
    manifest = data if isinstance(data, Manifest) else Manifest.read(data)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    watch = _Stopwatch(steps, _WARM_UP + _PREFETCHED * config.data.workers, tell)
    timed = replace(config, model=replace(config.model, weights=None))
    interrupted = False
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(_Enough):
        interrupted = not train(manifest, Path(folder) / "run", recipe=timed, reporter=watch).finished
    if not watch.seconds and not interrupted:
        raise ValueError(
            f"this training has {watch.seen} steps, and the first {watch.warm_up} do not count; time a longer one "
            "(--set training.epochs=100)"
        )
    seconds, clips = sum(watch.seconds), sum(watch.clips)
    return {
        "what": "steps of a training as `clipwise train` runs it, loader included, validation not; median, quartiles",
        **account(device),
        "condition": {
            "network": config.model.name,
            "options": config.model.options,
            "data": data_condition(manifest),
            "videos": watch.videos,
            "batch": config.training.batch_size,
            "steps": len(watch.seconds),
            "steps_an_epoch": watch.steps_an_epoch,
            "precision": config.training.precision,
            "workers": config.data.workers,
            "compile": config.training.compile,
            "activation_checkpointing": config.training.activation_checkpointing,
        },
        "config_sha256": config.sha256,
        "config": config.to_dict(),
        "interrupted": interrupted,
        "seconds_a_step": quartiles(watch.seconds) if watch.seconds else None,
        # Of all steps together: where a loader delivers in heaps, the step in the middle knows nothing of the waiting.
        "clips_per_second": float(f"{clips / seconds:.4g}") if clips else None,
        "epochs_per_hour": float(f"{3600 * clips / seconds / watch.videos:.4g}") if clips else None,
    }
