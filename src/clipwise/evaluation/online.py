"""Accuracy of networks that follow a video frame by frame, beside that of the offline network on the same videos.

A network with frames on both sides of each (``causal=False``) answers in two ways, one without the future in two more:

offline     T frames, the middles of T equal segments, once the video is over: the papers' testing, of one view
sliding     after every frame looked at, the clip that ends with it [STM-J §4.6]
causal      after every frame looked at, from what the layers remember; the consensus of the last T frames

Online, a video's score is the mean of its frames' answers, as in [STM-J §4.6], or the last frame's answer alone. The
frames looked at are spread evenly over the video, k·T of them, or every n-th, or so many a second::

    frame       0  1  2  3  4  5  6  7  8  9 10 11 12 13 14 15     T = 4
    multiple 1  .  .  x  .  .  .  x  .  .  .  x  .  .  .  x  .     the offline clip: the last answers are equal
    multiple 2  .  x  .  x  .  x  .  x  .  x  .  x  .  x  .  x
    stride 5    x  .  .  .  .  x  .  .  .  .  x  .  .  .  .  x

Spreading them needs the video's end, so a live stream cannot; but it is the spacing that training with segments showed
the network. How early a network is right is told by its answers after the first 10 %, 20 % … of a video's frames, where
the offline network takes its T frames from that part alone.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipwise.checkpoint import Checkpoint, command_line, device_name, read_checkpoint, versions
from clipwise.data.dataset import failure_of
from clipwise.data.decode import DecodeError, Frames
from clipwise.data.failures import Failure, FailureAccount, OnError
from clipwise.data.manifest import Manifest
from clipwise.data.sampling import segments_middle
from clipwise.data.transforms import Normalise
from clipwise.evaluation.ensemble import require_same_videos
from clipwise.evaluation.metrics import VideoMetrics, mean_softmax, video_metrics
from clipwise.evaluation.run import account_of_videos, checkpoint_names, drawn_videos, videos_to_score
from clipwise.files import file_sha256, portable_path
from clipwise.inference.deploy import deploy
from clipwise.inference.stream_predictor import Pace, StreamPredictor
from clipwise.models.network import channels_last
from clipwise.training.account import RunAccount, is_run

__all__ = [
    "SHARES",
    "TABLE_5",
    "Answers",
    "Group",
    "Looks",
    "NetworkOnline",
    "OnlineEvaluation",
    "evaluate_online",
    "mean_and_deviation",
    "milliseconds",
]

SHARES = tuple(range(10, 101, 10))
"""Percent of a video's frames that have passed, at which the answers are looked at."""

Way = Literal["offline", "sliding", "causal"]

TABLE_5: dict[str, dict[str, float]] = {
    "TSM-Online": {"latency_ms": 4.8, "Kinetics-400": 74.3, "Something-Something V1": 46.3},
    "STM-Offline": {"Kinetics-400": 75.5, "Something-Something V1": 50.4},
    "STM-Online": {"latency_ms": 5.4, "Kinetics-400": 75.4, "Something-Something V1": 49.7},
}
"""Of [STM-J], as printed: top-1 in percent, ResNet-50, 8 frames of 224 × 224, on a GeForce RTX 3090; online is the
sliding window, a video's score the mean over its frames. On other videos only the step from offline to online can be
set beside these: −0.1 and −0.7 points."""

_READ_AT_ONCE = 64  # frames of a video that are held as they were decoded
_WARM_UP = 3  # answers that no latency is taken from


