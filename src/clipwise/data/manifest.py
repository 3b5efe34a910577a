"""Which videos there are, what each shows, and to which split it belongs.

A manifest is read from any of three places:

CSV          columns ``path`` (relative to the CSV, or absolute) and ``label`` (or ``class``: the class name);
             optional ``start`` and ``end`` (seconds), ``fps`` (of a frame folder), ``split``, ``reversed`` (1: its
             frames are played backwards); others are ignored. Instead of ``label``: a column for each of several
             heads, ``label:verb`` and ``label:noun``; or ``labels``, any number of names separated by ``|``, none
             where it is empty.
folder       ``<folder>/<class>/<video>``, or ``<folder>/<train|val|test>/<class>/<video>``; a video is a
             video file, or a folder of numbered JPEG frames without a video or a folder in it. A split's folder
             may also be called ``training``, ``valid``, ``validation`` or ``testing``.
``*.pack``   the single file of decoded frames that ``clipwise data pack`` writes, or the folder of shards.
A folder with a ``manifest.csv`` in it is read from that.

The class list is ``classes=`` if given, else the lines of a ``classes.txt`` beside the CSV or in the folder
(``classes.verb.txt`` for the head ``verb``), else the names that occur, sorted. It comes from all rows whatever
split is asked for: splits agree on it.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import io
import math
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clipwise.data.labels import LABEL, Head, LabelSpace
from clipwise.data.stores import is_shards
from clipwise.data.video_names import is_video_file, why_no_frames
from clipwise.files import written_whole

if TYPE_CHECKING:
    from clipwise.data.decode import Frames
    from clipwise.data.stores import FrameStore

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
    label: index into the manifest's classes; None where there are several heads, or several labels a video
    (``Manifest.names_of`` has their names).
    start, end: the segment in seconds, None where it begins or ends with the video. A pack is cut already.
    name: the path as the manifest writes it; names the video wherever the data lies.
    reversed: whether the segment is played from its last frame to its first. A pack holds frames as they are played.
    """

    path: str
    label: int | None
    start: float | None
    end: float | None
    fps: float | None
    split: str | None
    name: str
    reversed: bool = False


class _Row(NamedTuple):
    name: str
    labels: tuple[str, ...]  # one for each head, or a set
    where: str  # for messages
    split: str = ""
    start: float = math.nan
    end: float = math.nan
    fps: float = math.nan
    reversed: bool = False


def class_list_hash(classes: Sequence[str]) -> str:
    """SHA-256 of the class names, joined by newlines: equal exactly if names and order are."""
    return hashlib.sha256("\n".join(classes).encode()).hexdigest()


