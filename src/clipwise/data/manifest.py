"""Which videos there are, what each shows, and to which split it belongs.

A manifest is read from any of three places:

CSV          columns ``path`` (relative to the CSV, or absolute) and ``label`` (or ``class``: the class name);
             optional ``start`` and ``end`` (seconds), ``fps`` (of a frame folder), ``split``; others are
             ignored.
folder       ``<folder>/<class>/<video>``, or ``<folder>/<train|val|test>/<class>/<video>``; a video is a
             video file or a folder of nothing but JPEG frames. A split's folder may also be called
             ``training``, ``valid``, ``validation`` or ``testing``.
``*.pack``   the single file of decoded frames that ``clipwise data pack`` writes.
A folder with a ``manifest.csv`` in it is read from that.

The class list is ``classes=`` if given, else the lines of a ``classes.txt`` beside the CSV or in the folder,
else the names that occur, sorted. It comes from all rows whatever split is asked for: splits agree on it.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import io
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clipwise.files import written_whole

if TYPE_CHECKING:
    from clipwise.data.decode import Frames
    from clipwise.data.pack import PackedFile

# fmt: off
VIDEO_SUFFIXES = frozenset({
    ".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv",
    ".ts", ".vob", ".webm", ".wmv",
})
# fmt: on
_FRAME_SUFFIXES = frozenset({".jpg", ".jpeg"})
_SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
_LAYOUT = "<folder>/<class>/<video> or <folder>/<train|val|test>/<class>/<video>"


@dataclass(frozen=True)
class Item:
    """One video, or one segment of it.

    path: absolute; inside a pack, the pack's own path and then the name.
    label: index into the manifest's classes.
    start, end: the segment in seconds, None where it begins or ends with the video. A pack is cut already.
    name: the path as the manifest writes it; names the video wherever the data lies.
    """

    path: str
    label: int | None
    start: float | None
    end: float | None
    fps: float | None
    split: str | None
    name: str


class _Row(NamedTuple):
    name: str
    label: str
    where: str  # for messages
    split: str = ""
    start: float = math.nan
    end: float = math.nan
    fps: float = math.nan


def class_list_hash(classes: Sequence[str]) -> str:
    """SHA-256 of the class names, joined by newlines: equal exactly if names and order are."""
    return hashlib.sha256("\n".join(classes).encode()).hexdigest()


class Manifest:
    """The list of videos; ``manifest[i]`` is an ``Item``, ``manifest.open(i)`` its frames.

    classes: class names; a label is an index into them.
    source, root: what was read, and the folder that relative paths start from.
    ignored: files and folders of a folder layout that are neither videos nor frame folders.
    """

    def __init__(
        self,
        source: Path,
        root: Path,
        classes: tuple[str, ...],
        columns: dict[str, NDArray[Any]],
        ignored: tuple[str, ...] = (),
        pack: PackedFile | None = None,
    ) -> None:
        self.source = source
        self.root = root
        self.classes = classes
        self.ignored = ignored
        # Arrays, not a list of Items: reading an Item changes its reference count, and with it every forked
        # worker would soon own a copy of the list.
        self._columns = columns
        self._pack = pack

    @classmethod
    def read(
        cls, source: str | os.PathLike[str], *, split: str | None = None, classes: Sequence[str] | None = None
    ) -> Manifest:
        """Reads a CSV file, a folder of class folders, or a pack.

        split: keep only this split. classes: fixes the class list and its order.
        Raises ValueError, which names the file and line, for anything that cannot be used as written.
        """
        path = Path(os.path.abspath(source))
        ignored: tuple[str, ...] = ()
        pack: PackedFile | None = None
        listed: tuple[str, ...] | None = None
        if path.is_dir() and (path / "manifest.csv").is_file():
            path = path / "manifest.csv"
        if path.is_dir():
            root = path
            rows, ignored = _read_folder(path)
        elif not path.exists():
            raise ValueError(f"{path}: no such file or folder; give a CSV file, a folder {_LAYOUT}, or a *.pack file")
        elif path.suffix == ".pack":
            from clipwise.data.pack import PackedFile

            root = path.parent
            pack, metadata = PackedFile.open_with_metadata(path)
            rows = _packed_rows(path, metadata)
            listed = tuple(metadata["classes"])
        elif path.suffix.lower() == ".csv":
            root = path.parent
            rows = _read_csv(path)
        else:
            raise ValueError(f"{path}: not a manifest; give a CSV file (.csv), a folder {_LAYOUT}, or a *.pack file")

        if pack is None and (root / "classes.txt").is_file():
            listed = read_classes(root / "classes.txt")
        if classes is not None:
            listed = _distinct(tuple(classes), "classes")
        class_list = tuple(sorted({row.label for row in rows})) if listed is None else listed
        if pack is None:
            _refuse_duplicates(rows)
        columns: dict[str, NDArray[Any]] = {
            "row": np.arange(len(rows)),
            "name": np.array([os.fsencode(row.name) for row in rows]),
            "label": _indices(rows, class_list),
            "split": np.array([row.split.encode() for row in rows]),
            **{key: np.array([getattr(row, key) for row in rows], np.float64) for key in ("start", "end", "fps")},
        }
        manifest = cls(path, root, class_list, columns, ignored, pack)
        return manifest if split is None else manifest.select(split)

    def __len__(self) -> int:
        return len(self._columns["row"])

    def __getitem__(self, index: int) -> Item:
        """Raises IndexError outside -len .. len-1."""
        row = {key: column[index] for key, column in self._columns.items()}
        name = os.fsdecode(row["name"])
        return Item(
            path=os.path.join(self.source if self._pack else self.root, name),
            label=int(row["label"]),
            start=_optional(row["start"]),
            end=_optional(row["end"]),
            fps=_optional(row["fps"]),
            split=row["split"].decode() or None,
            name=name,
        )

    def __iter__(self) -> Iterator[Item]:
        return (self[index] for index in range(len(self)))

    @property
    def labels(self) -> NDArray[np.int64]:
        """(len,) indices into ``classes``."""
        return self._columns["label"]

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits that occur, sorted."""
        return tuple(name.decode() for name in np.unique(self._columns["split"]) if name)

    @property
    def classes_hash(self) -> str:
        """``class_list_hash`` of ``classes``."""
        return class_list_hash(self.classes)

    def select(self, split: str) -> Manifest:
        """The rows of one split, with the same class list. Raises ValueError for an unknown split."""
        chosen = self._columns["split"] == split.encode()
        if not split or not chosen.any():
            there = ", ".join(self.splits)
            raise ValueError(
                f"{self.source}: no split {split!r}; "
                + (
                    f"there is: {there}"
                    if there
                    else "no row has a split (a CSV column split, or folders train/ and val/)"
                )
            )
        columns = {key: column[chosen] for key, column in self._columns.items()}
        return Manifest(self.source, self.root, self.classes, columns, self.ignored, self._pack)

    def with_splits(self, splits: Sequence[str]) -> Manifest:
        """The same rows, each in the split that stands at its place in ``splits``."""
        columns = {**self._columns, "split": np.array([split.encode() for split in splits])}
        return Manifest(self.source, self.root, self.classes, columns, self.ignored, self._pack)

    def with_classes(self, classes: Sequence[str]) -> Manifest:
        """The same rows, labelled by another class list that holds this one's names, in whatever order."""
        place = {name: index for index, name in enumerate(classes)}
        indices = np.array([place[name] for name in self.classes], np.int64)
        columns = {**self._columns, "label": indices[self.labels]}
        return Manifest(self.source, self.root, tuple(classes), columns, self.ignored, self._pack)

    def open(self, index: int) -> Frames:
        """The frames of item ``index``, cut to its segment. Raises DecodeError for an unreadable video."""
        item = self[index]
        if self._pack is not None:
            return self._pack.frames(int(self._columns["row"][index]), item.path, item.fps)
        from clipwise.data.decode import open_frames

        return open_frames(item.path, start=item.start, end=item.end, fps=item.fps)

    def require_classes(self, minimum: int = 2) -> None:
        """Raises ValueError if fewer than ``minimum`` classes occur: nothing can be learnt from them."""
        present = np.unique(self.labels)
        if len(present) < minimum:
            names = ", ".join(repr(self.classes[label]) for label in present)
            raise ValueError(
                f"{self.source}: training needs videos of at least {minimum} classes, "
                f"got {len(present)} ({names}); label more videos, or give a folder {_LAYOUT}"
            )

    def check_files(self) -> None:
        """Raises one ValueError that lists the files that are missing. Nothing is decoded."""
        if self._pack is not None:
            return
        missing = [item.path for item in self if not os.path.exists(item.path)]
        if missing:
            shown = "".join(f"\n  {path}" for path in missing[:5])
            more = f"\n  and {len(missing) - 5} more" if len(missing) > 5 else ""
            raise ValueError(
                f"{self.source}: {len(missing)} of {len(self)} videos are missing; relative paths start from "
                f"{self.root}:{shown}{more}"
            )

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes a CSV that ``read`` gives back, with paths relative to it where possible.

        The class list goes to ``classes.txt`` beside it if the rows alone do not give it. Raises ValueError
        for a pack, for a folder whose ``classes.txt`` is another list, and where nothing can be written.
        """
        target = Path(os.path.abspath(path))
        if self._pack is not None:
            raise ValueError(
                f"{self.source}: its frames lie in the pack, so a CSV cannot list them; write its source's"
            )
        optional = [key for key in ("start", "end", "fps", "split") if any(getattr(i, key) is not None for i in self)]
        beside = target.parent / "classes.txt"
        if beside.is_file():
            if read_classes(beside) != self.classes:
                raise ValueError(f"{beside}: lists other classes than {self.source}; write to another folder")
        elif tuple(sorted({self.classes[label] for label in self.labels})) != self.classes:
            _write_text(beside, "".join(f"{name}\n" for name in self.classes))

        lines = io.StringIO()
        writer = csv.writer(lines, lineterminator="\n")
        writer.writerow(["path", "label", *optional])
        for item, label in zip(self, self.labels, strict=True):
            cells = [getattr(item, key) for key in optional]
            writer.writerow([_relative(item, target.parent), self.classes[label], *cells])
        _write_text(target, lines.getvalue())


def _optional(value: np.float64) -> float | None:
    return None if math.isnan(value) else float(value)


def _read_csv(path: Path) -> list[_Row]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            lines = [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); save it as CSV UTF-8") from error
    except csv.Error as error:
        raise ValueError(f'{path}, line {reader.line_num}: not a CSV file ({error}); quote fields with ""') from error
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
    if not lines:
        raise ValueError(f"{path}: the file is empty; its first line names the columns: path,label")
    header = [cell.strip().lower() for cell in lines[0][1]]
    label = "label" if "label" in header else "class"
    missing = [name for name, there in (("path", "path" in header), ("label", label in header)) if not there]
    if missing:
        raise ValueError(f"{path}: no column {' and no column '.join(missing)}; there is: {', '.join(header)}")
    for name in ("path", label, "start", "end", "fps", "split"):
        if header.count(name) > 1:
            raise ValueError(f"{path}: column {name} occurs {header.count(name)} times; keep one")
    if len(lines) == 1:
        raise ValueError(f"{path}: no rows below the header {','.join(header)}; add one line per video")

    rows = []
    for line, cells in lines[1:]:
        where = f"{path}, line {line}"
        if len(cells) != len(header):
            raise ValueError(
                f"{where}: {len(cells)} fields, but {len(header)} columns; quote a field that holds a comma"
            )
        values = dict(zip(header, cells, strict=True))
        name, class_name = values["path"], values[label].strip()
        if not name.strip() or not class_name:
            raise ValueError(
                f"{where}: {'path' if class_name else label} is empty; every video needs a path and a label"
            )
        start = _number(values.get("start", ""), "start", where)
        end = _number(values.get("end", ""), "end", where)
        fps = _number(values.get("fps", ""), "fps", where)
        if (0.0 if math.isnan(start) else start) >= end:
            raise ValueError(f"{where}: start must be before end, got start={values.get('start') or 0} end={end}")
        if fps == 0:
            raise ValueError(f"{where}: fps must be above 0, got {values['fps']!r}")
        rows.append(_Row(name, class_name, where, values.get("split", "").strip(), start, end, fps))
    return rows


def _number(text: str, column: str, where: str) -> float:
    """NaN where the field is empty."""
    if not text.strip():
        return math.nan
    try:
        value = float(text)
    except ValueError:
        value = math.inf
    if not 0 <= value < math.inf:
        unit = "frames per second" if column == "fps" else "seconds"
        raise ValueError(f"{where}: {column} must be a number of {unit}, 0 or more, got {text!r}; or leave it empty")
    return value


def _read_folder(root: Path) -> tuple[list[_Row], tuple[str, ...]]:
    rows: list[_Row] = []
    ignored: list[str] = []
    top = _entries(root)
    splits = [entry for entry in top if entry.name.lower() in _SPLIT_FOLDERS and _holds_classes(entry)]
    ignored += [_written(entry, root) for entry in top if splits and entry not in splits]
    for base in splits or (None,):
        split = _SPLIT_FOLDERS[base.name.lower()] if base else ""
        for folder in _entries(base.path) if base else top:
            inside = _entries(folder.path) if folder.is_dir() else []
            if not inside:
                ignored.append(_written(folder, root))
            for entry in inside:
                name = _written(entry, root)
                if _is_video(entry):
                    rows.append(_Row(name.rstrip("/"), folder.name, entry.path, split))
                else:
                    ignored.append(name)
    ignored = [name for name in ignored if name != "classes.txt"]
    if not rows:
        found = f"found only {', '.join(ignored[:5])}" if ignored else "the folder is empty"
        more = f" and {len(ignored) - 5} more" if len(ignored) > 5 else ""
        raise ValueError(f"{root}: no videos in class folders ({found}{more}); expected {_LAYOUT}")
    return rows, tuple(ignored)


def find_videos(folder: str | os.PathLike[str]) -> list[Path]:
    """All videos and frame folders below a folder, sorted; the folder itself if it holds JPEG frames alone."""
    inside = _entries(Path(folder))
    if _all_frames(inside):
        return [Path(folder)]
    found: list[Path] = []
    for entry in inside:
        if _is_video(entry):
            found.append(Path(entry.path))
        elif entry.is_dir():
            found += find_videos(entry.path)
    return found


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    """What lies in a folder, sorted, without hidden files."""
    try:
        with os.scandir(folder) as entries:
            return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise ValueError(f"{folder}: the folder cannot be read ({error.strerror})") from error


def _is_video(entry: os.DirEntry[str]) -> bool:
    """A video file, or a folder of nothing but JPEG files."""
    if not entry.is_dir():
        return _suffix(entry) in VIDEO_SUFFIXES
    return _all_frames(_entries(entry.path))


def _all_frames(entries: Sequence[os.DirEntry[str]]) -> bool:
    return bool(entries) and all(_suffix(entry) in _FRAME_SUFFIXES and not entry.is_dir() for entry in entries)


def _holds_classes(entry: os.DirEntry[str]) -> bool:
    """Whether videos lie one level below this folder's folders and none directly in it."""
    inside = _entries(entry.path) if entry.is_dir() else []
    folders = [folder for folder in inside if folder.is_dir()]
    return not any(map(_is_video, inside)) and any(any(map(_is_video, _entries(folder.path))) for folder in folders)


