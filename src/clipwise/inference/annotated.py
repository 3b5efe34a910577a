"""Pictures with what they show written on them, as a video file."""

from __future__ import annotations

import contextlib
import textwrap
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from clipwise.data.decode import _import_av
from clipwise.files import check_writable, written_whole
from clipwise.inference.sources import Source

__all__ = ["AnnotatedVideo"]

_FORMATS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska"}
_TICKS = 90_000
_BAND = (0, 0, 0, 150)
_LETTER = 0.6
"""A letter's mean width, in font sizes."""


class AnnotatedVideo:
    """Writes H.264; use it as a context manager, at whose end the file is there, whole, however the block ended.

    The video has the size of its first picture (less a row or column where that is odd); pictures of another size are
    fitted into it. Rate, and the shape of pixels that are not square, are the source's. Where no picture came, no file
    is written.

    Args:
        path: ``.mp4``, ``.mov`` or ``.mkv``.

    Raises:
        ValueError: for another ending, or where nothing can be written.
    """

    def __init__(self, path: Path) -> None:
        if path.suffix.lower() not in _FORMATS:
            raise ValueError(f"{path}: a video's name ends in {', '.join(_FORMATS)}; give another --output")
        check_writable(path)
        self.path = path
        self.written = False
        self._open = contextlib.ExitStack()
        self._container: Any = None
        self._stream: Any = None
        self._font: Any = None
        self._step = 0
        self._source: Source | None = None
        self._last = -1

    def of(self, source: Source) -> Self:
        """Say of which source the pictures will be; before the first."""
        self._source = source
        return self

    def __enter__(self) -> Self:
        return self

    def add(self, picture: NDArray[np.uint8], seconds: float, lines: Sequence[str]) -> None:
        """Append a picture, (H, W, 3), that is shown from ``seconds`` on, with lines of text at its foot."""
        from PIL import Image, ImageDraw, ImageOps

        av = _import_av()
        if self._container is None:
            self._begin(av, *picture.shape[:2])
        width, height = self._stream.width, self._stream.height
        image = Image.fromarray(picture[:height, :width] if self._fits(picture) else picture)
        if image.size != (width, height):
            image = ImageOps.pad(image, (width, height))
        draw = ImageDraw.Draw(image, "RGBA")
        room = max(1, int(width / (_LETTER * self._font.size)) - 2)
        text = "\n".join(part for line in lines for part in textwrap.wrap(line, room))
        left, top, right, bottom = draw.multiline_textbbox((0, 0), text, font=self._font)
        margin = self._font.size // 2
        foot = max(0, height - (bottom - top) - 2 * margin)  # of more than there is room for, the first lines
        draw.rectangle((0, foot, right - left + 2 * margin, height), fill=_BAND)
        draw.multiline_text((margin - left, foot + margin - top), text, font=self._font, fill="white")
        frame = av.VideoFrame.from_image(image)
        self._last = max(round(seconds * _TICKS), self._last + 1)
        frame.pts, frame.time_base = self._last, Fraction(1, _TICKS)
        self._write(frame)

    def _write(self, frame: Any) -> None:
        """Encode and write a picture, at the end None."""
        for packet in self._stream.encode(frame):
            packet.duration = self._step  # what comes next shortens or lengthens it; the last picture has no next
            self._container.mux(packet)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._container is not None:
            with self._open:
                self._write(None)
            self.written = True

    def _fits(self, picture: NDArray[np.uint8]) -> bool:
        height, width = picture.shape[:2]
        return bool(height // 2 * 2 == self._stream.height and width // 2 * 2 == self._stream.width)

    def _begin(self, av: Any, height: int, width: int) -> None:
        import matplotlib
        from PIL import ImageFont

        if min(height, width) < 2:
            raise ValueError(f"pictures of {width}×{height} are too small for a video; leave --output out")
        # It has the letters of most alphabets, and is here wherever Clipwise is.
        font = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
        self._font = ImageFont.truetype(str(font), max(8, height // 20))
        partial = self._open.enter_context(written_whole(self.path))
        self._container = av.open(str(partial), "w", format=_FORMATS[self.path.suffix.lower()])
        self._open.callback(self._container.close)
        assert self._source is not None, "of() comes first"
        rate, aspect = self._source.rate, self._source.pixel_aspect
        self._step = round(self._source.step * _TICKS)
        self._stream = self._container.add_stream("libx264", rate=rate, options={"preset": "veryfast"})
        self._stream.width, self._stream.height = width // 2 * 2, height // 2 * 2
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.sample_aspect_ratio = aspect
        if rate is None:
            self._stream.codec_context.framerate = Fraction(0)  # it says nothing, rather than PyAV's 24
        self._stream.codec_context.time_base = Fraction(1, _TICKS)  # pictures come at any time
