"""Shards: what was decoded comes back, other programs can read it, and whatever breaks off can go on."""

import io
import itertools
import json
import os
import pickle
import re
import resource
import signal
import subprocess
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from conftest import PATIENCE, until
from numpy.typing import NDArray
from PIL import Image
from test_pack import frames
from torch.utils.data import DataLoader

from clipwise.data import pack as packing
from clipwise.data import shards
from clipwise.data.decode import DecodeError
from clipwise.data.manifest import Manifest
from clipwise.data.pack import pack
from clipwise.data.shards import ShardedFile, write_shards
from clipwise.data.stores import INDEX, JOURNAL


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    """Seven rows of four sizes, odd ones too; a segment among them, and a class list that is not the sorted one."""
    for name, count, height, width in (("a", 9, 48, 64), ("b", 4, 70, 41), ("c", 1, 24, 30), ("d", 12, 36, 36)):
        frames(tmp_path / name, count, height, width)
    (tmp_path / "classes.txt").write_text("walk\nnever\nsit\n")
    rows = (
        "a,walk,,,10,train\nb,sit,,,,val\na,sit,0.3,0.7,10,val\nc,walk,,,,train\n"
        "d,sit,0,0.5,10,train\nd,walk,0.5,,10,train\nb,walk,0,2,1,train\n"
    )
    (tmp_path / "data.csv").write_text(f"path,label,start,end,fps,split\n{rows}")
    return Manifest.read(tmp_path / "data.csv")


def whole(manifest: Manifest, index: int) -> NDArray[np.uint8]:
    with manifest.open(index) as video:
        return video.read(range(video.num_frames))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_jpeg_shards_hold_what_a_jpeg_pack_holds(manifest: Manifest, tmp_path: Path) -> None:
    done: list[tuple[int, int]] = []
    report = write_shards(
        manifest, tmp_path / "s", shard_bytes=20_000, workers=0, progress=lambda *count: done.append(count)
    )
    pack(manifest, tmp_path / "p.pack", format="jpeg", workers=0)
    stored, packed = Manifest.read(tmp_path / "s"), Manifest.read(tmp_path / "p.pack")
    assert done == [(number, 7) for number in range(1, 8)]
    assert (report.videos, report.skipped) == (7, ())
    assert report.frames == sum(len(whole(packed, index)) for index in range(7))
    assert report.bytes == sum(path.stat().st_size for path in (tmp_path / "s").glob("*.tar"))
    assert len(list((tmp_path / "s").glob("shard-*.tar"))) > 2
    assert stored.classes == manifest.classes
    np.testing.assert_array_equal(stored.labels, manifest.labels)
    for index, (item, original) in enumerate(zip(stored, manifest, strict=True)):
        assert (item.name, item.split, item.start, item.end) == (
            original.name,
            original.split,
            original.start,
            original.end,
        )
        np.testing.assert_array_equal(whole(stored, index), whole(packed, index))
        with stored.open(index) as video, packed.open(index) as other:
            assert video.fps == other.fps
            wanted = np.random.default_rng(index).integers(0, video.num_frames, 5)  # any order, with repeats
            np.testing.assert_array_equal(video.read(wanted), other.read(wanted))
    assert len(stored.select("val")) == 2
    np.testing.assert_array_equal(whole(stored.select("val"), 1), whole(packed, 2))


def test_raw_shards_hold_every_pixel(manifest: Manifest, tmp_path: Path) -> None:
    write_shards(manifest, tmp_path / "s", format="uint8", shard_bytes=20_000, workers=0)
    stored = Manifest.read(tmp_path / "s")
    for index in range(len(manifest)):
        np.testing.assert_array_equal(whole(stored, index), whole(manifest, index))
    with tarfile.open(tmp_path / "s" / "shard-000000.tar") as tar:
        frame = tar.extractfile("00000000.000000.rgb")
        account = tar.extractfile("00000000.json")
        assert frame is not None
        assert account is not None
        told = json.loads(account.read())
        assert len(frame.read()) == told["height"] * told["width"] * 3


