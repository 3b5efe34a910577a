"""Which videos of a manifest cannot be used, or not as they are: found before training, by decoding them.

Every file is read in a process that may die or hang without harm (``isolation.py``). Of each video, or each segment
that the manifest names, eight frames at the beginning, the middle and the end are decoded, or with ``full`` all of
them; a frame that comes out of the decoder marked as damaged counts as damaged. What was found goes to a journal as
it comes, so that a check that was stopped goes on where it was.

What can be found (``KINDS``) is of two sorts. A video that is *unusable* is left out of the cleaned manifest;
whatever else is odd about a video (its frame rate, a double) stays in it, and is for the user to judge.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterator, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, Literal, NamedTuple, TextIO

import numpy as np
from numpy.typing import NDArray

from clipwise.data.decode import DecodeError, Frames, VideoFile, open_frames
from clipwise.data.isolation import Outcome, run_isolated
from clipwise.data.table import Table
from clipwise.files import written_whole

__all__ = [
    "KINDS",
    "SAME",
    "UNUSABLE",
    "USABLE_IF_ALLOWED",
    "CheckReport",
    "Finding",
    "check",
    "inspect",
    "inspect_all",
    "journal_of",
]

KINDS = {
    "missing": "no such file",
    "permission": "may not be read",
    "empty": "zero bytes",
    "html": "a web page, not a video",
    "image": "a still picture, not a video",
    "no_video": "holds no pictures: sound alone, or subtitles",
    "unreadable": "cannot be opened as a video",
    "damaged": "frames that do not decode, or come out damaged",
    "incomplete": "ends before the length that its header states",
    "crashed": "the decoder's process died on it, twice",
    "hung": "the decoder gave no sign of life",
    "segment": "start and end lie outside the video",
    "short": "fewer frames than asked for",
    "two_labels": "the same content under two labels",
    "across_splits": "the same content in two splits",
    "duplicate": "the same content twice",
    "odd_rate": "a frame rate far from the others'",
    "variable_rate": "frames come at uneven times",
    "rotated": "stored lying down; its rotation is applied when it is read",
}
"""What can be found, and what it means."""

UNUSABLE = frozenset(list(KINDS)[: list(KINDS).index("short") + 1])
"""The kinds for which a video is left out of the cleaned manifest."""

USABLE_IF_ALLOWED = frozenset({"incomplete", "short"})
"""Those of them whose frames, as many as there are, can be read: who allows them keeps them."""

SAME = frozenset({"two_labels", "across_splits", "duplicate"})
"""The kinds that concern several files with the same content; of others, a finding's rows are segments of one."""

PORTION = 8  # frames decoded at the beginning, the middle and the end
_ODD = 1.5  # times faster or slower than the median
_JOURNAL_VERSION = 1

Beat = Callable[[], None]
Span = tuple[float | None, float | None, float | None]
"""A row's start and end in seconds and its fps, as the manifest gives them."""
Depth = Literal["header", "portions", "full"]


class FileTask(NamedTuple):
    """One file to look at, with the segments that rows want of it."""

    path: str
    spans: tuple[Span, ...]
    depth: Depth
    hash: bool


