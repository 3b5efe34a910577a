"""Moments in Time, version 1.

Official files (MIT, "Moments in Time", archive ``Moments_in_Time_Raw``):
``moments_categories.txt``   ``clapping,0``
``trainingSet.csv``, ``validationSet.csv``
                             ``blocking/getty-karate-video-id635808620_4.mp4,blocking,3,0``: path, label, how many
                             agreed and disagreed; no header
Unverified: the archive's README.txt and readers (``tools/data/parse_file_list.py`` of open-mmlab/mmaction2, commit
26fd704; ``tools/extract_videos_moments.py`` of IBM/action-recognition-pytorch, commit c88e74b) were seen, the lists
themselves were not.

Videos are ``training/<class>/<name>.mp4`` and ``validation/<class>/<name>.mp4``. Mini-Moments in Time has the same
files and is read the same way.
"""

from __future__ import annotations

import csv
from pathlib import PurePosixPath

from clipwise.data.sets.common import Annotations, Files, PublicSet, Row, check_label, ordered_classes, read_lines

_FOLDERS = {"train": "training|train", "val": "validation|val"}


def read(files: Files) -> Annotations:
    """Moments in Time, in the order of ``moments_categories.txt``."""
    (path,) = files["classes"]
    indices = {}
    for where, line in read_lines(path):
        name, _, index = line.rpartition(",")
        if not index.strip().isdecimal() or not name:
            raise ValueError(f"{where}: expected `clapping,0`, got {line[:80]!r}")
        indices[name.strip()] = int(index)
    classes = ordered_classes(path, indices)
    rows = []
    for split in ("train", "val"):
        (listing,) = files[split]
        for where, line in read_lines(listing):
            video, label, *_ = [*next(csv.reader([line])), ""]
            check_label(label.strip(), indices, where, path.name)
            file = PurePosixPath(video)
            rows.append(Row((file.stem,), (label.strip(),), split, folders=(file.parent.name, _FOLDERS[split])))
    return Annotations(rows, {"label": classes})


SETS = {
    "moments_in_time": PublicSet(
        title="Moments in Time",
        page="MIT's Moments in Time page, archive Moments_in_Time_Raw",
        files={
            "classes": ("moments_categories.txt",),
            "train": ("trainingSet.csv",),
            "val": ("validationSet.csv",),
        },
        read=read,
        classes={"label": 339},
        layout="training/<class>/<name>.mp4 and validation/<class>/<name>.mp4; also one folder, or frame folders",
        splits=("train", "val"),
        unverified="the archive's README was seen, its lists were not",
    ),
}
