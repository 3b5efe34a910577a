"""``clipwise stream`` as its users and the programs that read its lines meet it; the network tells light from dark."""

import json
import os
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
from conftest import PATIENCE, clipwise
from streams import (
    DARK,
    LIGHT,
    Server,
    encode,
    endless,
    free_port,
    light_network,
    need_rtsp_server,
    pictures,
    rtsp_server,
    transport_stream,
)

from clipwise.data.decode import open_frames
from clipwise.inference.annotated import AnnotatedVideo

LEVELS = [DARK] * 45 + [LIGHT] * 45 + [DARK] * 30
EXACT = ["--smoothing", "0", "--json"]


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return light_network(tmp_path_factory.mktemp("networks") / "light")


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four seconds at 30 pictures a second: dark, from 1.5 s light, from 3 s dark."""
    path = tmp_path_factory.mktemp("films") / "film.mp4"
    encode(path, LEVELS)
    return path


def lines(text: str, kind: str | None = None) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in text.splitlines()]
    return [line for line in found if kind in (None, line["type"])]


def spans(text: str) -> list[tuple[str, float, float]]:
    return [(line["label"], round(line["start"], 2), round(line["end"], 2)) for line in lines(text, "end")]


def test_events_of_a_file(
    network: Path, video: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert clipwise("stream", network, video, *EXACT, "--scores", monkeypatch=monkeypatch) == 0
    out, err = capsys.readouterr()
    assert spans(out) == [("dark", 0.0, 1.5), ("light", 1.5, 3.0), ("dark", 3.0, 4.0)]
    assert out.isascii()  # and so to be written wherever it goes
    assert "64×48" in lines(out, "notice")[0]["message"]
    kinds = [line["type"] for line in lines(out)]
    assert [kind for kind in kinds if kind not in ("scores", "notice")] == [*["begin", "end"] * 3, "summary"]
    for begun, ended in zip(lines(out, "begin"), lines(out, "end"), strict=True):
        assert begun["end"] is None
        assert (begun["label"], begun["start"]) == (ended["label"], ended["start"])
        assert {"start", "end", "label", "score", "latency_ms"} < set(begun)
    scores = lines(out, "scores")
    assert len(scores) == 120
    assert set(scores[0]["scores"]) == {"dark", "light"}
    summary = lines(out, "summary")[0]
    assert (summary["captured"], summary["looked_at"], summary["dropped"], summary["corrupt"]) == (120, 120, 0, 0)
    assert set(summary["milliseconds"]) == {"capture", "decode", "infer", "latency"}
    assert "64×48 h264" in err
    assert "120 pictures captured" in err


def test_lines_for_people_and_a_threshold_above_which_nothing_is(
    network: Path, video: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert clipwise("stream", network, video, "--smoothing", "0", "--rate", "10", monkeypatch=monkeypatch) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[1:3] == ["     1.50 s  dark ends after 1.50 s (1.00)", "     1.50 s  light begins (1.00)"]
    assert "40 looked at, 80 left out" in err
    # "dark" scores 0.9975 at most.
    options = ["--threshold", "0.999", *EXACT]
    assert clipwise("stream", network, video, *options, monkeypatch=monkeypatch) == 0
    assert spans(capsys.readouterr().out) == [("light", 1.5, 3.0)]


def test_a_stream_and_a_timeline_end_the_last_event_alike(
    network: Path, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """At the end of the last picture, also where the network did not look at that."""
    options = ["--smoothing", "0", "--stride", "7"]
    assert clipwise("stream", network, video, "--json", *options, monkeypatch=monkeypatch) == 0
    found = spans(capsys.readouterr().out)
    out = tmp_path / "film.json"
    assert clipwise("predict", network, video, "--timeline", out, *options, monkeypatch=monkeypatch) == 0
    events = json.loads(out.read_text(encoding="utf-8"))["events"]
    assert found == [(event["label"], round(event["start"], 2), round(event["end"], 2)) for event in events]
    assert found[-1][2] == 4.0


def test_an_annotated_video(
    network: Path,
    video: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """All pictures at their times, also those that the network does not look at, with text in a corner."""
    target = tmp_path / "annotated.mp4"
    options = ["--stride", "4", "--output", target]
    assert clipwise("stream", network, video, *options, monkeypatch=monkeypatch) == 0
    with open_frames(video) as before, open_frames(target) as after:
        assert (after.num_frames, after.fps) == (before.num_frames, pytest.approx(30))
        old, new = before.read([60])[0].astype(int), after.read([60])[0].astype(int)
    assert new.shape == old.shape
    assert np.abs(new[:24] - old[:24]).mean() < 8
    assert np.abs(new[-12:, :20] - old[-12:, :20]).mean() > 30
    assert f"written: {target}" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["annotated.mp4"]


@pytest.mark.parametrize("ending", ["mp4", "mov", "mkv"])
def test_an_annotated_video_has_the_sources_rate_length_and_pixels(
    network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    """Filmed upright with pixels wider than high: turned, they are higher than wide."""
    video, target = tmp_path / "ten.mp4", tmp_path / f"annotated.{ending}"
    encode(video, [DARK] * 20, fps=10, pixel_aspect=Fraction(4, 3), rotation=90)
    assert clipwise("stream", network, video, "--output", target, monkeypatch=monkeypatch) == 0
    with open_frames(target) as frames:
        assert (frames.num_frames, frames.fps) == (20, 10)
    with av.open(str(target)) as container:
        (stream,) = container.streams
        assert isinstance(stream, av.VideoStream)
        assert (stream.width, stream.height, stream.sample_aspect_ratio) == (48, 64, Fraction(3, 4))
        assert stream.average_rate == 10
        assert container.duration == 2_000_000


def test_a_label_longer_than_the_picture_is_wide_is_broken_into_lines(tmp_path: Path) -> None:
    label = "Pretending to put something next to something, but it does not move"
    source = SimpleNamespace(rate=None, step=0.04, pixel_aspect=Fraction(1))
    with AnnotatedVideo(tmp_path / "long.mp4").of(source) as written:  # type: ignore[arg-type]
        written.add(np.full((240, 320, 3), 120, np.uint8), 0.0, [label])
    with open_frames(tmp_path / "long.mp4") as frames:
        (shown,) = frames.read([0]).astype(int)
    assert np.abs(shown[-30:, -16:] - 120).max() < 20
    assert np.abs(shown[-30:, :16] - 120).max() > 50


def test_what_was_recognised_before_a_source_is_lost_stands_on_stdout(
    network: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    server = Server(endless(transport_stream(LEVELS), then=30))
    target = tmp_path / "until_then.mp4"
    options = ["--timeout", "1", "--reconnect", "0", "--queue", "200", "--output", target, *EXACT]
    try:
        assert clipwise("stream", network, server.url, *options, monkeypatch=monkeypatch) == 1
    finally:
        server.close()
    out, err = capsys.readouterr()
    found = lines(out)
    assert [line["label"] for line in found if line["type"] == "end"][-1] == "dark"
    assert found[-1]["type"] == "summary"
    assert "gave nothing for 1 s; --reconnect" in err
    with open_frames(target) as frames:
        assert frames.num_frames == found[-1]["captured"] - found[-1]["dropped"] - found[-1]["corrupt"]


def test_rtsp(
    network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    need_rtsp_server()
    film = tmp_path / "film.mkv"
    encode(film, [LIGHT] * 600, container="matroska")
    with rtsp_server(film) as port:
        options = ["--max-seconds", "2", *EXACT]
        assert clipwise("stream", network, f"rtsp://127.0.0.1:{port}/live", *options, monkeypatch=monkeypatch) == 0
    out = capsys.readouterr().out
    ((label, start, end),) = spans(out)
    assert label == "light"
    # What a server sends at once on connecting is more than may wait, and its oldest is dropped.
    assert 0 <= start < end <= 2
    summary = lines(out, "summary")[0]
    assert summary["captured"] >= summary["looked_at"] + summary["dropped"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.mp4"], "missing.mp4: no such file"),
        (["rtsp://127.0.0.1:{port}/live"], "refused"),
        (["-"], "--size WIDTHxHEIGHT --fps"),
        (["-", "--size", "64by48", "--fps", "30"], "'64by48'"),
        (["film.mp4", "--scores"], "give --json as well"),
        (["film.mp4", "--output", "film.avi"], "ends in .mp4"),
        (["film.mp4", "--stride", "2", "--rate", "3"], "give one of them"),
        (["film.mp4", "--background", "twilight"], "'twilight'"),
    ],
)
def test_errors_say_what_to_do(
    network: Path,
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = [argument.format(port=free_port()) for argument in arguments]
    assert clipwise("stream", network, *arguments, monkeypatch=monkeypatch) == 1
    out, err = capsys.readouterr()
    assert not out
    assert message in err


def test_the_source_is_not_written_over(
    network: Path, video: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = video.read_bytes()
    monkeypatch.chdir(video.parent)
    assert clipwise("stream", network, video, "--output", video.name, monkeypatch=monkeypatch) == 1
    assert "is the source itself" in capsys.readouterr().err
    assert video.read_bytes() == before


def test_a_source_of_not_one_picture_is_an_error(
    network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What should have written into the pipe failed, say."""
    empty = os.open(tmp_path / "empty", os.O_CREAT | os.O_RDONLY)
    stdin = os.dup(0)
    try:
        os.dup2(empty, 0)
        assert clipwise("stream", network, "-", "--size", "64x48", "--fps", "30", monkeypatch=monkeypatch) == 1
    finally:
        os.dup2(stdin, 0)
        os.close(stdin)
        os.close(empty)
    assert "stdin: gave not one picture" in capsys.readouterr().err


