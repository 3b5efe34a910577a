"""``clipwise stream``"""

import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clipwise.cli.app import app, console, counted, importing, say
from clipwise.cli.stream_options import (
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
    Threshold,
    Weights,
)

if TYPE_CHECKING:
    from clipwise.inference.events import Event
    from clipwise.inference.live import Live, Looked
    from clipwise.inference.sources import Notice

_SOURCE = "The source"


@app.command()
def stream(
    checkpoint: Annotated[
        Path, typer.Argument(help="A folder of `clipwise train` or `clipwise models import`, or a weight file in one.")
    ],
    source: Annotated[
        str,
        typer.Argument(
            help="A video file; an address (rtsp://…, http://…); a camera's number or /dev/video0; or - for raw RGB24 "
            "pictures on stdin."
        ),
    ],
    stride: Stride = None,
    rate: Rate = None,
    smoothing: SmoothingSeconds = 0.5,
    smoothing_kind: SmoothingKind = "exponential",
    threshold: Threshold = 0.5,
    release: Release = None,
    min_seconds: MinSeconds = 0.0,
    delay: Delay = 0.0,
    background: Background = None,
    temperature: Temperature = None,
    consensus: Consensus = True,
    realtime: Annotated[
        bool,
        typer.Option(
            "--realtime",
            help="Play a file at its own speed, as a camera would: what there is no time for is dropped. Of stdin: "
            "drop, do not let the writer wait.",
            rich_help_panel=_SOURCE,
        ),
    ] = False,
    size: Annotated[
        str | None,
        typer.Option(metavar="WxH", help="Of raw pictures, or asked of a camera.", rich_help_panel=_SOURCE),
    ] = None,
    fps: Annotated[float | None, typer.Option(metavar="PER_SECOND", help="Likewise.", rich_help_panel=_SOURCE)] = None,
    timeout: Annotated[
        float,
        typer.Option(
            metavar="SECONDS", help="Without data for so long, a connection is lost.", rich_help_panel=_SOURCE
        ),
    ] = 5.0,
    reconnect: Annotated[
        float,
        typer.Option(
            min=0,
            metavar="SECONDS",
            help="Longest wait between attempts to reconnect; 0: do not reconnect.",
            rich_help_panel=_SOURCE,
        ),
    ] = 30.0,
    queue: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="N",
            help="Pictures that may wait for the network; of a live source the oldest of more are dropped.",
            rich_help_panel=_SOURCE,
        ),
    ] = 8,
    max_seconds: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="SECONDS",
            help="Stop at this time of the source; of a live one also by the clock, should it give nothing.",
            rich_help_panel=_SOURCE,
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Write a video (.mp4, .mov, .mkv) with labels and scores drawn in.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line for all that happens, on stdout.")] = False,
    scores: Annotated[
        bool, typer.Option("--scores", help="With --json, also the scores of each picture looked at, not smoothed.")
    ] = False,
    weights: Weights = "best",
    precision: Precision = "fp32",
) -> None:
    """Say what a stream shows while it comes.

    Example: `clipwise stream runs/mine rtsp://camera.local/1 --rate 10 --json`

    A line says when an event begins, another when it has ended. Ctrl-C ends the stream: events that last are closed,
    and a summary says how many pictures came, how many there was no time for, and how long each stage took.

    Where a connection is lost it is made anew; nothing that was recognised before is lost. What happens to the source
    stands on stderr.
    """
    with importing():
        from clipwise.data.decode import DecodeError
        from clipwise.inference.annotated import AnnotatedVideo
        from clipwise.inference.events import NONE, EventFinder, Smoothing
        from clipwise.inference.live import Live, Looked
        from clipwise.inference.sources import Notice, open_source
        from clipwise.inference.stream_predictor import Pace, load_stream
        from clipwise.training.resume import StopRequest, signals_restored

    if scores and not as_json:
        raise ValueError("--scores are JSON lines; give --json as well")
    if output is not None and output.exists() and os.path.exists(source) and output.samefile(source):
        raise ValueError(f"{output}: is the source itself, which would be written over; give another --output")
    pace = Pace(stride=stride, rate=rate)
    smooth = Smoothing(smoothing, smoothing_kind)
    video = AnnotatedVideo(output) if output else None
    predictor = load_stream(
        checkpoint, which=weights, precision=precision, temperature=temperature, consensus=consensus
    )
    finder = EventFinder(
        predictor.label_space,
        start=threshold,
        end=release,
        min_seconds=min_seconds,
        background=background or (),
        delay=delay,
    )
    stopping = StopRequest()
    report = _Report(as_json, predictor.classes if scores else None)
    last: Looked | None = None
    through = False
    with ExitStack() as stack:
        stack.enter_context(signals_restored())
        opened = open_source(source, size=_size(size), fps=fps, realtime=realtime, timeout=timeout, reconnect=reconnect)
        stopping.listen()
        if video:
            stack.enter_context(video.of(opened))
        show = stack.enter_context(_live_line())
        live = stack.enter_context(Live(opened, predictor, pace, queue=queue, keep=video is not None))
        began = time.monotonic()
        try:
            for item in live:
                if stopping:
                    live.stop()
                if isinstance(item, Notice):
                    report.notice(opened.name, item)
                    if item.broken and last is not None:
                        # Nobody knows what is shown meanwhile.
                        report.events(finder.finish(item.seconds + last.lasts), last)
                        smooth.reset()
                elif isinstance(item, Looked):
                    if max_seconds is not None and item.seconds >= max_seconds:
                        break
                    if item.scores is not None:
                        last = item
                        report.scores(item)
                        report.events(finder.update(item.seconds, smooth(item.seconds, item.scores)), item)
                    now = [f"{event.label}  {event.score:.2f}" for event in finder.lasting] or [NONE]
                    if video and item.picture is not None:
                        video.add(item.picture, item.seconds, now)
                    show(lambda: f"{item.seconds:.1f} s  {', '.join(now)}  {_state(live)}")  # noqa: B023
                if max_seconds is not None and opened.live and time.monotonic() - began >= max_seconds:
                    break
            else:
                through = not stopping
        finally:
            if last is not None:
                end = live.end if through else last.seconds + last.lasts
                report.events(finder.finish(end if max_seconds is None else min(end, max_seconds)), last)
            report.summary(live)
    if video and video.written:
        say(f"written: {output}")
    if stopping:
        raise typer.Exit(130)
    if max_seconds is None and not (live.tally.looked_at or live.tally.left_out):
        raise DecodeError(opened.name, "gave not one picture that can be decoded")


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    found = re.fullmatch(r"(\d+)[x×](\d+)", text, re.IGNORECASE)
    if not found:
        raise ValueError(f"--size is WIDTHxHEIGHT, such as 640x480; got {text!r}")
    return int(found[1]), int(found[2])


