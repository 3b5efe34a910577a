"""Long videos: the same events as of all pictures at once, in little memory, and no word too many of what was lost."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from conftest import clipwise
from numpy.typing import NDArray
from streams import DARK, with_sound

from clipwise.checkpoint import read_checkpoint
from clipwise.data.decode import DecodeError, open_frames
from clipwise.data.labels import Head, LabelSpace
from clipwise.inference.events import Event, EventFinder, Smoothing
from clipwise.inference.stream_predictor import Pace, StreamPredictor
from clipwise.inference.timeline import Timeline, follow, write_timeline

SHARP = 0.02  # the network of the tests learnt little, and its scores are nearly equal


def encode(path: Path, pictures: Iterator[NDArray[np.uint8]], size: int, rate: int = 25) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"preset": "ultrafast", "bf": "2"})
        stream.gop_size = rate
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def filmed(videos: Path) -> Callable[[int], Iterator[NDArray[np.uint8]]]:
    """So many pictures of the rendered videos, one video after the other, again and again."""
    clips = []
    for path in sorted(videos.glob("*/*.mp4"))[::3]:
        with open_frames(path) as frames:
            clips.append(frames.read(range(frames.num_frames)))
    joined = np.concatenate(clips)
    return lambda count: (np.ascontiguousarray(joined[number % len(joined)]) for number in range(count))


@pytest.fixture(scope="module")
def film(filmed: Callable[[int], Iterator[NDArray[np.uint8]]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 seconds, 500 pictures."""
    return encode(tmp_path_factory.mktemp("film") / "film.mkv", filmed(500), 48)


@pytest.fixture(scope="module")
def predictor(run: Path, film: Path) -> StreamPredictor:
    """With what all pictures have in common taken from its logits, else it would always name the same class."""
    checkpoint = read_checkpoint(run)
    plain = StreamPredictor(checkpoint, temperature=1.0)
    with open_frames(film) as frames:
        pictures = frames.read(range(0, 500, 10))
    scores = plain.push(torch.stack([plain.prepare(picture) for picture in pictures]))
    with torch.no_grad():
        checkpoint.model.get_parameter("fc.bias").sub_(torch.from_numpy(np.log(scores).mean(0)))
    return StreamPredictor(checkpoint, temperature=SHARP)


def looked(predictor: StreamPredictor, video: Path, **pace: int) -> Timeline:
    finder = EventFinder(predictor.label_space, start=0.4)
    *_, timeline = follow(predictor, video, finder=finder, smoothing=Smoothing(0.2), pace=Pace(**pace))
    return timeline


def test_a_video_looked_at_in_parts_gives_the_events_of_all_its_pictures_at_once(
    predictor: StreamPredictor, film: Path
) -> None:
    timeline = looked(predictor, film, stride=3)
    with open_frames(film) as frames:
        pictures = frames.read(range(0, 500, 3))
    predictor.reset()
    scores = predictor.push(torch.stack([predictor.prepare(picture) for picture in pictures]))
    finder, smooth = EventFinder(predictor.label_space, start=0.4), Smoothing(0.2)
    times = np.arange(0, 500, 3) / 25
    given = [found for at, row in zip(times, scores, strict=True) for found in finder.update(at, smooth(at, row))]
    expected = [event for event in given + finder.finish(20.0) if event.end is not None]
    assert len(expected) > 3
    assert [(event.label, round(event.start, 3), round(event.end or 0, 3)) for event in timeline.events] == [
        (event.label, round(event.start, 3), round(event.end or 0, 3)) for event in expected
    ]
    np.testing.assert_allclose(
        [event.score for event in timeline.events], [event.score for event in expected], atol=1e-3
    )
    assert (timeline.pictures, timeline.looked_at, round(timeline.seconds, 3)) == (500, 167, 20.0)
    assert timeline.complete
    assert timeline.whole


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc to read resident memory")
def test_memory_does_not_grow_with_the_length_of_the_video(
    predictor: StreamPredictor, filmed: Callable[[int], Iterator[NDArray[np.uint8]]], tmp_path: Path
) -> None:
    larger = (np.tile(picture, (3, 3, 1)) for picture in filmed(3000))
    film = encode(tmp_path / "two_minutes.mp4", larger, 144)
    finder = EventFinder(predictor.label_space)
    settled = 0
    for timeline in follow(predictor, film, finder=finder, smoothing=Smoothing(0.5), pace=Pace(stride=5)):
        if not settled and timeline.pictures > 1000:
            settled = resident()
    assert timeline.pictures == 3000
    assert resident() - settled < 8 * 2**20  # the 2000 pictures are 124 MB


