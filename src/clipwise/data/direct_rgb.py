"""Decoded pictures to RGB, written at once where they are wanted.

PyAV's converter makes a picture of its own, which must then be copied. Where a frame of a small video is decoded in a
tenth of a millisecond, that is a fifth of the time. FFmpeg's own function, which PyAV's converter calls, takes any
address; so it is called here by ``ctypes``, from the library that PyAV has loaded.

That is done for what nearly all videos are (8-bit 4:2:0, widths that the fast routines fill exactly), and only after
noise of the same width and colour space came out bit for bit as from PyAV's converter, with no byte written behind it:
another FFmpeg, a system on which the function is not found, or any difference means that nothing is converted here.
"""

import ctypes
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["SLACK", "DirectRgb", "rgb_pixels", "upright"]

SLACK = 64
"""Bytes behind an array of pictures that belong to it, a register's width: FFmpeg promises no less to its own."""
_ROWS = 32
"""Of the noise that is compared; how many there are changes nothing."""
_FORMATS = {"yuv420p": 0, "yuvj420p": 12}  # FFmpeg's numbers (AVPixelFormat), which never change
_RGB24 = 2
_BILINEAR = 2  # PyAV's default, which decides how chroma is spread over pixels
_FULL_RANGE = 2  # AVColorRange
_ONE = 1 << 16  # contrast and saturation as they are, in FFmpeg's fixed point

_Pointers = ctypes.c_void_p * 4
_Strides = ctypes.c_int * 4


def rgb_pixels(frame: Any) -> NDArray[np.uint8]:
    """(H, W, 3) of a PyAV frame in rgb24, a view of its memory: rows may be longer than they are wide."""
    plane = frame.planes[0]
    return np.ndarray((frame.height, frame.width, 3), np.uint8, plane, 0, (plane.line_size, 3, 1))


def upright(frame: Any, reformatter: Any) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 of any PyAV frame, by PyAV's converter, its rotation applied."""
    # One thread: for a picture of this size starting more costs several times the conversion.
    pixels = rgb_pixels(reformatter.reformat(frame, format="rgb24", threads=1))
    # Quarter turns, counter-clockwise, that set the picture upright.
    turns = round(frame.rotation / 90) % 4
    return np.rot90(pixels, turns) if turns else pixels


@cache
def _swscale() -> ctypes.CDLL | None:
    """FFmpeg's converter: found through the module of PyAV that is linked with it; None where it is not."""
    import av.video.reformatter

    pointer, number = ctypes.c_void_p, ctypes.c_int
    try:
        library = ctypes.CDLL(av.video.reformatter.__file__)
        library.sws_getContext.restype = pointer
        library.sws_getContext.argtypes = [*[number] * 7, *[pointer] * 3]
        library.sws_getCoefficients.restype = pointer
        library.sws_getCoefficients.argtypes = [number]
        library.sws_setColorspaceDetails.argtypes = [pointer, pointer, number, pointer, *[number] * 4]
        library.sws_scale.argtypes = [pointer, pointer, pointer, number, number, pointer, pointer]
        library.sws_freeContext.restype = None
        library.sws_freeContext.argtypes = [pointer]
    except (OSError, AttributeError):  # Windows looks functions up in the module alone
        return None
    return library


class DirectRgb:
    """Converts the frames of one video, in one thread."""

    def __init__(self) -> None:
        self._kind: tuple[int, int, str, int, int] | None = None
        self._context: Any = None
        self._source, self._source_strides = _Pointers(), _Strides()
        self._target, self._target_strides = _Pointers(), _Strides()

    def convert(self, frame: Any, address: int) -> bool:
        """Write a PyAV frame as (H, W, 3) uint8 to ``address``, where there is room for that and ``SLACK`` bytes more.

        Returns False where this frame is one for PyAV's converter.
        """
        kind = (frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range)
        if kind != self._kind:
            self._prepare(kind)
        if self._context is None or frame.interlaced_frame:  # whose chroma belongs to every other row
            return False
        return self._write(frame, address)

    def _prepare(self, kind: tuple[int, int, str, int, int]) -> None:
        self._free()
        self._kind = kind
        width, height, *others = kind
        if kind[2] in _FORMATS and height % 2 == 0 and _agrees(width, *others):
            self._set_up(kind)

    def _set_up(self, kind: tuple[int, int, str, int, int]) -> None:
        library = _swscale()
        assert library is not None
        width, height, name, colours, colour_range = kind
        size = (width, height)
        self._context = library.sws_getContext(*size, _FORMATS[name], *size, _RGB24, _BILINEAR, None, None, None)
        if self._context is None:
            return
        table, full = library.sws_getCoefficients(colours), colour_range == _FULL_RANGE or name == "yuvj420p"
        library.sws_setColorspaceDetails(self._context, table, full, table, 1, 0, _ONE, _ONE)
        self._target_strides[0] = 3 * width
        self._scale, self._height = library.sws_scale, height

    def _write(self, frame: Any, address: int) -> bool:
        planes = frame.planes
        if len(planes) != 3:
            return False
        for number, plane in enumerate(planes):
            self._source[number], self._source_strides[number] = plane.buffer_ptr, plane.line_size
        self._target[0] = address
        rows: int = self._scale(
            self._context, self._source, self._source_strides, 0, self._height, self._target, self._target_strides
        )
        return rows == self._height

    def _free(self) -> None:
        context, self._context = self._context, None
        library = _swscale() if context is not None else None
        if library is not None:
            library.sws_freeContext(context)

    def __del__(self) -> None:
        self._free()


@cache
def _agrees(width: int, name: str, colours: int, colour_range: int) -> bool:
    """Whether noise of this kind comes out as from PyAV's converter, to the bit, also in the rows' last pixels, and
    nothing is written behind it."""
    import av

    if _swscale() is None:
        return False
    frame = av.VideoFrame(width, _ROWS, name)
    frame.colorspace, frame.color_range = colours, colour_range
    noise = np.random.default_rng(0)
    for plane in frame.planes:
        plane.update(noise.integers(0, 256, plane.buffer_size, np.uint8).tobytes())
    try:
        theirs = rgb_pixels(av.video.reformatter.VideoReformatter().reformat(frame, format="rgb24", threads=1))
    except (ValueError, av.error.FFmpegError):  # they do not take such colours, and say so when it comes to it
        return False
    untouched = 170
    ours = np.full(theirs.size + SLACK, untouched, np.uint8)
    converter = DirectRgb()
    converter._set_up((width, _ROWS, name, colours, colour_range))
    if converter._context is None or not converter._write(frame, ours.ctypes.data):
        return False
    pictures, behind = np.split(ours, [theirs.size])
    return np.array_equal(pictures.reshape(theirs.shape), theirs) and bool((behind == untouched).all())
