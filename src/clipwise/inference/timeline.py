"""What a long video shows, and when: from its pictures, one after the other, to segments in a file.

The video is decoded once, in order, and only a few pictures of it are held at a time, however long it is. What cannot
be decoded is left out, with its place; the pictures after it are used.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipwise.data.decode import DecodeError
from clipwise.files import printable, written_whole
from clipwise.inference.events import Event, EventFinder, Smoothing
from clipwise.inference.sources import Notice, open_source
from clipwise.inference.stream_predictor import Pace, StreamPredictor

__all__ = ["FORMATS", "Timeline", "follow", "write_timeline"]

FORMATS = (".json", ".csv", ".srt")
"""By the name's ending: all that is known; a table; subtitles."""

_AT_ONCE = 16
"""Pictures that a causal network is given together: more take more memory and hardly less time."""
_WINDOWS_AT_ONCE = 64
"""Pictures that a sliding window is given together, times those of a window, each of which it computes."""
_HOLE = 1.0
"""What was seen before more than so many seconds whose pictures are missing is not continued after them."""
_DELAY = 32
"""A decoder may hold back so many pictures: those that damage takes may be missed only after so many others."""


@dataclass
class Timeline:
    """What was found in a video, as far as it was looked at."""

    video: str
    duration: float | None
    """Seconds, as the file says, which may be wrong; None where it does not."""
    seconds: float = 0.0
    """How far it was looked at: the end of the last picture, from the beginning of the first."""
    pictures: int = 0
    """That were decoded."""
    looked_at: int = 0
    """That the network saw: those of the pace."""
    events: list[Event] = field(default_factory=list)
    """Those that ended, in the order of their ends."""
    lasting: tuple[Event, ...] = ()
    """Those that last at ``seconds``; none of a video that is complete."""
    damaged_packets: int = 0
    missing: list[tuple[float, float]] = field(default_factory=list)
    """Parts whose pictures are missing or spoilt: from the last before to the first after, in seconds. Around damaged
    packets, and where pictures that come evenly fail to come for more than a second."""
    notes: list[str] = field(default_factory=list)
    """What else happened that a reader of the times should know."""
    unreadable: str | None = None
    """Why nothing after ``seconds`` can be read, where that is not the end."""
    complete: bool = False
    """Whether the video was looked at to its end."""
    begins: float = 0.0
    """Seconds from the beginning of the file, from which players count, to its first picture, from which all other
    times here do: where sound begins before the pictures."""

    @property
    def whole(self) -> bool:
        """Whether all of it could be decoded."""
        return self.complete and not self.missing and self.cut_short is None

    @property
    def cut_short(self) -> float | None:
        """Seconds that the file says it has and that were not seen, where that is more than rounding and no damage at
        the end explains it."""
        if self.missing and self.missing[-1][1] >= self.seconds:
            return None
        missing = (self.duration or 0.0) - self.seconds
        return missing if self.complete and missing > max(1.0, 0.02 * self.seconds) else None

    def in_order(self) -> list[Event]:
        """All events, by their start."""
        return sorted([*self.events, *self.lasting], key=lambda event: event.start)


