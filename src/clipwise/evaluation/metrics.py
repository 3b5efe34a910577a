"""Scores → figures: top-1, top-5, mean-class accuracy, the table of classes and the confusion matrix.

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


def mean_softmax(logits: Tensor) -> Tensor:
    """(…,views,C) logits → (…,C) scores: the mean over the views of each view's softmax, at least float32.

    Raises ValueError for fewer than two dimensions, no view, or logits that are not finite.
    """
    if logits.ndim < 2 or 0 in logits.shape:
        raise ValueError(f"logits must be (…, views, C), none of them 0; got {tuple(logits.shape)}")
    if not logits.isfinite().all():
        raise ValueError(_not_finite("logits", logits))
    if logits.dtype not in (torch.float32, torch.float64):
        logits = logits.float()
    return logits.softmax(-1).mean(-2)


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
