"""``clipwise train``"""

import contextlib
import os
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from clipwise.cli.app import app, console, counted, say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clipwise.data.failures import Failure
    from clipwise.evaluation.protocols import Evaluation
    from clipwise.training.account import EpochLog
    from clipwise.training.run import RunResult, RunStart


@app.command()
def train(
    data: Annotated[
        Path | None,
        typer.Argument(help="A folder with one folder of videos per class, a manifest CSV, or a *.pack file."),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The run's folder.")] = Path("runs/latest"),
    recipe: Annotated[
        str | None, typer.Option("--recipe", "-r", help="One of `clipwise recipes`, or a YAML file.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", metavar="SECTION.FIELD=VALUE", help="Override a field; may be repeated."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --output, as it was begun.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in --output.")] = False,
    reset_head: Annotated[
        bool, typer.Option("--reset-head", help="Start a new head, whatever classes model.weights has.")
    ] = False,
    show: Annotated[bool, typer.Option("--show-config", help="Print the configuration and stop.")] = False,
    json_lines: Annotated[bool, typer.Option("--json", help="One JSON line an epoch on stdout.")] = False,
) -> None:
    """Train a network on a folder of videos.

    Example: `clipwise train videos/ --output runs/mine --set model.name=stm_resnet18 --set training.epochs=20`

    Ctrl-C stops after the step in hand; `clipwise train --resume --output runs/mine` goes on from there.

    On several GPUs: `torchrun --nproc-per-node 4 -m clipwise train videos/ --output runs/mine …`
    """
    if show:
        import yaml

        from clipwise.config import load_config

        typer.echo(yaml.safe_dump(load_config(recipe, overrides or ()).to_dict(), sort_keys=False).rstrip())
        return
    from functools import partial

    from clipwise.training.run import train as run

    start = partial(
        run,
        data,
        output,
        recipe=recipe,
        overrides=overrides or (),
        resume=resume,
        overwrite=overwrite,
        reset_head=reset_head,
    )
    if "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("RANK") != "0":
        # One of torchrun's processes that are not the first: that one says how it went, and ends with the status. An
        # error status of this one would make torchrun end the first before it has.
        with contextlib.suppress(ValueError, OSError):
            start()
        return
    with TrainingDisplay(json_lines=json_lines) as display:
        result = start(reporter=display)
    _closing(result)
    if not result.finished:
        raise typer.Exit(130)
    if result.unreadable and display.on_error == "report":
        raise typer.Exit(1)


def _closing(result: "RunResult") -> None:
    folder = shlex.quote(os.path.relpath(result.folder))
    if not result.finished:
        say(f"stopped after step {result.step}; go on with: clipwise train --resume --output {folder}")
    elif result.best is None:
        say(f"finished, without validation; test it with: clipwise evaluate {folder} VIDEOS")
    else:
        say(f"finished – best validation {result.best:.1f} %; test it with: clipwise evaluate {folder}")
    if result.short_videos:
        some = ", ".join(result.short_videos[:3])
        say(
            f"{len(result.short_videos)} videos have fewer frames than a clip, so some of their frames were repeated: "
            f"{some}; fewer frames a clip (model.num_frames) avoid that"
        )
    if result.unreadable:
        videos = counted(len(result.unreadable), "video")
        say(f"{videos} could not be read and took no part; unreadable.json names them:")
        for failure in result.unreadable[:5]:
            say(f"  {failure}")


class TrainingDisplay:
    """The run as a person follows it: a bar with clips/s and time left, a line an epoch."""

    def __init__(self, *, json_lines: bool = False) -> None:
        self.json_lines = json_lines
        self.unreadable: set[object] = set()
        self.on_error = "raise"
        self.bar = Progress(
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            BarColumn(),
            TextColumn("loss {task.fields[loss]:.3f}  {task.fields[speed]:.1f} clips/s"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console(),
            transient=True,
            disable=not console().is_terminal,
        )

    def __enter__(self) -> "TrainingDisplay":
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def failed(self, failures: "Sequence[Failure]") -> None:
        for failure in failures if self.on_error == "report" else ():
            if failure.video not in self.unreadable:
                self.unreadable.add(failure.video)
                say(f"left out, for it cannot be read: {failure}")

    def started(self, start: "RunStart") -> None:
        config = start.config
        self.on_error = start.on_error
        self.epochs = config.epochs
        self.steps_per_epoch = start.steps // config.epochs
        say(
            f"{start.name}: {start.parameters / 1e6:.2f} M parameters; {start.training_videos} videos to train on, "
            f"{start.validation_videos} to validate on"
        )
        if not start.validation_videos and start.other_splits:
            there = ", ".join(start.other_splits)
            say(f"no validation: the data has no such split; it has {there}, which data.validation_split=NAME takes")
        say(
            f"learning rate {config.effective_lr:g} at {config.batch_size} clips a step"
            + (f" of {start.processes} processes" if start.processes > 1 else "")
            + f", from {config.lr:g} at {config.reference_batch}"
        )
        if start.ignored:
            some = ", ".join(start.ignored[:3])
            say(f"{len(start.ignored)} entries of the folder are no videos and are left out: {some}")
        if start.weights:
            say(str(start.weights))
        elif not start.done:
            say("from random weights")
        if start.done:
            rest = "finished already" if start.done == start.steps else "going on"
            say(f"{rest} after step {start.done} of {start.steps}")
        self.task = self.bar.add_task(
            "",
            total=start.steps,
            completed=start.done,
            epoch=start.done // self.steps_per_epoch + 1,
            epochs=self.epochs,
            loss=0.0,
            speed=0.0,
        )
        self.then = time.perf_counter()

    def stepped(self, *, step: int, loss: float, lr: float, clips: int) -> None:
        now = time.perf_counter()
        self.bar.update(
            self.task,
            completed=step,
            epoch=(step - 1) // self.steps_per_epoch + 1,
            loss=loss,
            speed=clips / (now - self.then),
        )
        self.then = now

    def epoch_ended(self, log: "EpochLog", evaluation: "Evaluation | None") -> None:
        if self.json_lines:
            import json

            typer.echo(json.dumps(log.to_row()))
        line = f"epoch {log.epoch:3d}/{self.epochs}  loss {log.loss:.3f}"
        if log.top1 is not None:
            line += f"  top-1 {log.top1:.1f}  mean class {log.mean_class_accuracy:.1f}"
        for key in ("joint.top1", "mean_average_precision"):
            if key in log.more:
                line += f"  {key.replace('.top1', ' top-1').replace('_', ' ')} {log.more[key]:.1f}"
        line += f"  {log.clips_per_second:.1f} clips/s"
        if log.waiting is not None:
            line += f", {100 * log.waiting:.0f} % of the time waiting for data"
        say(f"{line}  {log.seconds:.0f} s" + (f"  {log.peak_gib:.1f} GiB" if log.peak_gib is not None else ""))
        if evaluation:
            self.failed(evaluation.unreadable)
        self.then = time.perf_counter()
