"""Every codec in every container that FFmpeg can write here: whatever is asked for, in whatever order, the frames are
those of decoding the whole file in order, bit for bit, and there are as many.

What the short cuts rest on (packets' times, keyframe flags, places in the file) is the container's business as much as
the codec's. ASF, for one, stores when a packet is decoded, not when its picture is shown.
"""

import itertools
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_decode import X264, encode, hide_first, in_order, number_in, vary

from clipwise.data import decode
from clipwise.data.decode import VideoFile

COUNT = 48
X265 = {"preset": "ultrafast"}
CODECS: dict[str, tuple[str, dict[str, Any]]] = {
    "h264": ("libx264", {"options": X264 | {"g": "12", "bf": "3"}}),
    "h264 P": ("libx264", {"options": X264 | {"g": "15", "bf": "0"}}),
    "h264 intra refresh": ("libx264", {"options": X264 | {"g": "15", "bf": "2", "intra-refresh": "1"}}),
    "h264 open GOP": ("libx264", {"options": X264 | {"x264-params": "keyint=12:bframes=3:open-gop=1:scenecut=0"}}),
    "h264 interlaced": ("libx264", {"options": X264 | {"x264-params": "keyint=12:bframes=2:tff=1"}}),
    "hevc": ("libx265", {"options": X265 | {"x265-params": "keyint=12:open-gop=0:bframes=2:log-level=0:pools=1"}}),
    "hevc open GOP": (
        "libx265",
        {"options": X265 | {"x265-params": "keyint=12:open-gop=1:bframes=3:log-level=0:pools=1"}},
    ),
    "vp8": ("libvpx", {"options": {"cpu-used": "5", "g": "12"}}),
    "vp9": ("libvpx-vp9", {"options": {"cpu-used": "8", "deadline": "realtime", "g": "12"}}),
    "vp9 alternate": (
        "libvpx-vp9",
        {"options": {"cpu-used": "5", "lag-in-frames": "16", "auto-alt-ref": "1", "g": "20"}},
    ),
    "av1": ("libsvtav1", {"options": {"preset": "12", "g": "16", "svtav1-params": "lp=1"}}),
    "mpeg4": ("mpeg4", {"options": {"g": "12", "b": "800k"}}),
    "mpeg4 B": ("mpeg4", {"options": {"g": "12", "bf": "2", "b": "800k"}}),
    "mpeg2": ("mpeg2video", {"options": {"g": "12", "bf": "2", "b": "2M"}}),
    "mpeg2 P": ("mpeg2video", {"options": {"g": "12", "bf": "0", "b": "2M"}}),
    "mpeg1": ("mpeg1video", {"options": {"g": "12", "bf": "2", "b": "2M"}}),
    "h263": ("h263p", {"options": {"g": "12"}}),
    "flv1": ("flv", {"options": {"g": "12"}}),
    "wmv1": ("wmv1", {"options": {"g": "12"}}),
    "wmv2": ("wmv2", {"options": {"g": "12"}}),
    "msmpeg4v3": ("msmpeg4", {"options": {"g": "12"}}),
    "mjpeg": ("mjpeg", {"pix_fmt": "yuvj420p"}),
    "prores": ("prores_ks", {"pix_fmt": "yuv422p10le"}),
    "ffv1": ("ffv1", {}),
    "cinepak": ("cinepak", {"pix_fmt": "rgb24"}),
    "svq1": ("svq1", {"pix_fmt": "yuv410p", "options": {"g": "12"}}),
    "snow": ("snow", {}),
    "gif": ("gif", {"pix_fmt": "rgb8"}),
}
WRITTEN = {
    "h264": "mp4 mov mkv avi flv asf ts mxf 3gp nut h264",
    "h264 P": "asf mov avi",
    "h264 intra refresh": "mp4 ts asf flv",
    "h264 open GOP": "mkv ts asf",
    "h264 interlaced": "mov avi m2ts",
    "hevc": "mp4 mov mkv ts flv hevc",
    "hevc open GOP": "mkv ts",
    "vp8": "webm mkv ogg",
    "vp9": "webm mp4 mkv ivf",
    "vp9 alternate": "mkv mp4 ivf",
    "av1": "mp4 mkv webm obu ivf",
    "mpeg4": "mp4 mov mkv avi asf m4v",
    "mpeg4 B": "mkv avi asf mov 3gp",
    "mpeg2": "mpg vob ts mkv asf mxf",
    "mpeg2 P": "mpg avi",
    "mpeg1": "mpg asf mkv",
    "h263": "avi mpg",
    "flv1": "flv",
    "wmv1": "wmv avi",
    "wmv2": "wmv avi",
    "msmpeg4v3": "avi asf",
    "mjpeg": "avi mov mkv mp4",
    "prores": "mov",
    "ffv1": "mkv avi",
    "cinepak": "avi mov",
    "svq1": "mov",
    "snow": "avi",
    "gif": "gif",
}
PECULIAR: dict[str, dict[str, Any]] = {
    "in fragments": {"container": {"movflags": "frag_keyframe+empty_moov"}},
    "variable rate": {"times": vary(COUNT)},
    "variable rate, other containers": {"times": vary(COUNT)},
    "edit list": {"patch": hide_first},
    "rotated": {"rotation": 270},
    "from 5 s on": {"times": [5000 + 40 * number for number in range(COUNT)]},
}
ODD = {
    "in fragments": [("h264", "mp4"), ("hevc open GOP", "mp4"), ("av1", "mp4"), ("vp9", "mp4"), ("mpeg4 B", "mp4")],
    "variable rate": [("h264", "ts"), ("hevc", "mp4"), ("vp9", "webm"), ("av1", "mp4"), ("mpeg4 B", "mkv")],
    "variable rate, other containers": [("h264", "asf"), ("mpeg4", "asf"), ("h264 intra refresh", "mkv")],
    "edit list": [
        ("h264 open GOP", "mov"),
        ("h264 intra refresh", "mp4"),
        ("hevc", "mp4"),
        ("mpeg4 B", "mp4"),
        ("av1", "mp4"),
    ],
    "rotated": [("h264", "mov"), ("hevc", "mp4"), ("av1", "mp4"), ("mpeg4 B", "mov")],
    "from 5 s on": [("h264", "ts"), ("vp9", "webm"), ("h264", "mkv"), ("hevc", "mp4")],
}
FILES = [(codec, suffix, "") for codec, suffixes in WRITTEN.items() for suffix in suffixes.split()]
FILES += [(codec, suffix, peculiar) for peculiar, files in ODD.items() for codec, suffix in files]


