"""``clipwise benchmark``: speed, measured so that it can be compared."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from clipwise.cli.app import app, counted, say, table_of_figures
from clipwise.files import check_writable, file_sha256, name_for_result, write_json

__all__ = ["benchmark", "end_to_end", "loader", "model"]

benchmark = typer.Typer(
    help="Measure speed: of networks, of the loader on your data, from video file to label.\n\n"
    "Example: `clipwise benchmark model stm_resnet50 --against tsn_resnet50 --batch 1,32`",
    no_args_is_help=True,
)
app.add_typer(benchmark, name="benchmark")

_Threads = Annotated[int | None, typer.Option(min=1, help="Threads of the CPU; PyTorch's own choice if left out.")]
_Output = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", help="The result file, *.json; in this folder, named after the condition, if left out."
    ),
]
_Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
_Recipe = Annotated[str | None, typer.Option("--recipe", "-r", help="One of `clipwise recipes`, or a YAML file.")]
_Set = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="SECTION.FIELD=VALUE", help="Override a field; may be repeated."),
]
_Device = Annotated[str | None, typer.Option(help="cpu or cuda; the GPU where there is one, if left out.")]
_FORMS = (
    "eager, compiled, deployed, deployed+compiled, cuda-graph, deployed+compiled+cuda-graph, "
    "deployed+kernels+compiled, deployed+kernels+cuda-graph"
)


@benchmark.command()
def model(
    networks: Annotated[list[str], typer.Argument(help="Networks, of `clipwise models`.")],
    against: Annotated[str | None, typer.Option(help="The network that ratios are taken to, in the same form.")] = None,
    batch: Annotated[str, typer.Option(help="Clips a step, several with commas; at 1 it is the latency.")] = "1",
    frames: Annotated[int, typer.Option(min=1, help="Frames a clip.")] = 8,
    size: Annotated[int, typer.Option(min=32, help="Pixels of a side.")] = 224,
    mode: Annotated[str, typer.Option(help="infer, or train: forward, backward and the optimiser's step.")] = "infer",
    dtype: Annotated[str, typer.Option(help="fp32, tf32, bf16 or fp16; in training autocast.")] = "fp32",
    form: Annotated[str, typer.Option(help=f"Several with commas: {_FORMS}.")] = "eager",
    rival: Annotated[
        str | None,
        typer.Option(
            metavar="PATH.py:FUNCTION",
            help="A function that makes another formulation of each network, of the same weights; eager and compiled.",
        ),
    ] = None,
    device: _Device = None,
    threads: _Threads = None,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each network in each form.")] = 15,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            "-s",
            metavar="model.options.NAME=VALUE",
            help="An option of all networks; of --against, if it has it.",
        ),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw throughput against MACs: .png, .svg or .pdf.")] = None,
    output: _Output = None,
    as_json: _Json = False,
) -> None:
    """Measure networks by turns in one process: clips a second, latency, memory, ratios round by round.

    Example: `clipwise benchmark model stm_resnet50 --against tsn_resnet50 --batch 1,32 --dtype bf16 --form
    eager,deployed`

    A ratio above 1 is faster. What runs out of memory is left out and said. Ctrl-C ends the run; what was measured
    until then is written.
    """
    from clipwise.benchmark.networks import Plan, benchmark_networks, plan_name

    where = _device(device, threads)
    if plot is not None and plot.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise ValueError(f"{plot}: a picture is .png, .svg or .pdf")
    plan = Plan(
        networks=tuple(networks),
        device=where,
        against=against,
        forms=tuple(part.strip() for part in form.split(",") if part.strip()),
        batches=_numbers(batch, "batch"),
        frames=frames,
        size=size,
        mode=mode,
        dtype=dtype,
        rounds=rounds,
        options=_options(overrides or []),
        rival=rival,
    )
    target = _target(output, plan_name(plan))
    record = _told(benchmark_networks(plan, tell=say))
    if plot is not None and any("clips_per_second" in row for row in record["results"]):
        _draw(plot, record)
    _finish(record, target, as_json=as_json, show=_show_networks, measured=bool(record["results"]))


@benchmark.command()
def loader(
    data: Annotated[Path, typer.Argument(help="A folder with one folder of videos per class, a manifest CSV, a pack.")],
    workers: Annotated[
        str | None, typer.Option(help="Numbers of processes, with commas; doubling up to the cores if left out.")
    ] = None,
    recipe: _Recipe = None,
    overrides: _Set = None,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each number of workers.")] = 3,
    seconds: Annotated[float, typer.Option(min=0.1, help="Of a turn.")] = 5.0,
    output: _Output = None,
    as_json: _Json = False,
) -> None:
    """Measure how many training clips a second this machine reads from your data, by the number of loader processes.

    Example: `clipwise benchmark loader videos/ --workers 0,1,2,4 --recipe stm_8f_ssv2`

    The training needs as many workers as it takes to read more clips than its network learns from; `clipwise benchmark
    end-to-end --data` says how many that is. On a CPU the two share the cores, and a loader alone reads more.
    """
    import torch

    from clipwise.benchmark.loader import benchmark_loader, usual_workers
    from clipwise.benchmark.timing import device_tag
    from clipwise.config import load_config
    from clipwise.data.manifest import Manifest

    config = load_config(recipe, overrides or ())
    numbers = usual_workers() if workers is None else list(_numbers(workers, "workers"))
    tag = device_tag(torch.device("cpu"))
    shape = f"{config.model.num_frames}x{config.views.size}"
    target = _target(output, f"loader_{_plain(data.stem)}_{shape}_{tag}")
    record = benchmark_loader(Manifest.read(data), config, workers=numbers, rounds=rounds, seconds=seconds, tell=say)
    _finish(_told(record), target, as_json=as_json, show=_show_loader, measured=bool(record["results"]))


@benchmark.command("end-to-end")
def end_to_end(
    videos: Annotated[list[Path] | None, typer.Argument(help="Video files.")] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="A folder of `clipwise train`, with the network and what it is shown.")
    ] = None,
    form: Annotated[
        str | None, typer.Option(help=f"Of the network that labels: {_FORMS}; deployed, if left out.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Of that network: fp32, tf32, bf16 or fp16; fp32, if left out.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Data to train on: time steps of that training, and count epochs an hour.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of that training; 20, if left out.")] = None,
    recipe: _Recipe = None,
    overrides: _Set = None,
    device: _Device = None,
    threads: _Threads = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Passes over the videos; 15, if left out.")] = None,
    output: _Output = None,
    as_json: _Json = False,
) -> None:
    """Measure the way from a video file to its label, warm and stage by stage; or a training's epochs an hour.

    Example: `clipwise benchmark end-to-end clip.mp4 --set model.name=stm_resnet18`

    Example: `clipwise benchmark end-to-end --data videos/ --recipe stm_8f_ssv2`

    Without --checkpoint the network is that of the recipe, its weights random, which costs the same time.
    """

    from clipwise.benchmark.end_to_end import benchmark_training, benchmark_videos
    from clipwise.benchmark.timing import device_tag
    from clipwise.config import load_config
    from clipwise.models.registry import create_model

    if bool(videos) == (data is not None):
        raise ValueError("give video files, or --data with what is to be trained on: one of the two")
    of_videos = {
        "--checkpoint": checkpoint,
        "--device": device,
        "--form": form,
        "--dtype": dtype,
        "--rounds": rounds,
    }
    given = [option for option, value in of_videos.items() if value is not None]
    if data is not None and given:
        raise ValueError(
            f"{given[0]} is for video files; a training runs as its configuration says (--set), on the GPU where there "
            "is one"
        )
    if data is None and steps is not None:
        raise ValueError("--steps is for --data; passes over the videos are --rounds")
    if checkpoint is not None and (recipe or overrides):
        raise ValueError("--checkpoint has its own network and views; leave --recipe and --set out")
    where = _device(device, threads)
    config = load_config(recipe, overrides or ())
    if data is not None:
        target = _target(output, f"epochs_{config.model.name}_{_plain(data.stem)}_{device_tag(where)}")
        record = _told(benchmark_training(data, config, steps=steps or 20, tell=say))
        measured = record["epochs_per_hour"] is not None
        _finish(record, target, as_json=as_json, show=_show_training, measured=measured)
        return
    if checkpoint is not None:
        from clipwise.checkpoint import read_checkpoint

        read = read_checkpoint(checkpoint)
        shown, network, views = read.config, read.model, read.views
        weights = file_sha256(read.weights)
    else:
        shown, views, weights = config.model, config.views, None
        network = create_model(shown.name, num_classes=174, num_frames=shown.num_frames, **shown.options)
    form, dtype = form or "deployed", dtype or "fp32"
    target = _target(output, f"end_to_end_{shown.name}_{_plain(form)}_{dtype}_{device_tag(where)}")
    record = benchmark_videos(videos or [], network, views, form=form, dtype=dtype, device=where, rounds=rounds or 15)
    of_network = {"network": shown.name, "options": shown.options, "weights_sha256": weights}
    record["condition"] = {**of_network, **record["condition"]}
    _finish(_told(record), target, as_json=as_json, show=_show_videos, measured=record["milliseconds"] is not None)


def _device(name: str | None, threads: int | None) -> Any:
    """Where to run; the threads are set from now on."""
    import torch

    if name not in (None, "cpu", "cuda"):
        raise ValueError(f"--device is cpu or cuda, got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: PyTorch finds no GPU here; leave it out for the CPU")
    if threads is not None:
        torch.set_num_threads(threads)
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def _numbers(text: str, what: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise ValueError(f"--{what} takes whole numbers with commas between, such as 1,2; got {text!r}") from error


def _options(overrides: list[str]) -> dict[str, Any]:
    """Options of the networks; no other field of the configuration means anything here."""
    from clipwise.config import load_config

    for override in overrides:
        if not override.startswith("model.options."):
            raise ValueError(
                f"only options of the networks can be set here, such as model.options.dropout=0; got {override!r}"
            )
    return dict(load_config(overrides=overrides).model.options)


def _plain(name: str) -> str:
    """A name as a part of a file's."""
    return "".join(letter if letter.isalnum() or letter in "-+" else "_" for letter in name)


