"""Where a stream of pictures comes from: a file, an address, a camera, or raw pictures on stdin.

A source is read by two threads, one that waits for data and one that decodes::

    packets()  captures: reads, reconnects; may wait            ─┐  a queue between them, in live.py
    decode()   pictures with their times, and what happened    <─┘

Files are read as fast as they are wanted. A *live* source (camera, RTSP, an HTTP stream without an end, a file that is
played at its own speed) goes on whether or not somebody reads it: whoever is too slow has to leave pictures out.

Whatever goes wrong between the first picture and the last becomes a :class:`Notice` and the stream goes on: a damaged
packet is counted, a lost or silent connection is made anew, another size of picture is announced. Times never go back:
they count from the first picture, through reconnections, by the source's own clock and, where that jumps, falls behind
or is not there, by ours.

PyAV is imported on first use.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
import time
import urllib.parse
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from clipwise.data.decode import DecodeError, _import_av, _why_unreadable
from clipwise.data.direct_rgb import upright

__all__ = ["Captured", "Notice", "Picture", "Source", "open_source"]

_OPEN_SECONDS = 10.0
"""An address that does not answer for so long is not there."""
_FIRST_WAIT = 0.5
"""Seconds before the first attempt to reconnect; each further one waits twice as long."""
_AHEAD = 10.0
"""A live source's clock may run ahead of ours by so many seconds at once (buffered pictures); more is a jump, which is
not waited for where a file is played at its own speed either. Behind ours by more, for as long, it is too slow."""
_STEP = 0.04
"""Seconds that a picture lasts where nothing tells."""
_NO_TIMESTAMPS = 0x80
"""FFmpeg's flag of formats that hold no times, such as JPEGs one after the other: it makes up 25 pictures a second."""
_DAMAGED_IN_A_ROW = 100
"""A file that gives so many errors and no packet in between is not read further."""

Kind = Literal["opened", "corrupt", "resolution", "clock", "quiet", "stall", "lost", "retry", "reconnected"]


@dataclass(frozen=True)
class Notice:
    """Something that happened to a source and that it recovered from, or is about to."""

    kind: Kind
    """``opened``, ``reconnected``: there are pictures (again). ``stall``, ``lost``: the connection gave nothing within
    the time-out, or broke; it is being made anew. ``retry``: that failed once more. ``corrupt``: damaged packets.
    ``resolution``: pictures of another size follow. ``clock``: the source's times jumped, or fell behind. ``quiet``:
    nothing has come for a while from a source that cannot be reconnected."""
    seconds: float
    """Where in the source: the time of the last picture before it."""
    message: str

    @property
    def broken(self) -> bool:
        """Whether pictures before and after it do not belong together."""
        return self.kind in ("stall", "lost")


class Picture:
    """One picture of a source; it is converted to RGB only if somebody wants to see it."""

    def __init__(self, frame: Any, seconds: float, captured: float, converter: Any = None) -> None:
        self.seconds = seconds
        """Since the source's first picture, never less than of the picture before."""
        self.captured = captured
        """When its packet arrived, on the clock of ``time.monotonic()``."""
        self._frame = frame
        self._converter = converter

    def rgb(self) -> NDArray[np.uint8]:
        """(H, W, 3) uint8, upright (the source's rotation applied)."""
        if isinstance(self._frame, np.ndarray):
            return self._frame
        return np.ascontiguousarray(upright(self._frame, self._converter))


@dataclass(frozen=True)
class Captured:
    """Something read and not decoded: a packet, or what happened instead of one."""

    payload: Any
    when: float
    """On the clock of ``time.monotonic()``."""
    alone: bool = True
    """Whether it can be decoded without those before it."""
    droppable: bool = True
    """Whether it may be left out where there is no time for it."""


