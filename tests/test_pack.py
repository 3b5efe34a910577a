"""Packs: what was decoded comes back, and nothing half-written is ever left or read."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import clipwise
from numpy.typing import NDArray
from PIL import Image

from clipwise.data import pack as packing
from clipwise.data.decode import DecodeError
from clipwise.data.manifest import Manifest
from clipwise.data.pack import PackedFile, pack


def frames(folder: Path, count: int, height: int, width: int) -> None:
    """A folder of smooth, coloured, moving JPEG frames."""
    folder.mkdir(parents=True)
    y, x = np.mgrid[:height, :width]
    for index in range(count):
        picture = np.stack([2 * x + 5 * index, 3 * y, x + y], axis=-1).clip(0, 255).astype(np.uint8)
        Image.fromarray(picture).save(folder / f"img_{index + 1:05d}.jpg", quality=95)


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    """Four rows of three sizes: a segment among them, and a class list that is not the sorted one."""
    frames(tmp_path / "a", 9, 48, 64)
    frames(tmp_path / "b", 4, 70, 41)
    frames(tmp_path / "c", 1, 24, 30)
    (tmp_path / "classes.txt").write_text("walk\nnever\nsit\n")
    rows = "a,walk,,,10,train\nb,sit,,,,val\na,sit,0.3,0.7,10,val\nc,walk,,,,train\n"
    (tmp_path / "data.csv").write_text(f"path,label,start,end,fps,split\n{rows}")
    return Manifest.read(tmp_path / "data.csv")


def whole(manifest: Manifest, index: int) -> NDArray[np.uint8]:
    with manifest.open(index) as video:
        return video.read(range(video.num_frames))


def left_over(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if ".pack" in path.name]


@pytest.mark.parametrize("workers", [0, 2])
def test_uint8_pack_holds_the_decoders_frames(manifest: Manifest, tmp_path: Path, workers: int) -> None:
    done: list[tuple[int, int]] = []
    report = pack(
        manifest,
        tmp_path / "data.pack",
        format="uint8",
        short_side=None,
        workers=workers,
        progress=lambda *counts: done.append(counts),
    )
    assert (report.videos, report.frames, report.skipped) == (4, 18, ())
    assert report.bytes == os.path.getsize(tmp_path / "data.pack")
    assert done == [(1, 4), (2, 4), (3, 4), (4, 4)]
    packed = Manifest.read(tmp_path / "data.pack")
    for index in range(4):
        assert (whole(packed, index) == whole(manifest, index)).all()
        with packed.open(index) as video, manifest.open(index) as source:
            assert (video.num_frames, video.fps) == (source.num_frames, source.fps)
    assert len(whole(packed, 2)) == 4, "of the segment, not of the video"


def test_packed_manifest_equals_its_source(manifest: Manifest, tmp_path: Path) -> None:
    pack(manifest, tmp_path / "data.pack", short_side=None, workers=0)
    packed = Manifest.read(tmp_path / "data.pack")
    assert packed.classes == manifest.classes
    assert packed.classes_hash == manifest.classes_hash
    assert packed.labels.tolist() == manifest.labels.tolist()
    assert packed.splits == manifest.splits
    for mine, source in zip(packed, manifest, strict=True):
        assert (mine.name, mine.split, mine.start, mine.end) == (
            source.name,
            source.split,
            source.start,
            source.end,
        )
    assert len(whole(packed.select("val"), 1)) == 4
    assert Manifest.read(tmp_path / "data.pack", classes=["sit", "walk"]).labels.tolist() == [1, 0, 0, 1]
    packed.check_files()
    with pytest.raises(ValueError, match="a CSV cannot list them"):
        packed.write(tmp_path / "copy.csv")


def test_jpeg_pack_is_close_and_resized(manifest: Manifest, tmp_path: Path) -> None:
    pack(manifest, tmp_path / "j.pack", short_side=32, workers=0)
    pack(manifest, tmp_path / "u.pack", format="uint8", short_side=32, workers=0)
    jpeg, exact = Manifest.read(tmp_path / "j.pack"), Manifest.read(tmp_path / "u.pack")
    shapes = [whole(exact, index).shape for index in range(4)]
    assert shapes == [(9, 32, 43, 3), (4, 55, 32, 3), (4, 32, 43, 3), (1, 24, 30, 3)], "the small one is not enlarged"
    for index in range(4):
        difference = whole(jpeg, index).astype(int) - whole(exact, index)
        assert difference.shape == shapes[index]
        assert np.abs(difference).mean() < 3
    pack(manifest, tmp_path / "e.pack", short_side=32, enlarge=True, workers=0)
    assert whole(Manifest.read(tmp_path / "e.pack"), 3).shape == (1, 32, 40, 3)


def test_read_gives_the_frames_asked_for(manifest: Manifest, tmp_path: Path) -> None:
    for form in ("uint8", "jpeg"):
        pack(manifest, tmp_path / f"{form}.pack", format=form, short_side=None, workers=0)
        packed = Manifest.read(tmp_path / f"{form}.pack")
        everything = whole(packed, 0)
        with packed.open(0) as video:
            read = video.read(np.array([5, 0, 5, 8]))
            assert (read == everything[[5, 0, 5, 8]]).all()
            read[:] = 0  # a copy: the file's pages are read-only
            for index in (-1, 9):
                with pytest.raises(IndexError, match=f"frame {index} of 9"):
                    video.read([index])


def test_long_videos_are_packed_piece_by_piece(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack(manifest, tmp_path / "a.pack", short_side=None, workers=0)
    monkeypatch.setattr(packing, "_CHUNK_BYTES", 2 * 48 * 64 * 3)
    pack(manifest, tmp_path / "b.pack", short_side=None, workers=0)
    assert (tmp_path / "a.pack").read_bytes() == (tmp_path / "b.pack").read_bytes()


def test_safetensors_reads_it(manifest: Manifest, tmp_path: Path) -> None:
    from safetensors import safe_open

    pack(manifest, tmp_path / "data.pack", format="uint8", short_side=None, workers=0)
    with safe_open(tmp_path / "data.pack", framework="pt") as file:
        assert sorted(file.keys()) == ["data", "frame_offset", "size", "video_offset"]
        offset, videos, data = (file.get_tensor(name) for name in ("frame_offset", "video_offset", "data"))
        size = file.get_tensor("size")
        metadata = json.loads(file.metadata()["clipwise_pack"])
    assert videos.tolist() == [0, 9, 13, 17, 18]
    assert size.tolist() == [[48, 64], [70, 41], [48, 64], [24, 30]]
    assert (offset.dtype, size.dtype, data.dtype) == (torch.int64, torch.int32, torch.uint8)
    frame = data[offset[9] : offset[10]].reshape(70, 41, 3).numpy()
    assert (frame == whole(manifest, 1)[0]).all()
    assert metadata["source"] == "data.csv"
    assert metadata["classes"] == ["walk", "never", "sit"]


def test_pickled_before_and_after_use(manifest: Manifest, tmp_path: Path) -> None:
    pack(manifest, tmp_path / "data.pack", short_side=None, workers=0)
    packed = Manifest.read(tmp_path / "data.pack")
    unused = pickle.dumps(packed)
    expected = whole(packed, 1)
    used = pickle.dumps(packed)
    assert len(used) == len(unused) < 10_000, "the frames are not part of the pickle"
    assert (whole(pickle.loads(used), 1) == expected).all()
    loader = torch.utils.data.DataLoader(
        _Dataset(packed), batch_size=None, num_workers=1, multiprocessing_context="spawn"
    )
    assert (next(iter(loader)).numpy() == whole(packed, 0)).all()


class _Dataset(torch.utils.data.Dataset[torch.Tensor]):
    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(whole(self.manifest, index))


def test_training_from_a_pack_needs_no_decoder(manifest: Manifest, tmp_path: Path) -> None:
    pack(manifest, tmp_path / "data.pack", format="uint8", short_side=None, workers=0)
    code = (
        "import sys\n"
        "for name in ('av', 'PIL', 'kornia', 'pydantic', 'matplotlib'): sys.modules[name] = None\n"
        "from clipwise.data.manifest import Manifest\n"
        f"print(Manifest.read({str(tmp_path / 'data.pack')!r}).open(0).read([3]).shape)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "(1, 48, 64, 3)\n", done.stderr


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_video_stops_or_is_listed(manifest: Manifest, tmp_path: Path, workers: int) -> None:
    (tmp_path / "b" / "img_00003.jpg").write_bytes(b"<html>not found</html>")
    output = tmp_path / "data.pack"
    with pytest.raises(DecodeError, match=r"video 2 of 4 .*on_error='skip'") as error:
        pack(manifest, output, short_side=None, workers=workers)
    assert error.value.path == str(tmp_path / "b")
    assert "data.csv" in str(error.value)
    assert left_over(tmp_path) == []
    report = pack(manifest, output, format="uint8", short_side=None, workers=workers, on_error="skip")
    assert (report.videos, report.frames) == (3, 14)
    assert [name for name, _ in report.skipped] == ["b"]
    packed = Manifest.read(output)
    assert [item.name for item in packed] == ["a", "a", "c"]
    assert packed.labels.tolist() == manifest.labels[[0, 2, 3]].tolist()
    assert all((whole(packed, i) == whole(manifest, j)).all() for i, j in enumerate([0, 2, 3]))
    assert PackedFile.open_with_metadata(output)[1]["skipped"] == ["b"]


def test_a_video_that_fails_in_a_later_piece_is_taken_back(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "_CHUNK_BYTES", 1)
    (tmp_path / "b" / "img_00003.jpg").write_bytes(b"")
    pack(manifest, tmp_path / "data.pack", short_side=None, workers=0, on_error="skip", format="uint8")
    packed = Manifest.read(tmp_path / "data.pack")
    assert all((whole(packed, i) == whole(manifest, j)).all() for i, j in enumerate([0, 2, 3]))


@pytest.mark.parametrize("form", ["jpeg", "shards-jpeg"])
def test_missing_videos_are_left_out_like_unreadable_ones_where_asked(
    manifest: Manifest,
    tmp_path: Path,
    form: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.rmtree(tmp_path / "b")
    (tmp_path / "c" / "img_00001.jpg").write_bytes(b"")
    output = tmp_path / ("data.pack" if form == "jpeg" else "shards")
    command = ("data", "pack", manifest.source, output, "--format", form, "--workers", "1")
    assert clipwise(*command, monkeypatch=monkeypatch) == 1
    err = capsys.readouterr().err
    assert "1 of 4 videos are missing" in err
    assert "--clean cleaned.csv` writes a list without them" in err
    assert not output.exists()
    assert clipwise(*command, "--skip-unreadable", monkeypatch=monkeypatch) == 0
    err = capsys.readouterr().err
    assert "2 videos could not be read, left out:\n  b: no such file; check the path" in err
    assert "\n  c: " in err
    assert [item.name for item in Manifest.read(output)] == ["a", "a"]
    for name in "ac":
        shutil.rmtree(tmp_path / name)
    again = (*command[:3], output.with_name("other.pack" if form == "jpeg" else "other"), *command[4:])
    assert clipwise(*again, "--skip-unreadable", monkeypatch=monkeypatch) == 1
    assert "none of 4 videos could be decoded; a: no such file" in capsys.readouterr().err


def test_nothing_readable_is_an_error_even_when_skipping(manifest: Manifest, tmp_path: Path) -> None:
    for picture in tmp_path.glob("?/*.jpg"):
        picture.write_bytes(b"")
    with pytest.raises(ValueError, match="none of 4 videos could be decoded"):
        pack(manifest, tmp_path / "data.pack", short_side=None, workers=0, on_error="skip")
    assert left_over(tmp_path) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_interrupt_leaves_nothing_behind(manifest: Manifest, tmp_path: Path, workers: int) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(manifest, tmp_path / "data.pack", short_side=None, workers=workers, progress=interrupt)
    assert left_over(tmp_path) == []


def test_output_is_never_replaced_unasked(manifest: Manifest, tmp_path: Path) -> None:
    output = tmp_path / "data.pack"
    output.write_text("mine")
    with pytest.raises(ValueError, match=r"data\.pack: exists; .*overwrite"):
        pack(manifest, output, short_side=None, workers=0)
    with pytest.raises(KeyboardInterrupt):
        pack(manifest, output, short_side=None, workers=0, overwrite=True, progress=_interrupt)
    assert output.read_text() == "mine"
    pack(manifest, output, short_side=None, workers=0, overwrite=True)
    assert len(Manifest.read(output)) == 4


def _interrupt(done: int, total: int) -> None:
    raise KeyboardInterrupt


def test_unusable_output_and_options(manifest: Manifest, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere/data\.pack: cannot be written \(No such file"):
        pack(manifest, tmp_path / "nowhere" / "data.pack", short_side=None, workers=0)
    with pytest.raises(ValueError, match=r"call it data\.pack"):
        pack(manifest, tmp_path / "data.bin", short_side=None)
    with pytest.raises(ValueError, match="got 'png'"):
        pack(manifest, tmp_path / "data.pack", format="png", short_side=None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="got 0"):
        pack(manifest, tmp_path / "data.pack", short_side=0)
    with pytest.raises(ValueError, match="quality must be from 1 to 100, got 101"):
        pack(manifest, tmp_path / "data.pack", short_side=None, quality=101)


def test_damaged_packs_are_named(manifest: Manifest, tmp_path: Path) -> None:
    output = tmp_path / "data.pack"
    pack(manifest, output, short_side=None, workers=0)
    content = output.read_bytes()
    packed = Manifest.read(output)
    for kept in (len(content) - 1, len(content) // 2, 100, 5, 0):
        output.write_bytes(content[:kept])
        with pytest.raises(ValueError, match=r"data\.pack: (\d+ bytes where \d+ were written|not a pack).*pack"):
            Manifest.read(output)
        with pytest.raises(DecodeError, match=r"data\.pack: the pack (changed|cannot be read)"):
            pickle.loads(pickle.dumps(packed)).open(0)
    output.write_bytes(b"<!DOCTYPE html>" * 50)
    with pytest.raises(ValueError, match=r"data\.pack: not a pack.*clipwise data pack"):
        Manifest.read(output)
    damaged = content.replace(content[content.index(b"\xff\xd8\xff") :][:40], bytes(40), 1)
    output.write_bytes(damaged)
    with pytest.raises(DecodeError, match="frame 0 is damaged"):
        Manifest.read(output).open(0).read([0])


def test_other_safetensors_files_are_no_packs(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"fc.weight": torch.zeros(2)}, tmp_path / "weights.pack")
    with pytest.raises(ValueError, match="not a pack"):
        Manifest.read(tmp_path / "weights.pack")


def test_real_videos(shared: Path, tmp_path: Path) -> None:
    rows = (shared / "data" / "overhead_adl" / "clips.csv").read_text().splitlines()[:5]
    (tmp_path / "data.csv").write_text(
        "\n".join([rows[0], *(f"{shared / 'data' / 'overhead_adl'}/{row}" for row in rows[1:])])
    )
    manifest = Manifest.read(tmp_path / "data.csv")
    pack(manifest, tmp_path / "data.pack", format="uint8", short_side=None, workers=0)
    packed = Manifest.read(tmp_path / "data.pack")
    for index in range(len(manifest)):
        assert (whole(packed, index) == whole(manifest, index)).all()
        assert packed.open(index).fps == pytest.approx(25)
