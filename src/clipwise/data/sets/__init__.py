"""Public data sets: from their official annotation files and a folder of videos to a manifest.

One file for each set says what its official files hold and what of that was seen at its origin; ``SETS`` lists them
by name. Nothing is downloaded, copied or decoded.
"""

from __future__ import annotations

import csv
import difflib
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from clipwise.data.sets import (
    diving48,
    egtea,
    epic_kitchens,
    hmdb51,
    jester,
    kinetics,
    moments_in_time,
    ssv1,
    ssv2,
    ucf101,
)
from clipwise.data.sets.common import AmbiguousVideo, Annotations, PublicSet, Row, VideoIndex, locate
from clipwise.files import written_whole

__all__ = ["SETS", "MissingVideos", "Prepared", "PublicSet", "prepare", "public_set"]

_FAMILIES = (
    ssv2,
    kinetics,
    ucf101,
    epic_kitchens,
    ssv1,
    jester,
    hmdb51,
    diving48,
    egtea,
    moments_in_time,
)
SETS: dict[str, PublicSet] = {name: entry for family in _FAMILIES for name, entry in family.SETS.items()}
"""Every public set by name."""

_HEADS = ("label", *sorted({head for public in SETS.values() for head in public.classes} - {"label"}))


@dataclass(frozen=True)
class Prepared:
    """What ``prepare`` wrote.

    splits: how many rows each split has.
    missing: official names of the videos that are not there, in the order of the annotations.
    notes: what else the user should know.
    """

    manifest: Path
    splits: dict[str, int]
    missing: tuple[str, ...]
    notes: tuple[str, ...]


class MissingVideos(ValueError):
    """Videos of the official lists are not there; ``names`` are all of them."""

    def __init__(self, message: str, names: tuple[str, ...]) -> None:
        super().__init__(message)
        self.names = names


def public_set(name: str) -> PublicSet:
    """The set called ``name``. Raises ValueError, with near names, if there is none."""
    if name not in SETS:
        plain = {key.replace("_", ""): key for key in SETS}
        asked = name.lower().replace("-", "").replace("_", "")
        # A part of a name (epic, kinetics) is less like the whole than difflib asks for.
        close = [key for key in plain if asked and asked in key] or difflib.get_close_matches(asked, plain, n=3)
        hint = f"did you mean {' or '.join(plain[key] for key in close)}?" if close else f"there is: {', '.join(SETS)}"
        raise ValueError(f"no public data set {name!r}; {hint}")
    return SETS[name]


def prepare(
    name: str,
    root: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    annotations: str | os.PathLike[str] | None = None,
    split: int | None = None,
    label: str | None = None,
    fps: float | None = None,
    allow_missing: bool = False,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Prepared:
    """Writes ``manifest.csv`` and the class list of a public set into the folder ``output``.

    Args:
        name: one of ``SETS``.
        root: the folder below which the videos or frame folders lie, in whatever layout.
        output: the folder to write to; made if it is not there. Videos in it are written relative to it, others
            absolute.
        annotations: the folder of the official annotation files; the root if None.
        split: 1, 2 or 3, for sets with several official divisions; 1 if None.
        label: ``verb``, ``noun`` or ``both``, for sets that have them.
        fps: of frame folders, where they were not extracted at the official rate.
        allow_missing: write the manifest without the videos that are not there.
        overwrite: replace a manifest that is there.
        progress: called with how many videos were found and how many the set has.

    ``missing.txt`` in ``output`` lists the videos that are not there, whether the manifest is written or not.

    Raises:
        MissingVideos: if videos are missing and ``allow_missing`` is not set, or all are.
        ValueError: for anything else that cannot be used as given: official files missing or damaged, a video that
            several files could be, options that the set does not have, a manifest that is there.
    """
    public = public_set(name)
    options = _options(name, public, split, label)
    root, output = Path(os.path.abspath(root)), Path(os.path.abspath(output))
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder; --root is the folder of the videos ({public.layout})")
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output}: is a file; --output is the folder to write manifest.csv to")
    target = output / "manifest.csv"
    present = [name for name in (target.name, *map(_class_file, _HEADS)) if (output / name).exists()]
    if present and not overwrite:
        raise ValueError(f"{output}: has {' and '.join(present)} already; choose another folder, or --overwrite")

    files = locate(public, root if annotations is None else Path(os.path.abspath(annotations)), split or 1)
    read = public.read(files, **options)
    if not read.rows:
        raise ValueError(f"{', '.join(str(path) for paths in files.values() for path in paths)}: no rows for {name}")
    index = VideoIndex(root, progress and (lambda found: progress(found, len(read.rows))))
    found, missing, notes = _match(public, index, read)
    notes = [*_counts(public, read, split or 1), *read.notes, *notes, *_untrained(read, found)]
    if missing:
        _write_missing(output / "missing.txt", missing)
        if not allow_missing or not found:
            raise MissingVideos(_missing_message(public, index, output, read, missing, bool(found)), missing)
    elif (output / "missing.txt").exists():
        (output / "missing.txt").unlink()
    _write(output, index, found, read.classes, fps or public.fps)
    splits = Counter(row.split for row, _ in found)
    return Prepared(target, {split: splits[split] for split in public.splits if splits[split]}, missing, tuple(notes))