def _target(output: Path | None, name: str) -> Path:
    """The result file; refused, before the work, where it cannot be written."""
    target = output or Path(f"{name}.json")
    if target.suffix != ".json":
        raise ValueError(f"{target}: the result is JSON; give a name in .json")
    check_writable(target)
    return target


def _condition(record: dict[str, Any]) -> list[Any]:
    """What was measured, and on what."""
    networks = sorted({row["network"] for row in record.get("results", []) if "network" in row})
    return [networks, *(record.get(key) for key in ("condition", "against", "rival", "device", "config_sha256"))]


def _told(record: dict[str, Any]) -> dict[str, Any]:
    from clipwise.checkpoint import command_line

    return {"command": command_line(), **record}


def _finish(record: dict[str, Any], target: Path, *, as_json: bool, show: Any, measured: bool) -> None:
    """Show the result, write it, and end with 130 where it was stopped before its end."""
    if measured:
        target = name_for_result(target, record, _condition)
        write_json(target, record)
        if as_json:
            typer.echo(json.dumps(record, ensure_ascii=False))
        else:
            show(record)
        say(f"written: {target}")
    if record["interrupted"]:
        say("stopped: what was measured until then is written" if measured else "stopped before anything was measured")
        raise typer.Exit(130)


def _spread(figures: dict[str, float] | None, form: str) -> str:
    """``12.3 (11.9–13.0)``."""
    if figures is None:
        return "–"
    return f"{figures['median']:{form}} ({figures['q1']:{form}}–{figures['q3']:{form}})"


