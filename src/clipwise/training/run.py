"""A training run: from configuration and manifest to a folder of weights, logs and the account of both."""

import csv
import datetime
import json
import logging
import os
import shutil
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from clipwise.checkpoint import command_line, versions, write_card, write_weights, written_whole
from clipwise.config import Config
from clipwise.data.dataset import DrawSampler, TrainingClips, collate
from clipwise.data.manifest import Manifest
from clipwise.evaluation.protocols import Evaluation, evaluate_model, leave_signals_to_parent
from clipwise.models.complexity import count_parameters
from clipwise.models.registry import create_model
from clipwise.models.resnet import ResNet
from clipwise.models.weights import LoadReport, load_weights
from clipwise.training.resume import STATE, Resumed, StopRequest, load_state, save_state
from clipwise.training.schedule import learning_rate
from clipwise.training.task import ClassificationTask, DivergedError

__all__ = ["EpochLog", "Reporter", "RunResult", "resume_arguments", "split_manifest", "train_model"]

RUN_FILE = "run.json"
CONFIG_FILE = "config.json"
SPLITS_FILE = "splits.json"
EPOCHS_FILE = "epochs.csv"


@dataclass(frozen=True)
class EpochLog:
    """A line of ``epochs.csv``."""

    epoch: int
    """From 1."""
    step: int
    """Steps done in the whole run."""
    lr: float
    loss: float
    """Mean over the epoch's clips."""
    clips_per_second: float
    """Of training, validation not counted."""
    top1: float | None
    """Validation, video level, percent; None without validation."""
    top5: float | None
    mean_class_accuracy: float | None
    seconds: float
    """The epoch with its validation."""


class Reporter(Protocol):
    """What a run tells while it goes on; the command line shows it."""

    def started(
        self,
        *,
        name: str,
        parameters: int,
        effective_lr: float,
        reference: tuple[float, int],
        steps: int,
        epochs: int,
        done: int,
        videos: tuple[int, int],
        weights: LoadReport | None,
    ) -> None:
        """Before the first step; ``done`` steps of ``steps`` were made earlier.

        ``reference`` is the rate and the batch that it is stated for, ``videos`` those of training and validation.
        """

    def stepped(self, *, step: int, loss: float, lr: float, clips: int) -> None:
        """After each step, of ``clips`` clips."""

    def epoch_ended(self, log: EpochLog, evaluation: Evaluation | None) -> None:
        """After each epoch and its validation."""


@dataclass(frozen=True)
class RunResult:
    """How a run ended."""

    folder: Path
    finished: bool
    """False where it was asked to stop: ``--resume`` continues it."""
    step: int
    best: float | None
    """Of ``training.best_by``."""
    epochs: tuple[EpochLog, ...]
    """Of this session."""
    short_videos: tuple[str, ...]
    """Training videos with fewer frames than a clip, some of which were repeated."""


def split_manifest(manifest: Manifest, config: Config) -> tuple[Manifest, Manifest | None]:
    """The videos to train on and those to validate on.

    Where the data names no splits, ``data.holdout`` of each class is held out, by the seed.

    Raises:
        ValueError: if the training split does not exist, has fewer than two classes, or a class of it is too small to hold
            a video out.
    """
    data = config.data
    if manifest.splits:
        train = manifest.select(data.train_split)
        validation = manifest.select(data.validation_split) if data.validation_split in manifest.splits else None
    else:
        rng = np.random.default_rng([config.training.seed, 2])
        held = np.zeros(len(manifest), bool)
        for label in np.unique(manifest.labels):
            of_class = np.flatnonzero(manifest.labels == label)
            if len(of_class) < 2:
                raise ValueError(
                    f"{manifest.source}: class {manifest.classes[label]!r} has one video, so none can be held out for "
                    "validation; add videos, or a `split` column to a CSV"
                )
            count = min(max(1, round(data.holdout * len(of_class))), len(of_class) - 1)
            held[rng.permutation(of_class)[:count]] = True
        manifest = manifest.with_splits([data.validation_split if out else data.train_split for out in held])
        train, validation = manifest.select(data.train_split), manifest.select(data.validation_split)
    train.require_classes()
    return train, validation