@dataclass(frozen=True)
class Finding:
    """Something that is wrong with a video, or with several that have the same content.

    kind: of ``KINDS``. rows: numbers in the manifest, names: what they are called there. reason: in words.
    """

    kind: str
    rows: tuple[int, ...]
    names: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class CheckReport:
    """What a check found; ``findings`` in the order of ``KINDS`` and then of the manifest.

    facts: of each file that could be opened: container, codec, width and height (upright), frames, fps, seconds,
    rotation, bytes, sha256 …; by the file's path relative to the manifest's folder.
    deaths: files on which a process died once but which then could be read, and why it died.
    """

    source: Path
    rows: int
    full: bool
    min_frames: int
    median_fps: float | None
    findings: tuple[Finding, ...]
    facts: dict[str, dict[str, Any]] = field(repr=False)
    deaths: dict[str, tuple[str, ...]]

    @property
    def counts(self) -> dict[str, int]:
        """How many videos (rows) each kind concerns, of those kinds that occur."""
        concerned = {(finding.kind, row) for finding in self.findings for row in finding.rows}
        counted = Counter(kind for kind, _ in concerned)
        return {kind: counted[kind] for kind in KINDS if counted[kind]}

    @property
    def unusable(self) -> dict[int, str]:
        """Row → why it cannot be used."""
        return self.left_out()

    def left_out(self, allowed: Set[str] = frozenset()) -> dict[int, str]:
        """Row → why it is not in the cleaned manifest: it cannot be used, for more than the ``allowed`` kinds of
        ``USABLE_IF_ALLOWED``."""
        kinds = UNUSABLE - (USABLE_IF_ALLOWED & allowed)
        reasons: dict[int, str] = {}
        for finding in self.findings:
            if finding.kind in kinds:
                for row in finding.rows:
                    reasons.setdefault(row, finding.reason)
        return reasons

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes the report as JSON. Raises ValueError where nothing can be written."""
        names = {row: name for finding in self.findings for row, name in zip(finding.rows, finding.names, strict=True)}
        value = {
            "source": str(self.source),
            "rows": self.rows,
            "full": self.full,
            "min_frames": self.min_frames,
            "median_fps": self.median_fps,
            "counts": self.counts,
            "findings": [vars(finding) for finding in self.findings],
            "unusable": {names[row]: reason for row, reason in sorted(self.unusable.items())},
            "died_once": self.deaths,
            "files": self.facts,
        }
        text = json.dumps(value, indent=1, ensure_ascii=False)
        try:
            with written_whole(Path(path)) as partial:
                partial.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise ValueError(
                f"{path}: cannot be written ({error.strerror}); choose a folder you may write to"
            ) from error


def journal_of(report: str | os.PathLike[str]) -> Path:
    """Where a check that writes ``report`` keeps what it has found so far."""
    report = Path(os.path.abspath(report))
    return report.with_name(report.name + ".journal")


def check(
    table: Table,
    *,
    full: bool = False,
    min_frames: int = 8,
    workers: int = 1,
    timeout: float = 60,
    journal: Path | None = None,
    resume: bool = False,
    progress: Callable[[int, int], object] | None = None,
) -> CheckReport:
    """Looks at every file of a manifest.

    Args:
        table: the manifest.
        full: decode every frame, not only those at the beginning, the middle and the end.
        min_frames: a video or segment with fewer is "short".
        workers: processes.
        timeout: seconds without a sign of life after which a file is given up.
        journal: file for what was found so far; it is there while the check is not finished, and after one that was
            stopped. None keeps none.
        resume: take from the journal what it holds of files that have not changed since.
        progress: called with (files done, files in all).

    Raises ValueError for a journal that is there without ``resume``, or of another check, or cannot be written.
    """
    spans: dict[str, dict[Span, list[int]]] = defaultdict(lambda: defaultdict(list))
    for row, (item, file) in enumerate(zip(table.manifest, table.files, strict=True)):
        spans[file][item.start, item.end, item.fps].append(row)
    depth: Depth = "full" if full else "portions"
    tasks = [FileTask(path, tuple(of), depth, True) for path, of in spans.items()]
    results = _inspected(tasks, table.manifest.source, workers, timeout, journal, resume, progress)

    findings: list[Finding] = []
    facts: dict[str, dict[str, Any]] = {}
    deaths: dict[str, tuple[str, ...]] = {}
    root = table.manifest.root

    def add(kind: str, rows: Sequence[int], reason: str) -> None:
        findings.append(Finding(kind, tuple(rows), tuple(table.names[row] for row in rows), reason))

    for task, result in zip(tasks, results, strict=True):
        of_span = list(spans[task.path].values())
        every = sorted(row for rows in of_span for row in rows)
        for span, kind, reason in result["problems"]:
            add(kind, every if span is None else of_span[span], reason)
        for rows, frames in zip(of_span, result.get("frames", ()), strict=False):
            if frames is not None and frames < min_frames:
                add("short", rows, f"{_frames(frames)}, fewer than {min_frames}")
        path = PurePath(task.path)
        name = _shown(path.relative_to(root).as_posix() if path.is_relative_to(root) else task.path)
        if result["facts"]:
            facts[name] = result["facts"]
        if result["deaths"] and not result["problems"]:
            deaths[name] = tuple(result["deaths"])
    unusable = {row for finding in findings if finding.kind in UNUSABLE for row in finding.rows}

    rates = [fps for result in results if (fps := result["facts"].get("fps"))]
    median = statistics.median(rates) if rates else None
    of_content: dict[str, list[int]] = defaultdict(list)
    for task, result in zip(tasks, results, strict=True):
        found, rows = result["facts"], sorted(row for rows in spans[task.path].values() for row in rows)
        fps = found.get("fps")
        if fps and median and not 1 / _ODD <= fps / median <= _ODD:
            add("odd_rate", rows, f"{fps:.4g} frames a second, the median is {median:.4g}")
        if found.get("variable_rate"):
            add("variable_rate", rows, f"{fps:.4g} frames a second on the average, at uneven times")
        if found.get("rotation"):
            add("rotated", rows, f"turned by {found['rotation']}° when it is read")
        usable = [row for row in rows if row not in unusable]
        if usable and found.get("sha256"):
            of_content[found["sha256"]] += usable
    for rows in of_content.values():
        for kind, reason in _doubles(table, rows):
            add(kind, rows, reason)
    order = list(KINDS)
    findings.sort(key=lambda finding: (order.index(finding.kind), finding.rows))
    return CheckReport(table.manifest.source, len(table), full, min_frames, median, tuple(findings), facts, deaths)


def _doubles(table: Table, rows: Sequence[int]) -> list[tuple[str, str]]:
    """What is wrong with rows whose files have the same bytes; (kind, reason)."""
    files = {table.files[row] for row in rows}
    if len(files) < 2:
        return []
    found = []
    # Two segments of one recording may well have two labels, if they do not overlap, and so may its two directions.
    differing = [
        (table.classes[one], table.classes[other])
        for place, one in enumerate(rows)
        for other in rows[:place]
        if table.classes[one] != table.classes[other] and table.files[one] != table.files[other]
        if _show_the_same(table, one, other)
    ]
    if differing:
        names = sorted({", ".join(classes) for pair in differing for classes in pair})
        found.append(("two_labels", f"the same bytes {len(files)} times, as {' and as '.join(names)}"))
    splits = sorted({split for row in rows if (split := table.manifest[row].split)})
    if len(splits) > 1:
        found.append(("across_splits", f"the same bytes {len(files)} times, in {' and in '.join(splits)}"))
    return found or [("duplicate", f"the same bytes {len(files)} times")]


def _show_the_same(table: Table, one: int, other: int) -> bool:
    """Whether two segments overlap and are played in the same direction."""
    first, second = table.manifest[one], table.manifest[other]
    if first.reversed != second.reversed:
        return False
    ends = [float("inf") if item.end is None else item.end for item in (first, second)]
    return (first.start or 0.0) < ends[1] and (second.start or 0.0) < ends[0]


def _frames(number: int) -> str:
    return f"{number} frame" + ("" if number == 1 else "s")


def _shown(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "backslashreplace")


# Running, and the journal


def inspect_all(
    tasks: Sequence[FileTask], *, workers: int, timeout: float
) -> Generator[tuple[int, dict[str, Any]], None, None]:
    """(number of the task, what :func:`inspect` found) in the order in which they are done."""
    with contextlib.closing(run_isolated(inspect, tasks, workers=workers, timeout=timeout)) as outcomes:
        for number, outcome in outcomes:
            yield number, _result(outcome)


def _result(outcome: Outcome) -> dict[str, Any]:
    if outcome.value is not None:
        return {**outcome.value, "deaths": outcome.deaths}
    kind = "hung" if outcome.hung else "crashed"
    how = outcome.deaths[-1]
    reason = f"{how} (--timeout gives it longer)" if outcome.hung else f"its decoder's process {how}"
    return {"facts": {}, "problems": [[None, kind, reason]], "deaths": outcome.deaths}


def _inspected(
    tasks: Sequence[FileTask],
    source: Path,
    workers: int,
    timeout: float,
    journal: Path | None,
    resume: bool,
    progress: Callable[[int, int], object] | None,
) -> list[dict[str, Any]]:
    keys = [_key(task) for task in tasks]
    known: dict[str, dict[str, Any]] = {}
    if journal is not None and journal.exists():
        if not resume:
            raise ValueError(
                f"{journal}: a check that writes there was stopped; go on with it (--resume), or remove this file"
            )
        known = _read_journal(journal, source)
    done: dict[int, dict[str, Any]] = {number: known[key] for number, key in enumerate(keys) if key in known}
    remaining = [number for number in range(len(tasks)) if number not in done]
    with contextlib.ExitStack() as stack:
        stream = None if journal is None else stack.enter_context(_journal(journal, source, keys, done))
        results = inspect_all([tasks[number] for number in remaining], workers=workers, timeout=timeout)
        stack.callback(results.close)
        if progress is not None:
            progress(len(done), len(tasks))
        for place, result in results:
            number = remaining[place]
            done[number] = result
            if stream is not None:
                stream.write(json.dumps({"key": keys[number], "result": result}) + "\n")
                stream.flush()
            if progress is not None:
                progress(len(done), len(tasks))
    if journal is not None:
        journal.unlink()
    return [done[number] for number in range(len(tasks))]


def _key(task: FileTask) -> str:
    """Names a task, and a file's state: what the journal holds is of use if both are as they were."""
    try:
        state = os.stat(task.path)
        when: list[int] = [state.st_size, state.st_mtime_ns]
    except OSError:
        when = []
    return json.dumps([task.path, task.spans, task.depth, when])