def _options(name: str, public: PublicSet, split: int | None, label: str | None) -> dict[str, int | str]:
    """The reader's options. Raises ValueError for one that the set does not have, or needs."""
    options: dict[str, int | str] = {}
    if split is not None and not 1 <= split <= public.numbered_splits:
        there = f"splits 1 to {public.numbered_splits}" if public.numbered_splits else "one official division only"
        raise ValueError(f"--split {split}: {name} has {there}")
    if public.numbered_splits:
        options["split"] = split or 1
    if label is not None and label not in public.heads:
        there = f"--label {_or(public.heads)}" if public.heads else "one kind of label only"
        raise ValueError(f"--label {label}: {name} has {there}")
    if public.heads:
        if label is None:
            raise ValueError(f"{name} has several kinds of labels; choose --label {_or(public.heads)}")
        options["label"] = label
    return options


def _match(
    public: PublicSet, index: VideoIndex, read: Annotations
) -> tuple[list[tuple[Row, str]], tuple[str, ...], list[str]]:
    """Rows with their videos' paths, the names of videos that are not there, and notes."""
    from clipwise.cli.app import counted

    found: list[tuple[Row, str]] = []
    absent: list[Row] = []
    taken: dict[tuple[str, float | None, float | None], Row] = {}
    twice = []
    for row in read.rows:
        try:
            path = index.find(row.names, row.folders)
        except AmbiguousVideo as several:
            raise ValueError(
                f"{index.root}: several files could be {row.names[0]!r} ({row.split}, {row.labels[0]}): "
                f"{', '.join(several.args[:3])}; give a --root that holds one of them"
            ) from None
        if path is None:
            absent.append(row)
        elif (key := (path, row.start, row.end)) in taken:
            twice.append(f"{row.names[0]} ({row.labels[0]}, after {taken[key].labels[0]})")
        else:
            taken[key] = row
            found.append((row, path))
    notes = []
    if twice:
        notes.append(
            f"rows left out because an earlier row has their video: {len(twice)} ({', '.join(twice[:5])}"
            + (" …)" if len(twice) > 5 else ")")
        )
    for split in sorted(public.optional_splits & {row.split for row in absent} - {row.split for row, _ in found}):
        count = sum(row.split == split for row in absent)
        absent = [row for row in absent if row.split != split]
        notes.append(f"none of the {counted(count, 'video')} of split {split} is there: it is left out")
    return found, tuple(dict.fromkeys(row.names[0] for row in absent)), notes


def _counts(public: PublicSet, read: Annotations, split: int) -> list[str]:
    """A note for each class list, and each split that the lists have, that is not as long as the official one."""
    from clipwise.cli.app import counted

    notes = []
    rows = Counter(row.split for row in read.rows)
    for name, official_rows in public.rows.items():
        if rows[name] and rows[name] != official_rows[split - 1]:
            notes.append(
                f"{counted(rows[name], 'video')} of split {name} in the annotation files, but {public.title} has "
                f"{official_rows[split - 1]}"
            )
    for head, names in read.classes.items():
        official = public.classes.get(head)
        if official is not None and len(names) != official:
            notes.append(f"{len(names)} classes in the annotation files, but {public.title} has {official}")
    return notes


