"""``clipwise evaluate``"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import typer
from rich.table import Table

from clipwise.cli.app import app, counted, counting, say
from clipwise.files import check_writable, name_for_result, write_json

if TYPE_CHECKING:
    from rich.console import Console

    from clipwise.config import ViewsConfig
    from clipwise.evaluation.ensemble import EnsembleResult
    from clipwise.evaluation.metrics import Metrics, VideoMetrics
    from clipwise.evaluation.protocols import Evaluation
    from clipwise.evaluation.run import EvaluationResult


@app.command()
def evaluate(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="CHECKPOINT",
            help="A folder of `clipwise train` or `clipwise models import`, or a weight file in one; several are an "
            "ensemble. Then labelled videos: folder, manifest or pack; the run's validation videos if left out.",
        ),
    ],
    data: Annotated[Path | None, typer.Option(help="The videos, where they are not the last argument.")] = None,
    split: Annotated[str | None, typer.Option(help="Of the data.")] = None,
    weights: Annotated[Literal["best", "last"], typer.Option(help="Which of the folder's weights.")] = "best",
    protocol: Annotated[
        str | None,
        typer.Option(help="Test as a paper does, such as stm or tsm_kinetics; `clipwise protocols` lists them."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            "-s",
            metavar="views.FIELD=VALUE",
            help="Other views, such as views.crops=3; goes before --protocol.",
        ),
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

    Of several heads these for each, and how often all are right; of sets of labels mean average precision.

    Example: `clipwise evaluate runs/mine test/ --protocol stm`

    Example: `clipwise evaluate runs/stm8 runs/stm16 test/` (each, and the mean of their scores)

    A video that cannot be read is named in the result, and the exit status is 1 unless `--on-error skip`: the figures
    are then not those of the whole set.
    """
    from clipwise.evaluation.ensemble import evaluate_ensemble
    from clipwise.evaluation.run import evaluate as run

    checkpoints, data = checkpoints_and_data(paths, data)
    views = [views_of(checkpoint, protocol, overrides or ()) for checkpoint in checkpoints]
    if output is not None:
        _check_output(output)
    with counting("videos") as progress:
        settings: dict[str, Any] = {
            "split": split,
            "which": weights,
            "protocol": protocol,
            "precision": precision,
            "batch_size": batch_size,
            "workers": workers,
            "on_error": on_error,
            "max_failed": max_failed,
            "progress": progress,
        }
        result: EvaluationResult | EnsembleResult
        if len(checkpoints) > 1:
            result = evaluate_ensemble(checkpoints, data, views=views, **settings)
        else:
            result = run(checkpoints[0], data, views=views[0], **settings)
    target = output or _target(checkpoints, result.record)
    evaluation = result.evaluation
    split = result.record["data"]["split"]
    title = f"{_network(result.record)}, {len(evaluation.names)} videos" + (f" of {split}" if split else "")
    try:
        write_json(target, result.record)
        pictures = _draw_confusion(target, evaluation, title)
    except OSError as error:
        raise ValueError(f"{target}: cannot be written ({error.strerror or error}); give another --output") from error
    if as_json:
        typer.echo(json.dumps(result.record, ensure_ascii=False))
    else:
        _print_tables(result)
    say(f"written: {', '.join(map(str, [target, *pictures]))}")
    if evaluation.short:
        say(
            f"{len(evaluation.short)} videos have fewer frames than a clip, so some of their frames were repeated: "
            f"{', '.join(evaluation.short[:3])}",
        )
    if evaluation.unreadable:
        say(f"{counted(len(evaluation.unreadable), 'video')} could not be read; the figures are those of the rest:")
        for failure in evaluation.unreadable[:5]:
            say(f"  {failure}")
        if on_error == "report":
            raise typer.Exit(1)


def checkpoints_and_data(paths: list[Path], data: Path | None) -> tuple[list[Path], Path | None]:
    """Tell networks from videos: all but the last are networks, and so is that if `model.json` is with it."""
    if len(paths) == 1 or data is not None or _is_checkpoint(paths[-1]):
        return paths, data
    return paths[:-1], paths[-1]


def _is_checkpoint(path: Path) -> bool:
    return ((path if path.is_dir() else path.parent) / "model.json").is_file() and (
        path.is_dir() or path.suffix == ".safetensors"
    )


def views_of(checkpoint: Path, protocol: str | None, overrides: Sequence[str]) -> "ViewsConfig":
    """The checkpoint's views, changed by the protocol and then by what is set."""
    from clipwise.checkpoint import read_card
    from clipwise.config import override_views
    from clipwise.evaluation.presets import protocol_views

    card = read_card(checkpoint)
    views = protocol_views(protocol, card.views, card.config.num_frames) if protocol else card.views
    return override_views(views, overrides)


