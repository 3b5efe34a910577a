"""Videos played backwards: the column ``reversed`` wherever frames come from, and the task made of it."""

import csv
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import SMALL, clipwise

import clipwise as package
from clipwise.config import ViewsConfig
from clipwise.data import decode
from clipwise.data.check import check
from clipwise.data.dataset import TestViews
from clipwise.data.manifest import Manifest
from clipwise.data.memory import hold_in_memory
from clipwise.data.pack import pack
from clipwise.data.reversal import write_both_directions
from clipwise.data.shards import write_shards
from clipwise.data.split import divide
from clipwise.data.stats import collect
from clipwise.data.table import Table
from clipwise.evaluation.run import evaluate


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def listed(folder: Path, text: str, name: str = "data.csv") -> Path:
    (folder / name).write_text(text)
    return folder / name


@pytest.fixture(scope="module")
def both(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the rendered videos, each both ways: whole, and 0.1 to 0.4 s of the first one."""
    folder = tmp_path_factory.mktemp("both")
    output = folder / "both.csv"
    write_both_directions(Table.read(videos, what_for="test"), output)
    lines = output.read_text().splitlines()
    cells = dict(zip(lines[0].split(","), lines[1].split(","), strict=True))
    header = [*lines[0].split(","), "start", "end"]
    rows = [f"{line},," for line in lines[1:]]
    for direction, backwards in (("forward", "0"), ("reversed", "1")):
        segment = {**cells, "label": direction, "reversed": backwards, "start": "0.1", "end": "0.4"}
        rows.append(",".join(segment[name] for name in header))
    output.write_text("\n".join([",".join(header), *rows]) + "\n")
    return output


def packed(make: Callable[[Manifest, Path], object], name: str) -> Callable[[Manifest, Path], Manifest]:
    def made(manifest: Manifest, folder: Path) -> Manifest:
        make(manifest, folder / name)
        return Manifest.read(folder / name)

    return made


SOURCES: dict[str, Callable[[Manifest, Path], Manifest]] = {
    "files": lambda manifest, folder: manifest,
    "pack": packed(lambda m, path: pack(m, path, format="uint8", workers=1), "a.pack"),
    "shards": packed(lambda m, path: write_shards(m, path, format="uint8", workers=1), "shards"),
    "memory": lambda manifest, folder: hold_in_memory(manifest, short_side=None, workers=1),
}


@pytest.mark.parametrize("source", SOURCES)
def test_frame_i_is_frame_n_minus_1_minus_i_wherever_frames_lie(source: str, both: Path, tmp_path: Path) -> None:
    plain = Manifest.read(both)
    manifest = SOURCES[source](plain, tmp_path)
    assert [item.reversed for item in manifest] == [False, True] * (len(plain) // 2)
    assert [item.split for item in manifest] == [item.split for item in plain]
    for place in range(0, len(manifest), 2):
        with plain.open(place) as straight, manifest.open(place) as forward, manifest.open(place + 1) as backward:
            count = straight.num_frames
            frames = straight.read(range(count))
            assert forward.num_frames == backward.num_frames == count
            assert (forward.read(range(count)) == frames).all()
            assert (backward.read(range(count)) == frames[::-1]).all()
            some = [count - 1, 0, 3, 3, 1]
            assert (backward.read(some) == frames[[count - 1 - index for index in some]]).all()
            assert backward.fps == forward.fps
            for outside in (-1, count):
                with pytest.raises(IndexError):
                    backward.read([outside])


def test_a_segment_is_reversed_in_itself(both: Path) -> None:
    manifest = Manifest.read(both)
    item = manifest[-1]
    assert (item.start, item.end, item.reversed) == (0.1, 0.4, True)
    with manifest.open(0) as whole, manifest.open(-1) as segment:
        last = segment.read([segment.num_frames - 1])
        first = next(index for index in range(whole.num_frames) if (whole.read([index]) == last).all())
        assert first > 0
        assert segment.num_frames < whole.num_frames
        assert (segment.read([0]) == whole.read([first + segment.num_frames - 1])).all()


def test_a_frame_folder_is_played_backwards(tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "clip").mkdir()
    for number in range(6):
        Image.new("RGB", (16, 12), (40 * number,) * 3).save(tmp_path / "clip" / f"img_{number:05d}.jpg")
    text = "path,label,start,end,fps,reversed\nclip,x,,,10,1\nclip,y,0.2,0.5,10,1\nclip,x,,,10,0\n"
    manifest = Manifest.read(listed(tmp_path, text))
    with manifest.open(0) as whole, manifest.open(1) as segment:
        assert (whole.read([0, 5])[:, 0, 0, 0] // 40).tolist() == [5, 0]
        assert (segment.read([0, 1, 2])[:, 0, 0, 0] // 40).tolist() == [4, 3, 2]


def test_a_reversed_clip_is_one_reading_of_the_video(both: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[int]] = []
    real = decode.VideoFile.read
    monkeypatch.setattr(
        decode.VideoFile, "read", lambda self, indices: asked.append(list(indices)) or real(self, indices)
    )
    with Manifest.read(both).open(1) as frames:
        last = frames.num_frames - 1
        frames.read([1, 4, 7, last])
    # Descending: the reader passes through the video once in whatever order frames are asked for.
    assert asked == [[last - 1, last - 4, last - 7, 0]]


def test_clips_are_sampled_on_the_timeline_that_is_played(both: Path) -> None:
    manifest = Manifest.read(both)
    views = TestViews(manifest, num_frames=4, views=ViewsConfig(size=48, sampling="middle", crop_ratio=1.0))
    sample = views[1]
    with manifest.open(0) as frames:
        count = frames.num_frames
        middle = [int(count / 8 + count / 4 * i) for i in range(4)]
        wanted = frames.read([count - 1 - index for index in middle])
    assert (sample["clip"][0].permute(0, 2, 3, 1).numpy() == wanted).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label,reversed\na,x,yes\n", "line 2: reversed must be 1 .played backwards., 0 or empty, got 'yes'"),
        ("path,label,reversed\na,x,1\na,y,1\n", "line 3: 'a' is listed twice"),
        ("path,label,reversed,reversed\na,x,1,1\n", "column reversed occurs 2 times"),
    ],
)
def test_mistakes_in_the_column_name_the_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Manifest.read(listed(tmp_path, text))


def test_a_manifest_is_written_with_its_directions(tmp_path: Path) -> None:
    manifest = Manifest.read(listed(tmp_path, "path,label,reversed\na,x,1\na,y,\nb,x,0\n"))
    manifest.write(tmp_path / "again.csv")
    assert [row["reversed"] for row in rows_of(tmp_path / "again.csv")] == ["1", "0", "0"]
    assert list(Manifest.read(tmp_path / "again.csv")) == list(manifest)
    Manifest.read(listed(tmp_path, "path,label,reversed\na,x,0\n")).write(tmp_path / "none.csv")
    assert "reversed" not in (tmp_path / "none.csv").read_text()


def test_the_task_keeps_split_segment_and_columns(tmp_path: Path) -> None:
    text = (
        "path,label,start,end,split,person\na.mp4,sit,0,1,train,Ann\na.mp4,stand,1,2,train,Ann\nb.mp4,walk,,,val,Bo\n"
    )
    source = listed(tmp_path, text)
    (tmp_path / "out").mkdir()
    output = tmp_path / "out" / "task.csv"
    assert write_both_directions(Table.read(source, what_for="test"), output, ["sit", "walk"]) == 4
    rows = rows_of(output)
    assert list(rows[0]) == ["path", "class", "start", "end", "split", "person", "label", "reversed"]
    columns = ("path", "class", "label", "reversed", "split", "person")
    assert [tuple(row[name] for name in columns) for row in rows] == [
        ("../a.mp4", "sit", "forward", "0", "train", "Ann"),
        ("../a.mp4", "sit", "reversed", "1", "train", "Ann"),
        ("../b.mp4", "walk", "forward", "0", "val", "Bo"),
        ("../b.mp4", "walk", "reversed", "1", "val", "Bo"),
    ]
    manifest = Manifest.read(output)
    assert manifest.classes == ("forward", "reversed")
    assert manifest.labels.tolist() == [0, 1, 0, 1]
    assert (manifest[1].start, manifest[1].end) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("header", "cells", "kept"),
    [
        ("path,class", "a.mp4,sit", ("class", "sit")),
        ("path,label,class", "a.mp4,sit,7", ("class_", "sit")),
        ("path,label:verb,label:noun", "a.mp4,sit,chair", ("verb", "sit")),
        ("path,labels", "a.mp4,sit|chair", ("classes", "sit|chair")),
        ("path,label,reversed", "a.mp4,sit,0", ("class", "sit")),
    ],
)
def test_labels_of_any_kind_stay_as_columns(tmp_path: Path, header: str, cells: str, kept: tuple[str, str]) -> None:
    source = listed(tmp_path, f"{header}\n{cells}\n")
    write_both_directions(Table.read(source, what_for="test"), tmp_path / "task.csv")
    row = rows_of(tmp_path / "task.csv")[1]
    assert (row[kept[0]], row["label"], row["reversed"]) == (kept[1], "reversed", "1")
    assert Manifest.read(tmp_path / "task.csv").classes == ("forward", "reversed")


def test_what_cannot_be_made_is_refused(tmp_path: Path) -> None:
    source = listed(tmp_path, "path,label,reversed\na,sitting,0\nb,standing,1\n")
    with pytest.raises(ValueError, match=r"b \[reversed\] is played backwards already"):
        write_both_directions(Table.read(source, what_for="test"), tmp_path / "task.csv")
    table = Table.read(listed(tmp_path, "path,label\na,sitting\nb,standing\n"), what_for="test")
    with pytest.raises(ValueError, match="no video shows 'siting'; near it: sitting"):
        write_both_directions(table, tmp_path / "task.csv", ["siting"])
    (tmp_path / "classes.txt").write_text("sitting\nstanding\n")
    with pytest.raises(ValueError, match=r"classes.txt: lists other classes than forward, reversed; write to another"):
        write_both_directions(table, tmp_path / "task.csv")
    assert not (tmp_path / "task.csv").exists()


def test_both_directions_stay_in_one_split_and_count_as_two(videos: Path, tmp_path: Path) -> None:
    table = Table.read(videos, what_for="test")
    listed(tmp_path, "", "none.csv")
    write_both_directions(table, tmp_path / "task.csv")
    both = Table.read(tmp_path / "task.csv", what_for="test")
    division = divide(both, val=0.3, seed=3)
    assert division.of_row[::2] == division.of_row[1::2]
    report = check(both)
    assert not report.findings
    found = collect(both)
    assert sum(sum(of.values()) for of in found.classes.values()) == len(both) == 2 * len(table)
    both.write(tmp_path / "divided.csv", range(len(both)), {"split": division.of_row})
    assert [item.reversed for item in Manifest.read(tmp_path / "divided.csv")] == [False, True] * len(table)


def test_copies_with_two_directions_are_no_contradiction(videos: Path, tmp_path: Path) -> None:
    first = Manifest.read(videos)[0]
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).write_bytes(Path(first.path).read_bytes())
    text = "path,label,reversed\na.mp4,forward,0\nb.mp4,reversed,1\n"
    kinds = check(Table.read(listed(tmp_path, text), what_for="test")).counts
    assert list(kinds) == ["duplicate"]
    same = check(Table.read(listed(tmp_path, text.replace(",0", ",1")), what_for="test")).counts
    assert list(same) == ["two_labels"]


def test_a_run_on_both_directions_is_tested_on_what_it_held_out(both: Path, tmp_path: Path) -> None:
    rows = [row for row in rows_of(both) if not row["start"]]
    without = both.parent / "whole.csv"  # its paths start there
    with without.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["path", "label", "reversed"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    package.train(without, tmp_path / "run", overrides=[*SMALL, "training.epochs=1"])
    record = evaluate(tmp_path / "run", which="last", workers=0).record
    held = Counter(row["video"] for row in record["scores"])
    assert set(held.values()) == {2}  # both directions of a file, held out together
    assert all(row.get("reversed", False) == (row["label"] == "reversed") for row in record["scores"])
    kept = json.loads((tmp_path / "run" / "splits.json").read_text())
    assert len(kept["validation"]) == len(record["scores"])
    assert {name for name, *_ in kept["train"]}.isdisjoint(held)


def test_the_command_makes_the_task_of_the_specification(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = shared / "data" / "overhead_adl" / "clips.csv"
    classes = "falling,lying_down,sitting_down,standing_up"
    output = tmp_path / "task.csv"
    code = clipwise("data", "playback", source, output, "--classes", classes, monkeypatch=monkeypatch)
    assert code == 0
    assert "132 videos, each both ways: 89 train, 43 val" in capsys.readouterr().err
    manifest = Manifest.read(output)
    counts = Counter((item.split, manifest.names_of(row)[0], item.reversed) for row, item in enumerate(manifest))
    assert counts == {
        ("train", "forward", False): 89,
        ("train", "reversed", True): 89,
        ("val", "forward", False): 43,
        ("val", "reversed", True): 43,
    }
    recordings = [{row["recording"] for row in rows_of(output) if row["split"] == split} for split in ("train", "val")]
    assert recordings[0].isdisjoint(recordings[1])
    with manifest.open(0) as forward, manifest.open(1) as backward:
        indices = np.array([3, 10, 20])
        assert (forward.read(indices) == backward.read(forward.num_frames - 1 - indices)).all()
    assert clipwise("data", "playback", source, output, monkeypatch=monkeypatch) == 1
    assert "exists; choose another name, or --overwrite" in capsys.readouterr().err
