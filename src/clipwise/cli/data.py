"""``clipwise data``: make and prepare data."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from clipwise.cli.app import app, counted, counting, say

if TYPE_CHECKING:
    from clipwise.data.pack import PackReport
    from clipwise.data.shards import ShardFormat

data = typer.Typer(help="Make and prepare data.", no_args_is_help=True)
app.add_typer(data, name="data")


@data.command()
def synthesize(
    output: Annotated[Path, typer.Argument(help="The folder to make.")],
    videos_per_class: Annotated[int, typer.Option("--videos", "-n", min=1, help="Videos a class.")] = 50,
    size: Annotated[int, typer.Option(min=32, help="Pixels of a side, even.")] = 112,
    pairs: Annotated[int | None, typer.Option(min=1, help="How many pairs of classes; all if left out.")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    val_share: Annotated[float, typer.Option(min=0.0, max=0.9, help="Share of videos for validation.")] = 0.25,
    codec: Annotated[Literal["h264", "vp9", "mpeg4"], typer.Option()] = "h264",
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; one a core if left out.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the folder.")] = False,
) -> None:
    """Render encoded videos whose class is the order of events: moves left or right, opens or closes …

    No single frame tells the class: the second class of a pair is the first one's frames reversed before encoding.

    Example: `clipwise data synthesize synthetic/ --videos 80 --size 64`
    """
    from clipwise.data.synthetic import synthesize as render
    from clipwise.data.workers import available_cores

    with counting("videos") as progress:
        manifest = render(
            output,
            pairs=pairs,
            videos_per_class=videos_per_class,
            size=size,
            seed=seed,
            val_share=val_share,
            codec=codec,
            workers=workers or available_cores(),
            overwrite=overwrite,
            progress=progress,
        )
    say(f"written: {manifest}; train on it with: clipwise train {shlex.quote(str(output))}")


@data.command()
def pack(
    source: Annotated[Path, typer.Argument(help="A folder of class folders, or a manifest CSV.")],
    output: Annotated[Path, typer.Argument(help="The *.pack file to write, or the folder of shards.")],
    pixel_format: Annotated[
        Literal["jpeg", "uint8", "shards-jpeg", "shards-uint8", "shards-h264"],
        typer.Option(
            "--format",
            help="uint8 keeps every pixel; jpeg is a tenth of the size. The shards are tar files, for large sets.",
        ),
    ] = "jpeg",
    short_side: Annotated[int | None, typer.Option(min=16, help="Shrink to this; kept if left out.")] = None,
    quality: Annotated[int, typer.Option(min=1, max=100, help="Of JPEG.")] = 95,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; one a core if left out.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
    skip_unreadable: Annotated[
        bool,
        typer.Option(
            "--skip-unreadable", help="Leave out videos that are missing or cannot be decoded, and name them."
        ),
    ] = False,
    shard_megabytes: Annotated[int, typer.Option("--shard-mb", min=1, help="Size of a shard.")] = 1024,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with shards that were begun.")] = False,
) -> None:
    """Decode all videos once into one file, or a folder of tar files, from which training needs no other decoder.

    Shards that break off (a full disk, Ctrl-C) go on with --resume.

    Example: `clipwise data pack videos/ videos.pack --short-side 256`
    """
    from functools import partial

    from clipwise.data.manifest import Manifest
    from clipwise.data.pack import pack as write_pack
    from clipwise.data.shards import write_shards

    write: Callable[..., PackReport]
    if pixel_format == "jpeg" or pixel_format == "uint8":
        if resume:
            raise ValueError(f"--resume is for shards; a pack of --format {pixel_format} is written in one go")
        write = partial(write_pack, format=pixel_format)
    else:
        kinds: dict[str, ShardFormat] = {"shards-jpeg": "jpeg", "shards-uint8": "uint8", "shards-h264": "h264"}
        write = partial(write_shards, format=kinds[pixel_format], shard_bytes=shard_megabytes * 10**6, resume=resume)

    manifest = Manifest.read(source)
    if not skip_unreadable:
        manifest.check_files()
    if manifest.ignored:
        say(f"{len(manifest.ignored)} entries are no videos and are left out: {', '.join(manifest.ignored[:3])}")
    with counting("videos") as progress:
        report = write(
            manifest,
            output,
            short_side=short_side,
            quality=quality,
            workers=workers,
            overwrite=overwrite,
            on_error="skip" if skip_unreadable else "raise",
            progress=progress,
        )
    say(
        f"written: {report.path}: {report.videos} videos, {report.frames} frames, {report.bytes / 1e6:.0f} MB",
    )
    if report.skipped:
        say(f"{counted(len(report.skipped), 'video')} could not be read, left out:")
        for skipped in report.skipped:
            say("  " + ": ".join(skipped))
