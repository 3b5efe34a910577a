"""``clipwise evaluate``"""

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import typer
from rich.table import Table

from clipwise.cli.app import app, counted, counting, say

if TYPE_CHECKING:
    from clipwise.evaluation.protocols import Evaluation


@app.command()
def evaluate(
    checkpoint: Annotated[
        Path, typer.Argument(help="A folder of `clipwise train` or `clipwise models import`, or a weight file in one.")
    ],
    data: Annotated[
        Path | None,
        typer.Argument(help="Labelled videos: folder, manifest or pack. The run's validation videos if left out."),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Of the data.")] = None,
    weights: Annotated[Literal["best", "last"], typer.Option(help="Which of the folder's weights.")] = "best",
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", metavar="views.FIELD=VALUE", help="Another protocol, such as views.crops=3."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The result file, *.json; in the checkpoint's folder if left out."),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Clips through the network at a time.")] = 32,
    workers: Annotated[int, typer.Option(min=0, help="Loader processes.")] = 2,
    precision: Annotated[Literal["fp32", "bf16"] | None, typer.Option(help="As in training if left out.")] = None,
    on_error: Annotated[
        Literal["raise", "skip", "report"],
        typer.Option(help="At a video that cannot be read: stop, leave it out, or leave it out and end with status 1."),
    ] = "report",
    max_failed: Annotated[float, typer.Option(min=0, max=1, help="Stop where more than this share fails.")] = 1.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Test a network: top-1, top-5, mean-class accuracy, a table of classes and the confusion matrix.

    Example: `clipwise evaluate runs/mine test/ --set views.sampling=random --set views.clips=10 --set views.crops=3`

    A video that cannot be read is named in the result, and the exit status is 1 unless `--on-error skip`: the figures
    are then not those of the whole set.
    """
    from clipwise.analysis.plots import confusion_matrix
    from clipwise.checkpoint import read_card
    from clipwise.config import override_views
    from clipwise.evaluation.run import evaluate as run
    from clipwise.files import write_json

    views = override_views(read_card(checkpoint).views, overrides or ())
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    if output is not None:
        _check_output(output)
    with counting("videos") as progress:
        result = run(
            checkpoint,
            data,
            split=split,
            which=weights,
            views=views,
            precision=precision,
            batch_size=batch_size,
            workers=workers,
            on_error=on_error,
            max_failed=max_failed,
            progress=progress,
        )
    # The condition is in the name, so that no result takes the place of another's.
    condition = f"{result.record['data']['split'] or 'all'}_{views.sampling}_{views.clips}x{views.crops}_{weights}"
    target = output or folder / f"evaluation_{condition}.json"
    picture = target.with_suffix(".png")
    evaluation = result.evaluation
    title = f"{result.record['checkpoint']['model']['name']}, {len(evaluation.names)} videos"
    try:
        write_json(target, result.record)
        # A network may know hundreds of classes that this data shows nothing of.
        counts = np.array(evaluation.video.confusion)
        seen = np.flatnonzero(counts.any(0) | counts.any(1))
        confusion_matrix(picture, counts[np.ix_(seen, seen)], [result.classes[index] for index in seen], title)
    except OSError as error:
        raise ValueError(f"{target}: cannot be written ({error.strerror or error}); give another --output") from error
    if as_json:
        typer.echo(json.dumps(result.record, ensure_ascii=False))
    else:
        _print_tables(evaluation)
    say(f"written: {target}, {picture}")
    if evaluation.short:
        say(
            f"{len(evaluation.short)} videos have fewer frames than a clip, so some of their frames were repeated: "
            f"{', '.join(evaluation.short[:3])}",
        )
    if evaluation.unreadable:
        say(f"{counted(len(evaluation.unreadable), 'video')} could not be read; the figures are those of the rest:")
        for failure in evaluation.unreadable[:5]:
            say(f"  {failure.path}: {failure.reason}")
        if on_error == "report":
            raise typer.Exit(1)


def _check_output(output: Path) -> None:
    """Refuse, before the work, a file that cannot or should not be written."""
    if output.suffix != ".json":
        raise ValueError(f"{output}: the result is JSON, and its picture stands beside it; give a name in .json")
    if (output.parent / "model.json").is_file() and output.name in (
        "model.json",
        "run.json",
        "config.json",
        "splits.json",
    ):
        raise ValueError(f"{output}: belongs to the run; give another name")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output.parent):
            pass
    except OSError as error:
        raise ValueError(f"{output}: cannot be written ({error.strerror}); give another --output") from error


def _print_tables(evaluation: "Evaluation") -> None:
    from rich.console import Console

    out = Console()
    figures = Table("level", "videos", "top-1", "top-5", "mean class")
    for level, metrics in (("video", evaluation.video), ("clip", evaluation.clip)):
        figures.add_row(
            level,
            str(metrics.videos),
            f"{metrics.top1:.1f}",
            f"{metrics.top5:.1f}" if len(metrics.per_class) > 5 else "–",
            f"{metrics.mean_class_accuracy:.1f}",
        )
    classes = Table("class", "videos", "accuracy", "mostly taken for")
    present = [row for row in evaluation.video.per_class if row.videos]
    for row in present:
        classes.add_row(
            row.name,
            str(row.videos),
            "" if row.accuracy is None else f"{row.accuracy:.1f}",
            "" if row.confused_with is None else f"{row.confused_with} ({row.confused_videos})",
        )
    out.print(figures)
    out.print(classes)
    absent = len(evaluation.video.per_class) - len(present)
    if absent:
        out.print(f"{counted(absent, 'class', 'classes')} of the network's without videos here")
