"""Public data sets: trees in the official formats, as users have them, become manifests with the official classes."""

import csv
import json
import os
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import clipwise
from clipwise.cli import application
from clipwise.data.manifest import Manifest
from clipwise.data.sets import SETS, MissingVideos, prepare
from clipwise.data.sets.common import class_list

ROOT = Path(__file__).resolve().parents[1]
SMALL = [
    "model.name=tsn_resnet18",
    "model.weights=null",
    "model.num_frames=2",
    "model.options.base_width=16",
    "views.size=32",
    "training.epochs=1",
    "training.batch_size=4",
    "training.reference_batch=4",
    "training.precision=fp32",
    "data.workers=0",
]


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def frame_folder(folder: Path, count: int = 3, name: str = "{:05d}.jpg") -> None:
    from PIL import Image

    folder.mkdir(parents=True)
    for number in range(1, count + 1):
        Image.new("RGB", (8, 8), (number,) * 3).save(folder / name.format(number))


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())


def about_classes(notes: tuple[str, ...]) -> list[str]:
    return [note for note in notes if "class" in note]


def rows(folder: Path) -> dict[str, tuple[str, str | None]]:
    """Label and split of every row, by the video's name without folder and suffix."""
    manifest = Manifest.read(folder)
    manifest.check_files()
    return {Path(item.path).stem: (manifest.names_of(i)[0], item.split) for i, item in enumerate(manifest)}


# Each makes a miniature tree in the official format below `root` (annotation files in `root` or a folder that the
# archive unpacks to) and returns what the manifest must say.


def ssv2(root: Path) -> dict[str, tuple[str, str]]:
    labels = {"Holding something next to something": "1", "Closing something": "0", "Unfolding something": "2"}
    write(root / "labels/something-something-v2-labels.json", json.dumps(labels))
    for split, entries in {
        "train": [("78687", "Holding [something] next to [something]"), ("42", "Closing [something]")],
        "validation": [("7", "Unfolding [something]")],
    }.items():
        lines = [{"id": i, "label": "in words", "template": text, "placeholders": ["a"]} for i, text in entries]
        write(root / f"labels/something-something-v2-{split}.json", json.dumps(lines))
    write(root / "labels/something-something-v2-test.json", '[{"id": "1420"}]')
    touch(root, "20bn-something-something-v2/78687.webm", "20bn-something-something-v2/42.webm", "more/7.mp4")
    return {
        "78687": ("Holding something next to something", "train"),
        "42": ("Closing something", "train"),
        "7": ("Unfolding something", "val"),
    }


def kinetics(root: Path) -> dict[str, tuple[str, str]]:
    header = "label,youtube_id,time_start,time_end,split\n"
    write(root / "train.csv", header + 'yoga,-a_b-c,38,48,train\n"massaging person\'s head",BBB,0,10,train\n')
    write(root / "validate.csv", header + "air drumming,CCC,554,564,val\n")
    touch(root, "train/yoga/-a_b-c_000038_000048.mp4", "train/massaging_persons_head/BBB.mkv")
    touch(root, "val/air drumming/CCC_000554_000564.webm")
    return {
        "-a_b-c_000038_000048": ("yoga", "train"),
        "BBB": ("massaging person's head", "train"),
        "CCC_000554_000564": ("air drumming", "val"),
    }


def ucf101(root: Path) -> dict[str, tuple[str, str]]:
    splits = root / "ucfTrainTestlist"
    write(splits / "classInd.txt", "1 ApplyEyeMakeup\r\n2 HandstandPushups\r\n")
    for number in "123":
        write(splits / f"trainlist0{number}.txt", f"ApplyEyeMakeup/v_ApplyEyeMakeup_g0{number}_c01.avi 1\r\n")
        write(splits / f"testlist0{number}.txt", f"HandstandPushups/v_HandStandPushups_g0{number}_c01.avi\r\n")
        touch(root, f"UCF-101/ApplyEyeMakeup/v_ApplyEyeMakeup_g0{number}_c01.avi")
        touch(root, f"UCF-101/HandstandPushups/v_HandStandPushups_g0{number}_c01.avi")
    return {
        "v_ApplyEyeMakeup_g01_c01": ("ApplyEyeMakeup", "train"),
        "v_HandStandPushups_g01_c01": ("HandstandPushups", "test"),
    }


def twenty_billion(prefix: str) -> Callable[[Path], dict[str, tuple[str, str]]]:
    def make(root: Path) -> dict[str, tuple[str, str]]:
        write(root / f"labels/{prefix}-labels.csv", "Swiping Right\nSwiping Left\n")
        write(root / f"labels/{prefix}-train.csv", "34870;Swiping Left\n12;Swiping Right\n")
        write(root / f"labels/{prefix}-validation.csv", "9;Swiping Left\n")
        write(root / f"labels/{prefix}-test.csv", "1420\n")
        for video in ("34870", "12", "9", "1420"):
            frame_folder(root / f"20bn-{prefix}" / video)
        return {"34870": ("Swiping Left", "train"), "12": ("Swiping Right", "train"), "9": ("Swiping Left", "val")}

    return make


def hmdb51(root: Path) -> dict[str, tuple[str, str]]:
    for number, marks in {1: "120", 2: "012", 3: "201"}.items():
        for label in ("wave", "brush_hair"):
            lines = [f"{label}#{n}_(x)_u_nm.avi {mark} \n" for n, mark in enumerate(marks)]
            write(root / f"testTrainMulti_7030_splits/{label}_test_split{number}.txt", "".join(lines))
    touch(root, *(f"{label}/{label}#{n}_(x)_u_nm.avi" for label in ("wave", "brush_hair") for n in range(3)))
    return {
        f"{label}#{n}_(x)_u_nm": (label, split)
        for label in ("wave", "brush_hair")
        for n, split in enumerate(("train", "test"))
    }


def diving48(root: Path) -> dict[str, tuple[str, str]]:
    write(root / "Diving48_vocab.json", '[["Back", "15som", "05Twis", "FREE"], ["Inward", "Dive", "NoTwis", "PIKE"]]')
    entry = '[{"vid_name": "%s", "label": %d, "start_frame": 0, "end_frame": 48}]'
    write(root / "Diving48_V2_train.json", entry % ("-mmq0PT-u8k_00155", 1))
    write(root / "Diving48_V2_test.json", entry % ("2x00lRzlTVQ_00000", 0))
    touch(root, "rgb/-mmq0PT-u8k_00155.mp4", "rgb/2x00lRzlTVQ_00000.mp4")
    return {
        "-mmq0PT-u8k_00155": ("Inward+Dive+NoTwis+PIKE", "train"),
        "2x00lRzlTVQ_00000": ("Back+15som+05Twis+FREE", "test"),
    }


