"""``clipwise predict``"""

import glob
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from clipwise.cli.app import app, counted, importing, say


@app.command()
def predict(
    checkpoint: Annotated[
        Path, typer.Argument(help="A folder of `clipwise train` or `clipwise models import`, or a weight file in one.")
    ],
    sources: Annotated[list[str], typer.Argument(help="Video files, folders of them, or quoted patterns.")],
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, help="Classes to name.")] = 5,
    threshold: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Where a video has a set of labels: name those from this score on; 0.5."),
    ] = None,
    weights: Annotated[Literal["best", "last"], typer.Option(help="Which of the folder's weights.")] = "best",
    precision: Annotated[Literal["fp32", "bf16"], typer.Option(help="bf16 is autocast.")] = "fp32",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line a video.")] = False,
) -> None:
    """Say what videos show.

    Example: `clipwise predict runs/mine clip.mp4 'holiday/*.mov' --top-k 3`

    Of a network with several heads each head's classes are printed; where a video has a set of labels, those that hold
    are marked.

    A video that cannot be read does not stop the rest; the exit status is then 1.
    """
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
                typer.echo(json.dumps({"video": str(video), "error": result.reason}, ensure_ascii=False))
            say(str(result), error=True)
            continue
        if result.num_frames < predictor.num_frames:
            say(
                f"{video}: {result.num_frames} frames, the network takes {predictor.num_frames}: some were repeated",
            )
        if as_json:
            row: dict[str, Any] = {"video": str(video), "top": _scored(result.top)}
            if not predictor.label_space.single:
                row["labels"] = list(result.labels)
            if len(result.heads) > 1:
                row["heads"] = {head: _scored(one.top) for head, one in result.heads.items()}
            typer.echo(json.dumps(row, ensure_ascii=False))
        else:
            typer.echo(video)
            for head, one in result.heads.items():
                if len(result.heads) > 1:
                    typer.echo(f" {head}")
                for label, score in one.top:
                    holds = predictor.label_space.multi_label and label in result.labels
                    typer.echo(f"  {score:.3f}  {label}" + ("  ✓" if holds else ""))
    if failed:
        say(f"{failed} of {counted(len(videos), 'video')} could not be read")
        raise typer.Exit(1)


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