@pytest.mark.parametrize(("codec", "suffix", "peculiar"), FILES, ids=lambda value: value or "plain")
def test_any_frames_in_any_order(
    codec: str, suffix: str, peculiar: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, how = CODECS[codec]
    path = encode(tmp_path / f"v.{suffix}", encoder, COUNT, **how | PECULIAR.get(peculiar, {}))
    true, _ = in_order(path)
    count = len(true)

    @settings(max_examples=6, deadline=None, derandomize=True, database=None)
    @given(st.lists(st.lists(st.integers(0, count - 1), min_size=1, max_size=6), min_size=1, max_size=3))
    def check(requests: list[list[int]]) -> None:
        with VideoFile(path) as video:
            assert video.num_frames == count
            for indices in requests:
                np.testing.assert_array_equal(video.read(indices), true[indices], err_msg=f"{requests}: {indices}")

    check()
    with VideoFile(path) as video:
        made, index = random.Random(count), video.index
        wanted = sorted(made.sample(range(count), 8))
        np.testing.assert_array_equal(video.read(wanted), true[wanted])
    monkeypatch.setattr(decode, "_KEEP_BYTES", 0)  # as a large file: packets are sought, not kept
    check()
    for first, last in itertools.pairwise([count - 1, 0, count // 2, count - 2]):
        with VideoFile(path, index=index) as video:  # and by an index made before
            np.testing.assert_array_equal(video.read([first, last]), true[[first, last]])


@pytest.mark.parametrize("suffix", ["asf", "mxf"])
def test_reordered_frames_without_their_times_come_in_order(suffix: str, tmp_path: Path) -> None:
    encoder, how = CODECS["h264"]
    path = encode(tmp_path / f"v.{suffix}", encoder, COUNT, **how)
    with VideoFile(path) as video:
        assert [number_in(picture) for picture in video.read(range(COUNT))] == list(range(COUNT))