def egtea(root: Path) -> dict[str, tuple[str, str]]:
    clips = [f"OP0{n}-R01-PastaSalad-1002316-1004005-F02405{n}-F024101" for n in range(1, 7)]
    write(root / "action_annotation/action_idx.txt", "Take bowl 2\nInspect/Read recipe 1\n")
    for number in range(3):
        write(root / f"action_annotation/train_split{number + 1}.txt", f"{clips[2 * number]} 2 1 5 \n")
        write(root / f"action_annotation/test_split{number + 1}.txt", f"{clips[2 * number + 1]} 1 3 7 9\n")
    touch(root, *(f"cropped_clips/{clip[:18]}/{clip}.mp4" for clip in clips))
    return {clips[0]: ("Take bowl", "train"), clips[1]: ("Inspect/Read recipe", "test")}


def moments(root: Path) -> dict[str, tuple[str, str]]:
    write(root / "moments_categories.txt", "clapping,1\nadult+female+speaking,0\n")
    write(root / "trainingSet.csv", "clapping/getty-x_4.mp4,clapping,3,0\nclapping/one.mp4,clapping,4,1\n")
    write(root / "validationSet.csv", "adult+female+speaking/one.mp4,adult+female+speaking,3,0\n")
    touch(root, "training/clapping/getty-x_4.mp4", "training/clapping/one.mp4")
    touch(root, "validation/adult+female+speaking/one.mp4")
    return {"getty-x_4": ("clapping", "train"), "one": ("adult+female+speaking", "val")}


def epic(root: Path, video: Path | None = None) -> None:
    header = (
        "uid,participant_id,video_id,narration,start_timestamp,stop_timestamp,start_frame,stop_frame,verb,verb_class,"
        "noun,noun_class,all_nouns,all_noun_classes\n"
    )
    lines = [
        "0,P01,P01_01,open door,00:00:00.14,00:00:00.37,8,22,open,2,door,1,['door'],[1]",
        "1,P01,P01_01,close door,00:00:00.14,00:00:00.37,8,22,close,0,door,1,\"['door', 'pan']\",\"[1, 0]\"",
        "2,P26,P26_03,take pan,01:02:03.50,01:02:04,223410,223440,take,1,pan,0,['pan'],[0]",
    ]
    write(root / "EPIC_train_action_labels.csv", header + "\n".join(lines) + "\n")
    write(
        root / "EPIC_verb_classes.csv",
        "verb_id,class_key,verbs\n0,close,['close']\n1,take,\"['take', 'grab']\"\n2,open,[]\n",
    )
    write(root / "EPIC_noun_classes.csv", "noun_id,class_key,nouns\n0,pan,['pan']\n1,door,['door']\n2,Nothing,[]\n")
    touch(root, "P26/videos/P26_03.MP4")
    if video is None:
        touch(root, "P01/videos/P01_01.MP4")
    else:
        (root / "P01").mkdir()
        shutil.copy(video, root / "P01/P01_01.MP4")


TREES = {
    "ssv2": ssv2,
    "kinetics400": kinetics,
    "kinetics600": kinetics,
    "kinetics700": kinetics,
    "ucf101": ucf101,
    "ssv1": twenty_billion("something-something-v1"),
    "jester": twenty_billion("jester-v1"),
    "hmdb51": hmdb51,
    "diving48": diving48,
    "egtea": egtea,
    "moments_in_time": moments,
}
ORDERS = {
    "ssv2": ("Closing something", "Holding something next to something", "Unfolding something"),
    "kinetics400": ("air drumming", "massaging person's head", "yoga"),
    "ucf101": ("ApplyEyeMakeup", "HandstandPushups"),
    "ssv1": ("Swiping Right", "Swiping Left"),
    "jester": ("Swiping Right", "Swiping Left"),
    "hmdb51": ("brush_hair", "wave"),
    "diving48": ("Back+15som+05Twis+FREE", "Inward+Dive+NoTwis+PIKE"),
    "egtea": ("Inspect/Read recipe", "Take bowl"),
    "moments_in_time": ("adult+female+speaking", "clapping"),
}


def test_every_set_is_tried_here() -> None:
    assert {*TREES, "mini_ssv2", "mini_kinetics", "epic_kitchens55"} == set(SETS)


@pytest.mark.parametrize("name", TREES)
def test_official_files_become_a_manifest(tmp_path: Path, name: str) -> None:
    tree = TREES[name]
    expected = tree(tmp_path / "set")
    result = prepare(name, tmp_path / "set", tmp_path / "out")
    there = rows(tmp_path / "out")
    if name == "moments_in_time":  # one name in both splits: the folder tells
        manifest = Manifest.read(tmp_path / "out")
        assert [(i.path.split("/")[-3], manifest.names_of(n)[0]) for n, i in enumerate(manifest)] == [
            ("training", "clapping"),
            ("training", "clapping"),
            ("validation", "adult+female+speaking"),
        ]
    assert there == expected
    assert not result.missing
    assert sum(result.splits.values()) == len(Manifest.read(tmp_path / "out"))
    assert set(result.splits) <= set(SETS[name].splits)
    if name in ORDERS:
        assert Manifest.read(tmp_path / "out").classes == ORDERS[name]
    assert any("classes in the annotation files" in note for note in result.notes)  # a miniature is not the real set
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["classes.txt", "manifest.csv"]
    if name in ("ssv1", "jester"):
        assert {item.fps for item in Manifest.read(tmp_path / "out")} == {12}
        prepare(name, tmp_path / "set", tmp_path / "out", fps=24, overwrite=True)
        assert {item.fps for item in Manifest.read(tmp_path / "out")} == {24}


@pytest.mark.parametrize("name", [name for name, public in SETS.items() if public.numbered_splits])
def test_each_official_division_is_its_own(tmp_path: Path, name: str) -> None:
    TREES[name](tmp_path / "set")
    divisions = []
    for split in (1, 2, 3):
        prepare(name, tmp_path / "set", tmp_path / f"{split}", split=split)
        divisions.append(rows(tmp_path / f"{split}"))
    assert len({tuple(sorted(division.items())) for division in divisions}) == 3
    with pytest.raises(ValueError, match=f"--split 4: {name} has splits 1 to 3"):
        prepare(name, tmp_path / "set", tmp_path / "out", split=4)


# --- against the official lists --------------------------------------------------------------------------------------


def names_of(shared: Path, file: str) -> tuple[str, ...]:
    return tuple((shared / "reference/labels" / file).read_text().splitlines())