def test_a_closed_stdin_is_an_error(
    network: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", None)  # as Python has it after `<&-`
    assert clipwise("stream", network, "-", "--size", "64x48", "--fps", "30", monkeypatch=monkeypatch) == 1
    assert "stdin is closed; pipe raw RGB24 pictures into it" in capsys.readouterr().err


def test_a_silent_source_can_be_stopped(network: Path) -> None:
    """The thread that waits for it is inside FFmpeg when Python ends, and must not outlive Python there."""
    server = Server(endless(transport_stream([LIGHT] * 45), then=600))
    command = [sys.executable, "-m", "clipwise", "stream", network, server.url, "--timeout", "600"]
    # So that what is freed is noticed if it is used.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_PERTURB_": "165"}
    processes = []
    try:
        for _ in range(3):
            processes.append(
                subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
            )
        for process, number in zip(processes, [signal.SIGINT, signal.SIGTERM, signal.SIGINT], strict=True):
            assert process.stdout is not None
            assert "light begins" in process.stdout.readline()
            time.sleep(0.5)  # until all that came is read
            process.send_signal(number)
        told = [process.communicate(timeout=PATIENCE)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
        server.close()
    assert [process.returncode for process in processes] == [130] * 3, told
    assert not any("Traceback" in err or "Exception" in err for err in told)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_raw_pictures_through_a_pipe_until_it_is_stopped(network: Path, number: signal.Signals) -> None:
    """Each line is there as soon as it is known; a signal closes what lasts."""
    options = ["--size", "64x48", "--fps", "30", "--scores", *EXACT]
    process = subprocess.Popen(
        [sys.executable, "-m", "clipwise", "stream", network, "-", *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        for picture in pictures(LEVELS):
            process.stdin.write(picture.tobytes())
        process.stdin.flush()
        told = [process.stdout.readline() for _ in range(6 + len(LEVELS))]  # a notice, five of events, and all scores
        process.send_signal(number)  # while the pipe is open
        rest, err = process.stdout.read(), process.stderr.read()  # type: ignore[union-attr]
        assert process.wait(PATIENCE) == 130
    finally:
        process.kill()
        process.wait()
    out = (b"".join(told) + rest).decode()
    assert spans(out) == [("dark", 0.0, 1.5), ("light", 1.5, 3.0), ("dark", 3.0, 4.0)]
    assert (json.loads(told[-1])["type"], json.loads(told[-1])["seconds"]) == ("scores", pytest.approx(119 / 30))
    assert lines(out)[-1]["type"] == "summary"
    assert b"Traceback" not in err