class Manifest:
    """The list of videos; ``manifest[i]`` is an ``Item``, ``manifest.open(i)`` its frames.

    label_space: the heads with their class names; a label is an index into its head's.
    source, root: what was read, and the folder that relative paths start from.
    ignored: files and folders of a folder layout that are neither videos nor frame folders.
    """

    def __init__(
        self,
        source: Path,
        root: Path,
        label_space: LabelSpace,
        columns: dict[str, NDArray[Any]],
        ignored: tuple[str, ...] = (),
        pack: FrameStore | None = None,
    ) -> None:
        self.source = source
        self.root = root
        self.label_space = label_space
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

        split: keep only this split. classes: fixes the class list and its order (not where there are several heads).
        Raises ValueError, which names the file and line, for anything that cannot be used as written.
        """
        path = Path(os.path.abspath(source))
        ignored: tuple[str, ...] = ()
        pack: FrameStore | None = None
        names: tuple[str, ...] = (LABEL,)
        multi_label = False
        listed: list[tuple[str, ...] | None] = []
        if path.is_dir() and (path / "manifest.csv").is_file():
            path = path / "manifest.csv"
        sharded = path.is_dir() and is_shards(path)
        if path.is_dir() and not sharded:
            root = path
            rows, ignored = _read_folder(path)
        elif not path.exists():
            raise ValueError(f"{path}: no such file or folder; give a CSV file, a folder {_LAYOUT}, or a *.pack file")
        elif sharded or path.suffix == ".pack":
            from clipwise.data.pack import PackedFile
            from clipwise.data.shards import ShardedFile

            root = path.parent
            pack, metadata = (ShardedFile if sharded else PackedFile).open_with_metadata(path)
            space = LabelSpace.from_json(metadata)
            rows = _packed_rows(path, metadata, space)
            names, multi_label = tuple(head.name for head in space.heads), space.multi_label
            listed = [head.classes for head in space.heads]
        elif path.suffix.lower() == ".csv":
            root = path.parent
            rows, names, multi_label = _read_csv(path)
        else:
            raise ValueError(f"{path}: not a manifest; give a CSV file (.csv), a folder {_LAYOUT}, or a *.pack file")

        if pack is None:
            beside = [root / _class_file(name) for name in names]
            listed = [read_classes(file) if file.is_file() else None for file in beside]
        if classes is not None:
            if len(names) > 1:
                raise ValueError(
                    f"{path}: classes= is one list, and there are the heads {', '.join(names)}; "
                    f"write {' and '.join(map(_class_file, names))} beside it"
                )
            listed = [_distinct(tuple(classes), "classes")]
        occurring = [
            {label for row in rows for label in (row.labels if multi_label else row.labels[head : head + 1])}
            for head in range(len(names))
        ]
        heads = tuple(
            Head(name, tuple(sorted(there)) if given is None else given)
            for name, given, there in zip(names, listed, occurring, strict=True)
        )
        if multi_label and not heads[0].classes:
            raise ValueError(f"{path}: no row has a label; name some in the column labels, separated by |")
        if pack is None:
            _refuse_duplicates(rows)
        columns: dict[str, NDArray[Any]] = {
            "row": np.arange(len(rows)),
            "name": np.array([os.fsencode(row.name) for row in rows]),
            "label": _label_column(rows, heads, multi_label),
            "split": np.array([row.split.encode() for row in rows]),
            **{key: np.array([getattr(row, key) for row in rows], np.float64) for key in ("start", "end", "fps")},
            "reversed": np.array([row.reversed for row in rows], np.bool_),
        }
        manifest = cls(path, root, LabelSpace(heads, multi_label), columns, ignored, pack)
        return manifest if split is None else manifest.select(split)

    def __len__(self) -> int:
        return len(self._columns["row"])

    def __getitem__(self, index: int) -> Item:
        """Raises IndexError outside -len .. len-1."""
        row = {key: column[index] for key, column in self._columns.items()}
        name = os.fsdecode(row["name"])
        return Item(
            path=os.path.join(self.source if self._pack else self.root, name),
            label=int(row["label"]) if self.label_space.single else None,
            start=_optional(row["start"]),
            end=_optional(row["end"]),
            fps=_optional(row["fps"]),
            split=row["split"].decode() or None,
            name=name,
            reversed=bool(row["reversed"]),
        )

    def __iter__(self) -> Iterator[Item]:
        return (self[index] for index in range(len(self)))

    @property
    def heads(self) -> tuple[Head, ...]:
        """One named ``label``, or one for each column ``label:…``, in the order of the columns."""
        return self.label_space.heads

    @property
    def multi_label(self) -> bool:
        """Whether a video has a set of labels."""
        return self.label_space.multi_label

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; of several heads, all of them, as ``verb:take``."""
        return self.label_space.classes

    @property
    def labels(self) -> NDArray[Any]:
        """(len,) int64 indices into ``classes``; of several heads (len, heads) int64, each into its head's; of label
        sets (len, classes) bool."""
        return self._columns["label"]

    def names_of(self, index: int) -> tuple[str, ...]:
        """The class names of item ``index``: one, one for each head, or those of its set."""
        return self.label_space.names(self.labels[index])

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
        return self._with({key: column[chosen] for key, column in self._columns.items()})

    def with_splits(self, splits: Sequence[str]) -> Manifest:
        """The same rows, each in the split that stands at its place in ``splits``."""
        return self._with({"split": np.array([split.encode() for split in splits])})

    def with_head(self, name: str) -> Manifest:
        """The same rows, labelled by one of several heads alone. Raises ValueError for an unknown head."""
        chosen = next((head for head in self.heads if head.name == name), None)
        if chosen is None:
            there = ", ".join(head.name for head in self.heads)
            raise ValueError(f"{self.source}: no head {name!r} (a column label:{name}); there is: {there}")
        return self.with_label_space(LabelSpace((chosen,), self.multi_label))

    def with_label_space(self, space: LabelSpace) -> Manifest:
        """The same rows, labelled as a network's outputs are: by its heads and their class lists.

        Heads are found by name; where both sides have only one, its name does not matter. Raises ValueError where a
        head is missing, has classes that the network's has not, or labels are of another kind.
        """
        if self.multi_label != space.multi_label:
            kinds = ("one class a video", "a set of labels a video")
            raise ValueError(
                f"{self.source}: has {kinds[self.multi_label]}, the checkpoint's network {kinds[space.multi_label]}"
            )
        by_name = {head.name: number for number, head in enumerate(self.heads)}
        own = [0] if len(self.heads) == len(space.heads) == 1 else [by_name.get(head.name) for head in space.heads]
        columns = []
        for number, head in zip(own, space.heads, strict=True):
            if number is None:
                raise ValueError(
                    f"{self.source}: says nothing of the checkpoint's {head.name!r}; it has: {', '.join(by_name)}"
                )
            names = self.heads[number].classes
            place = {name: index for index, name in enumerate(head.classes)}
            foreign = sorted(set(names) - set(place))
            if foreign:
                raise ValueError(
                    f"{self.source}: {len(foreign)} of its classes are not the checkpoint's, the first {foreign[0]!r}; "
                    f"the checkpoint knows {len(place)}: {', '.join(head.classes[:5])} …"
                )
            indices = np.array([place[name] for name in names], np.int64)
            if self.multi_label:
                labels = np.zeros((len(self), len(place)), bool)
                labels[:, indices] = self.labels
            else:
                labels = indices[self.labels.reshape(len(self), -1)[:, number]]
            columns.append(labels)
        return self._with({"label": columns[0] if len(columns) == 1 else np.stack(columns, 1)}, space)

    def _with(self, columns: dict[str, NDArray[Any]], space: LabelSpace | None = None) -> Manifest:
        """With these columns in the place of its own."""
        return Manifest(
            self.source, self.root, space or self.label_space, {**self._columns, **columns}, self.ignored, self._pack
        )

    def with_frames(self, store: FrameStore) -> Manifest:
        """The same rows, the frames of the i-th being the i-th of ``store``."""
        columns = {**self._columns, "row": np.arange(len(self))}
        return Manifest(self.source, self.root, self.label_space, columns, self.ignored, store)

    def open(self, index: int) -> Frames:
        """The frames of item ``index``, cut to its segment, in the order in which it is played.

        Raises DecodeError for an unreadable video.
        """
        item = self[index]
        if self._pack is not None:
            return self._pack.frames(int(self._columns["row"][index]), item.path, item.fps)
        from clipwise.data.decode import ReversedFrames, open_frames
        from clipwise.data.index_cache import IndexCache

        frames = open_frames(item.path, start=item.start, end=item.end, fps=item.fps, indices=IndexCache(self.root))
        return ReversedFrames(frames) if item.reversed else frames

    def require_classes(self, minimum: int = 2) -> None:
        """Raises ValueError if fewer than ``minimum`` classes of a head occur: nothing can be learnt from them.

        Of label sets one is enough, for a class can be told from its absence.
        """
        if self.multi_label:
            if not self.labels.any():
                raise ValueError(f"{self.source}: no video has a label; name some in the column labels")
            return
        for head, labels in zip(self.heads, self.labels.reshape(len(self), -1).T, strict=True):
            present = np.unique(labels)
            if len(present) < minimum:
                names = ", ".join(repr(head.classes[label]) for label in present)
                of_head = "" if head.name == LABEL else f" of {head.name!r}"
                raise ValueError(
                    f"{self.source}: training needs videos of at least {minimum} classes{of_head}, "
                    f"got {len(present)} ({names}); label more videos, or give a folder {_LAYOUT}"
                )

    def check_files(self, on_error: str = "raise") -> None:
        """Raises one ValueError that lists the files that are missing. Nothing is decoded.

        With another ``on_error`` than "raise" it does not: each that is missing is then one that cannot be read.
        """
        if self._pack is not None or on_error != "raise":
            return
        missing = [item.path for item in self if not os.path.exists(item.path)]
        if missing:
            shown = "".join(f"\n  {path}" for path in missing[:5])
            more = f"\n  and {len(missing) - 5} more" if len(missing) > 5 else ""
            raise ValueError(
                f"{self.source}: {len(missing)} of {len(self)} videos are missing; relative paths start from "
                f"{self.root}:{shown}{more}\n"
                f"`clipwise data check {shlex.quote(str(self.source))} --clean cleaned.csv` writes a list without them"
            )

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes a CSV that ``read`` gives back, with paths relative to it where possible.

        The class list goes to ``classes.txt`` beside it (``classes.verb.txt`` …) if the rows alone do not give it.
        Raises ValueError for a pack, for a folder whose ``classes.txt`` is another list, and where nothing can be
        written.
        """
        target = Path(os.path.abspath(path))
        if self._pack is not None:
            raise ValueError(
                f"{self.source}: its frames lie in the pack, so a CSV cannot list them; write its source's"
            )
        optional = [key for key in ("start", "end", "fps", "split") if any(getattr(i, key) is not None for i in self)]
        optional += ["reversed"] if any(item.reversed for item in self) else []
        missing: list[tuple[Path, Head]] = []
        for number, head in enumerate(self.heads):
            beside = target.parent / _class_file(head.name)
            if self.multi_label:
                occurring = np.flatnonzero(self.labels.any(0))
            else:
                occurring = np.unique(self.labels.reshape(len(self), -1)[:, number])
            if beside.is_file():
                if read_classes(beside) != head.classes:
                    raise ValueError(f"{beside}: lists other classes than {self.source}; write to another folder")
            elif tuple(sorted(head.classes[label] for label in occurring)) != head.classes:
                missing.append((beside, head))
        for beside, head in missing:
            _write_text(beside, "".join(f"{name}\n" for name in head.classes))

        lines = io.StringIO()
        writer = csv.writer(lines, lineterminator="\n")
        columns = ["labels"] if self.multi_label else [_column(head.name) for head in self.heads]
        writer.writerow(["path", *columns, *optional])
        for index, item in enumerate(self):
            names = self.names_of(index)
            cells = [int(item.reversed) if key == "reversed" else getattr(item, key) for key in optional]
            writer.writerow(
                [_relative(item, target.parent), *(["|".join(names)] if self.multi_label else names), *cells]
            )
        _write_text(target, lines.getvalue())


def _optional(value: np.float64) -> float | None:
    return None if math.isnan(value) else float(value)


def _column(head: str) -> str:
    return LABEL if head == LABEL else f"label:{head}"


def _class_file(head: str) -> str:
    return "classes.txt" if head == LABEL else f"classes.{head}.txt"


def _read_csv(path: Path) -> tuple[list[_Row], tuple[str, ...], bool]:
    """The rows, the names of the heads, and whether a row has a set of labels."""
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
    columns = _label_columns(path, header)
    missing = [name for name, there in (("path", "path" in header), ("label", columns)) if not there]
    if missing:
        raise ValueError(f"{path}: no column {' and no column '.join(missing)}; there is: {', '.join(header)}")
    multi_label = columns == ["labels"]
    for name in ("path", *columns, "start", "end", "fps", "split", "reversed"):
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
        name = values["path"]
        labels = _label_set(values["labels"], where) if multi_label else tuple(values[key].strip() for key in columns)
        empty = [key for key, value in zip(columns, labels, strict=True) if not value] if not multi_label else []
        if not name.strip() or empty:
            raise ValueError(
                f"{where}: {empty[0] if empty else 'path'} is empty; every video needs a path and a label"
                + (" for each head" if len(columns) > 1 else "")
            )
        start = _number(values.get("start", ""), "start", where)
        end = _number(values.get("end", ""), "end", where)
        fps = _number(values.get("fps", ""), "fps", where)
        if (0.0 if math.isnan(start) else start) >= end:
            raise ValueError(f"{where}: start must be before end, got start={values.get('start') or 0} end={end}")
        if fps == 0:
            raise ValueError(f"{where}: fps must be above 0, got {values['fps']!r}")
        backwards = values.get("reversed", "").strip()
        if backwards not in ("", "0", "1"):
            raise ValueError(
                f"{where}: reversed must be 1 (played backwards), 0 or empty, got {backwards!r}; "
                "give a column of another meaning another name"
            )
        split = values.get("split", "").strip()
        rows.append(_Row(name, labels, where, split, start, end, fps, backwards == "1"))
    return rows, tuple(key.removeprefix("label:") if ":" in key else LABEL for key in columns), multi_label


def _label_columns(path: Path, header: Sequence[str]) -> list[str]:
    """``label`` or ``class``, ``labels``, or the columns ``label:…``; none where there is none of them."""
    heads = [name for name in dict.fromkeys(header) if name.startswith("label:")]
    kinds = [name for name in ("label", "labels", *heads[:1]) if name in header]
    if "class" in header and "label" not in header:
        kinds.append("class")
    if len(kinds) > 1:
        raise ValueError(
            f"{path}: columns {' and '.join(kinds)}: keep one kind: label (one class a video), label:NAME for each of "
            "several heads, or labels (any number of names separated by |)"
        )
    for name in heads:
        if not re.fullmatch(r"[\w-]+", name.removeprefix("label:")):
            raise ValueError(f"{path}: column {name!r}: a head's name is made of letters, digits, - and _")
    return heads or kinds


def _label_set(text: str, where: str) -> tuple[str, ...]:
    """The names of ``a|b``; none of an empty field."""
    if not text.strip():
        return ()
    names = tuple(name.strip() for name in text.split("|"))
    if not all(names):
        raise ValueError(f"{where}: labels has an empty name in {text!r}; write names separated by one |")
    return _distinct(names, where)


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
                    rows.append(_Row(name.rstrip("/"), (folder.name,), entry.path, split))
                else:
                    ignored.append(name)
    ignored = [name for name in ignored if name != "classes.txt"]
    if not rows:
        found = f"found only {', '.join(ignored[:5])}" if ignored else "the folder is empty"
        more = f" and {len(ignored) - 5} more" if len(ignored) > 5 else ""
        raise ValueError(f"{root}: no videos in class folders ({found}{more}); expected {_LAYOUT}")
    return rows, tuple(ignored)


def find_videos(folder: str | os.PathLike[str]) -> list[Path]:
    """All videos and frame folders below a folder, sorted; the folder itself if it is one of frames."""
    inside = _entries(Path(folder))
    if why_no_frames(inside) is None:
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
    """A video file, or a folder of frames."""
    return why_no_frames(_entries(entry.path)) is None if entry.is_dir() else is_video_file(entry.name)


def _holds_classes(entry: os.DirEntry[str]) -> bool:
    """Whether videos lie one level below this folder's folders and none directly in it."""
    inside = _entries(entry.path) if entry.is_dir() else []
    folders = [folder for folder in inside if folder.is_dir()]
    return not any(map(_is_video, inside)) and any(any(map(_is_video, _entries(folder.path))) for folder in folders)


