"""Jester: frame folders, in the format of Something-Something V1.

Official files (Qualcomm AI data sets, formerly 20BN): ``jester-v1-labels.csv`` (a class name on each line; its order
is the class order), ``jester-v1-train.csv`` and ``jester-v1-validation.csv`` (``34870;Drumming Fingers``).
``jester-v1-test.csv`` has no labels; later releases bring them in ``test-answers.csv``, in the form of the other lists,
which may be missing. Frames are ``<id>/00001.jpg``, 12 a second.

Unverified: the lists were not seen. Copies of the labels file differ in the order of "Pushing Hand Away" and "Pulling
Hand In" (the one of repository Rars-project/mousepy, commit 06006bb, has them the other way round than the class list
of open-mmlab/mmaction2): the order is that of the file given.
"""

from __future__ import annotations

from clipwise.data.sets.common import PublicSet
from clipwise.data.sets.ssv1 import read

SETS = {
    "jester": PublicSet(
        title="Jester",
        page="the page of Jester among Qualcomm's AI data sets (formerly 20BN)",
        files={
            "labels": ("jester-v1-labels.csv", "labels.csv"),
            "train": ("jester-v1-train.csv", "train.csv"),
            "val": ("jester-v1-validation.csv", "validation.csv"),
            "test": ("test-answers.csv",),
        },
        read=read,
        classes={"label": 27},
        layout="frame folders <id>/00001.jpg; also <id>.webm or <id>.mp4",
        splits=("train", "val", "test"),
        optional=frozenset({"test"}),
        optional_splits=frozenset({"test"}),
        fps=12,
        rows={"train": (118_562,), "val": (14_787,), "test": (14_743,)},
        unverified="the labels file was seen in a copy, the lists were not",
    ),
}
