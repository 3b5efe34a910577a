"""``clipwise models``"""

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from clipwise.cli.app import app


@app.command()
def models(
    pattern: Annotated[str, typer.Argument(help="Shell-style, such as 'stc*'.")] = "*",
    size: Annotated[int, typer.Option(min=32, help="Pixels of a side.")] = 224,
    num_frames: Annotated[int, typer.Option(min=1, help="Frames a clip.")] = 8,
    num_classes: Annotated[int, typer.Option(min=1, help="Classes of the head.")] = 174,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the networks with parameters and MACs (multiply–accumulates of the convolutions) a clip.

    Example: `clipwise models 'stm*'`
    """
    import torch

    from clipwise.models.complexity import count_macs, count_parameters
    from clipwise.models.registry import create_model, list_models

    names = list_models(pattern)
    if not names:
        raise ValueError(f"no network matches {pattern!r}; `clipwise models` lists them all")
    rows: list[tuple[str, int, int]] = []
    for name in names:
        with torch.device("meta"):
            model = create_model(name, num_classes=num_classes, num_frames=num_frames)
        rows.append((name, count_parameters(model), count_macs(model, size)))
    if as_json:
        typer.echo(json.dumps([dict(zip(("name", "parameters", "macs"), row, strict=True)) for row in rows]))
        return
    table = Table(
        "network", "parameters (M)", "GMACs a clip", title=f"{num_frames}×{size}×{size}, {num_classes} classes"
    )
    for name, parameters, macs in rows:
        table.add_row(name, f"{parameters / 1e6:.2f}", f"{macs / 1e9:.2f}")
    Console().print(table)