@dataclass(frozen=True)
class Looks:
    """Which frames of a video the network looks at; exactly one of the three.

    multiple: k·T frames, the middles of as many equal segments; of a video with fewer frames some repeat.
    stride: every so many-th frame, from the first.
    rate: so many a second, by the video's mean frame rate.
    """

    multiple: int | None = None
    stride: int | None = None
    rate: float | None = None

    def __post_init__(self) -> None:
        given = {key: value for key, value in asdict(self).items() if value is not None}
        if len(given) != 1:
            raise ValueError(f"give one of multiple, stride and rate; got {given or 'none'}")
        (name, value) = next(iter(given.items()))
        if value <= 0:
            raise ValueError(f"{name} must be above 0, got {value}")

    def of(self, frames: Frames, num_frames: int) -> NDArray[np.int64]:
        """(K,) numbers of the frames looked at, ascending, for a network of ``num_frames``.

        Raises ValueError where a rate is wanted of frames whose own rate nobody knows.
        """
        available = frames.num_frames
        if self.multiple is not None:
            return segments_middle(available, self.multiple * num_frames)
        if self.rate is not None and frames.fps is None:
            raise ValueError(f"{frames.path}: states no frame rate; give a stride in the place of the rate {self.rate}")
        pace = Pace(stride=self.stride, rate=self.rate)
        times = np.arange(available) / (frames.fps or 1.0)
        return np.flatnonzero([pace.takes(float(time)) for time in times])


@dataclass(frozen=True)
class Answers:
    """A video's scores in one way of answering."""

    way: Way
    score: str
    """What a video's score is: of its clip, the mean over its frames, or the last frame's."""
    scores: NDArray[np.float32]
    """(shares, V, C) once so much of each video has passed, as in :data:`SHARES`."""
    figures: tuple[VideoMetrics, ...]
    """(shares,)"""

    @property
    def name(self) -> str:
        return f"{self.way}, {self.score}"

    @property
    def whole(self) -> VideoMetrics:
        """Of the videos in full."""
        return self.figures[-1]

    def curve(self, figure: str) -> list[float]:
        """``top1`` or ``mean_class_accuracy`` in percent at each share."""
        return [float(getattr(metrics, figure)) for metrics in self.figures]

    def to_dict(self, classes: Sequence[str]) -> dict[str, Any]:
        """For JSON."""
        return {
            "way": self.way,
            "score": self.score,
            "top1": self.whole.top1,
            "mean_class_accuracy": self.whole.mean_class_accuracy,
            "earliness": {
                "percent_seen": list(SHARES),
                "top1": self.curve("top1"),
                "mean_class_accuracy": self.curve("mean_class_accuracy"),
            },
            "per_class": {row.name: row.accuracy for row in self.whole.per_class if row.videos},
            "predictions": [classes[label] for label in self.scores[-1].argmax(axis=1)],
        }


