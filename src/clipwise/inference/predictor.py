"""From a video to the names of what it shows."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipwise.checkpoint import Checkpoint, read_checkpoint
from clipwise.config import ViewsConfig
from clipwise.data.dataset import identity_of, read_views
from clipwise.data.decode import DecodeError, Source, open_frames
from clipwise.data.transforms import Normalise
from clipwise.evaluation.protocols import class_scores, score_views
from clipwise.models.network import channels_last

__all__ = ["HeadPrediction", "Prediction", "Predictor", "load"]

THRESHOLD = 0.5
"""Of sets of labels: from this score on, a class holds."""


@dataclass(frozen=True)
class HeadPrediction:
    """What one head says of a video."""

    top: tuple[tuple[str, float], ...]
    """Its likeliest classes with their scores, best first."""
    scores: NDArray[np.float32]
    """(C,) in the order of the head's classes."""

    @property
    def label(self) -> str:
        """The likeliest class."""
        return self.top[0][0]


@dataclass(frozen=True)
class Prediction:
    """What a video shows, by the network's opinion."""

    source: str
    """The video's path, ``<bytes>``, ``<file>`` or ``<array>``."""
    top: tuple[tuple[str, float], ...]
    """The likeliest classes with their scores, best first; all classes' scores add up to 1.

    Of several heads the likeliest combinations, ``take + cup``, with the product of their scores; ``heads`` has each
    for itself. Where a video has a set of labels, each score is the probability that the class holds.
    """
    labels: tuple[str, ...]
    """What holds: the likeliest class; one of each head; or all classes that score at least the threshold, best first,
    which may be none."""
    scores: NDArray[np.float32]
    """(C,) in the order of the predictor's classes."""
    num_frames: int
    """Frames of the video; with fewer than the network takes, some were repeated."""
    heads: dict[str, HeadPrediction]
    """Of each head by its name; the only head is ``label`` unless it was given another."""

    @property
    def label(self) -> str:
        """The likeliest class, or combination."""
        return self.top[0][0]


class Predictor:
    """A trained network with its class list and preprocessing; made by :func:`load`.

    Args:
        checkpoint: what was trained.
        device: where it runs, ``"cpu"`` or ``"cuda"``; the GPU when None and there is one.
        precision: ``fp32`` or ``bf16`` (autocast).
        views: another testing protocol than the checkpoint's.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        device: str | torch.device | None = None,
        precision: Literal["fp32", "bf16"] = "fp32",
        views: ViewsConfig | None = None,
    ) -> None:
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = channels_last(checkpoint.model.to(self.device))
        self.label_space = checkpoint.label_space
        self.classes = checkpoint.classes
        self.views = views or checkpoint.views
        self.num_frames = checkpoint.config.num_frames
        self.precision = precision
        self._normalise = Normalise(self.views.mean, self.views.std).to(self.device)

    @overload
    def __call__(self, source: list[Source], *, top_k: int = 5, threshold: float | None = None) -> list[Prediction]: ...
    @overload
    def __call__(self, source: Source, *, top_k: int = 5, threshold: float | None = None) -> Prediction: ...
    def __call__(
        self, source: Source | list[Source], *, top_k: int = 5, threshold: float | None = None
    ) -> Prediction | list[Prediction]:
        """Classify one video, or a list of them.

        Args:
            source: a path, the bytes of a video file, an open binary file, an array (T, H, W, 3) uint8 of RGB frames,
                or a list of these.
            top_k: how many classes ``top`` names.
            threshold: from which score on a class holds, where a video has a set of labels; 0.5 when None.

        Raises:
            DecodeError: for a video that cannot be read; :meth:`each` goes on with the rest instead.
            TypeError, ValueError: for a source of another kind or shape, or a threshold where none is used.
        """
        if isinstance(source, list):
            return [self._one(one, top_k, threshold) for one in source]
        return self._one(source, top_k, threshold)

    def each(
        self, sources: Iterable[Source], *, top_k: int = 5, threshold: float | None = None
    ) -> Iterator[Prediction | DecodeError]:
        """Classify videos one after the other; where one cannot be read, its error stands in its place."""
        for source in sources:
            try:
                yield self._one(source, top_k, threshold)
            except DecodeError as error:
                yield error

    def _one(self, source: Source, top_k: int, threshold: float | None) -> Prediction:
        if top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {top_k}")
        if threshold is not None and not self.label_space.multi_label:
            raise ValueError(f"threshold is for sets of labels, and this network names one class; got {threshold}")
        if threshold is not None and not 0 <= threshold <= 1:
            raise ValueError(f"threshold must lie in [0, 1], got {threshold}")
        identity = identity_of(source) if isinstance(source, (str, os.PathLike)) else ""
        with open_frames(source) as frames:
            views = read_views(frames, self.num_frames, self.views, identity=identity)
            name, available = frames.path, frames.num_frames
        logits = class_scores(self.model, [views], self._normalise, precision=self.precision)
        scores = score_views(logits[None], self.views, self.label_space)[1][0].cpu()
        heads = {
            head.name: HeadPrediction(_best(part, head.classes, top_k), part.numpy())
            for head, part in zip(self.label_space.heads, scores.split(self.label_space.sizes), strict=True)
        }
        if self.label_space.multi_label:
            holds = THRESHOLD if threshold is None else threshold
            labels = tuple(name for name, score in _best(scores, self.classes, len(self.classes)) if score >= holds)
        else:
            labels = tuple(head.label for head in heads.values())
        return Prediction(
            source=name,
            top=_combined([head.top for head in heads.values()], top_k),
            labels=labels,
            scores=scores.numpy(),
            num_frames=available,
            heads=heads,
        )


def _best(scores: Tensor, classes: Sequence[str], top_k: int) -> tuple[tuple[str, float], ...]:
    # Stable: of equal scores the first class goes before, as in the metrics.
    best = scores.argsort(descending=True, stable=True)[:top_k].tolist()
    return tuple((classes[index], scores[index].item()) for index in best)


def _combined(tops: list[tuple[tuple[str, float], ...]], top_k: int) -> tuple[tuple[str, float], ...]:
    """The best combinations of one class of each head; they are made of each head's best."""
    best = tops[0]
    for top in tops[1:]:
        pairs = [(f"{name} + {other}", score * factor) for name, score in best for other, factor in top]
        best = tuple(sorted(pairs, key=lambda pair: -pair[1])[:top_k])
    return best


def load(
    path: str | Path,
    *,
    which: Literal["best", "last"] = "best",
    device: str | torch.device | None = None,
    precision: Literal["fp32", "bf16"] = "fp32",
    views: ViewsConfig | None = None,
) -> Predictor:
    """Load a folder that ``clipwise train`` wrote.

    Args:
        path: the folder, or one weight file inside it.
        which: ``best`` or ``last`` weights.
        device, precision, views: see :class:`Predictor`.

    Raises:
        ValueError: if it is no such folder or its parts do not belong together.
    """
    return Predictor(read_checkpoint(path, which=which), device=device, precision=precision, views=views)