@contextlib.contextmanager
def _journal(path: Path, source: Path, keys: Sequence[str], done: dict[int, dict[str, Any]]) -> Iterator[TextIO]:
    try:
        with written_whole(path) as partial, partial.open("w", encoding="utf-8") as stream:
            stream.write(json.dumps({"clipwise_check": _JOURNAL_VERSION, "source": str(source)}) + "\n")
            stream.writelines(json.dumps({"key": keys[n], "result": result}) + "\n" for n, result in done.items())
        stream = path.open("a", encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{path}: cannot be written ({error.strerror}); choose a folder you may write to") from error
    with stream:
        yield stream


def _read_journal(path: Path, source: Path) -> dict[str, dict[str, Any]]:
    try:
        # The last line may be cut off by what ended the check.
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
        first = json.loads(lines[0]) if lines else {}
        version, of = first.get("clipwise_check"), first.get("source")
        entries = [json.loads(line) for line in lines[1:]]
        known = {entry["key"]: entry["result"] for entry in entries}
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); remove it to start anew") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not a check's journal, or damaged ({error}); remove it to start anew") from error
    if version != _JOURNAL_VERSION or of != str(source):
        raise ValueError(f"{path}: the journal of a check of {of}, not of {source}; remove it to start anew")
    return known


# In the processes