def test_ssv2_has_the_official_classes(shared: Path, tmp_path: Path) -> None:
    names = names_of(shared, "sthv2.txt")
    shutil.copy(shared / "reference/annotations/something-something-v2-labels.json", tmp_path / "labels.json")
    entries = [{"id": str(n), "template": re.sub("([Ss]omething)", r"[\1]", name)} for n, name in enumerate(names)]
    write(tmp_path / "train.json", json.dumps(entries[::-1]))
    write(tmp_path / "validation.json", "[]")
    touch(tmp_path, *(f"{n}.webm" for n in range(174)))
    result = prepare("ssv2", tmp_path, tmp_path / "out")
    manifest = Manifest.read(tmp_path / "out")
    assert manifest.classes == names
    assert manifest.labels.tolist() == list(range(173, -1, -1))
    assert not about_classes(result.notes)
    prepare("mini_ssv2", tmp_path, tmp_path / "mini")
    mini = Manifest.read(tmp_path / "mini")
    assert mini.classes == tuple(name for name in names_of(shared, "mini_ssv2.txt") if name)
    assert {item.name for item in mini} == {item.name for item in manifest if names[item.label or 0] in mini.classes}


def test_kinetics_has_the_official_classes(shared: Path, tmp_path: Path) -> None:
    names = names_of(shared, "kinetics400.txt")
    order = np.random.default_rng(0).permutation(400)
    with (tmp_path / "kinetics_train.csv").open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["label", "youtube_id", "time_start", "time_end", "split", "is_cc"])
        lines.writerows([names[n], f"id{n}", "1", "11", "train", "0"] for n in order)
    (tmp_path / "kinetics_val.csv").write_text("label,youtube_id,time_start,time_end,split\n")
    touch(tmp_path, *(f"{names[n].replace(' ', '_')}/id{n}_000001_000011.mp4" for n in range(400)))
    assert not prepare("kinetics400", tmp_path, tmp_path / "out").notes
    manifest = Manifest.read(tmp_path / "out")
    assert manifest.classes == names
    assert manifest.labels.tolist() == order.tolist()
    prepare("mini_kinetics", tmp_path, tmp_path / "mini")
    assert len(Manifest.read(tmp_path / "mini")) == 200


def test_the_official_excerpt_of_kinetics_is_read(shared: Path, tmp_path: Path) -> None:
    text = (shared / "reference/annotations/kinetics600_val.head.csv").read_text()
    write(tmp_path / "train.csv", text)
    write(tmp_path / "validate.csv", text.splitlines()[0] + "\n")
    with pytest.raises(MissingVideos) as caught:
        prepare("kinetics600", tmp_path, tmp_path / "out")
    assert len(caught.value.names) == len(text.splitlines()) - 1
    assert caught.value.names[0] == "yq_M1PMw2hY_000038_000048"


def test_ucf101_has_the_official_lists(shared: Path, tmp_path: Path) -> None:
    for path in (shared / "reference/annotations").glob("ucf101_*.txt"):
        shutil.copy(path, tmp_path / path.name.removeprefix("ucf101_"))
    videos = {line.split()[0] for path in tmp_path.glob("t*list01.txt") for line in path.read_text().splitlines()}
    assert len(videos) == 13320
    for folder in {os.path.dirname(video) for video in videos}:
        (tmp_path / folder).mkdir()
    for video in videos:
        os.close(os.open(tmp_path / video, os.O_CREAT))
    progress: list[tuple[int, int]] = []
    for split, (train, test) in {1: (9537, 3783), 2: (9586, 3734), 3: (9624, 3696)}.items():
        result = prepare(
            "ucf101", tmp_path, tmp_path / "out", split=split, overwrite=True, progress=lambda *x: progress.append(x)
        )
        assert (result.splits, result.notes) == ({"train": train, "test": test}, ())
    assert progress[12] == (13000, 13320)
    manifest = Manifest.read(tmp_path / "out")
    assert manifest.classes == names_of(shared, "ucf101.txt")
    assert all(Path(item.path).parent.name == manifest.classes[item.label or 0] for item in manifest)


def test_epic_has_the_official_classes(shared: Path, tmp_path: Path) -> None:
    for path in (shared / "reference/annotations").glob("EPIC_*.csv"):
        shutil.copy(path, tmp_path / path.name.replace(".head", ""))
    touch(tmp_path, "P01_01.MP4")
    result = prepare("epic_kitchens55", tmp_path, tmp_path / "out", label="both", allow_missing=True)
    assert not [note for note in result.notes if "classes in the annotation files" in note]
    verbs, nouns = Manifest.read(tmp_path / "out").heads
    assert (len(verbs.classes), verbs.classes[:4]) == (125, ("take", "put", "open", "close"))
    assert (len(nouns.classes), nouns.classes[:3]) == (352, ("Nothing", "pan", "pan:dust"))


@pytest.mark.parametrize(
    ("name", "file", "count"),
    [
        ("ssv1", "sthv1.txt", 174),
        ("jester", "jester.txt", 27),
        ("hmdb51", "hmdb51.txt", 51),
        ("diving48", "diving48.txt", 48),
        ("moments_in_time", "mit.txt", 339),
    ],
)
def test_class_orders_are_those_published(shared: Path, tmp_path: Path, name: str, file: str, count: int) -> None:
    names = names_of(shared, file)
    assert len(names) == count == SETS[name].classes["label"]
    prefix = {"ssv1": "something-something-v1", "jester": "jester-v1"}.get(name)
    if prefix:
        write(tmp_path / f"{prefix}-labels.csv", "\n".join(names))
        write(tmp_path / f"{prefix}-train.csv", "\n".join(f"{n};{label}" for n, label in enumerate(names)))
        write(tmp_path / f"{prefix}-validation.csv", "")
    elif name == "hmdb51":
        for n, label in enumerate(names):
            write(tmp_path / f"{label}_test_split1.txt", f"{n}.avi 1\n")
    elif name == "diving48":
        write(tmp_path / "Diving48_vocab.json", json.dumps([label.split("+") for label in names]))
        entries = [{"vid_name": f"{n}", "label": n, "start_frame": 0, "end_frame": 9} for n in range(count)]
        write(tmp_path / "Diving48_V2_train.json", json.dumps(entries))
        write(tmp_path / "Diving48_V2_test.json", "[]")
    else:
        write(tmp_path / "moments_categories.txt", "\n".join(f"{label},{n}" for n, label in enumerate(names)))
        lines = [f"{label}/{n}.mp4,{label},3,0" for n, label in enumerate(names)]
        write(tmp_path / "trainingSet.csv", "\n".join(lines))
        write(tmp_path / "validationSet.csv", "")
    touch(tmp_path, *(f"videos/{n}.mp4" for n in range(count)))
    assert not about_classes(prepare(name, tmp_path, tmp_path / "out").notes)
    manifest = Manifest.read(tmp_path / "out")
    assert manifest.classes == names
    assert {int(Path(item.path).stem): item.label for item in manifest} == {n: n for n in range(count)}


