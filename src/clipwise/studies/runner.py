"""Running a study: its trainings as processes of their own, several at once, stopped and resumed without loss."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Protocol

import torch

from clipwise.config import READING, flat
from clipwise.evaluation.run import evaluate
from clipwise.files import write_json
from clipwise.studies.cost import Costs, jobs_that_fit
from clipwise.studies.data import RECIPE, rendered_there, rendered_videos
from clipwise.studies.plan import Plan, Request, Row, Standing, Training, make_plan, record_path, standing
from clipwise.studies.report import collect, keep_aside, only_told_in, read_study, test_record, write_report
from clipwise.training.account import RunAccount, is_run
from clipwise.training.resume import STATE, signals_restored

__all__ = ["Failed", "Outcome", "Reporter", "plan_study", "run_study", "show_study"]

_PAUSE = 0.2
"""Seconds between two looks at the trainings."""
_LAST_LINES = 8


@dataclass(frozen=True)
class Failed:
    """A training that ended by itself before its last epoch, or could not be tested."""

    name: str
    how: str
    """Such as ``exit status 1``."""
    last_lines: tuple[str, ...]
    log: Path


@dataclass(frozen=True)
class Outcome:
    """How a study stands when its runner ends."""

    study: dict[str, Any]
    """``study.json``."""
    complete: bool
    """Whether all that was asked for is there."""
    failed: tuple[Failed, ...]
    interrupted: bool
    """By Ctrl-C or SIGTERM."""
    hours_left: float | None
    """None where it was interrupted before anything was measured."""


class Reporter(Protocol):
    """What a runner tells while it goes on; the command line shows it."""

    def kept(self, path: Path, runs: Sequence[tuple[str, int]]) -> None:
        """Before that, where an earlier table has runs that this one will not: it is kept, as this file."""

    def planned(self, *, trainings: int, finished: int, jobs: int) -> None:
        """Before the first training."""

    def began(self, training: Training, there: Standing, seconds: float | None) -> None:
        """When a training begins or goes on, and how long it is thought to take."""

    def advanced(self, training: Training, there: Standing) -> None:
        """At each look at a training."""

    def ended(self, training: Training, there: Standing, failed: Failed | None) -> None:
        """When a training's process has ended: finished, stopped or failed."""

    def tested(self, row: Row, seed: int, figures: Mapping[str, float]) -> None:
        """When a variant was tested with the last weights of its training."""


def plan_study(request: Request) -> Plan:
    """Work out what a study needs on its data, which is rendered first where none is named and it is not there yet.

    Raises:
        ValueError: for what cannot be run, such as a study of certain videos without them; see also
            :func:`clipwise.studies.plan.make_plan`.
    """
    study = request.study
    if request.data is not None:
        return make_plan(request, data=request.data, recipe=request.recipe or study.recipe)
    if study.recipe is not None:
        raise ValueError(
            f"{study.name} is about certain videos, not rendered ones; name them: clipwise reproduce {study.name} DATA "
            f"(clipwise recipes {study.recipe} says how they are made)"
        )
    return make_plan(request, data=rendered_videos(request.output), recipe=request.recipe or RECIPE)


def show_study(request: Request, *, as_begun: bool = False, jobs: int = 1) -> Outcome:
    """How a study stands; nothing is run or written.

    Of trainings that were not begun it is what they will take, ``jobs`` at once: a step of each network is timed for
    that, unless others of the study were run.

    Args:
        request: the study and its settings.
        as_begun: with the settings of the folder's ``study.json``, where there is one, in place of the request's.
        jobs: trainings at once.

    Raises:
        ValueError: see :func:`run_study`.
    """
    study = _begun(request, as_begun=as_begun)
    if study is not None and as_begun:
        return Outcome(study, _complete(study, request), (), False, study["hours_left"])
    with tempfile.TemporaryDirectory() as elsewhere:
        if request.data is None and not rendered_there(request.output):
            plan = plan_study(replace(request, output=Path(elsewhere)))
            plan = replace(plan, request=request, data=request.output / plan.data.name)
        else:
            plan = plan_study(request)
        study = collect(plan)
        return Outcome(study, _complete(study, request), (), False, Costs(plan).hours_left(plan.asked, jobs))


def _begun(request: Request, *, as_begun: bool = False) -> dict[str, Any] | None:
    """``study.json`` of the folder, None where there is none.

    Raises:
        ValueError: if it is damaged or another study's, or of videos where rendered ones are asked for.
    """
    study = read_study(request.output, request.study)
    if study is not None and not as_begun and request.data is None and not study["data"]["rendered"]:
        raise ValueError(
            f"{request.output}: this study was begun with the videos {study['data']['source']}; name them after "
            f"{request.study.name}, or give another --output"
        )
    return study


def _complete(study: dict[str, Any], request: Request) -> bool:
    """Whether nothing is missing of what was asked for."""
    return not any(run["variant"] in request.asked for run in study["missing"])


