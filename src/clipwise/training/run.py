"""A training run: from configuration and manifest to a folder of weights, logs and the account of both."""

import logging
import shutil
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from clipwise.checkpoint import write_card, write_weights
from clipwise.config import Config, TrainingConfig, load_config, override_reading
from clipwise.data.dataset import DrawSampler, TrainingClips, collate
from clipwise.data.decode import DecodeError
from clipwise.data.failures import (
    Failure,
    FailureAccount,
    OnError,
    TooManyFailuresError,
    deaths_explained,
    reader_died,
)
from clipwise.data.manifest import Manifest
from clipwise.data.prefetch import DevicePrefetcher
from clipwise.data.workers import leave_signals_to_parent
from clipwise.evaluation.protocols import Evaluation, evaluate_model
from clipwise.files import write_json
from clipwise.models.complexity import count_parameters
from clipwise.models.network import VideoNetwork, channels_last
from clipwise.models.registry import create_model, model_entry
from clipwise.models.weights import LoadReport, load_weights
from clipwise.training.account import (
    EpochLog,
    RunAccount,
    append_epoch,
    drop_epochs_after,
    is_run,
    read_unreadable,
    videos_hash,
    write_account,
    write_unreadable,
)
from clipwise.training.resume import (
    STATE,
    EpochSoFar,
    Resumed,
    StopRequest,
    load_state,
    save_state,
    signals_restored,
)
from clipwise.training.task import ClassificationTask

