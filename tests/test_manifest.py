"""Manifests: what is read, from where, and what each mistake is answered with."""

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest

from clipwise.data.manifest import Manifest, find_videos


def csv_file(folder: Path, text: str, name: str = "data.csv") -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def frames(folder: Path, count: int) -> Path:
    """A folder of ``count`` JPEG frames whose brightness is their number."""
    from PIL import Image

    folder.mkdir(parents=True)
    for index in range(count):
        Image.new("RGB", (16, 12), (10 * index,) * 3).save(folder / f"img_{index + 1:05d}.jpg")
    return folder


def test_csv_is_read_with_its_options(tmp_path: Path) -> None:
    text = (
        "Path, label ,start,end,fps,split,viewer\n"
        'a/x.mp4,wave,,,,train,"Ann, B"\n\n'
        '"b,c.mp4",  jump ,0.5,2,,val,\n'
        "/abs/é.mp4,jump,1,,25,,\n"
    )
    manifest = Manifest.read(csv_file(tmp_path, text))
    assert manifest.classes == ("jump", "wave")
    assert manifest.labels.tolist() == [1, 0, 0]
    assert manifest.labels.dtype == np.int64
    assert manifest.splits == ("train", "val")
    assert [item.path for item in manifest] == [f"{tmp_path}/a/x.mp4", f"{tmp_path}/b,c.mp4", "/abs/é.mp4"]
    assert [item.name for item in manifest] == ["a/x.mp4", "b,c.mp4", "/abs/é.mp4"]
    assert [(i.start, i.end, i.fps, i.split) for i in manifest] == [
        (None, None, None, "train"),
        (0.5, 2.0, None, "val"),
        (1.0, None, 25.0, None),
    ]
    assert manifest[-1] == manifest[2]
    with pytest.raises(IndexError):
        manifest[3]