def test_the_mini_lists_name_classes_of_the_full_sets(shared: Path) -> None:
    for mini, full, count in (("mini_ssv2", "sthv2.txt", 87), ("mini_kinetics", "kinetics400.txt", 200)):
        names = class_list(mini)
        assert len(names) == len(set(names)) == count == SETS[mini].classes["label"]
        assert set(names) <= set(names_of(shared, full))


# --- layouts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "file",
    [
        "air drumming/CCC_000554_000564.mp4",
        "air_drumming/CCC_000554_000564.mp4",
        "val/air_drumming/CCC.mp4",
        "val_256/air_drumming/CCC_000554_000564.mkv",
        "CCC.webm",
        "CCC_000554_000564.MP4",
        "frames/air_drumming/CCC_000554_000564",
    ],
)
def test_kinetics_is_found_however_it_is_laid_out(tmp_path: Path, file: str) -> None:
    header = "label,youtube_id,time_start,time_end,split\n"
    write(tmp_path / "a/train.csv", header)
    write(tmp_path / "a/validate.csv", header + "air drumming,CCC,554,564.0,val\n")
    if file.startswith("frames"):
        frame_folder(tmp_path / "v" / file, name="img_{:05d}.jpg")
    else:
        touch(tmp_path / "v", file)
    touch(tmp_path / "v", ".hidden/CCC.mp4", "CCC.txt", "air_drumming/.CCC.mp4")
    prepare("kinetics400", tmp_path / "v", tmp_path / "out", annotations=tmp_path / "a")
    (item,) = Manifest.read(tmp_path / "out")
    assert item.path == str(tmp_path / "v" / file)


def test_of_several_files_the_class_and_the_split_tell(tmp_path: Path) -> None:
    header = "label,youtube_id,time_start,time_end,split\n"
    write(tmp_path / "train.csv", header + "yoga,CCC,1,11,train\n")
    write(tmp_path / "validate.csv", header + "air drumming,CCC,1,11,val\n")
    touch(tmp_path, "train/yoga/CCC.mp4", "val/yoga/CCC.mp4", "train/air_drumming/CCC.mp4", "val/air_drumming/CCC.mp4")
    frame_folder(tmp_path / "frames/train/yoga/CCC")
    prepare("kinetics400", tmp_path, tmp_path / "out")
    assert [Path(item.path).relative_to(tmp_path).as_posix() for item in Manifest.read(tmp_path / "out")] == [
        "train/yoga/CCC.mp4",
        "val/air_drumming/CCC.mp4",
    ]
    touch(tmp_path, "train_256/yoga/CCC.mp4")
    with pytest.raises(ValueError, match=r"several files could be 'CCC_000001_000011' \(train, yoga\): .*train_256"):
        prepare("kinetics400", tmp_path, tmp_path / "out", overwrite=True)