def test_what_follows_a_hole_is_used_and_no_event_reaches_across_it(
    predictor: StreamPredictor, run: Path, film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = bytearray(film.read_bytes())
    first, last = int(0.4 * len(content)), int(0.6 * len(content))
    content[first:last] = np.random.default_rng(0).bytes(last - first)
    broken = tmp_path / "broken.mkv"
    broken.write_bytes(content)
    timeline = looked(predictor, broken)
    assert timeline.complete
    assert not timeline.whole
    assert 300 < timeline.pictures < 450
    assert timeline.seconds == pytest.approx(20, abs=0.1)
    start, end = max(timeline.missing, key=lambda span: span[1] - span[0])
    assert 7 < start < 9
    assert 11 < end < 14
    assert any(event.start >= end for event in timeline.events)
    assert not any(event.start < start and (event.end or 0) > end for event in timeline.events)

    out = tmp_path / "out.json"
    assert clipwise("predict", run, broken, "--timeline", out, "--stride", "5", monkeypatch=monkeypatch) == 1
    assert json.loads(out.read_text())["missing"][-1]["end"] == pytest.approx(end, abs=0.01)


def test_a_recording_that_broke_off_is_used_as_far_as_it_goes(
    run: Path, film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(film.read_bytes()[: film.stat().st_size // 2])
    out = tmp_path / "out.csv"
    assert clipwise("predict", run, cut, "--timeline", out, "--stride", "5", monkeypatch=monkeypatch) == 1
    assert "by its header it has" in capsys.readouterr().err
    assert out.read_text().startswith("start,end,label,score\n")


def test_sound_that_is_longer_than_the_pictures_or_begins_before_them(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is missing; a file's length is that of its longest stream. Subtitles count from the file's beginning."""
    video = tmp_path / "late.mkv"
    with_sound(video, [DARK] * 60, start=1.5, sound=6)
    options = ("--threshold", "0.01", "--smoothing", "0")
    for kind in ("json", "srt", "csv"):
        status = clipwise(
            "predict", run, video, "--timeline", tmp_path / f"out.{kind}", *options, monkeypatch=monkeypatch
        )
        assert status == 0
    assert "by its header" not in capsys.readouterr().err
    value = json.loads((tmp_path / "out.json").read_text())
    assert value["begins"] == pytest.approx(1.5, abs=2e-3)
    assert value["seconds"] == pytest.approx(2, abs=2e-3)
    assert value["seconds_missing"] is None
    assert value["events"][0]["start"] == 0
    assert (tmp_path / "out.csv").read_text().splitlines()[1].startswith("0.000,")
    assert (tmp_path / "out.srt").read_text().splitlines()[1].startswith("00:00:01,5")


def test_a_name_that_is_no_utf8_costs_nothing(
    run: Path, film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    odd = os.fsdecode(b"caf\xe9.mkv")
    try:
        shutil.copy(film, odd)
    except OSError:
        pytest.skip("file names of this system are UTF-8")
    shutil.copy(film, "plain.mkv")
    command = [sys.executable, "-m", "clipwise", "predict", run, odd, "plain.mkv", "--timeline", "*.json"]
    subprocess.run([*command, "--stride", "50"], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    found = sorted(json.loads(path.read_text(encoding="utf-8"))["video"] for path in Path().glob("*.json"))
    assert found == ["caf\N{REPLACEMENT CHARACTER}.mkv", "plain.mkv"]
    assert clipwise("predict", run, odd, "--json", monkeypatch=monkeypatch) == 0
    assert json.loads(capsys.readouterr().out)["video"] == found[0]


def test_what_is_no_video_is_refused_and_nothing_is_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.mp4"
    page.write_text("<html>")
    assert clipwise("predict", run, page, "--timeline", tmp_path / "out.srt", monkeypatch=monkeypatch) == 1
    assert "is an HTML or XML page" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["page.mp4"]


@pytest.mark.parametrize("name", ["0", "-"])
def test_a_file_named_like_a_camera_is_a_file(
    predictor: StreamPredictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DecodeError, match="no such file"):
        looked(predictor, Path(name))


EVENTS = [
    Event(3599.9996, 3725.5, "sitting, down", 0.5),
    Event(0.0, 1.25, "noun:Tasse ☕", 0.87654),
]


def written(path: Path, **changes: object) -> str:
    timeline = Timeline("video.mp4", 4000.0, 4000.0, 100_000, 100_000, EVENTS, complete=True)
    for name, value in changes.items():
        setattr(timeline, name, value)
    write_timeline(timeline, path, {"settings": {}})
    return path.read_text(encoding="utf-8")


def test_subtitles_are_what_ffmpeg_reads_as_such(tmp_path: Path) -> None:
    path = tmp_path / "out.srt"
    assert written(path) == (
        "1\n00:00:00,000 --> 00:00:01,250\nnoun:Tasse ☕ (0.88)\n\n"
        "2\n01:00:00,000 --> 01:02:05,500\nsitting, down (0.50)\n"
    )
    with av.open(str(path)) as container:
        stream = container.streams.subtitles[0]
        packets = [packet for packet in container.demux(stream) if packet.size]
        texts = [bytes(packet).decode() for packet in packets]
        times = [(float(p.pts * p.time_base), float(p.duration * p.time_base)) for p in packets]
    assert texts == ["noun:Tasse ☕ (0.88)", "sitting, down (0.50)"]
    assert times == [(0.0, 1.25), (3600.0, 125.5)]


def test_subtitles_count_from_the_beginning_of_the_file(tmp_path: Path) -> None:
    assert written(tmp_path / "out.srt", begins=2.5).splitlines()[1] == "00:00:02,500 --> 00:00:03,750"


def test_a_table_is_what_csv_readers_read(tmp_path: Path) -> None:
    rows = list(csv.DictReader(written(tmp_path / "out.csv").splitlines()))
    assert rows[1] == {"start": "3600.000", "end": "3725.500", "label": "sitting, down", "score": "0.5000"}
    assert written(tmp_path / "none.csv", events=[]) == "start,end,label,score\n"


def test_what_is_not_complete_says_so_or_is_not_written(tmp_path: Path) -> None:
    lasting = (Event(3990.0, None, "a", 0.9),)
    value = json.loads(written(tmp_path / "out.json", complete=False, lasting=lasting))
    assert value["complete"] is False
    assert [event["end"] for event in value["events"]] == [1.25, 3725.5, None]
    for name in ("out.csv", "out.srt"):
        with pytest.raises(ValueError, match="cannot say that the rest is missing"):
            written(tmp_path / name, complete=False)
        assert not (tmp_path / name).exists()


@pytest.mark.parametrize("name", ["out.json", "out.srt"])
def test_ctrl_c_keeps_what_was_found_where_that_can_be_said(
    run: Path, film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    takes = Pace.takes

    def pressed(pace: Pace, seconds: float) -> bool:
        if seconds > 10:
            signal.raise_signal(signal.SIGINT)
        return takes(pace, seconds)

    monkeypatch.setattr(Pace, "takes", pressed)
    options = ("--timeline", tmp_path / name, "--temperature", str(SHARP), "--threshold", "0.4")
    assert clipwise("predict", run, film, *options, monkeypatch=monkeypatch) == 130
    if name == "out.srt":
        assert list(tmp_path.iterdir()) == []
        return
    value = json.loads((tmp_path / name).read_text())
    assert value["complete"] is False
    assert 9 < value["seconds"] < 10.1
    assert value["events"]


def test_several_videos_have_a_file_each(
    run: Path, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = videos / "moves_left"
    assert clipwise("predict", run, folder, "--timeline", tmp_path / "new/*.json", monkeypatch=monkeypatch) == 0
    names = {path.stem for path in folder.glob("*.mp4")}
    assert {path.stem for path in (tmp_path / "new").glob("*.json")} == names
    for path in (tmp_path / "new").iterdir():
        assert json.loads(path.read_text())["complete"] is True
    capsys.readouterr()
    for out, message in (
        ("all.json", "is one name for 6 videos; put '*' where theirs go"),
        ("all.txt", "a timeline is JSON, CSV or SRT, by its name's ending; give a name in .json, .csv, .srt"),
    ):
        assert clipwise("predict", run, folder, "--timeline", tmp_path / out, monkeypatch=monkeypatch) == 1
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--stride", "2"), "--stride is for --timeline OUT, which is not given"),
        (("--timeline", "out.json", "--top-k", "2"), "--top-k is not for --timeline"),
        (("--timeline", "out.json", "--json"), "--json is not for --timeline"),
        (("--timeline", "out.json", "--background", "rest"), "no class 'rest' that could be background"),
        (("--timeline", "out.json", "--stride", "2", "--rate", "2"), "give one of them"),
    ],
)
def test_options_that_do_not_belong_together_are_refused(
    run: Path,
    film: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert clipwise("predict", run, film, *options, monkeypatch=monkeypatch) == 1
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_label_sets_and_heads_have_timelines_of_their_own(predictor: StreamPredictor, film: Path) -> None:
    classes = predictor.classes
    spaces = (
        LabelSpace((Head("label", classes),), multi_label=True),
        LabelSpace((Head("across", classes[:2]), Head("along", classes[2:]))),
    )
    space = predictor.label_space
    try:
        for other in spaces:
            predictor.label_space = other
            predictor.temperature = 1.0
            finder = EventFinder(other, start=0.2)
            *_, timeline = follow(predictor, film, finder=finder, smoothing=Smoothing(0.2), pace=Pace(stride=10))
            overlapping = [one for one in timeline.events if one.start < 10 < (one.end or 0)]
            assert len(overlapping) >= 2
            assert {event.label for event in overlapping} <= set(other.classes)
    finally:
        predictor.label_space, predictor.temperature = space, SHARP
