"""``clipwise models``: list the networks, show one, import weights."""

import json
import re
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from clipwise.cli.app import app, counting


class _ListByDefault(TyperGroup):
    """A group whose command ``list`` may be left out: ``clipwise models 'stm*'``."""

    def _named(self, args: list[str]) -> list[str]:
        known = bool(args) and (args[0] in self.commands or args[0] in ("-h", "--help"))
        return args if known else ["list", *args]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        parsed: list[str] = super().parse_args(ctx, self._named(args))
        return parsed

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        return super().resolve_command(ctx, self._named(args))


models = typer.Typer(
    help="List the networks, show one in detail, import published weights.\n\nExample: `clipwise models 'stm*'`",
    cls=_ListByDefault,
)
app.add_typer(models, name="models")

_Size = Annotated[int | None, typer.Option(min=32, help="Pixels of a side; the network's usual size if left out.")]
_Frames = Annotated[int | None, typer.Option(min=1, help="Frames a clip; the network's usual number if left out.")]
_Classes = Annotated[int, typer.Option(min=1, help="Classes of the head.")]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@models.command("list")
def list_(
    pattern: Annotated[str, typer.Argument(help="Shell-style, such as 'stc*'.")] = "*",
    size: _Size = None,
    num_frames: _Frames = None,
    num_classes: _Classes = 174,
    as_json: _Json = False,
) -> None:
    """List the networks with input, parameters, MACs a clip (multiply–accumulates of the convolutions) and paper.

    Example: `clipwise models 'stm*'`
    """
    import torch

    from clipwise.models.complexity import count_macs, count_parameters
    from clipwise.models.registry import create_model, list_models, model_entry

    names = sorted(list_models(pattern), key=_by_number)
    if not names:
        model_entry(pattern)  # says which names are near
    rows: list[dict[str, Any]] = []
    with counting("networks") as progress:
        for name in names:
            entry = model_entry(name)
            frames, side = num_frames or entry.num_frames, size or entry.size
            with torch.device("meta"):
                model = create_model(name, num_classes=num_classes, num_frames=frames)
            rows.append(
                {
                    "name": name,
                    "paper": entry.paper,
                    "input": [frames, side, side],
                    "parameters": count_parameters(model),
                    "macs": count_macs(model, side),
                }
            )
            progress(len(rows), len(names))
    if as_json:
        typer.echo(json.dumps(rows, ensure_ascii=False))
        return
    table = Table(title=f"{num_classes} classes; M parameters, GMACs a clip", pad_edge=False)
    table.add_column("network", no_wrap=True)
    table.add_column("input", no_wrap=True)
    table.add_column("M", justify="right", no_wrap=True)
    table.add_column("GMACs", justify="right", no_wrap=True)
    table.add_column("paper", no_wrap=True, overflow="ellipsis")
    for row in rows:
        shape = "×".join(map(str, row["input"]))
        table.add_row(row["name"], shape, f"{row['parameters'] / 1e6:.2f}", f"{row['macs'] / 1e9:.2f}", row["paper"])
    Console().print(table)


def _by_number(name: str) -> list[str | int]:
    """A key that puts resnet18 before resnet101."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


@models.command()
def show(
    name: Annotated[str, typer.Argument(help="A network's name.")],
    size: _Size = None,
    num_frames: _Frames = None,
    num_classes: _Classes = 174,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", metavar="model.options.NAME=VALUE", help="An option; may be repeated."),
    ] = None,
    as_json: _Json = False,
) -> None:
    """Print a network's stages with the shapes that one clip has there, its options and where its input comes from.

    Example: `clipwise models show stc_resnet50 --set model.options.alpha=0.5`
    """
    import torch

    from clipwise.config import load_config
    from clipwise.models.complexity import count_parameters, describe_stages
    from clipwise.models.registry import create_model, model_entry, model_options

    chosen = load_config(overrides=[f"model.name={name}", *(overrides or ())]).model.options
    entry = model_entry(name, chosen.get("backbone"))
    frames, side = num_frames or entry.num_frames, size or entry.size
    with torch.device("meta"):
        model = create_model(name, num_classes=num_classes, num_frames=frames, **chosen)
    stages = describe_stages(model, side)
    options = {**model_options(name, chosen.get("backbone")), **chosen}
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "name": name,
                    "paper": entry.paper,
                    "input": [frames, 3, side, side],
                    "mean": entry.mean,
                    "std": entry.std,
                    "image_weights": entry.image_backbone,
                    "options": options,
                    "parameters": count_parameters(model),
                    "stages": [vars(stage) for stage in stages],
                },
                ensure_ascii=False,
            )
        )
        return
    table = Table("stage", "output (T × C × H × W)", title=f"{name} – {entry.paper}")
    table.add_column("parameters (M)", justify="right")
    table.add_column("GMACs", justify="right")
    table.add_row("input", f"{frames} × 3 × {side} × {side}", "", "")
    for stage in stages:
        shape = " × ".join(map(str, stage.shape))
        table.add_row(stage.name, shape, f"{stage.parameters / 1e6:.3f}", f"{stage.macs / 1e9:.3f}")
    total = sum(stage.macs for stage in stages)
    table.add_section()
    table.add_row("total", "", f"{count_parameters(model) / 1e6:.3f}", f"{total / 1e9:.3f}")
    console = Console()
    console.print(table)
    start = f"ImageNet file of {entry.image_backbone}" if entry.image_backbone else "none from ImageNet"
    mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (entry.mean, entry.std))
    console.print(f"input: RGB in 0 to 1, minus ({mean}), divided by ({std}); start: {start}", highlight=False)
    console.print("options: " + ", ".join(f"{key}={value!r}" for key, value in options.items()), highlight=False)