def follow(
    predictor: StreamPredictor, video: str | Path, *, finder: EventFinder, smoothing: Smoothing, pace: Pace
) -> Iterator[Timeline]:
    """Look at a video file from its beginning to its end.

    Yields the same :class:`Timeline` again and again as it grows, so that whoever stops in between has what was found.

    Args:
        predictor: begins a new stream here.
        finder, smoothing, pace: made for this video.

    Raises:
        DecodeError: for a file of which nothing can be decoded. What breaks later is said in the timeline.
        ValueError: for scores that are not finite.
    """
    # A file's name that would be a camera's number, or stdin, is a file's name here.
    source = open_source(str(video) if Path(video).suffix else os.path.join(os.curdir, video))
    timeline = Timeline(str(video), source.duration)
    predictor.reset()
    at_once = _AT_ONCE if predictor.causal else max(1, _WINDOWS_AT_ONCE // predictor.num_frames)
    waiting: list[tuple[float, Tensor]] = []

    def look() -> None:
        if not waiting:
            return
        scores = predictor.push(torch.stack([picture for _, picture in waiting]))
        for (seconds, _), row in zip(waiting, scores, strict=True):
            found = finder.update(seconds, smoothing(seconds, row))
            timeline.events += [event for event in found if event.end is not None]
        timeline.looked_at += len(waiting)
        timeline.lasting = finder.lasting
        waiting.clear()

    def end() -> None:
        look()
        timeline.events += [event for event in finder.finish(timeline.seconds) if event.end is not None]
        timeline.lasting = ()

    before: float | None = None
    step = source.step
    undamaged = _DELAY  # pictures since a damaged packet
    uneven = 0  # pictures that came much sooner or later after the one before than that after its own
    try:
        for captured in source.packets():
            for item in source.decode(captured):
                if isinstance(item, Notice):
                    if item.kind == "clock":
                        timeline.notes.append(f"at {item.seconds:.1f} s {item.message}")
                    continue
                undamaged += 1
                if source.corrupt > timeline.damaged_packets:
                    timeline.damaged_packets = source.corrupt
                    undamaged = 0
                passed = item.seconds if before is None else item.seconds - before
                long = passed > max(_HOLE, 10 * step) and timeline.pictures > 1
                # A file may lose a part without a word; one whose pictures come unevenly may just stand still.
                lost = long and uneven <= 0.05 * timeline.pictures
                if lost or undamaged == 0 or (undamaged < _DELAY and passed > 1.5 * step):
                    _add_span(timeline.missing, item.seconds - passed, item.seconds)
                    if long:
                        end()
                        predictor.reset()
                        smoothing.reset()
                elif before is not None and passed > 0:
                    uneven += timeline.pictures > 1 and abs(passed - step) > 0.5 * step
                    step = passed
                before = item.seconds
                timeline.begins = source.begins
                timeline.seconds = before + step
                timeline.pictures += 1
                if pace.takes(before):
                    waiting.append((before, predictor.prepare(item.rgb())))
                    if len(waiting) == at_once:
                        look()
                        yield timeline
    except DecodeError as error:
        if not timeline.pictures:
            raise
        timeline.unreadable = error.reason
    finally:
        source.stop()
    if not timeline.pictures:
        raise DecodeError(str(video), "not one picture of it can be decoded; fetch or encode it again")
    if source.corrupt > timeline.damaged_packets:
        timeline.damaged_packets = source.corrupt
        _add_span(timeline.missing, before or 0.0, max(timeline.seconds, timeline.duration or 0.0))
    end()
    timeline.complete = timeline.unreadable is None
    yield timeline


def _add_span(spans: list[tuple[float, float]], start: float, end: float) -> None:
    """Add a span of time at the end, to the last one where they touch."""
    if spans and start <= spans[-1][1]:
        spans[-1] = (spans[-1][0], max(end, spans[-1][1]))
    else:
        spans.append((start, end))


def write_timeline(timeline: Timeline, path: Path, record: dict[str, Any]) -> None:
    """Write a timeline whole or not at all, in the format of the path's ending.

    Args:
        record: what else the JSON is to say, such as the settings.

    Raises:
        ValueError: for another ending; or for a table or subtitles of a video that was not looked at to its end though
            it could have been, for neither can say so.
    """
    kind = path.suffix.lower()
    if kind not in FORMATS:
        raise ValueError(f"{path}: a timeline is JSON, CSV or SRT; give a name in {', '.join(FORMATS)}")
    if kind != ".json" and not timeline.complete and timeline.unreadable is None:
        raise ValueError(f"{path}: not written, for in {kind[1:].upper()} it cannot say that the rest is missing")
    made = {".json": _json, ".csv": _csv, ".srt": _srt}[kind](timeline, record)
    with written_whole(path) as partial:
        partial.write_text(printable(made), encoding="utf-8")


def _json(timeline: Timeline, record: dict[str, Any]) -> str:
    value = {
        "video": timeline.video,
        "complete": timeline.complete,
        "begins": round(timeline.begins, 3),
        "seconds": round(timeline.seconds, 3),
        "pictures": timeline.pictures,
        "looked_at": timeline.looked_at,
        "unreadable": timeline.unreadable,
        "seconds_missing": None if timeline.cut_short is None else round(timeline.cut_short, 3),
        "damaged_packets": timeline.damaged_packets,
        "missing": [{"start": round(start, 3), "end": round(end, 3)} for start, end in timeline.missing],
        "notes": timeline.notes,
        "events": [asdict(event) | _rounded(event) for event in timeline.in_order()],
        **record,
    }
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def _rounded(event: Event) -> dict[str, Any]:
    end = None if event.end is None else round(event.end, 3)
    return {"start": round(event.start, 3), "end": end, "score": round(event.score, 4)}


def _csv(timeline: Timeline, record: dict[str, Any]) -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("start", "end", "label", "score"))
    for event in timeline.in_order():
        table.writerow((f"{event.start:.3f}", f"{_end(event):.3f}", event.label, f"{event.score:.4f}"))
    return text.getvalue()


def _srt(timeline: Timeline, record: dict[str, Any]) -> str:
    cues = []
    for number, event in enumerate(timeline.in_order(), 1):
        times = " --> ".join(_srt_time(timeline.begins + at) for at in (event.start, _end(event)))
        cues.append(f"{number}\n{times}\n{event.label} ({event.score:.2f})\n")
    return "\n".join(cues)


def _end(event: Event) -> float:
    assert event.end is not None, "what lasts is written as JSON only"
    return event.end


def _srt_time(seconds: float) -> str:
    milliseconds = round(1000 * seconds)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{milliseconds // 1000:02},{milliseconds % 1000:03}"