def _print(table: Any) -> None:
    from rich.console import Console

    Console().print(table)


def _show_networks(record: dict[str, Any]) -> None:
    from rich.table import Column

    condition = record["condition"]
    shape = f"{condition['frames']}×{condition['size']}×{condition['size']}"
    ratios = {
        "to_against": "to against" if record["against"] else None,
        "to_rival": "to rival" if record["rival"] else None,
    }
    for batch in dict.fromkeys(row["batch"] for row in record["results"]):
        rows = [row for row in record["results"] if row["batch"] == batch]
        with_memory = any(row.get("peak_memory_bytes") for row in rows)
        table = table_of_figures(
            Column("", no_wrap=True),
            Column("ms a step", justify="right", no_wrap=True),
            Column("clips/s", justify="right", no_wrap=True),
            *(Column(title, justify="right", min_width=11) for title in ratios.values() if title),
            *[Column("peak MB", justify="right")] * with_memory,
            title=f"{condition['mode']}, {condition['dtype']}, batch {batch}, {shape}; median (quartiles)",
        )
        for network in dict.fromkeys(row["network"] for row in rows):
            table.add_row(f"[bold]{network}[/]")
            for row in rows:
                if row["network"] == network:
                    whose = "" if row["formulation"] == "clipwise" else "rival, "
                    shown = _cells(row, [key for key, title in ratios.items() if title])
                    table.add_row(f"  {whose}{row['form']}", *shown)
        counts = {row["network"]: f"{row['parameters'] / 1e6:.2f} M, {row['macs'] / 1e9:.2f} GMACs" for row in rows}
        table.caption = "\n".join(f"{network}: {count}" for network, count in counts.items())
        table.caption_justify = "left"
        _print(table)
    against = f"; against: {record['against']}" if record["against"] else ""
    rival = f"; rival: {record['rival']['function']}" if record["rival"] else ""
    say(f"{record['device']}, {counted(record['threads'], 'thread')}; a ratio above 1 is faster{against}{rival}")