def _suffix(entry: os.DirEntry[str]) -> str:
    return os.path.splitext(entry.name)[1].lower()


def _written(entry: os.DirEntry[str], root: Path) -> str:
    return PurePath(entry.path).relative_to(root).as_posix() + ("/" if entry.is_dir() else "")


def _packed_rows(path: Path, metadata: dict[str, Any]) -> list[_Row]:
    columns = (metadata[key] for key in ("paths", "labels", "starts", "ends", "fps", "splits"))
    rows = []
    for name, label, start, end, fps, split in zip(*columns, strict=True):
        times = (math.nan if value is None else float(value) for value in (start, end, fps))
        rows.append(_Row(name, metadata["classes"][label], f"{path}: {name}", split or "", *times))
    return rows


def read_classes(path: Path) -> tuple[str, ...]:
    """The class names of a text file, one a line. Raises ValueError if it cannot be read, is empty or repeats one."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(
            f"{path}: cannot be read ({error.strerror}); give a text file, one class name per line"
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: cannot be read as UTF-8 text, one class name per line ({error})") from error
    names = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not names:
        raise ValueError(f"{path}: lists no class; write one class name per line, or remove the file")
    return _distinct(names, str(path))


def _distinct(names: tuple[str, ...], where: str) -> tuple[str, ...]:
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise ValueError(f"{where}: class {twice[0]!r} is listed more than once; list each class once")
    return names


def _refuse_duplicates(rows: Sequence[_Row]) -> None:
    first: dict[tuple[str, str, str], _Row] = {}
    for row in rows:
        # NaN differs from itself, its text does not.
        known = first.setdefault((os.path.normpath(row.name), str(row.start), str(row.end)), row)
        if known is not row:
            raise ValueError(
                f"{row.where}: {row.name!r} is listed twice (first: {known.where}); keep one row, or give "
                "their segments different start and end"
            )


def _indices(rows: Sequence[_Row], classes: tuple[str, ...]) -> NDArray[np.int64]:
    index = {name: label for label, name in enumerate(classes)}
    for row in rows:
        if row.label not in index:
            close = difflib.get_close_matches(row.label, classes, n=3)
            hint = f"did you mean {' or '.join(map(repr, close))}?" if close else f"{', '.join(classes[:5])} …"
            raise ValueError(
                f"{row.where}: label {row.label!r} is not in the list of {len(classes)} classes ({hint}); "
                "correct it, or give a class list that has it"
            )
    return np.array([index[row.label] for row in rows], dtype=np.int64)


def _relative(item: Item, folder: Path) -> str:
    path = item.path
    if PurePath(path).is_relative_to(folder):
        return PurePath(path).relative_to(folder).as_posix()
    if os.path.isabs(item.name):
        return path
    try:
        # A link's ".." is its target's parent.
        return PurePath(os.path.relpath(path, os.path.realpath(folder))).as_posix()
    except ValueError:  # another drive
        return path


def _write_text(path: Path, text: str) -> None:
    try:
        with written_whole(path) as partial:
            partial.write_text(text, encoding="utf-8", newline="")
    except OSError as error:
        raise ValueError(f"{path}: cannot be written ({error.strerror}); choose a folder you may write to") from error
