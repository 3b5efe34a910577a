"""Batches in memory that is used again: the same as PyTorch's, nobody's changed while held, nothing left behind."""

import contextlib
import gc
import itertools
import multiprocessing
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import PATIENCE, until
from torch.utils.data import DataLoader, Dataset

from clipwise.config import AugmentationConfig, DataConfig, ViewsConfig
from clipwise.data import shared_buffers
from clipwise.data.dataset import DrawSampler, TestViews, TrainingClips, collate
from clipwise.data.failures import Failure
from clipwise.data.manifest import Manifest
from clipwise.data.shared_buffers import ClipLoader

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs memory without a name (Linux)")


class Numbered(Dataset[Any]):
    """Clip n is full of the number n; those of ``sizes`` are of another size, those of ``broken`` fail."""

    def __init__(self, count: int, size: int = 128, broken: tuple[int, ...] = (), sizes: dict[int, int] | None = None):
        self.count, self.size, self.broken, self.sizes = count, size, broken, sizes or {}

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        if index in self.broken:
            return Failure(f"{index}.mp4", "broken")
        size = self.sizes.get(index, self.size)
        clip = torch.full((2, size, size, 3), index, dtype=torch.uint8).permute(0, 3, 1, 2)
        return {"clip": clip, "label": index, "index": index, "available": 9}


def assert_numbered(batch: dict[str, Any]) -> None:
    expected = batch["index"].to(torch.uint8)[:, None, None, None, None].expand(batch["clip"].shape)
    assert torch.equal(batch["clip"], expected)


def open_files() -> list[str]:
    found = []
    for entry in os.scandir("/proc/self/fd"):
        try:
            found.append(os.readlink(entry.path))
        except FileNotFoundError:  # the listing's own
            continue
    return [path for path in found if "clipwise" in path]


def mapped() -> int:
    gc.collect()
    return Path("/proc/self/maps").read_text().count("memfd:clipwise")


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    assert one["failures"] == other["failures"]
    for name in one.keys() - {"failures"}:
        assert one[name].dtype == other[name].dtype
        assert torch.equal(one[name], other[name]), name


@pytest.mark.parametrize(("context", "workers"), [("fork", 2), ("spawn", 1)])
def test_batches_are_those_of_a_plain_loader(videos: Path, tmp_path: Path, context: str, workers: int) -> None:
    shutil.copytree(videos, tmp_path / "set")
    manifest = Manifest.read(tmp_path / "set", split="train")
    Path(manifest[3].path).write_bytes(b"nothing")
    clips = TrainingClips(manifest, num_frames=8, size=96, data=DataConfig(), augmentation=AugmentationConfig(), seed=0)
    views = TestViews(manifest, num_frames=8, views=ViewsConfig(clips=2, crops=3, sampling="uniform", size=96))
    sampler = DrawSampler(manifest.labels, batch_size=5, epochs=1, balanced=False, seed=0)
    of_sets: list[tuple[Any, Any, dict[str, Any]]] = [
        (clips, next(iter(sampler))[0], {"batch_sampler": sampler}),
        (views, 0, {"batch_size": 3}),
    ]
    for dataset, first, options in of_sets[: 2 if context == "fork" else 1]:
        loader = ClipLoader(dataset, num_workers=workers, multiprocessing_context=context, **options)
        batches = list(zip(loader, DataLoader(dataset, collate_fn=collate, **options), strict=True))
        for one, other in batches:
            assert_same(one, other)
            assert one["clip"][0].stride() == dataset[first]["clip"].stride()
        assert sum(len(one["failures"]) for one, _ in batches) == 1
        assert not batches[0][0]["clip"].is_shared()


def test_in_the_main_process_nothing_is_shared() -> None:
    for batch in ClipLoader(Numbered(4), batch_size=2):
        assert_numbered(batch)
    assert not mapped()


