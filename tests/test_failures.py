"""Videos that cannot be read: named and counted, never replaced; a reader's death; spawn; the number of workers."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import av
import pytest
import torch
from conftest import PATIENCE, SMALL
from torch.utils.data import DataLoader

import clipwise
from clipwise.config import load_config
from clipwise.data.dataset import DrawSampler, TrainingClips, collate
from clipwise.data.decode import DecodeError
from clipwise.data.failures import Failure, FailureAccount, TooManyFailuresError, deaths_explained
from clipwise.data.manifest import Manifest


def _audio_only(path: Path) -> None:
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame(format="fltp", layout="mono", samples=1024)
        frame.sample_rate = 8000
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


LARGE = [*SMALL, "training.batch_size=32", "training.reference_batch=32", "views.size=32"]

# Ten ways for a file to be broken, each of which leaves a file that exists.
WAYS = {
    "zero bytes": lambda path: path.write_bytes(b""),
    "a web page": lambda path: path.write_text("<html><body>404 Not Found</body></html>"),
    "cut to its first bytes": lambda path: path.write_bytes(path.read_bytes()[:64]),
    "cut in half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "without its beginning": lambda path: path.write_bytes(path.read_bytes()[200:]),
    "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "noise": lambda path: path.write_bytes(bytes(range(256)) * 40),
    "sound alone": _audio_only,
    "text": lambda path: path.write_text("moved to the archive"),
    "no index": lambda path: path.write_bytes(path.read_bytes().replace(b"moov", b"none")),
}


@pytest.fixture(scope="module")
def damaged(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[str]]:
    """336 videos of which ten, 3 %, are broken, each in its own way; and the names of those."""
    folder = tmp_path_factory.mktemp("damaged")
    rows = []
    for item in Manifest.read(videos):
        for copy in range(14):
            name = f"{Path(item.path).stem}_{copy}.mp4"
            shutil.copyfile(item.path, folder / name)
            rows.append((name, Path(item.path).parent.name, item.split))
    of_split = {split: [name for name, _, part in rows if part == split] for split in ("train", "val")}
    broken = [*of_split["train"][::23][:7], *of_split["val"][::17][:3]]
    for name, damage in zip(broken, WAYS.values(), strict=True):
        damage(folder / name)
    lines = ["path,label,split", *(",".join(map(str, row)) for row in rows)]
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    assert len(rows) == 336
    return folder, set(broken)


def names(failures: Iterable[Failure]) -> set[str]:
    return {Path(failure.path).name for failure in failures}


def test_skip_leaves_out_exactly_the_broken_ones(damaged: tuple[Path, set[str]], tmp_path: Path) -> None:
    folder, broken = damaged
    more = [*LARGE, "data.on_error=skip"]
    result = clipwise.train(folder, tmp_path / "run", overrides=more)
    assert result.finished
    assert names(result.unreadable) == broken
    account = json.loads((tmp_path / "run/unreadable.json").read_text())
    assert names([Failure(**entry) for part in account.values() for entry in part]) == broken
    assert len(account["training"]) == 7
    assert all(entry["reason"] for part in account.values() for entry in part)

    evaluation = clipwise.evaluate(tmp_path / "run", on_error="skip").evaluation
    assert names(list(evaluation.unreadable)) == names([Failure(**entry) for entry in account["validation"]])
    with pytest.raises(DecodeError, match="on_error skip or report scores the rest"):
        clipwise.evaluate(tmp_path / "run", on_error="raise")
    with pytest.raises(TooManyFailuresError, match=r"of \d+ videos could not be read, more than the 0.01"):
        clipwise.evaluate(tmp_path / "run", on_error="skip", max_failed=0.01)


def test_a_video_that_is_not_there_is_one_that_cannot_be_read(videos: Path, tmp_path: Path) -> None:
    data = tmp_path / "videos"
    shutil.copytree(videos, data)
    items = Manifest.read(data)
    gone = [next(item for item in items if item.split == split) for split in ("train", "val")]
    lines = [",".join((item.name, Path(item.path).parent.name, item.split)) for item in items]
    (data / "manifest.csv").write_text("\n".join(["path,label,split", *lines]) + "\n")
    for item in gone:
        Path(item.path).unlink()
    with pytest.raises(ValueError, match="2 of 24 videos are missing"):
        clipwise.train(data / "manifest.csv", tmp_path / "run", overrides=SMALL)
    skip = ["data.on_error=skip", "data.max_failed=0.5"]
    result = clipwise.train(data / "manifest.csv", tmp_path / "run", overrides=[*SMALL, *skip])
    assert names(result.unreadable) == {Path(item.path).name for item in gone}
    assert all(failure.reason.startswith("no such file") for failure in result.unreadable)
    found = clipwise.evaluate(tmp_path / "run", on_error="report", workers=0).evaluation
    assert names(list(found.unreadable)) == {Path(gone[1].path).name}
    with pytest.raises(ValueError, match="missing"):
        clipwise.evaluate(tmp_path / "run", on_error="raise")


def test_raise_stops_with_the_first_one_named(damaged: tuple[Path, set[str]], tmp_path: Path) -> None:
    folder, broken = damaged
    manifest = Manifest.read(folder, split="train")
    sampler = DrawSampler(manifest.labels, batch_size=32, epochs=2, balanced=False, seed=0)
    order = [manifest[draw.video].name for batch in sampler for draw in batch]
    first = next(name for name in order if name in broken)
    with pytest.raises(DecodeError, match=r"data\.on_error=skip, also with --resume") as error:
        clipwise.train(folder, tmp_path / "run", overrides=LARGE)
    assert Path(error.value.path).name == first
    if order.index(first) < 32:
        assert list(tmp_path.iterdir()) == [], "nothing was trained, so there is nothing to keep"


def test_a_run_stopped_by_a_validation_video_goes_on_without_it(videos: Path, tmp_path: Path) -> None:
    """Its epoch is not lost, and the remedy that the message names works."""
    data = tmp_path / "videos"
    shutil.copytree(videos, data)
    broken = next(Path(item.path) for item in Manifest.read(data) if item.split == "val")
    broken.write_bytes(b"")
    with pytest.raises(DecodeError, match=broken.name):
        clipwise.train(data, tmp_path / "run", overrides=SMALL)
    assert (tmp_path / "run/last.safetensors").is_file()
    with pytest.raises(ValueError, match=r"only data\.on_error, .*data\.workers, .* can be set"):
        clipwise.train(None, tmp_path / "run", resume=True, overrides=["training.lr=1"])
    result = clipwise.train(
        None, tmp_path / "run", resume=True, overrides=["data.on_error=skip", "data.max_failed=0.5"]
    )
    assert result.finished
    assert [log.epoch for log in result.epochs] == [2]
    assert names(result.unreadable) == {broken.name}


def test_a_run_that_reads_nothing_learns_nothing_and_says_so(videos: Path, tmp_path: Path) -> None:
    data = tmp_path / "videos"
    shutil.copytree(videos, data)
    for item in Manifest.read(data, split="train"):
        Path(item.path).write_bytes(b"")
    with pytest.raises(TooManyFailuresError, match="none of the videos of this epoch could be read"):
        clipwise.train(data, tmp_path / "run", overrides=[*SMALL, "data.on_error=skip", "data.max_failed=1"])


def test_segments_of_one_file_count_each() -> None:
    account = FailureAccount("skip", 0.5, 4, remedy="")
    segments = [Failure("long.mp4", "cut short", start, start + 1) for start in (0.0, 1.0, 2.0)]
    account.add(segments[:2])
    with pytest.raises(TooManyFailuresError, match=r"3 of 4 .*long.mp4 \(1 s to 2 s\): cut short"):
        account.add(segments[2:])


@pytest.mark.parametrize(
    ("policy", "share", "message"),
    [("rais", 0.1, "raise, skip, report, got 'rais'"), ("skip", 5, "share, from 0 to 1")],
)
def test_a_policy_that_does_not_exist_is_refused(policy: Any, share: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FailureAccount(policy, share, 4, remedy="")


def test_an_error_inside_a_reader_keeps_its_own_message() -> None:
    with pytest.raises(RuntimeError, match="Too many open files"), deaths_explained():
        raise RuntimeError("Caught RuntimeError in DataLoader worker process 0.\nToo many open files (24)")
    with pytest.raises(ChildProcessError, match="want of"), deaths_explained():
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")


def test_too_many_stop_the_run(damaged: tuple[Path, set[str]], tmp_path: Path) -> None:
    with pytest.raises(TooManyFailuresError, match=r"of \d+ videos could not be read, more than the 0.01"):
        clipwise.train(damaged[0], tmp_path / "run", overrides=[*LARGE, "data.on_error=skip", "data.max_failed=0.01"])


def test_report_ends_with_status_one_and_skip_with_none(
    damaged: tuple[Path, set[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from conftest import clipwise
    from test_cli import settings

    for policy, status in (("report", 1), ("skip", 0)):
        more = settings(*LARGE, f"data.on_error={policy}", "training.epochs=1")
        assert clipwise("train", damaged[0], "-o", tmp_path / policy, *more, monkeypatch=monkeypatch) == status
        said = capsys.readouterr().err
        assert "10 videos could not be read and took no part; unreadable.json names them" in said
        assert said.count("left out, for it cannot be read") == (10 if policy == "report" else 0)


def test_a_resumed_run_remembers_what_it_could_not_read(damaged: tuple[Path, set[str]], tmp_path: Path) -> None:
    from test_training import Interrupt

    more = [*LARGE, "data.on_error=skip"]
    clipwise.train(damaged[0], tmp_path / "run", overrides=more, reporter=Interrupt(9))
    result = clipwise.train(None, tmp_path / "run", resume=True)
    assert names(result.unreadable) == damaged[1]


def test_a_video_is_counted_once() -> None:
    account = FailureAccount("skip", 0.5, 4, remedy="")
    assert account.add([Failure("a", "x"), Failure("a", "x")]) == [Failure("a", "x")]
    assert account.add([Failure("a", "x")]) == []
    account.add([Failure("b", "y")])
    with pytest.raises(TooManyFailuresError, match=r"3 of 4 videos.*a: x; b: y; c: z"):
        account.add([Failure("c", "z")])


def test_a_killed_reader_ends_the_run_with_a_reason(videos: Path, tmp_path: Path) -> None:
    """A real process, of which one loader is killed in mid-epoch, as the system does when memory runs out."""
    more = [*SMALL, "data.workers=2", "training.epochs=2000"]
    run = subprocess.Popen(
        [sys.executable, "-m", "clipwise", "train", videos, "-o", tmp_path / "run"]
        + [part for override in more for part in ("--set", override)],
        stderr=subprocess.PIPE,
        text=True,
    )
    killed = threading.Event()

    def kill_one() -> None:
        children = Path(f"/proc/{run.pid}/task/{run.pid}/children")
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and not killed.is_set():
            if (tmp_path / "run/last.safetensors").is_file():
                for child in children.read_text().split():
                    command = Path(f"/proc/{child}/cmdline").read_bytes()
                    if b"clipwise" in command:
                        os.kill(int(child), signal.SIGKILL)
                        killed.set()
                        return
            time.sleep(0.05)

    if not Path("/proc/self/task").is_dir():
        run.kill()
        pytest.skip("needs /proc to find the loader's processes")
    thread = threading.Thread(target=kill_one)
    thread.start()
    _, errors = run.communicate(timeout=PATIENCE)
    thread.join()
    assert killed.is_set()
    assert run.returncode == 1, errors
    assert "a process that reads videos has died" in errors
    assert "--resume" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_any_number_of_workers_however_started_gives_the_same_clips(videos: Path, context: str) -> None:
    config = load_config(overrides=[*SMALL, "augmentation.flip=true"])
    manifest = Manifest.read(videos, split="train")

    def clips(workers: int) -> list[torch.Tensor]:
        dataset = TrainingClips(
            manifest, num_frames=4, size=32, data=config.data, augmentation=config.augmentation, seed=3
        )
        sampler = DrawSampler(manifest.labels, batch_size=5, epochs=1, balanced=False, seed=3)
        loader = DataLoader(
            dataset,
            batch_sampler=sampler,
            num_workers=workers,
            collate_fn=collate,
            multiprocessing_context=context if workers else None,
        )
        return [batch["clip"] for batch in loader]

    for alone, together in zip(clips(0), clips(2), strict=True):
        assert torch.equal(alone, together)


def test_a_whole_run_is_the_same_with_workers(videos: Path, tmp_path: Path) -> None:
    logs = []
    for workers in (0, 2):
        folder = tmp_path / str(workers)
        clipwise.train(videos, folder, overrides=[*SMALL, f"data.workers={workers}"])
        logs.append([line.split(",")[:4] for line in (folder / "epochs.csv").read_text().splitlines()])
    assert logs[0] == logs[1]
