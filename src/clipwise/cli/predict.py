"""``clipwise predict``"""

import glob
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clipwise.cli.app import app, counted, counting, importing, say
from clipwise.cli.stream_options import (
    EVENTS,
    Background,
    Consensus,
    Delay,
    MinSeconds,
    Precision,
    Rate,
    Release,
    SmoothingKind,
    SmoothingSeconds,
    Stride,
    Temperature,
    Weights,
)
from clipwise.files import check_writable, printable

if TYPE_CHECKING:
    from clipwise.inference.timeline import Timeline

_OF_TIMELINE = (
    "stride",
    "rate",
    "smoothing",
    "smoothing_kind",
    "release",
    "min_seconds",
    "delay",
    "background",
    "temperature",
    "consensus",
)


@app.command()
def predict(
    context: typer.Context,
    checkpoint: Annotated[
        Path, typer.Argument(help="A folder of `clipwise train` or `clipwise models import`, or a weight file in one.")
    ],
    sources: Annotated[list[str], typer.Argument(help="Video files, folders of them, or quoted patterns.")],
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, help="Classes to name.")] = 5,
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Where a video has a set of labels: name those from this score on. With --timeline: an event begins "
            "when its score reaches this. 0.5 if left out.",
        ),
    ] = None,
    weights: Weights = "best",
    precision: Precision = "fp32",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line a video.")] = False,
    timeline: Annotated[
        Path | None,
        typer.Option(
            metavar="OUT",
            help="Look at all of the video, one picture after the other, and write what it shows when, as OUT.json, "
            "OUT.csv or OUT.srt (subtitles). Of several videos '*' in OUT's name stands for each one's.",
            rich_help_panel=EVENTS,
        ),
    ] = None,
    stride: Stride = None,
    rate: Rate = None,
    smoothing: SmoothingSeconds = 0.5,
    smoothing_kind: SmoothingKind = "exponential",
    release: Release = None,
    min_seconds: MinSeconds = 0.0,
    delay: Delay = 0.0,
    background: Background = None,
    temperature: Temperature = None,
    consensus: Consensus = True,
) -> None:
    """Say what videos show.

    Example: `clipwise predict runs/mine clip.mp4 'holiday/*.mov' --top-k 3`

    Example: `clipwise predict runs/mine match.mp4 --timeline match.srt --rate 8`

    Of a network with several heads each head's classes are printed; where a video has a set of labels, those that hold
    are marked.

    A video that cannot be read does not stop the rest; the exit status is then 1.
    """
    sources_of = {name: context.get_parameter_source(name) for name in context.params}
    given = [name for name, origin in sources_of.items() if origin is not None and origin.name != "DEFAULT"]
    if timeline is not None:
        _refuse([name for name in ("top_k", "as_json") if name in given], "is not for --timeline, which writes OUT")
        _timelines(
            checkpoint,
            _videos(sources),
            timeline,
            loading={
                "which": weights,
                "precision": precision,
                "temperature": temperature,
                "consensus": consensus,
            },
            pace={"stride": stride, "rate": rate},
            smoothing={"seconds": smoothing, "kind": smoothing_kind},
            events={
                "start": 0.5 if threshold is None else threshold,
                "end": release,
                "min_seconds": min_seconds,
                "background": background or [],
                "delay": delay,
            },
        )
        return
    _refuse([name for name in _OF_TIMELINE if name in given], "is for --timeline OUT, which is not given")
    with importing():
        from clipwise.data.decode import DecodeError
        from clipwise.inference.predictor import load

    videos = _videos(sources)
    predictor = load(checkpoint, which=weights, precision=precision)
    failed = 0
    for video, result in zip(videos, predictor.each(videos, top_k=top_k, threshold=threshold), strict=True):
        if isinstance(result, DecodeError):
            failed += 1
            if as_json:
                typer.echo(json.dumps({"video": printable(video), "error": result.reason}))
            say(str(result), error=True)
            continue
        if result.num_frames < predictor.num_frames:
            say(
                f"{video}: {result.num_frames} frames, the network takes {predictor.num_frames}: some were repeated",
            )
        if as_json:
            row: dict[str, Any] = {"video": printable(video), "top": _scored(result.top)}
            if not predictor.label_space.single:
                row["labels"] = list(result.labels)
            if len(result.heads) > 1:
                row["heads"] = {head: _scored(one.top) for head, one in result.heads.items()}
            typer.echo(json.dumps(row))
        else:
            typer.echo(printable(video))
            for head, one in result.heads.items():
                if len(result.heads) > 1:
                    typer.echo(f" {head}")
                for label, score in one.top:
                    holds = predictor.label_space.multi_label and label in result.labels
                    typer.echo(f"  {score:.3f}  {label}" + ("  ✓" if holds else ""))
    if failed:
        say(f"{failed} of {counted(len(videos), 'video')} could not be read")
        raise typer.Exit(1)


def _refuse(options: list[str], why: str) -> None:
    if options:
        option = {"as_json": "--json"}.get(options[0], "--" + options[0].replace("_", "-"))
        raise ValueError(f"{option} {why}")


