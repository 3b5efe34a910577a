"""HMDB-51, three splits.

Official files (Serre Lab, Brown University, "three splits for the HMDB51", ``testTrainMulti_7030_splits``):
``<class>_test_split<k>.txt``  ``April_09_brush_hair_u_nm_np1_ba_goo_0.avi 1``: 1 train, 2 test, 0 in neither
one for each of the 51 classes, with 70 videos to train on and 30 to test on. The class order is the sorted names.
Unverified: the readme of the archive (153 files, meaning of 0, 1 and 2) was seen as quoted by others, the lists
themselves were not.
"""

from __future__ import annotations

import os

from clipwise.data.sets.common import Annotations, Files, PublicSet, Row, read_lines

_SPLITS = {"1": "train", "2": "test", "0": ""}


def read(files: Files, split: int = 1) -> Annotations:
    """One of the three divisions into train and test, classes sorted."""
    ending = f"_test_split{split}.txt"
    rows = []
    for path in files["splits"]:
        label = path.name.removesuffix(ending)
        for where, line in read_lines(path):
            video, _, mark = line.rpartition(" ")
            if mark not in _SPLITS or not video:
                raise ValueError(f"{where}: expected a video and 0, 1 or 2, got {line[:80]!r}")
            if _SPLITS[mark]:
                rows.append(Row((os.path.splitext(video.strip())[0],), (label,), _SPLITS[mark], folders=(label,)))
    classes = tuple(sorted(path.name.removesuffix(ending) for path in files["splits"]))
    return Annotations(rows, {"label": classes})


SETS = {
    "hmdb51": PublicSet(
        title="HMDB-51",
        page="the HMDB page of the Serre Lab, archive of three splits (test_train_splits.rar)",
        files={"splits": ("*_test_split{split}.txt",)},
        read=read,
        classes={"label": 51},
        layout="<class>/<video>.avi; also one folder, other suffixes, or frame folders",
        splits=("train", "test"),
        numbered_splits=3,
        group_by=r"([^/]+)_[fhlu]_[cn]m_np\d",  # what stands before the tags: the recording and the class
        rows={"train": (51 * 70,) * 3, "test": (51 * 30,) * 3},
        unverified="the archive's readme was seen as quoted by others, its lists were not",
    ),
}
