"""Testing a checkpoint on labelled videos, with the whole protocol in the result."""

import dataclasses
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from clipwise.checkpoint import Checkpoint, command_line, device_name, read_checkpoint, versions
from clipwise.config import DataConfig, ViewsConfig
from clipwise.data.failures import Failure, OnError
from clipwise.data.manifest import Manifest, class_list_hash
from clipwise.evaluation.presets import changed_fields, protocol_entry, protocol_views
from clipwise.evaluation.protocols import AVERAGES, Evaluation, evaluate_model, segments_of
from clipwise.files import file_sha256, portable_path
from clipwise.models.network import channels_last
from clipwise.training.account import RunAccount, is_run, video

__all__ = ["EvaluationResult", "account_of_videos", "checkpoint_names", "drawn_videos", "evaluate", "videos_to_score"]


@dataclass(frozen=True)
class EvaluationResult:
    """Figures and the record of how they came about."""

    evaluation: Evaluation
    manifest: Manifest
    """The videos that were to be scored, labelled as the network's outputs are."""
    record: dict[str, Any]
    """For JSON: command, protocol, versions, figures, each video's scores and the run's log of epochs."""

    @property
    def classes(self) -> tuple[str, ...]:
        """A name for each of the network's outputs."""
        return self.manifest.classes