@pytest.mark.parametrize("order", ["first", "last"])
def test_a_frame_folder_may_hold_other_files_in_whatever_order(
    tmp_path: Path, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    TREES["jester"](tmp_path)
    folder = tmp_path / "20bn-jester-v1/34870"
    touch(folder, "Thumbs.db", "n_frames", "desktop.ini", ".DS_Store", "flow_x_00001.jpg", "cover.jpg")
    plain = os.scandir

    class Ordered:
        """The entries of a folder, those that are no frames first or last: a file system may give either."""

        def __init__(self, path: str) -> None:
            with plain(path) as entries:
                self.entries = sorted(entries, key=lambda entry: (entry.name[:1] == "0") == (order == "first"))

        def __enter__(self) -> list[os.DirEntry[str]]:
            return self.entries

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr("clipwise.data.sets.common.os.scandir", Ordered)
    result = prepare("jester", tmp_path, tmp_path / "out")
    assert not result.missing
    monkeypatch.undo()
    with Manifest.read(tmp_path / "out").open(0) as frames:
        assert frames.num_frames == 3


def test_a_folder_that_is_not_taken_for_its_frames_is_named_with_the_reason(tmp_path: Path) -> None:
    TREES["jester"](tmp_path)
    touch(tmp_path / "20bn-jester-v1", "34870/@eaDir/00001.jpg", "12/preview.mp4")
    for picture in (tmp_path / "20bn-jester-v1/9").iterdir():
        picture.rename(picture.with_suffix(".png"))
    with pytest.raises(MissingVideos) as caught:
        prepare("jester", tmp_path, tmp_path / "out")
    assert re.findall(r"\n  (\w+): the folder (\S+)/ is not taken for its frames, since (.*)", str(caught.value)) == [
        ("34870", "20bn-jester-v1/34870", "it holds a folder, @eaDir/"),
        ("12", "20bn-jester-v1/12", "it holds a video, preview.mp4"),
        ("9", "20bn-jester-v1/9", "no numbered JPEG frames lie in it (img_00001.jpg, 000001.jpg …)"),
    ]
    assert (tmp_path / "out/missing.txt").read_text().split() == ["34870", "12", "9"]


def test_kinetics_replacements_and_links_as_its_host_arranges_them(tmp_path: Path) -> None:
    header = "label,youtube_id,time_start,time_end,split\n"
    write(tmp_path / "annotations/train.csv", header + "yoga,AAA,1,11,train\nyoga,BBB,1,11,train\n")
    write(tmp_path / "annotations/val.csv", header)
    broken, whole = "AAA_000001_000011.mp4", "BBB_000001_000011.mp4"
    replacement = f"replacement/replacement_for_corrupted_k400/{broken}"
    touch(tmp_path, f"train/{broken}", f"train/{whole}", replacement)
    prepare("kinetics400", tmp_path, tmp_path / "out")
    assert [Path(item.path).relative_to(tmp_path).as_posix() for item in Manifest.read(tmp_path / "out")] == [
        replacement,
        f"train/{whole}",
    ]
    for link in ("videos/train/yoga", "links/train/yoga"):
        (tmp_path / link).mkdir(parents=True)
        (tmp_path / link / whole).symlink_to(tmp_path / "train" / whole)
    prepare("kinetics400", tmp_path, tmp_path / "out", overwrite=True)
    (tmp_path / "links/train/yoga" / whole).unlink()
    (tmp_path / "links/train/yoga" / whole).symlink_to(tmp_path / "gone")
    prepare("kinetics400", tmp_path, tmp_path / "out", overwrite=True)
    (tmp_path / "links/train/yoga" / whole).unlink()
    touch(tmp_path, f"links/train/yoga/{whole}")
    with pytest.raises(ValueError, match="several files could be 'BBB_000001_000011'"):
        prepare("kinetics400", tmp_path, tmp_path / "out", overwrite=True)


def test_one_file_for_two_rows_is_said(tmp_path: Path) -> None:
    header = "label,youtube_id,time_start,time_end,split\n"
    write(tmp_path / "train.csv", header + "yoga,CCC,1,11,train\nyoga,CCC,30,40,train\n")
    write(tmp_path / "validate.csv", header)
    touch(tmp_path, "CCC.mp4")
    result = prepare("kinetics400", tmp_path, tmp_path / "out")
    assert result.splits == {"train": 1}
    assert (
        "rows left out because an earlier row has their video: 1 (CCC_000030_000040 (yoga, after yoga))" in result.notes
    )


def test_a_labelled_test_split_is_kept_where_its_videos_are(tmp_path: Path) -> None:
    kinetics(tmp_path / "set")
    header = "label,youtube_id,time_start,time_end,split\n"
    write(tmp_path / "set/test.csv", header + "yoga,DDD,1,11,test\nyoga,EEE,1,11,test\n")
    result = prepare("kinetics600", tmp_path / "set", tmp_path / "a")
    assert "test" not in result.splits
    assert "none of the 2 videos of split test is there: it is left out" in result.notes
    touch(tmp_path / "set", "DDD.mp4")
    result = prepare("kinetics600", tmp_path / "set", tmp_path / "b", allow_missing=True)
    assert (result.splits["test"], result.missing) == (1, ("EEE_000001_000011",))
    write(tmp_path / "set/test.csv", "youtube_id,time_start,time_end,split\nDDD,1,11,test\n")
    assert (
        "test.csv: videos without labels left out: 1" in prepare("kinetics400", tmp_path / "set", tmp_path / "c").notes
    )


@pytest.mark.parametrize("name", ["ssv2", "mini_ssv2", "jester"])
def test_labels_of_a_test_split_are_read_where_they_are(tmp_path: Path, name: str) -> None:
    label = "Swiping Right"
    if name == "jester":
        TREES["jester"](tmp_path)
    else:
        ssv2(tmp_path)
        label = class_list("mini_ssv2")[0]
        classes = {template: str(number) for number, template in enumerate(class_list("mini_ssv2"))}
        write(tmp_path / "labels/something-something-v2-labels.json", json.dumps(classes))
        for split in ("train", "validation"):
            write(tmp_path / f"labels/something-something-v2-{split}.json", "[]")
        write(tmp_path / "labels/something-something-v2-train.json", json.dumps([{"id": "42", "template": label}]))
        touch(tmp_path, "20bn-something-something-v2/1420.webm")
    answers = tmp_path / "labels/test-answers.csv"
    write(answers, f"1420;{label}\n")
    result = prepare(name, tmp_path, tmp_path / "out")
    assert result.splits["test"] == 1
    assert rows(tmp_path / "out")["1420"] == (label, "test")
    note = "unverified: the form of test-answers.csv, which gives split test its labels, was not seen"
    assert (note in result.notes) == (not SETS[name].unverified)  # of Jester as a whole the command says it
    for text, message in ((f"1420,{label}", "line 1: expected `34870;"), ("1420;Eating", "'Eating' is not one of")):
        write(answers, text)
        with pytest.raises(ValueError, match=re.escape(message)) as caught:
            prepare(name, tmp_path, tmp_path / "out", overwrite=True)
        assert str(answers) in str(caught.value)
    write(answers, f"7777;{label}\n")  # whoever has none of its videos does without the split
    assert "test" not in prepare(name, tmp_path, tmp_path / "out", overwrite=True).splits


def test_kinetics600_takes_the_complete_lists(tmp_path: Path) -> None:
    """The CVD Foundation's train.csv and val.csv lack videos that its .txt have."""
    kinetics(tmp_path)
    whole = (tmp_path / "train.csv").read_text()
    write(tmp_path / "train.csv", "".join(whole.splitlines(keepends=True)[:2]))
    write(tmp_path / "train.txt", whole)
    assert prepare("kinetics600", tmp_path, tmp_path / "out").splits == {"train": 2, "val": 1}
    assert prepare("kinetics400", tmp_path, tmp_path / "other").splits == {"train": 1, "val": 1}
    write(tmp_path / "train.txt", "yoga/-a_b-c.mp4 0\n")
    with pytest.raises(ValueError, match=r"train\.txt: no column youtube_id.*move it away to have train\.csv read"):
        prepare("kinetics600", tmp_path, tmp_path / "out", overwrite=True)


def test_lists_that_are_not_as_long_as_the_official_ones_are_said(tmp_path: Path) -> None:
    ucf101(tmp_path)
    result = prepare("ucf101", tmp_path, tmp_path / "out", split=2)
    assert result.splits == {"train": 1, "test": 1}  # no error: a list may have lost videos
    assert "1 video of split train in the annotation files, but UCF-101 has 9586" in result.notes
    assert "1 video of split test in the annotation files, but UCF-101 has 3734" in result.notes
    ssv2(tmp_path / "ssv2")
    notes = [note for note in prepare("ssv2", tmp_path / "ssv2", tmp_path / "b").notes if " of split " in note]
    assert [note.rsplit(maxsplit=1)[1] for note in notes] == ["168913", "24777"]  # no test split was given


def test_official_numbers_are_those_published(shared: Path) -> None:
    """The papers give totals; HMDB's divisions take 70 and 30 of each class; UCF-101's lists are tried above."""
    papers = "".join(path.read_text() for path in (shared / "papers").glob("*.txt"))
    for name, others in (("ssv2", 0), ("ssv1", 10_960), ("jester", 0)):
        total = sum(numbers[0] for numbers in SETS[name].rows.values()) + others  # the test split of V1 has no labels
        assert f"{total:,}" in papers
    for public in SETS.values():
        assert all(len(numbers) == max(1, public.numbered_splits) for numbers in public.rows.values())
        assert set(public.rows) <= set(public.splits)


@pytest.mark.parametrize(
    ("name", "one", "other", "third"),
    [
        ("ucf101", "A/v_A_g08_c01.avi", "A/v_A_g08_c02.avi", "A/v_A_g09_c01.avi"),
        (
            "hmdb51",
            "wave/50_FIRST_DATES_wave_f_cm_np1_fr_med_0.avi",
            "wave/50_FIRST_DATES_wave_u_nm_np2_le_goo_17.avi",
            "wave/April_09_wave_u_nm_np1_ba_goo_0.avi",
        ),
        ("diving48", "rgb/-mmq0PT-u8k_00155.mp4", "rgb/-mmq0PT-u8k_00006", "rgb/2x00lRzlTVQ_00000.mp4"),
    ],
)
def test_clips_of_one_recording_are_told_by_their_names(name: str, one: str, other: str, third: str) -> None:
    found = [re.search(SETS[name].group_by, path) for path in (one, other, third)]
    keys = [match[1] for match in found if match]
    assert len(keys) == 3
    assert keys[0] == keys[1] != keys[2]


def test_folders_linked_in_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    ucf101(tmp_path / "set")
    (tmp_path / "set/UCF-101").rename(tmp_path / "elsewhere")
    (tmp_path / "set/UCF-101").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/back").symlink_to(tmp_path / "elsewhere")
    assert prepare("ucf101", tmp_path / "set", tmp_path / "out").splits == {"train": 1, "test": 1}


def test_videos_in_the_output_folder_are_written_relative_to_it(tmp_path: Path) -> None:
    ucf101(tmp_path / "a/set")
    prepare("ucf101", tmp_path / "a/set", tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    Manifest.read(tmp_path / "b").check_files()


# --- EPIC-KITCHENS ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("label", "index"), [("verb", 0), ("noun", 1)])
def test_epic_segments_by_one_kind_of_label(tmp_path: Path, label: str, index: int) -> None:
    epic(tmp_path / "set")
    result = prepare("epic_kitchens55", tmp_path / "set", tmp_path / "out", label=label)
    manifest = Manifest.read(tmp_path / "out")
    assert manifest.classes == (("close", "take", "open"), ("pan", "door", "Nothing"))[index]
    assert [head.name for head in manifest.heads] == [label]
    without = ("1 of 3 classes has no training videos: take", "2 of 3 classes have no training videos: pan, Nothing")
    assert f"{label}: {without[index]}" in result.notes
    assert [manifest.names_of(i)[0] for i in range(3)] == (["open", "close", "take"], ["door", "door", "pan"])[index]
    # Two labels of one segment are both kept.
    assert [(item.start, item.end) for item in manifest] == [(0.14, 0.37), (0.14, 0.371), (3723.5, 3724.0)]
    assert [item.split for item in manifest] == ["train", "train", "val"]
    assert "segments listed more than once, whose ends are set 1 ms apart: 1" in result.notes
    with (tmp_path / "out/manifest.csv").open() as file:
        assert [line["person"] for line in csv.DictReader(file)] == ["P01", "P01", "P26"]


def test_epic_by_both_kinds(tmp_path: Path) -> None:
    epic(tmp_path / "set")
    prepare("epic_kitchens55", tmp_path / "set", tmp_path / "out", label="both")
    manifest = Manifest.read(tmp_path / "out")
    assert [(head.name, head.classes) for head in manifest.heads] == [
        ("verb", ("close", "take", "open")),
        ("noun", ("pan", "door", "Nothing")),
    ]
    assert manifest.labels.tolist() == [[2, 1], [0, 1], [1, 0]]
    prepare("epic_kitchens55", tmp_path / "set", tmp_path / "out", label="verb", overwrite=True)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["classes.verb.txt", "manifest.csv"]
    with pytest.raises(ValueError, match="choose --label verb, noun or both"):
        prepare("epic_kitchens55", tmp_path / "set", tmp_path / "b")


def test_networks_of_one_and_of_both_kinds_are_tested_on_each_others_manifests(tmp_path: Path, videos: Path) -> None:
    sources = sorted(videos.rglob("*.mp4"))[:4]
    epic(tmp_path / "set", sources[0])
    shutil.copy(sources[1], tmp_path / "set/P26/videos/P26_03.MP4")
    listing = tmp_path / "set/EPIC_train_action_labels.csv"
    listing.write_text(listing.read_text().replace("01:02:03.50,01:02:04", "00:00:00.10,00:00:00.40"))
    for label in ("verb", "both"):
        prepare("epic_kitchens55", tmp_path / "set", tmp_path / label, label=label)
    small = [*SMALL, "training.batch_size=2", "training.reference_batch=2"]
    clipwise.train(tmp_path / "verb", tmp_path / "run", overrides=small)
    network = clipwise.load(tmp_path / "run")
    assert network.classes == ("close", "take", "open")
    for label in ("verb", "both"):
        result = clipwise.evaluate(tmp_path / "run", tmp_path / label, split="val")
        assert (result.classes, result.manifest.labels.tolist()) == (network.classes, [1])


def test_epic_segments_open_at_their_times(tmp_path: Path, videos: Path) -> None:
    source = next(videos.rglob("*.mp4"))
    epic(tmp_path / "set", source)
    prepare("epic_kitchens55", tmp_path / "set", tmp_path / "video", label="verb")
    with clipwise.data.decode.open_frames(source) as whole, Manifest.read(tmp_path / "video").open(0) as segment:
        assert 0 < segment.num_frames < whole.num_frames

    # Official frames are 60 a second, the first called 1: the segment is official frames 8 to 22.
    frames = tmp_path / "frames"
    shutil.copytree(tmp_path / "set", frames, ignore=lambda *_: ["P01", "P26"])
    frame_folder(frames / "rgb/P01/P01_01", 40, "frame_{:010d}.jpg")
    frame_folder(frames / "flow/P01/P01_01/u", 20, "frame_{:010d}.jpg")
    prepare("epic_kitchens55", frames, tmp_path / "out", label="verb", allow_missing=True)
    manifest = Manifest.read(tmp_path / "out")
    assert [item.fps for item in manifest] == [60, 60]
    with manifest.open(0) as segment:
        brightness = segment.read(range(segment.num_frames))[:, 0, 0, 0]
    assert abs(int(brightness[0]) - 9) <= 1
    assert abs(int(brightness[-1]) - 22) <= 1


# --- what goes wrong -------------------------------------------------------------------------------------------------


def test_missing_videos_are_listed_and_nothing_else_is_written(tmp_path: Path) -> None:
    header = "label,youtube_id,time_start,time_end,split\n"
    lines = "".join(f"yoga,id{n},1,11,train\n" for n in range(9))
    write(tmp_path / "set/train.csv", header + lines)
    write(tmp_path / "set/validate.csv", header)
    touch(tmp_path / "set", "yoga/id0.mp4", "yoga/id1.mp4")
    arguments = ["data", "prepare", "kinetics400", "--root", f"{tmp_path}/set", "--output", f"{tmp_path}/out"]
    call = CliRunner().invoke(application(), arguments)
    assert isinstance(call.exception, MissingVideos)
    message = str(call.exception)
    assert "7 of 9 videos of Kinetics-400 are missing" in message
    assert re.findall(r"id\d", message) == ["id2", "id3", "id4", "id5", "id6"]
    assert "and 2 more" in message
    assert "--allow-missing" in message
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["missing.txt"]
    names = [f"id{n}_000001_000011" for n in range(2, 9)]
    assert (tmp_path / "out/missing.txt").read_text().splitlines() == names

    call = CliRunner().invoke(application(), [*arguments, "--allow-missing"])
    assert call.exit_code == 0, call.output
    assert "7 videos missing, left out" in call.output
    assert "2 train" in call.output
    assert len(Manifest.read(tmp_path / "out")) == 2

    touch(tmp_path / "set", *(f"yoga/{name}.mp4" for name in names))
    assert prepare("kinetics400", tmp_path / "set", tmp_path / "out", overwrite=True).splits == {"train": 9}
    assert not (tmp_path / "out/missing.txt").exists()


def test_no_training_is_proposed_without_videos_for_it(tmp_path: Path) -> None:
    ucf101(tmp_path / "set")
    shutil.rmtree(tmp_path / "set/UCF-101/ApplyEyeMakeup")
    arguments = ["data", "prepare", "ucf101", "--root", f"{tmp_path}/set", "--output", f"{tmp_path}/out"]
    call = CliRunner().invoke(application(), [*arguments, "--allow-missing"])
    assert call.exit_code == 0, call.output
    assert "1 test; none to train on" in call.output
    assert "clipwise train" not in call.output


def test_where_no_video_is_found_the_layout_is_told_and_what_is_there(tmp_path: Path) -> None:
    ucf101(tmp_path / "set")
    (tmp_path / "other").mkdir()
    layout = r"2 of 2 videos.*\n.*\n.*\nexpected below it: <class>/v_<class>_g01_c01.*\n"
    for count, there in (
        (0, "no video lies below it$"),
        (1, "1 video lies below it, such as a/101.mp4$"),
        (32, r"32 videos lie below it, such as a/\d+.mp4$"),
    ):
        touch(tmp_path / "other", *(f"a/{101 + n}.mp4" for n in range(count)))
        with pytest.raises(MissingVideos, match=layout + there):
            prepare("ucf101", tmp_path / "other", tmp_path / "out", annotations=tmp_path / "set", allow_missing=True)
        assert not (tmp_path / "out/manifest.csv").exists()


def test_classes_without_training_videos_are_counted_for_each_head(tmp_path: Path) -> None:
    kinetics(tmp_path / "set")
    result = prepare("mini_kinetics", tmp_path / "set", tmp_path / "mini", allow_missing=True)
    (note,) = [note for note in result.notes if "training" in note]
    trained = {"yoga", "massaging person's head"} & set(class_list("mini_kinetics"))
    first = [name for name in class_list("mini_kinetics") if name not in trained][:3]
    assert note == f"{200 - len(trained)} of 200 classes have no training videos, such as {', '.join(first)}"
    epic(tmp_path / "epic")
    assert [
        note
        for note in prepare("epic_kitchens55", tmp_path / "epic", tmp_path / "both", label="both").notes
        if "training" in note
    ] == [
        "verb: 1 of 3 classes has no training videos: take",
        "noun: 2 of 3 classes have no training videos: pan, Nothing",
    ]


def test_missing_annotation_files_are_all_named_with_where_they_are_had(tmp_path: Path) -> None:
    epic(tmp_path / "set")
    (tmp_path / "set/EPIC_noun_classes.csv").unlink()
    (tmp_path / "set/EPIC_train_action_labels.csv").unlink()
    with pytest.raises(ValueError, match="official annotation files of EPIC-KITCHENS-55") as caught:
        prepare("epic_kitchens55", tmp_path / "set", tmp_path / "out", label="verb")
    assert "EPIC_train_action_labels.csv\n  EPIC_noun_classes.csv\nThey come from the GitHub" in str(caught.value)
    assert not (tmp_path / "out").exists()


DAMAGE = {
    "ssv2": [
        ("labels/something-something-v2-labels.json", '{"Closing something": "1"}', "indices must be 0, 1"),
        ("labels/something-something-v2-labels.json", '{"Closing something": "x"}', "must be a number"),
        ("labels/something-something-v2-labels.json", "[]", "expected a JSON dict, got list"),
        ("labels/something-something-v2-train.json", '[{"id": "1"}]', "entry 0: needs `id` and `template`"),
        ("labels/something-something-v2-train.json", '[{"id": "1", "template": "Eating"}]', "'Eating' is not one of"),
        ("labels/something-something-v2-train.json", '[{"id"', "not a JSON file"),
        ("labels/something-something-v2-train.json", "[]\udcff", "not UTF-8"),
    ],
    "kinetics400": [
        ("train.csv", "label,id\nyoga,1\n", "no column youtube_id, time_start, time_end; there is: label, id"),
        ("train.csv", "label,youtube_id,time_start,time_end\nyoga,a,1\n", "line 2: not as many fields"),
        ("train.csv", "label,youtube_id,time_start,time_end\nyoga,a,x,2\n", "line 2: time_start and time_end must be"),
        ("train.csv", "label,youtube_id,time_start,time_end\n,a,1,2\n", "line 2: no label"),
        ("train.csv", 'label,youtube_id,time_start,time_end\n"yoga,a,1,2\n', "not a CSV file"),
    ],
    "ucf101": [
        ("ucfTrainTestlist/classInd.txt", "ApplyEyeMakeup\n", "line 1: expected `1 ApplyEyeMakeup`"),
        ("ucfTrainTestlist/trainlist01.txt", "ApplyEyeMakeup/v_a.avi 2\n", "index 2 of ApplyEyeMakeup, which is 1"),
        ("ucfTrainTestlist/trainlist01.txt", "Dancing/v_a.avi 1\n", "'Dancing' is not one of the 2 classes"),
    ],
    "jester": [
        ("labels/jester-v1-train.csv", "34870,Swiping Left\n", "line 1: expected `34870;"),
        ("labels/jester-v1-labels.csv", "Swiping Left\nSwiping Left\n", "lists a class twice"),
    ],
    "hmdb51": [("testTrainMulti_7030_splits/wave_test_split1.txt", "a.avi 5\n", "a video and 0, 1 or 2")],
    "diving48": [
        ("Diving48_vocab.json", '["Back"]', "expected lists such as"),
        ("Diving48_V2_test.json", '[{"vid_name": "a", "label": 2}]', "label must be 0 to 1"),
    ],
    "egtea": [("action_annotation/train_split1.txt", "OP01-R01-PastaSalad-1 3 1\n", "an action from 1 to 2")],
    "moments_in_time": [
        ("moments_categories.txt", "clapping\n", "expected `clapping,0`"),
        ("trainingSet.csv", "x/a.mp4,running,1,0\n", "'running' is not one of the 2 classes"),
    ],
}


@pytest.mark.parametrize(
    ("name", "file", "text", "message"), [(name, *case) for name, cases in DAMAGE.items() for case in cases]
)
def test_damaged_annotation_files_are_named(tmp_path: Path, name: str, file: str, text: str, message: str) -> None:
    TREES[name](tmp_path / "set")
    (tmp_path / "set" / file).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        prepare(name, tmp_path / "set", tmp_path / "out")
    assert str(tmp_path / "set" / file) in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("column", "text", "message"),
    [
        ("start_timestamp", "0:14", "a timestamp must be such as 00:23:43.84, got '0:14'"),
        ("start_timestamp", "00:00:09", "start_timestamp must be before stop_timestamp"),
        ("verb_class", "3", "class '3' is not among the 3 classes"),
        ("participant_id", "Ann", "participant_id must be such as P01"),
    ],
)
def test_damaged_epic_segments_are_named(tmp_path: Path, column: str, text: str, message: str) -> None:
    epic(tmp_path / "set")
    path = tmp_path / "set/EPIC_train_action_labels.csv"
    lines = list(csv.DictReader(path.open()))
    lines[1][column] = text
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, lines[0])
        table.writeheader()
        table.writerows(lines)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        prepare("epic_kitchens55", tmp_path / "set", tmp_path / "out", label="both")
    assert f"{path}, line 3" in str(caught.value)


