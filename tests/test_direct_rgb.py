"""Pictures written at once where they are wanted equal those of PyAV's converter, and where they cannot, PyAV's are."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
from test_decode import encode

from clipwise.data import direct_rgb
from clipwise.data.decode import VideoFile
from clipwise.data.direct_rgb import SLACK, DirectRgb, rgb_pixels

SIZES = [(16, 2), (48, 16), (112, 80), (160, 120), (224, 224), (320, 240), (352, 258), (1280, 720)]
COLOURS = [0, 1, 2, 5, 6, 7, 9]  # AVColorSpace: RGB, BT.709, not told, BT.601 twice, SMPTE 240M, BT.2020
RANGES = [0, 1, 2]  # AVColorRange: not told, limited, full


def noise(width: int, height: int, name: str, colours: int = 2, range: int = 0) -> Any:
    frame = av.VideoFrame(width, height, name)
    frame.colorspace, frame.color_range = colours, range
    random = np.random.default_rng(width * height + colours + range)
    for plane in frame.planes:
        plane.update(random.integers(0, 256, plane.buffer_size, np.uint8).tobytes())
    return frame


def by_pyav(frame: Any) -> np.ndarray:
    return rgb_pixels(av.video.reformatter.VideoReformatter().reformat(frame, format="rgb24", threads=1))


def direct(frame: Any) -> np.ndarray | None:
    """The picture, or None where it is left to PyAV; no byte before or behind it may change."""
    size = frame.width * frame.height * 3
    memory = np.full(64 + size + SLACK + 64, 170, np.uint8)
    written = DirectRgb().convert(frame, memory.ctypes.data + 64)
    assert (memory[:64] == 170).all()
    assert (memory[64 + size :] == 170).all()
    return memory[64 : 64 + size].reshape(frame.height, frame.width, 3) if written else None


@pytest.fixture
def anew() -> Iterator[None]:
    """What was found out about FFmpeg is forgotten before and after."""
    direct_rgb._swscale.cache_clear()
    direct_rgb._agrees.cache_clear()
    yield
    direct_rgb._swscale.cache_clear()
    direct_rgb._agrees.cache_clear()


@pytest.mark.parametrize("size", SIZES)
def test_every_colour_space_and_range_equals_pyav(size: tuple[int, int]) -> None:
    for name, colours, range in itertools.product(("yuv420p", "yuvj420p"), COLOURS, RANGES):
        frame = noise(*size, name, colours, range)
        picture = direct(frame)
        if picture is not None:
            np.testing.assert_array_equal(picture, by_pyav(frame), err_msg=f"{name} {colours} {range}")
        else:
            assert direct_rgb._swscale() is None, f"{size} {name} {colours} {range} is left to PyAV's converter"


@pytest.mark.parametrize(
    ("width", "height", "name"),
    [(340, 256, "yuv420p"), (321, 241, "yuv420p"), (320, 241, "yuv420p"), (320, 240, "yuv444p"), (64, 48, "gray")],
)
def test_other_pictures_are_left_to_pyav(width: int, height: int, name: str) -> None:
    assert direct(noise(width, height, name)) is None


@pytest.mark.parametrize("width", range(8, 400, 8))
def test_pictures_side_by_side_are_written_in_any_order(width: int) -> None:
    """Of some widths FFmpeg writes past the last row's end: such are left to PyAV, lest they spoil the next picture."""
    frames = [noise(width, 16, "yuv420p", colours) for colours in (1, 5, 6)]
    size = width * 16 * 3
    memory = np.zeros(3 * size + SLACK, np.uint8)
    for number in (2, 0, 1):
        if DirectRgb().convert(frames[number], memory.ctypes.data + number * size):
            assert width % 16 == 0
        else:
            memory[number * size :][:size] = by_pyav(frames[number]).reshape(-1)
    for number, frame in enumerate(frames):
        np.testing.assert_array_equal(memory[number * size :][:size].reshape(16, width, 3), by_pyav(frame))


@pytest.mark.parametrize("location", range(6))
def test_the_place_of_chroma_makes_no_difference(location: int, tmp_path: Path) -> None:
    """Streams state where between the pixels chroma lies, which no frame tells here; PyAV's converter minds it not."""
    path = encode(tmp_path / "video.mp4", "libx264", 3, options={"x264-params": f"chromaloc={location}"})
    with av.open(path) as container:
        for frame in container.decode(video=0):
            picture = direct(frame)
            if picture is None:
                assert direct_rgb._swscale() is None
            else:
                np.testing.assert_array_equal(picture, by_pyav(frame))


def test_a_converter_takes_pictures_of_another_size_and_colour(anew: None) -> None:
    converter = DirectRgb()
    for frame in (noise(64, 48, "yuv420p"), noise(112, 80, "yuv420p"), noise(64, 48, "yuv420p", 1, 2)):
        memory = np.empty(frame.width * frame.height * 3 + SLACK, np.uint8)
        if converter.convert(frame, memory.ctypes.data):
            np.testing.assert_array_equal(memory[:-SLACK].reshape(frame.height, frame.width, 3), by_pyav(frame))
        else:
            assert direct_rgb._swscale() is None


@pytest.mark.parametrize("why", ["function not found", "another result", "no memory"])
def test_a_video_is_the_same_without_it(why: str, anew: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = encode(tmp_path / "video.mp4", "libx264", 30)
    with VideoFile(path) as video:
        pictures = video.read(range(30))
    direct_rgb._agrees.cache_clear()
    if why == "function not found":
        monkeypatch.setattr(direct_rgb, "_swscale", lambda: None)
    elif why == "no memory":
        monkeypatch.setattr(
            direct_rgb, "_swscale", lambda: SimpleNamespace(sws_getContext=lambda *_: None, sws_freeContext=id)
        )
        assert direct(noise(112, 80, "yuv420p")) is None
    else:
        monkeypatch.setattr(direct_rgb, "_ONE", direct_rgb._ONE + 2000)  # a little more contrast
        assert direct(noise(112, 80, "yuv420p")) is None
    with VideoFile(path) as video:
        np.testing.assert_array_equal(video.read(range(30)), pictures)
