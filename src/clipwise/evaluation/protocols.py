"""Videos → scores: the views of each video through the network, the mean of their softmax.

Evaluation is a loop of its own, not Lightning's: a padded distributed sampler would count some videos twice.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader

from clipwise.config import ViewsConfig
from clipwise.data.dataset import Failure, TestViews, collate
from clipwise.data.manifest import Manifest
from clipwise.data.transforms import Normalise
from clipwise.data.workers import leave_signals_to_parent
from clipwise.evaluation.metrics import VideoMetrics, mean_softmax, video_metrics

__all__ = ["Evaluation", "class_scores", "evaluate_model"]


@dataclass(frozen=True)
class Evaluation:
    """Scores of the videos that could be read, the figures from them, and the account of the rest."""

    names: tuple[str, ...]
    labels: NDArray[np.int64]
    """(V,)"""
    scores: NDArray[np.float32]
    """(V, C): mean of softmax over the views."""
    clip: VideoMetrics
    """Each clip for itself, its crops averaged."""
    video: VideoMetrics
    """All views of a video averaged."""
    unreadable: tuple[Failure, ...]
    short: tuple[str, ...] = field(default=())
    """Videos with fewer frames than the network takes, of which frames repeat."""

    def to_dict(self, classes: tuple[str, ...]) -> dict[str, Any]:
        """For JSON: figures, counts, and each video's scores."""
        return {
            "videos": {
                "scored": len(self.names),
                "unreadable": [failure._asdict() for failure in self.unreadable],
                "shorter_than_clip": list(self.short),
            },
            "video": self.video.to_dict(),
            "clip": {key: value for key, value in self.clip.to_dict().items() if key not in ("per_class", "confusion")},
            "classes": list(classes),
            "scores": [
                {"video": name, "label": classes[label], "scores": [round(float(value), 6) for value in row]}
                for name, label, row in zip(self.names, self.labels, self.scores, strict=True)
            ],
        }


def class_scores(model: nn.Module, views: Tensor, normalise: nn.Module, *, precision: str) -> Tensor:
    """uint8 (V, views, T, 3, H, W) → float32 (V, views, C) logits, on the model's device."""
    device = next(model.parameters()).device
    clips = views.to(device, non_blocking=True).flatten(0, 1)
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        logits: Tensor = model(normalise(clips))
    by_view: Tensor = logits.float().unflatten(0, views.shape[:2])
    return by_view


def evaluate_model(
    model: nn.Module,
    manifest: Manifest,
    views: ViewsConfig,
    *,
    num_frames: int,
    batch_size: int = 32,
    workers: int = 2,
    precision: str = "fp32",
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Score every video of a manifest.

    Args:
        model: in evaluation mode or not (it is returned to the mode that it had).
        manifest: the videos.
        views: clips, crops, size and normalisation.
        num_frames: T.
        batch_size: clips through the network at a time; one video's views stay together.
        workers: loader processes.
        precision: ``fp32`` or ``bf16`` (autocast).
        progress: called with videos done and in all.

    Raises:
        ValueError: if no video at all could be read; the first reasons are named.
    """
    views_per_video = views.clips * views.crops
    device = next(model.parameters()).device
    loader = DataLoader(
        TestViews(manifest, num_frames=num_frames, views=views),
        batch_size=max(1, batch_size // views_per_video),
        num_workers=min(workers, len(manifest)),
        collate_fn=collate,
        worker_init_fn=leave_signals_to_parent,
        # Evaluation must not advance the generator that training draws from.
        generator=torch.Generator(),
        pin_memory=device.type == "cuda",
    )
    normalise = Normalise(views.mean, views.std).to(device)
    was_training = model.training
    model.eval()
    unreadable: list[Failure] = []
    indices: list[Tensor] = []
    logits: list[Tensor] = []
    short: list[str] = []
    done = 0
    try:
        for batch in loader:
            unreadable += batch["failures"]
            done += len(batch["failures"])
            if "clip" in batch:
                logits.append(class_scores(model, batch["clip"], normalise, precision=precision).cpu())
                indices.append(batch["index"])
                few = batch["index"][batch["available"] < num_frames]
                short += [manifest[int(index)].name for index in few]
                done += len(batch["index"])
            if progress:
                progress(done, len(manifest))
    finally:
        model.train(was_training)
    if not logits:
        some = "; ".join(f"{failure.path}: {failure.reason}" for failure in unreadable[:3])
        raise ValueError(f"{manifest.source}: none of {len(manifest)} videos could be read: {some}")
    chosen = torch.cat(indices).numpy()
    labels = manifest.labels[chosen]
    by_view = torch.cat(logits)
    by_clip = mean_softmax(by_view.unflatten(1, (views.clips, views.crops)))
    scores = by_clip.mean(dim=1)
    return Evaluation(
        names=tuple(manifest[int(index)].name for index in chosen),
        labels=labels,
        scores=scores.numpy(),
        clip=video_metrics(by_clip.flatten(0, 1), np.repeat(labels, views.clips), manifest.classes),
        video=video_metrics(scores, labels, manifest.classes),
        unreadable=tuple(unreadable),
        short=tuple(short),
    )
