"""Scores → figures: top-1, top-5, mean-class accuracy, the table of classes and the confusion matrix.

Of several heads these for each, and how often all heads are right together. Of label sets average precision.

One function serves both levels: given the scores of videos (the views' mean of softmax) it yields video-level
figures, given those of single clips, clip-level ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from clipwise.data.labels import LabelSpace


@dataclass(frozen=True)
class ClassAccuracy:
    """One row of the table of classes."""

    name: str
    videos: int
    accuracy: float | None  # percent of the class's videos; None where it has none
    confused_with: str | None  # the class most of its wrong videos were given to; None where none was wrong
    confused_videos: int  # how many were


@dataclass(frozen=True)
class VideoMetrics:
    """Figures over a set of videos, in percent."""

    videos: int
    top1: float
    top5: float
    mean_class_accuracy: float
    per_class: tuple[ClassAccuracy, ...]
    confusion: tuple[tuple[int, ...], ...]  # confusion[label][predicted], in videos

    @property
    def figures(self) -> dict[str, float]:
        """The numbers to follow in a log."""
        return {"top1": self.top1, "top5": self.top5, "mean_class_accuracy": self.mean_class_accuracy}

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain numbers, strings, lists and dicts, ready for JSON."""
        return {
            "videos": self.videos,
            "top1": self.top1,
            "top5": self.top5,
            "mean_class_accuracy": self.mean_class_accuracy,
            "per_class": [
                {
                    "class": row.name,
                    "videos": row.videos,
                    "accuracy": row.accuracy,
                    "confused_with": row.confused_with,
                    "confused_videos": row.confused_videos,
                }
                for row in self.per_class
            ],
            "confusion": [list(row) for row in self.confusion],
        }


@dataclass(frozen=True)
class HeadMetrics:
    """Figures of several heads over a set of videos, in percent."""

    videos: int
    heads: dict[str, VideoMetrics]
    joint_top1: float
    """All heads right. Of verb and noun this is EPIC-KITCHENS' action."""
    joint_top5: float
    """The right combination among the five of the greatest product of the heads' scores."""

    def _mean(self, figure: str) -> float:
        return float(np.mean([getattr(metrics, figure) for metrics in self.heads.values()]))

    @property
    def top1(self) -> float:
        """The heads' mean, as are the next two."""
        return self._mean("top1")

    @property
    def top5(self) -> float:
        return self._mean("top5")

    @property
    def mean_class_accuracy(self) -> float:
        return self._mean("mean_class_accuracy")

    @property
    def figures(self) -> dict[str, float]:
        """The numbers to follow in a log: the heads' means, each head's (``verb.top1``), and the joint ones."""
        means = {name: self._mean(name) for name in ("top1", "top5", "mean_class_accuracy")}
        each = {f"{head}.{name}": value for head, own in self.heads.items() for name, value in own.figures.items()}
        return means | each | {"joint.top1": self.joint_top1, "joint.top5": self.joint_top5}

    def to_dict(self) -> dict[str, Any]:
        """As of ``VideoMetrics``, with each head's under ``heads``."""
        return {
            "videos": self.videos,
            **self.figures,
            "heads": {head: metrics.to_dict() for head, metrics in self.heads.items()},
        }


@dataclass(frozen=True)
class ClassPrecision:
    """One row of the table of classes, where a video has a set of labels."""

    name: str
    videos: int  # that show it
    average_precision: float | None  # percent; None where no video shows it