def test_every_h264_frame_decodes_by_itself(manifest: Manifest, tmp_path: Path) -> None:
    write_shards(manifest, tmp_path / "s", format="h264", workers=0)
    stored = Manifest.read(tmp_path / "s")
    with tarfile.open(tmp_path / "s" / "shard-000000.tar") as tar:
        for index in range(len(manifest)):
            stream = tar.extractfile(f"{index:08d}.h264")
            assert stream is not None
            with av.open(io.BytesIO(stream.read()), format="h264") as container:
                decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
            original, read = whole(manifest, index), whole(stored, index)
            height, width = original.shape[1:3]
            assert read.shape == original.shape
            np.testing.assert_array_equal(read, [frame[:height, :width] for frame in decoded])
            assert ((read.astype(float) - original) ** 2).mean() < 40  # 32 dB, of coarse colour
            wanted = np.random.default_rng(index).integers(0, len(read), 4)
            with stored.open(index) as video:
                np.testing.assert_array_equal(video.read(wanted), read[wanted])


def test_short_side_and_colour_survive(tmp_path: Path, manifest: Manifest) -> None:
    write_shards(manifest, tmp_path / "s", format="h264", short_side=33, workers=0)
    stored = Manifest.read(tmp_path / "s")
    assert whole(stored, 1).shape[1:] == (56, 33, 3)
    assert whole(stored, 3).shape[1:] == (24, 30, 3)  # smaller already
    means = whole(stored, 1).mean(axis=(0, 1, 2)), whole(manifest, 1).mean(axis=(0, 1, 2))
    np.testing.assert_allclose(means[0], means[1], atol=3)


