"""Live sources: what fails in the middle is said and survived, who is too slow misses the oldest, nobody waits forever.

The network is a stand-in that tells how light a picture is; all sources are real files, pipes and sockets.
"""

import contextlib
import io
import os
import threading
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PATIENCE
from numpy.typing import NDArray
from streams import (
    DARK,
    LIGHT,
    Answer,
    Server,
    encode,
    endless,
    free_port,
    jpegs,
    need_rtsp_server,
    pictures,
    recorded,
    rtsp_server,
    transport_stream,
    trickling,
    with_sound,
)
from torch import Tensor

from clipwise.data.decode import DecodeError, open_frames
from clipwise.inference.live import Live, Looked, _Queue
from clipwise.inference.sources import Captured, Notice, Picture, Source, _Clock, _RawSource, open_source
from clipwise.inference.stream_predictor import Pace


class Lightness:
    """How light the middle of a picture is, 0 to 255."""

    def __init__(self, seconds: float = 0) -> None:
        self.seconds = seconds
        self.resets = 0
        self.batches: list[int] = []

    def prepare(self, picture: NDArray[np.uint8]) -> Tensor:
        return torch.from_numpy(picture[20:24, 20:24].transpose(2, 0, 1).copy())

    def push(self, pictures: Tensor) -> NDArray[np.float32]:
        self.batches.append(len(pictures))
        time.sleep(self.seconds * len(pictures))
        scores: NDArray[np.float32] = pictures.float().mean((1, 2, 3))[:, None].numpy()
        return scores

    def reset(self) -> None:
        self.resets += 1


def watched(
    source: Source,
    network: Lightness | None = None,
    *,
    until: Callable[[list[Looked], list[Notice]], bool] = lambda looked, notices: False,
    **options: object,
) -> tuple[Live, list[Looked], list[Notice]]:
    """All that comes out, or what has until a condition holds."""
    looked: list[Looked] = []
    notices: list[Notice] = []
    began = time.monotonic()
    with Live(source, network or Lightness(), Pace(), **options) as live:  # type: ignore[arg-type]
        for item in live:
            if isinstance(item, Looked):
                looked.append(item)
            elif item is not None:
                notices.append(item)
            if until(looked, notices):
                break
            assert time.monotonic() - began < PATIENCE, [notice.message for notice in notices]
    return live, looked, notices


def kinds(notices: list[Notice]) -> list[str]:
    return [notice.kind for notice in notices]


def levels(looked: list[Looked]) -> list[int]:
    return [round(float(one.scores[0])) for one in looked if one.scores is not None]


def times(looked: list[Looked]) -> list[float]:
    return [one.seconds for one in looked]


