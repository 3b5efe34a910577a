"""How long trainings take and how many fit on the device, from what was measured here.

Seconds an epoch are those of the training's own epochs, else of its variant's with other seeds, else of the study's
other networks in proportion to their MACs. Where no epoch was run in the folder yet, one step of one network, the
middle one by MACs, is timed and counted up for all; reading videos is not in that. A view in validation or testing
counts as a third of a clip in training.
"""

import time
from collections.abc import Iterable
from statistics import mean, median_low

import torch

from clipwise.config import Config
from clipwise.data.transforms import Normalise
from clipwise.data.workers import available_cores
from clipwise.models.network import channels_last
from clipwise.models.registry import create_model
from clipwise.studies.plan import Plan, Training, record_path, standing

__all__ = ["Costs", "jobs_that_fit"]

_TIMED_ON_CPU = 4
"""Clips of a timed step: there a step takes as long as its clips together, and a large batch would fill the memory."""
_CONTEXT = 2**30
"""Bytes that a process holds on a GPU beside its tensors."""


class Costs:
    """What a study's trainings take."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._timed: float | None = None
        self.look()

    def look(self) -> None:
        """Take note of the epochs that were run since."""
        there = [(training, standing(training)) for training in self.plan.distinct]
        self._measured = [(training, now.seconds / now.epochs) for training, now in there if now.epochs]

    def seconds_left(self, training: Training, *, timed: bool = True) -> float | None:
        """Seconds that a training and its tests still take by themselves; None where nothing was measured and nothing
        is to be ``timed``."""
        now = self.plan.standing(training)
        views = self._views_left(training)
        if now.finished and not views:
            return 0.0
        rate = now.seconds / now.epochs if now.epochs and now.seconds else self._rate(training)
        if rate is None:
            if not timed:
                return None
            rate = self._timed_rate(training)
        epochs = training.config.training.epochs - now.epochs
        return rate * (epochs + views / 3 / self._clips_an_epoch(training))

    def hours_left(self, trainings: Iterable[Training], jobs: int, *, timed: bool = True) -> float | None:
        """Hours until all of some trainings are finished, ``jobs`` of them at once: no less than the longest takes."""
        self.look()
        seconds = [self.seconds_left(training, timed=timed) for training in trainings]
        known = [value for value in seconds if value is not None]
        return None if len(known) < len(seconds) else max(sum(known) / jobs, *known, 0.0) / 3600

    def _rate(self, training: Training) -> float | None:
        own = [rate for other, rate in self._measured if other.label == training.label]
        scaled = [rate * _work(training) / _work(other) for other, rate in self._measured]
        return mean(own or scaled) if scaled else None

    def _timed_rate(self, training: Training) -> float:
        if self._timed is None:
            work = {_work(each): each for each in self.plan.distinct}
            timed = work[median_low(work)]
            clip, _ = time_step(timed.config, len(self.plan.manifest.classes))
            self._timed = clip / _work(timed)
        return self._timed * training.macs * self._clips_an_epoch(training)

    def _clips_an_epoch(self, training: Training) -> float:
        """Passes of a clip through the network, forward and backward, that an epoch and its validation are worth."""
        train, validation = self.plan.parts[training.seed]
        settings, views = training.config.training, training.config.views
        if settings.validation_views == "one":
            views = views.one
        return len(train) * (2 if settings.twins else 1) + len(validation) * views.clips * views.crops / 3

    def _views_left(self, training: Training) -> float:
        """Views that the tests of its variants still take, as many as would be of the size in training."""
        _, validation = self.plan.parts[training.seed]
        rows = [row for row in self.plan.rows if self.plan.trainings[row.variant.label, training.seed] is training]
        return len(validation) * sum(
            row.macs / training.macs * row.views.clips * row.views.crops
            for row in rows
            if (row.variant.label, training.seed) not in self.plan.known and not record_path(training, row).is_file()
        )


def _work(training: Training) -> int:
    return training.macs * (2 if training.config.training.twins else 1)


def time_step(config: Config, num_classes: int) -> tuple[float, int]:
    """Seconds a training clip, and the most bytes of GPU memory, of one step after one to warm up.

    The step is as the configuration has it; on a CPU it has no more than four clips.

    Raises:
        ValueError: if the step does not fit into the GPU's memory.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    training, views = config.training, config.views
    part = training.batch_size // training.accumulate * (2 if training.twins else 1)
    clips = part if device.type == "cuda" else min(part, _TIMED_ON_CPU)
    model = create_model(
        config.model.name, num_classes=num_classes, num_frames=config.model.num_frames, **config.model.options
    )
    model = channels_last(model.to(device)).train()
    normalise = Normalise(views.mean, views.std).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=training.momentum)
    batch = torch.randint(
        256, (clips, config.model.num_frames, 3, views.size, views.size), dtype=torch.uint8, device=device
    )
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = 0.0
    try:
        for _ in range(2):
            begin = time.perf_counter()
            with torch.autocast(device.type, torch.bfloat16, enabled=training.precision == "bf16"):
                loss = model(normalise(batch)).float().square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds = time.perf_counter() - begin
    except torch.cuda.OutOfMemoryError as error:
        raise ValueError(
            f"{config.model.name}: a step of {training.batch_size} clips does not fit into the GPU's memory; go "
            "through it in parts, by --set training.accumulate=2, 4 …, or --set training.batch_size"
        ) from error
    peak = torch.cuda.max_memory_reserved() if device.type == "cuda" else 0
    return seconds / clips * (2 if training.twins else 1), peak


def jobs_that_fit(plan: Plan) -> int:
    """How many trainings to run at once.

    On a CPU one. On a GPU as many as fit into nine tenths of the memory that is free, each taken for what a step of the
    study's largest network takes and a GiB more, and no more than there are cores for their readers.

    Raises:
        ValueError: if not even one fits.
    """
    waiting = [training for training in plan.asked if not plan.standing(training).finished]
    if not waiting or not torch.cuda.is_available():
        return 1
    largest = max(waiting, key=_work)
    free, _ = torch.cuda.mem_get_info()
    _, peak = time_step(largest.config, len(plan.manifest.classes))
    torch.cuda.empty_cache()
    by_memory = int(0.9 * free // (peak + _CONTEXT))
    by_cores = available_cores() // (1 + largest.config.data.workers)
    return max(1, min(by_memory, by_cores, len(waiting)))