def inspect(task: FileTask, beat: Beat) -> dict[str, Any]:
    """Looks at one file: ``facts`` about it, ``problems`` (number of the span or None, kind, reason), ``frames`` of
    each span (None where it cannot be read). Raises nothing. All of it can be written as JSON."""
    facts: dict[str, Any] = {}
    problems: list[tuple[int | None, str, str]] = []
    frames: list[int | None] = [None] * len(task.spans)
    try:
        if os.path.isdir(task.path):
            _inspect_folder(task, beat, facts, problems, frames)
        else:
            _inspect_file(task, beat, facts, problems, frames)
    except _Problem as problem:
        problems.append((None, problem.kind, problem.reason))
    except DecodeError as error:
        problems.append((None, "no_video" if "no video stream in it" in error.reason else "unreadable", error.reason))
    # Whatever a decoder makes of a broken file, it is this file that is broken.
    except Exception as error:
        problems.append((None, "unreadable", f"{type(error).__name__}: {error}"))
    return {"facts": facts, "problems": problems, "frames": frames}


class _Problem(Exception):
    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(kind, reason)
        self.kind, self.reason = kind, reason


class _WatchedVideo(VideoFile):
    """A video that notes which of the frames read came out damaged, and shows a sign of life with each packet."""

    def __init__(self, path: str, beat: Beat, **options: Any) -> None:
        self.beat = beat
        self.damaged: set[int] = set()
        self.sizes: Counter[tuple[int, int]] = Counter()
        self.rotation = 0
        super().__init__(path, **options)

    @property
    def first(self) -> int:
        return self._first

    def _decode(self, packet: Any) -> list[Any]:
        self.beat()
        return super()._decode(packet)

    def _convert(self, frame: Any, number: int, pictures: Any) -> None:
        self._note(frame, number)
        height, width = self._upright(frame).shape[:2]
        self.sizes[width, height] += 1
        pictures.put(number, np.zeros((1, 1, 3), np.uint8))  # nobody looks at it

    def _note(self, frame: Any, number: int) -> None:
        if frame.is_corrupt:
            self.damaged.add(number)
        self.rotation = self.rotation or int(frame.rotation)

    def verify_all(self) -> None:
        """Decodes the whole file; frames that do not come, or come out damaged, are then in ``damaged``."""
        index = self.index
        numbers = dict(zip(index.pts[index.frames].tolist(), range(index.num_frames), strict=False))
        seen = set()
        for count, frame in enumerate(self._decode_all()):
            number = count if index.counted else numbers.get(frame.pts)
            if number is None:
                continue
            seen.add(number)
            self._note(frame, number)
            turned = bool(round(frame.rotation / 90) % 2)
            size = (frame.height, frame.width) if turned else (frame.width, frame.height)
            self.sizes[size] += 1
        self.damaged |= set(range(index.num_frames)) - seen

    def header(self) -> dict[str, Any]:
        """What the file states about itself."""
        stream, container = self._stream, self._container
        seconds = None
        if stream.metadata.get("DURATION"):  # Matroska, as FFmpeg writes it: 00:00:04.000000000
            with contextlib.suppress(ValueError):
                hours, minutes, rest = stream.metadata["DURATION"].split(":")
                seconds = int(hours) * 3600 + int(minutes) * 60 + float(rest)
        elif stream.duration is not None and stream.time_base:
            seconds = float(stream.duration * stream.time_base)
        elif container.duration is not None and len(container.streams) == 1:
            seconds = container.duration / 1e6
        return {
            "container": self.index.container,
            "codec": self.index.codec,
            "sound": any(other.type == "audio" for other in container.streams),
            "stated_frames": stream.frames or None,
            "stated_seconds": seconds,
        }