@pytest.fixture(scope="module")
def ramp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds, each picture lighter than the one before."""
    path = tmp_path_factory.mktemp("ramp") / "ramp.mp4"
    encode(path, range(10, 190, 3))
    return path


# Files


def test_a_file_gives_all_its_pictures_at_their_times(ramp: Path) -> None:
    with open_frames(ramp) as frames:
        expected = frames.read(range(60))
    network = Lightness()
    live, looked, notices = watched(open_source(str(ramp)), network, keep=True)
    assert times(looked) == pytest.approx([number / 30 for number in range(60)])
    np.testing.assert_array_equal(np.stack([one.picture for one in looked if one.picture is not None]), expected)
    assert kinds(notices) == ["opened"]
    assert (live.tally.captured, live.tally.looked_at, live.tally.dropped) == (60, 60, 0)
    assert sum(network.batches) == 60
    assert set(live.tally.stages) == {"capture", "decode", "infer", "latency"}
    assert all(stage.milliseconds() for stage in live.tally.stages.values())


def test_pictures_that_the_network_does_not_look_at_come_out_where_they_are_kept(ramp: Path) -> None:
    for keep in (False, True):
        with Live(open_source(str(ramp)), Lightness(), Pace(stride=7), keep=keep) as live:
            looked = [item for item in live if isinstance(item, Looked)]
        assert times([one for one in looked if one.scores is not None]) == pytest.approx(np.arange(0, 60, 7) / 30)
        assert len(looked) == (60 if keep else 9)
        assert (live.tally.looked_at, live.tally.left_out) == (9, 51)


class Told:
    """A source of what a test says: pictures by their times, and notices."""

    name, live, reconnects, corrupt = "told", False, 0, 0
    quiet_after = duration = rate = None
    step, begins, pixel_aspect = 0.5, 0.0, Fraction(1)

    def __init__(self, *items: float | Notice) -> None:
        self._items = items

    def packets(self) -> Iterator[Captured]:
        yield from (Captured(item, time.monotonic()) for item in self._items)

    def decode(self, captured: Captured) -> Iterator[Picture | Notice]:
        if isinstance(captured.payload, Notice):
            yield captured.payload
        else:
            yield Picture(np.zeros((32, 32, 3), np.uint8), captured.payload, captured.when)

    def stop(self) -> None:
        pass


def test_what_was_lost_is_no_part_of_how_long_a_picture_lasts() -> None:
    lost = Notice("lost", 1.0, "gone")
    live, looked, _ = watched(Told(0.0, 0.25, 1.0, lost, 60.0, lost))
    assert [one.lasts for one in looked] == [0.5, 0.25, 0.75, 0.75]
    assert live.end == 60.75


def test_another_size_in_the_middle(tmp_path: Path) -> None:
    path = tmp_path / "two.ts"
    path.write_bytes(transport_stream([DARK] * 40) + transport_stream([LIGHT] * 40, size=(96, 64)))
    _, looked, notices = watched(open_source(str(path)), keep=True)
    sizes = [one.picture.shape for one in looked if one.picture is not None]
    assert sizes == [(48, 64, 3)] * 40 + [(64, 96, 3)] * 40
    # The second recording's clock begins anew; ours goes on.
    np.testing.assert_allclose(np.diff(times(looked)), 1 / 30, atol=1e-6)
    # FFmpeg takes the seam, where packets are not numbered on, for a loss.
    assert [kind for kind in kinds(notices) if kind != "corrupt"] == ["opened", "resolution", "clock"]
    (resized,) = (notice for notice in notices if notice.kind == "resolution")
    assert "96×64" in resized.message
    assert resized.seconds == pytest.approx(39 / 30)


@pytest.mark.parametrize("container", ["mp4", "mpegts"])
def test_a_damaged_packet_costs_its_pictures_and_no_others(tmp_path: Path, container: str) -> None:
    import av

    path = tmp_path / "whole"
    encode(path, [DARK] * 30 + [LIGHT] * 30, container=container)
    data = bytearray(path.read_bytes())
    if container == "mp4":
        with av.open(str(path)) as whole:
            places = [(packet.pos, packet.size) for packet in whole.demux(video=0) if packet.size]
        place, size = places[22]
        data[place : place + size] = b"\xff" * size
    else:
        middle = len(data) // 188 * 3 // 5 * 188
        data[middle : middle + 4 * 188] = b""  # what a lost datagram takes along
    damaged = tmp_path / "damaged"
    damaged.write_bytes(data)
    live, looked, notices = watched(open_source(str(damaged)))
    assert live.source.corrupt >= 1
    assert "corrupt" in kinds(notices)
    assert "damaged" in next(notice.message for notice in notices if notice.kind == "corrupt")
    assert 50 <= len(looked) <= 60
    assert levels(looked)[0] < 60
    assert levels(looked)[-1] > 200
    assert times(looked)[-1] == pytest.approx(59 / 30, abs=1e-3)


def test_a_file_cut_short_gives_what_there_is(tmp_path: Path) -> None:
    data = transport_stream([DARK] * 60)
    (tmp_path / "cut.ts").write_bytes(data[: len(data) // 2])
    _, looked, _ = watched(open_source(str(tmp_path / "cut.ts")))
    assert 10 < len(looked) < 60


def test_a_file_by_its_address_is_a_file(ramp: Path) -> None:
    _, looked, notices = watched(open_source(f"file://{ramp}"))
    assert len(looked) == 60
    assert kinds(notices) == ["opened"]


def test_a_gap_in_a_files_times_is_not_waited_for(tmp_path: Path) -> None:
    """At its own speed, the picture after it comes when the next is due; so after times that begin anew."""
    path = tmp_path / "gaps.ts"
    path.write_bytes(b"".join(transport_stream([DARK] * 10, start=start) for start in (500, 2000, 0)))
    _, looked, _ = watched(open_source(str(path), realtime=True))
    assert len(looked) == 30


# Too slow a network


@pytest.fixture(scope="module")
def fast(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds of 60 pictures a second."""
    path = tmp_path_factory.mktemp("fast") / "fast.mp4"
    encode(path, [DARK] * 120, fps=60)
    return path