@dataclass(frozen=True)
class LabelSetMetrics:
    """Figures over a set of videos with sets of labels, in percent."""

    videos: int
    mean_average_precision: float
    """Over the classes that occur."""
    per_class: tuple[ClassPrecision, ...]

    @property
    def figures(self) -> dict[str, float]:
        """The number to follow in a log."""
        return {"mean_average_precision": self.mean_average_precision}

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain numbers, strings, lists and dicts, ready for JSON."""
        return {
            "videos": self.videos,
            **self.figures,
            "per_class": [
                {"class": row.name, "videos": row.videos, "average_precision": row.average_precision}
                for row in self.per_class
            ],
        }


Metrics = VideoMetrics | HeadMetrics | LabelSetMetrics


def mean_scores(logits: Tensor, space: LabelSpace) -> Tensor:
    """(…,views,C) logits → (…,C) scores: the mean over the views of each head's softmax, or of the sigmoid.

    Raises ValueError as `mean_softmax` does.
    """
    if space.multi_label:
        return _checked_logits(logits).sigmoid().mean(-2)
    if len(space.heads) == 1:
        return mean_softmax(logits)
    return torch.cat([mean_softmax(part) for part in logits.split(space.sizes, dim=-1)], dim=-1)


def mean_softmax(logits: Tensor) -> Tensor:
    """(…,views,C) logits → (…,C) scores: the mean over the views of each view's softmax, at least float32.

    Raises ValueError for fewer than two dimensions, no view, or logits that are not finite.
    """
    return _checked_logits(logits).softmax(-1).mean(-2)


def _checked_logits(logits: Tensor) -> Tensor:
    if logits.ndim < 2 or 0 in logits.shape:
        raise ValueError(f"logits must be (…, views, C), none of them 0; got {tuple(logits.shape)}")
    if not logits.isfinite().all():
        raise ValueError(_not_finite("logits", logits))
    if logits.dtype not in (torch.float32, torch.float64):
        logits = logits.float()
    return logits


def measure(scores: Tensor | NDArray[np.floating], labels: Tensor | ArrayLike, space: LabelSpace) -> Metrics:
    """(V,C) scores and the labels as a manifest has them → the figures of V videos, by kind of label.

    Raises ValueError as the function of each kind does.
    """
    if space.multi_label:
        return label_set_metrics(scores, labels, space.classes)
    if len(space.heads) == 1:
        return video_metrics(scores, labels, space.classes)
    return head_metrics(scores, labels, space)


def head_metrics(scores: Tensor | NDArray[np.floating], labels: Tensor | ArrayLike, space: LabelSpace) -> HeadMetrics:
    """(V,C) scores, each head's beside the one before, and (V,heads) labels → the figures of V videos.

    A combination of classes scores the product of its heads' scores, over all combinations: the action score of
    EPIC-KITCHENS (Damen et al. 2018; `compute_action_scores` of its library, which looks at each head's 100 best).
    Of equal products the one whose first heads' classes rank higher counts as the higher one.

    Raises ValueError as `video_metrics` does.
    """
    score = torch.as_tensor(scores).detach().cpu()
    label = torch.as_tensor(labels).detach().cpu()
    if score.ndim != 2 or score.shape[1] != sum(space.sizes) or label.shape != (len(score), len(space.heads)):
        raise ValueError(
            f"scores must be (videos, {sum(space.sizes)}) and labels (videos, {len(space.heads)}); got "
            f"{tuple(score.shape)} and {tuple(label.shape)}"
        )
    parts = score.split(space.sizes, dim=1)
    heads = {
        head.name: video_metrics(part, label[:, number], head.classes)
        for number, (head, part) in enumerate(zip(space.heads, parts, strict=True))
    }
    # The five best combinations of some heads are made of each one's five best: a better class in any place gives a
    # product that is no smaller.
    best = torch.ones(len(score), 1, dtype=torch.float64)
    right = torch.ones(len(score), 1, dtype=torch.bool)
    for number, part in enumerate(parts):
        ranked = part.argsort(dim=1, descending=True, stable=True)[:, :5]
        product = (best[:, :, None] * part.gather(1, ranked)[:, None]).flatten(1)
        hit = (right[:, :, None] & (ranked == label[:, number : number + 1])[:, None]).flatten(1)
        order = product.argsort(dim=1, descending=True, stable=True)[:, :5]
        best, right = product.gather(1, order), hit.gather(1, order)
    return HeadMetrics(
        videos=len(score),
        heads=heads,
        joint_top1=_percent(int(right[:, 0].sum()), len(score)),
        joint_top5=_percent(int(right.any(1).sum()), len(score)),
    )


def label_set_metrics(
    scores: Tensor | NDArray[np.floating], labels: Tensor | ArrayLike, classes: Sequence[str]
) -> LabelSetMetrics:
    """(V,C) scores in [0,1] and (V,C) bool, which classes hold → the figures of V videos.

    A class's average precision is the mean, over the videos that show it, of the precision among all videos that score
    at least as high; videos of equal score count as one threshold. The mean is over the classes that occur.

    Raises ValueError where shapes disagree, no class occurs, or a score is not finite or outside [0,1].
    """
    score = torch.as_tensor(scores).detach().cpu()
    label = torch.as_tensor(labels).detach().cpu()
    if score.ndim != 2 or label.shape != score.shape or score.shape[1] != len(classes) or label.dtype != torch.bool:
        raise ValueError(
            "scores must be (videos, classes) and labels the same, of bool; got "
            f"{tuple(score.shape)} and {tuple(label.shape)} of {label.dtype} for {len(classes)} classes"
        )
    if not score.isfinite().all():
        raise ValueError(_not_finite("scores", score))
    if ((score < 0) | (score > 1)).any():
        raise ValueError(f"scores must lie in [0, 1]; got {score.min().item():g} to {score.max().item():g}")
    videos = label.sum(0).tolist()
    if not any(videos):
        raise ValueError(f"none of {len(label)} videos has a label, so there is nothing to measure")
    from torchmetrics.functional.classification import binary_average_precision  # a second's import

    table = tuple(
        ClassPrecision(
            name,
            count,
            # One class after the other: the function for all at once warns of each that does not occur.
            100 * float(binary_average_precision(score[:, i].double(), label[:, i].long(), validate_args=False))
            if count
            else None,
        )
        for i, (name, count) in enumerate(zip(classes, videos, strict=True))
    )
    present = [row.average_precision for row in table if row.average_precision is not None]
    return LabelSetMetrics(len(label), sum(present) / len(present), table)


def video_metrics(
    scores: Tensor | NDArray[np.floating], labels: Tensor | ArrayLike, classes: Sequence[str]
) -> VideoMetrics:
    """(V,C) scores and (V,) labels, for C class names → the figures of V videos.

    Of equal scores the class that comes first in `classes` counts as the higher one, so a network that cannot
    decide gains nothing. Top-5 is top-C where there are fewer than five classes. Mean-class accuracy is the
    mean, over the classes that have videos, of the share of each one's videos that are right.

    Raises ValueError where shapes disagree, there is no video, a score is not finite or a label is no class.
    """
    score = torch.as_tensor(scores).detach().cpu()
    label = torch.as_tensor(labels).detach().cpu()
    if score.ndim != 2 or label.ndim != 1 or len(score) != len(label) or score.shape[1] != len(classes):
        raise ValueError(
            "scores must be (videos, classes) and labels (videos,); got "
            f"{tuple(score.shape)} and {tuple(label.shape)} for {len(classes)} classes"
        )
    if score.numel() == 0:
        raise ValueError(f"there is nothing to measure: got scores of shape {tuple(score.shape)}")
    if not score.isfinite().all():
        raise ValueError(_not_finite("scores", score))
    if label.is_floating_point() or label.is_complex() or label.dtype == torch.bool:
        raise ValueError(f"labels must be integers, places in the list of classes; got {label.dtype}")
    label = label.long()
    outside = (label < 0) | (label >= len(classes))
    if outside.any():
        raise ValueError(f"labels must be 0 to {len(classes) - 1}; got {label[outside][0].item()}")

    ranked = score.argsort(dim=1, descending=True, stable=True)
    hit = ranked == label[:, None]
    # torchmetrics' macro average gives 0 to a class that has no videos but was predicted, so means are taken
    # here.
    from torchmetrics.functional.classification import multiclass_confusion_matrix  # a second's import

    confusion: list[list[int]] = multiclass_confusion_matrix(
        ranked[:, 0], label, num_classes=len(classes), validate_args=False
    ).tolist()
    table = tuple(_class_accuracy(i, row, classes) for i, row in enumerate(confusion))
    present = [row.accuracy for row in table if row.accuracy is not None]
    return VideoMetrics(
        videos=len(label),
        top1=_percent(int(hit[:, :1].sum()), len(label)),
        top5=_percent(int(hit[:, :5].sum()), len(label)),
        mean_class_accuracy=sum(present) / len(present),
        per_class=table,
        confusion=tuple(map(tuple, confusion)),
    )


def _class_accuracy(label: int, predicted: Sequence[int], classes: Sequence[str]) -> ClassAccuracy:
    videos = sum(predicted)
    wrong = [0 if other == label else count for other, count in enumerate(predicted)]
    most = max(wrong)
    return ClassAccuracy(
        name=classes[label],
        videos=videos,
        accuracy=_percent(predicted[label], videos) if videos else None,
        confused_with=classes[wrong.index(most)] if most else None,
        confused_videos=most,
    )


def _percent(part: int, whole: int) -> float:
    return 100 * part / whole


def _not_finite(name: str, values: Tensor) -> str:
    bad = ~values.isfinite()
    first = tuple(bad.nonzero()[0].tolist())
    return (
        f"{name} must be finite; {int(bad.sum())} of {values.numel()} are not, the first at {first}: "
        f"{values[first].item()}. Networks that have diverged give such values"
    )
