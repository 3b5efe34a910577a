"""EPIC-KITCHENS-55: verbs, nouns, or both, of segments in long videos.

Official files (repository epic-kitchens/epic-kitchens-55-annotations):
``EPIC_train_action_labels.csv``
    uid,participant_id,video_id,narration,start_timestamp,stop_timestamp,start_frame,stop_frame,verb,verb_class,noun,…
    0,P01,P01_01,open door,00:00:00.14,00:00:03.37,8,202,open,2,door,8,['door'],[8]
``EPIC_verb_classes.csv``  verb_id,class_key,verbs (125 classes)
``EPIC_noun_classes.csv``  noun_id,class_key,nouns (352 classes)
Labels are the class keys, in the order of their ids. Segments are the timestamps. Official frames were extracted at
60 frames a second whatever the video's rate (the repository's README, "Video Information"), so that times hold for
frame folders too: frame 202 is 00:00:03.37.

The labels of the test sets S1 and S2 are not public; they are left out. Validation is the division of the labelled
videos by Baradel et al. that [STC] Table VII uses: persons P01–P25 train (23,191 segments), P26–P31 val (5,281); the
same ranges and counts are in facebookresearch/video-long-term-feature-banks (``lib/datasets/epic.py`` and
``configs/epic_verb_r50_baseline.yaml``, commit 8953fe0). Column ``person`` allows for another division.

Videos are ``P01/P01_01.MP4`` or, as the official downloader puts them, ``P01/videos/P01_01.MP4``; frames
``P01/rgb_frames/P01_01/frame_0000000001.jpg``.
"""

from __future__ import annotations

from pathlib import Path

from clipwise.data.sets.common import Annotations, Files, PublicSet, Row, ordered_classes, read_table

_LAST_TRAINING_PERSON = 25


def read(files: Files, label: str) -> Annotations:
    """Segments labelled by ``label``: verb, noun, or both."""
    heads = ("verb", "noun") if label == "both" else (label,)
    names = {head: _classes(files[head][0], head) for head in heads}
    (path,) = files["train"]
    columns = ("participant_id", "video_id", "start_timestamp", "stop_timestamp", *(f"{head}_class" for head in heads))
    rows = []
    taken: dict[tuple[str, float, float], int] = {}
    repeated = 0
    for where, cells in read_table(path, columns):
        person, video = cells["participant_id"], cells["video_id"]
        if not person[1:].isdecimal():
            raise ValueError(f"{where}: participant_id must be such as P01, got {person!r}")
        labels = tuple(_label(cells[f"{head}_class"], names[head], where) for head in heads)
        start, end = (_seconds(cells[key], where) for key in ("start_timestamp", "stop_timestamp"))
        if start >= end:
            raise ValueError(f"{where}: start_timestamp must be before stop_timestamp, got {start} and {end}")
        # A segment may be listed more than once, under several labels; a manifest tells rows by path and times.
        again = taken[video, start, end] = taken.get((video, start, end), -1) + 1
        repeated += again > 0
        split = "train" if int(person[1:]) <= _LAST_TRAINING_PERSON else "val"
        folders = ("rgb|rgb_frames|videos", person)
        rows.append(Row((video,), labels, split, folders, start, round(end + again / 1000, 3), person))
    notes = (f"segments listed more than once, whose ends are set 1 ms apart: {repeated}",) if repeated else ()
    # The one kind of label keeps its name: a network trained on verbs is then tested on verbs, whatever else is listed.
    return Annotations(rows, {head: names[head] for head in heads}, notes)


def _classes(path: Path, head: str) -> tuple[str, ...]:
    indices = {}
    for where, cells in read_table(path, (f"{head}_id", "class_key")):
        if not cells[f"{head}_id"].isdecimal():
            raise ValueError(f"{where}: {head}_id must be a number, got {cells[f'{head}_id']!r}")
        indices[cells["class_key"]] = int(cells[f"{head}_id"])
    return ordered_classes(path, indices)


def _label(index: str, names: tuple[str, ...], where: str) -> str:
    if not index.isdecimal() or int(index) >= len(names):
        raise ValueError(f"{where}: class {index!r} is not among the {len(names)} classes")
    return names[int(index)]


def _seconds(text: str, where: str) -> float:
    """00:23:43.84 → 1423.84, to the millisecond."""
    try:
        hours, minutes, seconds = text.split(":")
        return round(3600 * int(hours) + 60 * int(minutes) + float(seconds), 3)
    except ValueError as error:
        raise ValueError(f"{where}: a timestamp must be such as 00:23:43.84, got {text!r}") from error


SETS = {
    "epic_kitchens55": PublicSet(
        title="EPIC-KITCHENS-55",
        page="the GitHub repository epic-kitchens/epic-kitchens-55-annotations",
        files={
            "train": ("EPIC_train_action_labels.csv",),
            "verb": ("EPIC_verb_classes.csv",),
            "noun": ("EPIC_noun_classes.csv",),
        },
        read=read,
        classes={"verb": 125, "noun": 352},
        layout="P01/P01_01.MP4 or P01/videos/P01_01.MP4; or frame folders P01/rgb_frames/P01_01/ (60 frames a second)",
        splits=("train", "val"),
        heads=("verb", "noun", "both"),
        fps=60,
    ),
}
