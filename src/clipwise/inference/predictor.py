"""From a video to the names of what it shows."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, overload

import numpy as np
import torch
from numpy.typing import NDArray

from clipwise.checkpoint import Checkpoint, read_checkpoint
from clipwise.config import ViewsConfig
from clipwise.data.dataset import identity_of, read_views
from clipwise.data.decode import DecodeError, Source, open_frames
from clipwise.data.transforms import Normalise
from clipwise.evaluation.metrics import mean_softmax
from clipwise.evaluation.protocols import class_scores
from clipwise.models.network import channels_last

__all__ = ["Prediction", "Predictor", "load"]


@dataclass(frozen=True)
class Prediction:
    """What a video shows, by the network's opinion."""

    source: str
    """The video's path, ``<bytes>``, ``<file>`` or ``<array>``."""
    top: tuple[tuple[str, float], ...]
    """The likeliest classes with their scores, best first; all classes' scores add up to 1."""
    scores: NDArray[np.float32]
    """(C,) in the order of the predictor's classes."""
    num_frames: int
    """Frames of the video; with fewer than the network takes, some were repeated."""

    @property
    def label(self) -> str:
        """The likeliest class."""
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
        self.classes = checkpoint.classes
        self.views = views or checkpoint.views
        self.num_frames = checkpoint.config.num_frames
        self.precision = precision
        self._normalise = Normalise(self.views.mean, self.views.std).to(self.device)

    @overload
    def __call__(self, source: list[Source], *, top_k: int = 5) -> list[Prediction]: ...
    @overload
    def __call__(self, source: Source, *, top_k: int = 5) -> Prediction: ...
    def __call__(self, source: Source | list[Source], *, top_k: int = 5) -> Prediction | list[Prediction]:
        """Classify one video, or a list of them.

        Args:
            source: a path, the bytes of a video file, an open binary file, an array (T, H, W, 3) uint8 of RGB frames,
                or a list of these.
            top_k: how many classes ``top`` names.

        Raises:
            DecodeError: for a video that cannot be read; :meth:`each` goes on with the rest instead.
            TypeError, ValueError: for a source of another kind or shape.
        """
        if isinstance(source, list):
            return [self._one(one, top_k) for one in source]
        return self._one(source, top_k)

    def each(self, sources: Iterable[Source], *, top_k: int = 5) -> Iterator[Prediction | DecodeError]:
        """Classify videos one after the other; where one cannot be read, its error stands in its place."""
        for source in sources:
            try:
                yield self._one(source, top_k)
            except DecodeError as error:
                yield error

    def _one(self, source: Source, top_k: int) -> Prediction:
        if top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {top_k}")
        identity = identity_of(source) if isinstance(source, (str, os.PathLike)) else ""
        with open_frames(source) as frames:
            views = read_views(frames, self.num_frames, self.views, identity=identity)
            name, available = frames.path, frames.num_frames
        logits = class_scores(self.model, views[None], self._normalise, precision=self.precision)
        by_clip = mean_softmax(logits.unflatten(1, (self.views.clips, self.views.crops)))
        scores = by_clip.mean(dim=1)[0].cpu()
        best = scores.topk(min(top_k, len(self.classes)))
        top = tuple(
            (self.classes[index], value)
            for value, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        )
        return Prediction(source=name, top=top, scores=scores.numpy(), num_frames=available)


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
