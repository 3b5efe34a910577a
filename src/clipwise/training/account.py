"""The account that a training run keeps beside its weights: configuration, origin, and what each epoch gave."""

import csv
import datetime
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from clipwise.checkpoint import command_line, device_name, versions
from clipwise.config import Config
from clipwise.data.failures import Failure
from clipwise.data.manifest import Item, Manifest
from clipwise.files import portable_path, write_json, written_whole
from clipwise.models.weights import LoadReport

__all__ = [
    "EpochLog",
    "RunAccount",
    "append_epoch",
    "drop_epochs_after",
    "is_run",
    "kept_weights",
    "read_unreadable",
    "video",
    "videos_hash",
    "write_account",
    "write_unreadable",
]

_RUN = "run.json"
_CONFIG = "config.json"
_SPLITS = "splits.json"
_EPOCHS = "epochs.csv"
_UNREADABLE = "unreadable.json"


Video = tuple[str, float | None, float | None] | tuple[str, float | None, float | None, bool]


def video(item: Item) -> Video:
    """What tells a video, or a segment of one, from the others of its manifest: name, start, end and, where it is
    played backwards, True."""
    return (item.name, item.start, item.end, *((True,) if item.reversed else ()))


@dataclass(frozen=True, kw_only=True)
class EpochLog:
    """A line of ``epochs.csv``."""

    epoch: int
    """From 1."""
    step: int
    """Steps done in the whole run."""
    lr: float
    """Of the epoch's last step."""
    loss: float
    """Mean over the epoch's clips."""
    clips_per_second: float
    """Of training, validation not counted."""
    waiting: float | None = None
    """Share of the training's time, from 0 to 1, in which the next step's data were not ready; of several processes the
    largest. None in runs from before it was measured."""
    peak_gib: float | None = None
    """GiB, the most that PyTorch's tensors took on a GPU in training; None on a CPU. In a run that went on within the
    epoch, since then."""
    top1: float | None
    """Validation, video level, percent, of several heads their mean; None without validation and for label sets. So are
    the next two."""
    top5: float | None
    mean_class_accuracy: float | None
    seconds: float
    """The epoch with its validation."""
    more: dict[str, float] = field(default_factory=dict)
    """Each head's figures (``verb.top1`` …) and the joint ones; ``mean_average_precision`` of label sets."""

    def to_row(self) -> dict[str, Any]:
        """Its values by name, those of ``more`` at the end."""
        row = asdict(self)
        del row["more"]
        return {**row, **self.more}

    @classmethod
    def from_row(cls, row: dict[str, str]) -> "EpochLog":
        """From a line of ``epochs.csv``, where an empty cell is None."""
        numbers: dict[str, Any] = {key: float(text) if text else None for key, text in row.items()}
        numbers |= {"epoch": int(row["epoch"]), "step": int(row["step"])}
        own = {entry.name for entry in fields(cls)}
        more = {key: numbers.pop(key) for key in row if key not in own}
        return cls(**numbers, more=more)


@dataclass(frozen=True)
class RunAccount:
    """What a run's folder tells of it."""

    config: Config
    values: dict[str, Any]
    """The configuration as it was written; ``config_sha256`` is theirs."""
    origin: dict[str, Any]
    """``run.json``: command, recipe, hashes, data, device, versions."""
    validation_videos: frozenset[Video]
    epochs: tuple[EpochLog, ...]

    @classmethod
    def read(cls, folder: Path) -> "RunAccount":
        """Read it.

        Raises:
            ValueError: if the folder holds no account of a run, or a damaged one.
        """
        try:
            origin = json.loads((folder / _RUN).read_text(encoding="utf-8"))
            values = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
            splits = json.loads((folder / _SPLITS).read_text(encoding="utf-8"))
            return cls(
                config=Config.from_json(values),
                values=values,
                origin=origin,
                validation_videos=frozenset(map(tuple, splits["validation"])),
                epochs=read_epochs(folder),
            )
        except FileNotFoundError as error:
            imported = "; it was imported, give its weights to a new run as model.weights"
            raise ValueError(
                f"{folder}: holds no training run ({Path(error.filename).name} is missing)"
                + (imported if (folder / "import.json").is_file() else "")
            ) from error
        except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{folder}: the account of its training run is damaged ({error})") from error

    def data_source(self, folder: Path) -> Path:
        """Where the data was, seen from the run's folder; links on the way to it are followed."""
        return Path(os.path.realpath(folder)) / str(self.origin["data"]["source"])

    def to_dict(self) -> dict[str, Any]:
        """For a result file: where the weights came from, and each epoch."""
        return {**self.origin, "config": self.values, "epochs": [log.to_row() for log in self.epochs]}


