"""Videos → scores: the views of each video through the network, then their average.

Batches are filled with views whichever videos they are of, so that 1 view a video and 30 use the device alike.

Evaluation is a loop of its own, not Lightning's: a padded distributed sampler would count some videos twice.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from clipwise.config import ViewsConfig
from clipwise.data.dataset import TestViews
from clipwise.data.failures import Failure, FailureAccount, OnError, deaths_explained
from clipwise.data.labels import LabelSpace
from clipwise.data.manifest import Manifest
from clipwise.data.prefetch import DevicePrefetcher
from clipwise.data.shared_buffers import ClipLoader
from clipwise.data.transforms import Normalise
from clipwise.evaluation.metrics import Metrics, mean_scores, measure
from clipwise.processes import Processes

__all__ = [
    "AVERAGES",
    "Evaluation",
    "Outputs",
    "class_scores",
    "evaluate_model",
    "network_outputs",
    "rebatched",
    "score_views",
    "segments_of",
]

AVERAGES = {"softmax": "mean of softmax over views", "logits": "softmax of the mean of logits over views"}


@dataclass(frozen=True)
class Evaluation:
    """Scores of the videos that could be read, the figures from them, and the account of the rest."""

    names: tuple[str, ...]
    indices: NDArray[np.int64]
    """(V,) places in the manifest, ascending."""
    labels: NDArray[Any]
    """As ``Manifest.labels``: (V,); of several heads (V, heads); of label sets (V, C) bool."""
    scores: NDArray[np.float32]
    """(V, C): the average over the views; each head's add up to 1, those of label sets are probabilities."""
    clip: Metrics | None
    """Each clip for itself, its crops averaged; None of an ensemble, whose members have clips of their own."""
    video: Metrics
    """All views of a video averaged."""
    unreadable: tuple[Failure, ...]
    short: tuple[str, ...] = field(default=())
    """Videos with fewer frames than the network takes, of which frames repeat."""
    segments: tuple[dict[str, float | bool], ...] = field(default=())
    """What tells each from others of its file: ``start`` and ``end`` in seconds, ``reversed``, those that it has; empty
    where none has any."""

    def to_dict(self, space: LabelSpace) -> dict[str, Any]:
        """For JSON: figures, counts, and each video's label and scores, which are in the order of ``classes``.

        Of several heads ``labels`` has a name for each; of label sets, those that hold.
        """
        named = [space.names(label) for label in self.labels]
        segments = self.segments or ({},) * len(self.names)
        return {
            "videos": {
                "scored": len(self.names),
                "unreadable": [failure._asdict() for failure in self.unreadable],
                "shorter_than_clip": list(self.short),
            },
            "video": self.video.to_dict(),
            **({"clip": {"videos": self.clip.videos, **self.clip.figures}} if self.clip else {}),
            **space.to_json(),
            "scores": [
                {
                    "video": name,
                    **segment,
                    **({"label": names[0]} if space.single else {"labels": list(names)}),
                    "scores": [round(float(value), 6) for value in row],
                }
                for name, segment, names, row in zip(self.names, segments, named, self.scores, strict=True)
            ],
        }


def segments_of(manifest: Manifest, indices: NDArray[np.int64]) -> tuple[dict[str, float | bool], ...]:
    """As :attr:`Evaluation.segments`, of some of a manifest's videos."""
    items = [manifest[int(index)] for index in indices]
    marks = [{"start": item.start, "end": item.end, "reversed": item.reversed or None} for item in items]
    segments = tuple({key: value for key, value in mark.items() if value is not None} for mark in marks)
    return segments if any(segments) else ()


def class_scores(model: nn.Module, clips: Sequence[Tensor], normalise: nn.Module, *, precision: str) -> Tensor:
    """uint8 parts (n, T, 3, H, W) of one batch → float32 (N, C) logits of all of them, on the model's device."""
    device = next(model.parameters()).device
    # Joined on the device, and with colours last, the layout that they have: a cat would not keep it by itself.
    parts = [part.to(device, non_blocking=True).movedim(2, -1) for part in clips]
    batch = (parts[0] if len(parts) == 1 else torch.cat(parts)).movedim(-1, 2)
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        logits: Tensor = model(normalise(batch))
    return logits.float()


def score_views(logits: Tensor, views: ViewsConfig, space: LabelSpace) -> tuple[Tensor, Tensor]:
    """(V, clips·crops, C) logits → scores (V, clips, C) of each clip and (V, C) of each video.

    They are each head's softmax, or the sigmoid of label sets.

    Raises ValueError for logits that are not finite.
    """
    by_clip = logits.unflatten(1, (views.clips, views.crops))
    if views.average == "softmax":
        scores = mean_scores(by_clip, space)
        return scores, scores.mean(dim=1)
    return mean_scores(by_clip.mean(dim=2, keepdim=True), space), mean_scores(logits.mean(dim=1, keepdim=True), space)


def rebatched(parts: Iterable[Tensor], size: int) -> Iterator[list[Tensor]]:
    """Cut parts (n, …) anew: yield lists of slices with ``size`` rows each, the last with the rest, in order.

    No more than ``size`` rows and one part are held at a time.
    """
    held: list[Tensor] = []
    missing = size
    for part in parts:
        while len(part):
            held.append(part[:missing])
            part = part[missing:]
            missing = size - sum(map(len, held))
            if not missing:
                yield held
                held, missing = [], size
    if held:
        yield held