class Source(Protocol):
    """What every source offers. One thread calls :meth:`packets`, one (perhaps another) :meth:`decode`."""

    name: str
    """For messages; without a password that stands in an address."""
    live: bool
    reconnects: int
    corrupt: int
    """Packets that were damaged."""
    quiet_after: float | None
    """After so many seconds without data that is worth saying; None where the source says so itself."""
    duration: float | None
    """Seconds, as a file says of its pictures, which may be wrong; None where nothing does."""
    rate: Fraction | None
    """Pictures a second, as the source says, which may be wrong; None where it does not."""
    step: float
    """Seconds that a picture lasts, by that rate."""
    begins: float
    """Seconds from the beginning of a file, from which players and their subtitles count, to its first picture; known
    with that, as is the next."""
    pixel_aspect: Fraction
    """A pixel's width, of an upright picture, to its height."""

    def packets(self) -> Iterator[Captured]:
        """Read until the source ends or is stopped.

        Raises:
            DecodeError: where it cannot be read further.
        """
        ...

    def decode(self, captured: Captured) -> Iterator[Picture | Notice]:
        """The pictures that a packet brings, none from a damaged one; call it with all of them, in order."""
        ...

    def stop(self) -> None:
        """Let :meth:`packets` end soon; any thread may call this."""
        ...


def open_source(
    source: str,
    *,
    size: tuple[int, int] | None = None,
    fps: float | None = None,
    realtime: bool = False,
    timeout: float = 5.0,
    reconnect: float = 30.0,
) -> Source:
    """Open a source of pictures.

    Args:
        source: a video file; an address (``rtsp://…``, ``http://…``, any protocol of FFmpeg's); a camera, by its
            number or as ``/dev/video0`` (Video4Linux); or ``-`` for raw RGB24 pictures on stdin.
        size: width and height, of raw pictures, or asked of a camera.
        fps: pictures a second, likewise.
        realtime: play a file at its own speed, as if it were live; of stdin, leave out what there is no time for.
        timeout: seconds without data after which a connection counts as lost.
        reconnect: longest wait between attempts to reconnect, in seconds; 0: do not reconnect.

    Raises:
        DecodeError: if it cannot be opened.
        ValueError: for options that do not belong to this kind of source or are missing.
    """
    if size is not None and min(size) < 1:
        raise ValueError(f"a picture's size must be at least 1x1, got {size[0]}x{size[1]}")
    if fps is not None and not 0 < fps < float("inf"):
        raise ValueError(f"pictures a second must be more than 0, got {fps}")
    if timeout <= 0:
        raise ValueError(f"the time-out must be more than 0 seconds, got {timeout}")
    if reconnect < 0:
        raise ValueError(f"the longest wait between attempts must be 0 (no reconnecting) or more, got {reconnect}")
    if source == "-":
        if size is None or fps is None:
            raise ValueError("raw pictures on stdin do not tell their size and rate; give --size WIDTHxHEIGHT --fps N")
        if sys.stdin is None or sys.stdin.isatty():
            found = "closed" if sys.stdin is None else "a terminal"
            raise ValueError(f"stdin is {found}; pipe raw RGB24 pictures into it: … | clipwise stream CHECKPOINT -")
        # Not sys.stdin.buffer: its lock, held by a thread that waits for data, would keep Python from ending.
        return _RawSource(open(0, "rb", buffering=0, closefd=False), size, fps, live=realtime, quiet_after=timeout)
    camera = re.fullmatch(r"(?:/dev/video)?(\d+)", source)
    if not camera and (size or fps):
        raise ValueError(f"{source}: tells its size and rate itself; --size and --fps are for cameras and stdin")
    if camera or re.match(r"[a-z][a-z0-9+.-]+://", source, re.IGNORECASE):
        if realtime:
            raise ValueError(f"{_public(source)}: is no file; its pictures come at their own speed without --realtime")
        return _VideoSource(source, camera and camera[1], size, fps, timeout=timeout, reconnect=reconnect)
    return _VideoSource(source, None, realtime=realtime)