def videos_hash(train: Manifest, validation: Manifest | None) -> str:
    """SHA-256 over the videos of either part with their labels and segments."""
    digest = hashlib.sha256()
    for part in (train, validation):
        for index in range(len(part) if part else 0):
            digest.update(repr((*video(part[index]), *part.names_of(index))).encode())  # type: ignore[index, union-attr]
        digest.update(b"|")
    return digest.hexdigest()


def is_run(folder: Path) -> bool:
    """Whether a folder holds a training run."""
    return (folder / _RUN).is_file()


def write_account(
    folder: Path,
    config: Config,
    train: Manifest,
    validation: Manifest | None,
    recipe: str | None,
    weights: LoadReport | None,
    processes: int,
) -> None:
    """Write all that is known before the first step."""
    write_json(folder / _CONFIG, config.to_dict())
    parts = {"train": train, "validation": validation}
    write_json(folder / _SPLITS, {key: list(map(video, part)) if part else [] for key, part in parts.items()})
    origin = {
        "command": command_line(),
        "recipe": recipe,
        "config_sha256": config.sha256,
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "data": {
            "source": portable_path(train.source, folder),
            "training_videos": len(train),
            "validation_videos": len(validation) if validation else 0,
            "classes_sha256": train.classes_hash,
            "videos_sha256": videos_hash(train, validation),
        },
        "weights": {"source": weights.source, "sha256": weights.sha256} if weights else None,
        "effective_lr": config.training.effective_lr,
        "kept_weights": kept_weights(config),
        "processes": processes,
        "device": device_name(),
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }
    write_json(folder / _RUN, origin)


def kept_weights(config: Config) -> str:
    """What a run's weight files hold, in words."""
    if config.training.ema:
        return f"the exponential mean of weights and BatchNorm statistics, decay {config.training.ema:g} a step"
    return "the weights of the step"


def read_epochs(folder: Path) -> tuple[EpochLog, ...]:
    """The epochs that a run has logged; none before the first. Raises what a damaged ``epochs.csv`` leads to."""
    _, rows = _epochs(folder)
    return tuple(map(EpochLog.from_row, rows))


def append_epoch(folder: Path, log: EpochLog) -> None:
    """Add a line to ``epochs.csv``; the lines of an older version stay empty in columns that it did not have."""
    columns, rows = _epochs(folder)
    row = {key: float(f"{v:.7g}") if isinstance(v, float) else v for key, v in log.to_row().items()}
    _write_epochs(folder, list(dict.fromkeys((*row, *columns))), [*rows, row])


def drop_epochs_after(folder: Path, step: int) -> None:
    """Forget the lines past ``step``: a run that was killed between its log and its state repeats that epoch."""
    columns, rows = _epochs(folder)
    if columns:
        _write_epochs(folder, columns, [row for row in rows if int(row["step"]) <= step])


def _epochs(folder: Path) -> tuple[Sequence[str], list[dict[str, str]]]:
    """Columns and lines of ``epochs.csv``; none before the first epoch."""
    path = folder / _EPOCHS
    if not path.is_file():
        return (), []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
        return reader.fieldnames or (), rows


def _write_epochs(folder: Path, columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> None:
    with written_whole(folder / _EPOCHS) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def write_unreadable(folder: Path, training: Iterable[Failure], validation: Iterable[Failure]) -> None:
    """Name the videos that could not be read, where there are any."""
    named = {
        "training": [failure._asdict() for failure in training],
        "validation": [failure._asdict() for failure in validation],
    }
    if any(named.values()):
        write_json(folder / _UNREADABLE, named)


def read_unreadable(folder: Path) -> dict[str, list[Failure]]:
    """What :func:`write_unreadable` wrote; empty where it had nothing to write."""
    file = folder / _UNREADABLE
    if not file.is_file():
        return {}
    try:
        named: dict[str, list[dict[str, Any]]] = json.loads(file.read_text(encoding="utf-8"))
        return {part: [Failure(**failure) for failure in failures] for part, failures in named.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{file}: damaged ({error!r}); delete it and resume again") from error