__all__ = ["Reporter", "RunResult", "RunStart", "split_manifest", "train"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunStart:
    """What is known before the first step."""

    name: str
    """Of the network."""
    parameters: int
    config: TrainingConfig
    training_videos: int
    validation_videos: int
    other_splits: tuple[str, ...]
    """Of the data, besides the one to train on."""
    ignored: tuple[str, ...]
    """What lies in the data's folder and is no video."""
    weights: LoadReport | None
    steps: int
    """Of the whole run."""
    done: int
    """Steps made before, by a run that resumes."""
    on_error: OnError


class Reporter(Protocol):
    """What a run tells while it goes on; the command line shows it."""

    def started(self, start: RunStart) -> None:
        """Before the first step."""

    def stepped(self, *, step: int, loss: float, lr: float, clips: int) -> None:
        """After each step, of ``clips`` clips."""

    def failed(self, failures: Sequence[Failure]) -> None:
        """When training videos could not be read and were left out."""

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
    unreadable: tuple[Failure, ...]
    """Videos, of training or validation, that could not be read and were left out."""


def split_manifest(manifest: Manifest, config: Config) -> tuple[Manifest, Manifest | None]:
    """The videos to train on and those to validate on.

    Where the data names no splits, ``data.holdout`` of each class is held out, by the seed.

    Raises:
        ValueError: if the training split does not exist, has fewer than two classes, or a class is too small to hold a
            video out.
    """
    data = config.data
    if manifest.splits:
        if data.train_split not in manifest.splits:
            raise ValueError(
                f"{manifest.source}: no split {data.train_split!r} to train on; there is: "
                f"{', '.join(manifest.splits)}; name them by data.train_split and data.validation_split"
            )
        train = manifest.select(data.train_split)
        validation = manifest.select(data.validation_split) if data.validation_split in manifest.splits else None
    else:
        manifest.require_classes()
        held = _held_out(manifest, data.holdout, np.random.default_rng([config.training.seed, 2]))
        manifest = manifest.with_splits([data.validation_split if out else data.train_split for out in held])
        train, validation = manifest.select(data.train_split), manifest.select(data.validation_split)
    train.require_classes()
    if manifest.multi_label and validation is not None:
        validation.require_classes()
    return train, validation


def _strata(manifest: Manifest) -> NDArray[np.int64]:
    """(V,) the class that a video is drawn or held out as one of."""
    if manifest.multi_label:
        return np.zeros(len(manifest), np.int64)
    return manifest.labels if manifest.labels.ndim == 1 else manifest.labels[:, 0]


def _held_out(manifest: Manifest, share: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """(V,) whether a video is for validation: a share of each class, all segments of a file together.

    Of several heads the first one's classes count; of label sets it is a share of all videos.
    """
    _, files = np.unique([item.name for item in manifest], return_inverse=True)
    held = np.zeros(files.max() + 1, bool)  # of each file
    strata = _strata(manifest)
    for label in np.unique(strata):
        of_class, segments = np.unique(files[strata == label], return_counts=True)
        if len(of_class) < 2:
            what = "the data" if manifest.multi_label else f"class {manifest.heads[0].classes[label]!r}"
            raise ValueError(
                f"{manifest.source}: {what} has one video, so none can be held out for "
                "validation; add videos, or name the splits (a CSV's `split` column, or folders train/ and val/)"
            )
        wanted = max(1, round(share * int(segments.sum())))
        taken = int(segments[held[of_class]].sum())
        for place in rng.permutation(len(of_class)):
            left = ~held[of_class]
            if taken >= wanted or left.sum() < 2:  # one file at least stays for training
                break
            if left[place]:
                held[of_class[place]] = True
                taken += int(segments[place])
    for label in np.unique(strata):  # a file that several classes share may have been held out for another of them
        if held[files[strata == label]].all():
            raise ValueError(
                f"{manifest.source}: all videos of class {manifest.heads[0].classes[label]!r} lie in files that other "
                "classes' validation needs; name the splits, for which `clipwise data split` is there"
            )
    return held[files]


def train(
    data: str | Path | Manifest | None,
    output: str | Path,
    *,
    recipe: str | Path | Config | None = None,
    overrides: Sequence[str] = (),
    resume: bool = False,
    overwrite: bool = False,
    reset_head: bool = False,
    reporter: Reporter | None = None,
) -> RunResult:
    """Train a network on labelled videos and keep the run in a folder, for ``clipwise.load`` and ``evaluate``.

    The folder holds ``config.json`` (as run), ``run.json`` (command, versions, device, data), ``splits.json`` (the
    videos of either part), ``model.json`` (network, class list with its hash, preprocessing, testing protocol),
    ``epochs.csv`` and TensorBoard's file, ``validation.json`` (the last epoch's), ``best.safetensors``,
    ``last.safetensors`` and ``resume.ckpt``.

    Args:
        data: a folder with one folder of videos per class, a manifest CSV, a ``*.pack`` file, or a Manifest; None with
            ``resume`` for the data that the run was begun with.
        output: the run's folder.
        recipe: a recipe's name or file, or a configuration; the defaults when None.
        overrides: such as ``training.epochs=20``; with ``resume`` only ``data.on_error``, ``data.max_failed`` and
            ``data.workers``.
        resume: continue the run in ``output`` as it was begun.
        overwrite: replace the run in ``output``; it is deleted once the new one has something to keep.
        reset_head: start a new head where ``model.weights`` has one of another number of classes.
        reporter: hears of progress.

    Raises:
        ValueError: for data, weights, settings or a folder that cannot be used; nothing is written then.
        DecodeError: if a video cannot be read and ``data.on_error`` is ``raise``; what was trained is saved.
        TooManyFailuresError: if more than ``data.max_failed`` cannot be read; what was trained is saved.
        ChildProcessError: if a process that reads videos dies; what was trained is saved.
        DivergedError: if loss or weights stop being finite; what was saved before stays.
        KeyboardInterrupt: for a second Ctrl-C; the first stops the run after its step, and it returns.
    """
    output = Path(output).resolve()
    _put_back(_aside(output), output)
    if resume:
        if recipe is not None or overwrite or reset_head:
            raise ValueError(
                "a resumed run goes on as it was begun: leave out the recipe, overwriting and the new head"
            )
        begun = RunAccount.read(output)
        config = override_reading(begun.config, overrides)
        data = data if data is not None else begun.data_source(output)
    else:
        begun = None
        config = recipe if isinstance(recipe, Config) else load_config(recipe, overrides)
    if data is None:
        raise ValueError("nothing to train on: give a folder of class folders, a manifest CSV or a *.pack file")
    manifest = data if isinstance(data, Manifest) else Manifest.read(data)
    if config.data.head is not None:
        manifest = manifest.with_head(config.data.head)
    if manifest.multi_label and config.training.balanced:
        raise ValueError(
            f"{manifest.source}: a video has a set of labels, so classes cannot be drawn with equal probability; "
            "leave training.balanced at false"
        )
    manifest.check_files()
    train, validation = split_manifest(manifest, config)
    if begun and begun.origin["data"].get("videos_sha256") != videos_hash(train, validation):
        raise ValueError(
            f"{manifest.source}: its videos or their labels are not those that the run in {output} was begun with"
        )
    others = tuple(split for split in manifest.splits if split != config.data.train_split)
    if not resume:
        _check_folder(output, overwrite=overwrite)
    settings = config.training
    sampler = DrawSampler(
        _strata(train),
        batch_size=settings.batch_size,
        epochs=settings.epochs,
        balanced=settings.balanced,
        seed=settings.seed,
    )
    torch.manual_seed(settings.seed)
    model = create_model(
        config.model.name,
        num_classes=len(manifest.classes),
        num_frames=config.model.num_frames,
        **config.model.options,
    )
    if resume:
        resumed = load_state(output, model)
        sampler.start = resumed.step
        return _Run(config, model, train, validation, sampler, output, reporter, resumed, None, others).go()
    loaded = None
    if config.model.weights is not None:
        loaded = load_weights(
            model,
            config.model.weights,
            name=config.model.name,
            image_backbone=model_entry(config.model.name, config.model.options.get("backbone")).image_backbone,
            reset_head=reset_head,
        )
    with _new_folder(output):
        named = None if recipe is None or isinstance(recipe, Config) else str(recipe)
        write_card(output, config.model, manifest.label_space, config.views)
        write_account(output, config, train, validation, named, loaded)
        return _Run(config, model, train, validation, sampler, output, reporter, None, loaded, others).go()


def _check_folder(output: Path, *, overwrite: bool) -> None:
    """Refuse a folder that is in use, before weights are fetched for a run in it."""
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output}: is a file; give a folder for the run")
    occupied = output.is_dir() and any(output.iterdir())
    if occupied and not overwrite:
        raise ValueError(f"{output}: exists already; --resume continues that run, --overwrite replaces it")
    if occupied and not is_run(output):
        raise ValueError(f"{output}: holds files that are no training run, so --overwrite will not delete it")


@contextmanager
def _new_folder(output: Path) -> Iterator[None]:
    """The folder of a run that begins.

    If nothing of it is worth keeping in the end, all is as before: an earlier run is put back, and a folder that was
    not there is gone.
    """
    aside = _aside(output)
    existed = output.is_dir()
    occupied = existed and any(output.iterdir())
    try:
        try:
            if occupied:
                output.rename(aside)
            output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(
                f"{output}: cannot be written ({error.strerror or error}); give another --output"
            ) from error
        yield
    finally:
        if not (output / STATE).is_file():
            if not occupied or aside.is_dir():
                shutil.rmtree(output, ignore_errors=True)
            if existed and not occupied:
                output.mkdir(exist_ok=True)
        _put_back(aside, output)


def _aside(output: Path) -> Path:
    return output.with_name(f".{output.name}.replaced")


def _put_back(aside: Path, output: Path) -> None:
    """Bring back the run that was set aside, unless the one that replaces it has something to keep; a run that was
    killed outright left that to the next."""
    if not aside.is_dir():
        return
    if (output / STATE).is_file():
        shutil.rmtree(aside, ignore_errors=True)
    else:
        shutil.rmtree(output, ignore_errors=True)
        aside.rename(output)


_UNREAD = (DecodeError, TooManyFailuresError, ChildProcessError)
"""What stops a run over its data; the network is sound then."""


class _Run(pl.Callback):
    """What happens around Lightning's steps: validation, logs, weights, and stopping.

    Lightning sees one long epoch of all steps that are left. Epochs are counted here, from the step, so that there is
    one counter to resume from.
    """

    def __init__(
        self,
        config: Config,
        model: VideoNetwork,
        train: Manifest,
        validation: Manifest | None,
        sampler: DrawSampler,
        output: Path,
        reporter: Reporter | None,
        resumed: Resumed | None,
        loaded: LoadReport | None,
        other_splits: tuple[str, ...],
    ) -> None:
        self.other_splits = other_splits
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
        self.unreadable = FailureAccount(
            config.data.on_error,
            config.data.max_failed,
            len(train),
            remedy="training stops at a video that it cannot read: take it out (`clipwise data check` finds all such), "
            "or leave such videos out and have them named: data.on_error=skip, also with --resume",
        )
        before = read_unreadable(output) if resumed else {}
        self.unreadable.add(before.get("training", ()))
        self.unreadable_in_validation = {failure.video: failure for failure in before.get("validation", ())}
        self.task = ClassificationTask(
            model,
            train.label_space,
            config,
            self.unreadable,
            steps_per_epoch=sampler.steps_per_epoch,
            start=sampler.start,
        )

    def go(self) -> RunResult:
        if self.reporter:
            self.reporter.started(
                RunStart(
                    name=self.config.model.name,
                    parameters=count_parameters(self.model),
                    config=self.config.training,
                    training_videos=len(self.train),
                    validation_videos=len(self.validation) if self.validation else 0,
                    other_splits=self.other_splits,
                    ignored=self.train.ignored,
                    weights=self.loaded,
                    steps=self.sampler.steps,
                    done=self.sampler.start,
                    on_error=self.config.data.on_error,
                )
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
            unreadable=(*self.unreadable, *self.unreadable_in_validation.values()),
        )

    def _fit(self) -> None:
        training, cuda = self.config.training, torch.cuda.is_available()
        if self.config.data.in_memory:
            self._hold_in_memory()
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
        channels_last(self.model)
        self.board = _tensorboard(self.output, self.sampler.start)
        with _quiet_lightning(), signals_restored(), _interrupted_as_such(), deaths_explained():
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
            ).fit(self.task, DevicePrefetcher(loader, torch.device("cuda" if cuda else "cpu")))
        if self.board:
            self.board.close()

    def _hold_in_memory(self) -> None:
        from clipwise.data.memory import hold_in_memory

        short_side = round(self.config.views.size / self.config.views.crop_ratio)
        workers = self.config.data.workers
        self.train = hold_in_memory(self.train, short_side=short_side, workers=workers)
        if self.validation is not None:
            self.validation = hold_in_memory(self.validation, short_side=short_side, workers=workers)

    def on_train_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        # Not before: Lightning puts a handler of its own on SIGTERM, which would end the process in mid-step.
        self.stop.listen()
        if self.resumed:
            trainer.optimizers[0].load_state_dict(self.resumed.optimizer)
            drop_epochs_after(self.output, self.resumed.step)
        self._begin_epoch(self.resumed.epoch if self.resumed else EpochSoFar())

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        task: pl.LightningModule,
        outputs: Any,
        batch: dict[str, Any],
        batch_idx: int,
    ) -> None:
        # A batch of which nothing could be read has neither.
        clips, loss = (len(batch["label"]), float(outputs["loss"])) if "label" in batch else (0, 0.0)
        if batch["failures"] and self.reporter:
            self.reporter.failed(batch["failures"])
        rate = float(trainer.optimizers[0].param_groups[0]["lr"])
        self.loss_sum += loss * clips
        self.clips += clips
        self.task.step += 1
        if self.board and clips:
            self.board.add_scalar("train/loss", loss, self.task.step)
            self.board.add_scalar("train/lr", rate, self.task.step)
        if self.reporter:
            self.reporter.stepped(step=self.task.step, loss=loss, lr=rate, clips=clips)
        if self.task.step % self.sampler.steps_per_epoch == 0:
            self._end_epoch(trainer, rate, batch)
        elif self.stop:
            self.task.check_sound(batch)
            self._save(trainer)
        if self.stop:
            trainer.should_stop = True

    def on_exception(self, trainer: pl.Trainer, task: pl.LightningModule, exception: BaseException) -> None:
        # The network is sound, and its last steps are worth keeping.
        over_data = isinstance(exception, _UNREAD) or reader_died(exception)
        if over_data and self.task.step > self.sampler.start:
            self._save(trainer)

    def _begin_epoch(self, so_far: EpochSoFar) -> None:
        self.loss_sum, self.clips = so_far.loss, so_far.clips
        self.epoch_start = time.perf_counter() - so_far.seconds

    def _end_epoch(self, trainer: pl.Trainer, rate: float, batch: dict[str, Any]) -> None:
        trained = time.perf_counter() - self.epoch_start
        if not self.clips:
            some = "; ".join(map(str, list(self.unreadable)[:3]))
            raise TooManyFailuresError(f"none of the videos of this epoch could be read, so nothing was learnt: {some}")
        self.task.check_sound(batch)
        try:
            evaluation = self._validate()
        except _UNREAD:
            # The epoch is trained; a run that resumes begins the next one.
            write_weights(self.model, self.output / "last.safetensors")
            self._begin_epoch(EpochSoFar())
            raise
        write_weights(self.model, self.output / "last.safetensors")
        figures = evaluation.video if evaluation else None
        numbers = dict(figures.figures) if figures else {}
        if figures:
            figure = numbers["mean_average_precision" if self.train.multi_label else self.config.training.best_by]
            if self.best is None or figure > self.best:
                self.best = figure
                write_weights(self.model, self.output / "best.safetensors")
        log = EpochLog(
            epoch=self.task.step // self.sampler.steps_per_epoch,
            step=self.task.step,
            lr=rate,
            loss=self.loss_sum / self.clips,
            clips_per_second=self.clips / trained,
            top1=numbers.pop("top1", None),
            top5=numbers.pop("top5", None),
            mean_class_accuracy=numbers.pop("mean_class_accuracy", None),
            seconds=time.perf_counter() - self.epoch_start,
            more=numbers,
        )
        append_epoch(self.output, log)
        if evaluation and figures:
            for key, value in figures.figures.items() if self.board else ():
                self.board.add_scalar(f"validation/{key}", value, log.step)
            result = evaluation.to_dict(self.train.label_space)
            write_json(self.output / "validation.json", {"epoch": log.epoch, **result})
        # Last of all: a run that is killed before this repeats the epoch, and its line with it.
        self._begin_epoch(EpochSoFar())
        self._save(trainer)
        self.epochs.append(log)
        if self.reporter:
            self.reporter.epoch_ended(log, evaluation)

    def _validate(self) -> Evaluation | None:
        if self.validation is None:
            return None
        evaluation = evaluate_model(
            self.model,
            self.validation,
            self.config.views,
            num_frames=self.config.model.num_frames,
            batch_size=self.config.training.batch_size,
            workers=self.config.data.workers,
            precision=self.config.training.precision,
            on_error=self.config.data.on_error,
            max_failed=self.config.data.max_failed,
        )
        self.unreadable_in_validation |= {failure.video: failure for failure in evaluation.unreadable}
        return evaluation

    def _save(self, trainer: pl.Trainer) -> None:
        write_unreadable(self.output, self.unreadable, self.unreadable_in_validation.values())
        so_far = EpochSoFar(self.loss_sum, self.clips, time.perf_counter() - self.epoch_start if self.clips else 0.0)
        save_state(self.output, self.model, trainer.optimizers[0], step=self.task.step, best=self.best, epoch=so_far)


@contextmanager
def _interrupted_as_such() -> Iterator[None]:
    """Lightning answers a Ctrl-C with ``sys.exit(1)``; whoever called should hear what it was."""
    try:
        yield
    except SystemExit as end:
        if isinstance(end.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from end
        raise


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


def _tensorboard(folder: Path, step: int) -> Any:
    """TensorBoard's writer, or None where it is not installed; the figures stand in ``epochs.csv`` too."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        _log.warning("tensorboard is not installed: no curves for it are written")
        return None
    return SummaryWriter(folder, purge_step=step + 1 if step else None)