class _RawSource:
    """Pictures of one size, one after the other, without anything between them."""

    name = "stdin"
    reconnects = 0
    duration: float | None = None
    begins = 0.0
    pixel_aspect = Fraction(1)

    def __init__(
        self, file: BinaryIO, size: tuple[int, int], fps: float, *, live: bool, quiet_after: float | None
    ) -> None:
        self.live = live
        self.corrupt = 0
        self.quiet_after = quiet_after
        self.rate: Fraction | None = Fraction(fps).limit_denominator(1001)
        self.step = 1 / fps
        self._file = file
        self._size = size
        self._fps = fps
        self._stopped = False

    def packets(self) -> Iterator[Captured]:
        width, height = self._size
        number = 0
        while not self._stopped:
            pixels = np.empty((height, width, 3), np.uint8)
            filled = self._fill(pixels.data.cast("B"))
            if filled < pixels.nbytes:
                yield Captured((number, filled), time.monotonic(), droppable=False)
                return
            yield Captured((number, pixels), time.monotonic())
            number += 1

    def _fill(self, room: memoryview) -> int:
        filled = 0
        while filled < len(room):
            got = self._file.readinto(room[filled:])  # type: ignore[attr-defined]
            if not got:
                break
            filled += got
        return filled

    def decode(self, captured: Captured) -> Iterator[Picture | Notice]:
        number, pixels = captured.payload
        seconds = number / self._fps
        width, height = self._size
        if isinstance(pixels, np.ndarray):
            if number == 0:
                yield Notice("opened", 0.0, f"{width}×{height} raw, {self._fps:g} pictures a second")
            yield Picture(pixels, seconds, captured.when)
        elif pixels:
            self.corrupt += 1
            yield Notice(
                "corrupt",
                seconds,
                f"ended within a picture: {pixels} of {width * height * 3} bytes; were the pictures {width}x{height}, "
                "three bytes a pixel?",
            )

    def stop(self) -> None:
        self._stopped = True


@dataclass(frozen=True)
class _Interruption:
    """A connection's end, what is to be said of it, and what of the next one."""

    connection: _Connection | None
    kind: Kind | None = None
    message: str = ""


class _Connection:
    """An opened container and the decoder of its pictures."""

    def __init__(self, container: Any, stream: Any) -> None:
        self.container = container
        self.stream = stream
        self.codec = stream.codec_context
        self.codec.thread_count = 1
        self.codec.copy_opaque = True  # a picture carries the time at which its packet came
        self.timed = not container.format.flags & _NO_TIMESTAMPS
        self.rate: Fraction | None = stream.average_rate or stream.guessed_rate or None
        self.step = float(1 / self.rate) if self.rate else _STEP
        self.time_base = stream.time_base
        self.start = None if container.start_time is None else container.start_time / 1e6
        self.duration = _duration(container, stream)

    def close(self) -> None:
        self.container.close()