def run_study(
    request: Request, *, jobs: int | None = None, hours: float | None = None, reporter: Reporter | None = None
) -> Outcome:
    """Run what a study lacks, and write its results after each training.

    Trainings are processes of ``clipwise train`` in folders of their own; what one printed stands beside its folder.
    Ctrl-C and SIGTERM stop them after the step in hand; the same call goes on from there, also after a kill.

    Args:
        request: the study and its settings.
        jobs: trainings at once; see :func:`clipwise.studies.cost.jobs_that_fit` when None.
        hours: begin no training that would not end in time, unless it would not in a whole sitting either, and stop
            those that still run after so many hours.
        reporter: hears of progress.

    Raises:
        ValueError: for settings, data or a folder that cannot be used, also where another runner or a training it left
            is at work in it.
    """
    with _locked(request.output) as lock, _terminated_as_interrupted():
        _begun(request)
        plan = plan_study(request)
        return _Runner(plan, jobs or jobs_that_fit(plan), hours, reporter, lock).go()


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[IO[str]]:
    """The file whose lock keeps other runners out of a folder.

    Trainings inherit it, so that those which a killed runner left behind keep the next one out until they have ended.
    """
    try:
        import fcntl
    except ModuleNotFoundError as error:
        raise ValueError("studies are run on Linux and macOS; run their trainings singly here") from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("a+", encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{folder}: cannot be written ({error.strerror or error}); give another --output") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            processes = ", ".join(file.read().split())
            raise ValueError(
                f"{folder}: in use by another `clipwise reproduce`, or by a training that a killed one left behind "
                f"(of these processes: {processes}); wait until it ends, or end it by `kill NUMBER`: it saves itself"
            ) from error
        file.truncate(0)
        _note_process(file, os.getpid())
        yield file


def _note_process(lock: IO[str], number: int) -> None:
    lock.write(f"{number}\n")
    lock.flush()


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Let SIGTERM do what Ctrl-C does."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with signals_restored():
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, interrupt)
        yield


