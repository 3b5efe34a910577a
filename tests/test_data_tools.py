"""Splitting, checking and counting data: videos encoded here and broken in many ways, and processes that die."""

import csv
import itertools
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from conftest import PATIENCE, clipwise, until
from dying import dies_or_not
from PIL import Image

from clipwise.data.check import UNUSABLE, CheckReport, FileTask, check, inspect, journal_of
from clipwise.data.isolation import run_isolated
from clipwise.data.manifest import Manifest
from clipwise.data.split import divide, near_duplicates
from clipwise.data.stats import collect, draw
from clipwise.data.table import Table

SECONDS = 2


def pictures(count: int = 25 * SECONDS, size: tuple[int, int] = (96, 64), seed: int = 0) -> np.ndarray:
    """(count, H, W, 3) uint8: a pattern of its own for each seed, drifting, with a grain that keeps files large."""
    rng = np.random.default_rng(seed)
    width, height = size
    large = np.asarray(
        Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).resize((2 * width, height), Image.Resampling.BICUBIC)
    )
    frames = np.stack([np.roll(large, -t, 1)[:, :width] for t in range(count)])
    return np.clip(frames + rng.normal(0, 6, frames.shape), 0, 255).astype(np.uint8)


def encode(
    path: Path,
    frames: np.ndarray,
    *,
    codec: str = "libx264",
    fps: int = 25,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    times: list[int] | None = None,
    rotation: int = 0,
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=fps, options=options or {"g": "12", "crf": "20"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.thread_count = 1
        stream.codec_context.time_base = base = Fraction(1, 1000 if times else fps)
        if rotation:
            stream.set_display_rotation(rotation)
        for number, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = times[number] if times else number
            frame.time_base = base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def sound(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def box(path: Path, kind: bytes) -> tuple[int, int]:
    """Where an mp4's box begins and ends."""
    data, place = path.read_bytes(), 0
    while place < len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        if data[place + 4 : place + 8] == kind:
            return place, place + length
        place += length
    raise AssertionError(f"no {kind!r} in {path}")


FAST = {"movflags": "faststart"}

# Each way to break a video: what is done to a fresh file, and the kind it is to be found as.
BREAKAGES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "zero_bytes": ("empty", lambda path: path.write_bytes(b"")),
    "html": ("html", lambda path: path.write_text("<!DOCTYPE html><html><body>404 Not Found</body></html>")),
    "xml_error": (
        "html",
        lambda path: path.write_text('<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>'),
    ),
    "text": ("unreadable", lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n" * 3)),
    "sound_only": ("no_video", sound),
    "no_moov": ("unreadable", lambda path: path.write_bytes(path.read_bytes()[: box(path, b"moov")[0]])),
    "header_only": ("unreadable", lambda path: path.write_bytes(path.read_bytes()[:40])),
    "truncated": (
        "incomplete",
        lambda path: (
            encode(path, pictures(seed=5), container_options=FAST),
            path.write_bytes(path.read_bytes()[: sum(box(path, b"mdat")) // 2]),
        ),
    ),
    "index_without_data": (
        "unreadable",
        lambda path: (
            encode(path, pictures(seed=6), container_options=FAST),
            path.write_bytes(path.read_bytes()[: box(path, b"mdat")[0]]),
        ),
    ),
    "garbage_inside": ("damaged", lambda path: spoil(path, *box(path, b"mdat"))),
    "zeros_inside": ("damaged", lambda path: spoil(path, *box(path, b"mdat"), zeros=True)),
    "jpeg_called_mp4": ("image", lambda path: Image.fromarray(pictures(1)[0]).save(path, "JPEG")),
    "png_called_mp4": ("image", lambda path: Image.fromarray(pictures(1)[0]).save(path, "PNG")),
    "one_frame": ("short", lambda path: encode(path, pictures(1, seed=7))),
    "missing": ("missing", lambda path: path.unlink()),
    "named_pipe": ("unreadable", lambda path: (path.unlink(), os.mkfifo(path))),
    "random_bytes": ("unreadable", lambda path: path.write_bytes(random.Random(0).randbytes(5000))),
}


def spoil(path: Path, begin: int, end: int, *, zeros: bool = False) -> None:
    """Overwrite the middle of a stretch of a file."""
    data = bytearray(path.read_bytes())
    middle, half = (begin + end) // 2, (end - begin) // 6
    data[middle - half : middle + half] = bytes(2 * half) if zeros else random.Random(1).randbytes(2 * half)
    path.write_bytes(data)


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of sound videos and one for each breakage."""
    folder = tmp_path_factory.mktemp("broken")
    rows: list[dict[str, object]] = []
    for number in range(4):
        path = encode(folder / f"good{number}.mp4", pictures(seed=number))
        rows.append({"path": path.name, "label": "ab"[number % 2], "person": f"p{number}"})
    for number, (name, (_, spoiled)) in enumerate(BREAKAGES.items()):
        path = encode(folder / f"{name}.mp4", pictures(seed=100 + number))
        spoiled(path)
        rows.append({"path": path.name, "label": "ab"[number % 2], "person": "x, y"})
    return write(folder / "manifest.csv", rows)


@pytest.fixture(scope="module")
def report(broken: Path) -> CheckReport:
    return check(Table.read(broken, what_for="check"), workers=2)


def kinds_of(report: CheckReport) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for finding in report.findings:
        for name in finding.names:
            found.setdefault(name, set()).add(finding.kind)
    return found


@pytest.mark.parametrize("name", BREAKAGES)
def test_every_breakage_is_found_and_named_as_what_it_is(report: CheckReport, name: str) -> None:
    assert kinds_of(report)[f"{name}.mp4"] & UNUSABLE == {BREAKAGES[name][0]}


def test_nothing_is_found_wrong_with_sound_videos(report: CheckReport) -> None:
    assert not [name for name in kinds_of(report) if name.startswith("good")]
    assert not report.deaths


def test_decoding_every_frame_finds_the_same_and_what_lies_between(
    broken: Path, report: CheckReport, tmp_path: Path
) -> None:
    assert set(check(Table.read(broken, what_for="check"), full=True, workers=2).unusable) == set(report.unusable)
    # Damage a quarter in: neither the beginning nor the middle nor the end.
    path = encode(tmp_path / "v.mp4", pictures(200, seed=9))
    begin, end = box(path, b"mdat")
    spoil(path, begin, begin + (end - begin) // 2)
    task = FileTask(str(path), ((None, None, None),), "portions", False)
    assert inspect(task, lambda: None)["problems"] == []
    ((_, kind, reason),) = inspect(task._replace(depth="full"), lambda: None)["problems"]
    assert kind == "damaged"
    assert "frames between" in reason


@pytest.mark.parametrize(("suffix", "codec"), [(".webm", "libvpx-vp9"), (".mkv", "libx264"), (".avi", "mpeg4")])
def test_other_containers_cut_off_are_found_and_whole_ones_are_not(tmp_path: Path, suffix: str, codec: str) -> None:
    path = encode(tmp_path / f"v{suffix}", pictures(seed=3), codec=codec, options={"g": "12"})
    task = FileTask(str(path), ((None, None, None),), "full", False)
    assert inspect(task, lambda: None)["problems"] == []
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert {kind for _, kind, _ in inspect(task, lambda: None)["problems"]} & UNUSABLE


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="everything may be read by root")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = encode(tmp_path / "v.mp4", pictures(8))
    path.chmod(0)
    result = inspect(FileTask(str(path), ((None, None, None),), "portions", True), lambda: None)
    assert [kind for _, kind, _ in result["problems"]] == ["permission"]


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos that can be read, but something is odd about them; named after it."""
    folder = tmp_path_factory.mktemp("odd")
    rows: list[dict[str, object]] = []

    def add(name: str, label: str = "a", split: str = "train") -> Path:
        rows.append({"path": name, "label": label, "split": split})
        return folder / name

    for number in range(3):
        encode(add(f"good{number}.mp4", "ab"[number % 2]), pictures(seed=number))
    encode(add("fast.mp4"), pictures(seed=10), fps=60)
    uneven = np.cumsum([10 if number % 3 else 90 for number in range(50)]).tolist()
    encode(add("uneven.mp4"), pictures(seed=11), times=uneven)
    encode(add("rotated.mp4"), pictures(seed=12), rotation=90)
    for seed, name, other, *where in (
        (20, "same1.mp4", "other_label.mp4", "b", "train"),
        (21, "twice1.mp4", "other_split.mp4", "a", "val"),
        (22, "again1.mp4", "again2.mp4", "a", "train"),
    ):
        shutil.copy(encode(add(name), pictures(seed=seed)), add(other, *where))
    return write(folder / "manifest.csv", rows)


def test_what_is_odd_is_reported_but_not_left_out(odd: Path) -> None:
    report = check(Table.read(odd, what_for="check"), workers=2)
    assert kinds_of(report) == {
        "fast.mp4": {"odd_rate"},
        "uneven.mp4": {"variable_rate"},
        "rotated.mp4": {"rotated"},
        "same1.mp4": {"two_labels"},
        "other_label.mp4": {"two_labels"},
        "twice1.mp4": {"across_splits"},
        "other_split.mp4": {"across_splits"},
        "again1.mp4": {"duplicate"},
        "again2.mp4": {"duplicate"},
    }
    assert not report.unusable
    assert (report.facts["rotated.mp4"]["width"], report.facts["rotated.mp4"]["height"]) == (64, 96)


def test_segments_are_checked_each_by_itself(tmp_path: Path) -> None:
    encode(tmp_path / "long.mp4", pictures(100))
    spoiled = encode(tmp_path / "spoiled.mp4", pictures(100, seed=1))
    spoil(spoiled, *box(spoiled, b"mdat"))
    frames = tmp_path / "frames"
    frames.mkdir()
    for number, picture in enumerate(pictures(20)):
        Image.fromarray(picture).save(frames / f"{number:05}.jpg")
    (frames / "00012.jpg").write_bytes(b"no picture")
    rows = [
        ("long.mp4", 0, 2, ""),
        ("long.mp4", 2, 9, ""),
        ("long.mp4", 3, 3.1, ""),
        ("long.mp4", 4.5, 5, ""),
        ("spoiled.mp4", 0, 0.8, ""),
        ("spoiled.mp4", 1, 3, ""),
        ("frames", 0, 0.4, 25),
        ("frames", 0.4, 0.8, 25),
        ("frames", 5, 6, 25),
    ]
    names = ("path", "start", "end", "fps")
    manifest = write(tmp_path / "m.csv", [dict(zip(names, row, strict=True), label="a") for row in rows])
    for full in (False, True):
        report = check(Table.read(manifest, what_for="check"), workers=1, full=full)
        assert kinds_of(report) == {
            "long.mp4 [3–3.1 s]": {"short"},
            "long.mp4 [4.5–5 s]": {"segment"},
            "spoiled.mp4 [1–3 s]": {"damaged"},
            "frames [0.4–0.8 s]": {"damaged"},
            "frames [5–6 s]": {"segment"},
        }


def test_the_command_reports_cleans_and_tells_by_its_status(
    broken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report, clean = tmp_path / "report.json", tmp_path / "clean.csv"
    arguments = ("data", "check", broken, "--workers", "2", "--output", report, "--clean", clean)
    assert clipwise(*arguments, monkeypatch=monkeypatch) == 1
    out, err = capsys.readouterr()
    found = json.loads(report.read_text())
    assert found["counts"]["image"] == 2
    assert set(found["unusable"]) == {f"{name}.mp4" for name in BREAKAGES}
    for name in BREAKAGES:
        assert f"{name}.mp4: " in err  # whatever is left out is named
    assert "missing.mp4: no such file" in out
    assert not journal_of(report).exists()
    # Columns survive, paths lead to the files from where the list now lies, and it is clean.
    assert [row["person"] for row in rows_of(clean)] == ["p0", "p1", "p2", "p3"]
    Manifest.read(clean).check_files()
    assert clipwise("data", "check", clean, "--workers", "2", monkeypatch=monkeypatch) == 0
    # Nothing is replaced unasked.
    assert clipwise(*arguments, monkeypatch=monkeypatch) == 1
    assert "exists" in capsys.readouterr().err


def test_kinds_that_are_allowed_do_not_count(odd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = ("odd_rate", "variable_rate", "rotated", "two_labels", "across_splits", "duplicate")
    allowed = [part for kind in kinds for part in ("--allow", kind)]
    assert clipwise("data", "check", odd, "--workers", "2", *allowed, monkeypatch=monkeypatch) == 0
    assert clipwise("data", "check", odd, "--workers", "2", *allowed[:-2], monkeypatch=monkeypatch) == 1


def test_what_is_allowed_stays_in_the_list_if_it_can_be_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = encode(tmp_path / "cut.mp4", pictures(seed=2), container_options=FAST)
    cut.write_bytes(cut.read_bytes()[: sum(box(cut, b"mdat")) // 2])
    encode(tmp_path / "whole.mp4", pictures(seed=1))
    encode(tmp_path / "brief.mp4", pictures(3))
    names = ("whole.mp4", "brief.mp4", "cut.mp4", "gone.mp4")
    source = write(tmp_path / "m.csv", [{"path": name, "label": "ab"[n % 2]} for n, name in enumerate(names)])
    clean = tmp_path / "clean.csv"
    command = ("data", "check", source, "--clean", clean, "--overwrite", "--workers", "1")

    def kept(*allowed: str) -> tuple[int, list[str], str]:
        options = [part for kind in allowed for part in ("--allow", kind)]
        status = clipwise(*command, *options, monkeypatch=monkeypatch)
        return status, [row["path"] for row in rows_of(clean)], capsys.readouterr().err.splitlines()[-1]

    assert kept()[:2] == (1, ["whole.mp4"])
    assert kept("short")[:2] == (1, ["whole.mp4", "brief.mp4"])
    status, listed, last = kept("short", "incomplete", "missing")
    assert (status, listed) == (0, ["whole.mp4", "brief.mp4", "cut.mp4"])
    assert last.endswith(f"nothing is wrong but what --allow names; {clean} leaves out 1 video that cannot be decoded")
    encode(tmp_path / "gone.mp4", pictures(seed=5))
    assert kept("short", "incomplete") == (
        0,
        list(names),
        "4 videos, their beginnings, middles and ends decoded: nothing is wrong",
    )


def test_findings_of_several_videos_are_told_apart_and_counted_alike(
    odd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "torn.mp4").write_bytes(b"")
    rows: list[dict[str, object]] = [
        {"path": "torn.mp4", "label": "a", "start": n, "end": n + 1, "split": "train"} for n in range(5)
    ]
    for row in rows_of(odd):
        if row["path"] in ("twice1.mp4", "other_split.mp4"):
            rows.append({**row, "path": odd.parent / row["path"], "start": "", "end": ""})
    source, output = write(tmp_path / "m.csv", rows), tmp_path / "r.json"
    assert clipwise("data", "check", source, "-o", output, "--workers", "1", monkeypatch=monkeypatch) == 1
    out = capsys.readouterr().out
    found = json.loads(output.read_text())
    assert found["counts"] == {"empty": 5, "across_splits": 2}
    for kind, number in found["counts"].items():  # the table says the same
        assert re.search(rf"^│ *{kind} .*│ *{number} *│", out, re.MULTILINE)
    assert "torn.mp4 [0–1 s], torn.mp4 [1–2 s], torn.mp4 [2–3 s] and 2 more: " in out
    assert "twice1.mp4 = " in out


def test_a_class_whose_videos_are_all_unusable_stays_in_the_list(tmp_path: Path) -> None:
    encode(tmp_path / "a.mp4", pictures())
    (tmp_path / "b.mp4").write_bytes(b"")
    source = write(tmp_path / "m.csv", [{"path": f"{name}.mp4", "label": name} for name in "ab"])
    table = Table.read(source, what_for="check")
    (tmp_path / "out").mkdir()
    table.write(tmp_path / "out" / "clean.csv", [0])
    assert Manifest.read(tmp_path / "out" / "clean.csv").classes == ("a", "b")


# Processes that die


def test_a_death_or_a_hang_costs_one_task_and_no_other(tmp_path: Path) -> None:
    tasks = ["a", "crash", "b", f"once {tmp_path / 'mark'}", "exit", "hang", "c", "slow", "d"]
    outcomes = dict(run_isolated(dies_or_not, tasks, workers=2, timeout=2))
    for number in (0, 2, 6, 7, 8):
        assert outcomes[number].value == f"done {tasks[number]}"
        assert not outcomes[number].deaths
    assert outcomes[3].value == "done once"
    assert outcomes[3].deaths == ("ended by SIGKILL",)
    assert outcomes[1] == (None, ("ended by SIGSEGV",) * 2, False)
    assert outcomes[4].deaths == ("ended with exit status 3",) * 2
    assert outcomes[5].hung
    assert "for 2 s" in outcomes[5].deaths[0]


# A program whose decoder crashes on one file and hangs on another, as a faulty library does.
FAULTY = """
import os, signal, sys, time
from clipwise.data import check as module

def faulty(path):
    if path.endswith("good1.mp4"):
        os.kill(os.getpid(), signal.SIGSEGV)
    if path.endswith("good2.mp4"):
        time.sleep(600)
    return original(path)

original, module._look_at_outside = module._look_at_outside, faulty

if __name__ == "__main__":
    from clipwise.cli import main
    sys.argv = ["clipwise", *sys.argv[1:]]
    main()
"""


def test_a_decoder_that_crashes_or_hangs_costs_that_file(broken: Path, tmp_path: Path) -> None:
    (tmp_path / "faulty.py").write_text(FAULTY)
    source = write(
        tmp_path / "m.csv", [{"path": broken.parent / f"good{n}.mp4", "label": "ab"[n % 2]} for n in range(4)]
    )
    report = tmp_path / "report.json"
    command = [sys.executable, tmp_path / "faulty.py", "data", "check", source, "-o", report, "--workers", "2"]
    ended = subprocess.run([*command, "--timeout", "2"], capture_output=True, text=True, timeout=PATIENCE)
    assert ended.returncode == 1, ended.stderr
    found = json.loads(report.read_text())
    assert found["counts"] == {"crashed": 1, "hung": 1}
    reasons = {Path(name).name: reason for name, reason in found["unusable"].items()}
    assert "SIGSEGV" in reasons["good1.mp4"]
    assert "no sign of life for 2 s" in reasons["good2.mp4"]


SLOW = """
import sys, time
from clipwise.data import check as module

def slow(path):
    time.sleep(0.3)
    return original(path)

original, module._look_at_outside = module._look_at_outside, slow

if __name__ == "__main__":
    from clipwise.cli import main
    sys.argv = ["clipwise", *sys.argv[1:]]
    main()
"""


def living(group: int) -> list[str]:
    """The processes of a group; those that are dead and not yet buried do not count."""
    listed = subprocess.run(["ps", "-eo", "pgid=,stat=,args="], capture_output=True, text=True, check=True).stdout
    lines = [line.split(maxsplit=2) for line in listed.splitlines()]
    return [line[2] for line in lines if line[0] == str(group) and not line[1].startswith("Z")]


@pytest.mark.parametrize("how", ["ctrl_c", "killed"])
def test_after_ctrl_c_or_a_kill_it_goes_on_where_it_was(
    how: str, broken: Path, report: CheckReport, tmp_path: Path
) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    output = tmp_path / "report.json"
    journal = journal_of(output)
    command = [sys.executable, str(tmp_path / "slow.py"), "data", "check", str(broken), "-o", str(output)]
    running = subprocess.Popen([*command, "--workers", "2"], stderr=subprocess.PIPE, text=True, start_new_session=True)
    until(lambda: journal.exists() and journal.read_text().count("\n") >= 5, "some videos are checked")
    if how == "ctrl_c":
        os.killpg(running.pid, signal.SIGINT)  # as a terminal does: to the workers, too
    else:
        running.kill()
    _, err = running.communicate(timeout=PATIENCE)
    if how == "ctrl_c":
        assert running.returncode == 130, err
        assert "--resume" in err
    assert "Traceback" not in err
    assert not output.exists()
    until(lambda: not living(running.pid), "no worker is left behind")
    known = journal.read_text().count("\n") - 1
    assert 4 <= known < len(Manifest.read(broken))
    with journal.open("a") as file:
        file.write('{"key": "cut off by the dea')  # as a kill -9 leaves it

    # Without --resume the work done is not thrown away, nor taken for another's.
    arguments = {"capture_output": True, "text": True, "timeout": 60}
    refused = subprocess.run([*command, "--workers", "2"], **arguments)
    assert refused.returncode == 1
    assert "--resume" in refused.stderr

    (tmp_path / "slow.py").write_text(SLOW.replace("time.sleep(0.3)", "open(__file__ + '.seen', 'a').write('x')"))
    resumed = subprocess.run([*command, "--workers", "2", "--resume"], **arguments)
    assert resumed.returncode == 1, resumed.stderr
    assert len((tmp_path / "slow.py.seen").read_text()) == len(Manifest.read(broken)) - known
    assert not journal.exists()
    fresh = tmp_path / "fresh.json"
    report.write(fresh)
    assert json.loads(output.read_text()) == json.loads(fresh.read_text())


def test_a_journal_is_not_taken_for_files_that_changed(tmp_path: Path) -> None:
    encode(tmp_path / "a.mp4", pictures(seed=1))
    source = write(tmp_path / "m.csv", [{"path": "a.mp4", "label": "a"}, {"path": "b.mp4", "label": "b"}])
    encode(tmp_path / "b.mp4", pictures(seed=2))
    table, journal = Table.read(source, what_for="check"), tmp_path / "r.json.journal"

    def stop(done: int, total: int) -> None:
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check(table, workers=1, journal=journal, progress=stop)
    (tmp_path / "a.mp4").write_bytes(b"")
    assert check(table, workers=1, journal=journal, resume=True).counts == {"empty": 1}
    journal.write_text("{}\n")
    with pytest.raises(ValueError, match="remove it"):
        check(table, workers=1, journal=journal, resume=True)


# Split


def listed(path: Path, rows: list[tuple[str, str, str]]) -> Table:
    write(path, [dict(zip(("path", "label", "person"), row, strict=True)) for row in rows])
    return Table.read(path, what_for="split")


def people(rng: random.Random, persons: int, classes: int, most: int) -> list[tuple[str, str, str]]:
    rows = []
    for person, name in itertools.product(range(persons), range(classes)):
        for number in range(rng.randint(0, most) if person >= 3 else rng.randint(1, most)):
            rows.append((f"p{person}_c{name}_{number}.mp4", f"class{name}", f"p{person}"))
    return rows


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("test", [0.0, 0.2])
def test_groups_stay_whole_and_every_class_is_everywhere(tmp_path: Path, seed: int, test: float) -> None:
    table = listed(tmp_path / "m.csv", people(random.Random(seed), 12, 4, 5))
    division = divide(table, val=0.25, test=test, group_by="person", seed=seed)
    of_person = {}
    for person, split in zip(table.column("person"), division.of_row, strict=True):
        assert of_person.setdefault(person, split) == split
    for counts in division.counts.values():
        assert all(counts)
        for count, share in zip(counts, division.wanted, strict=True):
            assert abs(count / sum(counts) - share) < 0.13
    assert divide(table, val=0.25, test=test, group_by="person", seed=seed) == division
    assert divide(table, val=0.25, test=test, group_by=r"^(p\d+)_", seed=seed) == division


@pytest.mark.parametrize("seed", range(4))
def test_no_other_division_is_nearer_to_the_wanted_shares(tmp_path: Path, seed: int) -> None:
    table = listed(tmp_path / "m.csv", people(random.Random(seed), 9, 3, 6))
    rows = list(zip(table.column("label"), table.column("person"), strict=True))
    names, persons = sorted({name for name, _ in rows}), sorted({person for _, person in rows})
    numbers = np.array([[rows.count((name, person)) for name in names] for person in persons])
    numbers = np.concatenate([numbers, numbers.sum(1, keepdims=True)], 1)

    def cost(chosen: np.ndarray) -> float:
        total, val = numbers.sum(0), numbers[chosen].sum(0)
        if not (val.all() and (total - val).all()):
            return math.inf
        return float(((val - 0.3 * total) ** 2 / (0.3 * total) + (val - 0.3 * total) ** 2 / (0.7 * total)).sum())

    best = min(cost(np.array(choice)) for choice in itertools.product([False, True], repeat=len(persons)))
    division = divide(table, val=0.3, group_by="person", seed=seed)
    in_val = {person for (_, person), split in zip(rows, division.of_row, strict=True) if split == "val"}
    assert cost(np.array([person in in_val for person in persons])) == pytest.approx(best)


def test_without_groups_every_share_is_exact_to_one_video(tmp_path: Path) -> None:
    rows = [(f"{name}{n}.mp4", name, "") for name, count in (("a", 6), ("b", 57), ("c", 1000)) for n in range(count)]
    division = divide(listed(tmp_path / "m.csv", rows), val=0.2, test=0.1)
    assert not division.uneven
    for counts in division.counts.values():
        assert all(abs(n - share * sum(counts)) < 1 for n, share in zip(counts, division.wanted, strict=True))


def test_segments_of_one_file_stay_together_whatever_their_groups(tmp_path: Path) -> None:
    rng = random.Random(0)
    rows = [
        {"path": f"./f{n // 5}.mp4" if n % 2 else f"f{n // 5}.mp4", "label": rng.choice("ab"), "start": n % 5,
         "end": n % 5 + 1, "person": rng.choice("uvwxyz") if n < 10 else f"p{n}"}
        for n in range(100)
    ]  # fmt: skip
    table = Table.read(write(tmp_path / "m.csv", rows), what_for="split")
    for group_by in (None, "person"):
        division = divide(table, val=0.3, group_by=group_by)
        files = {(os.path.normpath(row["path"]), split) for row, split in zip(rows, division.of_row, strict=True)}
        assert len(files) == 20
        assert Counter(division.of_row)["val"] == pytest.approx(30, abs=5)


def test_what_cannot_be_divided_is_refused_with_the_remedy(tmp_path: Path) -> None:
    rows = [(f"{n}.mp4", "often", f"p{n % 4}") for n in range(40)] + [("x.mp4", "rare", "p0"), ("y.mp4", "rare", "p0")]
    table = listed(tmp_path / "m.csv", rows)
    with pytest.raises(ValueError, match=r"'rare' \(2 videos in 1 group\).*finer than 'person'.*--rare-to-train"):
        divide(table, group_by="person")
    division = divide(table, group_by="person", rare_to_train=True)
    assert division.rare == ("rare",)
    assert division.counts["rare"] == (2, 0)
    for shares in ({"val": 0.0}, {"val": 0.6, "test": 0.4}, {"val": -0.1}):
        with pytest.raises(ValueError, match="below 1"):
            divide(table, **shares)
    with pytest.raises(ValueError, match=r"columns are path, label, person.*needs a group"):
        divide(table, group_by="recording")
    with pytest.raises(ValueError, match="nor a regular expression"):
        divide(table, group_by="(")
    with pytest.raises(ValueError, match=r"2 of 42 videos have no group.*x\.mp4"):
        divide(table, group_by=r"(\d+)\.mp4")


def long_tailed(persons: int, videos: int, classes: dict[str, tuple[int, float]]) -> list[dict[str, object]]:
    """Videos of persons, some of whom filmed more than others; class k of a head occurs in proportion to k^-steepness,
    and every person shows something that no other does."""
    rng = np.random.default_rng(0)

    def drawn(number: int, steepness: float) -> list[int]:
        weights = np.arange(1, number + 1) ** -steepness
        return rng.choice(number, videos, p=weights / weights.sum()).tolist()

    of_person = drawn(persons, 0.6)
    columns = {f"label:{head}": drawn(*how) for head, how in classes.items()}
    rows: list[dict[str, object]] = []
    for row, person in enumerate(of_person):
        cells = {column: f"{column[6:]}{of[row]}" for column, of in columns.items()}
        rows.append({"path": f"P{person}_{row}.mp4", **cells, "person": f"P{person}"})
    for person in range(persons):
        rows.append({**rows[of_person.index(person)], "path": f"P{person}.mp4", "label:noun": f"only P{person}"})
    return rows


@pytest.mark.parametrize("test", [0.0, 0.15])
def test_a_long_tail_is_divided_with_the_fewest_classes_missing(
    tmp_path: Path, test: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("clipwise.data.split._STARTS", 3)  # three are good enough to beat chance
    source = write(tmp_path / "m.csv", long_tailed(24, 1500, {"verb": (50, 1.5), "noun": (120, 1.2)}))
    table = Table.read(source, what_for="split")
    with pytest.raises(ValueError, match="--rare-to-train"):
        divide(table, group_by="person")
    division = divide(table, val=0.2, test=test, group_by="person", rare_to_train=True)
    persons = set(zip(table.column("person"), division.of_row, strict=True))
    assert len(persons) == 24
    for split, share in zip(division.splits, division.wanted, strict=True):
        assert division.of_row.count(split) == pytest.approx(share * len(table), rel=0.3)
    lacking = {
        name: tuple(split for split, count in zip(division.splits, counts, strict=True) if not count)
        for name, counts in division.counts.items()
        if not all(counts)
    }
    assert division.missing == {name: of for name, of in lacking.items() if name not in division.rare}
    assert all("train" not in lacking[name] for name in division.rare)
    assert len(division.rare) >= 15
    # Dealt out anyhow, within the same sizes, more are missing.
    here = sum(map(len, lacking.values()))
    rng, groups = random.Random(0), sorted(set(table.column("person")))
    videos, places = Counter(table.column("person")), {name: place for place, name in enumerate(division.counts)}
    showing = np.zeros((len(groups), len(places)), int)
    for person, names in zip(table.column("person"), table.classes, strict=True):
        showing[groups.index(person), [places[name] for name in names]] += 1
    tried = []
    while len(tried) < 200:
        of = np.array(rng.choices(range(len(division.splits)), division.wanted, k=len(groups)))
        sizes = [sum(videos[group] for group, at in zip(groups, of, strict=True) if at == s) for s in set(of.tolist())]
        if len(sizes) == len(division.splits) and all(
            abs(size / len(table) - share) <= 0.25 * share for size, share in zip(sizes, division.wanted, strict=True)
        ):
            tried.append(sum(int((showing[of == s].sum(0) == 0).sum()) for s in range(len(division.splits))))
    assert here < min(tried)

    options = ("--group-by", "person", "--rare-to-train", "--no-duplicates-check", "--test", str(test))
    assert clipwise("data", "split", source, tmp_path / "out.csv", *options, monkeypatch=monkeypatch) == 0
    err = capsys.readouterr().err
    for split in division.splits:
        names = [name for name, of in division.missing.items() if split in of]
        if names:
            assert f"warning: {len(names)} of {len(division.counts)} classes" in err
            assert f"no videos in {split}, since groups stay whole: {', '.join(names)}\n" in err


def test_more_splits_than_groups_are_refused(tmp_path: Path) -> None:
    table = listed(tmp_path / "m.csv", [(f"{n}.mp4", "a", "p") for n in range(9)])
    with pytest.raises(ValueError, match=r"1 group cannot be divided into train and val; group by something finer"):
        divide(table, group_by="person", rare_to_train=True)


def test_where_groups_forbid_a_share_it_says_so(tmp_path: Path) -> None:
    rows = [(f"{person}{n}.mp4", "a", person) for person in "xy" for n in range(10)]
    division = divide(listed(tmp_path / "m.csv", rows), val=0.2, group_by="person")
    assert division.counts == {"a": (10, 10)}
    assert "no choice of groups comes nearer" in division.uneven["a"]


def test_copies_on_both_sides_are_listed_and_other_videos_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[dict[str, object]] = []
    for number in range(10):
        encode(tmp_path / f"v{number}.mp4", pictures(20, seed=number))
        rows.append({"path": f"v{number}.mp4", "label": "ab"[number % 2], "split": "train" if number < 8 else "val"})
    # One again, smaller and worse, in another container; and black, of which any two are alike.
    small = np.stack([np.asarray(Image.fromarray(frame).resize((64, 48))) for frame in pictures(20, seed=3)])
    encode(tmp_path / "copy.avi", small, codec="mpeg4", options={"qmin": "8", "qmax": "8"})
    rows.append({"path": "copy.avi", "label": "a", "split": "val"})
    for number, split in enumerate(("train", "val")):
        encode(tmp_path / f"black{number}.mp4", np.zeros((10, 64, 96, 3), np.uint8))
        rows.append({"path": f"black{number}.mp4", "label": "a", "split": split})
    (tmp_path / "broken.mp4").write_bytes(b"")
    rows.append({"path": "broken.mp4", "label": "b", "split": "val"})
    table = Table.read(write(tmp_path / "m.csv", rows), what_for="split")
    splits = [str(row["split"]) for row in rows]
    twins, unknown = near_duplicates(table, splits, workers=2)
    assert [(twin.one, twin.other) for twin in twins] == [(3, 10)]
    assert unknown == [11, 12, 13]
    assert near_duplicates(table, ["train"] * len(table), workers=2)[0] == []

    source, output = str(tmp_path / "m.csv"), tmp_path / "out.csv"
    assert clipwise("data", "split", source, output, "--workers", "2", monkeypatch=monkeypatch) == 1
    err = capsys.readouterr().err
    assert "is divided already (train, val); --resplit divides it anew" in err
    assert "test" not in err.partition("m.csv")[2]
    for seed in range(9):  # until the copy falls on the other side
        options = ("--resplit", "--overwrite", "--workers", "2", "--val", "0.4", "--seed", str(seed))
        division = divide(table, val=0.4, seed=seed).of_row
        if division[3] != division[10]:
            break
    assert clipwise("data", "split", source, output, *options, monkeypatch=monkeypatch) == 0
    err = capsys.readouterr().err
    assert "warning: 1 pair" in err
    assert "broken.mp4" in err
    assert "copy.avi" in err


def test_a_split_keeps_all_columns_and_finds_its_files_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    out.mkdir()
    rows = [
        {"Path": f"{n}.mp4", " note": f'a "b", {n}', "class": "xy"[n % 2], "Person": f"p{n // 2}"} for n in range(20)
    ]
    for row in rows:
        (data / str(row["Path"])).touch()
    write(data / "m.csv", rows)
    (data / "classes.txt").write_text("y\nx\nz\n")
    arguments = ("--no-duplicates-check", "--group-by", "person", "--test", "0.2")
    command = ("data", "split", data / "m.csv", out / "d.csv", *arguments)
    assert clipwise(*command, monkeypatch=monkeypatch) == 0
    written = rows_of(out / "d.csv")
    assert list(written[0]) == ["Path", " note", "class", "Person", "split"]
    assert [row[" note"] for row in written] == [row[" note"] for row in rows]
    manifest = Manifest.read(out / "d.csv")
    manifest.check_files()
    assert manifest.classes == ("y", "x", "z")
    assert manifest.splits == ("test", "train", "val")
    assert len({(row["Person"], row["split"]) for row in written}) == 10
    assert clipwise(*command, monkeypatch=monkeypatch) == 1
    assert "exists" in capsys.readouterr().err


def test_one_split_is_divided_and_the_others_stay_what_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As of UCF-101: an official test split, and val to be held out of the official train."""
    rng = random.Random(0)
    rows: list[dict[str, object]] = [
        {"path": f"{name}_g{group:02d}_c{clip}.mp4", "label": name, "split": "test" if group < 4 else "train"}
        for name, group, clip in itertools.product("abc", range(1, 15), range(3))
    ]
    rng.shuffle(rows)
    rows.append({"path": "a_g01_extra.mp4", "label": "a", "split": ""})
    source, output = write(tmp_path / "m.csv", rows), tmp_path / "out.csv"
    command = ("data", "split", source, output, "--overwrite", "--no-duplicates-check")
    groups = ("--group-by", r"_g(\d+)_")
    assert clipwise(*command, *groups, "--only", "train", monkeypatch=monkeypatch) == 0
    out, err = capsys.readouterr()
    assert "99 videos in 11 groups; 28 as they were" in err
    assert re.search(r"train \(80%\).*val \(20%\)", out)
    assert "test" not in out
    divided: dict[str, set[str]] = {"train": set(), "val": set()}
    for before, after in zip(rows, rows_of(output), strict=True):
        assert after["path"] == before["path"]
        if before["split"] == "train":
            divided[after["split"]].add(re.findall(r"_g(\d+)_", after["path"])[0])
        else:
            assert after["split"] == before["split"]
    assert (len(divided["train"]), len(divided["val"])) == (9, 2)
    assert not divided["train"] & divided["val"]
    manifest = Manifest.read(output)
    for split in ("train", "val"):
        assert {manifest.names_of(row)[0] for row, item in enumerate(manifest) if item.split == split} == set("abc")

    # What is left keeps its name, and nothing is added to a split that is there.
    half = ("--val", "0", "--test", "0.5")
    assert clipwise("data", "split", output, tmp_path / "b.csv", "--only", "val", *half, monkeypatch=monkeypatch) == 1
    assert "has a split test already, and --only val would add to it" in capsys.readouterr().err
    for wrong, message in (
        (("--only", "training"), "no split 'training'; there is: test, train"),
        (("--only", "test", "--val", "0", "--test", "0.5"), "has a split test already"),
        (("--only", "train", "--resplit"), "give one of them"),
    ):
        assert clipwise(*command, *wrong, monkeypatch=monkeypatch) == 1
        assert message in capsys.readouterr().err
    for row in rows:
        row["split"] = "val" if row["split"] == "test" else row["split"]
    write(source, rows)
    assert clipwise(*command, "--only", "val", *half, monkeypatch=monkeypatch) == 0
    assert Counter(row["split"] for row in rows_of(output)) == {"train": 99, "val": 14, "test": 13, "": 1}


def test_only_what_was_divided_is_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[dict[str, object]] = []
    for number in range(4):
        encode(tmp_path / f"v{number}.mp4", pictures(20, seed=number // 2))  # two and two alike
        rows.append({"path": f"v{number}.mp4", "label": "a", "split": "train" if number < 2 else "test"})
    source, output = write(tmp_path / "m.csv", rows), tmp_path / "out.csv"
    shutil.copy(tmp_path / "v0.mp4", tmp_path / "v2.mp4")
    options = ("--only", "train", "--val", "0.5", "--workers", "1")
    assert clipwise("data", "split", source, output, *options, monkeypatch=monkeypatch) == 0
    err = capsys.readouterr().err
    assert "warning: 1 pair" in err
    assert "v0.mp4" in err
    assert "v2.mp4" not in err


def test_several_heads_and_several_labels_are_divided_by_each_class(tmp_path: Path) -> None:
    rng = random.Random(0)
    heads = [
        {"path": f"{n}.mp4", "label:verb": rng.choice("ot"), "label:noun": rng.choice("cdp"), "p": n % 20}
        for n in range(200)
    ]
    labels = [{"path": f"{n}.mp4", "labels": "|".join(rng.sample("abc", rng.randint(1, 3)))} for n in range(100)]
    for rows, names in (
        (heads, ["noun:c", "noun:d", "noun:p", "verb:o", "verb:t"]),
        (labels, ["a", "b", "c"]),
    ):
        table = Table.read(write(tmp_path / "m.csv", rows), what_for="split")
        division = divide(table, val=0.2, group_by="p" if rows is heads else None)
        assert list(division.counts) == names
        for counts in division.counts.values():
            assert counts[1] / sum(counts) == pytest.approx(0.2, abs=0.04)
        (tmp_path / "out").mkdir(exist_ok=True)
        table.write(tmp_path / "out" / "d.csv", range(len(table)), {"split": division.of_row})
        manifest = Manifest.read(tmp_path / "out" / "d.csv")
        assert manifest.splits == ("train", "val")
        assert manifest.heads == table.manifest.heads
        assert np.array_equal(manifest.labels, table.manifest.labels)
        for path in (tmp_path / "out").iterdir():
            path.unlink()


def test_a_pack_is_refused_with_what_to_give_instead(tmp_path: Path, videos: Path) -> None:
    from clipwise.data.pack import pack

    packed = pack(Manifest.read(videos), tmp_path / "v.pack", workers=0).path
    with pytest.raises(ValueError, match=r"check works on.* what this was made from"):
        Table.read(packed, what_for="check")


# Stats


def test_stats_count_what_is_there(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers, picture = tmp_path / "s.json", tmp_path / "s.png"
    command = ("data", "stats", videos, "--output", numbers, "--picture", picture, "--workers", "2")
    assert clipwise(*command, monkeypatch=monkeypatch) == 0
    found = json.loads(numbers.read_text())
    manifest = Manifest.read(videos)
    assert found["videos"] == found["files"] == len(manifest)
    assert found["splits"] == Counter(item.split for item in manifest)
    assert found["sizes"] == {"48x48": len(manifest)}
    assert found["imbalance"]["all"] == 1
    frames = [manifest.open(number).num_frames for number in range(len(manifest))]
    assert found["frames"]["total"] == sum(frames)
    assert found["frames"]["median"] == float(np.median(frames))
    with Image.open(picture) as image:
        assert image.size[0] == 1500
        assert len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) > 20
    assert "largest : smallest" in capsys.readouterr().out


def test_stats_name_what_cannot_be_read_and_count_no_class_twice(broken: Path, tmp_path: Path) -> None:
    stats = collect(Table.read(broken, what_for="stats"), workers=2)
    assert sum(stats.splits.values()) == stats.videos == 4 + len(BREAKAGES)
    assert {"missing.mp4", "html.mp4", "zero_bytes.mp4"} < stats.unreadable.keys()
    assert not any(name.startswith("good") for name in stats.unreadable)
    assert len(stats.frames) == stats.videos - len(stats.unreadable)
    json.dumps(stats.as_json())
    draw(tmp_path / "s.svg", stats, "broken")
    assert "broken" not in (tmp_path / "s.svg").read_text()[:100]


def test_long_class_lists_are_counted_by_head_without_rows_of_nothing(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = Manifest.read(videos)
    rows: list[dict[str, object]] = [
        {"path": item.path, "label:verb": f"v{n % 3}", "label:noun": f"n{n % 2}", "split": item.split}
        for n, item in enumerate(manifest)
    ]
    source, picture, numbers = write(tmp_path / "m.csv", rows), tmp_path / "s.svg", tmp_path / "s.json"
    (tmp_path / "classes.verb.txt").write_text("".join(f"v{n}\n" for n in range(173)))
    command = ("data", "stats", source, "--picture", picture, "--output", numbers, "--workers", "2")
    assert clipwise(*command, monkeypatch=monkeypatch) == 0
    out = capsys.readouterr().out
    assert "170 classes have no videos" in out
    assert not [name for name in (f"v{n}" for n in range(3, 173)) if f" {name} " in out]
    assert out.count("largest : smallest") == 2
    found = json.loads(numbers.read_text())
    assert (len(found["classes"]), found["classes"]["verb:v172"]) == (175, {"train": 0, "val": 0})
    assert found["imbalance"]["verb"]["all"] is None
    assert found["imbalance"]["noun"]["all"] == pytest.approx(1, abs=0.2)
    assert picture.read_text().count('id="axes_') == 5  # two heads; lengths, sizes, rates


def test_ticks_are_whole_numbers_up_to_the_largest() -> None:
    from clipwise.data.stats import _ticks

    for most in (1, 2, 3, 7, 9, 30, 199, 200, 1234):
        ticks = _ticks(most, 5)
        assert ticks[0] == 0
        assert ticks[-1] == most
        assert ticks == sorted(set(ticks))
        assert 2 <= len(ticks) <= 7


@pytest.mark.parametrize("verb", ["split", "check", "stats"])
def test_help_shows_an_example(verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert clipwise("data", verb, "--help", monkeypatch=monkeypatch) == 0
    assert "Example" in capsys.readouterr().out


def test_real_videos_are_found_sound(shared: Path) -> None:
    for path in sorted((shared / "data" / "clips").iterdir()):
        for depth in ("portions", "full"):
            assert inspect(FileTask(str(path), ((None, None, None),), depth, False), lambda: None)["problems"] == []


def test_copies_among_real_videos_are_found(shared: Path, tmp_path: Path) -> None:
    source = shared / "data" / "handwash12" / "clips.csv"
    folder = tmp_path / "some"
    folder.mkdir()
    rows = [row for row in rows_of(source) if row["class"] == "Step_5_Left"]
    for row in rows:
        shutil.copy(source.parent / row["path"], folder)
        row["path"] = Path(row["path"]).name
    report = check(Table.read(write(folder / "m.csv", rows), what_for="check"), workers=2)
    assert sum(finding.kind == "across_splits" for finding in report.findings) == len(report.findings) == 3
    assert report.counts == {"across_splits": len({row for finding in report.findings for row in finding.rows})}
