"""``clipwise models import``"""

import dataclasses
import json
import shlex
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from clipwise.cli.app import say
from clipwise.cli.models import models


class Source(StrEnum):
    """Whose checkpoint it is; the names of ``importing.SOURCES``, here so that ``--help`` need not import torch."""

    tsm = "tsm"
    mmaction2 = "mmaction2"
    ibm = "ibm"
    pyslowfast = "pyslowfast"
    torchvision = "torchvision"
    deepmind_i3d = "deepmind-i3d"
    tanet = "tanet"


@models.command("import")
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

    **tsm** (mit-han-lab): TSN and TSM on ResNet and MobileNetV2 · **mmaction2**: the same, TANet, TIN, X3D, SlowFast
    with lateral_norm · **ibm** (Deep Analysis): TSN, TAM, I3D, S3D on ResNet and Inception-v1 · **pyslowfast**:
    SlowFast-R50 and X3D, the zoo's Caffe2 files and PyTorchVideo's SlowFast too · **torchvision**: ResNet, GoogLeNet,
    MobileNetV2, R3D-18, MC3-18, R(2+1)D-18, S3D · **deepmind-i3d**: I3D RGB, as PyTorch's or as .npz of TensorFlow's
    variables (names *unverified*) · **tanet** (liu-zhy): TANet. Except where marked, names and shapes were looked up at
    their origin; import.json in the folder says where.

    Nothing in the file is run. Every tensor must find its place, or nothing is written and the exit status is 1. The
    folder tests with one view; `--set views.clips=10` and the like change that.
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