def _duration(container: Any, stream: Any) -> float | None:
    """Seconds that a stream's pictures take, as the file says; None where it only says how long the longest of several
    streams is."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    # Matroska says in a tag of each stream when it ends; DURATION-eng where the writer gives tags a language.
    tag = next((text for name, text in stream.metadata.items() if name.partition("-")[0] == "DURATION"), "")
    if found := re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", tag):
        hours, minutes, seconds = map(float, found.groups())
        end = 3600 * hours + 60 * minutes + seconds
    elif container.duration and len(container.streams) == 1:
        end = container.duration / 1e6
    else:
        return None
    start = float((stream.start_time or 0) * stream.time_base)
    return end - start if end > start else None


class _NoPicture(Exception):
    """A live source goes on, with sound alone."""


class _VideoSource:
    """What FFmpeg opens: files, addresses and cameras."""

    def __init__(
        self,
        source: str,
        camera: str | None,
        size: tuple[int, int] | None = None,
        fps: float | None = None,
        *,
        realtime: bool = False,
        timeout: float | None = None,
        reconnect: float = 0.0,
    ) -> None:
        self._av = _import_av()
        self.name = _public(source) if camera is None else f"/dev/video{camera}"
        self.reconnects = 0
        self.corrupt = 0
        self._source = source
        self._camera = camera
        self._timeout = timeout  # None of files
        self._reconnect = reconnect
        self._realtime = realtime
        self._options: dict[str, str] = {}
        if camera is not None:
            self._options |= {"video_size": f"{size[0]}x{size[1]}"} if size else {}
            self._options |= {"framerate": f"{fps:g}"} if fps else {}
        elif source.lower().startswith("rtsp"):
            # Over UDP, FFmpeg's default, packets are lost wherever a network is busy.
            self._options["rtsp_flags"] = "prefer_tcp"
        self._stopped = threading.Event()
        self._connection = self._open()
        self.duration = self._connection.duration
        addressed = timeout is not None and camera is None
        # What has an end and comes over HTTP waits for its reader, as a file does.
        readable = source.lower().startswith(("http:", "https:", "file:"))
        recorded = readable and self._connection.container.duration is not None
        self.live = realtime or camera is not None or (addressed and not recorded)
        self.quiet_after = timeout if camera is not None else None
        self._arriving = self.live and not realtime  # when a picture comes says something about its time
        self._clock = _Clock(self._arriving)
        self.rate = self._connection.rate if self._tells_times(self._connection) else None
        self.step = self._connection.step if self.rate else _STEP
        self.begins = 0.0
        self.pixel_aspect = Fraction(1)
        self._last_dts: Any = None
        # Of the decoding thread.
        self._converter = self._av.video.reformatter.VideoReformatter()
        self._size: tuple[int, int] | None = None
        self._untold = 0
        self._told = -1.0

    # The capturing thread

    def packets(self) -> Iterator[Captured]:
        while True:
            connection = self._connection
            lost: _Interruption | None = None
            try:
                yield from self._read(connection)
            except self._av.error.ExitError:  # PyAV's time-out, or stop()
                lost = _Interruption(connection, "stall", f"gave nothing for {self._timeout:g} s")
            except _NoPicture:
                lost = _Interruption(connection, "stall", f"gave no picture for {self._timeout:g} s")
            except (self._av.error.FFmpegError, OSError) as error:
                lost = _Interruption(connection, "lost", f"was lost ({_reason(error)})")
            if lost is None and self._arriving:
                lost = _Interruption(connection, "lost", "ended")
            now = time.monotonic()
            if lost is None or self._stopped.is_set():
                yield Captured(_Interruption(connection), now, droppable=False)
                return
            if not self._reconnect:
                yield Captured(_Interruption(connection), now, droppable=False)
                if lost.message == "ended":
                    return
                raise DecodeError(self.name, f"{lost.message}; --reconnect SECONDS makes the connection anew")
            message = f"{lost.message}; reconnecting"
            yield Captured(_Interruption(connection, lost.kind, message), now, droppable=False)
            if not (yield from self._again()):
                return

    def _read(self, connection: _Connection) -> Iterator[Captured]:
        due = heard = time.monotonic()
        before: float | None = None
        errors = 0
        while not self._stopped.is_set():
            try:
                for packet in connection.container.demux():
                    if self._stopped.is_set():
                        return
                    if packet.stream_index != connection.stream.index:
                        # PyAV's time-out begins anew with each packet, also of sound.
                        if self._arriving and self._timeout is not None and time.monotonic() - heard > self._timeout:
                            raise _NoPicture
                        continue
                    if not packet.size:  # the end: the decoder is emptied when the connection is given up
                        continue
                    errors = 0
                    if self._realtime and packet.dts is not None:
                        seconds = float(packet.dts * packet.time_base)
                        passed = 0.0 if before is None else seconds - before
                        due, before = due + (passed if 0 <= passed <= _AHEAD else connection.step), seconds
                        if self._stopped.wait(max(0.0, due - time.monotonic())):
                            return
                    when = time.monotonic()
                    packet.opaque = when
                    self._last_dts = packet.dts if packet.dts is not None else self._last_dts
                    yield Captured((connection, packet), when, alone=packet.is_keyframe)
                    heard = time.monotonic()
                return
            except self._av.error.InvalidDataError:
                # What is damaged may end soon. Where a connection gives such, it is made anew.
                errors += 1
                if self._timeout is not None:
                    raise
                if errors == _DAMAGED_IN_A_ROW:
                    raise DecodeError(self.name, "is damaged, and nothing after that place can be read") from None
                yield Captured((connection, None), time.monotonic(), droppable=False)
            except (self._av.error.FFmpegError, OSError) as error:
                if self._timeout is None:
                    raise DecodeError(self.name, f"cannot be read further ({_reason(error)})") from error
                raise

    def _again(self) -> Generator[Captured, None, bool]:
        """Reconnect, however often it takes; False if the source was stopped before there was a connection."""
        wait = min(_FIRST_WAIT, self._reconnect)
        while not self._stopped.wait(wait):
            try:
                self._connection = self._open()
            except DecodeError as error:
                wait = min(2 * wait, self._reconnect)
                message = f"{error.reason}; the next attempt in {wait:.3g} s"
                yield Captured(_Interruption(None, "retry", message), time.monotonic(), droppable=False)
                continue
            self.reconnects += 1
            if not self.live and self._last_dts is not None:
                # As far as possible from where it broke; what comes a second time is left out by its times.
                stream = self._connection.stream
                with contextlib.suppress(self._av.error.FFmpegError):
                    self._connection.container.seek(self._last_dts, stream=stream)
            yield Captured(_Interruption(None, "reconnected", "is there again"), time.monotonic(), droppable=False)
            return True
        return False

    def _open(self) -> _Connection:
        av = self._av
        if self._timeout is None:
            opened, options = f"file:{self._source}", {}  # the prefix keeps a colon from being taken for a protocol's
        elif self._camera is not None:
            opened, options = f"/dev/video{self._camera}", {"format": "v4l2"}
        else:
            opened, options = self._source, {}
        try:
            container = av.open(
                opened,
                metadata_errors="ignore",
                options=self._options,
                timeout=None if self._timeout is None else (max(_OPEN_SECONDS, self._timeout), self._timeout),
                **options,
            )
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise DecodeError(self.name, self._why_closed(error)) from error
        cover = av.stream.Disposition.attached_pic
        streams = [stream for stream in container.streams.video if not stream.disposition & cover]
        if not streams or streams[0].codec_context is None:
            container.close()
            what = "PyAV has no decoder for its codec" if streams else "no video stream in it"
            raise DecodeError(self.name, f"{what}; give another source")
        return _Connection(container, streams[0])

    def _why_closed(self, error: Exception) -> str:
        if self._timeout is None:
            if Path(self._source).is_dir():
                return "is a folder; give a video file, an address, a camera's number, or - for stdin"
            return _why_unreadable(self._source, error)
        if isinstance(error, self._av.error.ExitError):
            return f"did not answer within {max(_OPEN_SECONDS, self._timeout):g} s"
        if self._camera is not None:
            found = ", ".join(sorted(path.name.removeprefix("video") for path in Path("/dev").glob("video*")))
            return f"cannot be opened as a camera ({_reason(error)}); those here: {found or 'none'}"
        return f"cannot be opened ({_reason(error)})"

    def stop(self) -> None:
        self._stopped.set()  # who waits for a connection that gives nothing waits until its time-out

    # The decoding thread

    def decode(self, captured: Captured) -> Iterator[Picture | Notice]:
        if isinstance(captured.payload, _Interruption):
            yield from self._interrupted(captured.payload, captured.when)
            return
        connection, packet = captured.payload
        frames: list[Any] = []
        damaged = packet is None or packet.is_corrupt
        if packet is not None:
            try:
                frames = connection.codec.decode(packet)
            except self._av.error.FFmpegError:
                damaged = True
        damaged = damaged or any(frame.is_corrupt for frame in frames)
        if damaged:
            self.corrupt += 1
            self._untold += 1
        yield from self._shown(frames, connection, captured.when)
        if damaged and captured.when - self._told >= 1:  # not a line for each where most are damaged
            self._told = captured.when
            yield from self._tell_damage()

    def _interrupted(self, interruption: _Interruption, when: float) -> Iterator[Picture | Notice]:
        connection = interruption.connection
        if connection is not None:
            try:
                frames = connection.codec.decode(None)
            except self._av.error.FFmpegError:
                frames = []
            yield from self._shown(frames, connection, when)
            yield from self._tell_damage()
            connection.close()
            self._clock.interrupted()
        if interruption.kind is not None:
            yield Notice(interruption.kind, self._clock.seconds, interruption.message)

    def _tell_damage(self) -> Iterator[Notice]:
        if self._untold:
            packets = "1 packet is" if self._untold == 1 else f"{self._untold} packets are"
            yield Notice("corrupt", self._clock.seconds, f"{packets} damaged or not whole")
            self._untold = 0

    def _shown(self, frames: list[Any], connection: _Connection, when: float) -> Iterator[Picture | Notice]:
        for frame in frames:
            size = frame.width, frame.height
            timed = frame.pts is not None and self._tells_times(connection)
            pts = float(frame.pts * connection.time_base) if timed else None
            if self._size is None:
                if pts is not None and connection.start is not None:
                    self.begins = max(0.0, pts - connection.start)
                aspect = connection.stream.sample_aspect_ratio or Fraction(1)
                self.pixel_aspect = 1 / aspect if frame.rotation % 180 == 90 else aspect
                rate = f", {float(self.rate):.4g} pictures a second" if self.rate else ""
                yield Notice("opened", 0.0, f"{size[0]}×{size[1]} {connection.codec.name}{rate}")
            elif size != self._size:
                message = f"pictures are {size[0]}×{size[1]} from here on, {self._size[0]}×{self._size[1]} before"
                yield Notice("resolution", self._clock.seconds, message)
            self._size = size
            captured = when if frame.opaque is None else frame.opaque
            before = self._clock.seconds
            told = self._clock.advance(pts, captured, connection.step)
            if told is None:  # seen before the connection broke
                continue
            if told:
                yield Notice("clock", before, told)
            yield Picture(frame, self._clock.seconds, captured, self._converter)

    def _tells_times(self, connection: _Connection) -> bool:
        """Whether its times and its rate are to be believed; of a file there is nothing better."""
        return connection.timed or not self._arriving


class _Clock:
    """Times of pictures: seconds since the first, never less than before.

    Within a connection the source's own times count, as long as they go on and keep up with ours. Between two
    connections of a live source, and where it tells no times, our clock counts; of a recording that is read on, its
    times.
    """

    def __init__(self, live: bool) -> None:
        self.seconds = 0.0
        self._live = live
        self._began = False
        self._offset: float | None = None
        self._captured = 0.0
        self._fresh = False  # a recording's connection, whose first pictures were perhaps seen already
        self._start = 0.0  # when time 0 was, by our clock, had the source's always kept up with it
        self._slow_since: float | None = None

    def interrupted(self) -> None:
        """Another connection follows."""
        if self._live:
            self._offset = None
        self._fresh = True

    def advance(self, pts: float | None, captured: float, step: float) -> str | None:
        """Set the clock to a picture.

        Args:
            pts: its time by the source, None where that does not tell.
            captured: when it came, by our clock.
            step: seconds between two pictures, as far as known.

        Returns:
            What there is to say of the source's times, as a rule nothing: ``""``. None for a picture that was there
            before.
        """
        waited = max(0.0, captured - self._captured) if self._began else 0.0
        told = ""
        if pts is None or self._offset is None:
            if self._began:
                untimed = self._live and self._offset is None
                self.seconds += max(step, waited) if self._fresh else waited if untimed else step
            if pts is not None:
                self._count_from(pts, captured)
        else:
            passed = pts - self._offset - self.seconds
            if passed <= 0 and self._fresh and not self._live:
                return None
            if passed < 0 or (self._live and passed > waited + _AHEAD):
                told = f"the source's times jumped by {passed:+.3g} s; counting on without"
                self.seconds += max(step, waited) if self._live else step
                self._count_from(pts, captured)
            else:
                self.seconds += passed
                if self._live and (behind := self._behind(captured)):
                    told = f"the source's times fell {behind:.3g} s behind; counting on from ours"
                    self.seconds += behind
                    self._count_from(pts, captured)
        self._began, self._fresh = True, False
        self._captured = max(self._captured, captured)  # a decoder puts pictures in order
        return told

    def _count_from(self, pts: float, captured: float) -> None:
        """Take the source's and our clock to show the same now."""
        self._offset = pts - self.seconds
        self._start = captured - self.seconds
        self._slow_since = None

    def _behind(self, captured: float) -> float:
        """By how many seconds the source's clock is too slow; 0 where it is not, or may still make up for a pause."""
        behind = captured - self._start - self.seconds
        if behind <= _AHEAD:
            self._slow_since = None
        elif self._slow_since is None:
            self._slow_since = captured
        elif captured - self._slow_since > _AHEAD:
            return behind
        return 0.0


def _public(source: str) -> str:
    """The source's name as it may stand in a log: without user and password."""
    if "@" not in source or "://" not in source:
        return source
    parts = urllib.parse.urlsplit(source)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _reason(error: Exception) -> str:
    """What FFmpeg says, without the address that it puts behind it."""
    code = getattr(error, "errno", None)
    text = getattr(error, "strerror", None) or str(error)
    return os.strerror(code) if isinstance(error, OSError) and isinstance(code, int) and 0 < code < 256 else text
