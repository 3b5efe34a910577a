"""Scores that mean what they say: a temperature for a network's logits, fitted on labelled videos.

A trained network is as a rule surer than it is right. Dividing its logits by one number T, its temperature, leaves the
order of the classes as it is and makes the scores fit how often they are right (Guo et al., "On Calibration of Modern
Neural Networks", ICML 2017, §4.2). T is that of the least negative log-likelihood, and how far the scores are off is
the expected calibration error (ibid. §2, with 15 bins)::

    T = argmin_T −1/N Σ_n log softmax(z_n / T)[y_n]          ECE = Σ_bins (n_bin / N) · |right_bin − score_bin|

By β = 1/T the negative log-likelihood is convex, so T is where its slope is 0. Of several heads one T for all of them,
the likelihoods multiplied; of sets of labels that of the sigmoids, and the scores of all classes count for the error.

The temperature is kept as ``calibration.json`` beside the weights that it was fitted for.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from clipwise.checkpoint import command_line, device_name, read_checkpoint, versions
from clipwise.data.failures import OnError
from clipwise.data.labels import LabelSpace
from clipwise.data.transforms import Normalise
from clipwise.evaluation.metrics import mean_scores
from clipwise.evaluation.protocols import class_scores, network_outputs
from clipwise.evaluation.run import videos_to_score
from clipwise.files import file_sha256, portable_path, write_json
from clipwise.models.network import channels_last
from clipwise.training.account import RunAccount, is_run

__all__ = [
    "BINS",
    "FILE",
    "Calibration",
    "Choice",
    "Fit",
    "calibrate",
    "expected_calibration_error",
    "fit_temperature",
    "negative_log_likelihood",
    "probabilities",
    "read_temperature",
]

_log = logging.getLogger(__name__)

FILE = "calibration.json"
BINS = 15
_THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)

Logits = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Fit:
    """How well the scores fit how often they are right; of both less is better."""

    nll: float
    """Negative log-likelihood of the labels, in nats: the mean over the clips, heads and, of label sets, classes."""
    ece: float
    """Expected calibration error, in [0, 1]."""


@dataclass(frozen=True)
class Choice:
    """What a threshold would lead to, with the temperature found."""

    threshold: float
    none: float
    """Share of the answers that are "none of these", for no class scores the threshold."""
    right: float | None
    """Share of the other answers that are right; None where there are none. Of label sets: of the labels given."""


@dataclass(frozen=True)
class Calibration:
    """What :func:`calibrate` found and wrote."""

    temperature: float
    before: Fit
    """With T = 1."""
    after: Fit
    choices: tuple[Choice, ...]
    record: dict[str, Any]
    """What ``calibration.json`` says of these weights."""
    path: Path


def calibrate(
    checkpoint: str | Path,
    data: str | Path | None = None,
    *,
    split: str | None = None,
    which: Literal["best", "last"] = "best",
    precision: Literal["fp32", "bf16"] = "fp32",
    batch_size: int = 32,
    workers: int = 2,
    on_error: OnError = "report",
    device: str | torch.device | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Calibration:
    """Fit a checkpoint's temperature on labelled videos, and keep it in ``calibration.json`` of its folder.

    Each clip of the checkpoint's own views counts by itself, in the middle crop, which is what a stream shows.

    Args:
        data, split, which, batch_size, workers, on_error, device, progress: as of
            :func:`clipwise.evaluation.run.evaluate`.
        precision: of the network's arithmetic.

    Raises:
        ValueError: as of ``evaluate``; if the folder cannot be written, or as of :func:`fit_temperature`.
    """
    trained = read_checkpoint(checkpoint, which=which)
    folder = trained.weights.parent
    if not os.access(folder, os.W_OK):
        raise ValueError(f"{folder}: cannot be written, and the temperature is kept there; calibrate a copy of it")
    others = _read(folder)
    sha256 = file_sha256(trained.weights)  # now: a training that goes on may replace the file
    run = RunAccount.read(folder) if is_run(folder) else None
    manifest, used = videos_to_score(trained, run, data, split)
    manifest.check_files(on_error)
    views = dataclasses.replace(trained.views, crops=1)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model = channels_last(trained.model.to(device))
    normalise = Normalise(views.mean, views.std).to(device)
    read = network_outputs(
        model,
        manifest,
        views,
        partial(class_scores, model, normalise=normalise, precision=precision),
        num_frames=trained.config.num_frames,
        batch_size=batch_size,
        workers=workers,
        on_error=on_error,
        progress=progress,
    )
    space = trained.label_space
    logits = read.outputs.flatten(0, 1).numpy()
    labels = np.repeat(manifest.labels[read.indices], views.clips, axis=0)
    temperature = fit_temperature(logits, labels, space)
    before, after = (_fit(logits, labels, space, value) for value in (1.0, temperature))
    scores, right = _answers(probabilities(logits, space, temperature), labels, space)
    choices = tuple(_choice(scores, right, threshold, space) for threshold in _THRESHOLDS)
    record = {
        "temperature": temperature,
        "sha256": sha256,
        "before": dataclasses.asdict(before),
        "after": dataclasses.asdict(after),
        "bins": BINS,
        "thresholds": [dataclasses.asdict(choice) for choice in choices],
        "data": {
            "source": portable_path(manifest.source, folder),
            "split": used,
            "videos": len(read.indices),
            "clips": len(logits),
            "unreadable": [failure._asdict() for failure in read.unreadable],
            "shorter_than_clip": list(read.short),
        },
        "views": dataclasses.asdict(views),
        "precision": precision,
        "command": command_line(),
        "device": device_name(device),
        "versions": versions(),
    }
    path = folder / FILE
    write_json(path, others | {trained.weights.name: record})
    return Calibration(temperature, before, after, choices, record, path)


def read_temperature(weights: Path) -> float | None:
    """The temperature that was fitted for a weight file; None if none was.

    One that was fitted for other weights of that name, such as of a training that went on since, is not used; a
    warning says so.

    Raises:
        ValueError: for a ``calibration.json`` that is damaged.
    """
    record = _read(weights.parent).get(weights.name)
    if record is None:
        return None
    if record["sha256"] != file_sha256(weights):
        _log.warning(
            "%s: was fitted for other weights than %s now has, so it is not used, and the scores are not calibrated; "
            "run: clipwise calibrate %s",
            weights.parent / FILE,
            weights.name,
            weights,
        )
        return None
    return float(record["temperature"])


def _read(folder: Path) -> dict[str, dict[str, Any]]:
    """By the name of the weight file, what was found for it; empty without ``calibration.json``."""
    path = folder / FILE
    if not path.exists():
        return {}
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
        for record in records.values():
            if not (0 < record["temperature"] < math.inf and isinstance(record["sha256"], str)):
                raise ValueError(f"temperature {record['temperature']}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: damaged or not written by clipwise ({error!r}); delete it") from error
    return dict(records)


def fit_temperature(logits: Logits, labels: ArrayLike, space: LabelSpace | None = None) -> float:
    """The temperature of the least negative log-likelihood of (N, C) logits.

    Args:
        logits: of N clips.
        labels: as a manifest has them: (N,); of several heads (N, heads); of sets of labels (N, C) bool.
        space: what the logits stand for; one class of C when None.

    Raises:
        ValueError: for logits that are not finite or shapes that disagree; and where there is no such temperature:
            every answer is right, so the lower the better, or they are no better than chance, so the higher.
    """
    z, y, parts = _checked(logits, labels, space)
    if all(_separated(z[:, part], y[:, part], space) for part in parts):
        raise ValueError(
            f"all answers to {len(z)} clips are right, so that any lower temperature fits them better: nothing can be "
            "calibrated with these; give videos that the network does not know, with some that it takes for others"
        )
    low, high = 1e-4, 1e4  # of β = 1/T
    if _slope(z, y, parts, space, low) >= 0:
        raise ValueError(
            f"the answers to {len(z)} clips are no better than chance, so that no temperature makes them mean "
            "anything; are these the videos, and the classes, that the network was trained for?"
        )
    if _slope(z, y, parts, space, high) < 0:
        raise ValueError(
            f"logits of a size of at most {np.abs(z).max():g} are too small: T would be below {1 / high:g}"
        )
    for _ in range(50):
        middle = math.sqrt(low * high)
        if _slope(z, y, parts, space, middle) < 0:
            low = middle
        else:
            high = middle
    return 1 / math.sqrt(low * high)


def negative_log_likelihood(
    logits: Logits, labels: ArrayLike, space: LabelSpace | None = None, *, temperature: float = 1.0
) -> float:
    """That of the labels, in nats, the mean over clips and heads or, of label sets, classes; arguments as above."""
    z, y, parts = _checked(logits, labels, space)
    z = z / temperature
    if space is not None and space.multi_label:
        return float((np.logaddexp(0, z) - y * z).mean())
    return float(np.mean([(np.logaddexp.reduce(z[:, part], 1) - (z * y)[:, part].sum(1)).mean() for part in parts]))


def probabilities(logits: Logits, space: LabelSpace, temperature: float = 1.0) -> NDArray[np.float64]:
    """(N, C) logits → scores at a temperature: softmax of each head, sigmoid of label sets."""
    z = torch.from_numpy(np.asarray(logits, np.float64) / temperature)
    scores: NDArray[np.float64] = mean_scores(z[:, None], space).numpy()
    return scores


def expected_calibration_error(scores: ArrayLike, right: ArrayLike, bins: int = BINS) -> float:
    """(M,) scores of answers and (M,) whether each was right → the mean distance of the two, over bins of equal width.

    Raises:
        ValueError: for shapes that disagree, no answer, or scores outside [0, 1].
    """
    score, hit = np.asarray(scores, np.float64), np.asarray(right, bool)
    if score.ndim != 1 or score.shape != hit.shape or not score.size:
        raise ValueError(f"scores and right must be (answers,), got {score.shape} and {hit.shape}")
    if not ((score >= 0) & (score <= 1)).all():
        raise ValueError(f"scores must lie in [0, 1], got {score.min():g} to {score.max():g}")
    # (i/bins, (i+1)/bins] as in the paper; 0 goes with the first.
    places = np.clip(np.ceil(score * bins).astype(int) - 1, 0, bins - 1)
    apart = np.bincount(places, weights=hit - score, minlength=bins)
    return float(np.abs(apart).sum() / len(score))


def _fit(logits: Logits, labels: NDArray[Any], space: LabelSpace, temperature: float) -> Fit:
    scores = probabilities(logits, space, temperature)
    if space.multi_label:
        error = expected_calibration_error(scores.ravel(), labels.ravel())
    else:
        best, right = _answers(scores, labels, space)
        error = expected_calibration_error(best.ravel(), right.ravel())
    return Fit(negative_log_likelihood(logits, labels, space, temperature=temperature), error)


def _answers(
    scores: NDArray[np.float64], labels: NDArray[Any], space: LabelSpace
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """(N, A) scores of what can be answered and whether it is right: each head's best class; of label sets each one."""
    if space.multi_label:
        return scores, labels.astype(bool)
    parts = np.split(scores, np.cumsum(space.sizes)[:-1], axis=1)
    best = np.stack([part.argmax(1) for part in parts], axis=1)
    return np.stack([part.max(1) for part in parts], axis=1), best == labels.reshape(len(scores), -1)