def test_a_live_source_drops_the_oldest_and_latency_stays_bounded(fast: Path) -> None:
    network = Lightness(seconds=0.08)
    live, looked, _ = watched(open_source(str(fast), realtime=True), network, queue=3)
    tally = live.tally
    assert tally.captured == 120
    assert tally.dropped > 60
    assert tally.looked_at == len(looked) == 120 - tally.dropped
    assert set(network.batches) == {1}
    assert times(looked) == sorted(times(looked))
    # What is last is looked at: it is the oldest that go.
    assert times(looked)[-1] == pytest.approx(119 / 60, abs=1e-3)
    latency = tally.stages["latency"].milliseconds()
    infer = tally.stages["infer"].milliseconds()
    assert latency is not None
    assert infer is not None
    # Three that wait, one in the network, and itself; without a bound the last would be 120 × 0.08 − 2 s late.
    assert latency["p95"] < 5 * infer["p95"] + 3000


def test_a_file_waits_for_the_network_and_nothing_is_dropped(fast: Path) -> None:
    network = Lightness(seconds=0.005)
    live, looked, _ = watched(open_source(str(fast)), network, queue=4)
    assert live.tally.dropped == 0
    assert times(looked) == pytest.approx([number / 60 for number in range(120)], abs=1e-3)
    assert 1 < max(network.batches) <= 4


def test_packets_are_dropped_up_to_the_next_that_stands_alone() -> None:
    """A decoder has nothing of a packet whose keyframe is missing."""
    dropped: list[int] = []
    queue: _Queue[str] = _Queue(4, dropping=True, dropped=dropped.append)
    for name in ("K0", "p1", "K2", "p3"):
        queue.put(name, alone=name.startswith("K"))
    queue.put("notice", droppable=False)
    queue.put("p4", alone=False)
    assert sum(dropped) == 2
    assert [queue.get(1)[0] for _ in range(4)] == ["K2", "p3", "notice", "p4"]
    for number in range(6):  # none that stands alone is left: wait for the next
        queue.put(f"p{number}", alone=False)
    assert sum(dropped) == 2 + 6
    queue.put("K6")
    assert queue.get(9) == ["K6"]


# Sources that break


def test_a_source_that_dies_and_comes_back() -> None:
    """It ends, is not to be reached for a while, and is there again with a clock of its own."""
    server = Server(endless(transport_stream([DARK] * 45)))
    port = server.port
    network = Lightness()

    def reopen() -> None:
        time.sleep(1.2)
        reopened.append(Server(endless(transport_stream([LIGHT] * 45, start=1000), then=30), port=port))

    reopened: list[Server] = []
    reviver = threading.Thread(target=reopen)

    def until(looked: list[Looked], notices: list[Notice]) -> bool:
        if "lost" in kinds(notices) and not reviver.ident:
            reviver.start()
            server.close()
        return bool(looked) and levels(looked)[-1] > 200

    try:
        source = open_source(server.url, reconnect=1)
        assert source.live
        live, looked, notices = watched(source, network, until=until)
    finally:
        reviver.join()
        reopened[0].close()
    found = kinds(notices)
    assert found[:2] == ["opened", "lost"]
    assert "reconnected" in found
    assert live.source.reconnects >= 1
    assert network.resets >= 1
    assert levels(looked)[0] < 60
    assert times(looked) == sorted(times(looked))
    # The gap counts with its length by our clock, not the thousand seconds of theirs.
    first = next(one.seconds for one, level in zip(looked, levels(looked), strict=True) if level > 200)
    assert 0.4 < first < 30


def stall_of(dark: Answer) -> str:
    """What is said of a first, dark connection that stalls, before a second one shows light."""
    server = Server(dark, endless(transport_stream([LIGHT] * 45), then=30))
    try:
        _, looked, notices = watched(
            open_source(server.url, timeout=1, reconnect=1),
            until=lambda looked, notices: bool(looked) and levels(looked)[-1] > 200,
        )
    finally:
        server.close()
    assert kinds(notices)[:3] == ["opened", "stall", "reconnected"]
    assert levels(looked)[0] < 60
    return notices[1].message


def test_a_source_that_falls_silent() -> None:
    assert "nothing for 1 s" in stall_of(endless(transport_stream([DARK] * 45), then=30))


