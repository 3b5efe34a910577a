"""``clipwise models import``"""

import dataclasses
import inspect
import json
import shlex
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from clipwise.cli.app import say
from clipwise.cli.models import models


class Source(StrEnum):
    """Whose checkpoint it is; the names of ``import_maps.SOURCES``, here so that no verb's start imports torch."""

    tsm = "tsm"
    mmaction2 = "mmaction2"
    ibm = "ibm"
    pyslowfast = "pyslowfast"
    torchvision = "torchvision"
    deepmind_i3d = "deepmind-i3d"
    tanet = "tanet"


class _ListingSources(TyperCommand):
    """A command whose help ends with the sources; they are fetched when it is asked for, since they import torch."""

    def format_help(self, *arguments: Any) -> None:
        from clipwise.models.import_maps import SOURCES

        listed = "\n".join(f"- **{name}**: {source.networks}" for name, source in SOURCES.items())
        self.help = f"{inspect.getdoc(self.callback)}\n\n{listed}"
        super().format_help(*arguments)


@models.command("import", cls=_ListingSources)
def import_(
    file: Annotated[Path, typer.Argument(help="The checkpoint; .safetensors, .npz, .pth and the like.")],
    source: Annotated[Source, typer.Option("--from", help="Whose it is.")],
    labels: Annotated[
        Path | None, typer.Option(help="The classes it was trained with: a text file, one a line, in their order.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write.")] = Path("runs/imported"),
    model: Annotated[str | None, typer.Option(help="The network, where the weights leave it open.")] = None,
    num_frames: Annotated[
        int | None, typer.Option(min=1, help="Frames a clip, where the weights do not tell and it is not the usual.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="model.options.NAME=VALUE or views.NAME=VALUE, repeatable.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier import in --output.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the account as JSON.")] = False,
) -> None:
    """Turn another project's checkpoint into a folder for `clipwise predict`.

    Example: `clipwise models import TSM_kinetics_RGB_resnet50.pth --from tsm --labels kinetics400.txt`

    Nothing in the file is run. Every tensor must find its place, or nothing is written and the exit status is 1. The
    folder tests with one view; `--set views.clips=10` and the like change that.

    Names and shapes were looked up at their origin, except where marked; import.json in the folder says where. `--from`
    takes:
    """
    from clipwise.data.manifest import read_classes
    from clipwise.models.importing import import_checkpoint

    report = import_checkpoint(
        file,
        output,
        source=source.value,
        labels=None if labels is None else read_classes(labels),
        name=model,
        num_frames=num_frames,
        overrides=overrides or (),
        overwrite=overwrite,
    )
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(report), ensure_ascii=False))
    else:
        typer.echo(str(report))
    say(f"written: {output}; try it with: clipwise predict {shlex.quote(str(output))} VIDEO")