@dataclass(frozen=True)
class NetworkOnline:
    """What one network answers, and how long a frame waits for its answer."""

    name: str
    """Unique among those that are compared."""
    network: str
    """The registered name."""
    causal: bool
    seed: int | None
    """Of its training, where that is known."""
    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    """(V,)"""
    answers: tuple[Answers, ...]
    latency: dict[Way, NDArray[np.float64]]
    """Milliseconds from a decoded frame to the answer that it completes, of each answer."""
    looked: NDArray[np.int64]
    """(V,) frames looked at."""
    account: dict[str, Any]
    """Where its weights come from, for JSON."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "network": self.network,
            "causal": self.causal,
            "seed": self.seed,
            **self.account,
            "frames_looked_at": {
                "min": int(self.looked.min()),
                "median": float(np.median(self.looked)),
                "max": int(self.looked.max()),
            },
            "answers": [answers.to_dict(self.classes) for answers in self.answers],
            "latency_ms": {way: milliseconds(times) for way, times in self.latency.items()},
        }


class Group(NamedTuple):
    """Trainings of one network that differ in their seeds."""

    name: str
    members: tuple[NetworkOnline, ...]

    @property
    def causal(self) -> bool:
        return self.members[0].causal

    def values(self, answers: str, figure: str) -> list[float]:
        """A figure of each member, of the videos in full."""
        return [getattr(one.whole, figure) for member in self.members for one in member.answers if one.name == answers]

    def curves(self, figure: str) -> dict[str, NDArray[np.float64]]:
        """(members, shares) by the name of the answers."""
        names = [answers.name for answers in self.members[0].answers]
        return {
            name: np.array([one.curve(figure) for member in self.members for one in member.answers if one.name == name])
            for name in names
        }

    def to_dict(self) -> dict[str, Any]:
        """For JSON: means and sample deviations."""
        return {
            "name": self.name,
            "members": [member.name for member in self.members],
            "seeds": [member.seed for member in self.members],
            "answers": {
                answers.name: {
                    figure: mean_and_deviation(self.values(answers.name, figure))
                    for figure in ("top1", "mean_class_accuracy")
                }
                for answers in self.members[0].answers
            },
        }


@dataclass(frozen=True)
class OnlineEvaluation:
    """One or several networks on the same videos."""

    networks: tuple[NetworkOnline, ...]
    groups: tuple[Group, ...]
    """By network, in the order in which they were given; of one member where there is one seed."""
    unreadable: tuple[Failure, ...]
    record: dict[str, Any]
    """For JSON."""


def milliseconds(times: NDArray[np.float64]) -> dict[str, float]:
    """Median, quartiles and 95th percentile."""
    q1, median, q3, p95 = np.percentile(times, [25, 50, 75, 95]).tolist()
    return {"median": median, "q1": q1, "q3": q3, "p95": p95, "answers": len(times)}


def mean_and_deviation(values: Sequence[float]) -> dict[str, float | None]:
    """The mean, and the sample deviation where there are several."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "deviation": deviation}