def evaluate(
    checkpoint: str | Path,
    data: str | Path | None = None,
    *,
    split: str | None = None,
    which: Literal["best", "last"] = "best",
    views: ViewsConfig | None = None,
    protocol: str | None = None,
    precision: Literal["fp32", "bf16"] | None = None,
    batch_size: int = 32,
    workers: int = 2,
    on_error: OnError = "report",
    max_failed: float = 1.0,
    device: str | torch.device | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> EvaluationResult:
    """Test a checkpoint.

    Args:
        checkpoint: a folder that ``clipwise train`` wrote, or a weight file inside one.
        data: a folder, manifest or pack; the run's own validation videos when None.
        split: of the data; if None, the run's validation split, or else the only one beside that for training; of data
            without splits what was held out where it is the run's own, and else all.
        which: ``best`` or ``last`` weights.
        views: other views than the checkpoint's.
        protocol: the name of a published protocol (:mod:`clipwise.evaluation.presets`), whose views are used unless
            ``views`` are given; the record has its name, and in what the views used differ from it.
        precision: as in training unless given.
        batch_size: clips through the network at a time.
        workers: loader processes.
        on_error: ``raise`` stops at the first video that cannot be read; ``skip`` and ``report`` score the rest.
        max_failed: share of the videos that may fail.
        device: the GPU when None and there is one.
        progress: called with videos done and in all.

    Raises:
        ValueError: if checkpoint or data cannot be read, or the data has classes that the checkpoint has not.
    """
    trained = read_checkpoint(checkpoint, which=which)
    weights_sha256 = file_sha256(trained.weights)  # now: a training that goes on may replace the file
    folder = trained.weights.parent
    run = RunAccount.read(folder) if is_run(folder) else None
    manifest, used = videos_to_score(trained, run, data, split)
    manifest.check_files(on_error)
    if views is None:
        views = protocol_views(protocol, trained.views, trained.config.num_frames) if protocol else trained.views
    precision = precision or (run.config.training.precision if run else "fp32")
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    evaluation = evaluate_model(
        channels_last(trained.model.to(device)),
        manifest,
        views,
        num_frames=trained.config.num_frames,
        batch_size=batch_size,
        workers=workers,
        precision=precision,
        on_error=on_error,
        max_failed=max_failed,
        progress=progress,
    )
    average = AVERAGES[views.average]
    if manifest.multi_label:
        average = average.replace("softmax", "sigmoid")
    record = {
        "command": command_line(),
        "checkpoint": {
            "weights": portable_path(trained.weights, Path.cwd()),
            "sha256": weights_sha256,
            "classes_sha256": class_list_hash(trained.classes),
            "model": dataclasses.asdict(trained.config) | {"weights": None},
        },
        "data": {
            "source": portable_path(manifest.source, Path.cwd()),
            "split": used,
            "videos": len(manifest),
        },
        "protocol": {
            "preset": _preset(protocol, views, trained.config.num_frames) if protocol else None,
            "num_frames": trained.config.num_frames,
            "views": dataclasses.asdict(views),
            "average": average,
            "precision": precision,
        },
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "versions": versions(),
        **evaluation.to_dict(trained.label_space),
        "training": run.to_dict() if run else None,
    }
    return EvaluationResult(evaluation, manifest, record)


def _preset(name: str, views: ViewsConfig, num_frames: int) -> dict[str, Any]:
    """Which published protocol was asked for, and which of its fields were then set otherwise."""
    entry = protocol_entry(name)
    changed = changed_fields(name, views, num_frames)
    return {"name": name, "paper": entry.paper, "section": entry.section, "changed": changed}


def videos_to_score(
    trained: Checkpoint, run: RunAccount | None, data: str | Path | None, split: str | None
) -> tuple[Manifest, str | None]:
    """The videos to score, labelled by the checkpoint's class list, and the name of their split.

    Raises ValueError as :func:`evaluate`, whose arguments these are.
    """
    own = run.data_source(trained.weights.parent) if run else None
    source = data or own
    if source is None:
        raise ValueError(f"{trained.weights.parent}: says nothing of its data; give the videos to test on")
    # The same names in another order, or some of them, are one and the same by name.
    manifest = Manifest.read(source).with_label_space(trained.label_space)
    if split is not None:
        return manifest.select(split), split
    usual = run.config.data.validation_split if run else DataConfig.validation_split
    if usual in manifest.splits:
        return manifest.select(usual), usual
    if manifest.splits:
        trained_on = run.config.data.train_split if run else DataConfig.train_split
        others = [name for name in manifest.splits if name != trained_on]
        if len(others) == 1:
            return manifest.select(others[0]), others[0]
        raise ValueError(
            f"{manifest.source}: no split {usual!r}; name the split to test on by --split: {', '.join(manifest.splits)}"
        )
    if run is None or own is None or os.path.realpath(manifest.source) != os.path.realpath(own):
        return manifest, None
    marks = [usual if video(item) in run.validation_videos else "train" for item in manifest]
    return manifest.with_splits(marks).select(usual), usual


def drawn_videos(manifest: Manifest, number: int, seed: int) -> Manifest:
    """At most so many of a manifest's videos, drawn by the seed, in the manifest's order."""
    if number >= len(manifest):
        return manifest
    drawn = set(np.random.default_rng(seed).permutation(len(manifest))[:number].tolist())
    return manifest.with_splits(["drawn" if row in drawn else "" for row in range(len(manifest))]).select("drawn")


def account_of_videos(
    manifest: Manifest, scored: Sequence[int], split: str | None, unreadable: Iterable[Failure]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Where the videos come from, and each of those that all networks scored, for JSON."""
    segments = segments_of(manifest, np.array(scored)) or ({},) * len(scored)
    data = {
        "source": portable_path(manifest.source, Path.cwd()),
        "split": split,
        "videos": len(scored),
        "unreadable": [failure._asdict() for failure in unreadable],
    }
    videos = [
        {"video": manifest[index].name, **segment, "label": manifest.names_of(index)[0]}
        for index, segment in zip(scored, segments, strict=True)
    ]
    return data, videos


def checkpoint_names(checkpoints: Sequence[str | Path]) -> list[str]:
    """The folders' names; where two are equal, the paths.

    Raises ValueError for no checkpoint, or one that is given twice.
    """
    if not checkpoints:
        raise ValueError("give a checkpoint, or several")
    paths = [Path(checkpoint) for checkpoint in checkpoints]
    names = [(path if path.is_dir() else path.parent).resolve().name for path in paths]
    if len(set(names)) == len(names):
        return names
    if len(set(paths)) < len(paths):
        raise ValueError(f"each checkpoint is to be given once, got {', '.join(map(str, paths))}")
    return [str(path) for path in paths]
