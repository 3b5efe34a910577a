"""A manifest's rows with all their columns: what a tool needs that writes some of them out again.

``Manifest`` keeps what training needs; a column such as ``person`` or ``recording`` is only here.
"""

from __future__ import annotations

import csv
import io
import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath

from clipwise.data.labels import LABEL
from clipwise.data.manifest import Manifest, read_classes
from clipwise.data.stores import is_shards
from clipwise.files import portable_path, written_whole

__all__ = ["Table"]


@dataclass(frozen=True)
class Table:
    """A manifest and the text it was read from.

    header: names of the columns, as written; of a folder: path, label and, where there is one, split.
    rows: the cells of every video, in the manifest's order.
    """

    manifest: Manifest
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    @classmethod
    def read(cls, source: str | os.PathLike[str], *, what_for: str) -> Table:
        """Reads a CSV or a folder of class folders.

        Raises ValueError for what ``Manifest.read`` refuses, and for a source that a CSV cannot list (a pack);
        ``what_for`` is the verb for that message.
        """
        manifest = Manifest.read(source)
        if manifest.source.suffix.lower() == ".csv":
            with open(manifest.source, encoding="utf-8-sig", newline="") as file:
                lines = [tuple(cells) for cells in csv.reader(file, strict=True) if any(map(str.strip, cells))]
            return cls(manifest, lines[0], tuple(lines[1:]))
        if not manifest.source.is_dir() or is_shards(manifest.source):
            raise ValueError(
                f"{manifest.source}: {what_for} works on a CSV or a folder of videos; give what this was made from"
            )
        split = ("split",) if manifest.splits else ()
        rows = [
            (item.name, *manifest.names_of(row), *((item.split or "",) if split else ()))
            for row, item in enumerate(manifest)
        ]
        return cls(manifest, ("path", "label", *split), tuple(rows))

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def columns(self) -> dict[str, int]:
        """Where each column stands, by its name in small letters."""
        return {name.strip().lower(): place for place, name in enumerate(self.header)}

    def column(self, name: str) -> list[str]:
        """The cells of a column, stripped."""
        place = self.columns[name.strip().lower()]
        return [cells[place].strip() for cells in self.rows]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """What to call each video: its path as the manifest writes it, with its segment and direction."""
        names = []
        for item in self.manifest:
            start = "" if item.start is None else f"{item.start:g}"
            end = "" if item.end is None else f"{item.end:g}"
            name = os.fsencode(item.name).decode("utf-8", "backslashreplace")
            limits = [f"{start}–{end} s"] if start or end else []
            said = ", ".join([*limits, *(["reversed"] if item.reversed else [])])
            names.append(f"{name} [{said}]" if said else name)
        return tuple(names)

    @cached_property
    def files(self) -> tuple[str, ...]:
        """The file (or folder of frames) of each video; segments of one have the same."""
        return tuple(os.path.normpath(item.path) for item in self.manifest)

    @cached_property
    def classes(self) -> tuple[tuple[str, ...], ...]:
        """The classes of each video, as ``Manifest.classes`` names them: one, one of each head, or a set."""
        manifest = self.manifest
        names = (manifest.names_of(row) for row in range(len(self)))
        if len(manifest.heads) == 1:
            return tuple(names)
        return tuple(
            tuple(f"{head.name}:{name}" for head, name in zip(manifest.heads, row, strict=True)) for row in names
        )

    def select(self, split: str) -> Table:
        """The rows of one split. Raises ValueError for an unknown one."""
        manifest = self.manifest.select(split)
        kept = [item.split == split for item in self.manifest]
        return Table(manifest, self.header, tuple(itertools.compress(self.rows, kept)))

    def write(
        self,
        output: str | os.PathLike[str],
        rows: Sequence[int],
        columns: Mapping[str, Sequence[str]] | None = None,
        *,
        classes: tuple[str, ...] | None = None,
    ) -> None:
        """Writes a CSV of some rows, all columns kept, paths made relative to where it lies.

        ``columns`` replaces or adds whole columns (one cell for each of ``rows``). ``classes``: the names in a new
        column ``label``, sorted, each of which occurs; the labels that there were are then columns like others. Class
        lists are written beside it where the rows alone would not give them. Raises ValueError for no row, for a class
        list there that is another one, for a name that no UTF-8 file can hold, and where nothing can be written.
        """
        target = Path(os.path.abspath(output))
        if not rows:
            raise ValueError(f"{target}: no video is left to list; it was not written")
        columns = columns or {}
        beside = target.parent / "classes.txt"
        if classes is not None and beside.is_file() and read_classes(beside) != classes:
            raise ValueError(f"{beside}: lists other classes than {', '.join(classes)}; write to another folder")
        header = [*self.header, *(name for name in columns if name not in self.columns)]
        places = {name: self.columns.get(name, header.index(name) if name in header else 0) for name in columns}
        lines = io.StringIO()
        writer = csv.writer(lines, lineterminator="\n")
        writer.writerow(header)
        for number, row in enumerate(rows):
            cells = [*self.rows[row], *[""] * (len(header) - len(self.header))]
            cells[self.columns["path"]] = self._path_from(target.parent, row)
            for name, values in columns.items():
                cells[places[name]] = values[number]
            writer.writerow(cells)
        try:
            for path, names in self._class_lists(target.parent, rows) if classes is None else ():
                with written_whole(path) as partial:
                    partial.write_text("".join(f"{name}\n" for name in names), encoding="utf-8", newline="")
            with written_whole(target) as partial:
                partial.write_text(lines.getvalue(), encoding="utf-8", newline="")
        except UnicodeEncodeError as error:
            raise ValueError(f"{target}: a file's name is not UTF-8 ({error.object!r:.80}); rename it") from error
        except OSError as error:
            raise ValueError(
                f"{target}: cannot be written ({error.strerror}); choose a folder you may write to"
            ) from error

    def _path_from(self, folder: Path, row: int) -> str:
        cell = self.rows[row][self.columns["path"]]
        if os.path.isabs(cell) or os.path.realpath(folder) == os.path.realpath(self.manifest.root):
            return cell
        path = PurePath(self.manifest[row].path)
        if path.is_relative_to(folder):
            return path.relative_to(folder).as_posix()
        # A link's ".." is its target's parent.
        return PurePath(portable_path(Path(path), Path(os.path.realpath(folder)))).as_posix()

    def _class_lists(self, folder: Path, rows: Sequence[int]) -> list[tuple[Path, tuple[str, ...]]]:
        """The class lists that have to be written to ``folder``."""
        manifest, lists = self.manifest, []
        labels = [manifest.names_of(row) for row in rows]
        for number, head in enumerate(manifest.heads):
            beside = folder / ("classes.txt" if head.name == LABEL else f"classes.{head.name}.txt")
            occurring = {name for names in labels for name in (names if manifest.multi_label else names[number:][:1])}
            if beside.is_file():
                if read_classes(beside) != head.classes:
                    raise ValueError(f"{beside}: lists other classes than {manifest.source}; write to another folder")
            elif tuple(sorted(occurring)) != head.classes:
                lists.append((beside, head.classes))
        return lists