def _written(entry: os.DirEntry[str], root: Path) -> str:
    return PurePath(entry.path).relative_to(root).as_posix() + ("/" if entry.is_dir() else "")


def _packed_rows(path: Path, metadata: dict[str, Any], space: LabelSpace) -> list[_Row]:
    columns = [metadata[key] for key in ("paths", "labels", "starts", "ends", "fps", "splits")]
    backwards = metadata.get("reversed") or [False] * len(columns[0])
    rows = []
    for name, label, start, end, fps, split, back in zip(*columns, backwards, strict=True):
        begins, ends, rate = (math.nan if value is None else float(value) for value in (start, end, fps))
        indices = [label] if isinstance(label, int) else label
        heads = space.heads * len(indices) if space.multi_label else space.heads
        names = tuple(head.classes[index] for head, index in zip(heads, indices, strict=True))
        rows.append(_Row(name, names, f"{path}: {name}", split or "", begins, ends, rate, bool(back)))
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
    first: dict[tuple[str, str, str, bool], _Row] = {}
    for row in rows:
        # NaN differs from itself, its text does not.
        known = first.setdefault((os.path.normpath(row.name), str(row.start), str(row.end), row.reversed), row)
        if known is not row:
            raise ValueError(
                f"{row.where}: {row.name!r} is listed twice (first: {known.where}); keep one row, or give "
                "their segments different start and end"
            )


def _label_column(rows: Sequence[_Row], heads: Sequence[Head], multi_label: bool) -> NDArray[Any]:
    """As ``Manifest.labels``."""
    if multi_label:
        index = {name: label for label, name in enumerate(heads[0].classes)}
        sets = np.zeros((len(rows), len(index)), bool)
        for place, row in enumerate(rows):
            for name in row.labels:
                sets[place, _index(name, index, heads[0], row)] = True
        return sets
    columns = []
    for number, head in enumerate(heads):
        index = {name: label for label, name in enumerate(head.classes)}
        columns.append(np.array([_index(row.labels[number], index, head, row) for row in rows], np.int64))
    return columns[0] if len(columns) == 1 else np.stack(columns, axis=1)


def _index(name: str, index: dict[str, int], head: Head, row: _Row) -> int:
    if name not in index:
        close = difflib.get_close_matches(name, index, n=3)
        hint = f"did you mean {' or '.join(map(repr, close))}?" if close else f"{', '.join(head.classes[:5])} …"
        raise ValueError(
            f"{row.where}: {_column(head.name)} {name!r} is not in the list of {len(index)} classes ({hint}); "
            "correct it, or give a class list that has it"
        )
    return index[name]


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