def test_a_source_of_which_only_the_sound_goes_on() -> None:
    """Each packet of sound would begin the time-out anew."""
    made = io.BytesIO()
    with_sound(made, [DARK] * 45, start=0, sound=60, container="mpegts")
    data = made.getvalue()
    pictures_end = len(data) // 188 // 4 * 188
    sound_alone = trickling(data[:pictures_end], then=data[pictures_end:], seconds=20)
    assert "gave no picture for 1 s" in stall_of(sound_alone)


def test_not_reconnecting_is_an_error_after_what_was_seen() -> None:
    server = Server(endless(transport_stream([DARK] * 45), then=30))
    seen: list[object] = []
    source = open_source(server.url, timeout=1, reconnect=0)
    try:
        with Live(source, Lightness(), Pace()) as live, pytest.raises(DecodeError, match=r"nothing for .* --reconnect"):
            seen.extend(live)
    finally:
        server.close()
    assert sum(isinstance(item, Looked) for item in seen) >= 8


def test_a_recording_over_http_is_read_on_where_it_broke(tmp_path: Path) -> None:
    """No picture is missing and none comes twice."""
    path = tmp_path / "noise.mkv"
    rng = np.random.default_rng(0)
    encode(path, rng.integers(10, 240, 120).tolist(), size=(160, 120), container="matroska")
    data = path.read_bytes()
    server = Server(recorded(data, breaks_after=len(data) // 2), recorded(data))
    try:
        source = open_source(server.url, reconnect=1)
        assert not source.live
        live, looked, _ = watched(source)
    finally:
        server.close()
    assert times(looked) == pytest.approx([number / 30 for number in range(120)], abs=2e-3)
    assert live.tally.dropped == 0


def test_the_password_of_an_address_is_not_told() -> None:
    with pytest.raises(DecodeError) as caught:
        open_source(f"http://me:secret@127.0.0.1:{free_port()}/live")
    assert "secret" not in str(caught.value)
    assert "refused" in str(caught.value)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("missing.mp4", {}, "no such file"),
        (".", {}, "is a folder"),
        ("-", {}, "--size WIDTHxHEIGHT"),
        ("clip.mp4", {"size": (4, 4)}, "tells its size"),
        ("rtsp://127.0.0.1/x", {"realtime": True}, "without --realtime"),
        ("97", {}, "cannot be opened as a camera"),
    ],
)
def test_what_cannot_be_opened(source: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_source(source, **options)  # type: ignore[arg-type]


def test_a_network_forgets_the_stream_before_and_a_stream_at_its_end_stays_there(ramp: Path) -> None:
    network = Lightness()
    for streams in (1, 2):
        with Live(open_source(str(ramp)), network, Pace(stride=20)) as live:
            assert network.resets == streams
            assert sum(isinstance(item, Looked) for item in live) == 3
            assert next(iter(live), "the end") == "the end"


# Raw pictures


@pytest.fixture
def pipe() -> Iterator[tuple[io.FileIO, io.FileIO]]:
    reading, writing = os.pipe()
    with open(reading, "rb", buffering=0) as reader, open(writing, "wb", buffering=0) as writer:
        yield reader, writer


def test_raw_pictures_from_a_pipe(pipe: tuple[io.FileIO, io.FileIO]) -> None:
    reader, writer = pipe
    sent = pictures(range(10, 110, 5))

    def write() -> None:
        for picture in sent:
            writer.write(picture.tobytes())
        writer.write(b"half a picture")
        writer.close()

    threading.Thread(target=write).start()
    source = _RawSource(reader, (64, 48), 10, live=False, quiet_after=5)
    live, looked, notices = watched(source, keep=True)
    np.testing.assert_array_equal([one.picture for one in looked], sent)  # type: ignore[list-item]
    assert times(looked) == pytest.approx(np.arange(20) / 10)
    assert kinds(notices) == ["opened", "corrupt"]
    assert "14 of 9216 bytes" in notices[1].message
    assert live.source.corrupt == 1


def test_silence_is_said_once_and_stopping_does_not_wait_for_data(pipe: tuple[io.FileIO, io.FileIO]) -> None:
    reader, writer = pipe
    writer.write(pictures([DARK])[0].tobytes())
    source = _RawSource(reader, (64, 48), 10, live=False, quiet_after=0.3)
    found: list[Notice] = []
    silent = 0
    with Live(source, Lightness(), Pace()) as live:
        for item in live:
            if isinstance(item, Notice):
                found.append(item)
            silent += item is None and "quiet" in kinds(found)
            if silent == 8:
                live.stop()
    assert kinds(found) == ["opened", "quiet"]
    assert live.tally.looked_at == 1
    writer.close()  # lets the reading thread end


# Errors


class Failing(Lightness):
    def push(self, pictures: Tensor) -> NDArray[np.float32]:
        if sum(self.batches) >= 24:
            raise RuntimeError("out of memory")
        return super().push(pictures)


def test_an_error_of_a_thread_comes_after_what_was_recognised(ramp: Path) -> None:
    looked: list[object] = []
    with Live(open_source(str(ramp)), Failing(), Pace(), queue=8) as live, pytest.raises(RuntimeError, match="memory"):
        looked.extend(live)
    assert sum(isinstance(item, Looked) for item in looked) >= 24
    assert not any(thread.is_alive() for thread in live._threads)


# Times


def test_times_never_go_back_and_gaps_keep_their_length() -> None:
    clock = _Clock(live=True)
    told = []
    for pts, captured in ((None, 0.0), (None, 0.1), (50.0, 0.2), (50.1, 0.3)):  # a camera that tells times later
        told.append(clock.advance(pts, captured, 0.1))
    assert told == ["", "", "", ""]
    assert clock.seconds == pytest.approx(0.3)
    assert "jumped by -48.1 s" in (clock.advance(2.0, 0.4, 0.1) or "")  # it was set back
    assert clock.seconds == pytest.approx(0.4)
    assert clock.advance(9000.0, 0.5, 0.1)  # and ahead
    assert clock.seconds == pytest.approx(0.5)
    clock.interrupted()
    assert clock.advance(7.0, 20.5, 0.1) == ""
    assert clock.seconds == pytest.approx(20.5)


def test_a_live_clock_that_is_too_slow_is_noticed_and_a_pause_is_not() -> None:
    def told(source: Iterator[tuple[float, float]]) -> tuple[list[str], float]:
        clock = _Clock(live=True)
        said = [clock.advance(pts, captured, 0.04) or "" for pts, captured in source]
        return [one for one in said if one], clock.seconds

    # 40 % as fast as ours: 100 s take 250.
    slow, seconds = told((number / 25, number / 10) for number in range(2500))
    assert 5 < len(slow) < 25
    assert "fell" in slow[0]
    assert 220 < seconds < 250
    # Nothing for 30 s, and then all that was missed at once.
    late, seconds = told((number / 10, max(number / 10, 50) if number > 200 else number / 10) for number in range(900))
    assert late == []
    assert seconds == pytest.approx(89.9)


def test_where_a_source_tells_no_times_pictures_have_those_of_their_arrival() -> None:
    """FFmpeg would make up 25 pictures a second."""
    server = Server(jpegs([DARK] * 200, fps=10))
    try:
        source = open_source(server.url)
        _, looked, notices = watched(source, until=lambda looked, notices: len(looked) == 20)
    finally:
        server.close()
    assert source.live
    assert source.rate is None
    assert "a second" not in notices[0].message
    arrived = np.array([one.captured for one in looked])
    np.testing.assert_allclose(times(looked), arrived - arrived[0], atol=1e-6)
    assert times(looked)[-1] > 1  # by 25 a second it would be 0.76


# RTSP


def test_rtsp_and_a_camera_that_is_switched_off_and_on(tmp_path: Path) -> None:
    need_rtsp_server()
    dark, light = tmp_path / "dark.mkv", tmp_path / "light.mkv"
    encode(dark, [DARK] * 1200, container="matroska")
    encode(light, [LIGHT] * 1200, container="matroska")
    network = Lightness()
    port = free_port()
    with contextlib.ExitStack() as servers:
        servers.enter_context(rtsp_server(dark, port))

        switched = False

        def until(looked: list[Looked], notices: list[Notice]) -> bool:
            nonlocal switched
            if len(looked) == 30 and not switched:
                switched = True
                servers.close()
                servers.enter_context(rtsp_server(light, port))
            return bool(looked) and levels(looked)[-1] > 200

        source = open_source(f"rtsp://127.0.0.1:{port}/live", timeout=3, reconnect=1)
        assert source.live
        live, looked, notices = watched(source, network, until=until)
    found = kinds(notices)
    assert found[0] == "opened"
    assert {"lost", "stall"} & set(found)
    assert "reconnected" in found
    assert (live.source.reconnects, network.resets) >= (1, 1)
    assert levels(looked)[0] < 60
    assert times(looked) == sorted(times(looked))
    assert np.median(np.diff(times(looked)[:30])) == pytest.approx(1 / 30, abs=2e-3)