def _members(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The records of an ensemble's members, or the one record of a network alone."""
    members: list[dict[str, Any]] = record["ensemble"]["members"] if "ensemble" in record else [record]
    return members


def _network(record: dict[str, Any]) -> str:
    return " + ".join(member["checkpoint"]["model"]["name"] for member in _members(record))


def _target(checkpoints: list[Path], record: dict[str, Any]) -> Path:
    """A file in the first checkpoint's folder; the condition is in its name, so that no result replaces another's."""
    folders = [path if path.is_dir() else path.parent for path in checkpoints]
    together = "".join(f"+{folder.resolve().name}" for folder in folders[1:])
    used = _members(record)[0]["protocol"]
    preset, views = used["preset"], used["views"]
    condition = f"{views['sampling']}_{views['clips']}x{views['crops']}"
    if preset:
        condition = preset["name"] + (f"_{condition}" if preset["changed"] else "")
    weights = Path(_members(record)[0]["checkpoint"]["weights"]).stem
    target = folders[0] / f"evaluation{together}_{record['data']['split'] or 'all'}_{condition}_{weights}.json"
    return name_for_result(target, record, _condition)


def _condition(record: dict[str, Any]) -> list[Any]:
    """Data, weights and protocol."""
    return [record["data"], [[member["checkpoint"]["sha256"], member["protocol"]] for member in _members(record)]]


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
    check_writable(output)


def _draw_confusion(target: Path, evaluation: "Evaluation", title: str) -> list[Path]:
    """A picture for each head beside the result; none of sets of labels, where no class is taken for another."""
    from clipwise.analysis.plots import confusion_matrix

    pictures = []
    for head, metrics in _by_head(evaluation.video).items():
        # A network may know hundreds of classes that this data shows nothing of.
        counts = np.array(metrics.confusion)
        seen = np.flatnonzero(counts.any(0) | counts.any(1))
        pictures.append(target.with_suffix(f".{head}.png" if head else ".png"))
        names = [metrics.per_class[index].name for index in seen]
        confusion_matrix(pictures[-1], counts[np.ix_(seen, seen)], names, f"{title}, {head}" if head else title)
    return pictures


def _by_head(metrics: "Metrics") -> "dict[str, VideoMetrics]":
    """By the head's name, which is empty where there is one head; nothing of sets of labels."""
    from clipwise.evaluation.metrics import HeadMetrics, VideoMetrics

    if isinstance(metrics, HeadMetrics):
        return metrics.heads
    return {"": metrics} if isinstance(metrics, VideoMetrics) else {}


def _print_tables(result: "EvaluationResult | EnsembleResult") -> None:
    from rich.console import Console

    from clipwise.evaluation.ensemble import EnsembleResult
    from clipwise.evaluation.metrics import HeadMetrics, LabelSetMetrics

    out = Console()
    evaluation = result.evaluation
    levels: list[tuple[str, Metrics]] = [("video", evaluation.video)]
    if evaluation.clip:
        levels.append(("clip", evaluation.clip))
    if isinstance(result, EnsembleResult):
        levels[0] = ("ensemble", evaluation.video)
        levels += [
            (f"{place} {member.record['checkpoint']['model']['name']}", member.evaluation.video)
            for place, member in enumerate(result.members, 1)
        ]
    if isinstance(evaluation.video, LabelSetMetrics):
        figures = Table("level", "videos", "mean average precision")
        for level, metrics in levels:
            figures.add_row(level, str(metrics.videos), f"{metrics.figures['mean_average_precision']:.1f}")
    else:
        figures = Table("level", "videos", "top-1", "top-5", "mean class")
        for level, metrics in levels:
            for head, own in _by_head(metrics).items():
                figures.add_row(
                    f"{level} {head}".rstrip(),
                    str(own.videos),
                    f"{own.top1:.1f}",
                    f"{own.top5:.1f}" if len(own.per_class) > 5 else "–",
                    f"{own.mean_class_accuracy:.1f}",
                )
            if isinstance(metrics, HeadMetrics):
                joint = f"{level} {' + '.join(metrics.heads)}"
                figures.add_row(
                    joint, str(metrics.videos), f"{metrics.joint_top1:.1f}", f"{metrics.joint_top5:.1f}", "–"
                )
    out.print(figures)
    if isinstance(evaluation.video, LabelSetMetrics):
        classes = Table("class", "videos", "average precision")
        shown = [row for row in evaluation.video.per_class if row.average_precision is not None]
        for row in shown:
            classes.add_row(row.name, str(row.videos), f"{row.average_precision:.1f}")
        out.print(classes)
        _say_absent(out, len(evaluation.video.per_class) - len(shown))
    for head, own in _by_head(evaluation.video).items():
        classes = Table(head or "class", "videos", "accuracy", "mostly taken for")
        present = [row for row in own.per_class if row.videos]
        for line in present:
            classes.add_row(
                line.name,
                str(line.videos),
                "" if line.accuracy is None else f"{line.accuracy:.1f}",
                "" if line.confused_with is None else f"{line.confused_with} ({line.confused_videos})",
            )
        out.print(classes)
        _say_absent(out, len(own.per_class) - len(present))


def _say_absent(out: "Console", absent: int) -> None:
    if absent:
        out.print(f"{counted(absent, 'class', 'classes')} of the network's without videos here")