def test_memory_is_used_again() -> None:
    places = set()
    for batch in ClipLoader(Numbered(200), batch_size=2, num_workers=1):
        assert_numbered(batch)
        places.add(batch["clip"].data_ptr())
        assert not batch["clip"].is_shared()  # PyTorch's way of sending
    assert 1 <= len(places) <= 6


def test_batches_that_are_held_do_not_change() -> None:
    """Whoever holds everything has it: once the slots are all taken, batches come as PyTorch sends them."""
    held = []
    for number, batch in enumerate(ClipLoader(Numbered(120), batch_size=2, num_workers=2)):
        held.append(batch if number % 2 else {"clip": batch["clip"][:1], "index": batch["index"][:1]})  # a slice
        if number % 3 == 0:
            batch["clip"].fill_(255)  # as good as one's own
            batch["index"].fill_(255)
    in_slots = [batch for batch in held if not batch["clip"].is_shared()]
    assert 10 <= len(in_slots) <= 14
    assert len(held) == 60
    for batch in held:
        assert_numbered(batch)
    array = in_slots[0]["clip"].numpy()[:, :1]  # neither tensor nor batch is left, but their memory is
    expected = array.copy()
    held.clear(), in_slots.clear()
    del batch
    np.testing.assert_array_equal(array, expected)


def test_slots_come_back_in_any_order() -> None:
    generator = np.random.default_rng(0)
    held: list[Any] = []
    shared = 0
    for batch in ClipLoader(Numbered(250, size=160), batch_size=1, num_workers=2):
        held.append(batch)
        while len(held) > generator.integers(1, 6):
            assert_numbered(held.pop(generator.integers(len(held))))
        shared += batch["clip"].is_shared()
    for batch in held:
        assert_numbered(batch)
    assert shared < 25


def test_sizes_that_differ_and_batches_without_clips() -> None:
    first = Numbered(24, size=96, broken=(0, 1, 2, 3, 5, 20), sizes=dict.fromkeys(range(8, 12), 160))
    batches = list(ClipLoader(first, batch_size=4, num_workers=1))
    assert [len(batch["failures"]) for batch in batches] == [4, 1, 0, 0, 0, 1]
    assert "clip" not in batches[0]
    for batch in batches[1:]:
        assert_numbered(batch)
    # There is room for four clips though the first batch had three; for larger ones there is none.
    assert [batch["clip"].is_shared() for batch in batches[1:]] == [False, True, False, False, False]


def test_clips_that_do_not_fit_together_are_an_error() -> None:
    with pytest.raises(RuntimeError, match="stack expects each tensor to be equal size"):
        list(ClipLoader(Numbered(8, sizes={5: 1}), batch_size=2, num_workers=1))


def test_passes_that_are_left_early_and_two_at_once() -> None:
    loader = ClipLoader(Numbered(40), batch_size=2, num_workers=1)
    kept = [next(iter(loader)) for _ in range(3)]
    for one, other in zip(loader, loader, strict=True):
        assert_numbered(one)
        assert_same(one, other)
        assert one["clip"].data_ptr() != other["clip"].data_ptr()
    for batch in kept:
        assert batch["index"].tolist() == [0, 1]
        assert_numbered(batch)
    del kept, batch, one, other, loader
    assert mapped() == 0
    assert open_files() == []


def test_workers_that_persist_fill_their_slots_in_each_pass() -> None:
    loader = ClipLoader(Numbered(30), batch_size=2, num_workers=2, persistent_workers=True)
    kept = [next(iter(loader))]
    for _ in range(3):
        shared = [batch["clip"].is_shared() for batch in loader if assert_numbered(batch) is None]
        assert not any(shared)
    assert_numbered(kept[0])


def test_a_batch_that_fails_gives_its_slot_back() -> None:
    slots, clips = shared_buffers._Slots(1, 1), Numbered(2)

    def failing() -> Iterator[Any]:
        yield clips[0]
        raise ValueError("faulty")

    for _ in range(2):
        with pytest.raises(ValueError, match="faulty"):
            shared_buffers._Rows(slots, 0, 2).collated(failing())
    batch = shared_buffers._Rows(slots, 0, 2).collated([clips[0], clips[1]])
    assert isinstance(batch["clip"], shared_buffers._InSlot)


