"""Several networks as one: the mean of the scores that each gives a video.

Each member tests with its own frame count, size and normalisation; what they share is the videos and, by name, the
classes. STC and STW are published so, with a network of 8 frames beside one of 16.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from clipwise.checkpoint import command_line, read_card
from clipwise.config import ViewsConfig
from clipwise.data.failures import Failure, OnError
from clipwise.data.labels import LabelSpace
from clipwise.data.manifest import Manifest
from clipwise.evaluation.metrics import measure
from clipwise.evaluation.protocols import Evaluation, segments_of
from clipwise.evaluation.run import EvaluationResult, evaluate

__all__ = ["EnsembleResult", "combine", "evaluate_ensemble", "require_same_videos"]


@dataclass(frozen=True)
class EnsembleResult:
    """Figures of the ensemble, those of its members, and the record of both."""

    evaluation: Evaluation
    """Of the videos that every member could read; it has no clips of its own."""
    members: tuple[EvaluationResult, ...]
    record: dict[str, Any]
    """For JSON."""


def evaluate_ensemble(
    checkpoints: Sequence[str | Path],
    data: str | Path | None = None,
    *,
    split: str | None = None,
    which: Literal["best", "last"] = "best",
    views: Sequence[ViewsConfig] | None = None,
    protocol: str | None = None,
    precision: Literal["fp32", "bf16"] | None = None,
    batch_size: int = 32,
    workers: int = 2,
    on_error: OnError = "report",
    max_failed: float = 1.0,
    device: str | torch.device | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> EnsembleResult:
    """Test several checkpoints on the same videos, each by itself and all together.

    Args:
        checkpoints: two or more; the first gives the order of the classes.
        data, split, which, precision, batch_size, workers, on_error, max_failed, device: as of
            :func:`clipwise.evaluation.run.evaluate`, for each.
        views: one for each checkpoint; their own when None.
        protocol: as there; each checkpoint's stride follows from its own frame count.
        progress: called with videos done and in all, over all checkpoints.

    Raises:
        ValueError: if a checkpoint or the data cannot be read, classes or videos of two checkpoints differ, or no video
            could be read by all.
    """
    if len(checkpoints) < 2:
        raise ValueError(f"an ensemble takes two checkpoints or more, got {len(checkpoints)}")
    spaces = [read_card(checkpoint).label_space for checkpoint in checkpoints]
    for space, checkpoint in zip(spaces, checkpoints, strict=True):
        _outputs(spaces[0], space, checkpoint)  # says what does not fit before any work is done
    members: list[EvaluationResult] = []
    for place, checkpoint in enumerate(checkpoints):

        def of_all(done: int, total: int, before: int = place) -> None:
            if progress:
                progress(before * total + done, len(checkpoints) * total)

        member = evaluate(
            checkpoint,
            data,
            split=split,
            which=which,
            views=views[place] if views else None,
            protocol=protocol,
            precision=precision,
            batch_size=batch_size,
            workers=workers,
            on_error=on_error,
            max_failed=max_failed,
            device=device,
            progress=of_all,
        )
        members.append(member)
        require_same_videos(members[0].manifest, member.manifest, checkpoints[0], checkpoint)
    evaluation = combine(members, checkpoints)
    first = members[0].record
    record = {
        "command": command_line(),
        "ensemble": {
            "average": "mean of the members' scores",
            "members": [
                {key: member.record[key] for key in ("checkpoint", "protocol", "videos", "video", "clip", "training")}
                for member in members
            ],
        },
        **{key: first[key] for key in ("data", "device", "threads", "versions")},
        **evaluation.to_dict(members[0].manifest.label_space),
    }
    return EnsembleResult(evaluation, tuple(members), record)


def combine(members: Sequence[EvaluationResult], names: Sequence[str | Path]) -> Evaluation:
    """The mean of the members' scores, for the videos that all of them could read.

    ``names`` are the members' own, for messages.

    Raises:
        ValueError: as :func:`evaluate_ensemble`.
    """
    manifest = members[0].manifest
    space = manifest.label_space
    common = set(members[0].evaluation.indices.tolist())
    for member in members[1:]:
        common &= set(member.evaluation.indices.tolist())
    if not common:
        raise ValueError(f"{manifest.source}: no video could be read for all {len(members)} networks")
    chosen = np.array(sorted(common))
    total = np.zeros((len(chosen), sum(space.sizes)))
    for member, name in zip(members, names, strict=True):
        require_same_videos(manifest, member.manifest, names[0], name)
        outputs = _outputs(space, member.manifest.label_space, name)
        rows = np.searchsorted(member.evaluation.indices, chosen)
        total += member.evaluation.scores[rows][:, outputs]
    scores = (total / len(members)).astype(np.float32)
    labels = manifest.labels[chosen]
    failures: dict[object, Failure] = {}
    # Segments of one file share its name. What is too short for one network is so for those that take more frames:
    # the most that one member counts of a name is what all of them together do.
    short: Counter[str] = Counter()
    for member in members:
        failures |= {failure.video: failure for failure in member.evaluation.unreadable}
        short |= Counter(member.evaluation.short)
    return Evaluation(
        names=tuple(manifest[int(index)].name for index in chosen),
        segments=segments_of(manifest, chosen),
        indices=chosen,
        labels=labels,
        scores=scores,
        clip=None,
        video=measure(scores, labels, space),
        unreadable=tuple(failures.values()),
        short=tuple(short.elements()),
    )


def require_same_videos(one: Manifest, other: Manifest, one_name: str | Path, other_name: str | Path) -> None:
    """Raises ValueError unless both were to be scored on the same segments of the same videos, in the same order."""
    listed, others = (
        [(item.path, item.start, item.end, item.reversed) for item in manifest] for manifest in (one, other)
    )
    if listed != others:
        only = sorted({str(path) for path, *_ in set(listed) ^ set(others)})
        raise ValueError(
            f"{one_name} and {other_name} are to be tested on different videos ({len(listed)} and {len(others)}"
            f"{f', such as {only[0]}' if only else ''}); give the same to all with --data and --split"
        )


def _outputs(space: LabelSpace, other: LabelSpace, name: str | Path) -> NDArray[np.int64]:
    """(C,) where the outputs of ``space`` stand among those of ``other``; ``name`` is whose they are."""

    def keyed(of: LabelSpace) -> list[tuple[str, str]]:
        alone = len(of.heads) == 1  # what one head is called does not matter
        return [("" if alone else head.name, label) for head in of.heads for label in head.classes]

    if space.multi_label != other.multi_label or len(space.heads) != len(other.heads):
        raise ValueError(
            f"{name}: answers {_question(other)}, the first checkpoint {_question(space)}; an ensemble needs networks "
            "that were trained for the same"
        )
    wanted, there = keyed(space), {key: place for place, key in enumerate(keyed(other))}
    strange = sorted(set(wanted) ^ set(there))
    if strange:
        raise ValueError(
            f"{name}: its classes are not those of the first checkpoint: {len(strange)} are in only one of the two "
            f"lists, the first: {strange[0][1]!r}; an ensemble needs the same classes, in whatever order"
        )
    return np.array([there[key] for key in wanted])


def _question(space: LabelSpace) -> str:
    if space.multi_label:
        return "with a set of labels"
    if len(space.heads) > 1:
        return f"with a class of each head ({', '.join(head.name for head in space.heads)})"
    return "with one class"