def test_wrong_names_and_options_are_told_what_there_is(tmp_path: Path) -> None:
    ssv2(tmp_path / "set")
    for name, expected in (
        ("SSV-2", "ssv2"),
        ("kinetics-400", "kinetics400"),
        ("ucf", "ucf101"),
        ("epic", r"did you mean epic_kitchens55\?"),
        ("kinetics", "did you mean kinetics400 or kinetics600 or kinetics700 or mini_kinetics"),
        ("", "there is: ssv2, "),
    ):
        with pytest.raises(ValueError, match=f"no public data set '{name}'.*{expected}"):
            prepare(name, tmp_path, tmp_path / "out")
    with pytest.raises(ValueError, match="ssv2 has one official division only"):
        prepare("ssv2", tmp_path / "set", tmp_path / "out", split=2)
    with pytest.raises(ValueError, match="ssv2 has one kind of label only"):
        prepare("ssv2", tmp_path / "set", tmp_path / "out", label="verb")
    with pytest.raises(ValueError, match="no such folder; --root is"):
        prepare("ssv2", tmp_path / "videos", tmp_path / "out")
    with pytest.raises(ValueError, match="no such folder; --annotations is"):
        prepare("ssv2", tmp_path / "set", tmp_path / "out", annotations=tmp_path / "labels")
    touch(tmp_path, "file")
    with pytest.raises(ValueError, match="file: is a file; --output is the folder"):
        prepare("ssv2", tmp_path / "set", tmp_path / "file")