def _inspect_file(
    task: FileTask,
    beat: Beat,
    facts: dict[str, Any],
    problems: list[tuple[int | None, str, str]],
    frames: list[int | None],
) -> None:
    facts["bytes"] = _look_at_outside(task.path)
    if task.hash:
        facts["sha256"] = _sha256([task.path], beat)
    with _WatchedVideo(task.path, beat) as video:
        if video.index.container.endswith("_pipe") or video.index.container == "image2":
            raise _Problem("image", f"is a still picture ({video.index.codec}), not a video; take it out")
        seconds = video.index.seconds()
        shown = float(seconds[-1] + (1 / video.fps if video.fps else 0))
        facts |= video.header()
        facts |= {"frames": video.num_frames, "fps": video.fps, "seconds": None if np.isnan(shown) else shown}
        facts["variable_rate"] = _is_uneven(seconds)
        if task.depth == "full":
            video.verify_all()
        for number, (start, end, _) in enumerate(task.spans):
            beat()
            try:
                part = video
                if not (start is None and end is None):
                    part = _WatchedVideo(task.path, beat, start=start, end=end, index=video.index)
            except DecodeError as error:
                problems.append((number, "segment", error.reason))
                continue
            frames[number] = part.num_frames
            try:
                _inspect_part(part, video, task.depth)
            except DecodeError as error:
                problems.append((number, "damaged", error.reason))
            finally:
                if part is not video:
                    video.sizes += part.sizes
                    video.rotation = video.rotation or part.rotation
                    part.close()
        if video.sizes:
            facts["width"], facts["height"] = video.sizes.most_common(1)[0][0]
        facts["rotation"] = video.rotation % 360
        reason = _cut_short(facts, len(video.index.pts), _is_cut_off(task.path))
        for number, (_, end, _) in enumerate(task.spans if reason else ()):
            if frames[number] is not None and (end is None or end > shown):
                # The last frame there is mostly came out damaged; that says less.
                problems[:] = [problem for problem in problems if problem[0] != number]
                problems.append((number, "incomplete", reason or ""))