def test_tar_files_are_what_webdataset_takes(manifest: Manifest, tmp_path: Path) -> None:
    write_shards(manifest, tmp_path / "s", shard_bytes=20_000, workers=0)
    samples: dict[str, dict[str, bytes]] = {}
    order: list[str] = []
    for shard in sorted((tmp_path / "s").glob("*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                key, _, field = member.name.partition(".")  # WebDataset's rule: all after the first dot
                file = tar.extractfile(member)
                assert file is not None
                samples.setdefault(key, {})[field] = file.read()
                order.append(key)
    assert order == sorted(order)  # one sample's files follow each other
    for index, (key, sample) in enumerate(samples.items()):
        account = json.loads(sample["json"])
        assert (int(key), account["path"]) == (index, manifest[index].name)
        assert account["label"] == manifest.classes[manifest.labels[index]]
        assert int(sample["cls"]) == manifest.labels[index]
        assert [field for field in sample if field.endswith("jpg")] == [
            f"{number:06d}.jpg" for number in range(account["frames"])
        ]
        assert np.asarray(Image.open(io.BytesIO(sample["000000.jpg"]))).shape[:2] == (
            account["height"],
            account["width"],
        )


def test_webdataset_itself_reads_them(manifest: Manifest, tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset", reason="webdataset is not installed")
    write_shards(manifest, tmp_path / "s", workers=0)
    samples = list(webdataset.WebDataset(str(tmp_path / "s" / "shard-000000.tar"), shardshuffle=False).decode("pil"))
    assert [sample["cls"] for sample in samples] == manifest.labels.tolist()
    assert samples[0]["000000.jpg"].size == (64, 48)


def test_shards_are_the_same_with_workers_and_read_in_workers(manifest: Manifest, tmp_path: Path) -> None:
    for workers in (0, 2):
        write_shards(manifest, tmp_path / f"s{workers}", format="h264", shard_bytes=9000, workers=workers)
    assert contents(tmp_path / "s0") == contents(tmp_path / "s2")
    stored = Manifest.read(tmp_path / "s0")
    whole(stored, 0)  # a file is open when the workers start
    assert len(pickle.dumps(stored)) < 6000

    for context in ("fork", "spawn"):
        loader: DataLoader[Any] = DataLoader(
            Videos(stored), batch_size=None, num_workers=2, multiprocessing_context=context
        )
        for index, video in enumerate(loader):
            np.testing.assert_array_equal(video, whole(stored, index))


class Videos(torch.utils.data.Dataset[torch.Tensor]):
    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(whole(self.manifest, index))


def test_without_preadv_threads_read_what_they_ask_for(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows has none: a file's position is moved, which all threads of a process share."""
    write_shards(manifest, tmp_path / "s", format="uint8", workers=0)
    stored = Manifest.read(tmp_path / "s")
    expected = [whole(manifest, index) for index in range(7)]
    monkeypatch.delattr(os, "preadv")
    with ThreadPoolExecutor(4) as threads:
        for index, video in enumerate(threads.map(lambda index: whole(stored, index % 7), range(140))):
            np.testing.assert_array_equal(video, expected[index % 7])


# Breaking off


class Stop(Exception):
    pass


@pytest.mark.parametrize("format", ["jpeg", "uint8", "h264"])
@pytest.mark.parametrize("after", [1, 3, 4, 6])
def test_resumed_shards_are_those_of_one_go(manifest: Manifest, tmp_path: Path, format: Any, after: int) -> None:
    options: dict[str, Any] = {"format": format, "shard_bytes": 9000, "workers": 0}
    write_shards(manifest, tmp_path / "one", **options)

    def stop(done: int, total: int) -> None:
        if done == after:
            raise Stop

    with pytest.raises(Stop):
        write_shards(manifest, tmp_path / "two", progress=stop, **options)
    with pytest.raises(ValueError, match=r"begun and not finished.*--resume"):
        Manifest.read(tmp_path / "two")
    with pytest.raises(ValueError, match=r"begun and not finished; go on with it: --resume"):
        write_shards(manifest, tmp_path / "two", **options)

    # What a kill leaves: half a video behind the last whole one, half a line in the journal.
    last = sorted((tmp_path / "two").glob("*.tar"))[-1]
    last.write_bytes(last.read_bytes() + b"half a video" * 100)
    with open(tmp_path / "two" / JOURNAL, "ab") as journal:
        journal.write(b'{"shard": 0, "start"')
    decoded: list[int] = []
    report = write_shards(
        manifest, tmp_path / "two", resume=True, progress=lambda done, _: decoded.append(done), **options
    )
    assert decoded == list(range(after + 1, 8))
    assert report.videos == 7
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    again = write_shards(manifest, tmp_path / "two", resume=True, **options)  # nothing left to do
    assert (again.videos, again.frames, again.bytes) == (report.videos, report.frames, report.bytes)


def test_resume_believes_only_what_the_files_bear_out(manifest: Manifest, tmp_path: Path) -> None:
    """After a power failure the journal may know of videos that never reached the disk."""
    options: dict[str, Any] = {"shard_bytes": 9000, "workers": 0}
    write_shards(manifest, tmp_path / "one", **options)

    def stop(done: int, total: int) -> None:
        if done == 5:
            raise Stop

    for harm in ("cut", "zeros", "gone"):
        folder = tmp_path / harm
        with pytest.raises(Stop):
            write_shards(manifest, folder, progress=stop, **options)
        entries = [json.loads(line) for line in (folder / JOURNAL).read_bytes().splitlines()[1:]]
        shard = folder / f"shard-{entries[4]['shard']:06d}.tar"
        data = bytearray(shard.read_bytes())
        if harm == "cut":
            shard.write_bytes(data[: entries[4]["end"] - 100])
        elif harm == "zeros":
            data[entries[4]["start"] :] = bytes(len(data) - entries[4]["start"])
            shard.write_bytes(data)
        else:
            shard.unlink()
        write_shards(manifest, folder, resume=True, **options)
        assert contents(folder) == contents(tmp_path / "one")


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "clipwise", "data", "pack", *map(str, arguments)]


def test_killed_process_resumes(tmp_path: Path) -> None:
    for name in "abcdefgh":
        frames(tmp_path / "set" / "one" / name, 40, 200, 300)
    frames(tmp_path / "set" / "two" / "z", 5, 200, 300)
    options = ["--format", "shards-jpeg", "--shard-mb", "1", "--workers", "2"]
    process = subprocess.Popen(command(tmp_path / "set", tmp_path / "s", *options), stderr=subprocess.DEVNULL)
    journal = tmp_path / "s" / JOURNAL
    deadline = time.monotonic() + PATIENCE
    while not (journal.is_file() and journal.read_bytes().count(b"\n") >= 3):
        assert time.monotonic() < deadline
        assert process.poll() is None, "it finished before it could be killed"
        time.sleep(0.005)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    workers = children.read_text().split() if children.is_file() else []
    process.send_signal(signal.SIGKILL)
    process.wait()
    until(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers), "its workers end")
    assert not (tmp_path / "s" / INDEX).exists()
    kept = journal.read_bytes().count(b"\n") - 1
    assert 2 <= kept < 9
    subprocess.run(command(tmp_path / "set", tmp_path / "s", *options, "--resume"), check=True, capture_output=True)
    manifest = Manifest.read(tmp_path / "set")
    write_shards(manifest, tmp_path / "one", shard_bytes=10**6, workers=0)
    assert contents(tmp_path / "s") == contents(tmp_path / "one")


def test_full_disk_is_told_and_can_be_resumed(manifest: Manifest, tmp_path: Path) -> None:
    """A limit on the size of files fails as a full disk does: in the middle of a write."""

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))

    options = ["--format", "shards-jpeg", "--workers", "1"]
    source = tmp_path / "data.csv"
    result = subprocess.run(
        command(source, tmp_path / "s", *options), preexec_fn=limited, capture_output=True, text=True
    )
    assert result.returncode != 0
    message = " ".join(result.stderr.split())
    assert "Traceback" not in message
    assert re.search(r"cannot be written \(File too large\) after [1-6] of 7 videos", message), message
    assert "go on with --resume" in message
    subprocess.run(command(source, tmp_path / "s", *options, "--resume"), check=True, capture_output=True)
    write_shards(manifest, tmp_path / "one", shard_bytes=1024 * 10**6, workers=0)
    assert contents(tmp_path / "s") == contents(tmp_path / "one")


