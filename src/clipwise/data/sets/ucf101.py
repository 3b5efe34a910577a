"""UCF-101, three splits.

Official files (UCF Center for Research in Computer Vision, "UCF101TrainTestSplits-RecognitionTask"):
``classInd.txt``     ``1 ApplyEyeMakeup``: class indices from 1
``trainlist01.txt``  ``ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1``
``testlist01.txt``   the same without the index
The class is the folder's name; on the training lists it is compared with the index. The videos of
``HandstandPushups`` are called ``v_HandStandPushups_…``: only the folder's name is the class.
"""

from __future__ import annotations

from pathlib import PurePosixPath

from clipwise.data.sets.common import Annotations, Files, PublicSet, Row, check_label, ordered_classes, read_lines


def read(files: Files, split: int = 1) -> Annotations:
    """One of the three divisions into train and test, in the order of ``classInd.txt``."""
    (path,) = files["classes"]
    indices = {}
    for where, line in read_lines(path):
        index, _, name = line.partition(" ")
        if not index.isdecimal() or not name:
            raise ValueError(f"{where}: expected `1 ApplyEyeMakeup`, got {line!r}")
        indices[name.strip()] = int(index)
    classes = ordered_classes(path, indices, first=1)
    rows = []
    for name in ("train", "test"):
        (listing,) = files[name]
        for where, line in read_lines(listing):
            video, _, index = line.partition(" ")
            file = PurePosixPath(video)
            label = check_label(file.parent.name, indices, where, path.name)
            if index and index.strip() != str(indices[label]):
                raise ValueError(f"{where}: index {index.strip()} of {label}, which is {indices[label]} in {path.name}")
            rows.append(Row((file.stem,), (label,), name, folders=(label,)))
    return Annotations(rows, {"label": classes})


SETS = {
    "ucf101": PublicSet(
        title="UCF-101",
        page="the UCF101 page of UCF's Center for Research in Computer Vision, archive of action recognition splits",
        files={
            "classes": ("classInd.txt",),
            "train": ("trainlist{split:02d}.txt",),
            "test": ("testlist{split:02d}.txt",),
        },
        read=read,
        classes={"label": 101},
        layout="<class>/v_<class>_g01_c01.avi; also one folder, other suffixes, or frame folders",
        splits=("train", "test"),
        numbered_splits=3,
        group_by=r"_g(\d+)_",  # the official divisions, too, keep these whole
        rows={"train": (9_537, 9_586, 9_624), "test": (3_783, 3_734, 3_696)},
    ),
}