class _Process:
    """A training at work."""

    def __init__(self, training: Training, plan: Plan, threads: int | None, lock: IO[str]) -> None:
        self.training = training
        environment = dict(os.environ)
        if threads is not None:
            environment["OMP_NUM_THREADS"] = str(threads)
        training.log.parent.mkdir(parents=True, exist_ok=True)
        with training.log.open("ab") as log:
            self._begin = log.tell()
            # In a group of its own: a terminal's Ctrl-C reaches the runner alone, which then stops its trainings once.
            self.process = subprocess.Popen(
                [sys.executable, "-m", "clipwise", "train", *_arguments(training, plan)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                process_group=0,
                pass_fds=[lock.fileno()],
            )
        _note_process(lock, self.process.pid)

    def stop(self) -> None:
        """Ask it to save itself and end."""
        # Where Ctrl-C is ignored, as in the background of a script, so it is by what is started there.
        ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        self.process.send_signal(signal.SIGTERM if ignored else signal.SIGINT)

    def failure(self) -> Failed:
        """Why it ended, by what it printed last."""
        code = self.process.returncode
        how = f"exit status {code}"
        if code < 0:
            how = f"killed by {signal.Signals(-code).name}" + (", out of memory?" if code == -signal.SIGKILL else "")
        with self.training.log.open("rb") as log:
            log.seek(self._begin)
            lines = log.read().decode("utf-8", "replace").rstrip().splitlines()
        return Failed(self.training.name, how, tuple(lines[-_LAST_LINES:]), self.training.log)


def _arguments(training: Training, plan: Plan) -> list[str]:
    """Of ``clipwise train``: to go on with the training where there is something to go on with, else to begin it."""
    folder = training.folder
    arguments = [str(plan.data), "--output", str(folder)]
    if (folder / STATE).is_file():
        before = flat(RunAccount.read(folder).config.to_dict())
        now = flat(training.config.to_dict())
        changed = [f"{name}={json.dumps(now[name])}" for name in READING if now[name] != before[name]]
        return [*arguments, "--resume", *_set(changed)]
    if folder.is_dir() and not is_run(folder):
        shutil.rmtree(folder)  # at most the first files of a training that was killed: see is_remnant
    anew = ["--overwrite"] if is_run(folder) else []
    return [*arguments, *anew, *(["--recipe", plan.recipe] if plan.recipe else []), *_set(training.overrides)]


def _set(overrides: Iterable[str]) -> list[str]:
    return [word for override in overrides for word in ("--set", override)]


class _Runner:
    """Keeps the trainings going, tests those that have finished, and writes the results."""

    def __init__(self, plan: Plan, jobs: int, hours: float | None, reporter: Reporter | None, lock: IO[str]) -> None:
        self.plan = plan
        self.jobs = jobs
        self.sitting = None if hours is None else hours * 3600
        self.deadline = None if hours is None else time.monotonic() + hours * 3600
        self.reporter = reporter
        self.lock = lock
        self.costs = Costs(plan)
        self.running: list[_Process] = []
        self.failed: dict[Path, Failed] = {}
        self.untested = [training for training in plan.distinct if standing(training).finished]
        """Finished trainings whose tests were not looked for yet."""
        self.threads = max(1, torch.get_num_threads() // jobs) if jobs > 1 else None
        self.stopping = False
        self.written: dict[str, Any] | None = None

    def go(self) -> Outcome:
        asked = self.plan.asked
        if self.reporter:
            finished = sum(self.plan.standing(training).finished for training in asked)
            self.reporter.planned(trainings=len(asked), finished=finished, jobs=self.jobs)
        interrupted = False
        try:
            self._report()
            while True:
                self._begin_what_may()
                tested = self._test_next()
                if not self.running and not tested:
                    break
                if not tested:
                    time.sleep(_PAUSE)
                self._look()
        except KeyboardInterrupt:
            interrupted = True
        finally:
            self._stop_all()
        study = self._report()
        complete, hours = _complete(study, self.plan.request), None
        with contextlib.suppress(ValueError, RuntimeError):  # a network that cannot be run cannot be timed
            hours = self.costs.hours_left(self.plan.asked, self.jobs, timed=not interrupted)
        return Outcome(study, complete, tuple(self.failed.values()), interrupted, hours)

    def _begin_what_may(self) -> None:
        """Begin trainings while there is room and time; those that were begun before come first."""
        if self.stopping or len(self.running) >= self.jobs:
            return
        at_work = {process.training.folder for process in self.running}
        waiting = [
            training
            for training in self.plan.asked
            if training.folder not in at_work
            and training.folder not in self.failed
            and not self.plan.standing(training).finished
        ]
        if not waiting:
            return
        self.costs.look()
        for training in sorted(waiting, key=lambda training: not standing(training).epochs):
            if len(self.running) >= self.jobs:
                return
            start = training.start
            if (start is None or standing(start).finished) and self._fits(training):
                self._begin(training)

    def _fits(self, training: Training) -> bool:
        """Whether a training ends in time; one that is longer than a whole sitting is done in parts."""
        if self.deadline is None or self.sitting is None:
            return True
        left = self.deadline - time.monotonic()
        seconds = self.costs.seconds_left(training) or 0.0
        return left > 0 and (seconds <= left or seconds > self.sitting)

    def _begin(self, training: Training) -> None:
        there = standing(training)
        if self.reporter:
            self.reporter.began(training, there, self.costs.seconds_left(training, timed=False))
        self.running.append(_Process(training, self.plan, self.threads, self.lock))

    def _look(self) -> None:
        """See how the trainings are getting on, and stop them when time is up."""
        if self.deadline is not None and time.monotonic() > self.deadline and not self.stopping:
            self.stopping = True
            for process in self.running:
                process.stop()
        for process in list(self.running):
            if process.process.poll() is None:
                if self.reporter:
                    self.reporter.advanced(process.training, standing(process.training))
            else:
                self.running.remove(process)
                self._ended(process)

    def _ended(self, process: _Process) -> None:
        there = standing(process.training)
        failed = None
        if not there.finished and not self.stopping:
            failed = self.failed[process.training.folder] = process.failure()
        if there.finished:
            self.untested.append(process.training)
        if self.reporter:
            self.reporter.ended(process.training, there, failed)

    def _stop_all(self) -> None:
        """Stop what still runs; the next Ctrl-C ends it at once, which leaves what was saved before."""
        self.stopping = True
        for process in self.running:
            process.stop()
        while self.running:
            try:
                self._look()
                time.sleep(_PAUSE)
            except KeyboardInterrupt:
                for process in self.running:
                    process.process.kill()

    def _test_next(self) -> bool:
        """Test one training that has finished and was not tested yet; returns whether there was one."""
        while self.untested:
            training = self.untested.pop(0)
            rows = [row for row in self.plan.rows if self.plan.trainings[row.variant.label, training.seed] is training]
            untested = [row for row in rows if test_record(training, row) is None]
            for row in untested:
                self._test(training, row)
            if untested:
                self._report()
                return True
        return False

    def _test(self, training: Training, row: Row) -> None:
        splits = self.plan.manifest.splits
        # Without splits in the data, the run knows which videos it held out.
        data = self.plan.data if training.config.data.validation_split in splits else None
        try:
            result = evaluate(
                training.folder, data, which="last", views=row.views, workers=training.config.data.workers
            )
        except (ValueError, OSError, RuntimeError) as error:  # the last where trainings fill the GPU's memory
            self.failed[training.folder] = Failed(training.name, "its test", (str(error),), training.log)
            return
        write_json(record_path(training, row), result.record)
        if self.reporter:
            self.reporter.tested(row, training.seed, result.evaluation.video.figures)

    def _report(self) -> dict[str, Any]:
        study = collect(self.plan, jobs=self.jobs)
        if self.written is None:
            self._keep_what_would_be_lost(study)
        if study != self.written:
            write_report(self.plan.request.output, study)
            self.written = study
        return study

    def _keep_what_would_be_lost(self, study: dict[str, Any]) -> None:
        """Figures of runs that were known by --known alone may be nowhere else than in the table of before."""
        folder = self.plan.request.output
        before = read_study(folder, self.plan.request.study)
        if before is not None and (runs := only_told_in(before, study)):
            path = keep_aside(folder)
            if self.reporter:
                self.reporter.kept(path, runs)