def _untrained(read: Annotations, found: Sequence[tuple[Row, str]]) -> list[str]:
    """A note for each head of whose classes some have no video in train; none where there is no video in train."""
    notes = []
    for number, (head, names) in enumerate(read.classes.items()):
        trained = {row.labels[number] for row, _ in found if row.split == "train"}
        without = [name for name in names if name not in trained]
        if trained and without:
            which = "" if head == "label" else f"{head}: "
            verb = "has" if len(without) == 1 else "have"
            examples = f", such as {', '.join(without[:3])}" if len(without) > 3 else f": {', '.join(without)}"
            notes.append(f"{which}{len(without)} of {len(names)} classes {verb} no training videos{examples}")
    return notes


def _missing_message(
    public: PublicSet, index: VideoIndex, output: Path, read: Annotations, missing: Sequence[str], some: bool
) -> str:
    from clipwise.cli.app import counted

    called = {row.names[0]: row.names for row in read.rows}
    why = {name: index.why_not(called[name]) for name in missing[:5]}
    shown = "".join(f"\n  {name}" + (f": {reason}" if reason else "") for name, reason in why.items())
    more = f"\n  and {len(missing) - 5} more" if len(missing) > 5 else ""
    if some:
        remedy = "--allow-missing writes the manifest without them"
    else:
        below = f"{counted(index.count, 'video')} {'lies' if index.count == 1 else 'lie'} below it"
        there = f"{below}, such as {index.first}" if index.count else "no video lies below it"
        remedy = f"expected below it: {public.layout}\n{there}"
    return (
        f"{index.root}: {len(missing)} of {counted(len(called), 'video')} of {public.title} "
        f"{'is' if len(missing) == 1 else 'are'} missing (all names: "
        f"{output / 'missing.txt'}):{shown}{more}\n{remedy}"
    )


def _write_missing(path: Path, names: Sequence[str]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as partial:
            partial.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{path}: cannot be written ({error.strerror}); choose a folder you may write to") from error


def _write(
    output: Path,
    index: VideoIndex,
    found: Sequence[tuple[Row, str]],
    classes: Mapping[str, tuple[str, ...]],
    fps: float | None,
) -> None:
    """The manifest and its class lists, all of them or none."""
    within = index.root.relative_to(output) if index.root.is_relative_to(output) else index.root
    segments = any(row.start is not None for row, _ in found)
    frames = fps is not None and any(index.is_frame_folder(path) for _, path in found)
    persons = any(row.person for row, _ in found)
    header = ["path", *("label" if head == "label" else f"label:{head}" for head in classes)]
    header += ["start", "end"] * segments + ["fps"] * frames + ["split"] + ["person"] * persons
    try:
        output.mkdir(parents=True, exist_ok=True)
        # All is written before any of it takes its place; the manifest, which is what is looked for, does so last.
        with ExitStack() as stack:
            table = stack.enter_context(written_whole(output / "manifest.csv"))
            for head, names in classes.items():
                listing = stack.enter_context(written_whole(output / _class_file(head)))
                listing.write_text("".join(f"{name}\n" for name in names), encoding="utf-8", newline="")
            with table.open("w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(header)
                for row, path in found:
                    cells: list[str | float] = [(within / path).as_posix(), *row.labels]
                    cells += [row.start or 0, "" if row.end is None else row.end] * segments
                    cells += [(fps or "") if index.is_frame_folder(path) else ""] * frames
                    writer.writerow([*cells, row.split, *[row.person] * persons])
        for name in {_class_file(head) for head in _HEADS} - {_class_file(head) for head in classes}:
            (output / name).unlink(missing_ok=True)
    except OSError as error:
        raise ValueError(f"{output}: cannot be written ({error.strerror}); choose a folder you may write to") from error


def _or(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}" if len(names) > 1 else names[0]


def _class_file(head: str) -> str:
    return "classes.txt" if head == "label" else f"classes.{head}.txt"