def _state(live: "Live") -> str:
    latency = live.tally.stages["latency"].milliseconds()
    late = f"{latency['median']:.0f} ms late, " if latency else ""
    return f"({late}{live.tally.dropped} of {live.tally.captured} pictures dropped)"


@contextmanager
def _live_line() -> Iterator[Callable[[Callable[[], str]], None]]:
    """A line that changes, where stderr is a terminal; a function of a function of its text."""
    if not console().is_terminal:
        yield lambda text: None
        return
    from rich.live import Live as Region
    from rich.text import Text

    shown = 0.0
    # What is printed meanwhile goes above it; stdout only if it is not read by a program.
    with Region(console=console(), transient=True, redirect_stdout=sys.stdout.isatty(), redirect_stderr=False) as line:

        def show(text: Callable[[], str]) -> None:
            nonlocal shown
            if time.monotonic() - shown > 0.2:
                shown = time.monotonic()
                line.update(Text(text(), no_wrap=True, overflow="ellipsis"))

        yield show


class _Report:
    """What happened, as lines on stdout: JSON or for people. Notices and the summary go to stderr."""

    def __init__(self, as_json: bool, classes: tuple[str, ...] | None) -> None:
        self._as_json = as_json
        self._classes = classes

    def events(self, events: "list[Event]", decided_by: "Looked") -> None:
        for event in events:
            if self._as_json:
                self._line(
                    "begin" if event.end is None else "end",
                    start=_rounded(event.start),
                    end=_rounded(event.end),
                    label=event.label,
                    score=_rounded(event.score),
                    latency_ms=_latency(decided_by),
                )
            elif event.end is None:
                print(f"{event.start:9.2f} s  {event.label} begins ({event.score:.2f})", flush=True)
            else:
                lasted = f"{event.end - event.start:.2f} s"
                print(f"{event.end:9.2f} s  {event.label} ends after {lasted} ({event.score:.2f})", flush=True)

    def scores(self, looked: "Looked") -> None:
        if self._classes is not None and looked.scores is not None:
            named = {name: _rounded(float(score)) for name, score in zip(self._classes, looked.scores, strict=True)}
            self._line("scores", seconds=_rounded(looked.seconds), scores=named, latency_ms=_latency(looked))

    def notice(self, source: str, notice: "Notice") -> None:
        if self._as_json:
            self._line(
                "notice",
                kind=notice.kind,
                seconds=_rounded(notice.seconds),
                message=notice.message,
            )
        say(f"{source}, {notice.seconds:.2f} s: {notice.message}")

    def summary(self, live: "Live") -> None:
        tally, source = live.tally, live.source
        stages = {name: stage.milliseconds() for name, stage in tally.stages.items()}
        if self._as_json:
            self._line(
                "summary",
                captured=tally.captured,
                looked_at=tally.looked_at,
                left_out=tally.left_out,
                dropped=tally.dropped,
                reconnects=source.reconnects,
                corrupt=source.corrupt,
                milliseconds=stages,
            )
        say(
            f"{counted(tally.captured, 'picture')} captured, {tally.looked_at} looked at, {tally.left_out} left out by "
            f"--stride or --rate, {tally.dropped} dropped; {counted(source.reconnects, 'reconnection')}, "
            f"{counted(source.corrupt, 'damaged packet')}"
        )
        told = [
            f"{name} {times['median']:.1f} ({times['p95']:.1f})" for name, times in stages.items() if times is not None
        ]
        if told:
            say(f"median milliseconds a picture (95 % below): {', '.join(told)}")

    def _line(self, kind: str, /, **what: Any) -> None:
        print(json.dumps({"type": kind, **what}), flush=True)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def _latency(looked: "Looked") -> float:
    """From the capture of the picture until now."""
    return round((time.monotonic() - looked.captured) * 1e3, 3)