def train_model(
    config: Config,
    manifest: Manifest,
    output: str | Path,
    *,
    recipe: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> RunResult:
    """Train a network and keep the run in ``output``.

    The folder holds ``config.json`` (as run), ``run.json`` (command, versions, device, data), ``splits.json`` (the
    videos of either part), ``model.json`` (network, class list with its hash, preprocessing, testing protocol), ``epochs.csv``
    and TensorBoard's file, ``validation.json`` (the last epoch's), ``best.safetensors``, ``last.safetensors`` and
    ``resume.ckpt``.

    Args:
        config: the experiment.
        manifest: the data; its splits name training and validation.
        output: the run's folder.
        recipe: where the configuration came from, for the account.
        resume: continue the run in ``output``.
        overwrite: delete the run in ``output`` first.
        reporter: hears of progress.

    Raises:
        ValueError: for data, weights or a folder that cannot be used; nothing is written then.
        DecodeError: if a training video cannot be read.
        DivergedError: if the loss is not finite; the weights of the last epoch stay.
    """
    output = Path(output)
    training = config.training
    train, validation = split_manifest(manifest, config)
    for part in (train, validation):
        if part is not None:
            part.check_files()
    sampler = DrawSampler(
        train.labels,
        batch_size=training.batch_size,
        epochs=training.epochs,
        balanced=training.balanced,
        seed=training.seed,
    )
    torch.manual_seed(training.seed)
    model = create_model(
        config.model.name,
        num_classes=len(manifest.classes),
        num_frames=config.model.num_frames,
        **config.model.options,
    )
    loaded = None
    resumed = None
    if resume:
        resumed = load_state(output, model)
        sampler.start = resumed.step
    elif config.model.weights is not None:
        loaded = load_weights(model, config.model.weights, name=config.model.name)
    fresh = _prepare_folder(output, resume=resume, overwrite=overwrite)
    try:
        if not resume:
            _write_account(output, config, manifest, train, validation, recipe)
        return _Run(config, model, train, validation, sampler, output, reporter, resumed, loaded).go()
    except BaseException:
        # Until the first epoch's end there is nothing to resume from: leave no half of a run behind.
        if fresh and not (output / STATE).is_file():
            shutil.rmtree(output, ignore_errors=True)
        raise


def resume_arguments(output: Path, data: Path | None) -> tuple[Config, Manifest, str | None]:
    """The configuration, data and recipe that the run in ``output`` was begun with.

    Args:
        output: the run's folder.
        data: where the data is now, if it moved.

    Raises:
        ValueError: if there is no run, or the data is not what it was trained on.
    """
    from clipwise.config import config_from_mapping

    try:
        account = json.loads((output / RUN_FILE).read_text(encoding="utf-8"))
        values = json.loads((output / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{output}: holds no training run to resume ({error})") from error
    config = config_from_mapping(values, source=str(output / CONFIG_FILE))
    manifest = Manifest.read(data or account["data"]["source"])
    if manifest.classes_hash != account["data"]["classes_sha256"]:
        raise ValueError(f"{manifest.source}: its classes are not those that the run in {output} was begun with")
    train, _ = split_manifest(manifest, config)
    before = json.loads((output / SPLITS_FILE).read_text(encoding="utf-8"))["train"]
    if [item.name for item in train] != before:
        raise ValueError(f"{manifest.source}: its training videos are not those that the run in {output} was begun with")
    return config, manifest, account["recipe"]


def _prepare_folder(output: Path, *, resume: bool, overwrite: bool) -> bool:
    """Make the folder; whether it was made now."""
    if resume:
        return False
    if output.exists():
        if not output.is_dir():
            raise ValueError(f"{output}: is a file; give a folder for the run")
        occupied = any(output.iterdir())
        if occupied and not overwrite:
            raise ValueError(f"{output}: exists already; --resume continues that run, --overwrite deletes it first")
        if occupied and not (output / RUN_FILE).is_file():
            raise ValueError(f"{output}: holds files that are no training run, so --overwrite will not delete it")
        shutil.rmtree(output)
    try:
        output.mkdir(parents=True)
    except OSError as error:
        raise ValueError(f"{output}: cannot be written ({error.strerror}); give another --output") from error
    return True


def _write_account(
    output: Path,
    config: Config,
    manifest: Manifest,
    train: Manifest,
    validation: Manifest | None,
    recipe: str | None,
) -> None:
    write_card(output, config.model, manifest.classes, config.views)
    _write_json(output / CONFIG_FILE, config.to_dict())
    account = {
        "command": command_line(),
        "recipe": recipe,
        "config_sha256": config.sha256,
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "data": {
            "source": os.path.relpath(manifest.source),
            "training_videos": len(train),
            "validation_videos": len(validation) if validation else 0,
            "classes_sha256": manifest.classes_hash,
        },
        "effective_lr": config.training.effective_lr,
        "device": _device_name(),
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }
    _write_json(output / RUN_FILE, account)
    splits = {"train": train, "validation": validation}
    names = {key: [item.name for item in part] if part else [] for key, part in splits.items()}
    _write_json(output / SPLITS_FILE, names)


def _write_json(path: Path, value: Any) -> None:
    with written_whole(path) as partial:
        partial.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _device_name() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU ({torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores)"


class _Run(pl.Callback):
    """What happens around Lightning's steps: validation, logs, weights, and stopping.

    Lightning sees one long epoch of all steps that are left. Epochs are counted here, from the step, so that there is one
    counter to resume from.
    """

    def __init__(
        self,
        config: Config,
        model: ResNet,
        train: Manifest,
        validation: Manifest | None,
        sampler: DrawSampler,
        output: Path,
        reporter: Reporter | None,
        resumed: Resumed | None,
        loaded: LoadReport | None,
    ) -> None:
        self.config = config
        self.model = model
        self.train = train
        self.validation = validation
        self.sampler = sampler
        self.output = output
        self.reporter = reporter
        self.resumed = resumed
        self.loaded = loaded
        self.best = resumed.best if resumed else None
        self.stop = StopRequest()
        self.epochs: list[EpochLog] = []
        self.task = ClassificationTask(model, config, steps_per_epoch=sampler.steps_per_epoch, start=sampler.start)

    def go(self) -> RunResult:
        training = self.config.training
        if self.reporter:
            self.reporter.started(
                name=self.config.model.name,
                parameters=count_parameters(self.model),
                effective_lr=training.effective_lr,
                reference=(training.lr, training.reference_batch),
                steps=self.sampler.steps,
                epochs=training.epochs,
                done=self.sampler.start,
                videos=(len(self.train), len(self.validation) if self.validation else 0),
                weights=self.loaded,
            )
        if self.task.step < self.sampler.steps:
            self._fit()
        return RunResult(
            folder=self.output,
            finished=self.task.step >= self.sampler.steps,
            step=self.task.step,
            best=self.best,
            epochs=tuple(self.epochs),
            short_videos=tuple(self.train[index].name for index in sorted(self.task.short_videos)),
        )

    def _fit(self) -> None:
        from pytorch_lightning.loggers import TensorBoardLogger

        training, cuda = self.config.training, torch.cuda.is_available()
        loader = DataLoader(
            TrainingClips(
                self.train,
                num_frames=self.config.model.num_frames,
                size=self.config.views.size,
                data=self.config.data,
                augmentation=self.config.augmentation,
                seed=training.seed,
            ),
            batch_sampler=self.sampler,
            num_workers=self.config.data.workers,
            collate_fn=collate,
            worker_init_fn=leave_signals_to_parent,
            pin_memory=cuda,
        )
        self.model.to(memory_format=torch.channels_last)
        with _quiet_lightning():
            self.logger = TensorBoardLogger(self.output, name="", version="")
            trainer = pl.Trainer(
                accelerator="gpu" if cuda else "cpu",
                devices=1,
                precision="bf16-mixed" if training.precision == "bf16" else "32-true",
                max_epochs=1,
                gradient_clip_val=training.gradient_clip,
                callbacks=[self],
                logger=self.logger,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                use_distributed_sampler=False,
                limit_val_batches=0,
            )
            with self.stop.listening():
                trainer.fit(self.task, loader)
            self.logger.finalize("success")

    def on_train_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        if self.resumed:
            trainer.optimizers[0].load_state_dict(self.resumed.optimizer)
            self._forget_epochs_after(self.resumed.step)
        self._begin_epoch()

    def on_train_batch_end(
        self, trainer: pl.Trainer, task: pl.LightningModule, outputs: Any, batch: dict[str, Any], batch_idx: int
    ) -> None:
        clips = len(batch["label"])
        loss = float(outputs["loss"])
        self.loss_sum += loss * clips
        self.clips += clips
        self.task.step += 1
        rate = learning_rate(self.config.training, self.task.step - 1, self.sampler.steps_per_epoch)
        self.logger.experiment.add_scalar("train/loss", loss, self.task.step)
        self.logger.experiment.add_scalar("train/lr", rate, self.task.step)
        if self.reporter:
            self.reporter.stepped(step=self.task.step, loss=loss, lr=rate, clips=clips)
        if self.task.step % self.sampler.steps_per_epoch == 0:
            self._end_epoch(trainer, rate)
        elif self.stop:
            self._save(trainer)
        if self.stop:
            trainer.should_stop = True

    def _begin_epoch(self) -> None:
        self.loss_sum, self.clips, self.epoch_start = 0.0, 0, time.perf_counter()

    def _end_epoch(self, trainer: pl.Trainer, rate: float) -> None:
        trained = time.perf_counter() - self.epoch_start
        evaluation = self._validate()
        figures = evaluation.video if evaluation else None
        log = EpochLog(
            epoch=self.task.step // self.sampler.steps_per_epoch,
            step=self.task.step,
            lr=rate,
            loss=self.loss_sum / self.clips,
            clips_per_second=self.clips / trained,
            top1=figures.top1 if figures else None,
            top5=figures.top5 if figures else None,
            mean_class_accuracy=figures.mean_class_accuracy if figures else None,
            seconds=time.perf_counter() - self.epoch_start,
        )
        write_weights(self.model, self.output / "last.safetensors")
        if figures:
            figure: float = getattr(figures, self.config.training.best_by)
            if self.best is None or figure > self.best:
                self.best = figure
                write_weights(self.model, self.output / "best.safetensors")
        self._save(trainer)
        self._log(log, evaluation)
        self.epochs.append(log)
        if self.reporter:
            self.reporter.epoch_ended(log, evaluation)
        self._begin_epoch()

    def _validate(self) -> Evaluation | None:
        if self.validation is None:
            return None
        return evaluate_model(
            self.model,
            self.validation,
            self.config.views,
            num_frames=self.config.model.num_frames,
            batch_size=self.config.training.batch_size,
            workers=self.config.data.workers,
            precision=self.config.training.precision,
        )

    def _save(self, trainer: pl.Trainer) -> None:
        save_state(self.output, self.model, trainer.optimizers[0], step=self.task.step, best=self.best)

    def _log(self, log: EpochLog, evaluation: Evaluation | None) -> None:
        path = self.output / EPOCHS_FILE
        new = not path.exists()
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(asdict(log)))
            if new:
                writer.writeheader()
            writer.writerow({key: round(v, 6) if isinstance(v, float) else v for key, v in asdict(log).items()})
        for key in ("top1", "top5", "mean_class_accuracy"):
            if getattr(log, key) is not None:
                self.logger.experiment.add_scalar(f"validation/{key}", getattr(log, key), log.step)
        if evaluation:
            _write_json(self.output / "validation.json", {"epoch": log.epoch, **evaluation.to_dict(self.train.classes)})

    def _forget_epochs_after(self, step: int) -> None:
        """A run killed between its log and its state repeats an epoch: keep one line of it."""
        path = self.output / EPOCHS_FILE
        if not path.is_file():
            return
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = [row for row in reader if int(row["step"]) <= step]
            columns: Sequence[str] = reader.fieldnames or ()
        with written_whole(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)


class _quiet_lightning:
    """Hold back Lightning's advice on hardware, workers and loggers: this project says what a user needs."""

    def __enter__(self) -> None:
        self.loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning.pytorch", "lightning")]
        self.levels = [logger.level for logger in self.loggers]
        for logger in self.loggers:
            logger.setLevel(logging.ERROR)
        self.filters = warnings.catch_warnings()
        self.filters.__enter__()
        warnings.filterwarnings("ignore", module=r"(pytorch_)?lightning.*")

    def __exit__(self, *error: object) -> None:
        for logger, level in zip(self.loggers, self.levels, strict=True):
            logger.setLevel(level)
        self.filters.__exit__(*error)  # type: ignore[arg-type]
