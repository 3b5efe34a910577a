"""Something-Something V2, and mini-SSV2: all videos of 87 of its classes ([DA] section 4).

Official files (Qualcomm AI data sets, "Something-Something V2"), formerly called ``something-something-v2-*``:
``labels.json``      {"Approaching something with your camera": "0", …}: class name → index, as a string
``train.json``, ``validation.json``
                     [{"id": "78687", "label": "holding potato next to vicks vaporub bottle",
                     "template": "Holding [something] next to [something]", "placeholders": […]}, …]
Seen: the whole labels file, and single entries of ``train.json``. The class is the template without its brackets; the
class order is that of the indices. Videos are ``<id>.webm``; ``.mp4`` and frame folders ``<id>/`` are found as well.

``test.json`` has no labels. Later releases bring them in ``test-answers.csv``, a line ``1420;Closing something`` for
each video; it may be missing. Unverified: read off the code of others, not seen.

The mini list ships with the package; it is that of the IBM/action-recognition-pytorch repository (``mini_ssv2.txt``,
commit cc80618).
"""

from __future__ import annotations

from clipwise.data.sets.common import (
    Annotations,
    Files,
    PublicSet,
    Row,
    check_label,
    class_list,
    id_and_label,
    ordered_classes,
    read_json,
)


def read(files: Files) -> Annotations:
    """Something-Something V2, in the order of ``labels.json``."""
    (path,) = files["labels"]
    indices = {}
    for name, index in read_json(path, dict).items():
        if not str(index).isdecimal():
            raise ValueError(f'{path}: the index of {name!r} must be a number such as "0", got {index!r}')
        indices[name] = int(index)
    classes = ordered_classes(path, indices)
    rows = []
    for split in ("train", "val"):
        (listing,) = files[split]
        for number, entry in enumerate(read_json(listing, list)):
            where = f"{listing}, entry {number}"
            try:
                video, template = str(entry["id"]), str(entry["template"])
            except (TypeError, KeyError) as error:
                raise ValueError(f"{where}: needs `id` and `template`, got {str(entry)[:80]}") from error
            label = check_label(template.replace("[", "").replace("]", ""), indices, where, path.name)
            rows.append(Row((video,), (label,), split, folders=(split,)))
    notes = []
    for listing in files["test"]:
        rows += id_and_label(listing, "test", indices, path.name)
        notes.append(f"unverified: the form of {listing.name}, which gives split test its labels, was not seen")
    return Annotations(rows, {"label": classes}, tuple(notes))


def read_mini(files: Files) -> Annotations:
    """The videos of the 87 classes."""
    full = read(files)
    wanted = class_list("mini_ssv2")
    return Annotations([row for row in full.rows if row.labels[0] in set(wanted)], {"label": wanted}, full.notes)


_FILES = {
    "labels": ("something-something-v2-labels.json", "labels.json"),
    "train": ("something-something-v2-train.json", "train.json"),
    "val": ("something-something-v2-validation.json", "validation.json"),
    "test": ("test-answers.csv",),
}
_TEST = frozenset({"test"})
_LAYOUT = "<id>.webm, in one folder or several; also <id>.mp4, or frame folders <id>/"
_PAGE = 'the page of Something-Something V2 among Qualcomm\'s AI data sets (formerly 20BN), archive "labels"'

SETS = {
    "ssv2": PublicSet(
        title="Something-Something V2",
        page=_PAGE,
        files=_FILES,
        read=read,
        classes={"label": 174},
        layout=_LAYOUT,
        splits=("train", "val", "test"),
        optional=_TEST,
        optional_splits=_TEST,
        fps=12,
        rows={"train": (168_913,), "val": (24_777,), "test": (27_157,)},
    ),
    "mini_ssv2": PublicSet(
        title="mini-SSV2 (half the classes of Something-Something V2)",
        page=_PAGE,
        files=_FILES,
        read=read_mini,
        classes={"label": 87},
        layout=_LAYOUT,
        splits=("train", "val", "test"),
        optional=_TEST,
        optional_splits=_TEST,
        fps=12,
    ),
}