def _choice(scores: NDArray[np.float64], right: NDArray[np.bool_], threshold: float, space: LabelSpace) -> Choice:
    given = scores >= threshold
    none = ~given.any(1) if space.multi_label else ~given
    return Choice(threshold, float(none.mean()), float(right[given].mean()) if given.any() else None)


def _checked(
    logits: Logits, labels: ArrayLike, space: LabelSpace | None
) -> tuple[NDArray[np.float64], NDArray[np.float64], list[slice]]:
    """Logits (N, C), the labels as ones in (N, C), and which columns belong together."""
    z, label = np.asarray(logits, np.float64), np.asarray(labels)
    sizes = [z.shape[-1]] if space is None else space.sizes
    multi_label = space is not None and space.multi_label
    wanted = z.shape if multi_label else (len(z), len(sizes)) if len(sizes) > 1 else (len(z),)
    if z.ndim != 2 or not z.size or z.shape[1] != sum(sizes) or label.shape != wanted:
        raise ValueError(
            f"logits must be (clips, {sum(sizes)}) and labels one for each; got {z.shape} and {label.shape}"
        )
    if not np.isfinite(z).all():
        raise ValueError(
            f"logits must be finite; {int((~np.isfinite(z)).sum())} of {z.size} are not. Networks that have diverged "
            "give such values"
        )
    stops = np.cumsum(sizes).tolist()
    parts = [slice(stop - size, stop) for size, stop in zip(sizes, stops, strict=True)]
    if multi_label:
        return z, label.astype(np.float64), parts
    y = np.zeros_like(z)
    for part, own in zip(parts, label.reshape(len(z), -1).T, strict=True):
        if own.min() < 0 or own.max() >= part.stop - part.start:
            raise ValueError(f"labels must be 0 to {part.stop - part.start - 1}, got {own.min()} to {own.max()}")
        y[np.arange(len(z)), part.start + own] = 1
    return z, y, parts


def _separated(z: NDArray[np.float64], y: NDArray[np.float64], space: LabelSpace | None) -> bool:
    """Whether nothing that is true scores less than anything that is not."""
    if space is not None and space.multi_label:
        return bool(((2 * y - 1) * z >= 0).all())
    return bool(((z * y).sum(1) >= z.max(1)).all())


def _slope(
    z: NDArray[np.float64], y: NDArray[np.float64], parts: list[slice], space: LabelSpace | None, beta: float
) -> float:
    """The derivative of the negative log-likelihood by β; it grows with β."""
    if space is not None and space.multi_label:
        return float(((_sigmoid(beta * z) - y) * z).mean())
    return float(sum(((_softmax(beta * z[:, part]) - y[:, part]) * z[:, part]).sum() for part in parts))


def _softmax(z: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(z - z.max(1, keepdims=True))
    scores: NDArray[np.float64] = powers / powers.sum(1, keepdims=True)
    return scores


def _sigmoid(z: NDArray[np.float64]) -> NDArray[np.float64]:
    scores: NDArray[np.float64] = np.exp(-np.logaddexp(0, -z))
    return scores
