"""Reading frames by number: every short cut must give, bit for bit, what decoding the whole file in order
gives.

The rendered videos carry each frame's number in its picture, as bright and dark blocks, so that a frame
that is one off is caught even if both decoders were wrong in the same way.
"""

import io
import itertools
import os
import pickle
import random
import threading
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from clipwise.data import decode
from clipwise.data.decode import (
    ArrayFrames,
    DecodeError,
    FrameFolder,
    VideoFile,
    open_frames,
)

BLOCK = 16  # a macroblock: coarse enough to survive any of these encoders
COLUMNS = 6
BITS = 2 * COLUMNS


def picture(number: int, width: int = 112, height: int = 80) -> np.ndarray:
    """A frame whose top two rows of blocks spell ``number`` in binary, above moving stripes and a little
    noise.
    """
    rows, columns = np.mgrid[0:height, 0:width]
    grey = 128 + 90 * np.sin((columns + 3 * number) / 7.0) * np.cos((rows - number) / 5.0)
    grey += np.random.default_rng(number).normal(0, 4, size=grey.shape)
    image = np.stack([grey, np.roll(grey, number, axis=1), 255 - grey], axis=-1)
    for bit in range(BITS):
        row, column = divmod(bit, COLUMNS)
        block = slice(row * BLOCK, (row + 1) * BLOCK), slice(column * BLOCK, (column + 1) * BLOCK)
        image[block] = 225 if number >> bit & 1 else 30
    return image.clip(0, 255).astype(np.uint8)


def number_in(image: np.ndarray) -> int:
    number = 0
    for bit in range(BITS):
        row, column = divmod(bit, COLUMNS)
        inner = image[row * BLOCK + 4 : row * BLOCK + 12, column * BLOCK + 4 : column * BLOCK + 12]
        number |= int(inner.mean() > 128) << bit
    return number


