"""``clipwise protocols``"""

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated

import typer

from clipwise.cli.app import app

if TYPE_CHECKING:
    from clipwise.evaluation.presets import Protocol


@app.command()
def protocols(
    name: Annotated[str | None, typer.Argument(help="One of them, in detail.")] = None,
    num_frames: Annotated[
        int, typer.Option(min=1, help="Of the network; the stride of dense clips follows from it.")
    ] = 8,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the papers' testing protocols: clips × crops, pixels (short side › crop › input), averaging and paper.

    Example: `clipwise protocols stc_2clip`

    `clipwise evaluate … --protocol NAME` tests so.
    """
    from rich.console import Console
    from rich.table import Column, Table

    from clipwise.evaluation.presets import list_protocols, protocol_entry

    chosen = [protocol_entry(one) for one in ([name] if name else list_protocols())]
    rows = [{**dataclasses.asdict(entry), "views": entry.views(num_frames)} for entry in chosen]
    if as_json:
        typer.echo(json.dumps(rows[0] if name else rows, ensure_ascii=False))
        return
    if name:
        entry, fields = chosen[0], rows[0]["views"]
        table = Table.grid(padding=(0, 2))
        for key, value in (
            ("paper", f"{entry.paper}, section {entry.section}"),
            ("data", entry.data),
            ("views", _clips_and_crops(entry)),
            ("average", entry.average),
            ("open", entry.note or "–"),
            ("set", "\n".join(f"views.{field}={value}" for field, value in fields.items())),
        ):
            table.add_row(key, value)
    else:
        table = Table.grid(Column(no_wrap=True), Column(), padding=(0, 2))
        for entry in chosen:
            table.add_row(entry.name, f"{_clips_and_crops(entry)}, {entry.average}")
            table.add_row("", f"{entry.paper}, section {entry.section}: {entry.data}", style="dim")
    Console(highlight=False).print(table)


def _clips_and_crops(entry: "Protocol") -> str:
    return f"{entry.clips} {entry.sampling} × {entry.crops}, {_pixels(entry.resolution)}"


def _pixels(resolution: tuple[int, int, int]) -> str:
    """``240 › 224``: the short side, the crop in it, and the input where that has another size."""
    short, crop, size = resolution
    return f"{short} › {crop}" + (f" › {size}" if size != crop else "")