def evaluate_model(
    model: nn.Module,
    manifest: Manifest,
    views: ViewsConfig,
    *,
    num_frames: int,
    batch_size: int = 32,
    workers: int = 2,
    precision: str = "fp32",
    on_error: OnError = "report",
    max_failed: float = 1.0,
    progress: Callable[[int, int], None] | None = None,
    processes: Processes | None = None,
) -> Evaluation:
    """Score every video of a manifest.

    Args:
        model: in evaluation mode or not (it is returned to the mode that it had).
        manifest: the videos.
        views: clips, crops, size and normalisation.
        num_frames: T.
        batch_size: views through the network at a time, of one video or of several.
        workers: loader processes.
        precision: ``fp32`` or ``bf16`` (autocast).
        on_error: ``raise`` stops at the first video that cannot be read; ``skip`` and ``report`` score the rest.
        max_failed: share of the videos that may fail.
        progress: called with videos done and in all.
        processes: those that each score a share of the videos; all return the whole.

    Raises:
        DecodeError: for a video that cannot be read, where that is to stop.
        ChildProcessError: if a loader process dies.
        ValueError: if more videos than allowed, or no video at all could be read; the first reasons are named.
    """
    device = next(model.parameters()).device
    normalise = Normalise(views.mean, views.std).to(device)
    read = network_outputs(
        model,
        manifest,
        views,
        partial(class_scores, model, normalise=normalise, precision=precision),
        num_frames=num_frames,
        batch_size=batch_size,
        workers=workers,
        on_error=on_error,
        max_failed=max_failed,
        progress=progress,
        processes=processes,
    )
    labels = manifest.labels[read.indices]
    space = manifest.label_space
    by_clip, scores = score_views(read.outputs, views, space)
    return Evaluation(
        names=tuple(manifest[int(index)].name for index in read.indices),
        segments=segments_of(manifest, read.indices),
        indices=read.indices,
        labels=labels,
        scores=scores.numpy(),
        clip=measure(by_clip.flatten(0, 1), np.repeat(labels, views.clips, axis=0), space),
        video=measure(scores, labels, space),
        unreadable=read.unreadable,
        short=read.short,
    )


class Outputs(NamedTuple):
    """What a network says of the videos that could be read."""

    indices: NDArray[np.int64]
    """(V,) places in the manifest, ascending."""
    outputs: Tensor
    """(V, clips·crops, …)"""
    unreadable: tuple[Failure, ...]
    short: tuple[str, ...]
    """As of :class:`Evaluation`."""


def network_outputs(
    model: nn.Module,
    manifest: Manifest,
    views: ViewsConfig,
    outputs: Callable[[Sequence[Tensor]], Tensor],
    *,
    num_frames: int,
    batch_size: int = 32,
    workers: int = 2,
    on_error: OnError = "report",
    max_failed: float = 1.0,
    progress: Callable[[int, int], None] | None = None,
    processes: Processes | None = None,
) -> Outputs:
    """Read every video of a manifest once and keep what ``outputs`` makes of its views.

    Args:
        outputs: from uint8 parts (n, T, 3, H, W) of one batch to a tensor (N, …) for all of them, such as
            :func:`class_scores`; called with the model in evaluation mode.

    The other arguments and what is raised are those of :func:`evaluate_model`.
    """
    processes = processes or Processes()
    share = range(processes.rank, len(manifest), processes.count)
    views_per_video = views.clips * views.crops
    device = next(model.parameters()).device
    loader = ClipLoader(
        TestViews(manifest, num_frames=num_frames, views=views),
        batch_size=max(1, batch_size // views_per_video),
        sampler=share,
        num_workers=min(workers, len(share)),
        # Evaluation must not advance the generator that training draws from.
        generator=torch.Generator(),
        pin_memory=device.type == "cuda",
        # What waits in memory: about two batches a worker, or one video where that is more.
        prefetch_factor=(2 if views_per_video <= batch_size else 1) if min(workers, len(share)) else None,
    )
    was_training = model.training
    model.eval()
    unreadable = FailureAccount(
        on_error, max_failed, len(manifest), remedy="on_error skip or report scores the rest, and names such videos"
    )
    indices: list[Tensor] = []
    made: list[Tensor] = []
    short: list[str] = []

    def views_read() -> Iterator[Tensor]:
        done = 0
        for batch in DevicePrefetcher(loader, device, ["clip"]):
            unreadable.add(batch["failures"])
            done += len(batch["failures"])
            if "clip" in batch:
                indices.append(batch["index"])
                few = batch["index"][batch["available"] < num_frames]
                short.extend(manifest[int(index)].name for index in few)
                done += len(batch["index"])
                yield batch["clip"].flatten(0, 1)
            if progress:
                progress(done, len(share))

    try:
        with deaths_explained():
            for clips in rebatched(views_read(), batch_size):
                made.append(outputs(clips).cpu())
    finally:
        model.train(was_training)
    of_processes = processes.gather((indices, made, short, list(unreadable)))
    indices, made, short = ([part for of_process in of_processes for part in of_process[kind]] for kind in range(3))
    for of_process in of_processes:
        unreadable.add(of_process[3])
    if not made:
        some = "; ".join(map(str, list(unreadable)[:3]))
        raise ValueError(f"{manifest.source}: none of {len(manifest)} videos could be read: {some}")
    chosen, order = torch.cat(indices).sort()
    by_view = torch.cat(made).unflatten(0, (-1, views_per_video))[order]
    return Outputs(chosen.numpy(), by_view, tuple(unreadable), tuple(short))
