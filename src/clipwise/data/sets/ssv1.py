"""Something-Something V1: frame folders.

Official files (Qualcomm AI data sets, formerly 20BN):
``something-something-v1-labels.csv``  a class name on each line; its order is the class order, as in
                                       ``tools/data/parse_file_list.py`` of open-mmlab/mmaction2 (commit 26fd704).
                                       The TSM code sorts the names instead: a checkpoint from there has another order.
``…-train.csv``, ``…-validation.csv``  ``34870;Pulling two fingers in``
``…-test.csv`` has no labels and is left out. Frames are ``<id>/00001.jpg``, 12 a second.
Unverified: the form of the lines is what readers agree on (the two above); the files themselves were not seen.
"""

from __future__ import annotations

from clipwise.data.sets.common import Annotations, Files, PublicSet, id_and_label, read_lines


def read(files: Files) -> Annotations:
    """A set of 20BN's first format: ``;`` between a video's number and its class."""
    (path,) = files["labels"]
    classes = tuple(line for _, line in read_lines(path))
    known = frozenset(classes)
    if len(known) != len(classes):
        raise ValueError(f"{path}: lists a class twice; download the file anew")
    rows = []
    for split in ("train", "val", "test"):
        for listing in files.get(split, ()):
            rows += id_and_label(listing, split, known, path.name)
    return Annotations(rows, {"label": classes})


SETS = {
    "ssv1": PublicSet(
        title="Something-Something V1",
        page="the page of Something-Something among Qualcomm's AI data sets (formerly 20BN)",
        files={
            "labels": ("something-something-v1-labels.csv", "labels.csv"),
            "train": ("something-something-v1-train.csv", "train.csv"),
            "val": ("something-something-v1-validation.csv", "validation.csv"),
        },
        read=read,
        classes={"label": 174},
        layout="frame folders <id>/00001.jpg; also <id>.webm or <id>.mp4",
        splits=("train", "val"),
        fps=12,
        rows={"train": (86_017,), "val": (11_522,)},
        unverified="read off the code of others",
    ),
}
