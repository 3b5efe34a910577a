"""``clipwise calibrate``"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from clipwise.cli.app import app, counted, counting, importing, say, table_of_figures
from clipwise.cli.stream_options import Precision, Weights

if TYPE_CHECKING:
    from clipwise.inference.calibration import Calibration


@app.command()
def calibrate(
    checkpoint: Annotated[
        Path, typer.Argument(help="A folder of `clipwise train` or `clipwise models import`, or a weight file in one.")
    ],
    data: Annotated[
        Path | None,
        typer.Argument(help="Labelled videos: folder, manifest or pack; the run's validation videos if left out."),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Of the data.")] = None,
    weights: Weights = "best",
    batch_size: Annotated[int, typer.Option(min=1, help="Clips through the network at a time.")] = 32,
    workers: Annotated[int, typer.Option(min=0, help="Loader processes.")] = 2,
    precision: Precision = "fp32",
    on_error: Annotated[
        Literal["raise", "skip", "report"],
        typer.Option(help="At a video that cannot be read: stop, leave it out, or leave it out and end with status 1."),
    ] = "report",
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Make a network's scores mean how often it is right: fit its temperature on labelled videos.

    Writes calibration.json into the checkpoint's folder, from where `stream` and `predict --timeline` take it, and
    shows what each threshold would lead to: how much is answered "none of these", and how much of the rest is right.

    Take videos that the network was not trained on: of those that it knows it is surer than of any others.

    Example: `clipwise calibrate runs/mine`
    """
    with importing():
        from clipwise.inference.calibration import calibrate as run

    with counting("videos") as progress:
        found = run(
            checkpoint,
            data,
            split=split,
            which=weights,
            precision=precision,
            batch_size=batch_size,
            workers=workers,
            on_error=on_error,
            progress=progress,
        )
    if as_json:
        typer.echo(json.dumps(found.record, ensure_ascii=False))
    else:
        _print(found)
    say(f"written: {found.path}")
    unreadable = found.record["data"]["unreadable"]
    if unreadable:
        say(f"{counted(len(unreadable), 'video')} could not be read; the temperature is that of the rest:")
        for failure in unreadable[:5]:
            say(f"  {failure['path']}: {failure['reason']}")
        if on_error == "report":
            raise typer.Exit(1)


def _print(found: "Calibration") -> None:
    from rich.console import Console
    from rich.table import Column

    from clipwise.inference.calibration import BINS

    out = Console(highlight=False)
    clips = counted(found.record["data"]["clips"], "clip")
    out.print(f"temperature {found.temperature:.3f}, fitted on {clips}", soft_wrap=True)
    figures = table_of_figures(*map(Column, ("", "negative log-likelihood", f"calibration error ({BINS} bins)")))
    for name, fit in (("before", found.before), ("after", found.after)):
        figures.add_row(name, f"{fit.nll:.4f}", f"{fit.ece:.4f}")
    out.print(figures)
    choices = table_of_figures(*map(Column, ("threshold", "none of these", "right of the rest")))
    for choice in found.choices:
        right = "–" if choice.right is None else f"{100 * choice.right:.1f} %"
        mark = "  (default)" if choice.threshold == 0.5 else ""
        choices.add_row(f"{choice.threshold:.1f}{mark}", f"{100 * choice.none:.1f} %", right)
    out.print(choices)
