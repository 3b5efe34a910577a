"""``clipwise analyze``: what results and networks tell about space and time."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer

from clipwise.cli.app import app, counted, counting, say, table_of_figures

if TYPE_CHECKING:
    from clipwise.data.failures import Failure
    from clipwise.evaluation.contribution import Contribution, Contributions
    from clipwise.evaluation.online import OnlineEvaluation
    from clipwise.evaluation.order_probe import NetworkProbe, OrderProbe

__all__ = ["analyze", "contribution", "online", "order"]

analyze = typer.Typer(help="What results and networks tell about space and time.", no_args_is_help=True)
app.add_typer(analyze, name="analyze")

_Found = TypeVar("_Found", "OrderProbe", "OnlineEvaluation")

_SHOWN = 30  # classes in the table and the picture

_Output = Annotated[Path | None, typer.Option("--output", "-o", help="The result file, *.json.")]
_Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@analyze.command()
def contribution(
    results: Annotated[
        list[Path],
        typer.Argument(
            help="CSV with columns dataset, module, backbone, frames, temporal_pooling and top1; study.json of "
            "`clipwise reproduce`; or results of `clipwise evaluate`."
        ),
    ],
    baseline: Annotated[str, typer.Option(help="The module that sees no time.")] = "tsn",
    metric: Annotated[str, typer.Option(help="The accuracy that is compared.")] = "top1",
    partial: Annotated[
        bool, typer.Option("--partial", help="Where cells are missing, take the mean over those that are there.")
    ] = False,
    output: _Output = None,
    as_json: _Json = False,
) -> None:
    """Tell spatial from temporal contributions: Φ and Ψ of the Deep Analysis paper (eq. 1), from any set of results.

    Of accuracy S in percent, Φ = S_TSN / max(S, S_TSN) and Ψ = (S − S_TSN) / (100 − S_TSN), each the mean over all
    backbones and frame counts; ta is the module alone, ta+tp with temporal pooling. Cells that are missing are named;
    the exit status is then 1 unless --partial.

    Example: `clipwise analyze contribution runs/*/evaluation*.json --metric mean_class_accuracy`
    """
    from clipwise.checkpoint import command_line
    from clipwise.evaluation.contribution import contributions, read_results
    from clipwise.files import write_json

    if output is not None:
        _may_write(output, ".json")
    found = contributions(read_results(results, metric=metric), baseline=baseline, partial=partial)
    record = {"command": command_line(), "metric": metric, "sources": [path.name for path in results]}
    record |= found.to_dict()
    if output is not None:
        write_json(output, record)
    if as_json:
        typer.echo(json.dumps(record, ensure_ascii=False))
    else:
        _print_contributions(found)
    for note in found.notes:
        say(f"note: {note}")
    for dataset, cells in found.baseline_missing.items():
        say(f"{dataset}: no result of {baseline} without temporal pooling for {_listed(cells)}")
    for row in found.rows:
        if row.missing:
            kind = "with" if row.temporal_pooling else "without"
            say(f"{row.dataset}: no result of {row.module} {kind} temporal pooling for {_listed(row.missing)}")
    if output is not None:
        say(f"written: {output}")
    if not found.complete and not partial:
        say("no mean is given where cells are missing; --partial takes it over those that are there", error=True)
        raise typer.Exit(1)


def _listed(cells: tuple[str, ...]) -> str:
    some = ", ".join(cells[:6])
    return f"{counted(len(cells), 'cell')}: {some}" + (f" and {len(cells) - 6} more" if len(cells) > 6 else "")


def _print_contributions(found: "Contributions") -> None:
    from rich.console import Console
    from rich.table import Column

    from clipwise.evaluation.contribution import TABLE_7

    names = (Column(name, overflow="fold") for name in ("data set", "module"))
    table = table_of_figures(*names, *(Column(name, no_wrap=True) for name in ("Φ̄", "Ψ̄ ta", "Ψ̄ ta+tp", "cells")))
    by_module: dict[tuple[str, str], dict[bool, Contribution]] = {}
    for row in found.rows:
        by_module.setdefault((row.dataset, row.module), {})[row.temporal_pooling] = row
    before = None
    for (dataset, module), kinds in by_module.items():
        if before not in (None, dataset):
            table.add_section()
        alone, pooled = kinds.get(False), kinds.get(True)
        printed = TABLE_7.get(dataset, {}).get(module, (None, None, None))
        there = [row for row in (alone, pooled) if row]
        table.add_row(
            dataset if dataset != before else "",
            module,
            _figure(alone.phi if alone else None, printed[0]),
            _figure(alone.psi if alone else None, printed[1]),
            _figure(pooled.psi if pooled else None, printed[2]),
            f"{sum(len(row.cells) for row in there)} of {sum(row.expected for row in there)}",
        )
        before = dataset
    Console(highlight=False, markup=False).print(table)
    if any(row.module in TABLE_7.get(row.dataset, {}) for row in found.rows):
        say("in brackets: as the paper's Table 7 prints it")


def _figure(value: float | None, printed: float | None) -> str:
    return ("–" if value is None else f"{value:.2f}") + ("" if printed is None else f" ({printed:.2f})")


@analyze.command()
def order(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN",
            help="A folder of `clipwise train` or `clipwise models import`, or a weight file in one; several are "
            "compared. Then labelled videos: folder, manifest or pack; the run's validation videos if left out.",
        ),
    ],
    data: Annotated[Path | None, typer.Option(help="The videos, where they are not the last argument.")] = None,
    split: Annotated[str | None, typer.Option(help="Of the data.")] = None,
    weights: Annotated[Literal["best", "last"], typer.Option(help="Which of a folder's weights.")] = "best",
    draws: Annotated[int, typer.Option(min=1, help="Shuffles; their mean counts.")] = 3,
    stills: Annotated[int, typer.Option(min=1, help="Frames shown alone, each by itself; 1 is the middle one.")] = 1,
    videos: Annotated[int | None, typer.Option(min=1, help="Take so many, drawn by the seed; all if left out.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the shuffles, and of the videos taken.")] = 0,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", metavar="views.FIELD=VALUE", help="Other views, such as views.size=112."),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="A picture of the classes: .png, .svg or .pdf.")] = None,
    output: _Output = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Clips through the network at a time.")] = 8,
    workers: Annotated[int, typer.Option(min=0, help="Loader processes.")] = 2,
    precision: Annotated[Literal["fp32", "bf16"], typer.Option(help="bf16 rounds small differences away.")] = "fp32",
    on_error: Annotated[
        Literal["raise", "skip", "report"],
        typer.Option(help="At a video that cannot be read: stop, leave it out, or leave it out and end with status 1."),
    ] = "report",
    as_json: _Json = False,
) -> None:
    """Tell whether your data needs time and your network uses it: frames in order, shuffled, reversed, one alone.

    Each video is read once. What follows is said by rules that rest on 95 % intervals over the same videos; few videos
    often leave the question open, and that is said too. Give a network without temporal modules (tsn) beside yours, and
    the answer about the data is sure rather than probable.

    Example: `clipwise analyze order runs/stm runs/tsn videos/ --plot order.png`
    """
    from clipwise.cli.evaluate import checkpoints_and_data, views_of
    from clipwise.evaluation.order_probe import probe_order

    checkpoints, data = checkpoints_and_data(paths, data)
    views = [views_of(checkpoint, None, overrides or ()) for checkpoint in checkpoints]
    if output is not None:
        _may_write(output, ".json")
    if plot is not None:
        _may_write(plot, ".png", ".svg", ".pdf")
    with counting("videos") as progress:
        probe = probe_order(
            checkpoints,
            data,
            split=split,
            which=weights,
            views=views,
            draws=draws,
            stills=stills,
            seed=seed,
            videos=videos,
            precision=precision,
            batch_size=batch_size,
            workers=workers,
            on_error=on_error,
            progress=progress,
        )
    _deliver(probe, _print_probe, _draw, output=output, plot=plot, as_json=as_json, on_error=on_error)


def _print_probe(probe: "OrderProbe") -> None:
    from rich.console import Console
    from rich.table import Column

    from clipwise.evaluation.order_probe import ORDERS, network_verdict

    def column(name: str) -> Column:
        return Column(name, justify="right", no_wrap=True)

    out = Console(highlight=False, markup=False)
    summary = table_of_figures(Column("network", overflow="fold"), Column(), *map(column, ORDERS))
    for network in probe.networks:
        summary.add_row(network.name, "top-1", *(f"{network.top1(order):.1f}" for order in ORDERS))
        summary.add_row("", "mean class", *(f"{network.mean_class_accuracy(order):.1f}" for order in ORDERS))
    out.print(summary)
    shown = _classes(probe)
    for network in probe.networks:
        figures = [column(name.replace(" ", "\n")) for name in ("videos", *ORDERS)]
        name, taken_for = Column("class", overflow="fold"), Column("reversed\ntaken for", overflow="fold")
        table = table_of_figures(name, *figures, taken_for, title=network.name)
        accuracies: dict[str, Any] = {order: network.class_accuracy(order) for order in ORDERS}
        taken = network.taken_for()
        for label in shown:
            other = taken[label]
            table.add_row(
                label,
                str(int((network.labels == network.classes.index(label)).sum())),
                *(f"{accuracies[order][label]:.1f}" for order in ORDERS),
                "" if other is None else f"{other[0]} ({other[1]:.0f} %)",
            )
        out.print(table)
    absent = len(probe.networks[0].class_accuracy("in order")) - len(shown)
    if absent:
        out.print(f"and {counted(absent, 'class', 'classes')} that shuffling costs less; --json has all")
    for network in probe.networks:
        said = network_verdict(network)[1]
        out.print(f"{said[0].upper()}{said[1:]}." if said.startswith("whether") else f"{said}.", soft_wrap=True)
    out.print(f"{probe.conclusion}.", soft_wrap=True, style="bold")


def _classes(probe: "OrderProbe") -> list[str]:
    """The classes that there is room for: those that lose most by shuffling, over all networks, in the usual order."""

    def loss(network: "NetworkProbe", name: str) -> float:
        return network.class_accuracy("in order")[name] - network.class_accuracy("shuffled")[name]

    names = list(probe.networks[0].class_accuracy("in order"))
    if len(names) <= _SHOWN:
        return names
    ranked = sorted(names, key=lambda name: -sum(loss(network, name) for network in probe.networks))
    return [name for name in names if name in set(ranked[:_SHOWN])]


def _draw(path: Path, probe: "OrderProbe") -> None:
    from clipwise.analysis.plots import order_accuracy
    from clipwise.evaluation.order_probe import ORDERS

    shown = _classes(probe)
    results: dict[str, dict[str, list[float]]] = {
        network.name: {
            order: [*(network.class_accuracy(order)[name] for name in shown), network.mean_class_accuracy(order)]
            for order in ORDERS
        }
        for network in probe.networks
    }
    try:
        order_accuracy(path, [*shown, "mean of all classes"], results, "Accuracy with a clip's frames in another order")
    except OSError as error:
        raise ValueError(f"{path}: cannot be written ({error.strerror or error}); give another --plot") from error


@analyze.command()
def online(
    checkpoints: Annotated[
        list[Path],
        typer.Argument(
            metavar="CHECKPOINT",
            help="A folder of `clipwise train` or `clipwise models import`, or a weight file in one; several are "
            "compared, causal or not, and means given of those that differ in their weights alone.",
        ),
    ],
    data: Annotated[
        Path | None,
        typer.Option(help="Labelled videos: folder, manifest or pack; the run's validation videos if left out."),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Of the data.")] = None,
    weights: Annotated[Literal["best", "last"], typer.Option(help="Which of a folder's weights.")] = "best",
    multiple: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="K",
            help="Look at K times as many frames as the network takes, spread evenly over the video; 1 if none of "
            "--multiple, --stride and --rate is given.",
        ),
    ] = None,
    stride: Annotated[int | None, typer.Option(min=1, metavar="N", help="Look at every Nth frame.")] = None,
    rate: Annotated[
        float | None, typer.Option(metavar="PER_SECOND", help="Look at so many frames a second of the video.")
    ] = None,
    videos: Annotated[int | None, typer.Option(min=1, help="Take so many, drawn by the seed; all if left out.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the videos taken.")] = 0,
    precision: Annotated[Literal["fp32", "bf16"], typer.Option(help="In which the layers compute.")] = "fp32",
    plot: Annotated[Path | None, typer.Option(help="A picture of the earliness: .png, .svg or .pdf.")] = None,
    output: _Output = None,
    on_error: Annotated[
        Literal["raise", "skip", "report"],
        typer.Option(help="At a video that cannot be read: stop, leave it out, or leave it out and end with status 1."),
    ] = "report",
    as_json: _Json = False,
) -> None:
    """Test networks frame by frame: sliding window or causal, beside the offline network on the same videos.

    Each video is followed as if it came from a camera. Accuracy is that of the mean of all answers and of the last one;
    beside it the time from a frame to its answer, and how accuracy grows with the share of the video that has passed.

    Example: `clipwise analyze online runs/stm runs/stm_causal --data videos/ --split val --plot earliness.png`
    """
    from clipwise.evaluation.online import Looks, evaluate_online

    if multiple is None and stride is None and rate is None:
        multiple = 1
    looks = Looks(multiple=multiple, stride=stride, rate=rate)
    if output is not None:
        _may_write(output, ".json")
    if plot is not None:
        _may_write(plot, ".png", ".svg", ".pdf")
    with counting("videos") as progress:
        found = evaluate_online(
            checkpoints,
            data,
            looks=looks,
            split=split,
            which=weights,
            videos=videos,
            seed=seed,
            precision=precision,
            on_error=on_error,
            progress=progress,
        )
    _deliver(found, _print_online, _draw_earliness, output=output, plot=plot, as_json=as_json, on_error=on_error)


def _print_online(found: "OnlineEvaluation") -> None:
    from rich.console import Console
    from rich.table import Column

    from clipwise.evaluation.online import milliseconds

    def column(name: str) -> Column:
        return Column(name, justify="right", no_wrap=True)

    out = Console(highlight=False, markup=False)
    # A network's name stands above its rows: beside them it would not fit into 80 columns.
    table = table_of_figures(
        Column("network", overflow="fold"), *map(column, ("top-1", "mean class", "ms a frame", "p95"))
    )
    for network in found.networks:
        table.add_row(network.name)
        for answers in network.answers:
            times = milliseconds(network.latency[answers.way])
            table.add_row(
                f"  {answers.name}",
                f"{answers.whole.top1:.1f}",
                f"{answers.whole.mean_class_accuracy:.1f}",
                f"{times['median']:.1f} ({times['q1']:.1f}–{times['q3']:.1f})",
                f"{times['p95']:.1f}",
            )
    for group in (group for group in found.groups if len(group.members) > 1):
        table.add_section()
        table.add_row(f"{group.name}, {len(group.members)} trainings")
        for name, figures in group.to_dict()["answers"].items():
            means = (figures[figure] for figure in ("top1", "mean_class_accuracy"))
            table.add_row(f"  {name}", *(f"{one['mean']:.1f} ± {one['deviation']:.1f}" for one in means))
    out.print(table)
    record = found.record
    out.print(
        f"{counted(record['data']['videos'], 'video')}; {record['device']}, {counted(record['threads'], 'thread')}; "
        "ms: median and quartiles from a decoded frame to its answer"
    )


def _draw_earliness(path: Path, found: "OnlineEvaluation") -> None:
    from clipwise.analysis.plots import earliness_curves
    from clipwise.evaluation.online import SHARES

    results = {group.name: group.curves("mean_class_accuracy") for group in found.groups}
    try:
        earliness_curves(path, SHARES, results, "How early a network is right", "mean-class accuracy, %")
    except OSError as error:
        raise ValueError(f"{path}: cannot be written ({error.strerror or error}); give another --plot") from error


def _deliver(
    found: _Found,
    show: Callable[[_Found], None],
    draw: Callable[[Path, _Found], None],
    *,
    output: Path | None,
    plot: Path | None,
    as_json: bool,
    on_error: str,
) -> None:
    """Write what was asked for, print the rest, and name the videos that could not be read."""
    from clipwise.files import write_json

    if output is not None:
        write_json(output, found.record)
    if plot is not None:
        draw(plot, found)
    if as_json:
        typer.echo(json.dumps(found.record, ensure_ascii=False))
    else:
        show(found)
    if output is not None or plot is not None:
        say(f"written: {', '.join(str(path) for path in (output, plot) if path is not None)}")
    _name_unreadable(found.unreadable, on_error)


def _name_unreadable(unreadable: "Sequence[Failure]", on_error: str) -> None:
    if not unreadable:
        return
    say(f"{counted(len(unreadable), 'video')} could not be read; the figures are those of the rest:")
    for failure in unreadable[:5]:
        say(f"  {failure}")
    if on_error == "report":
        raise typer.Exit(1)


def _may_write(path: Path, *suffixes: str) -> None:
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"{path}: must end in {' or '.join(suffixes)}")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"{path}: its folder is not there; make it first")