def evaluate_online(
    checkpoints: Sequence[str | Path],
    data: str | Path | None = None,
    *,
    looks: Looks | None = None,
    split: str | None = None,
    which: Literal["best", "last"] = "best",
    videos: int | None = None,
    seed: int = 0,
    precision: Literal["fp32", "bf16"] = "fp32",
    on_error: OnError = "report",
    device: str | torch.device | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> OnlineEvaluation:
    """Follow every video frame by frame with each checkpoint, and test it offline on the same videos.

    Videos are read one after the other, frames in order. Latency is of this process and device: a decoded picture's
    way through preparation and network, one picture at a time, decoding not counted; offline, of the clip's last
    picture, with all T frames through the network. Networks are deployed in all ways. Temperatures of ``clipwise
    calibrate`` are left out: offline there is none.

    Args:
        checkpoints: one or more, each of one class a video; causal or not.
        looks: which frames; evenly as many as the network takes when None.
        data, split, which, on_error, device: as of :func:`clipwise.evaluation.run.evaluate`.
        videos: take at most so many, drawn by ``seed``; all when None.
        seed: of which videos are taken.
        precision: in which the layers compute.
        progress: called with videos done and in all, over all checkpoints.

    Raises:
        ValueError: if a checkpoint or the data cannot be read, has several heads or sets of labels, two checkpoints are
            to be tested on different videos, no video could be read, or a rate is asked of videos without one.
        DecodeError: for a video that cannot be read, where that is to stop.
    """
    looks = looks or Looks(multiple=1)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    read: list[_Read] = []
    failures: dict[object, Failure] = {}
    names = checkpoint_names(checkpoints)
    for place, (checkpoint, name) in enumerate(zip(checkpoints, names, strict=True)):
        trained = read_checkpoint(checkpoint, which=which)
        weights_sha256 = file_sha256(trained.weights)
        if not trained.label_space.single:
            raise ValueError(f"{checkpoint}: answers several heads or sets of labels; online, one class is tested")
        folder = trained.weights.parent
        run = RunAccount.read(folder) if is_run(folder) else None
        manifest, used = videos_to_score(trained, run, data, split)
        if videos is not None:
            manifest = drawn_videos(manifest, videos, seed)
        manifest.check_files(on_error)
        if read:
            require_same_videos(read[0].manifest, manifest, checkpoints[0], checkpoint)
        account = {
            "checkpoint": {
                "weights": portable_path(trained.weights, Path.cwd()),
                "sha256": weights_sha256,
                "model": asdict(trained.config) | {"weights": None},
                "views": asdict(trained.views),
            },
            "training": {"command": run.origin["command"], "config": run.values} if run else None,
        }
        unreadable = FailureAccount(
            on_error, 1.0, len(manifest), remedy="on_error skip or report tests on the rest, and names such videos"
        )
        network = _Network(trained, device, precision)
        followed: dict[int, _Followed] = {}
        for index in range(len(manifest)):
            try:
                with manifest.open(index) as frames:
                    followed[index] = network.follow(frames, looks.of(frames, network.num_frames))
            except DecodeError as error:
                unreadable.add([failure_of(manifest, index, error)])
            if progress:
                progress(place * len(manifest) + index + 1, len(checkpoints) * len(manifest))
        failures |= {failure.video: failure for failure in unreadable}
        read.append(_Read(name, trained, run.config.training.seed if run else None, account, manifest, followed))
    first = read[0].manifest
    common = sorted(set.intersection(*(set(one.followed) for one in read)))
    if not common:
        some = "; ".join(map(str, list(failures.values())[:3]))
        raise ValueError(f"{first.source}: none of {len(first)} videos could be read for all networks: {some}")
    networks = tuple(one.of_videos(common) for one in read)
    groups = _groups(networks)
    data_told, videos_told = account_of_videos(first, common, used, failures.values())
    record = {
        "command": command_line(),
        "data": data_told,
        "frames_looked_at": {key: value for key, value in asdict(looks).items() if value is not None},
        "seed": seed,
        "precision": precision,
        "networks": [network.to_dict() for network in networks],
        "groups": [group.to_dict() for group in groups if len(group.members) > 1],
        "videos": videos_told,
        "latency": "from a decoded picture to the answer that it completes, one picture at a time",
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }
    return OnlineEvaluation(networks, groups, tuple(failures.values()), record)


class _Followed(NamedTuple):
    """What a network answers of one video."""

    scores: dict[tuple[Way, str], NDArray[np.float32]]
    """(shares, C) by way and what a video's score is."""
    seconds: dict[Way, list[float]]
    """Of each answer."""
    looked: int


@dataclass(frozen=True)
class _Read:
    """A checkpoint's answers to the videos that could be read, by their places in the manifest."""

    name: str
    trained: Checkpoint
    seed: int | None
    account: dict[str, Any]
    manifest: Manifest
    followed: dict[int, _Followed]

    def of_videos(self, indices: Sequence[int]) -> NetworkOnline:
        labels, classes = self.manifest.labels[indices], self.trained.classes
        followed = [self.followed[index] for index in indices]
        answers = []
        for way, score in followed[0].scores:
            scores = np.stack([one.scores[way, score] for one in followed], axis=1)
            answers.append(Answers(way, score, scores, tuple(video_metrics(of, labels, classes) for of in scores)))
        return NetworkOnline(
            name=self.name,
            network=self.trained.config.name,
            causal=any(way == "causal" for way in followed[0].seconds),
            seed=self.seed,
            classes=classes,
            labels=labels,
            answers=tuple(answers),
            latency={way: 1e3 * np.concatenate([one.seconds[way] for one in followed]) for way in followed[0].seconds},
            looked=np.array([one.looked for one in followed]),
            account=self.account,
        )


class _Network:
    """A trained network as a stream and as what answers clips."""

    def __init__(self, trained: Checkpoint, device: torch.device, precision: Literal["fp32", "bf16"]) -> None:
        self.stream = StreamPredictor(trained, device=device, precision=precision, temperature=1.0)
        self.num_frames = trained.config.num_frames
        self.way: Way = "causal" if self.stream.causal else "sliding"
        # As the stream has it, so that their times compare.
        self._model = deploy(
            channels_last(trained.model.to(device)),
            dtype=torch.bfloat16 if precision == "bf16" else torch.float32,
            cuda_graph=device.type == "cuda",
        )
        self._normalise = Normalise(trained.views.mean, trained.views.std).to(device)
        pictures = torch.zeros(self.num_frames, 3, self.stream.size, self.stream.size, dtype=torch.uint8)
        for _ in range(_WARM_UP):
            self._of_clips(pictures[None])
            self.stream.push(pictures[:1])

    def _of_clips(self, clips: Tensor) -> NDArray[np.float32]:
        """(N, T, 3, S, S) uint8 → (N, C) scores."""
        logits = self._model(self._normalise(clips.to(self.stream.device)))
        scores: NDArray[np.float32] = mean_softmax(logits[:, None]).cpu().numpy()
        return scores

    def follow(self, frames: Frames, looked: NDArray[np.int64]) -> _Followed:
        """Answer after each of the frames ``looked`` at, and offline after each share of the video."""
        passed = [-(-frames.num_frames * share // 100) for share in SHARES]
        clips = [segments_middle(number, self.num_frames) for number in passed]
        of_clips = set(np.concatenate(clips).tolist())
        times_looked = dict(zip(*(part.tolist() for part in np.unique(looked, return_counts=True)), strict=True))
        self.stream.reset()
        pictures: dict[int, Tensor] = {}
        online: list[NDArray[np.float32]] = []
        seconds: list[float] = []
        preparing = 0.0
        for number, picture in _in_order(frames, sorted(of_clips | set(times_looked))):
            began = perf_counter()
            prepared = self.stream.prepare(picture)
            preparing = perf_counter() - began
            if number in of_clips:
                pictures[number] = prepared
            for _ in range(times_looked.get(number, 0)):
                began = perf_counter()
                online.append(self.stream.push(prepared[None])[0])
                seconds.append(preparing + perf_counter() - began)
        stacked = [torch.stack([pictures[number] for number in clip.tolist()]) for clip in clips]
        began = perf_counter()
        whole = self._of_clips(stacked[-1][None])
        offline_seconds = preparing + perf_counter() - began
        answers = np.stack(online)
        # However short, a video is answered from its first frame on.
        seen = [max(1, int(np.searchsorted(looked, number))) for number in passed]
        return _Followed(
            {
                ("offline", "clip"): np.concatenate([self._of_clips(torch.stack(stacked[:-1])), whole]),
                (self.way, "mean over frames"): np.stack([answers[:number].mean(axis=0) for number in seen]),
                (self.way, "last frame"): answers[np.array(seen) - 1],
            },
            {"offline": [offline_seconds], self.way: seconds},
            len(looked),
        )


def _in_order(frames: Frames, numbers: Sequence[int]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Some of a video's frames, ascending, few of them in memory at a time."""
    for start in range(0, len(numbers), _READ_AT_ONCE):
        part = numbers[start : start + _READ_AT_ONCE]
        yield from zip(part, frames.read(part), strict=True)


def _groups(networks: Sequence[NetworkOnline]) -> tuple[Group, ...]:
    """Those that differ in their weights alone; what was trained apart from what was made otherwise."""
    members: dict[tuple[str, bool], list[NetworkOnline]] = {}
    for network in networks:
        settings = json.dumps(network.account["checkpoint"]["model"], sort_keys=True)
        members.setdefault((settings, network.seed is None), []).append(network)
    names = Counter((of[0].network, of[0].causal) for of in members.values())
    groups = []
    for of in members.values():
        name = of[0].network + (", causal" if of[0].causal else "")
        alike = names[of[0].network, of[0].causal] > 1  # other options or frames
        groups.append(Group(of[0].name if len(of) == 1 else f"{name} ({of[0].name} …)" if alike else name, tuple(of)))
    return tuple(groups)
