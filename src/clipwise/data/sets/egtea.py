"""EGTEA Gaze+, three splits of its action clips.

Official files (Georgia Tech, "EGTEA Gaze+", archive ``action_annotation``):
``action_idx.txt``                          ``<action name> <index>``, indices from 1 to 106; names hold spaces
``train_split1.txt``, ``test_split1.txt``…  ``OP01-R01-PastaSalad-1002316-1004005-F024051-F024101 <action> <verb>
                                            <noun> …``, indices from 1
Unverified: read off the code of others (the EGTEA part of LaViLa's data set and its folder listing), not seen at the
origin.

Clips are ``cropped_clips/OP01-R01-PastaSalad/<clip>.mp4``; the classes are the actions.
"""

from __future__ import annotations

from clipwise.data.sets.common import Annotations, Files, PublicSet, Row, ordered_classes, read_lines


def read(files: Files, split: int = 1) -> Annotations:
    """One of the three divisions into train and test, in the order of ``action_idx.txt``."""
    (path,) = files["classes"]
    indices = {}
    for where, line in read_lines(path):
        name, _, index = line.rpartition(" ")
        if not index.isdecimal() or not name.strip():
            raise ValueError(f"{where}: expected an action's name and its index, got {line[:80]!r}")
        indices[name.strip()] = int(index)
    classes = ordered_classes(path, indices, first=1)
    rows = []
    for name in ("train", "test"):
        (listing,) = files[name]
        for where, line in read_lines(listing):
            clip, *numbers = line.split()
            if not numbers or not numbers[0].isdecimal() or not 1 <= int(numbers[0]) <= len(classes):
                raise ValueError(f"{where}: expected a clip and an action from 1 to {len(classes)}, got {line[:80]!r}")
            person = clip.split("-")[0]
            rows.append(Row((clip,), (classes[int(numbers[0]) - 1],), name, person=person))
    return Annotations(rows, {"label": classes})


SETS = {
    "egtea": PublicSet(
        title="EGTEA Gaze+",
        page="Georgia Tech's page of EGTEA Gaze+ (FPV project), archive action_annotation",
        files={
            "classes": ("action_idx.txt",),
            "train": ("train_split{split}.txt",),
            "test": ("test_split{split}.txt",),
        },
        read=read,
        classes={"label": 106},
        layout="cropped_clips/<session>/<clip>.mp4; also other folders and suffixes, or frame folders",
        splits=("train", "test"),
        numbered_splits=3,
        group_by="person",
        unverified="read off the code of others",
    ),
}
