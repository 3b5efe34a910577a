"""Does a network use the order of frames, and do these videos need it? Clips in order, shuffled, reversed, one frame.

Each video is read once; its clips go through the network in several orders of the same frames:

in order     0 1 2 3 4 5 6 7
shuffled     6 0 3 7 1 5 2 4   and other draws, the same for all videos; neither in order nor reversed
reversed     7 6 5 4 3 2 1 0   a clip that could have been filmed, unlike a shuffled one
one frame    4 4 4 4 4 4 4 4   the middle one; or several, spread over the clip, each by itself

What follows from the accuracies is said by rules, not by eye (:func:`network_verdict`, :func:`data_verdict`). They rest
on :func:`compare`: the same videos in two conditions, the difference of the shares that are right, and its 95 %
interval. Where that is wide the answer is that so few videos cannot tell.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from math import factorial, sqrt
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from clipwise.checkpoint import command_line, device_name, read_checkpoint, versions
from clipwise.config import ViewsConfig
from clipwise.data.failures import Failure, OnError
from clipwise.data.manifest import Manifest
from clipwise.data.sampling import segments_middle
from clipwise.data.transforms import Normalise
from clipwise.evaluation.ensemble import require_same_videos
from clipwise.evaluation.metrics import VideoMetrics, video_metrics
from clipwise.evaluation.protocols import class_scores, network_outputs, score_views
from clipwise.evaluation.run import account_of_videos, checkpoint_names, drawn_videos, videos_to_score
from clipwise.files import file_sha256, portable_path
from clipwise.models.network import channels_last
from clipwise.training.account import RunAccount, is_run

__all__ = [
    "BLIND",
    "MARGIN",
    "ORDERS",
    "Difference",
    "NetworkProbe",
    "OrderProbe",
    "compare",
    "data_verdict",
    "frame_orders",
    "network_verdict",
    "probe_order",
]

Order = Literal["in order", "shuffled", "reversed", "one frame"]
ORDERS: tuple[Order, ...] = ("in order", "shuffled", "reversed", "one frame")
MARGIN = 5.0
"""Points. A difference that is surely smaller is called none."""
BLIND = 1e-3
"""Of the standard deviation of its logits: a network none of whose logits changes by more, whatever the order, cannot
see it. Rounding changes them by some 1e-6 of it, and a network that is not trained yet but sees the order by far more.
"""

_Z = 1.959964  # 95 %


class Difference(NamedTuple):
    """Of two shares of right answers on the same videos, in percentage points, with its 95 % interval."""

    points: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.points:.1f} points (95 %: {self.low:.1f} to {self.high:.1f})"


def compare(one: NDArray[np.floating[Any]], other: NDArray[np.floating[Any]]) -> Difference:
    """(V,) and (V,) how far each video is right, 0 to 1, in two conditions → one minus the other.

    The interval is Bonett and Price's for paired proportions (Journal of Educational and Behavioral Statistics 37,
    2012): Wald's after adding one video to either kind of disagreement. It stays honest where few videos disagree, or
    none: ten videos of which none changes leave ± 23 points. Shares between 0 and 1, of several draws, count as such.

    Raises ValueError unless both are of the same videos, at least one.
    """
    if one.shape != other.shape or one.ndim != 1 or not len(one):
        raise ValueError(f"two conditions of the same videos are compared; got {one.shape} and {other.shape}")
    number = len(one) + 2
    difference = np.asarray(one, np.float64) - other
    mean = float(difference.sum()) / number
    spread = _Z * sqrt(((float((difference**2).sum()) + 2) / number - mean**2) / number)
    points = float(difference.mean())
    # The interval's middle is drawn towards 0, never so far that what was found lies outside.
    low, high = min(mean - spread, points), max(mean + spread, points)
    return Difference(100 * points, 100 * max(low, -1.0), 100 * min(high, 1.0))


def frame_orders(num_frames: int, *, draws: int = 3, stills: int = 1, seed: int = 0) -> dict[Order, NDArray[np.int64]]:
    """(K, T) positions in the clip for each of :data:`ORDERS`: 1, ``draws``, 1 and ``stills`` of them.

    The shuffles differ from each other, from the clip and from its reversal; of T = 3 there are only four, of T = 2
    none but the reversal, which then stands for them. Raises ValueError for clips of one frame, and for no draw.
    """
    if num_frames < 2:
        raise ValueError(f"the network takes {num_frames} frame: there is no order to ask about")
    if draws < 1 or not 1 <= stills <= num_frames:
        raise ValueError(f"draws must be at least 1 and stills 1 to {num_frames}; got {draws} and {stills}")
    order = np.arange(num_frames)
    rng = np.random.default_rng([seed, num_frames])
    taken = {tuple(order), tuple(order[::-1])}
    shuffled: list[NDArray[np.int64]] = []
    there_are = factorial(num_frames) - 2 if num_frames < 8 else draws
    while len(shuffled) < min(draws, there_are):
        drawn = rng.permutation(num_frames)
        if tuple(drawn) not in taken:
            taken.add(tuple(drawn))
            shuffled.append(drawn)
    return {
        "in order": order[None],
        "shuffled": np.stack(shuffled) if shuffled else order[None, ::-1].copy(),
        "reversed": order[None, ::-1].copy(),
        "one frame": np.repeat(segments_middle(num_frames, stills)[:, None], num_frames, axis=1),
    }


@dataclass(frozen=True)
class NetworkProbe:
    """What one network answers in each order."""

    name: str
    """Unique among those that are compared."""
    network: str
    """The registered name."""
    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    """(V,)"""
    scores: dict[Order, NDArray[np.float32]]
    """(K, V, C) of each draw."""
    change: float
    """The largest change of any logit when frames are shuffled or reversed, of the standard deviation of all."""

    @property
    def videos(self) -> int:
        """V"""
        return len(self.labels)

    def predicted(self, order: Order) -> NDArray[np.int64]:
        """(K, V) the class that scores highest; of equal ones the first."""
        predicted: NDArray[np.int64] = self.scores[order].argmax(axis=2)
        return predicted

    def right(self, order: Order) -> NDArray[np.float64]:
        """(V,) the share of draws in which a video is right."""
        right: NDArray[np.float64] = (self.predicted(order) == self.labels).mean(axis=0, dtype=np.float64)
        return right

    def metrics(self, order: Order) -> list[VideoMetrics]:
        """Of each draw."""
        return [video_metrics(scores, self.labels, self.classes) for scores in self.scores[order]]

    def top1(self, order: Order) -> float:
        """Percent, the mean over the draws; so is the next."""
        return 100 * float(self.right(order).mean())

    def mean_class_accuracy(self, order: Order) -> float:
        return float(np.mean([metrics.mean_class_accuracy for metrics in self.metrics(order)]))

    def class_accuracy(self, order: Order) -> dict[str, float]:
        """Percent of each class that has videos, the mean over the draws."""
        right = self.right(order)
        return {
            self.classes[label]: 100 * float(right[self.labels == label].mean()) for label in np.unique(self.labels)
        }

    def taken_for(self) -> dict[str, tuple[str, float] | None]:
        """For each class that has videos, the other class that most of them are taken for when reversed, and the
        percentage; None where all stay."""
        return {
            row.name: (row.confused_with, 100 * row.confused_videos / row.videos) if row.confused_with else None
            for row in self.metrics("reversed")[0].per_class
            if row.videos
        }

    @property
    def blind(self) -> bool:
        """Whether it cannot see the order."""
        return self.change <= BLIND

    @property
    def learnt(self) -> bool:
        """Whether it is surely better than always giving the class that most of these videos have."""
        constant = self.labels == np.bincount(self.labels).argmax()
        return compare(self.right("in order"), constant.astype(np.float64)).low > 0

    def loss(self, order: Order) -> Difference:
        """By how much the clip in order is better."""
        return compare(self.right("in order"), self.right(order))


NetworkVerdict = Literal["blind", "uses", "unused", "open"]
DataVerdict = Literal["needs", "probably", "no", "open", "unknown"]


def network_verdict(probe: NetworkProbe) -> tuple[NetworkVerdict, str]:
    """Whether a network uses time, and the sentence that says so. The first rule that applies:

    1. ``blind``: its logits stay the same (:data:`BLIND`) when frames are shuffled or reversed.
    2. ``open``: it is not surely better than giving one and the same class always.
    3. ``uses``: shuffling or reversing surely costs something (the interval lies above 0).
    4. ``unused``: both surely cost less than :data:`MARGIN`.
    5. ``open``.
    """
    losses = (probe.loss("shuffled"), probe.loss("reversed"))
    costs = f"shuffling costs {losses[0]}, reversing {losses[1]}"
    if probe.blind:
        return "blind", f"{probe.name} cannot see the order of frames: its answers are the same in any"
    if not probe.learnt:
        return "open", (
            f"whether {probe.name} uses time cannot be told: it is right on {probe.top1('in order'):.1f} % of "
            f"{probe.videos} videos, which is not surely more than one and the same answer would be"
        )
    if any(loss.low > 0 for loss in losses):
        return "uses", f"{probe.name} uses time: {costs}"
    if all(loss.high < MARGIN for loss in losses):
        return "unused", f"{probe.name} does not use time here, though it sees the order: {costs}"
    return "open", f"whether {probe.name} uses time cannot be told from {probe.videos} videos: {costs}"


def data_verdict(probes: Sequence[NetworkProbe]) -> tuple[DataVerdict, str]:
    """Whether these videos need time, as far as these networks show it, and the sentence that says so.

    Of the networks that see the order and have learnt something, the one that is best in order counts.

    1. ``unknown``: there is none.
    2. Beside a network that cannot see the order (the best such one): ``needs`` if the first is surely better and uses
       time; ``no`` if it is surely less than :data:`MARGIN` better; else ``open``.
    3. Alone: ``no`` if it is surely less than :data:`MARGIN` better in order than shuffled, or than on one frame, for
       that much can be had without time; ``probably`` if it is surely better than on both; else ``open``. Never
       ``needs``: a network that was trained in order is at a loss with shuffled frames even where one trained without
       would do well.
    """
    seeing = [probe for probe in probes if not probe.blind and probe.learnt]
    blind = [probe for probe in probes if probe.blind]
    if not seeing:
        lack = (
            "sees the order of frames. Train one with temporal modules (such as --set model.name=stm_resnet50)"
            if len(blind) == len(probes)
            else "that sees the order of frames is surely better than one and the same answer"
        )
        return "unknown", f"Whether your data needs time cannot be told: no network here {lack}"
    best = max(seeing, key=lambda probe: probe.top1("in order"))
    videos = f"{best.videos} videos"
    if blind:
        other = max(blind, key=lambda probe: probe.top1("in order"))
        gain = compare(best.right("in order"), other.right("in order"))
        said = (
            f"{best.name} is right on {best.top1('in order'):.1f} % of {videos}, {other.name}, which cannot see the "
            f"order, on {other.top1('in order'):.1f} %: a difference of {gain}"
        )
        if gain.high < MARGIN:
            return "no", f"Your data does not need time: {said}"
        if gain.low > 0 and network_verdict(best)[0] == "uses":
            return "needs", f"Your data needs time: {said}"
        if gain.low > 0:
            return "open", f"Whether your data needs time is open: {said}; but that gain is not shown to be the order's"
        return "open", f"Whether your data needs time cannot be told from {videos}: {said}"
    losses = (best.loss("shuffled"), best.loss("one frame"))
    said = f"shuffling costs {best.name} {losses[0]}, showing one frame alone {losses[1]}"
    if any(loss.high < MARGIN for loss in losses):
        return "no", f"Your data does not need time: {said}"
    if all(loss.low > 0 for loss in losses):
        return "probably", (
            f"Your data probably needs time: {said}. To be sure, train a network without temporal modules on it (such "
            "as --set model.name=tsn_resnet50) and give both"
        )
    return "open", f"Whether your data needs time cannot be told from {videos}: {said}"


@dataclass(frozen=True)
class OrderProbe:
    """One or several networks on the same videos."""

    networks: tuple[NetworkProbe, ...]
    verdict: DataVerdict
    conclusion: str
    """What the verdict rests on, in words."""
    unreadable: tuple[Failure, ...]
    record: dict[str, Any]
    """For JSON."""


def probe_order(
    checkpoints: Sequence[str | Path],
    data: str | Path | None = None,
    *,
    split: str | None = None,
    which: Literal["best", "last"] = "best",
    views: Sequence[ViewsConfig] | None = None,
    draws: int = 3,
    stills: int = 1,
    seed: int = 0,
    videos: int | None = None,
    precision: Literal["fp32", "bf16"] = "fp32",
    batch_size: int = 8,
    workers: int = 2,
    on_error: OnError = "report",
    device: str | torch.device | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> OrderProbe:
    """Test checkpoints on clips in order, shuffled, reversed and of one frame, with one reading of each video.

    Args:
        checkpoints: one or more, each of one class a video.
        data, split, which, workers, on_error, device: as of :func:`clipwise.evaluation.run.evaluate`.
        batch_size: clips through the network at a time, in each order; few, for a CPU pays for the memory of many.
        views: one for each checkpoint; their own when None.
        draws: shuffles; accuracies are their mean.
        stills: frames of the clip that are shown alone, one after the other; 1 is the middle one.
        seed: of the shuffles, and of which videos are taken.
        videos: take at most so many, drawn by the seed; all when None.
        precision: bf16 has too few digits for a network that sees hardly any difference between two orders.
        progress: called with videos done and in all, over all checkpoints.

    Raises:
        ValueError: if a checkpoint or the data cannot be read, has several heads or sets of labels, takes one frame, or
            two checkpoints are to be tested on different videos; and as :func:`frame_orders`.
        DecodeError, ChildProcessError: as :func:`clipwise.evaluation.protocols.evaluate_model`.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    read: list[tuple[NDArray[np.int64], NetworkProbe]] = []
    records: list[dict[str, Any]] = []
    failures: dict[object, Failure] = {}
    first: Manifest | None = None
    names = checkpoint_names(checkpoints)
    for place, checkpoint in enumerate(checkpoints):
        trained = read_checkpoint(checkpoint, which=which)
        weights_sha256 = file_sha256(trained.weights)
        if not trained.label_space.single:
            raise ValueError(
                f"{checkpoint}: answers several heads or sets of labels; train one head (data.head) to ask about order"
            )
        num_frames = trained.config.num_frames
        orders = frame_orders(num_frames, draws=draws, stills=stills, seed=seed)
        folder = trained.weights.parent
        run = RunAccount.read(folder) if is_run(folder) else None
        manifest, used = videos_to_score(trained, run, data, split)
        if videos is not None:
            manifest = drawn_videos(manifest, videos, seed)
        manifest.check_files(on_error)
        if first is None:
            first = manifest
        require_same_videos(first, manifest, checkpoints[0], checkpoint)
        own_views = views[place] if views else trained.views
        model = channels_last(trained.model.to(device))
        normalise = Normalise(own_views.mean, own_views.std).to(device)
        positions = torch.from_numpy(np.concatenate(list(orders.values()))).to(device)

        def of_all(done: int, total: int, before: int = place) -> None:
            if progress:
                progress(before * total + done, len(checkpoints) * total)

        found = network_outputs(
            model,
            manifest,
            own_views,
            partial(_in_orders, model, normalise=normalise, positions=positions, precision=precision),
            num_frames=num_frames,
            batch_size=batch_size,
            workers=workers,
            on_error=on_error,
            progress=of_all,
        )
        failures |= {failure.video: failure for failure in found.unreadable}
        by_order = dict(zip(orders, found.outputs.split([len(of) for of in orders.values()], dim=2), strict=True))
        probe = NetworkProbe(
            names[place],
            trained.config.name,
            trained.classes,
            manifest.labels[found.indices],
            {
                order: np.stack(
                    [score_views(draw, own_views, manifest.label_space)[1].numpy() for draw in logits.unbind(2)]
                )
                for order, logits in by_order.items()
            },
            largest_change(by_order["in order"], by_order["shuffled"], by_order["reversed"]),
        )
        read.append((found.indices, probe))
        records.append(
            {
                "name": names[place],
                "checkpoint": {
                    "weights": portable_path(trained.weights, Path.cwd()),
                    "sha256": weights_sha256,
                    "model": asdict(trained.config) | {"weights": None},
                },
                "protocol": {"num_frames": num_frames, "views": asdict(own_views), "precision": precision},
                "orders": {order: of.tolist() for order, of in orders.items()},
            }
        )
    assert first is not None
    common = sorted(set.intersection(*(set(indices.tolist()) for indices, _ in read)))
    if not common:
        raise ValueError(f"{first.source}: no video could be read for all {len(read)} networks")
    chosen = np.array(common)
    probes = tuple(_only(probe, np.isin(indices, chosen)) for indices, probe in read)
    verdict, conclusion = data_verdict(probes)
    data_told, videos_told = account_of_videos(first, common, used, failures.values())
    record = {
        "command": command_line(),
        "data": data_told,
        "seed": seed,
        "margin": MARGIN,
        "data_verdict": verdict,
        "conclusion": conclusion,
        "networks": [one | _figures(probe) for one, probe in zip(records, probes, strict=True)],
        "videos": videos_told,
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }
    return OrderProbe(probes, verdict, conclusion, tuple(failures.values()), record)


