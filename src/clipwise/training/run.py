"""A training run: from configuration and manifest to a folder of weights, logs and the account of both.

Under ``torchrun`` every process runs this; all of them compute what follows from data and configuration, and the first
one alone reads weights to start from, writes, and reports (:mod:`clipwise.processes`).
"""

import logging
import os
import shutil
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from pytorch_lightning.strategies import DDPStrategy
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from clipwise.checkpoint import write_card, write_weights
from clipwise.config import Config, DataConfig, TrainingConfig, load_config, override_reading
from clipwise.data.dataset import DrawSampler, TrainingClips
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
from clipwise.data.shared_buffers import ClipLoader
from clipwise.data.workers import available_cores
from clipwise.evaluation.protocols import Evaluation, evaluate_model
from clipwise.files import held_alone, write_json
from clipwise.models.complexity import count_parameters
from clipwise.models.network import VideoNetwork, channels_last
from clipwise.models.registry import create_model, model_entry
from clipwise.models.weights import LoadReport, load_weights
from clipwise.processes import Processes, join
from clipwise.training.account import (
    EpochLog,
    RunAccount,
    append_epoch,
    drop_epochs_after,
    is_run,
    kept_weights,
    read_unreadable,
    videos_hash,
    write_account,
    write_unreadable,
)
from clipwise.training.compiling import compiling_pays
from clipwise.training.recompute import recompute_blocks
from clipwise.training.resume import (
    STATE,
    EpochSoFar,
    Resumed,
    StopRequest,
    hear_of_deaths_between_steps,
    load_state,
    save_state,
    signals_restored,
)
from clipwise.training.task import ClassificationTask
from clipwise.training.waiting import WaitedFor

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
    processes: int
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

    Where the data names no splits, ``data.holdout`` of each class is held out, by the seed; nothing where
    ``data.validation_split`` is none.

    Raises:
        ValueError: if the training split or a validation split that was named does not exist, training has fewer than
            two classes, or a class is too small to hold a video out.
    """
    data = config.data
    if manifest.splits:
        if data.train_split not in manifest.splits:
            raise ValueError(
                f"{manifest.source}: no split {data.train_split!r} to train on; there is: "
                f"{', '.join(manifest.splits)}; name them by data.train_split and data.validation_split"
            )
        if data.validation_split not in (*manifest.splits, DataConfig.validation_split, "none"):
            raise ValueError(
                f"{manifest.source}: no split {data.validation_split!r} to validate on; there is: "
                f"{', '.join(manifest.splits)}; name one by data.validation_split, none to train without"
            )
        train = manifest.select(data.train_split)
        validation = manifest.select(data.validation_split) if data.validation_split in manifest.splits else None
    elif data.validation_split == "none":
        train, validation = manifest, None
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
        overrides: such as ``training.epochs=20``; with ``resume`` only those of :data:`clipwise.config.READING`, by
            which a run sees the same.
        resume: continue the run in ``output`` as it was begun.
        overwrite: replace the run in ``output``; it is deleted once the new one has something to keep.
        reset_head: start a new head where ``model.weights`` has one of other classes.
        reporter: hears of progress; of several processes, the first one's.

    Where ``torchrun`` started several processes, all call this with the same arguments and share each step's clips.

    Raises:
        ValueError: for data, weights, settings or a folder that cannot be used; nothing is written then.
        DecodeError: if a video cannot be read and ``data.on_error`` is ``raise``; what was trained is saved.
        TooManyFailuresError: if more than ``data.max_failed`` cannot be read; what was trained is saved.
        ChildProcessError: if a process that reads videos dies; what was trained is saved.
        DivergedError: if loss or weights stop being finite; what was saved before stays.
        KeyboardInterrupt: for a second Ctrl-C; the first stops the run after its step, and it returns.
    """
    output = Path(output).resolve()
    processes = join()
    with processes.together(), _alone(output) if processes.first else nullcontext():
        if processes.first:
            _put_back(_aside(output), output)
        processes.exchange()
        return _train(
            data,
            output,
            recipe=recipe,
            overrides=overrides,
            resume=resume,
            overwrite=overwrite,
            reset_head=reset_head,
            reporter=reporter if processes.first else None,
            processes=processes,
        )


