"""``clipwise reproduce``"""

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column

from clipwise.cli.app import app, console, counted, say, table_of_figures

if TYPE_CHECKING:
    from clipwise.studies.plan import Row, Standing, Training
    from clipwise.studies.runner import Failed, Outcome


@app.command()
def reproduce(
    study: Annotated[str | None, typer.Argument(help="Its name; left out, all are listed.")] = None,
    data: Annotated[
        Path | None,
        typer.Argument(help="Videos, as `clipwise train` takes them; left out, a rendered set in the study's folder."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The study's folder; runs/studies/STUDY if left out.")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", "-r", help="A recipe of the package or a YAML file; the study's own if left out."),
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(help="Such as resnet18, where the study's networks leave it open; resnet50 if left out."),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(help="Numbers, separated by commas; 0,1,2 if left out.", show_default=False)
    ] = None,
    variants: Annotated[str | None, typer.Option(help="Only these, separated by commas; all if left out.")] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Trainings at once; 1 on a CPU, as many as fit on a GPU if left out.")
    ] = None,
    hours: Annotated[float | None, typer.Option(min=0, help="Stop after so long; the same command goes on.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", metavar="SECTION.FIELD=VALUE", help="Override a field of every training."),
    ] = None,
    known: Annotated[
        Path | None,
        typer.Option(
            metavar="STUDY.JSON",
            help="Of an earlier sitting, perhaps elsewhere: its runs count, and are not run again.",
        ),
    ] = None,
    show: Annotated[
        bool,
        typer.Option(
            "--show",
            help="Run nothing; print the table, or what it will take: with the study's own settings if none are given.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print study.json.")] = False,
) -> None:
    """Run a study of the papers: its networks × seeds, one table, a picture and a JSON beside the paper's numbers.

    Example: `clipwise reproduce stm_modules videos/ --recipe overhead_adl --output runs/studies/modules --jobs 2`

    Example: `clipwise reproduce` (which studies there are)

    Ctrl-C, a kill or the end of `--hours` lose nothing: the same command goes on. The exit status is 0 only when every
    variant asked for is there with every seed; else the command that goes on and the hours it will take are said.
    """
    from clipwise.studies.study import find_study

    if study is None:
        _list_studies(as_json=as_json)
        return
    chosen = find_study(study)
    from clipwise.studies.plan import Request, choose_variants
    from clipwise.studies.runner import run_study, show_study

    request = Request(
        study=chosen,
        output=output or Path("runs/studies") / study,
        data=data,
        recipe=recipe,
        backbone=backbone or Request.backbone,
        seeds=_numbers(seeds) if seeds else Request.seeds,
        variants=choose_variants(chosen, [name.strip() for name in variants.split(",")] if variants else []),
        overrides=tuple(overrides or ()),
        known=known,
    )
    command = request.command(jobs=jobs, hours=hours)
    if show:
        as_begun = not any((data, recipe, backbone, seeds, overrides, known))
        outcome = show_study(request, as_begun=as_begun, jobs=jobs or 1)
        if as_begun and (request.output / "study.json").is_file():
            command = outcome.study["command"]
    else:
        with StudyDisplay() as display:
            outcome = run_study(request, jobs=jobs, hours=hours, reporter=display)
    _print(outcome, as_json=as_json)
    if not show:
        say(f"written: {', '.join(str(request.output / f'study.{ending}') for ending in ('json', 'md', 'png'))}")
    _closing(outcome, request.asked, command)
    if outcome.interrupted:
        raise typer.Exit(130)
    if not outcome.complete:
        raise typer.Exit(1)


def _list_studies(*, as_json: bool) -> None:
    import json

    from clipwise.studies.study import find_study, study_names

    studies = [find_study(name) for name in study_names()]
    trainings = {
        study.name: len({study.training_of(variant.label).label for variant in study.variants}) for study in studies
    }
    if as_json:
        listed = [
            {"study": each.name, "title": each.title, "source": each.source, "trainings": trainings[each.name]}
            for each in studies
        ]
        typer.echo(json.dumps(listed, ensure_ascii=False))
        return
    width = max(map(len, trainings))
    for each in studies:
        typer.echo(f"{each.name:{width}} {trainings[each.name]:3}  {each.title}")
    say("the number: trainings for each seed; `clipwise reproduce STUDY --show`: networks, figures, hours")


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise ValueError(f"seeds are numbers separated by commas, such as 0,1,2; got {text!r}") from error