def test_process_that_is_forked_has_no_say() -> None:
    """A child that lets go of the batch that it was born with must not free it for the parent."""
    iterator = iter(ClipLoader(Numbered(60), batch_size=2, num_workers=1))
    batch = next(iterator)
    mine = [batch]
    del batch
    child = multiprocessing.get_context("fork").Process(target=mine.clear)
    child.start()
    child.join()
    assert child.exitcode == 0
    for _ in itertools.islice(iterator, 20):
        pass
    assert_numbered(mine[0])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bool])
def test_layouts_and_types(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    for make in (
        lambda x: x,
        lambda x: x.permute(1, 2, 0),
        lambda x: x[:, ::2],
        lambda x: x[:, :1],
        lambda x: x[:1].expand(5, -1, -1),
        lambda x: x[0, 0, 0],
    ):
        clips = [make((torch.rand(3, 4, 5, generator=generator) * 9).to(dtype)) for _ in range(4)]
        items = [{"clip": clip, "label": 0, "index": n, "available": 1} for n, clip in enumerate(clips)]
        loader: Any = ClipLoader(items, batch_size=2, num_workers=1)  # type: ignore[arg-type]
        for batch, pair in zip(loader, (clips[:2], clips[2:]), strict=True):
            assert torch.equal(batch["clip"], torch.stack(pair))
            assert batch["clip"].dtype == dtype


def load(context: str, end: str, told: Any) -> None:
    iterator: Any = iter(ClipLoader(Numbered(200), batch_size=2, num_workers=2, multiprocessing_context=context))
    held = [next(iterator) for _ in range(3)]
    told.send([worker.pid for worker in iterator._workers])
    told.recv()
    assert held
    if end == "exception":
        raise ValueError
    if end != "normal":
        time.sleep(2 * PATIENCE)


def load_and_end(context: str, end: str, told: Any) -> None:
    """A main process of its own: it says who its workers are, and ends in one of several ways."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with contextlib.suppress(ValueError, KeyboardInterrupt):
        load(context, end, told)
        sys.exit(0)
    sys.exit(1)


@pytest.mark.parametrize(
    ("context", "end"),
    [("fork", "normal"), ("fork", "exception"), ("fork", "ctrl-c"), ("spawn", "kill")],
)
def test_nothing_is_left_behind(context: str, end: str) -> None:
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=load_and_end, args=(context, end, there))
    process.start()
    assert here.poll(PATIENCE)
    workers = here.recv()
    assert process.pid is not None
    for pid in (process.pid, *workers):  # memory that has no name has nothing to leave
        names = Path(f"/proc/{pid}/maps").read_text()
        assert "memfd:clipwise" in names
        assert "/dev/shm/torch" not in names
    here.send("end")
    if end == "ctrl-c":
        os.kill(process.pid, signal.SIGINT)
    elif end == "kill":
        process.kill()
    process.join(PATIENCE)
    assert process.exitcode == {"normal": 0, "exception": 1, "ctrl-c": 1, "kill": -signal.SIGKILL}[end]
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), "its workers end")


def test_killed_worker_ends_the_pass_and_what_came_stays() -> None:
    iterator: Any = iter(ClipLoader(Numbered(2000), batch_size=2, num_workers=2))
    held = [next(iterator) for _ in range(4)]
    os.kill(iterator._workers[0].pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match=re.escape("DataLoader worker (pid")):
        held.extend(iterator)
    for batch in held:
        assert_numbered(batch)
    del iterator, held, batch
    gc.collect()
    assert mapped() == 0
    assert open_files() == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_pinned_batches() -> None:
    for batch in ClipLoader(Numbered(100), batch_size=2, num_workers=2, pin_memory=True):
        assert batch["clip"].is_pinned()
        assert_numbered({name: batch[name].cuda(non_blocking=True) for name in ("clip", "index")})
