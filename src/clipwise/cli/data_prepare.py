"""``clipwise data prepare``: public data sets."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from clipwise.cli.app import counted, counting, say
from clipwise.cli.data import data
from clipwise.data.sets import SETS  # of the standard library alone: the names are part of the help

_NAMES = ", ".join(f"{name} (*unverified*)" if public.unverified else name for name, public in SETS.items())


@data.command()
def prepare(
    name: Annotated[str, typer.Argument(help=f"{_NAMES}. *Unverified*: the format has not been seen at its origin.")],
    root: Annotated[Path, typer.Option(help="The folder below which the videos or frame folders lie.")],
    output: Annotated[Path, typer.Option(help="The folder to write manifest.csv and the class lists to.")],
    annotations: Annotated[
        Path | None, typer.Option(help="The folder of the official annotation files; the root if left out.")
    ] = None,
    split: Annotated[int | None, typer.Option(help="Of the official ones (UCF, HMDB, EGTEA): 1, 2 or 3.")] = None,
    label: Annotated[str | None, typer.Option(help="EPIC-KITCHENS: verb, noun or both.")] = None,
    fps: Annotated[
        float | None, typer.Option(min=0.001, help="Of frame folders that were not extracted at the official rate.")
    ] = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Write the manifest without videos that are not there.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a manifest that is there.")] = False,
) -> None:
    """Make a manifest of a public data set from its official annotation files; nothing is downloaded or copied.

    Videos that are not there are listed in missing.txt; without --allow-missing, nothing else is then written.
    What files and folders each set needs: docs/datasets.md.

    Example: `clipwise data prepare ssv2 --root videos/ --annotations labels/ --output ssv2/`
    """
    from clipwise.data.sets import prepare as write

    with counting("videos found") as progress:
        result = write(
            name,
            root,
            output,
            annotations=annotations,
            split=split,
            label=label,
            fps=fps,
            allow_missing=allow_missing,
            overwrite=overwrite,
            progress=progress,
        )
    if SETS[name].unverified:
        say(f"unverified: the format of {name} has not been seen at its origin ({SETS[name].unverified})")
    for note in result.notes:
        say(note)
    if result.missing:
        say(f"{counted(len(result.missing), 'video')} missing, left out: {output / 'missing.txt'}")
    rows = ", ".join(f"{count} {split}" for split, count in result.splits.items())
    written = f"written: {result.manifest}: {rows}"
    if "train" not in result.splits:
        say(f"{written}; none to train on")
        return
    folder = shlex.quote(str(output))
    if "val" in result.splits or "test" not in result.splits:
        say(f"{written}; train on it with: clipwise train {folder}")
        return
    say(written)
    divided = shlex.quote(str(output / "divided.csv"))
    groups = f" --group-by {shlex.quote(SETS[name].group_by)}" if SETS[name].group_by else ""
    say("there is no val split, and weights that are chosen as the best on test have no fair figure on it; either")
    say("hold val out of train, choose by it, and test:")
    say(f"  clipwise data split {shlex.quote(str(result.manifest))} {divided} --only train{groups}")
    say(f"  clipwise train {divided} --output RUN")
    say(f"  clipwise evaluate RUN {divided} --split test")
    say("or train on all of train, watch test, and test the last weights:")
    say(f"  clipwise train {folder} --output RUN --set data.validation_split=test")
    say(f"  clipwise evaluate RUN {folder} --split test --weights last")
