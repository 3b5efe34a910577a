"""Diving48, version 2 of the annotations.

Official files (SVCL, UC San Diego, project RESOUND):
``Diving48_vocab.json``     [["Back", "15som", "05Twis", "FREE"], …]: 48 classes; a label is an index into them
``Diving48_V2_train.json``, ``Diving48_V2_test.json``
                            [{"vid_name": "-mmq0PT-u8k_00155", "label": 0, "start_frame": 0, "end_frame": 48}, …]
Unverified: looked up in copies, not at the origin: the vocabulary in repository Chuhanxx/Temporal_Query_Networks
(``annotations/diving48_vocab.json``, commit 216e355), the names of the files in open-mmlab/mmaction2
(``tools/data/diving48/README.md``).

A class is named by its four parts joined with ``+``. ``start_frame`` and ``end_frame`` count the clip's own frames,
0 to the last, so that the whole clip is meant. Videos are ``rgb/<vid_name>.mp4``.
"""

from __future__ import annotations

from clipwise.data.sets.common import Annotations, Files, PublicSet, Row, read_json


def read(files: Files) -> Annotations:
    """Diving48 V2, in the order of the vocabulary."""
    (path,) = files["classes"]
    vocabulary = read_json(path, list)
    if not all(isinstance(parts, list) and all(isinstance(part, str) for part in parts) for parts in vocabulary):
        raise ValueError(f'{path}: expected lists such as ["Back", "15som", "05Twis", "FREE"]; is it the right file?')
    classes = tuple("+".join(parts) for parts in vocabulary)
    rows = []
    for split in ("train", "test"):
        (listing,) = files[split]
        for number, entry in enumerate(read_json(listing, list)):
            where = f"{listing}, entry {number}"
            try:
                video, label = entry["vid_name"], entry["label"]
            except (TypeError, KeyError) as error:
                raise ValueError(f"{where}: needs `vid_name` and `label`, got {str(entry)[:80]}") from error
            if not isinstance(label, int) or not 0 <= label < len(classes):
                raise ValueError(f"{where}: label must be 0 to {len(classes) - 1}, as in {path.name}, got {label}")
            rows.append(Row((str(video),), (classes[label],), split, folders=(split,)))
    return Annotations(rows, {"label": classes})


SETS = {
    "diving48": PublicSet(
        title="Diving48 (V2)",
        page="the RESOUND project page of the Statistical Visual Computing Lab, UC San Diego",
        files={
            "classes": ("Diving48_vocab.json", "diving48_vocab.json"),
            "train": ("Diving48_V2_train.json",),
            "test": ("Diving48_V2_test.json",),
        },
        read=read,
        classes={"label": 48},
        layout="rgb/<vid_name>.mp4; also other folders and suffixes, or frame folders",
        splits=("train", "test"),
        group_by=r"([^/]+)_\d{5}",  # the recording, of which these are cut out
        unverified="seen in copies only",
    ),
}
