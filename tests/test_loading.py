"""What makes reading cheaper the second time, and hides it from the device: kept indices, memory, prefetching."""

import contextlib
import itertools
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SMALL
from torch.utils.data import DataLoader

import clipwise
from clipwise.data import index_cache, memory, prefetch
from clipwise.data.decode import DecodeError, PacketIndex, VideoFile
from clipwise.data.index_cache import FOLDER, IndexCache, worth_keeping
from clipwise.data.manifest import Manifest
from clipwise.data.memory import available_memory, hold_in_memory
from clipwise.data.prefetch import DevicePrefetcher

# Packet indices


@pytest.fixture
def long_ones(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Manifest:
    """Four short videos in a folder of their own, in a world where short ones are long."""
    monkeypatch.setattr(index_cache, "_LONG", 5)
    source = Manifest.read(videos)
    for number, name in enumerate(("a/one.mp4", "a/two.mp4", "b/three.mp4", "b/four.mp4")):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source[number].path, tmp_path / "set" / name)
    return Manifest.read(tmp_path / "set")


def files(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / FOLDER).rglob("*") if path.is_file())


def count_scans(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    made: list[str] = []
    plain = VideoFile._make_index

    def counting(self: VideoFile) -> PacketIndex:
        made.append(os.path.basename(self.path))
        return plain(self)

    monkeypatch.setattr(VideoFile, "_make_index", counting)
    return made


def read_all(manifest: Manifest) -> list[np.ndarray]:
    result = []
    for index in range(len(manifest)):
        with manifest.open(index) as video:
            result.append(video.read([video.num_frames - 1, 0, 3]))
    return result


def test_second_time_no_packet_is_scanned(long_ones: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    made = count_scans(monkeypatch)
    first = read_all(long_ones)
    assert sorted(made) == ["four.mp4", "one.mp4", "three.mp4", "two.mp4"]
    assert len(files(long_ones.root)) == 4
    made.clear()
    for one, other in zip(first, read_all(Manifest.read(long_ones.source)), strict=True):  # the folder is no class
        np.testing.assert_array_equal(one, other)
    assert made == []
    # Wherever the folder goes, its indices go with it.
    moved = long_ones.root.rename(long_ones.root.with_name("moved"))
    read_all(Manifest.read(moved))
    assert made == []


def test_index_comes_back_as_it_was(long_ones: Manifest) -> None:
    cache = IndexCache(long_ones.root)
    path = long_ones[0].path
    with VideoFile(path) as video:
        cache.put(path, video.index)
        kept = cache.get(path)
        assert kept is not None
        for name in PacketIndex.__slots__:
            np.testing.assert_array_equal(getattr(kept, name), getattr(video.index, name))
        assert kept.time_base == video.index.time_base
        assert isinstance(kept.time_base, Fraction)


def test_changed_file_is_scanned_again(long_ones: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    read_all(long_ones)
    one, other = long_ones[0].path, long_ones[2].path
    made = count_scans(monkeypatch)
    status = os.stat(one)
    os.utime(one, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    read_all(long_ones)
    assert made == [os.path.basename(one)]
    made.clear()
    shutil.copy(other, one)
    os.utime(one, ns=(status.st_atime_ns, status.st_mtime_ns + 1))  # the time alone would not tell
    if os.path.getsize(one) != status.st_size:
        read_all(long_ones)
        assert made == [os.path.basename(one)]


@pytest.mark.parametrize("harm", ["cut", "empty", "noise", "longer", "other"])
def test_damaged_index_counts_as_none(long_ones: Manifest, harm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = read_all(long_ones)
    kept = files(long_ones.root)
    for number, file in enumerate(kept):
        data = file.read_bytes()
        file.write_bytes(
            {
                "cut": data[:-8],
                "empty": b"",
                "noise": np.random.default_rng(0).bytes(len(data)),
                "longer": data + bytes(8),
                "other": kept[number - 1].read_bytes(),  # of another video
            }[harm]
        )
    made = count_scans(monkeypatch)
    for one, two in zip(expected, read_all(long_ones), strict=True):
        np.testing.assert_array_equal(one, two)
    assert len(made) >= 3
    made.clear()
    read_all(long_ones)
    assert made == []


def test_folder_that_cannot_be_written_does_without(long_ones: Manifest) -> None:
    (long_ones.root / FOLDER).write_bytes(b"")  # holds for root, too, whom no permission stops
    expected = read_all(long_ones)
    assert len(read_all(long_ones)) == len(expected)


def test_short_clips_leave_nothing_behind(videos: Path) -> None:
    read_all(Manifest.read(videos))
    assert not (videos / FOLDER).exists()


def test_what_is_worth_keeping(tmp_path: Path) -> None:
    def index(packets: int, container: str, counted: bool) -> PacketIndex:
        numbers = np.arange(packets)
        return PacketIndex(
            "h264", container, Fraction(1, 25), 25.0, numbers, numbers[:0], numbers[::50], numbers, packets, counted
        )

    assert worth_keeping(index(9000, "mov,mp4", False))
    assert not worth_keeping(index(250, "mov,mp4", False))
    assert not worth_keeping(index(9000, "mpegts", False))  # read in order whatever is known
    assert worth_keeping(index(250, "avi", True))  # counted by decoding it all


def _read(manifest: Manifest) -> None:
    read_all(manifest)


def test_processes_that_write_at_once(long_ones: Manifest) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_read, args=(long_ones,)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert [path.suffix for path in files(long_ones.root)] == [".index"] * 4


# Memory


def test_frames_in_memory_are_the_files(videos: Path) -> None:
    manifest = Manifest.read(videos)
    held = hold_in_memory(manifest, short_side=None, workers=0)
    assert [item.name for item in held] == [item.name for item in manifest]
    for index in range(len(manifest)):
        with manifest.open(index) as video, held.open(index) as kept:
            assert (kept.num_frames, kept.fps) == (video.num_frames, video.fps)
            np.testing.assert_array_equal(kept.read(range(kept.num_frames)), video.read(range(video.num_frames)))
    val = held.select("val")
    with val.open(0) as one, manifest.select("val").open(0) as other:
        np.testing.assert_array_equal(one.read([2]), other.read([2]))
    with hold_in_memory(manifest.select("val"), short_side=32, workers=0).open(0) as small:
        assert small.read([0]).shape == (1, 32, 32, 3)


class LastFrames(torch.utils.data.Dataset[torch.Tensor]):
    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, index: int) -> torch.Tensor:
        with self.manifest.open(index) as video:
            return torch.from_numpy(video.read([video.num_frames - 1]))


@pytest.mark.parametrize("nameless", [True, False])
@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_loader_processes_share_the_memory(
    videos: Path, tmp_path: Path, context: str, nameless: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not nameless:  # as on macOS
        monkeypatch.delattr(os, "memfd_create", raising=False)
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    held = hold_in_memory(Manifest.read(videos, split="val"), short_side=None, workers=0)
    store = held._pack
    assert isinstance(store, memory.FramesInMemory)
    loader: DataLoader[Any] = DataLoader(
        LastFrames(held), batch_size=None, num_workers=1, multiprocessing_context=context
    )
    for index, last in enumerate(loader):
        np.testing.assert_array_equal(last, LastFrames(held)[index])
    child = multiprocessing.get_context(context).Process(target=_blacken, args=(store,))
    child.start()
    child.join()
    assert child.exitcode == 0
    assert not held.open(0).read([0]).any()  # what one writes, the other sees: there is one copy
    assert not list(tmp_path.iterdir())  # a file that has no name is gone however the processes end


def test_a_temporary_file_that_finds_no_room_is_told_before_decoding(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "memfd_create", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(memory.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(9, 8, 1))  # type: ignore[attr-defined]
    done: list[int] = []
    with pytest.raises(ValueError, match=rf"{tmp_path}: data\.in_memory .* 0\.00 GB are free there; set TMPDIR"):
        hold_in_memory(Manifest.read(videos), short_side=None, workers=0, progress=lambda *count: done.append(0))
    assert not done


def _blacken(store: memory.FramesInMemory) -> None:
    with store.frames(0) as video:
        store.put(0, 0, bytes(video.read([0]).nbytes), None)


def test_memory_that_does_not_suffice_is_told_in_numbers(videos: Path) -> None:
    manifest = Manifest.read(videos)
    with pytest.raises(ValueError, match=r"needs 0\.00 GB for \d+ frames of 24 videos.*of 0\.00 GB.*80%.*data pack"):
        hold_in_memory(manifest, short_side=None, workers=0, available=1000)
    assert 10**7 < available_memory() < 10**14


def test_unreadable_video_in_memory_fails_as_its_file(videos: Path, tmp_path: Path) -> None:
    shutil.copytree(videos, tmp_path / "set")
    manifest = Manifest.read(tmp_path / "set")
    Path(manifest[1].path).write_bytes(b"nothing")
    held = hold_in_memory(manifest, short_side=None, workers=0)
    with pytest.raises(DecodeError, match="not a video") as caught:
        held.open(1)
    assert caught.value.path == manifest[1].path
    held.open(2).read([0])


def test_training_from_memory_is_training_from_files(videos: Path, run: Path, tmp_path: Path) -> None:
    """Frames of 48 pixels, smaller than the short side asked for, are held as they are: nothing changes."""
    clipwise.train(
        videos, tmp_path / "run", overrides=[*SMALL, "data.in_memory=true", "data.workers=1", "views.crop_ratio=0.5"]
    )
    clipwise.train(videos, tmp_path / "plain", overrides=[*SMALL, "views.crop_ratio=0.5"])
    one, two = ((tmp_path / name / "last.safetensors").read_bytes() for name in ("run", "plain"))
    assert one == two


# To the device


def batches(count: int) -> Iterator[dict[str, Any]]:
    for number in range(count):
        yield {"clip": torch.full((2, 3), number), "label": torch.tensor([number]), "failures": [], "index": "x"}


def test_on_the_cpu_nothing_happens() -> None:
    loader: Any = list(batches(3))
    prefetcher = DevicePrefetcher(loader, torch.device("cpu"))
    assert len(prefetcher) == 3
    for one, other in zip(prefetcher, loader, strict=True):
        assert one is other


class FakeCuda:
    """Keeps account of what would be asked of the device, in order."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.on = "main"
        fake, numbers = self, itertools.count()

        class Event:
            def __init__(self) -> None:
                self.number = next(numbers)

            def record(self, stream: Any) -> None:
                fake.log.append(f"record {self.number} on {stream.name}")

        class Stream:
            def __init__(self, device: torch.device) -> None:
                self.name = "side"

        self.Event, self.Stream = Event, Stream

    @contextlib.contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        self.on = stream.name
        yield
        self.on = "main"

    def current_stream(self, device: torch.device) -> Any:
        fake = self

        class Main:
            name = "main"

            def wait_event(self, event: Any) -> None:
                fake.log.append(f"main waits for {event.number}")

        return Main()


def test_next_batch_is_copied_while_one_is_computed_with(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCuda()
    monkeypatch.setattr(prefetch, "_cuda", fake)
    plain = torch.Tensor.to

    def to(self: torch.Tensor, device: Any, non_blocking: bool = False) -> torch.Tensor:
        assert non_blocking
        fake.log.append(f"copy on {fake.on}")
        return plain(self, device)

    monkeypatch.setattr(torch.Tensor, "to", to)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: fake.log.append(f"held for {stream.name}"))
    loader: Any = list(batches(3))
    seen = []
    for batch in DevicePrefetcher(loader, torch.device("meta"), ["clip"]):
        fake.log.append(f"compute {len(seen)}")
        seen.append(batch)
        assert batch["clip"].device.type == "meta"
        assert batch["label"].device.type == "cpu"
        assert batch["index"] == "x"
    assert [batch["label"].item() for batch in seen] == [0, 1, 2]
    assert fake.log == [
        *("copy on side", "record 0 on side"),
        *("copy on side", "record 1 on side"),
        *("main waits for 0", "held for main", "compute 0"),
        *("copy on side", "record 2 on side"),
        *("main waits for 1", "held for main", "compute 1"),
        *("main waits for 2", "held for main", "compute 2"),
    ]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_arrive_whole_on_a_real_device() -> None:
    data = torch.randint(0, 255, (64, 3, 256, 256), dtype=torch.uint8)
    loader: DataLoader[Any] = DataLoader(
        [{"clip": picture} for picture in data],
        batch_size=8,
        pin_memory=True,  # type: ignore[arg-type]
    )
    sums = [batch["clip"].sum().item() for batch in DevicePrefetcher(loader, torch.device("cuda"), ["clip"])]
    assert sums == [part.sum().item() for part in data.split(8)]


def test_av_is_what_the_key_names() -> None:
    """The key of a kept index has FFmpeg's version; PyAV must keep telling it."""
    av = pytest.importorskip("av")
    assert "libavformat" in av.library_versions