def _inspect_part(part: _WatchedVideo, whole: _WatchedVideo, depth: Depth) -> None:
    """Decodes a segment, unless the whole file has been, and raises DecodeError for what is wrong with it."""
    if depth == "full":
        bad, sizes = whole.damaged, whole.sizes
    else:
        part.read(_portions(part.num_frames) if depth == "portions" else [0])
        bad, sizes = part.damaged, part.sizes
    hit = [number for number in sorted(bad) if part.first <= number < part.first + part.num_frames]
    if hit:
        first, last = hit[0] - part.first, hit[-1] - part.first
        which = f"frame {first}" if first == last else f"{len(hit)} frames between {first} and {last}"
        reason = f"{which} of {part.num_frames} come out damaged or not at all; fetch or encode it again"
        raise DecodeError(part.path, reason)
    if len(sizes) > 1:
        listed = " and ".join(f"{width}×{height}" for width, height in sizes)
        raise DecodeError(part.path, f"its frames change size ({listed}); re-encode it to one size")


def _inspect_folder(
    task: FileTask,
    beat: Beat,
    facts: dict[str, Any],
    problems: list[tuple[int | None, str, str]],
    frames: list[int | None],
) -> None:
    facts |= {"container": "folder", "codec": "mjpeg", "sound": False, "rotation": 0, "variable_rate": False}
    fps = next((fps for _, _, fps in task.spans if fps), None)
    with open_frames(task.path, fps=fps) as every:
        count = every.num_frames
        facts |= {"frames": count, "fps": fps, "seconds": count / fps if fps else None}
    if task.hash:
        with os.scandir(task.path) as entries:
            files = sorted(entry.path for entry in entries if entry.is_file())
        facts["bytes"] = sum(map(os.path.getsize, files))
        facts["sha256"] = _sha256(files, beat)
    for number, (start, end, fps) in enumerate(task.spans):
        try:
            part = open_frames(task.path, start=start, end=end, fps=fps)
        except DecodeError as error:
            problems.append((number, "segment", error.reason))
            continue
        with part:
            frames[number] = part.num_frames
            try:
                facts["height"], facts["width"] = _read_pictures(part, task.depth, beat)
            except DecodeError as error:
                problems.append((number, "damaged", f"{os.path.basename(error.path)}: {error.reason}"))