@pytest.mark.parametrize("start", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_csv_of_any_editor(tmp_path: Path, start: str, end: str) -> None:
    manifest = Manifest.read(csv_file(tmp_path, start + end.join(["path,class", "ü.mp4,grün", ""])))
    assert manifest.classes == ("grün",)
    assert manifest[0].name == "ü.mp4"


def test_splits_share_the_class_list(tmp_path: Path) -> None:
    path = csv_file(tmp_path, "path,label,split\na,x,train\nb,y,train\nc,y,val\n")
    val = Manifest.read(path, split="val")
    assert (val.classes, val.labels.tolist(), val.splits, len(val)) == (("x", "y"), [1], ("val",), 1)
    assert val.classes_hash == hashlib.sha256(b"x\ny").hexdigest() == Manifest.read(path).classes_hash
    with pytest.raises(ValueError, match=r"no split 'test'; there is: train, val"):
        Manifest.read(path, split="test")
    with pytest.raises(ValueError, match="no row has a split"):
        Manifest.read(csv_file(tmp_path, "path,label\na,x\n"), split="train")


def test_class_list_can_be_fixed(tmp_path: Path) -> None:
    path = csv_file(tmp_path, "path,label\na,sit\nb,stand\n")
    assert Manifest.read(path, classes=["stand", "walk", "sit"]).labels.tolist() == [2, 0]
    (tmp_path / "classes.txt").write_text("stand\nsit\n\n")
    assert Manifest.read(path).classes == ("stand", "sit")
    assert Manifest.read(path, classes=["sit", "stand"]).classes == ("sit", "stand")
    with pytest.raises(ValueError, match=r"data.csv, line 3: label 'stand' .* mean 'standing'\?"):
        Manifest.read(path, classes=["sit", "standing"])
    with pytest.raises(ValueError, match="'sit' is listed more than once"):
        Manifest.read(path, classes=["sit", "stand", "sit"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("path,label\n", "no rows below the header"),
        ("file,label\na,x\n", "no column path; there is: file, label"),
        ("path;label\na;x\n", "no column path and no column label; there is: path;label"),
        ("path,label,label\na,x,y\n", "column label occurs 2 times"),
        ("path,label\na,x\nb\n", "line 3: 1 fields, but 2 columns"),
        ("path,label\na,b.mp4,x\n", "line 2: 3 fields, but 2 columns; quote"),
        ("path,label\na,x\n\nb,\n", "line 4: label is empty"),
        ("path,label\n ,x\n", "line 2: path is empty"),
        ("path,label,start\na,x,soon\n", "line 2: start must be a number of seconds, 0 or more, got 'soon'"),
        ("path,label,end\na,x,nan\n", "line 2: end must be a number .* got 'nan'"),
        ("path,label,start\na,x,-1\n", "line 2: start must be a number .* got '-1'"),
        ("path,label,fps\na,x,0\n", "line 2: fps must be above 0"),
        ("path,label,start,end\na,x,2,2\n", "line 2: start must be before end, got start=2 end=2.0"),
        ("path,label,end\na,x,0\n", "line 2: start must be before end, got start=0 end=0.0"),
        ("path,label\na.mp4,x\nb.mp4,x\n./a.mp4,y\n", "line 4: './a.mp4' is listed twice .*line 2"),
        ('path,label\n"a,x\n', "line 2: not a CSV file"),
    ],
)
def test_csv_mistakes_name_the_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        Manifest.read(csv_file(tmp_path, text))
    assert str(tmp_path / "data.csv") in str(error.value)


def test_segments_of_one_file_are_no_duplicates(tmp_path: Path) -> None:
    assert len(Manifest.read(csv_file(tmp_path, "path,label,start,end\na,x,0,1\na,y,1,2\na,y,2,\n"))) == 3


def test_other_encodings_and_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.csv").write_bytes("path,label\né,x\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin.csv: not UTF-8 .* save it as CSV UTF-8"):
        Manifest.read(tmp_path / "latin.csv")
    with pytest.raises(ValueError, match=r"nothing.csv: no such file or folder"):
        Manifest.read(tmp_path / "nothing.csv")
    touch(tmp_path / "a.mp4")
    with pytest.raises(ValueError, match=r"a.mp4: not a manifest"):
        Manifest.read(tmp_path / "a.mp4")


def test_folder_per_class(tmp_path: Path) -> None:
    touch(tmp_path / "walk" / "b.MP4", tmp_path / "walk" / "a.webm", tmp_path / "walk" / ".hidden.mp4")
    touch(tmp_path / "sit" / "notes.txt", tmp_path / "readme.md", tmp_path / ".git" / "x.mp4")
    frames(tmp_path / "sit" / "clip", 2)
    touch(*(tmp_path / "sit" / name for name in ("clip/Thumbs.db", "clip/n_frames", "clip/flow_x_00001.jpg")))
    touch(tmp_path / "sit" / "mixed" / "1.jpg", tmp_path / "sit" / "mixed" / "1.mp4")
    touch(tmp_path / "sit" / "nested" / "1.jpg", tmp_path / "sit" / "nested" / "more" / "1.jpg")
    touch(tmp_path / "sit" / "photos" / "a.jpg", tmp_path / "sit" / "photos" / "flow_x_00001.jpg")
    (tmp_path / "lie").mkdir()
    manifest = Manifest.read(tmp_path)
    assert [item.name for item in manifest] == ["sit/clip", "walk/a.webm", "walk/b.MP4"]
    assert manifest.classes == ("sit", "walk")
    assert manifest.ignored == (
        "lie/", "readme.md", "sit/mixed/", "sit/nested/", "sit/notes.txt", "sit/photos/"
    )  # fmt: skip
    assert find_videos(tmp_path / "sit" / "clip") == [tmp_path / "sit" / "clip"]
    with manifest.open(0) as frames_of_clip:
        assert frames_of_clip.num_frames == 2
    assert manifest.splits == ()
    manifest.check_files()


@pytest.mark.parametrize("val", ["val", "validation", "Valid"])
def test_folder_per_split_and_class(tmp_path: Path, val: str) -> None:
    touch(tmp_path / "train" / "walk" / "a.mp4", tmp_path / "train" / "sit" / "a.mp4")
    touch(tmp_path / val / "walk" / "b.mp4", tmp_path / "extra" / "walk" / "c.mp4")
    manifest = Manifest.read(tmp_path)
    assert {(item.name, item.split) for item in manifest} == {
        ("train/sit/a.mp4", "train"),
        ("train/walk/a.mp4", "train"),
        (f"{val}/walk/b.mp4", "val"),
    }
    assert manifest.ignored == ("extra/",)
    assert manifest.select("val").classes == ("sit", "walk")


def test_a_class_called_train_is_a_class(tmp_path: Path) -> None:
    touch(tmp_path / "train" / "a.mp4", tmp_path / "bus" / "b.mp4")
    frames(tmp_path / "train" / "clip", 1)
    manifest = Manifest.read(tmp_path)
    assert manifest.classes == ("bus", "train")
    assert manifest.splits == ()


def test_folders_without_videos_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the folder is empty.* expected <folder>/<class>/<video>"):
        Manifest.read(tmp_path)
    touch(tmp_path / "a.mp4")
    with pytest.raises(ValueError, match=r"found only a\.mp4"):
        Manifest.read(tmp_path)


def test_one_class_is_not_enough_to_train(tmp_path: Path) -> None:
    touch(tmp_path / "walk" / "a.mp4")
    manifest = Manifest.read(tmp_path, classes=["sit", "walk"])
    with pytest.raises(ValueError, match=r"at least 2 classes, got 1 \('walk'\)"):
        manifest.require_classes()
    manifest.require_classes(1)


def test_missing_files_are_listed(tmp_path: Path) -> None:
    touch(tmp_path / "there.mp4")
    rows = "".join(f"gone{i}.mp4,x\n" for i in range(7))
    manifest = Manifest.read(csv_file(tmp_path, f"path,label\nthere.mp4,x\n{rows}"))
    with pytest.raises(ValueError, match="7 of 8 videos are missing") as error:
        manifest.check_files()
    assert "gone4.mp4\n  and 2 more" in str(error.value)
    assert "gone5" not in str(error.value)
    assert f"`clipwise data check {tmp_path}/data.csv --clean cleaned.csv` writes a list" in str(error.value)


def test_open_gives_the_segment(tmp_path: Path) -> None:
    frames(tmp_path / "clip", 10)
    manifest = Manifest.read(csv_file(tmp_path, "path,label,start,end,fps\nclip,x,,,\nclip,x,0.5,1,10\n"))
    with manifest.open(0) as whole, manifest.open(1) as segment:
        assert whole.num_frames == 10
        assert segment.num_frames == 5
        assert (segment.read([0, 4]) == whole.read([5, 9])).all()


def test_written_manifest_reads_back(tmp_path: Path) -> None:
    text = 'path,label,start,split\n"data/a,b.mp4",x,,train\ndata/ü.mp4,z,0.1,\n/abs/c.mp4,x,,val\n'
    manifest = Manifest.read(csv_file(tmp_path, text), classes=["z", "y", "x"])
    (tmp_path / "data").mkdir()
    for target, first in (
        (tmp_path / "copy.csv", "data/a,b.mp4"),
        (tmp_path / "data" / "copy.csv", "a,b.mp4"),
    ):
        manifest.write(target)
        copy = Manifest.read(target)
        assert copy[0].name == first
        assert copy.classes == ("z", "y", "x")
        assert copy.labels.tolist() == manifest.labels.tolist()
        assert [(i.path, i.start, i.split) for i in copy] == [(i.path, i.start, i.split) for i in manifest]
    (tmp_path / "lists").mkdir()
    manifest.write(tmp_path / "lists" / "copy.csv")
    assert Manifest.read(tmp_path / "lists" / "copy.csv")[0].name == "../data/a,b.mp4"


def test_writing_never_changes_another_manifests_classes(tmp_path: Path) -> None:
    manifest = Manifest.read(csv_file(tmp_path, "path,label\na,x\nb,y\n"))
    (tmp_path / "out").mkdir()
    manifest.write(tmp_path / "out" / "a.csv")
    assert not (tmp_path / "out" / "classes.txt").exists(), "the rows give the list"
    (tmp_path / "out" / "classes.txt").write_text("y\nx\n")
    with pytest.raises(ValueError, match="lists other classes"):
        manifest.write(tmp_path / "out" / "b.csv")
    with pytest.raises(ValueError, match="cannot be written"):
        manifest.write(tmp_path / "nowhere" / "b.csv")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.csv", "classes.txt"]


def test_pickles_without_one_object_per_item(tmp_path: Path) -> None:
    rows = "".join(f"video{i}.mp4,{i % 3},train\n" for i in range(1000))
    manifest = Manifest.read(csv_file(tmp_path, f"path,label,split\n{rows}"))
    copy = pickle.loads(pickle.dumps(manifest))
    assert list(copy) == list(manifest)
    assert all(isinstance(column, np.ndarray) and column.dtype != object for column in copy._columns.values())


@pytest.mark.parametrize(
    ("name", "sizes", "classes"),
    [("overhead_adl", {"train": 239, "val": 109}, 6), ("handwash12", {"train": 357, "val": 178}, 12)],
)
def test_the_real_data_sets(shared: Path, name: str, sizes: dict[str, int], classes: int) -> None:
    manifest = Manifest.read(shared / "data" / name / "clips.csv")
    manifest.check_files()
    assert {split: len(manifest.select(split)) for split in manifest.splits} == sizes
    assert len(manifest.classes) == classes
    assert manifest[0].start is None, "the columns start_frame and frames are informational"
    folder = Manifest.read(shared / "data" / name)
    assert folder.classes == manifest.classes
    assert sorted(item.path for item in folder) == sorted(item.path for item in manifest)
    assert folder.ignored == ("clips.csv",)