def _timelines(
    checkpoint: Path,
    videos: list[Path],
    out: Path,
    *,
    loading: dict[str, Any],
    pace: dict[str, Any],
    smoothing: dict[str, Any],
    events: dict[str, Any],
) -> None:
    """Write what each video shows when."""
    targets = _targets(videos, out)
    for target in targets:
        check_writable(target)
    with importing():
        from clipwise.checkpoint import command_line, versions
        from clipwise.data.decode import DecodeError
        from clipwise.inference.events import EventFinder, Smoothing
        from clipwise.inference.stream_predictor import Pace, load_stream
        from clipwise.inference.timeline import follow, write_timeline

    predictor = load_stream(checkpoint, **loading)
    failed = 0
    for number, (video, target) in enumerate(zip(videos, targets, strict=True), 1):
        finder = EventFinder(predictor.label_space, **events)
        record = {
            "settings": {
                **pace,
                "smoothing": smoothing["seconds"],
                "smoothing_kind": smoothing["kind"],
                "threshold": finder.start,
                "release": finder.end,
                "min_seconds": finder.min_seconds,
                "delay": finder.delay,
                "background": events["background"],
                "temperature": predictor.temperature,
                "precision": loading["precision"],
                "consensus": loading["consensus"],
            },
            "command": command_line(),
            "versions": versions(),
        }
        what = video.name + (f" ({number} of {len(videos)})" if len(videos) > 1 else "") + ", seconds"
        found = None
        try:
            with counting(what) as progress:
                for found in follow(
                    predictor, video, finder=finder, smoothing=Smoothing(**smoothing), pace=Pace(**pace)
                ):
                    progress(int(found.seconds), int(max(found.duration or 0, found.seconds)))
        except DecodeError as error:
            failed += 1
            say(str(error), error=True)
            continue
        except KeyboardInterrupt:
            if found is not None and target.suffix.lower() == ".json":
                write_timeline(found, target, record)
                say(f"stopped at {found.seconds:.1f} s; {target} has what was found so far, and says so")
            else:
                say(f"stopped; {target} was not written")
            raise typer.Exit(130) from None
        assert found is not None, "a video without pictures is a DecodeError"
        write_timeline(found, target, record)
        say(f"written: {target} ({counted(len(found.events), 'event')} in {found.seconds:.1f} s)")
        failed += not found.whole
        for line in _account(found):
            say(f"{video}: {line}")
    if failed:
        if len(videos) > 1:
            say(f"{failed} of {counted(len(videos), 'video')} could not be read, or not all of them")
        raise typer.Exit(1)


def _targets(videos: list[Path], out: Path) -> list[Path]:
    """The file for each video."""
    from clipwise.inference.timeline import FORMATS

    if out.suffix.lower() not in FORMATS:
        raise ValueError(
            f"{out}: a timeline is JSON, CSV or SRT, by its name's ending; give a name in {', '.join(FORMATS)}"
            + (f", such as '{out}/*.json'" if out.is_dir() else "")
        )
    if len(videos) > 1 and "*" not in out.name:
        pattern = out.with_name(f"*{out.suffix}")
        raise ValueError(f"{out}: is one name for {len(videos)} videos; put '*' where theirs go, such as '{pattern}'")
    targets = [out.with_name(out.name.replace("*", video.stem)) for video in videos]
    for number, target in enumerate(targets):
        if target in targets[:number]:
            raise ValueError(f"{videos[targets.index(target)]} and {videos[number]} would both be written to {target}")
    return targets


def _account(found: "Timeline") -> Iterator[str]:
    """What of a video could not be seen, in lines."""
    if found.missing:
        spans = ", ".join(f"{start:.1f}–{end:.1f}" for start, end in found.missing[:5])
        more = f" and at {len(found.missing) - 5} more places" if len(found.missing) > 5 else ""
        damaged = f" ({counted(found.damaged_packets, 'damaged packet')})" if found.damaged_packets else ""
        yield f"pictures are missing or spoilt at {spans} s{more}{damaged}; the rest was used"
    if found.unreadable:
        yield f"{found.unreadable}; after {found.seconds:.1f} s nothing was seen"
    if found.cut_short is not None:
        missing = f"by its header it has {found.cut_short:.1f} s more than the {found.seconds:.1f} s that were seen"
        doubt = "; if they are missing there, the times after that are early by as much"
        yield missing + (doubt if found.missing else "")
    yield from found.notes[:5]


def _scored(top: tuple[tuple[str, float], ...]) -> list[dict[str, Any]]:
    return [{"label": label, "score": round(score, 6)} for label, score in top]


def _videos(sources: Iterable[str]) -> list[Path]:
    """Files and frame folders that the arguments name, in order; folders of videos are searched through."""
    from clipwise.data.manifest import find_videos

    found: list[Path] = []
    for source in sources:
        path = Path(source)
        if path.suffix == ".pack":
            raise ValueError(f"{path}: is a pack of many videos; score it with: clipwise evaluate CHECKPOINT {path}")
        if path.is_dir():
            inside = find_videos(path)
            if not inside:
                raise ValueError(f"{path}: holds no videos and no frame folders")
            found += inside
        elif path.exists() or not glob.has_magic(source):
            found.append(path)  # a missing file is reported in its turn
        else:
            matched = sorted(glob.glob(source, recursive=True))
            if not matched:
                raise ValueError(f"{source}: no file matches this pattern")
            found += [Path(name) for name in matched]
    return found