def test_unreadable_video_keeps_what_was_written(manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "b" / "img_00003.jpg").write_bytes(b"no picture")
    with pytest.raises(DecodeError, match=r"img_00003.*video 2 of 7.*--resume.*--skip-unreadable"):
        write_shards(manifest, tmp_path / "s", workers=0)
    report = write_shards(manifest, tmp_path / "s", workers=0, resume=True, on_error="skip")
    assert [name for name, _ in report.skipped] == ["b"]
    assert report.videos == 6  # the segment of b ends before the damage
    stored = Manifest.read(tmp_path / "s")
    assert [item.name for item in stored] == ["a", "a", "c", "d", "d", "b"]
    np.testing.assert_array_equal(whole(stored, 2), whole(stored, 2))
    again = write_shards(manifest, tmp_path / "s", workers=0, resume=True)
    assert [name for name, _ in again.skipped] == ["b"]


def test_videos_left_out_harm_no_other(manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One fails at once, of one a part was written before; at the end of a shard and inside."""
    monkeypatch.setattr(packing, "_CHUNK_BYTES", 3 * 36 * 36 * 3)  # three frames of d a piece
    (tmp_path / "b" / "img_00001.jpg").write_bytes(b"no picture")
    (tmp_path / "d" / "img_00010.jpg").write_bytes(b"no picture")
    for format, size in itertools.product(("jpeg", "uint8", "h264"), (1, 9000, 10**9)):
        folder = tmp_path / f"{format}{size}"
        report = write_shards(
            manifest,
            folder,
            format=format,
            shard_bytes=size,
            workers=0,
            on_error="skip",  # type: ignore[arg-type]
        )
        assert [name for name, _ in report.skipped] == ["b", "d", "b"]
        stored = Manifest.read(folder)
        assert [item.name for item in stored] == ["a", "a", "c", "d"]
        for index, original in enumerate((0, 2, 3, 4)):
            difference = whole(stored, index).astype(float) - whole(manifest, original)
            assert (difference**2).mean() < 40
        members = 0
        for shard in folder.glob("*.tar"):
            with tarfile.open(shard) as tar:
                members += sum(member.name.endswith(".json") for member in tar)
        assert members == 4


# Refusals


def test_what_cannot_be_written_or_resumed_says_why(manifest: Manifest, tmp_path: Path) -> None:
    folder = tmp_path / "s"
    write_shards(manifest, folder, workers=0)
    with pytest.raises(ValueError, match=r"exists; choose another name, or --overwrite"):
        write_shards(manifest, folder, workers=0)
    with pytest.raises(ValueError, match="quality 95 and not 80"):
        write_shards(manifest, folder, workers=0, quality=80, resume=True)
    with pytest.raises(ValueError, match="other videos or labels"):
        write_shards(manifest.select("train"), folder, workers=0, resume=True)
    with pytest.raises(ValueError, match="give one of them"):
        write_shards(manifest, folder, workers=0, resume=True, overwrite=True)
    write_shards(manifest.select("train"), folder, workers=0, overwrite=True)
    assert len(Manifest.read(folder)) == 5
    with pytest.raises(ValueError, match="holds files that are no shards"):
        write_shards(manifest, tmp_path / "a", workers=0, overwrite=True)
    with pytest.raises(ValueError, match="is a file"):
        write_shards(manifest, tmp_path / "data.csv", workers=0)
    with pytest.raises(ValueError, match="quality must be from 1 to 100"):
        write_shards(manifest, tmp_path / "n", quality=0)
    with pytest.raises(ValueError, match="cannot be written"):
        write_shards(manifest, tmp_path / "data.csv" / "below", workers=0)


def test_damaged_shards_are_named(manifest: Manifest, tmp_path: Path) -> None:
    write_shards(manifest, tmp_path / "s", format="h264", shard_bytes=9000, workers=0)
    shard = tmp_path / "s" / "shard-000001.tar"
    data = shard.read_bytes()
    stored = Manifest.read(tmp_path / "s")
    file = ShardedFile.open_with_metadata(tmp_path / "s")[0]
    index = file._mapped()["shard"].tolist().index(1)
    with pytest.raises(IndexError, match="frame 1 of 1"), Manifest.open(stored, 3) as video:
        video.read([1])
    shard.write_bytes(data[:-600])
    with pytest.raises(ValueError, match=r"shard-000001.tar: has \d+ bytes where \d+ were written; copy it again"):
        Manifest.read(tmp_path / "s")
    shard.write_bytes(data[:700])
    with pytest.raises(DecodeError, match="is cut off"):
        whole(stored, index)
    shard.write_bytes(bytes(len(data)))
    with pytest.raises(DecodeError, match=r"frame 0 is damaged.*copy shard-000001.tar again"):
        whole(stored, index)
    shard.unlink()
    with pytest.raises(ValueError, match=r"shard-000001.tar: is missing"):
        Manifest.read(tmp_path / "s")
    (tmp_path / "s" / INDEX).write_bytes(b"\x10" + bytes(40))
    with pytest.raises(ValueError, match="not the index of shards"):
        Manifest.read(tmp_path / "s")


def test_few_shards_stay_open(manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "_OPEN_FILES", 2)
    write_shards(manifest, tmp_path / "s", shard_bytes=1, workers=0)
    stored = Manifest.read(tmp_path / "s")
    before = len(os.listdir("/proc/self/fd"))
    for index in (0, 1, 2, 3, 4, 5, 6, 0, 3):
        whole(stored, index)
    assert len(os.listdir("/proc/self/fd")) - before <= 2


@pytest.mark.parametrize("header", ["path,label:verb,label:noun", "path,labels"])
def test_other_labels_come_back(manifest: Manifest, tmp_path: Path, header: str) -> None:
    rows = "a,take,cup\nb,put,cup\n" if "verb" in header else "a,take|cup\nb,\n"
    folder = tmp_path / "more"
    folder.mkdir()
    (folder / "m.csv").write_text(f"{header}\n" + rows.replace("a,", "../a,").replace("b,", "../b,"))
    original = Manifest.read(folder / "m.csv")
    write_shards(original, folder / "s", workers=0)
    stored = Manifest.read(folder / "s")
    assert stored.label_space == original.label_space
    np.testing.assert_array_equal(stored.labels, original.labels)
    with tarfile.open(folder / "s" / "shard-000000.tar") as tar:
        account = tar.extractfile("00000000.json")
        assert account is not None
        assert set(json.loads(account.read())["labels"]) == {"take", "cup"}
        assert "00000000.cls" not in tar.getnames()