def encode(
    path: Path,
    codec: str,
    count: int,
    *,
    options: dict[str, str] | None = None,
    container: dict[str, str] | None = None,
    pix_fmt: str = "yuv420p",
    size: tuple[int, int] = (112, 80),
    times: list[int] | None = None,
    rotation: int | None = None,
    change: Callable[[list[Any]], list[Any]] | None = None,
    patch: Callable[[bytes], bytes] | None = None,
) -> Path:
    """Write frames 0 … count-1 with ``times`` (ms) if given. ``change`` alters the packets, ``patch`` the
    file.
    """
    with av.open(path, "w", options=container or {}) as output:
        stream = output.add_stream(codec, rate=25, options=options or {})
        stream.width, stream.height = size
        stream.pix_fmt = pix_fmt
        if times is not None:
            stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        if rotation is not None:
            stream.set_display_rotation(rotation)
        packets: list[Any] = []
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(picture(number, *size), format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            packets += stream.encode(frame)
        packets += stream.encode(None)
        for packet in change(packets) if change else packets:
            output.mux(packet)
    if patch:
        path.write_bytes(patch(path.read_bytes()))
    return path


def hide_first(data: bytes, frames: int = 7) -> bytes:
    """An mp4 whose edit list starts ``frames`` frames late, as trimming without re-encoding leaves it."""
    at = data.index(b"elst") + 12  # past name, version and flags, count: length (ms), start (ticks of 1/12800 s)
    length, start = (int.from_bytes(data[at + 4 * k : at + 4 * k + 4], "big") for k in range(2))
    shorter = (length - frames * 40).to_bytes(4, "big") + (start + frames * 512).to_bytes(4, "big")
    return data[:at] + shorter + data[at + 8 :]


def hide_some(packets: list[Any]) -> list[Any]:
    """Every sixth VP8 picture made one that is referred to and not shown, as the encoder's second pass
    makes them.
    """
    result = []
    for number, packet in enumerate(packets):
        if number % 6 == 5:
            data = bytes(packet)
            hidden = av.Packet(bytes([data[0] & ~0x10]) + data[1:])
            hidden.pts, hidden.dts, hidden.duration = packet.pts, packet.dts, packet.duration
            hidden.time_base, hidden.stream = packet.time_base, packet.stream
            packet = hidden
        result.append(packet)
    return result


def with_empty_vops(packets: list[Any]) -> list[Any]:
    """After every fifth packet, an MPEG-4 picture "not coded" (which FFmpeg gives no frame for)."""
    # type P, no full second passed, marker, time (5 bits for 25 ticks a second), marker, coded = 0, stuffing
    vop = int("01" + "0" + "1" + "00000" + "1" + "0" + "01111", 2).to_bytes(2, "big")
    result, step = [], packets[0].duration
    for number, packet in enumerate(packets):
        result.append(packet)
        if number % 5 == 4:
            empty = av.Packet(b"\x00\x00\x01\xb6" + vop)
            empty.stream, empty.time_base, empty.duration = packet.stream, packet.time_base, step
            result.append(empty)
    for number, packet in enumerate(result):
        packet.pts = packet.dts = number * step
    return result


def vary(count: int) -> list[int]:
    gaps = random.Random(3)
    return list(itertools.accumulate([0] + [gaps.choice([10, 33, 40, 120, 500]) for _ in range(count - 1)]))


X264 = {"preset": "veryfast"}
VIDEOS: dict[str, tuple[str, str, int, dict[str, Any]]] = {
    "h264 GOP 250": ("long.mp4", "libx264", 120, {"options": X264 | {"g": "250"}}),
    "h264 GOP 12": ("short.mp4", "libx264", 100, {"options": X264 | {"g": "12", "bf": "3"}}),
    "h264 GOP 12, mkv": ("short.mkv", "libx264", 60, {"options": X264 | {"g": "12", "bf": "3"}}),
    "h264 GOP 12, flv": ("short.flv", "libx264", 60, {"options": X264 | {"g": "12", "bf": "3"}}),
    "h264, deep pyramid": (
        "pyramid.mp4",
        "libx264",
        100,
        {"options": {"preset": "medium", "g": "50", "bf": "8", "b-pyramid": "normal", "b_strategy": "2"}},
    ),
    "h264, open GOP": (
        "open.mp4",
        "libx264",
        80,
        {"options": X264 | {"x264-params": "keyint=12:bframes=3:open-gop=1:scenecut=0"}},
    ),
    "h264, no B-frames": ("p.mp4", "libx264", 60, {"options": X264 | {"g": "20", "bf": "0"}}),
    "h264, one frame": ("one.mp4", "libx264", 1, {"options": X264}),
    "h264, intra refresh": (
        "refresh.mp4",
        "libx264",
        90,
        {"options": X264 | {"g": "15", "bf": "0", "intra-refresh": "1"}},
    ),
    "h264, intra refresh, mkv": (
        "refresh.mkv",
        "libx264",
        90,
        {"options": X264 | {"g": "15", "bf": "2", "intra-refresh": "1"}},
    ),
    "h264, 10 bit": ("ten.mp4", "libx264", 40, {"options": X264 | {"g": "12"}, "pix_fmt": "yuv420p10le"}),
    "h264, 4:4:4": ("444.mp4", "libx264", 40, {"options": X264 | {"g": "12"}, "pix_fmt": "yuv444p"}),
    "h264, variable rate": ("vfr.mp4", "libx264", 60, {"options": X264 | {"g": "12"}, "times": vary(60)}),
    "h264, variable rate, mkv": (
        "vfr.mkv",
        "libx264",
        60,
        {"options": X264 | {"g": "12"}, "times": vary(60)},
    ),
    "h264, edit list": (
        "edit.mp4",
        "libx264",
        60,
        {"options": X264 | {"g": "12", "bf": "2"}, "patch": hide_first},
    ),
    "h264, rotated": ("turn90.mp4", "libx264", 30, {"options": X264 | {"g": "12"}, "rotation": 90}),
    "h264, upside down": ("turn180.mp4", "libx264", 30, {"options": X264 | {"g": "12"}, "rotation": 180}),
    "h264, non-ASCII name": ("日本語 Größe #1: 50%.mp4", "libx264", 30, {"options": X264 | {"g": "12"}}),
    "h264, B-frames in avi": ("b.avi", "libx264", 50, {"options": X264 | {"g": "12", "bf": "2"}}),
    "h264, mpegts": ("h264.ts", "libx264", 60, {"options": X264 | {"g": "12", "bf": "2"}}),
    "h264, mpegts cut between keyframes": (
        "cut.ts",
        "libx264",
        60,
        {"options": X264 | {"g": "12", "bf": "2"}, "change": lambda packets: packets[5:]},
    ),
    "hevc, open GOP": (
        "hevc.mp4",
        "libx265",
        50,
        {
            "options": {
                "preset": "ultrafast",
                "x265-params": "keyint=12:open-gop=1:bframes=3:log-level=0:pools=1",
            }
        },
    ),
    "vp9": ("vp9.webm", "libvpx-vp9", 60, {"options": {"cpu-used": "8", "deadline": "realtime", "g": "30"}}),
    "vp9, odd size": (
        "odd.webm",
        "libvpx-vp9",
        30,
        {"options": {"cpu-used": "8", "deadline": "realtime"}, "size": (113, 81)},
    ),
    "vp9, alternate references": (
        "alt.webm",
        "libvpx-vp9",
        50,
        {"options": {"cpu-used": "5", "lag-in-frames": "16", "auto-alt-ref": "1", "g": "25"}},
    ),
    "vp8": ("vp8.webm", "libvpx", 60, {"options": {"cpu-used": "5", "g": "25"}}),
    "vp8, hidden references": (
        "hidden.webm",
        "libvpx",
        60,
        {"options": {"cpu-used": "5", "g": "25"}, "change": hide_some},
    ),
    "mpeg4 avi": ("mpeg4.avi", "mpeg4", 60, {"options": {"g": "12", "b": "800k"}}),
    "mpeg4 avi, odd size": ("odd.avi", "mpeg4", 30, {"options": {"g": "12", "b": "800k"}, "size": (113, 81)}),
    "mpeg4 avi, B-frames": ("bframes.avi", "mpeg4", 60, {"options": {"g": "12", "bf": "2", "b": "800k"}}),
    "mpeg4 mp4, B-frames": ("bframes.mp4", "mpeg4", 60, {"options": {"g": "12", "bf": "2", "b": "800k"}}),
    "mpeg4 avi, empty pictures": (
        "empty.avi",
        "mpeg4",
        40,
        {"options": {"g": "12", "b": "800k"}, "change": with_empty_vops},
    ),
    "mjpeg avi": ("mjpeg.avi", "mjpeg", 25, {"pix_fmt": "yuvj420p"}),
    "mpeg2 ps": ("mpeg2.mpg", "mpeg2video", 50, {"options": {"g": "12", "bf": "2", "b": "2M"}}),
    "av1 mp4": (
        "av1.mp4",
        "libsvtav1",
        60,
        {"options": {"preset": "12", "g": "24", "svtav1-params": "lp=1"}},
    ),
}
# Those that must be entered in the middle: were they decoded in order, the answers would be right and the
# point missed.
ENTERED = {
    "h264 GOP 12",
    "h264 GOP 12, mkv",
    "h264 GOP 12, flv",
    "h264, 10 bit",
    "h264, 4:4:4",
    "h264, no B-frames",
    "h264, open GOP",
    "h264, variable rate",
    "h264, variable rate, mkv",
    "h264, edit list",
    "hevc, open GOP",
    "vp9",
    "mpeg4 avi",
    "mpeg4 avi, B-frames",
    "mpeg4 mp4, B-frames",
    "mjpeg avi",
}


def in_order(path: Path) -> tuple[np.ndarray, list[float]]:
    """All frames of a file, and their times, by plain decoding in order; the reference."""
    frames, times = [], []
    with av.open(f"file:{path}", metadata_errors="ignore") as container:
        stream = container.streams.video[0]
        for packet in container.demux(stream):
            try:
                decoded = packet.decode()
            except av.error.FFmpegError:
                continue
            for frame in decoded:
                image = frame.to_ndarray(format="rgb24")
                frames.append(np.rot90(image, frame.rotation // 90) if frame.rotation else image)
                times.append(float((frame.pts or 0) * stream.time_base))
    return np.stack(frames), times


class Library:
    """Videos rendered once per test run, each when first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._done: dict[str, tuple[Path, np.ndarray, list[float]]] = {}

    def __call__(self, name: str) -> tuple[Path, np.ndarray, list[float]]:
        if name not in self._done:
            file, codec, count, how = VIDEOS[name]
            path = encode(self.folder / file, codec, count, **how)
            self._done[name] = (path, *in_order(path))
        return self._done[name]


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Library:
    return Library(tmp_path_factory.mktemp("videos"))


@pytest.fixture(params=["packets kept", "packets read again"])
def large_or_small(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small files are read once and their packets kept; large ones are sought in. Both for every video."""
    if request.param == "packets read again":
        monkeypatch.setattr(decode, "_KEEP_BYTES", 0)


def index_sets(count: int, seed: int) -> Iterator[list[int]]:
    generator = random.Random(seed)
    yield [count - 1]
    yield [0]
    yield [int((segment + 0.5) * count / 8) for segment in range(8)]
    for size in (1, 2, 5, 12):
        yield [generator.randrange(count) for _ in range(size)]  # any order, with repeats
    yield list(range(count))


@pytest.mark.usefixtures("large_or_small")
@pytest.mark.parametrize("name", VIDEOS)
def test_bit_identical_to_decoding_in_order(videos: Library, name: str) -> None:
    path, frames, _ = videos(name)
    with VideoFile(path) as video:
        assert video.num_frames == len(frames)
        for indices in index_sets(len(frames), seed=len(name)):
            np.testing.assert_array_equal(video.read(indices), frames[indices])
    with VideoFile(path) as video:  # from a decoder that has read nothing before
        np.testing.assert_array_equal(video.read([len(frames) // 2]), frames[[len(frames) // 2]])


REARRANGED = ("rotated", "upside down", "cut", "hidden", "empty")


@pytest.mark.parametrize("name", [name for name in VIDEOS if not any(word in name for word in REARRANGED)])
def test_the_number_in_the_picture_is_the_index(videos: Library, name: str) -> None:
    path, _, _ = videos(name)
    hidden = 7 if name == "h264, edit list" else 0
    with VideoFile(path) as video:
        assert video.num_frames == VIDEOS[name][2] - hidden
        read = video.read(range(video.num_frames))
    assert [number_in(image) - hidden for image in read] == list(range(len(read)))


@pytest.mark.usefixtures("large_or_small")
@pytest.mark.parametrize("name", sorted(ENTERED))
def test_one_late_frame_does_not_cost_the_whole_file(
    videos: Library, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, frames, _ = videos(name)
    fed = 0
    plain = VideoFile._decode

    def counting(self: VideoFile, packet: Any) -> list[Any]:
        nonlocal fed
        fed += 1
        return plain(self, packet)

    monkeypatch.setattr(VideoFile, "_decode", counting)
    with VideoFile(path) as video:
        assert fed == 0  # the index decodes nothing
        wanted = len(frames) - 2
        np.testing.assert_array_equal(video.read([wanted]), frames[[wanted]])
    assert fed <= 35 < len(frames) or fed <= 25


@pytest.mark.parametrize("name", ["h264 GOP 250", "h264, deep pyramid", "mpeg4 mp4, B-frames", "mpeg4 avi, B-frames"])
def test_frames_nothing_refers_to_are_skipped(videos: Library, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path, frames, _ = videos(name)
    given = 0
    plain = VideoFile._decode

    def counting(self: VideoFile, packet: Any) -> list[Any]:
        nonlocal given
        out = plain(self, packet)
        given += len(out)
        return out

    monkeypatch.setattr(VideoFile, "_decode", counting)
    with VideoFile(path) as video:
        video.read([0, len(frames) - 1])
    assert given < 0.8 * len(frames)


@pytest.mark.usefixtures("large_or_small")
@pytest.mark.parametrize("name", ["h264 GOP 12", "h264, no B-frames", "mpeg4 avi", "mjpeg avi"])
def test_keyframes_on_the_way_are_passed_and_distant_ones_entered(
    videos: Library, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To begin anew at each keyframe within a row of frames costs more than to go on."""
    path, frames, _ = videos(name)
    count, entries, fed = len(frames), 0, 0
    begin, decode_packet = VideoFile._packets_from, VideoFile._decode

    def counted(self: VideoFile, first: int) -> Any:
        nonlocal entries
        entries += 1
        return begin(self, first)

    def given(self: VideoFile, packet: Any) -> list[Any]:
        nonlocal fed
        fed += packet is not None
        return decode_packet(self, packet)

    monkeypatch.setattr(VideoFile, "_packets_from", counted)
    monkeypatch.setattr(VideoFile, "_decode", given)
    all_key = name == "mjpeg avi"
    every_other = range(0, count - 1, 2)
    for indices, expected in (
        (range(count // 4, count - 1), 1),
        ([2, count - 2], 2),
        # Where every frame is a keyframe, none that is not wanted is decoded.
        *([(every_other, len(every_other))] if all_key else []),
    ):
        entries = fed = 0
        with VideoFile(path) as video:
            np.testing.assert_array_equal(video.read(indices), frames[list(indices)])
        assert entries == expected
        if all_key:
            assert fed == len(indices)


@pytest.mark.parametrize(
    ("name", "probed"), [("mpeg4 avi", False), ("mpeg4 avi, B-frames", False), ("h264, B-frames in avi", True)]
)
def test_an_avi_is_looked_into_only_where_its_header_does_not_tell(videos: Library, name: str, probed: bool) -> None:
    with VideoFile(videos(name)[0]) as video:
        assert video._probed == probed


def test_edit_list_and_rotation_are_really_there(videos: Library) -> None:
    """Were the muxer to stop writing them, the tests above would prove nothing."""
    path, frames, _ = videos("h264, edit list")
    with av.open(path) as container:
        assert sum(packet.is_discard for packet in container.demux(video=0)) == 7
    assert len(frames) == 53
    with VideoFile(videos("h264, rotated")[0]) as video:
        turned = video.read([5])[0]
    assert turned.shape == (112, 80, 3)
    assert number_in(np.rot90(turned, -1)) == 5  # stored lying, shown a quarter turn counter-clockwise
    with VideoFile(videos("h264, upside down")[0]) as video:
        assert number_in(np.rot90(video.read([6])[0], 2)) == 6


def test_false_keyframes_are_noticed(videos: Library) -> None:
    """Intra-refresh: the file lists keyframes, but a frame decoded from one on differs from the true one."""
    path, frames, _ = videos("h264, intra refresh")
    with VideoFile(path) as video:
        assert len(video.index.keys) > 2, "the encoder marked no false keyframes; this test needs them"
        np.testing.assert_array_equal(video.read([80]), frames[[80]])
        assert not video._trust_keys


def test_hidden_packets_are_there_and_not_counted(videos: Library) -> None:
    for name in ("vp8, hidden references", "mpeg4 avi, empty pictures"):
        path, frames, _ = videos(name)
        with av.open(path) as container:
            packets = sum(packet.size > 0 for packet in container.demux(video=0))
        assert packets > len(frames), name


def test_index_is_a_small_value_that_replaces_the_pass(videos: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "h264 GOP 12",
        "vp9",
        "h264, B-frames in avi",
        "h264, mpegts",
        "h264, edit list",
        "mpeg4 avi",
        "mpeg4 avi, B-frames",
    ):
        path, frames, _ = videos(name)
        with VideoFile(path) as video:
            packed = pickle.dumps(video.index)
        assert len(packed) < 4000
        with monkeypatch.context() as patch:
            patch.setattr(VideoFile, "_make_index", None)
            with VideoFile(path, index=pickle.loads(packed)) as video:
                assert video.num_frames == len(frames)
                for indices in ([40], [3, 37, 20], [0, 1]):
                    np.testing.assert_array_equal(video.read(indices), frames[indices])


def test_complete_list_in_an_avi_spares_reading_its_packets(
    videos: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, frames, _ = videos("mpeg4 avi")
    with monkeypatch.context() as patch:
        patch.setattr(VideoFile, "_demux", None)
        with VideoFile(path) as video:
            assert video.num_frames == len(frames)

    data = bytearray(path.read_bytes())
    header = data.index(b"strh") + 8 + 32  # the number of frames
    data[header : header + 4] = (44).to_bytes(4, "little")
    lying = tmp_path / "lying.avi"
    lying.write_bytes(data)
    cut = tmp_path / "cut.avi"  # the list stands at the end
    cut.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    for damaged in (lying, cut):
        true, _ = in_order(damaged)
        with VideoFile(damaged) as video:
            assert video.num_frames == len(true)
            np.testing.assert_array_equal(video.read([len(true) - 1, 3]), true[[-1, 3]])


def test_packet_lost_from_an_avi_shifts_no_other(videos: Library, tmp_path: Path) -> None:
    """FFmpeg counts on without it: the frames after it would be taken for those before them."""
    path, frames, _ = videos("mpeg4 avi")
    with av.open(path) as container:
        entry = container.streams.video[0].index_entries[30]
    data = bytearray(path.read_bytes())
    data[entry.pos : entry.pos + 8] = bytes(8)
    (tmp_path / "hole.avi").write_bytes(data)
    with VideoFile(tmp_path / "hole.avi") as video:
        assert video.num_frames == len(frames)
        for number in (29, 40, 36, 59):
            assert number_in(video.read([number])[0]) == number
        with pytest.raises(DecodeError, match="frame 30 of 60 cannot be decoded"):
            video.read([30])


def test_pictures_packed_two_by_two_and_one_missing(shared: Path, tmp_path: Path) -> None:
    """The order of such packets is known only while each fits; else frames are counted."""
    path = tmp_path / "odd.avi"
    with (
        av.open(shared / "data" / "clips" / "RATRACE_wave_f_nm_np1_fr_goo_37.avi") as source,
        av.open(path, "w") as out,
    ):
        stream = out.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(video=0) if packet.size]
        del packets[next(number for number, packet in enumerate(packets) if number > 20 and packet.size == 8)]
        for number, packet in enumerate(packets):
            packet.pts = packet.dts = number
            packet.stream = stream
            out.mux(packet)
    frames, _ = in_order(path)
    with VideoFile(path) as video:
        assert video.index.counted
        assert video.num_frames == len(frames)
        np.testing.assert_array_equal(video.read([60, 5, 25]), frames[[60, 5, 25]])


REAL = [
    "R6llTwEh07w.mp4",
    "SOX5yA1l24A.mp4",
    "RATRACE_wave_f_nm_np1_fr_goo_37.avi",
    "SchoolRulesHowTheyHelpUs_wave_f_nm_np1_ba_med_0.avi",
    "TrumanShow_wave_f_nm_np1_fr_med_26.avi",
    "hmdb51_Turnk_r_Pippi_Michel_cartwheel_f_cm_np2_le_med_6.avi",  # its metadata is not UTF-8
    "v_SoccerJuggling_g23_c01.avi",
    "tree.avi",
]


@pytest.mark.usefixtures("large_or_small")
@pytest.mark.parametrize("file", REAL)
def test_real_clips(shared: Path, file: str) -> None:
    path = shared / "data" / "clips" / file
    frames, _ = in_order(path)
    with VideoFile(path) as video:
        assert video.num_frames == len(frames)
        for indices in list(index_sets(len(frames), seed=1))[:-1]:
            np.testing.assert_array_equal(video.read(indices), frames[indices])


@pytest.mark.parametrize("folder", ["overhead_adl", "handwash12"])
def test_real_data_sets(shared: Path, folder: str) -> None:
    clips = sorted((shared / "data" / folder).glob("*/*.mp4"))
    for path in random.Random(0).sample(clips, 8):
        frames, _ = in_order(path)
        with VideoFile(path) as video:
            assert video.num_frames == len(frames)
            indices = [int((segment + 0.5) * len(frames) / 8) for segment in range(8)]
            np.testing.assert_array_equal(video.read(indices), frames[indices])


@pytest.mark.parametrize("name", ["h264 GOP 12", "mpeg4 avi, B-frames", "h264, mpegts"])
def test_paths_bytes_and_file_objects_are_one(videos: Library, name: str) -> None:
    path, frames, _ = videos(name)
    indices = [31, 2, 31, 45]
    with open(path, "rb") as file:
        file.seek(100)  # wherever it stands
        for source in (path, str(path), path.read_bytes(), io.BytesIO(path.read_bytes()), file):
            with open_frames(source) as video:
                np.testing.assert_array_equal(video.read([50]), frames[[50]])
                np.testing.assert_array_equal(video.read(indices), frames[indices])
        assert not file.closed

    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

    with open_frames(Pipe(path.read_bytes())) as video:
        np.testing.assert_array_equal(video.read(indices), frames[indices])


@pytest.mark.skipif(os.name != "posix", reason="file names are bytes on POSIX only")
def test_file_name_that_is_no_text(videos: Library, tmp_path: Path) -> None:
    path, frames, _ = videos("h264 GOP 12")
    odd = os.fsencode(tmp_path) + b"/\xff\xfe:clip.mp4"
    try:
        with open(odd, "wb") as file:
            file.write(path.read_bytes())
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    with open_frames(os.fsdecode(odd)) as video:
        np.testing.assert_array_equal(video.read([9]), frames[[9]])


# Segments


@pytest.mark.parametrize(
    "name", ["h264 GOP 12", "h264, variable rate, mkv", "h264, edit list", "mpeg4 avi", "vp9", "h264, mpegts"]
)
def test_segment_is_the_frames_from_start_to_before_end(videos: Library, name: str) -> None:
    path, frames, times = videos(name)
    times = [time - times[0] for time in times]
    generator = random.Random(5)
    for _ in range(6):
        first, last = sorted(generator.sample(range(len(frames)), 2))
        # A start a little after a frame's time leaves the frame out; exactly at it takes it in.
        with open_frames(path, start=times[first], end=times[last]) as video:
            assert video.num_frames == last - first
            np.testing.assert_array_equal(video.read([0, video.num_frames - 1]), frames[[first, last - 1]])
            with pytest.raises(IndexError, match=f"frame {last - first} asked for, but it has {last - first}"):
                video.read([last - first])
        with open_frames(path, start=times[first] + 0.003) as video:
            assert video.num_frames == len(frames) - first - 1
    with open_frames(path, end=1e6) as video:
        assert video.num_frames == len(frames)


@pytest.mark.parametrize(
    ("start", "end", "words"),
    [
        (9.0, None, r"starts at 9 s, but the last of its 100 frames is at 3\.960 s"),
        (2.0, 2.0, r"from 2\.0 s to 2\.0 s is empty"),
        (2.0, 1.0, r"from 2\.0 s to 1\.0 s is empty"),
        (-1.0, None, r"from -1\.0 s to None s is empty; start must lie in \[0, end\)"),
        (float("nan"), None, "nan"),
        (0.005, 0.015, r"no frame lies between 0\.005 s and 0\.015 s"),
    ],
)
def test_empty_segments_are_errors(
    videos: Library, start: float, end: float | None, words: str, tmp_path: Path
) -> None:
    path, _, _ = videos("h264 GOP 12")
    with pytest.raises(DecodeError, match=words) as caught:
        open_frames(path, start=start, end=end)
    assert caught.value.path == str(path)
    with pytest.raises(DecodeError, match=words):
        open_frames(np.zeros((100, 4, 4, 3), np.uint8), start=start, end=end, fps=25)


def test_frame_rate_is_that_of_the_frames(videos: Library) -> None:
    for name in (
        "h264 GOP 12",
        "vp9",
        "mpeg4 avi",
        "h264, mpegts",
        "h264, edit list",
        "h264, B-frames in avi",
    ):
        with VideoFile(videos(name)[0]) as video:
            assert video.fps == pytest.approx(25, rel=0.01), name
    with VideoFile(videos("h264, variable rate")[0]) as video:
        assert video.fps == pytest.approx(59 / (vary(60)[-1] / 1000), rel=1e-3)


# Bad input


def bad_files(folder: Path) -> dict[str, tuple[Path, str]]:
    def write(name: str, data: bytes) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    whole = encode(folder / "whole.mp4", "libx264", 60, options=X264).read_bytes()
    sound = folder / "sound.mp4"
    with av.open(sound, "w") as output:
        stream = output.add_stream("aac", rate=16000, layout="mono")
        for _ in range(20):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate = 16000
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return {
        "missing": (folder / "nowhere.mp4", "no such file"),
        "zero-byte": (write("zero.mp4", b""), r"empty \(0 bytes\)"),
        "HTML": (write("page.mp4", b"\n<!DOCTYPE html><html><body>Sign in</body></html>" * 40), "HTML"),
        "random": (write("random.mp4", np.random.default_rng(0).bytes(20000)), "not a video"),
        "no moov": (write("broken.mp4", whole[: len(whole) // 2]), "without its index"),
        "sound only": (sound, "no video stream.*audio"),
    }


@pytest.mark.parametrize("kind", ["missing", "zero-byte", "HTML", "random", "no moov", "sound only"])
def test_unreadable_files_say_why(tmp_path: Path, kind: str) -> None:
    path, words = bad_files(tmp_path)[kind]
    with pytest.raises(DecodeError, match=words) as caught:
        open_frames(path)
    assert caught.value.path == str(path)
    assert str(caught.value).startswith(f"{path}: ")
    if path.exists():  # the same for what is in memory
        with pytest.raises(DecodeError, match=words):
            open_frames(path.read_bytes())
        with open(path, "rb") as file, pytest.raises(DecodeError, match=words):
            open_frames(file)


@pytest.mark.usefixtures("large_or_small")
@pytest.mark.parametrize(
    ("file", "container"),
    [("cut.mp4", {"movflags": "faststart"}), ("cut.mkv", {}), ("cut.avi", {}), ("cut.ts", {})],
)
def test_truncated_file_yields_its_first_frames(tmp_path: Path, file: str, container: dict[str, str]) -> None:
    options = {"options": X264 | {"g": "12", "bf": "0"}, "container": container}
    whole = encode(tmp_path / f"whole{Path(file).suffix}", "libx264", 80, **options)
    frames, _ = in_order(whole)
    path = tmp_path / file
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size * 6 // 10])
    with VideoFile(path) as video:
        assert 20 < video.num_frames < 80  # the header still says 80
        np.testing.assert_array_equal(video.read(range(20)), frames[:20])


@pytest.mark.usefixtures("large_or_small")
def test_frame_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    def spoil(packets: list[Any]) -> list[Any]:
        for number in range(30, 36):
            spoiled = av.Packet(b"\x00\x00\x00\x01\x1e" + b"\xff" * 20)  # a kind of data H.264 does not know
            spoiled.pts, spoiled.dts = packets[number].pts, packets[number].dts
            spoiled.duration, spoiled.time_base = packets[number].duration, packets[number].time_base
            spoiled.stream = packets[number].stream
            packets[number] = spoiled
        return packets

    path = encode(tmp_path / "v.mp4", "libx264", 60, options=X264 | {"g": "12", "bf": "0"}, change=spoil)
    with VideoFile(path) as video:
        assert video.num_frames == 60
        assert number_in(video.read([29])[0]) == 29
        with pytest.raises(DecodeError, match=r"frame 33 of 60 cannot be decoded.*fetch or encode it again"):
            video.read([3, 33])
        assert number_in(video.read([48])[0]) == 48  # and the rest can still be read


def test_change_of_size_is_an_error(tmp_path: Path) -> None:
    small = encode(tmp_path / "a.ts", "libx264", 20, options=X264).read_bytes()
    large = encode(tmp_path / "b.ts", "libx264", 20, options=X264, size=(144, 96)).read_bytes()
    path = tmp_path / "joined.ts"
    path.write_bytes(small + large)
    with VideoFile(path) as video, pytest.raises(DecodeError, match="change size, from 112×80 to 144×96"):
        video.read([0, video.num_frames - 1])


def test_indices_and_sources_of_the_wrong_kind(videos: Library, tmp_path: Path) -> None:
    path, _, _ = videos("h264 GOP 12")
    with open_frames(path) as video:
        for index in (-1, 100):
            with pytest.raises(IndexError, match=rf"frame {index} asked for, but it has 100 \(0 to 99\)"):
                video.read([0, index])
        with pytest.raises(TypeError, match="whole numbers"):
            video.read([0.5])  # type: ignore[list-item]
        with pytest.raises(ValueError, match="one or more"):
            video.read([])
    with pytest.raises(ValueError, match="read after close"):
        video.read([0])
    with pytest.raises(TypeError, match="binary mode"), open(path, encoding="latin-1") as text:
        open_frames(text)  # type: ignore[arg-type]
    for source in (None, 3, ["a.mp4"], threading.Lock()):
        with pytest.raises(TypeError, match="cannot read frames from a"):
            open_frames(source)  # type: ignore[arg-type]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files in /proc")
def test_no_file_stays_open(videos: Library, tmp_path: Path) -> None:
    good = [videos(name)[0] for name in ("h264 GOP 12", "h264, mpegts", "h264, B-frames in avi")]
    bad = [path for path, _ in bad_files(tmp_path).values()]

    def once() -> None:
        for path in good:
            with open_frames(path) as video:
                video.read([40, 3])
            open_frames(path).read([5])  # forgotten, not closed
            with pytest.raises(DecodeError):
                open_frames(path, start=1e6)
        for path in bad:
            with pytest.raises(DecodeError):
                open_frames(path)

    once()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(40):
        once()
    assert len(os.listdir("/proc/self/fd")) <= before


# Arrays and folders


def test_array_frames() -> None:
    array = np.random.default_rng(0).integers(0, 255, (10, 6, 8, 3), dtype=np.uint8)
    with open_frames(array) as frames:
        assert (frames.num_frames, frames.fps, frames.path) == (10, None, "<array>")
        read = frames.read(np.array([9, 0, 9]))
        np.testing.assert_array_equal(read, array[[9, 0, 9]])
        read[:] = 0
        assert array[9].any()
    with open_frames(array, start=0.2, end=0.5, fps=10) as frames:
        np.testing.assert_array_equal(frames.read([0, 1, 2]), array[2:5])
    with pytest.raises(DecodeError, match="state the frame rate"):
        ArrayFrames(array, start=0.2)
    with pytest.raises(ValueError, match=r"\(T, H, W, 3\), got array.shape = \(10, 3, 6, 8\)"):
        open_frames(array.transpose(0, 3, 1, 2))
    with pytest.raises(TypeError, match="uint8 RGB, got array"):
        open_frames(array.astype(np.float32))
    with pytest.raises(DecodeError, match="no frames"):
        open_frames(array[:0])


def folder_of(path: Path, names: list[str]) -> Path:
    path.mkdir()
    for number, name in enumerate(names):
        Image.fromarray(picture(number)).save(path / name, quality=95)
    return path


@pytest.mark.parametrize("pattern", ["img_{:05d}.jpg", "{:06d}.jpg", "frame{}.JPEG", "v_Clip_g01_c02-{:03d}.jpg"])
def test_frame_folder_counts_by_number(tmp_path: Path, pattern: str) -> None:
    folder = folder_of(tmp_path / "f", [pattern.format(number + 1) for number in range(12)])
    (folder / "flow_x_00001.jpg").write_bytes(b"")
    (folder / "notes.txt").write_text("not a frame")
    with open_frames(folder) as frames:
        assert (frames.num_frames, frames.fps) == (12, None)
        read = frames.read([11, 0, 5, 11])
    assert [number_in(image) for image in read] == [11, 0, 5, 11]
    with open_frames(folder, start=0.5, end=1.0, fps=8) as frames:
        assert [number_in(image) for image in frames.read(range(frames.num_frames))] == [4, 5, 6, 7]
    with pytest.raises(DecodeError, match=r"seconds: state the frame rate"):
        open_frames(folder, end=1.0)


@pytest.fixture
def listings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders that are listed, from now on; nothing is kept from before."""
    listed: list[str] = []
    plain = os.listdir

    def counting(path: str) -> list[str]:
        listed.append(os.path.basename(path))
        return plain(path)

    monkeypatch.setattr(os, "listdir", counting)
    monkeypatch.setattr(decode, "_kept_names", {})
    return listed


def settle(folder: Path, seconds: float = 60) -> None:
    """As if the folder had last been changed so long ago."""
    moment = time.time() - seconds
    os.utime(folder, (moment, moment))


@pytest.mark.parametrize("pattern", ["frame_{:010d}.jpg", "{}.JPG", "v 1-{:02d}.jpeg"])
def test_frame_folder_is_listed_once_until_it_changes(tmp_path: Path, pattern: str, listings: list[str]) -> None:
    folder = folder_of(tmp_path / "f", [pattern.format(number + 95) for number in range(12)])  # digits become more
    settle(folder)
    for segment in ((None, None), (0.25, 0.75), (0.5, 1.0)):
        with open_frames(folder, start=segment[0], end=segment[1], fps=8) as frames:
            first = 0 if segment[0] is None else round(8 * segment[0])
            read = frames.read([frames.num_frames - 1, 0])
            assert [number_in(image) for image in read] == [first + frames.num_frames - 1, first]
    assert listings == ["f"]
    (folder / pattern.format(106)).unlink()
    settle(folder, 50)
    assert open_frames(folder).num_frames == 11
    (folder / pattern.format(100)).unlink()
    settle(folder, 40)
    for _ in range(2):
        with pytest.raises(DecodeError, match="frame 100 is missing"):
            open_frames(folder)
    assert listings == ["f"] * 4  # what is wrong is looked at again


def test_frame_folder_that_just_changed_or_has_odd_names_is_listed_anew(tmp_path: Path, listings: list[str]) -> None:
    """A file system's clock may not tell two changes in quick succession apart."""
    fresh = folder_of(tmp_path / "fresh", ["1.jpg", "2.jpg"])
    assert open_frames(fresh).num_frames == 2
    before = fresh.stat()
    (fresh / "3.jpg").write_bytes(b"")
    os.utime(fresh, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert open_frames(fresh).num_frames == 3
    odd = folder_of(tmp_path / "odd", ["f9.jpg", "f010.JPG", "f11.jpeg"])
    (odd / "._f9.jpg").write_bytes(b"")  # as macOS leaves beside files on other systems' disks
    settle(odd)
    for _ in range(2):
        with open_frames(odd) as frames:
            assert [number_in(image) for image in frames.read([2, 0, 1])] == [2, 0, 1]
    assert listings == ["fresh", "fresh", "odd", "odd"]


def test_names_of_few_frame_folders_are_kept(
    tmp_path: Path, listings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "_KEPT_FOLDERS", 2)
    folders = [folder_of(tmp_path / name, ["1.jpg"]) for name in "abc"]
    for folder in folders:
        settle(folder)
    for place in (0, 1, 2, 2, 1, 0):
        open_frames(folders[place])
        assert len(decode._kept_names) <= 2
    assert listings == ["a", "b", "c", "b", "a"]


def test_frame_folder_with_faults(tmp_path: Path) -> None:
    gap = folder_of(tmp_path / "gap", [f"img_{number:05d}.jpg" for number in (1, 2, 3, 5)])
    with pytest.raises(DecodeError, match=r"gap: frame 4 is missing \(after img_00003.jpg comes img_00005.jpg\)"):
        open_frames(gap)
    twice = folder_of(tmp_path / "twice", ["img_1.jpg", "img_01.jpg"])
    with pytest.raises(DecodeError, match="frame 1 is there twice"):
        open_frames(twice)
    two = folder_of(tmp_path / "two", ["left_1.jpg", "right_1.jpg"])
    with pytest.raises(DecodeError, match=r"more than one series of frames \(left_\*.jpg, right_\*.jpg\)"):
        open_frames(two)
    empty = folder_of(tmp_path / "empty", [])
    with pytest.raises(DecodeError, match="no numbered JPEG frames"):
        open_frames(empty)
    spoiled = folder_of(tmp_path / "spoiled", ["1.jpg", "2.jpg", "3.jpg"])
    (spoiled / "2.jpg").write_bytes((spoiled / "2.jpg").read_bytes()[:300])
    Image.new("L", (8, 8)).save(spoiled / "3.jpg")
    with FrameFolder(spoiled) as frames:
        assert number_in(frames.read([0])[0]) == 0
        with pytest.raises(DecodeError, match=r"2\.jpg: is not a readable JPEG"):
            frames.read([0, 1])
        with pytest.raises(DecodeError, match="change size, from 112×80 to 8×8"):
            frames.read([0, 2])
