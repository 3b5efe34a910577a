"""Kinetics-400, -600 and -700, and mini-Kinetics: all videos of 200 classes of Kinetics-400 ([DA] section 4).

Official files (DeepMind's Kinetics page; the archives' names have changed over the years):
``train.csv``, ``validate.csv``, ``test.csv``
    label,youtube_id,time_start,time_end,split[,is_cc]
    abseiling,yq_M1PMw2hY,38,48,val
Of Kinetics-600 the CVD Foundation has complete lists in ``train.txt`` and ``val.txt`` and says of its ``train.csv`` and
``val.csv`` that they are incomplete (its repository's README, as forks of it quote it): where the former are there,
they are taken. Unverified: that they have the columns of the others; if not, they are refused.

Seen: part of Kinetics-600's validation list, and what the CVD Foundation, which hosts lists and videos, says and reads
(repository cvdfoundation/kinetics-dataset: ``README.md``, commit 08be2b7, ``arrange_by_classes.py``, commit 3f0f5d9).
The class order is the sorted names. ``test.csv`` may be missing, and is left out where it has no labels
(Kinetics-400's older release) or where none of its videos is there.

Videos are ``<id>_000038_000048.mp4`` in class folders, with spaces or underscores, below ``train/`` and ``val/``;
one folder for all, ``.mkv`` and ``.webm`` are found as well, and so is ``<id>.mp4``, which is taken for the clip: a
video that was never cut to its ten seconds cannot be told from one that was. Kinetics-400's corrupted videos come again
in ``replacement/replacement_for_corrupted_k400/``, which are taken instead.

The mini list ships with the package; it is that of the IBM/action-recognition-pytorch repository
(``mini_kinetics400.txt``, commit cc80618), whose last line reads ``yoga''.`` for ``yoga``.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from clipwise.data.sets.common import Annotations, Files, PublicSet, Row, class_list, read_table

_REPLACEMENT = "replacement_for_corrupted_k400"
# What the folders of each split are called.
_FOLDERS = {"train": "train|train_256|kinetics_train", "val": "val|validate|validation|val_256", "test": "test"}


def read(files: Files, mini: bool = False) -> Annotations:
    """Kinetics, classes sorted; with ``mini`` only the 200 classes of mini-Kinetics."""
    rows = []
    notes = []
    for split in ("train", "val", "test"):
        for path in files[split]:
            unlabelled = 0
            for where, cells in _rows(path):
                label = cells.get("label", "").strip()
                if not label and split != "test":
                    raise ValueError(f"{where}: no label; the training and validation lists have one on every line")
                if not label:
                    unlabelled += 1
                    continue
                name = cells["youtube_id"]
                try:
                    start, end = (int(float(cells[key])) for key in ("time_start", "time_end"))
                except ValueError as error:
                    raise ValueError(f"{where}: time_start and time_end must be seconds ({error})") from error
                names = (f"{name}_{start:06d}_{end:06d}", name)
                rows.append(Row(names, (label,), split, folders=(_REPLACEMENT, label, _FOLDERS[split])))
            if unlabelled:
                notes.append(f"{path.name}: videos without labels left out: {unlabelled}")
    classes = tuple(sorted({row.labels[0] for row in rows}))
    if mini:
        classes = class_list("mini_kinetics")
        wanted = set(classes)
        rows = [row for row in rows if row.labels[0] in wanted]
    return Annotations(rows, {"label": classes}, tuple(notes))


def _rows(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of a list, with their places."""
    try:
        yield from read_table(path, ("youtube_id", "time_start", "time_end"))
    except ValueError as error:
        if path.suffix != ".txt":
            raise
        instead = path.with_suffix(".csv").name
        raise ValueError(
            f"{error}; if it is not the CVD Foundation's list, move it away to have {instead} read"
        ) from error


def _kinetics(classes: int, title: str, *, source: int = 0, mini: bool = False) -> PublicSet:
    number = source or classes
    prefixes = (f"kinetics_{number}_", f"kinetics-{number}_", f"kinetics{number}_", "kinetics_")
    names = {"train": ("train",), "val": ("validate", "val"), "test": ("test",)}
    complete = {"train": ("train.txt",), "val": ("val.txt",)} if number == 600 else {}
    return PublicSet(
        title=title,
        page="DeepMind's Kinetics page, or the CVD Foundation's repository kinetics-dataset",
        files={
            split: (*complete.get(split, ()), *(f"{prefix}{name}.csv" for prefix in ("", *prefixes) for name in stems))
            for split, stems in names.items()
        },
        read=partial(read, mini=mini),
        classes={"label": classes},
        layout="<class>/<id>_000038_000048.mp4, below train/ and val/ or not; also one folder, <id>.mp4, .mkv, .webm",
        splits=("train", "val", "test"),
        optional=frozenset({"test"}),
        optional_splits=frozenset({"test"}),
    )


SETS = {
    "kinetics400": _kinetics(400, "Kinetics-400"),
    "kinetics600": _kinetics(600, "Kinetics-600"),
    "kinetics700": _kinetics(700, "Kinetics-700"),
    "mini_kinetics": _kinetics(200, "mini-Kinetics (half the classes of Kinetics-400)", source=400, mini=True),
}
