"""What the readers of public data sets share: what they yield, how official files and videos are found.

A reader turns official annotation files into ``Annotations``: rows that name their video by what its file is called
without folder and suffix. ``VideoIndex`` lists a folder of videos once and answers where each of them lies, whatever
the layout: flat, in class folders (spaces or underscores), in ``train/`` and ``val/``, as files or as frame folders.
"""

from __future__ import annotations

import csv
import functools
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from clipwise.data.video_names import is_video_file, why_no_frames

__all__ = [
    "AmbiguousVideo",
    "Annotations",
    "PublicSet",
    "Row",
    "VideoIndex",
    "check_label",
    "class_list",
    "id_and_label",
    "locate",
    "ordered_classes",
    "read_json",
    "read_lines",
    "read_table",
]

Files = Mapping[str, Sequence[Path]]
"""Where a set's official files lie, by the keys of ``PublicSet.files``."""

# Folders in which the sets' archives, or the habits of their users, put the annotation files.
_SUBFOLDERS = (
    "",
    "annotations",
    "annotation",
    "labels",
    "splits",
    "ucfTrainTestlist",
    "testTrainMulti_7030_splits",
    "test_train_splits/testTrainMulti_7030_splits",
    "action_annotation",
    "epic-kitchens-55-annotations",
    "train",
    "validate",
    "val",
    "test",
)


class Row(NamedTuple):
    """One line of the manifest to be.

    names: what the video's file or frame folder may be called, without suffix; the first is what is reported missing.
    labels: a class name for each of the heads.
    folders: names of folders that tell this video from others of the same name (class, split), most telling first.
    start, end: seconds; None for the whole video.
    person: who is seen or wears the camera, where the set says so.
    """

    names: tuple[str, ...]
    labels: tuple[str, ...]
    split: str
    folders: tuple[str, ...] = ()
    start: float | None = None
    end: float | None = None
    person: str = ""


@dataclass(frozen=True)
class Annotations:
    """What a reader makes of the official files.

    classes: class names in official order, by head; the one head of most sets is called ``label``.
    notes: what the user should know, such as rows that were left out.
    """

    rows: Sequence[Row]
    classes: Mapping[str, tuple[str, ...]]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class PublicSet:
    """A public data set and how to read its official annotation files.

    title: as its authors call it.
    page: where its files are had, by the project's name and site.
    files: official file names, alternatives in order of preference, by key; ``{split}`` is the number of the split,
        ``*`` any text.
    read: the reader; called with the files found and the options (``split`` from 1, ``label``) that the set has.
    classes: how many classes there officially are, by head.
    rows: how many videos the official lists have, by split, in each of the official divisions; empty where that is not
        known for sure.
    layout: where the videos lie below ``--root``, for messages and docs.
    splits: the names of the splits that the manifest has.
    optional: keys of ``files`` that may be missing.
    optional_splits: splits that are left out where not one of their videos is there.
    numbered_splits: how many official train and test divisions there are; 0 if the set has just one.
    heads: what ``--label`` chooses from; empty if the set has one kind of label.
    fps: of frame folders extracted as officially said, None where nothing is said.
    group_by: what tells clips of one recording, as ``data split --group-by`` takes it; empty where nothing does.
    unverified: what of the format has not been seen at its origin; empty if all has.
    """

    title: str
    page: str
    files: Mapping[str, tuple[str, ...]]
    read: Callable[..., Annotations]
    classes: Mapping[str, int]
    layout: str
    splits: tuple[str, ...]
    optional: frozenset[str] = field(default_factory=frozenset)
    optional_splits: frozenset[str] = field(default_factory=frozenset)
    numbered_splits: int = 0
    heads: tuple[str, ...] = ()
    fps: float | None = None
    group_by: str = ""
    rows: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    unverified: str = ""