def _in_orders(
    model: nn.Module, clips: Sequence[Tensor], *, normalise: nn.Module, positions: Tensor, precision: str
) -> Tensor:
    """uint8 parts (n, T, 3, H, W) → (N, K, C) logits of each clip in K orders of its frames, ``positions`` (K, T)."""
    parts = [part.to(positions.device) for part in clips]
    orders = [
        class_scores(model, [part[:, one] for part in parts], normalise, precision=precision) for one in positions
    ]
    return torch.stack(orders, dim=1)


def largest_change(ordered: Tensor, *others: Tensor) -> float:
    """(V, views, 1, C) and any (V, views, K, C) logits → the largest change of one of them, of the standard deviation
    of all those in order."""
    scale = float(ordered.std()) if ordered.numel() > 1 else 0.0
    change = max(float((other - ordered).abs().max()) for other in others)
    return change / scale if scale else change


def _only(probe: NetworkProbe, chosen: NDArray[np.bool_]) -> NetworkProbe:
    """Of some of its videos."""
    scores = {order: values[:, chosen] for order, values in probe.scores.items()}
    return replace(probe, labels=probe.labels[chosen], scores=scores)


def _figures(probe: NetworkProbe) -> dict[str, Any]:
    verdict, conclusion = network_verdict(probe)
    accuracies = {order: probe.class_accuracy(order) for order in ORDERS}
    counts = np.bincount(probe.labels, minlength=len(probe.classes))
    return {
        "verdict": verdict,
        "conclusion": conclusion,
        "change": probe.change,
        "figures": {
            order: {
                "top1": probe.top1(order),
                "mean_class_accuracy": probe.mean_class_accuracy(order),
                "top1_of_each_draw": [metrics.top1 for metrics in probe.metrics(order)],
            }
            for order in ORDERS
        },
        "losses": {order: probe.loss(order)._asdict() for order in ORDERS[1:]},
        "per_class": [
            {
                "class": name,
                "videos": int(counts[probe.classes.index(name)]),
                **{order: accuracies[order][name] for order in ORDERS},
                "reversed_taken_for": None if other is None else {"class": other[0], "percent": other[1]},
            }
            for name, other in probe.taken_for().items()
        ],
        "predictions": {
            order: [[probe.classes[label] for label in draw] for draw in probe.predicted(order).tolist()]
            for order in ORDERS
        },
    }
