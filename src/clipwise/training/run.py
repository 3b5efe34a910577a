"""A training run: from configuration and manifest to a folder of weights, logs and the account of both."""

import logging
import shutil
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from clipwise.checkpoint import write_card, write_weights
from clipwise.config import Config
from clipwise.data.dataset import DrawSampler, TrainingClips, collate
from clipwise.data.manifest import Manifest
from clipwise.evaluation.protocols import Evaluation, evaluate_model, leave_signals_to_parent
from clipwise.models.complexity import count_parameters
from clipwise.models.registry import create_model
from clipwise.models.resnet import ResNet
from clipwise.models.weights import LoadReport, load_weights
from clipwise.training.account import (
    EpochLog,
    RunAccount,
    append_epoch,
    drop_epochs_after,
    is_run,
    write_account,
    write_json,
)
from clipwise.training.resume import STATE, Resumed, StopRequest, load_state, save_state
from clipwise.training.schedule import learning_rate
from clipwise.training.task import ClassificationTask

__all__ = ["Reporter", "RunResult", "split_manifest", "train_model"]


class Reporter(Protocol):
    """What a run tells while it goes on; the command line shows it."""

    def started(
        self,
        *,
        name: str,
        parameters: int,
        effective_lr: float,
        batch_sizes: tuple[int, int],
        steps: int,
        epochs: int,
        done: int,
        videos: tuple[int, int],
        weights: LoadReport | None,
    ) -> None:
        """Before the first step; ``done`` steps of ``steps`` were made earlier.

        ``batch_sizes`` are the run's and the one that its rate is stated for; ``videos`` counts those of training
        and of validation.
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
    """Steps done in the whole run."""
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
        ValueError: if the training split does not exist, has fewer than two classes, or a class is too small to hold a
            video out.
    """
    data = config.data
    if manifest.splits:
        train = manifest.select(data.train_split)
        validation = manifest.select(data.validation_split) if data.validation_split in manifest.splits else None
    else:
        manifest.require_classes()
        rng = np.random.default_rng([config.training.seed, 2])
        held = np.zeros(len(manifest), bool)
        for label in np.unique(manifest.labels):
            of_class = np.flatnonzero(manifest.labels == label)
            if len(of_class) < 2:
                raise ValueError(
                    f"{manifest.source}: class {manifest.classes[label]!r} has one video, so none can be held out for "
                    "validation; add videos, or name the splits (a CSV's `split` column, or folders train/ and val/)"
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
    videos of either part), ``model.json`` (network, class list with its hash, preprocessing, testing protocol),
    ``epochs.csv`` and TensorBoard's file, ``validation.json`` (the last epoch's), ``best.safetensors``,
    ``last.safetensors`` and ``resume.ckpt``.

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
        DivergedError: if the loss is not finite; the weights and state of the last epoch stay.
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
    loaded = resumed = None
    if resume:
        resumed = load_state(output, model)
        sampler.start = resumed.step
        if [item.name for item in train] != list(RunAccount.read(output).training_videos):
            raise ValueError(
                f"{manifest.source}: its training videos are not those that the run in {output} was begun with"
            )
    else:
        if config.model.weights is not None:
            loaded = load_weights(model, config.model.weights, name=config.model.name)
        _make_folder(output, overwrite=overwrite)
    try:
        if not resume:
            write_card(output, config.model, manifest.classes, config.views)
            write_account(output, config, train, validation, recipe)
        return _Run(config, model, train, validation, sampler, output, reporter, resumed, loaded).go()
    except BaseException:
        # Before the first state is saved there is nothing to resume from: leave no half of a run behind.
        if not (output / STATE).is_file():
            shutil.rmtree(output, ignore_errors=True)
        raise


def _make_folder(output: Path, *, overwrite: bool) -> None:
    if output.exists():
        if not output.is_dir():
            raise ValueError(f"{output}: is a file; give a folder for the run")
        occupied = any(output.iterdir())
        if occupied and not overwrite:
            raise ValueError(f"{output}: exists already; --resume continues that run, --overwrite deletes it first")
        if occupied and not is_run(output):
            raise ValueError(f"{output}: holds files that are no training run, so --overwrite will not delete it")
    try:
        if output.exists():
            shutil.rmtree(output)
        output.mkdir(parents=True)
    except OSError as error:
        raise ValueError(f"{output}: cannot be written ({error.strerror}); give another --output") from error


class _Run(pl.Callback):
    """What happens around Lightning's steps: validation, logs, weights, and stopping.

    Lightning sees one long epoch of all steps that are left. Epochs are counted here, from the step, so that there is
    one counter to resume from.
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
                batch_sizes=(training.batch_size, training.reference_batch),
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
        from torch.utils.tensorboard import SummaryWriter

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
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        with _quiet_lightning(), SummaryWriter(self.output) as self.board, self.stop.listening():
            pl.Trainer(
                accelerator="gpu" if cuda else "cpu",
                devices=1,
                precision="bf16-mixed" if training.precision == "bf16" else "32-true",
                max_epochs=1,
                gradient_clip_val=training.gradient_clip,
                callbacks=[self],
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                use_distributed_sampler=False,
                limit_val_batches=0,
            ).fit(self.task, loader)

    def on_train_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        if self.resumed:
            trainer.optimizers[0].load_state_dict(self.resumed.optimizer)
            drop_epochs_after(self.output, self.resumed.step)
        self._begin_epoch()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        task: pl.LightningModule,
        outputs: Any,
        batch: dict[str, Any],
        batch_idx: int,
    ) -> None:
        clips, loss = len(batch["label"]), float(outputs["loss"])
        rate = learning_rate(self.config.training, self.task.step, self.sampler.steps_per_epoch)
        self.loss_sum += loss * clips
        self.clips += clips
        self.task.step += 1
        self.board.add_scalar("train/loss", loss, self.task.step)
        self.board.add_scalar("train/lr", rate, self.task.step)
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
        write_weights(self.model, self.output / "last.safetensors")
        if figures:
            figure: float = getattr(figures, self.config.training.best_by)
            if self.best is None or figure > self.best:
                self.best = figure
                write_weights(self.model, self.output / "best.safetensors")
        self._save(trainer)
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
        append_epoch(self.output, log)
        if evaluation and figures:
            for key in ("top1", "top5", "mean_class_accuracy"):
                self.board.add_scalar(f"validation/{key}", getattr(figures, key), log.step)
            write_json(
                self.output / "validation.json",
                {"epoch": log.epoch, **evaluation.to_dict(self.train.classes)},
            )
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


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Hold back Lightning's advice on hardware, workers and loggers: this project says what a user needs."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning.pytorch", "lightning")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(pytorch_)?lightning.*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