def _print(outcome: "Outcome", *, as_json: bool) -> None:
    import json

    from clipwise.studies.report import COUNTS, PUBLISHED, claim_lines, goal_lines, table

    study = outcome.study
    if as_json:
        typer.echo(json.dumps(study, ensure_ascii=False))
        return
    head, rows = table(study)
    out = Console()
    # Published counts of parameters and MACs are in study.md; here they would leave the figures no room.
    places = [place for place, name in enumerate(head) if name.removeprefix(PUBLISHED) not in COUNTS or place < 3]
    # At spaces, and after hyphens but in "top-1".
    names = [re.sub(r" |(?<=[a-z]-)(?=[a-zA-Z])", "\n", head[place].removeprefix(PUBLISHED)) for place in places]
    columns = [Column(names[0], overflow="fold"), *(Column(name, no_wrap=True) for name in names[1:])]
    shown = table_of_figures(*columns, title=study["title"])
    if any(head[place].startswith(PUBLISHED) for place in places):
        shown.caption = "right of the seeds: what was published"
    for row in rows:
        shown.add_row(*(row[place] for place in places))
    out.print(shown)
    for line in (*claim_lines(study), *goal_lines(study)):
        out.print(line, markup=False, highlight=False)


def _closing(outcome: "Outcome", asked: Sequence[str], command: str) -> None:
    from clipwise.studies.report import duration, missing_line

    for failed in outcome.failed:
        say(f"{failed.name} failed ({failed.how}); {os.path.relpath(failed.log)} ends:", error=True)
        for line in failed.last_lines:
            say(f"  {line}")
    if outcome.complete:
        return
    say(f"missing: {missing_line(outcome.study, asked)}")
    left = "" if outcome.hours_left is None else f", in about {duration(outcome.hours_left)} (an estimate)"
    say(f"go on with{left}: {command}")


class StudyDisplay:
    """The study as a person follows it: a line when a training begins, ends and was tested, a bar for each at work."""

    def __init__(self) -> None:
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("epoch {task.fields[epoch]}/{task.total:.0f}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=console(),
            transient=True,
            disable=not console().is_terminal,
        )
        self.tasks: dict[Path, TaskID] = {}
        self.before: dict[Path, float] = {}

    def __enter__(self) -> "StudyDisplay":
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def kept(self, path: Path, runs: Sequence[tuple[str, int]]) -> None:
        which = ", ".join(f"{label}, seed {seed}" for label, seed in runs[:3]) + (" …" if len(runs) > 3 else "")
        say(
            f"{path.name}: the table as it was, for it tells of {counted(len(runs), 'run')} of which nothing else is "
            f"here ({which}); to count them: --known {shlex.quote(os.path.relpath(path))}"
        )

    def planned(self, *, trainings: int, finished: int, jobs: int) -> None:
        self.trainings, self.finished = trainings, finished
        say(f"{counted(trainings, 'training')}, {finished} finished before; {jobs} at once")

    def began(self, training: "Training", there: "Standing", seconds: float | None) -> None:
        from clipwise.studies.report import duration

        goes_on = f"goes on after epoch {there.epochs}" if there.epochs else "begins"
        takes = "" if seconds is None else f", about {duration(seconds / 3600)}"
        say(f"{training.name}: {goes_on}{takes}; what it prints: {shlex.quote(os.path.relpath(training.log))}")
        self.tasks[training.folder] = self.bar.add_task(
            training.name, total=training.config.training.epochs, completed=there.epochs, epoch=there.epochs, left=""
        )

    def advanced(self, training: "Training", there: "Standing") -> None:
        left = ""
        if there.epochs:
            from clipwise.studies.report import duration

            epochs = training.config.training.epochs - there.epochs
            left = f"{duration(there.seconds / there.epochs * epochs / 3600)} left"
        self.bar.update(self.tasks[training.folder], completed=there.epochs, epoch=there.epochs, left=left)

    def ended(self, training: "Training", there: "Standing", failed: "Failed | None") -> None:
        self.bar.remove_task(self.tasks.pop(training.folder))
        self.finished += there.finished
        if failed:
            say(f"{training.name}: failed ({failed.how})", error=True)
        elif there.finished:
            say(f"{training.name}: finished in {there.seconds / 60:.1f} minutes; {self.finished} of {self.trainings}")
        else:
            say(f"{training.name}: stopped after epoch {there.epochs}")

    def tested(self, row: "Row", seed: int, figures: Mapping[str, Any]) -> None:
        from clipwise.studies.report import METRICS

        shown = ", ".join(f"{METRICS[name]} {figures[name]:.1f}" for name in METRICS if name in figures)
        say(f"{row.variant.label}, seed {seed}: {shown}")