def locate(public: PublicSet, folder: Path, split: int) -> dict[str, list[Path]]:
    """The official files in ``folder`` or in one of the folders that archives unpack to.

    Raises ValueError that lists all that are missing and says where they are had.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; --annotations is the folder with the official annotation files")
    found: dict[str, list[Path]] = {}
    missing = []
    for key, alternatives in public.files.items():
        names = [name.format(split=split) for name in alternatives]
        found[key] = next(filter(None, (_named(folder, name) for name in names)), [])
        if not found[key] and key not in public.optional:
            missing.append(" or ".join(names))
    if missing:
        listed = "".join(f"\n  {name}" for name in missing)
        raise ValueError(
            f"{folder}: official annotation files of {public.title} are missing:{listed}\n"
            f"They come from {public.page}; give their folder by --annotations"
        )
    return found


def _named(folder: Path, name: str) -> list[Path]:
    for inside in _SUBFOLDERS:
        if "*" in name:
            found = sorted(path for path in (folder / inside).glob(name) if not path.name.startswith("."))
        else:
            found = [folder / inside / name] if (folder / inside / name).is_file() else []
        if found:
            return found
    return []


def read_text(path: Path) -> str:
    """A text file, with or without a byte-order mark. Raises ValueError if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); download it anew") from error
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Every line that is not empty, stripped, with its place for messages."""
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if line.strip():
            yield f"{path}, line {number}", line.strip()


def read_table(path: Path, columns: Sequence[str] = ()) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of a CSV file with a header, with their places. Raises ValueError if one of ``columns`` is missing."""
    # csv reads its lines from an iterator that keeps their ends: a quoted field may hold one.
    reader = csv.DictReader(read_text(path).splitlines(keepends=True), strict=True)
    try:
        there = reader.fieldnames or ()
        missing = [column for column in columns if column not in there]
        if missing:
            raise ValueError(f"{path}: no column {', '.join(missing)}; there is: {', '.join(there)}")
        for cells in reader:
            where = f"{path}, line {reader.line_num}"
            if None in cells or None in cells.values():
                raise ValueError(f"{where}: not as many fields as the {len(there)} columns; download the file anew")
            yield where, cells
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: not a CSV file ({error}); download it anew") from error


def read_json(path: Path, kind: type) -> Any:
    """The content of a JSON file, whose outermost value must be a ``kind``: list or dict."""
    try:
        value = json.loads(read_text(path))
    except ValueError as error:
        raise ValueError(f"{path}: not a JSON file ({error}); download it anew") from error
    if not isinstance(value, kind):
        raise ValueError(f"{path}: expected a JSON {kind.__name__}, got {type(value).__name__}; is it the right file?")
    return value


def ordered_classes(path: Path, indices: Mapping[str, int], first: int = 0) -> tuple[str, ...]:
    """The names in the order of their indices. Raises ValueError unless these are ``first``, ``first`` + 1, …"""
    names = sorted(indices, key=indices.__getitem__)
    if [indices[name] for name in names] != list(range(first, first + len(names))) or not names:
        raise ValueError(f"{path}: class indices must be {first}, {first + 1}, … without gaps; download the file anew")
    return tuple(names)


def check_label(label: str, classes: Mapping[str, Any] | frozenset[str], where: str, listed: Path | str) -> str:
    """``label``, if it is one of ``classes``. Raises ValueError that names the line."""
    if label not in classes:
        raise ValueError(
            f"{where}: {label!r} is not one of the {len(classes)} classes of {listed}; is it the right file?"
        )
    return label


def id_and_label(path: Path, split: str, classes: Mapping[str, Any] | frozenset[str], listed: str) -> list[Row]:
    """The rows of a list such as ``34870;Pulling two fingers in``. Raises ValueError for a line of another form."""
    rows = []
    for where, line in read_lines(path):
        video, separator, label = line.partition(";")
        if not separator:
            raise ValueError(f"{where}: expected `34870;Pulling two fingers in`, got {line[:80]!r}")
        rows.append(Row((video,), (check_label(label, classes, where, listed),), split, folders=(split,)))
    return rows


def class_list(name: str) -> tuple[str, ...]:
    """A class list that comes with the package: ``classes/<name>.txt``."""
    path = Path(__file__).parent / "classes" / f"{name}.txt"
    return tuple(line for line in path.read_text(encoding="utf-8").splitlines() if line)


class AmbiguousVideo(Exception):
    """Several files could be the one video; ``args`` are their paths."""