@contextmanager
def _alone(output: Path) -> Iterator[None]:
    """Refuse a second run in the same folder at the same time."""
    with ExitStack() as held:
        try:
            held.enter_context(held_alone(output))
        except ValueError as error:
            raise ValueError(f"{error}, which trains there; wait for it to end, or give another --output") from error
        except OSError as error:
            # A mounted volume may be a folder that can be written in one that cannot: then there is no lock.
            if not os.access(output, os.W_OK):
                raise ValueError(
                    f"{output}: cannot be written ({error.strerror or error}); give another --output"
                ) from error
        yield


def _train(
    data: str | Path | Manifest | None,
    output: Path,
    *,
    recipe: str | Path | Config | None,
    overrides: Sequence[str],
    resume: bool,
    overwrite: bool,
    reset_head: bool,
    reporter: Reporter | None,
    processes: Processes,
) -> RunResult:
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
    manifest.check_files(config.data.on_error)
    train, validation = split_manifest(manifest, config)
    if begun and begun.origin["data"].get("videos_sha256") != videos_hash(train, validation):
        raise ValueError(
            f"{manifest.source}: its videos or their labels are not those that the run in {output} was begun with"
        )
    others = tuple(split for split in manifest.splits if split != config.data.train_split)
    if not resume and processes.first:
        _check_folder(output, overwrite=overwrite)
    _check_processes(config, len(train), processes)
    settings = config.training
    sampler = DrawSampler(
        _strata(train),
        batch_size=settings.batch_size,
        epochs=settings.epochs,
        balanced=settings.balanced,
        seed=settings.seed,
        rank=processes.rank,
        processes=processes.count,
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
        _delete_partial_files(output, processes)
        return _Run(config, model, train, validation, sampler, output, reporter, resumed, None, others, processes).go()
    loaded = None
    if config.model.weights is not None and processes.first:
        loaded = load_weights(
            model,
            config.model.weights,
            name=config.model.name,
            image_backbone=model_entry(config.model.name, config.model.options.get("backbone")).image_backbone,
            reset_head=reset_head,
            classes=manifest.classes,
        )
    with _new_folder(output) if processes.first else nullcontext():
        named = None if recipe is None or isinstance(recipe, Config) else str(recipe)
        if processes.first:
            write_card(output, config.model, manifest.label_space, config.views, kept_weights(config))
            write_account(output, config, train, validation, named, loaded, processes.count)
        return _Run(config, model, train, validation, sampler, output, reporter, None, loaded, others, processes).go()


def _check_processes(config: Config, videos: int, processes: Processes) -> None:
    """Refuse what cannot be trained in so many processes, or on such a device."""
    training, count, local = config.training, processes.count, processes.local_count
    if training.sync_batch_norm and not torch.cuda.is_available():
        raise ValueError(
            "training.sync_batch_norm runs on GPUs only, for PyTorch has no other; there is none here: set it to false"
        )
    if torch.cuda.is_available() and local > torch.cuda.device_count():
        raise ValueError(
            f"{local} processes on a machine with {torch.cuda.device_count()} GPUs: start as many as there are GPUs "
            "(torchrun --nproc-per-node)"
        )
    if training.batch_size % count or training.batch_size < count * training.accumulate:
        raise ValueError(
            f"training.batch_size, the clips of a step, must be a multiple of the {count} processes that share it, and "
            f"at least {training.accumulate} (training.accumulate) for each, got {training.batch_size}"
        )
    last = videos % training.batch_size or training.batch_size
    if training.sync_batch_norm and count > 1 and not training.balanced and last // count < training.accumulate:
        raise ValueError(
            f"an epoch's last step has {last} clips, too few for {count} processes with training.sync_batch_norm; take "
            "another training.batch_size, or leave sync_batch_norm out"
        )
    if config.data.in_memory and local > 1:
        raise ValueError(
            f"each of {local} processes would hold all videos in memory: leave data.in_memory out, and pack the videos "
            "instead (`clipwise data pack`), whose pages processes share"
        )


def _delete_partial_files(output: Path, processes: Processes) -> None:
    """Delete what a run that was killed had half written; files of that name are never taken for whole ones."""
    for name in (STATE, "best.safetensors", "last.safetensors") if processes.first else ():
        for partial in output.glob(f".{name}.*"):
            partial.unlink(missing_ok=True)


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

_WAITING = 0.1
"""Share of its time that training may wait for data before that is worth a word,"""
_WAITED = 10.0
"""if it adds up to so many seconds."""


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
        processes: Processes,
    ) -> None:
        self.processes = processes
        self.mean: AveragedModel | None = None
        """Of the weights; what is validated and kept, where the configuration asks for it."""
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
        self.late: float | None = 0.0
        """Seconds waited for data in this session's epochs; None once that was said."""
        self.trained = 0.0
        """Seconds that they took."""
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
            processes=processes,
        )
        if config.training.sync_batch_norm and processes.count > 1:  # one alone has no group to be synchronised in
            nn.SyncBatchNorm.convert_sync_batchnorm(model)

    @property
    def kept(self) -> VideoNetwork:
        """The network whose weights are validated and written."""
        return cast(VideoNetwork, self.mean.module) if self.mean else self.model

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
                    processes=self.processes.count,
                    steps=self.sampler.steps,
                    done=self.sampler.start,
                    on_error=self.config.data.on_error,
                )
            )
        if self.task.step < self.sampler.steps:
            self._fit()
        short = set().union(*self.processes.gather(self.task.short_videos))
        return RunResult(
            folder=self.output,
            finished=self.task.step >= self.sampler.steps,
            step=self.task.step,
            best=self.best,
            epochs=tuple(self.epochs),
            short_videos=tuple(self.train[index].name for index in sorted(short)),
            unreadable=(*self.unreadable, *self.unreadable_in_validation.values()),
        )

    def _fit(self) -> None:
        training, cuda = self.config.training, torch.cuda.is_available()
        if self.config.data.in_memory:
            self._hold_in_memory()
        loader = ClipLoader(
            TrainingClips(
                self.train,
                num_frames=self.config.model.num_frames,
                size=self.config.views.size,
                data=self.config.data,
                augmentation=self.config.augmentation,
                seed=training.seed,
                twins=training.twins,
            ),
            batch_sampler=self.sampler,
            num_workers=self.config.data.workers,
            pin_memory=cuda,
        )
        # Tensor cores want it, and on a CPU ResNet-50 takes a fifth less time with it.
        channels_last(self.model)
        self.board = _tensorboard(self.output, self.sampler.start) if self.processes.first else None
        device = torch.device("cuda", self.processes.local_rank) if cuda else torch.device("cpu")
        self.data = WaitedFor(DevicePrefetcher(loader, device))
        if training.activation_checkpointing:
            recompute_blocks(self.model)
        if compiling_pays(training.compile, device, self.sampler.steps):
            self.task.compile_network()
        if cuda and training.precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
            _log.warning(
                "%s has no arithmetic in bf16, which is then slower than fp32: training.precision=fp32 is better here",
                torch.cuda.get_device_name(device),
            )
        # An error that one process alone has met so far ends all here: Lightning's own meeting would wait for that one.
        self.processes.exchange()
        # However the run ends: TensorBoard's own thread would write into a folder that is being taken away.
        board = closing(self.board) if self.board else nullcontext()
        with board, _quiet_lightning(), signals_restored(), _interrupted_as_such(), deaths_explained():
            pl.Trainer(
                accelerator="gpu" if cuda else "cpu",
                devices=self.processes.local_count,
                num_nodes=self.processes.count // self.processes.local_count,
                # Buffers at the start and before each validation: the first process's are what is kept.
                strategy=DDPStrategy(broadcast_buffers=False) if self.processes.count > 1 else "auto",
                precision="bf16-mixed" if training.precision == "bf16" else "32-true",
                max_epochs=1,
                callbacks=[self],
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                use_distributed_sampler=False,
                limit_val_batches=0,
            ).fit(self.task, self.data)

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
        # The first process alone has read the weights to start from; Lightning has sent the parameters, and no buffers.
        self.processes.same_buffers(self.model)
        if self.resumed:
            optimizer = trainer.optimizers[0]
            fused = optimizer.param_groups[0]["fused"]
            optimizer.load_state_dict(self.resumed.optimizer)
            for group in optimizer.param_groups:  # as suits this device; the file may be another's
                group["fused"] = fused
            if self.processes.first:
                drop_epochs_after(self.output, self.resumed.step)
        if decay := self.config.training.ema:
            self.mean = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
            if self.resumed and self.resumed.mean:
                self.mean.load_state_dict(self.resumed.mean)
        self._begin_epoch(self.resumed.epoch if self.resumed else EpochSoFar())

    def on_train_batch_start(
        self, trainer: pl.Trainer, task: pl.LightningModule, batch: dict[str, Any], batch_idx: int
    ) -> None:
        hear_of_deaths_between_steps()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        task: pl.LightningModule,
        outputs: Any,
        batch: dict[str, Any],
        batch_idx: int,
    ) -> None:
        clips, loss, rate = self.task.clips, self.task.loss, self.task.rate
        if self.task.failures and self.reporter:
            self.reporter.failed(self.task.failures)
        self.loss_sum += loss * clips
        self.clips += clips
        self.task.step += 1
        if self.mean:
            self.mean.update_parameters(self.model)
        if self.board and clips:
            self.board.add_scalar("train/loss", loss, self.task.step)
            self.board.add_scalar("train/lr", rate, self.task.step)
        if self.reporter:
            self.reporter.stepped(step=self.task.step, loss=loss, lr=rate, clips=clips)
        epoch_ends = self.task.step % self.sampler.steps_per_epoch == 0
        if epoch_ends:
            self._end_epoch(trainer, rate, batch)
        if not any(asked for (asked,) in self.processes.exchange(bool(self.stop))):
            return
        if not epoch_ends:
            self.task.check_sound(batch)
            self._save(trainer)
        trainer.should_stop = True

    def on_exception(self, trainer: pl.Trainer, task: pl.LightningModule, exception: BaseException) -> None:
        # The network is sound, and its last steps are worth keeping.
        over_data = isinstance(exception, _UNREAD) or reader_died(exception)
        if over_data and self.task.step > self.sampler.start:
            self._save(trainer)

    def _begin_epoch(self, so_far: EpochSoFar) -> None:
        self.loss_sum, self.clips = so_far.loss, so_far.clips
        self.epoch_start = time.perf_counter() - so_far.seconds
        self.waited_before = self.data.seconds - so_far.waited
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    @property
    def waited(self) -> float:
        """Seconds in which this epoch's steps waited for data."""
        return self.data.seconds - self.waited_before

    def _end_epoch(self, trainer: pl.Trainer, rate: float, batch: dict[str, Any]) -> None:
        trained = time.perf_counter() - self.epoch_start
        if not self.clips:
            some = "; ".join(map(str, list(self.unreadable)[:3]))
            raise TooManyFailuresError(f"none of the videos of this epoch could be read, so nothing was learnt: {some}")
        self.task.check_sound(batch)
        peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
        waited, peaks = zip(*self.processes.exchange(self.waited, peak), strict=True)
        self._say_if_late(max(waited), trained)
        try:
            evaluation = self._validate()
        except _UNREAD:
            # The epoch is trained; a run that resumes begins the next one.
            if self.processes.first:
                write_weights(self.kept, self.output / "last.safetensors")
            self._begin_epoch(EpochSoFar())
            raise
        figures = evaluation.video if evaluation else None
        numbers = dict(figures.figures) if figures else {}
        better = False
        if figures:
            figure = numbers["mean_average_precision" if self.train.multi_label else self.config.training.best_by]
            better = self.best is None or figure > self.best
            self.best = figure if better else self.best
        log = EpochLog(
            epoch=self.task.step // self.sampler.steps_per_epoch,
            step=self.task.step,
            lr=rate,
            loss=self.loss_sum / self.clips,
            clips_per_second=self.clips / trained,
            waiting=max(waited) / trained,
            peak_gib=max(peaks) or None,
            top1=numbers.pop("top1", None),
            top5=numbers.pop("top5", None),
            mean_class_accuracy=numbers.pop("mean_class_accuracy", None),
            seconds=time.perf_counter() - self.epoch_start,
            more=numbers,
        )
        if self.processes.first:
            self._write(log, evaluation, better=better)
        # Last of all: a run that is killed before this repeats the epoch, and its line with it.
        self._begin_epoch(EpochSoFar())
        self._save(trainer)
        self.epochs.append(log)
        if self.reporter:
            self.reporter.epoch_ended(log, evaluation)

    def _say_if_late(self, waited: float, trained: float) -> None:
        """Say once that training waits for its data, and what helps; the start of the readers does not count."""
        if self.late is None or not self.processes.first:
            return
        start = 0.0 if self.epochs else self.data.for_first
        self.late += waited - start
        self.trained += trained - start
        if self.late > _WAITED and self.late > _WAITING * self.trained:
            _log.warning(
                "training waits for its data %.0f %% of the time: set data.workers higher (now %d; this process may "
                "use %d cores), or pack the videos, shrunk to what training needs (clipwise data pack --short-side %d)",
                100 * self.late / self.trained,
                self.config.data.workers,
                available_cores(),
                round(self.config.views.size / self.config.views.crop_ratio),
            )
            self.late = None

    def _write(self, log: EpochLog, evaluation: Evaluation | None, *, better: bool) -> None:
        write_weights(self.kept, self.output / "last.safetensors")
        if better:
            write_weights(self.kept, self.output / "best.safetensors")
        append_epoch(self.output, log)
        if self.board:
            self.board.add_scalar("train/waiting", log.waiting, log.step)
            if log.peak_gib is not None:
                self.board.add_scalar("train/peak_gib", log.peak_gib, log.step)
        if evaluation:
            if self.board:
                for key, value in evaluation.video.figures.items():
                    self.board.add_scalar(f"validation/{key}", value, log.step)
            result = evaluation.to_dict(self.train.label_space)
            write_json(self.output / "validation.json", {"epoch": log.epoch, **result})

    def _validate(self) -> Evaluation | None:
        if self.validation is None:
            return None
        training, views = self.config.training, self.config.views
        self.processes.same_buffers(self.kept)
        evaluation = evaluate_model(
            self.kept,
            self.validation,
            views.one if training.validation_views == "one" else views,
            num_frames=self.config.model.num_frames,
            # As many at a time as in training, for the memory is as large.
            batch_size=training.batch_size // (self.processes.count * training.accumulate),
            workers=self.config.data.workers,
            precision=training.precision,
            on_error=self.config.data.on_error,
            max_failed=self.config.data.max_failed,
            processes=self.processes,
        )
        self.unreadable_in_validation |= {failure.video: failure for failure in evaluation.unreadable}
        return evaluation

    def _save(self, trainer: pl.Trainer) -> None:
        if not self.processes.first:
            return
        write_unreadable(self.output, self.unreadable, self.unreadable_in_validation.values())
        seconds = time.perf_counter() - self.epoch_start
        so_far = EpochSoFar(self.loss_sum, self.clips, seconds, self.waited) if self.clips else EpochSoFar()
        save_state(
            self.output,
            self.model,
            trainer.optimizers[0],
            self.mean,
            step=self.task.step,
            best=self.best,
            epoch=so_far,
        )


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
            # Of kernels with sides of 1, whose strides may be written in two ways.
            warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
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