def test_a_manifest_that_is_there_is_kept(tmp_path: Path) -> None:
    ssv2(tmp_path / "set")
    prepare("ssv2", tmp_path / "set", tmp_path / "out")
    before = (tmp_path / "out/manifest.csv").read_bytes()
    with pytest.raises(ValueError, match=r"has manifest.csv and classes.txt already; .*--overwrite"):
        prepare("ssv2", tmp_path / "set", tmp_path / "out")
    assert (tmp_path / "out/manifest.csv").read_bytes() == before


def test_stopped_in_mid_writing_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ssv2(tmp_path / "set")

    class Stopped:
        def __init__(self, file: object, **_: object) -> None:
            self.lines = 0

        def writerow(self, _: object) -> None:
            self.lines += 1
            if self.lines == 3:
                raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("clipwise.data.sets.csv.writer", Stopped)
        with pytest.raises(KeyboardInterrupt):
            prepare("ssv2", tmp_path / "set", tmp_path / "out")
        assert not list((tmp_path / "out").iterdir())
    prepare("ssv2", tmp_path / "set", tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    monkeypatch.setattr("clipwise.data.sets.csv.writer", Stopped)
    with pytest.raises(KeyboardInterrupt):
        prepare("ssv2", tmp_path / "set", tmp_path / "out", overwrite=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


# --- to training, and what is said -----------------------------------------------------------------------------------


def test_a_prepared_set_trains(tmp_path: Path, videos: Path) -> None:
    """UCF-101 as distributed, but two classes of four real videos: one step, and the official test list is scored."""
    sources = sorted(videos.rglob("*.mp4"))[:8]
    splits = tmp_path / "set/ucfTrainTestlist"
    write(splits / "classInd.txt", "1 Waving\r\n2 Archery\r\n")
    lists: dict[str, str] = {"train": "", "test": ""}
    for n, source in enumerate(sources):
        label, index = (("Waving", 1), ("Archery", 2))[n % 2]
        video = f"{label}/v_{label}_g{n:02d}_c01.avi"
        (tmp_path / "set/UCF-101" / label).mkdir(parents=True, exist_ok=True)
        shutil.copy(source, tmp_path / "set/UCF-101" / video)
        lists["train" if n < 4 else "test"] += f"{video} {index}\r\n" if n < 4 else f"{video}\r\n"
    for split, text in lists.items():
        write(splits / f"{split}list01.txt", text)
    call = CliRunner().invoke(
        application(),
        ["data", "prepare", "ucf101", "--root", f"{tmp_path}/set", "--output", f"{tmp_path}/ucf"],
    )
    assert call.exit_code == 0, call.output
    assert "4 train, 4 test" in call.output
    # The commands that are shown are those to run: to hold val out of train, or to train on all of it.
    divide, train, test, train_all, test_all = (
        shlex.split(line.replace("RUN", f"{tmp_path}/run"))[1:]
        for line in call.output.splitlines()
        if line.startswith("  clipwise ")
    )
    call = CliRunner().invoke(application(), [*divide, "--no-duplicates-check"])
    assert call.exit_code == 0, call.output
    divided = Manifest.read(train[1])
    assert {split: len(divided.select(split)) for split in divided.splits} == {"train": 2, "val": 2, "test": 4}
    for training, testing, weights in ((train_all, test_all, "last"), (train, test, "best")):
        overrides = [part for override in SMALL for part in ("--set", override)]
        call = CliRunner().invoke(application(), [*training, *overrides, *(["--overwrite"] * (weights == "best"))])
        assert call.exit_code == 0, call.output
        call = CliRunner().invoke(application(), [*testing, "--json", "--workers", "0"])
        assert call.exit_code == 0, call.output
        assert clipwise.load(tmp_path / "run").classes == ("Waving", "Archery")


def test_help_and_docs_name_every_set_and_what_is_unverified() -> None:
    shown = " ".join(re.sub(r"[│\n]", " ", CliRunner().invoke(application(), ["data", "prepare", "-h"]).output).split())
    table = {
        cells[1].strip().strip("`"): line
        for line in (ROOT / "docs/datasets.md").read_text().splitlines()
        if len(cells := line.split("|")) > 4 and cells[1].strip().startswith("`")
    }
    assert set(table) == set(SETS)
    for name, public in SETS.items():
        assert re.search(rf"\b{name}\b", shown)
        assert bool(re.search(rf"\b{name} \(unverified\)", shown)) == bool(public.unverified)
        assert ("*unverified*" in table[name]) == bool(public.unverified)
        assert f"clipwise data prepare {name} " in table[name]
        assert all(split in table[name] for split in public.splits)