class VideoIndex:
    """Where every video and frame folder below ``root`` lies; listed once, no file is opened.

    A folder of frames stands for a video, see ``why_no_frames``. Hidden files are left out. Raises ValueError if a
    folder cannot be listed.
    """

    def __init__(self, root: Path, progress: Callable[[int], None] | None = None) -> None:
        self.root = root
        self._paths: dict[str, list[str]] = {}
        self._frame_folders: set[str] = set()
        self._other_folders: dict[str, str] = {}  # by name: one that is none of frames, and why
        self.count = 0
        self._progress = progress
        self._list(str(root), "")

    def find(self, names: Sequence[str], folders: Sequence[str] = ()) -> str | None:
        """The path of the first of ``names`` that is there, relative to the root; None if none is.

        ``folders`` decide between several files of one name, and a file is taken before a frame folder; links to one
        file are one. Raises AmbiguousVideo if that does not decide.
        """
        for name in names:
            paths = self._paths.get(name)
            if paths is None:
                continue
            if len(paths) > 1:
                paths = _best(paths, lambda path: _agreement(path, folders))
            if len(paths) > 1:
                paths = _best(paths, lambda path: path not in self._frame_folders)
            if len(paths) > 1 and len({self._file(path) for path in paths}) > 1:
                raise AmbiguousVideo(*paths)
            return paths[0]
        return None

    def _file(self, path: str) -> tuple[int, int]:
        """What is the same for all links to one file."""
        status = os.stat(f"{self.root}/{path}")
        return status.st_dev, status.st_ino

    def is_frame_folder(self, path: str) -> bool:
        """Whether a path that ``find`` gave is a folder of frames."""
        return path in self._frame_folders

    def why_not(self, names: Sequence[str]) -> str | None:
        """Of names that are not found: where a folder called so lies, and why it is none of frames; None without."""
        return next((self._other_folders[name] for name in names if name in self._other_folders), None)

    @property
    def first(self) -> str | None:
        """One of the paths, relative to the root: an example."""
        return next((path for paths in self._paths.values() for path in paths), None)

    def _list(self, folder: str, relative: str) -> None:
        try:
            with os.scandir(folder) as entries:
                inside = [entry for entry in entries if not entry.name.startswith(".")]
        except OSError as error:
            raise ValueError(f"{folder}: the folder cannot be read ({error.strerror})") from error
        if relative:
            name, why = os.path.basename(relative), why_no_frames(inside)
            if why is None:
                self._frame_folders.add(relative)
                self._add(name, relative)
                return
            self._other_folders.setdefault(name, f"the folder {relative}/ is not taken for its frames, since {why}")
        for entry in inside:
            path = f"{relative}/{entry.name}" if relative else entry.name
            if entry.is_dir():
                if not (entry.is_symlink() and _leads_back(entry.path)):
                    self._list(entry.path, path)
            else:
                # A link to nothing is no video.
                if is_video_file(entry.name) and (not entry.is_symlink() or os.path.exists(entry.path)):
                    self._add(os.path.splitext(entry.name)[0], path)

    def _add(self, stem: str, path: str) -> None:
        self._paths.setdefault(stem, []).append(path)
        self.count += 1
        if self._progress and self.count % 1000 == 0:
            self._progress(self.count)


def _leads_back(link: str) -> bool:
    """Whether a link to a folder leads to a folder that holds the link: following it would never end."""
    target = os.path.realpath(link)
    return (os.path.realpath(os.path.dirname(link)) + os.sep).startswith(target.rstrip(os.sep) + os.sep)


def _best(paths: list[str], score: Callable[[str], Any]) -> list[str]:
    scores = [score(path) for path in paths]
    best = max(scores)
    return [path for path, value in zip(paths, scores, strict=True) if value == best]


def _agreement(path: str, folders: Sequence[str]) -> tuple[bool, ...]:
    """Which of ``folders`` the path leads through, whether written with spaces, underscores or signs left out."""
    parts = {_plain(part) for part in path.split("/")[:-1]}
    return tuple(any(_plain(name) in parts for name in folder.split("|")) for folder in folders)


@functools.lru_cache(maxsize=10_000)
def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).lower()