def _read_pictures(part: Frames, depth: Depth, beat: Beat) -> tuple[int, int]:
    """Reads frames of a folder, few at a time; (height, width)."""
    wanted = range(part.num_frames) if depth == "full" else _portions(part.num_frames) if depth == "portions" else [0]
    size: tuple[int, int] | None = None
    for place in range(0, len(wanted), PORTION):
        pictures = part.read(wanted[place : place + PORTION])
        beat()
        size = size or pictures.shape[1:3]
        if pictures.shape[1:3] != size:
            raise DecodeError(part.path, "its frames change size; extract them again at one size")
    assert size is not None
    return size


def _look_at_outside(path: str) -> int:
    """Bytes of a file that may be a video."""
    try:
        state = os.stat(path)
        if not stat.S_ISREG(state.st_mode):  # opening a pipe would wait for a writer
            raise _Problem("unreadable", "is no ordinary file; take it out")
        with open(path, "rb") as file:
            head = file.read(512).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    except FileNotFoundError as error:
        raise _Problem("missing", "no such file; check the path, and the folder a relative path starts from") from error
    except PermissionError as error:
        raise _Problem("permission", "may not be read; give yourself the right to (chmod u+r)") from error
    except OSError as error:
        raise _Problem("unreadable", f"cannot be read ({error.strerror})") from error
    if not state.st_size:
        raise _Problem("empty", "is empty (0 bytes); copy or download it again")
    if head.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<body")):
        raise _Problem("html", "is a web page, not a video: the download gave an error page; download it again")
    return state.st_size


def _sha256(files: Sequence[str], beat: Beat) -> str:
    """Of the bytes of a file, or of those of a folder's files, one after the other with their lengths."""
    digest = hashlib.sha256()
    for path in files:
        if len(files) > 1:
            digest.update(b"%d:" % os.path.getsize(path))
        with open(path, "rb") as file:
            while block := file.read(2**22):
                digest.update(block)
                beat()
    return digest.hexdigest()


def _portions(count: int) -> list[int]:
    """Numbers of the frames at the beginning, the middle and the end."""
    starts = (0, max(0, (count - PORTION) // 2), max(0, count - PORTION))
    return sorted({number for start in starts for number in range(start, min(count, start + PORTION))})


def _is_uneven(seconds: NDArray[np.float64]) -> bool:
    """Whether more than a few intervals between frames differ from the usual one by more than a quarter of it."""
    if len(seconds) < 4 or np.isnan(seconds).any():
        return False
    intervals = np.diff(seconds)
    usual = float(np.median(intervals))
    return bool((np.abs(intervals - usual) > 0.25 * usual + 1e-3).sum() > max(1, 0.05 * len(intervals)))


def _is_cut_off(path: str) -> bool:
    """Whether an AVI is shorter than it says; of such a file FFmpeg adapts the length that the header states."""
    with open(path, "rb") as file:
        head = file.read(12)
    stated = int.from_bytes(head[4:8], "little")
    return head[:4] == b"RIFF" and head[8:] == b"AVI " and 8 + stated > os.path.getsize(path)


def _cut_short(facts: dict[str, Any], packets: int, cut_off: bool) -> str | None:
    """Why a file is taken to end too early: both the frames and the seconds, where stated, are more than there are."""
    stated, seconds, there = facts["stated_frames"], facts["stated_seconds"], facts["seconds"]
    frame = 1 / facts["fps"] if facts["fps"] else 0.0
    few = stated is not None and packets < stated - max(1, 0.02 * stated)
    early = seconds is not None and there is not None and there < seconds - max(2 * frame, 0.02 * seconds)
    early = early or (cut_off and few)
    if not (few or early) or (stated is not None and not few) or (seconds is not None and not early):
        return None
    wanted = " and ".join(
        text for text in (stated and f"{stated} frames", seconds and not cut_off and f"{seconds:.2f} s") if text
    )
    found = _frames(facts["frames"]) + ("" if there is None else f" ({there:.2f} s)")
    return f"its header states {wanted}, but there are only {found}: it was cut off; fetch it again"