def _cells(row: dict[str, Any], ratios: list[str]) -> list[str]:
    if "failed" in row:
        return [row["failed"]]
    peak = row["peak_memory_bytes"]
    return [
        _spread(row["milliseconds_a_step"], ".2f"),
        f"{row['clips_per_second']['median']:.1f}",
        *(_spread(row.get(key), ".2f") for key in ratios),
        f"{peak / 1e6:.0f}" if peak else "",
    ]


def _draw(path: Path, record: dict[str, Any]) -> None:
    """Throughput against MACs at the largest batch."""
    from clipwise.analysis.plots import throughput_macs

    condition = record["condition"]
    batch = max(row["batch"] for row in record["results"] if "clips_per_second" in row)
    forms: dict[str, list[tuple[str, float, float]]] = {}
    for row in record["results"]:
        if row["batch"] == batch and "clips_per_second" in row:
            whose = "" if row["formulation"] == "clipwise" else ", rival"
            point = (f"{row['network']}{whose}", row["macs"] / 1e9, row["clips_per_second"]["median"])
            forms.setdefault(row["form"], []).append(point)
    throughput_macs(
        path,
        forms,
        f"{condition['mode']}, {condition['dtype']}, batch {batch}, {condition['frames']}×{condition['size']}²; "
        f"{record['device']}",
        "clips a second",
    )
    say(f"written: {path}")


def _show_loader(record: dict[str, Any]) -> None:
    from rich.table import Column

    table = table_of_figures(
        Column("workers", justify="right"),
        Column("clips/s", justify="right"),
        title=f"{counted(record['condition']['videos'], 'video')}; median (quartiles); {record['device']}",
    )
    for row in record["results"]:
        table.add_row(str(row["workers"]), _spread(row["clips_per_second"], ".1f"))
    _print(table)
    clip = record["of_a_clip"]
    say(
        f"a clip takes {clip['milliseconds']:.1f} ms of one core: {clip['reading']:.0%} reading and decoding, "
        f"{clip['crop_resize_flip']:.0%} crop, resize, flip"
    )
    say(f"{record['enough_workers']} workers read as much as any number of these, within 5 %")
    if record["unreadable"]:
        say(f"{counted(record['unreadable'], 'clip')} could not be read; `clipwise data check` says which videos")


def _show_videos(record: dict[str, Any]) -> None:
    from rich.table import Column

    from clipwise.benchmark.end_to_end import STAGES

    stages = (*STAGES, "whole")
    table = table_of_figures(
        Column("milliseconds"),
        *(Column(stage, justify="right") for stage in stages),
        title=f"{record['condition']['network']}, {record['condition']['form']}, {record['condition']['dtype']}; "
        f"median (quartiles); {record['device']}",
    )
    for row in [*record["videos"], {"video": "all", **record["milliseconds"]}]:
        table.add_row(row["video"].replace("[", "\\["), *(_spread(row[stage], ".1f") for stage in stages))
    _print(table)


def _show_training(record: dict[str, Any]) -> None:
    condition = record["condition"]
    typer.echo(
        f"{condition['network']}: {record['epochs_per_hour']:g} epochs an hour of {condition['videos']} videos "
        f"({condition['steps_an_epoch']} steps of {condition['batch']} clips), validation not counted"
    )
    typer.echo(f"a step takes {_spread(record['seconds_a_step'], '.3f')} s, {record['clips_per_second']:.1f} clips/s")
