"""Frames by number, from video files, bytes, folders of JPEG frames and arrays.

A video is read in two steps. First its packets are read without decoding, or the list of them that an AVI
holds (the *index*: when each frame is shown, and which packets are keyframes). Then only what the wanted
frames need is decoded::

    shown in order  0  1  2  3  4  5  6  7  8  9 10 11 12 13      wanted: 2 and 12
    keyframes       K                          K                  9 is the keyframe before 12
    what is done    d  s  W  -  -  -  -  -  -  d  s  d  W  -      decoded, skipped (s), decoded and converted (W)

* start at the last keyframe at or before a wanted frame, and start anew where the way to the next wanted
  frame passes a keyframe;
* tell the decoder to skip frames that no other refers to (``skip_frame = "NONREF"``), unless they are wanted;
* stop at the last wanted frame, and convert to RGB only what is wanted.

The result equals, bit for bit, that of decoding the whole file in order. Where a file does not allow a
short cut (no reliable times, no real keyframes, a stream without an index) it is decoded in order, and
never silently wrong:

* AV1 skips nothing: its frames come out wrong otherwise;
* MPEG-TS and MPEG-PS are never entered in the middle;
* intra-refresh H.264 marks keyframes that are none: what comes first after a jump must be an intra frame (in
  Cinepak, one that also brings its codebooks whole), or the file is decoded in order;
* AVI stores no display times, ASF those of decoding: with B-frames these are worked out where pictures tell their
  type (MPEG-4), else the frames are counted as the decoder gives them; so they are in containers not known here;
* edit lists hide frames that must be decoded but do not count; the frame count in a header is never believed
  unless an AVI's list of packets agrees with it and lies within the file.

PyAV is imported on first use, Pillow when a frame folder is read.
"""

from __future__ import annotations

import io
import itertools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from time import time_ns
from types import TracebackType
from typing import Any, BinaryIO, Protocol, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from clipwise.data.bitstream import VopReader, strips, vol_header, whole_strips
from clipwise.data.direct_rgb import SLACK, DirectRgb, upright
from clipwise.data.video_names import frame_number

Source: TypeAlias = "str | os.PathLike[str] | bytes | BinaryIO | np.ndarray[Any, Any]"
"""What can be read: a path (video file or folder of frames), a video's bytes, a binary file, or frames."""

Frame_THWC: TypeAlias = NDArray[np.uint8]
Int64: TypeAlias = NDArray[np.int64]
_Packets: TypeAlias = tuple[list[int | None], list[int], list[int], list[int]]

# Codecs whose decoder can skip the frames nothing refers to and leave the others as they are (AV1's cannot).
_SKIPPABLE = frozenset({"h264", "hevc", "mpeg4", "vp8", "vp9"})
# Codecs whose packets in an AVI FFmpeg gives no display times.
_TIMELESS = frozenset({"h264", "hevc", "vvc"})
# Codecs whose decoder (or else packets) tells if a frame is a keyframe, so that entering at one can be verified.
_VERIFIABLE = _SKIPPABLE | {"av1", "mjpeg", "cinepak"}
_NEVER_REORDERED = frozenset({"cinepak", "mjpeg"})
# Containers that can be entered at a keyframe (FFmpeg's names; a demuxer may carry several, joined by
# commas).
_SEEKABLE = frozenset({"mov", "mp4", "matroska", "webm", "avi", "flv", "asf"})
# Containers that store each packet's display time, so that it is right where frames are reordered.
_TIMED = _SEEKABLE - {"avi", "asf"} | {"mpegts", "mpeg", "nut", "ogg"}
# Opening a file, FFmpeg decodes some of its frames, to learn how far they are reordered and the like; that can cost as
# much as all that is wanted. In WebM nothing is (VP8, VP9, AV1), and mp4 tells by its header; in an AVI MPEG-4's own
# does, and some codecs never reorder: let it read only that.
UNPROBED = {"codec_whitelist": "none", "probesize": "32"}
# Packets of files up to this size are kept after the index is built, so that the file is read only once.
_KEEP_BYTES = 32 * 2**20


class DecodeError(ValueError):
    """A source of frames that cannot be read: ``path`` names it, ``reason`` says why and what to do."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class Frames(Protocol):
    """What every source of frames offers; use it as a context manager, or call :meth:`close`.

    ``path`` is a name for messages, ``num_frames`` the number of frames (of the segment, where one was
    asked for) and ``fps`` frames per second, None where nobody knows.
    """

    path: str
    num_frames: int
    fps: float | None

    def read(self, indices: Sequence[int] | NDArray[np.integer[Any]]) -> Frame_THWC:
        """Frames ``indices`` (0-based, any order, repeats allowed) as uint8 RGB of shape (len(indices), H,
        W, 3).

        Raises IndexError for an index outside ``[0, num_frames)``, DecodeError for a frame that is not to be had.
        """
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Indices(Protocol):
    """Packet indices made earlier, by the path of the video; see ``clipwise.data.index_cache``."""

    def get(self, path: str) -> PacketIndex | None: ...

    def put(self, path: str, index: PacketIndex) -> None: ...


def open_frames(
    source: Source,
    *,
    start: float | None = None,
    end: float | None = None,
    fps: float | None = None,
    indices: Indices | None = None,
) -> Frames:
    """Open a video file, a video's bytes, a file object, a folder of JPEG frames, or an array (T, H, W, 3)
    uint8.

    ``start`` and ``end`` (seconds from the first frame; ``end`` exclusive, and allowed to lie past the last
    frame) choose a segment: ``num_frames`` and the indices given to ``read`` then count from its first
    frame. ``fps`` states the frame rate of a folder or an array, and is needed there when ``start`` or
    ``end`` is given; a video carries its own times and does not use it. ``indices`` spares the pass over the packets
    of a video file that it knows.

    Raises DecodeError if the source cannot be read or the segment is empty, TypeError for any other kind of
    source.
    """
    if isinstance(source, np.ndarray):
        return ArrayFrames(source, start=start, end=end, fps=fps)
    if isinstance(source, str | os.PathLike) and os.path.isdir(source):
        return FrameFolder(source, start=start, end=end, fps=fps)
    if indices is None or not isinstance(source, str | os.PathLike):
        return VideoFile(source, start=start, end=end)
    path = os.fsdecode(source)
    known = indices.get(path)
    video = VideoFile(path, start=start, end=end, index=known)
    if known is None:
        indices.put(path, video.index)
    return video


class _Closing:
    """The context-manager half of :class:`Frames`."""

    def close(self) -> None:
        """Give back what is held open; reading afterwards is an error."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class ArrayFrames(_Closing):
    """Frames that are already decoded: a uint8 array of shape (T, H, W, 3), not copied."""

    def __init__(
        self,
        array: NDArray[np.uint8],
        *,
        start: float | None = None,
        end: float | None = None,
        fps: float | None = None,
    ) -> None:
        self.path = "<array>"
        if array.ndim != 4 or array.shape[3] != 3:
            raise ValueError(f"an array of frames has shape (T, H, W, 3), got {array.shape = }")
        if array.dtype != np.uint8:
            raise TypeError(f"an array of frames is uint8 RGB, got {array.dtype = }; scale to 0–255 and convert")
        if 0 in array.shape:
            raise DecodeError(self.path, f"no frames in it, got {array.shape = }")
        self.fps = _checked_fps(self.path, fps)
        first, last = _even_segment(self.path, array.shape[0], self.fps, start, end)
        self._array = array[first:last]
        self.num_frames = last - first

    def read(self, indices: Sequence[int] | NDArray[np.integer[Any]]) -> Frame_THWC:
        """(len(indices), H, W, 3) uint8, a copy. IndexError for an index outside ``[0, num_frames)``."""
        frames: Frame_THWC = self._array[_checked_indices(self.path, indices, self.num_frames)]
        return frames


class FrameFolder(_Closing):
    """A folder of numbered JPEG frames: ``img_00001.jpg``, ``000001.jpg``, ``frame7.jpeg`` …, in the order
    of the numbers.

    The first number may be any; a gap after it is an error, for a missing frame shifts every later one.
    Optical-flow images beside the frames (``flow_x_00001.jpg``) are left out.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        start: float | None = None,
        end: float | None = None,
        fps: float | None = None,
    ) -> None:
        self.path = os.fspath(folder)
        self.fps = _checked_fps(self.path, fps)
        self._names = _frame_names(self.path)
        self._first, last = _even_segment(self.path, len(self._names), self.fps, start, end)
        self.num_frames = last - self._first

    def read(self, indices: Sequence[int] | NDArray[np.integer[Any]]) -> Frame_THWC:
        """(len(indices), H, W, 3) uint8. Raises DecodeError for an unreadable image or one of another size."""
        wanted = _checked_indices(self.path, indices, self.num_frames)
        pictures = _Pictures(self.path, wanted)
        for number in pictures.numbers:
            pictures.put(number, _read_jpeg(os.path.join(self.path, self._names[self._first + number])))
        return pictures.arranged()


class ReversedFrames(_Closing):
    """Frames played backwards: frame i of n is frame n − 1 − i of those it is made from, which it closes."""

    def __init__(self, frames: Frames) -> None:
        self.path = frames.path
        self.num_frames = frames.num_frames
        self.fps = frames.fps
        self._frames = frames

    def read(self, indices: Sequence[int] | NDArray[np.integer[Any]]) -> Frame_THWC:
        """(len(indices), H, W, 3) uint8. Raises IndexError and DecodeError, which names the frame as it is stored."""
        return self._frames.read(self.num_frames - 1 - _checked_indices(self.path, indices, self.num_frames))

    def close(self) -> None:
        self._frames.close()


@dataclass(frozen=True, slots=True)
class PacketIndex:
    """What a file's packets tell without being decoded: enough to read any frame later without that pass. Picklable.

    ``pts`` holds the display time of every packet in file order (``time_base`` seconds each), ``keys`` the
    numbers of the packets that are keyframes, ``frames`` the packet number of every shown frame in display
    order. Where packets do not carry the right times (AVI), ``places`` holds where in the file each lies, to
    give it its own; else it is empty. Where nothing tells times or order (``counted``), ``frames`` is empty,
    and the n-th frame is the n-th the decoder gives.
    """

    codec: str
    container: str
    time_base: Fraction
    rate: float | None
    pts: Int64
    places: Int64
    keys: Int64
    frames: Int64
    num_frames: int
    counted: bool

    @property
    def can_skip(self) -> bool:
        return self.codec in _SKIPPABLE

    @property
    def can_seek(self) -> bool:
        container = not _SEEKABLE.isdisjoint(self.container.split(","))
        return container and self.codec in _VERIFIABLE and not self.counted

    def seconds(self) -> NDArray[np.float64]:
        """Time of each frame in seconds from the first, shape (num_frames,); NaN where the file does not say."""
        if self.counted:
            return np.arange(self.num_frames) / (self.rate or math.nan)
        shown = self.pts[self.frames]
        seconds: NDArray[np.float64] = (shown - shown[0]) * float(self.time_base)
        return seconds

    def entry_points(self, frames: Int64) -> Int64:
        """Packet numbers at which decoding must start to get ``frames``; same shape.

        A keyframe serves the frames that follow it in the file *and* are shown after it: B-frames stored
        after a keyframe but shown before it need the keyframe before.
        """
        packets = self.frames[frames]
        key_pts = self.pts[self.keys]
        which = np.searchsorted(self.keys, packets, side="right") - 1
        late = (which >= 0) & (key_pts[which] > self.pts[packets])
        while late.any():
            which = which - late
            late = (which >= 0) & (key_pts[which] > self.pts[packets])
        return np.where(which >= 0, self.keys[which], 0)


class VideoFile(_Closing):
    """A video read by frame number, decoding no more than the wanted frames need (see the module's text).

    ``source`` is a path, a video's bytes, or a binary file object (which stays open when this is closed).
    ``index`` may be one made earlier from the same file (``VideoFile(...).index``), which spares the pass
    over its packets. ``threads`` is the decoder's: one suits loader workers, of which there is one per
    core, and two were measured to be no faster and to cost up to 17 % more CPU time.

    Raises DecodeError, with the reason, for a file that is missing, empty, no video, cut off before its
    index, or without a video stream; and for a segment that is empty.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | bytes | BinaryIO,
        *,
        start: float | None = None,
        end: float | None = None,
        index: PacketIndex | None = None,
        threads: int = 1,
    ) -> None:
        self.path, self._source = _named_source(source)
        self._threads = threads
        self._container: Any = None
        self._stream: Any = None
        self._codec: Any = None
        self._error: Any = None  # PyAV's base exception
        self._reformatter: Any = None
        self._direct: Any = None
        self._probed = False  # FFmpeg decoded some frames on opening, by itself
        self._fresh = True  # nothing demuxed from this container yet
        self._used = False  # nothing decoded with this decoder yet
        self._kept: list[Any] | None = None  # all packets, in file order, where they were few enough to keep
        self._times: dict[int, int] = {}  # of packets, by place in the file, where they do not carry the right ones
        self._trust_keys = True
        try:
            self._open(probe=False)
            self.index = self._make_index() if index is None else index
            kept: list[Any] = self._kept or []
            self._times = dict(zip(self.index.places.tolist(), self.index.pts.tolist(), strict=False))
            for packet in kept:
                packet.pts = self._times.get(packet.pos, packet.pts)
            self.fps = _frame_rate(self.index)
            seconds, tick = self.index.seconds, float(self.index.time_base)
            self._first, last = _segment(self.path, self.index.num_frames, seconds, tick, start, end)
            self.num_frames = last - self._first
        except BaseException:
            self.close()
            raise

    def read(self, indices: Sequence[int] | NDArray[np.integer[Any]]) -> Frame_THWC:
        """(len(indices), H, W, 3) uint8 RGB, upright (the file's rotation applied).

        Raises IndexError for an index outside ``[0, num_frames)``; DecodeError if a wanted frame cannot be
        decoded.
        """
        wanted = _checked_indices(self.path, indices, self.num_frames)
        if self._container is None:
            raise ValueError(f"{self.path}: read after close; open it again")
        pictures = _Pictures(self.path, wanted + self._first)
        index, numbers = self.index, np.array(pictures.numbers)
        # What the decoder's frames are known by, their places or their times, to be ticked off.
        keys = numbers if index.counted else index.pts[index.frames[numbers]]
        missing = dict(zip(keys.tolist(), pictures.numbers, strict=True))
        if not index.counted:
            self._decode_wanted(numbers, missing, pictures)
        if missing:  # no short cut leads there
            self._decode_in_order(missing, pictures)
        if missing:
            raise DecodeError(
                self.path,
                f"frame {min(missing.values()) - self._first} of {self.num_frames} cannot be decoded: the file is "
                "damaged or cut short there; fetch or encode it again, or take it out of the manifest",
            )
        return pictures.arranged()

    def close(self) -> None:
        """Close the file; a file object that was handed in stays open."""
        container, self._container, self._kept = getattr(self, "_container", None), None, None
        self._stream = self._codec = None
        if container is not None:
            container.close()

    def __del__(self) -> None:
        # PyAV's containers are reference cycles: a forgotten one would hold its file until the next
        # collection.
        self.close()

    # Opening

    def _open(self, *, probe: bool) -> None:
        """Open the file; with ``probe`` as FFmpeg does by itself, else only as far as it needs to be."""
        av = _import_av()
        if self._container is not None:
            self._container.close()
            self._container = None
        if isinstance(self._source, str):
            # The prefix keeps a colon in a file's name from being taken for a protocol's.
            opened: Any = f"file:{self._source}"
        else:
            self._source.seek(0)
            opened = self._source
        try:
            kind = _common_format(self._source)
            self._probed = probe or kind is None
            options = None if self._probed else UNPROBED
            container = av.open(opened, mode="r", format=kind, metadata_errors="ignore", options=options)
        except (av.error.FFmpegError, OSError) as error:
            raise DecodeError(self.path, _why_unreadable(self._source, error)) from error
        self._container = container
        # A cover picture in a sound file is a video stream to FFmpeg, not to us.
        cover = av.stream.Disposition.attached_pic
        streams = [stream for stream in container.streams.video if not stream.disposition & cover]
        if not streams:
            kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
            raise DecodeError(
                self.path,
                f"no video stream in it (it holds: {kinds}); give a file with pictures, or leave it out",
            )
        self._stream = streams[0]
        self._codec = self._stream.codec_context
        if self._codec is None:
            raise DecodeError(self.path, "PyAV has no decoder for its codec; re-encode it, for example to H.264")
        if kind == "avi" and not self._probed and not self._order_told():
            self._open(probe=True)
            return
        self._codec.thread_count = self._threads
        self._reformatter = av.video.reformatter.VideoReformatter()
        self._direct = DirectRgb()
        self._error = av.error.FFmpegError
        self._fresh, self._used = True, False

    def _order_told(self) -> bool:
        """Whether an AVI's header alone tells if frames are reordered."""
        if self._codec.name == "mpeg4":
            header = vol_header(self._codec.extradata or b"")
            return header is not None and header[1] is not None
        return self._codec.name in _NEVER_REORDERED

    def _make_index(self) -> PacketIndex:
        """Tell from the packets, not decoding any (but for files whose frames can only be counted by decoding)."""
        codec, container, stream = self._codec.name, self._container.format.name, self._stream
        rate, time_base = stream.average_rate or stream.guessed_rate, stream.time_base or 1
        names = set(container.split(","))
        # An AVI holds no display times, ASF and MXF those of decoding: wrong where frames are reordered.
        orderless = names.isdisjoint(_TIMED) and self._codec.has_b_frames
        if container == "avi" and not orderless and (listed := self._listed_index(rate, time_base)):
            return listed
        vops = VopReader(self._codec.extradata) if codec == "mpeg4" else None
        times, keys, shown, places = self._read_packets(vops)
        if vops is not None and vops.after_empty and not orderless:
            shown.append(len(times) - 1)  # only at the very end does FFmpeg show the last picture again
        if not shown:
            raise DecodeError(self.path, "no frames in it; it is damaged or was cut short: fetch it again")
        num_frames = len(shown)
        ordered: list[int] = []
        if orderless and vops is not None and vops.order_known and rate and len(set(places)) == len(places):
            ordered = vops.order
        if ordered:
            time_base = 1 / rate
            times = [num_frames] * len(times)  # of packets that give no frame: past the last
            for time, number in enumerate(ordered):
                times[number] = time
        pts = [0 if time is None else time for time in times]
        shown.sort(key=pts.__getitem__)
        # Does the file begin with a keyframe, shown first? Else the decoder drops what follows, nobody else
        # knows how much.
        whole = keys[:1] == [0] and pts[shown[0]] >= pts[0]
        known = not names.isdisjoint(_TIMED | _SEEKABLE)
        timed = ordered or (known and not orderless and None not in times and len(set(pts)) == len(pts))
        reliable = bool(whole and timed)
        if not reliable:
            shown = []
            if not (known and orderless and whole and vops is None):
                num_frames = self._count_by_decoding()
        return PacketIndex(
            codec=codec,
            container=container,
            time_base=Fraction(time_base),
            rate=float(rate) if rate else None,
            pts=np.array(pts, dtype=np.int64),
            places=np.array(places if reliable and ordered else [], dtype=np.int64),
            keys=np.array(keys, dtype=np.int64),
            frames=np.array(shown, dtype=np.int64),
            num_frames=num_frames,
            counted=not reliable,
        )

    def _listed_index(self, rate: Fraction | None, time_base: Fraction | int) -> PacketIndex | None:
        """As :meth:`_make_index`, but from the list in an AVI; None unless that is complete and tells all."""
        codec, entries = self._codec.name, list(self._stream.index_entries)
        if codec in _TIMELESS or not entries:
            return None
        last, count = entries[-1], len(entries)
        complete = last.timestamp + 1 == self._stream.frames and last.pos + 8 + last.size <= self._container.size
        if not complete or (codec == "mpeg4" and min([entry.size for entry in entries]) <= VopReader.LONGEST_EMPTY):
            return None
        places = [entry.pos + 8 for entry in entries]  # past the name and size of the piece of file that holds it
        pts = np.array([entry.timestamp for entry in entries], dtype=np.int64)
        keys = [number for number, entry in enumerate(entries) if entry.is_keyframe]
        # It begins with a keyframe, is in order, and shows no piece twice; else let the packets tell.
        if keys[:1] != [0] or not (pts[1:] > pts[:-1]).all() or len(set(places)) < count:
            return None
        return PacketIndex(
            codec=codec,
            container="avi",
            time_base=Fraction(time_base),
            rate=float(rate) if rate else None,
            pts=pts,
            places=np.array(places, dtype=np.int64),
            keys=np.array(keys, dtype=np.int64),
            frames=np.arange(count),
            num_frames=count,
            counted=False,
        )

    def _read_packets(self, vops: VopReader | None) -> _Packets:
        """Of all packets: display times, which are keyframes, which give a frame, places in the file."""
        times: list[int | None] = []
        keys: list[int] = []
        shown: list[int] = []
        places: list[int] = []
        kept: list[Any] = []
        keep = 0 <= self._container.size <= _KEEP_BYTES
        vp8 = self._codec.name == "vp8"
        for number, packet in enumerate(self._demux()):
            times.append(packet.pts)
            if packet.is_keyframe:
                keys.append(number)
            if vops is not None:
                hidden = not vops.gives_frame(packet)
                places.append(packet.pos)
            else:  # VP8 keeps pictures that are only referred to in packets of their own; a bit tells
                hidden = vp8 and not memoryview(packet)[0] & 0x10
            if not (hidden or packet.is_discard):
                shown.append(number)
            if keep:
                kept.append(packet)
        self._kept = kept if keep else None
        return times, keys, shown, places

    def _count_by_decoding(self) -> int:
        """Number of frames, from decoding them all: only for streams whose packets do not tell."""
        count = sum(1 for _ in self._decode_all())
        if not count:
            raise DecodeError(self.path, "not one frame of it can be decoded; fetch or encode it again")
        return count

    # Packets

    def _demux(self) -> Iterator[Any]:
        """Packets from where the container stands."""
        self._fresh = False
        return self._timed(self._container.demux(self._stream))

    def _timed(self, packets: Iterator[Any]) -> Iterator[Any]:
        """Packets with the right times, without the empty one at PyAV's end; a damaged end is an end."""
        times = self._times
        try:
            for packet in packets:
                if packet.size:
                    if times:
                        packet.pts = times.get(packet.pos)
                    yield packet
        except (self._error, OSError):
            return

    def _packets_from(self, first: int) -> Iterator[Any]:
        """Packets from number ``first`` on, the decoder cleared, as they come: see :meth:`_timed`.

        There are none if the container cannot get there.
        """
        if self._kept is not None:
            if self._used:
                self._codec.flush_buffers()
            return iter(self._kept[first:])
        try:
            if first:
                self._container.seek(int(self.index.pts[first]), stream=self._stream)  # clears the decoder, too
            elif not self._fresh:
                self._open(probe=self._probed)
            self._fresh = False
            packets = self._container.demux(self._stream)
            return self._advanced(packets, int(self.index.pts[first])) if first else packets
        except (self._error, OSError):
            return iter(())

    def _advanced(self, packets: Iterator[Any], pts: int) -> Iterator[Any]:
        """Those from the packet of this time on; none if it does not come."""
        for packet in packets:
            time = self._times.get(packet.pos) if self._times else packet.pts
            if time == pts:
                return itertools.chain((packet,), packets)
            if time is None or time > pts:  # landed behind it
                break
        return iter(())

    # Decoding

    def _decode_wanted(self, numbers: Int64, missing: dict[int, int], pictures: _Pictures) -> None:
        """Decode frames ``numbers``; what is found leaves ``missing`` (display time → number)."""
        for entry, group in self._runs(numbers, missing):
            if not self._decode_run(entry, group, missing, pictures):
                self._trust_keys = False
                return

    def _runs(self, numbers: Int64, missing: Iterable[int]) -> list[tuple[int, set[int]]]:
        """The packets at which decoding begins, each with the display times of the frames that are reached from it.

        ``numbers`` ascend, and ``missing`` has their display times.
        """
        index = self.index
        if not (index.can_seek and self._trust_keys):
            return [(0, set(missing))]
        runs: list[tuple[int, set[int]]] = []
        begin = end = 0  # of the last run: its first packet, and one past the last that it needs
        for time, packet, entry in zip(
            missing, index.frames[numbers].tolist(), index.entry_points(numbers).tolist(), strict=True
        ):
            # A keyframe right behind the last wanted frame is reached by going on as well as by beginning anew; with
            # one frame between, too, unless it is that keyframe which is wanted: then all may be keyframes.
            if not runs or not begin <= entry <= end + (packet > entry):
                begin, end = entry, packet
                runs.append((entry, set()))
            runs[-1][1].add(time)
            end = max(end, packet + 1)
        return runs

    def _decode_run(self, entry: int, group: set[int], missing: dict[int, int], pictures: _Pictures) -> bool:
        """Decode from packet ``entry`` to the last of ``group``. False if ``entry`` is no real keyframe."""
        packets, codec, times = self._packets_from(entry), self._codec, self._times
        # Without reordering, which in an AVI opening tells, MPEG-4 has no frame that nothing refers to.
        none_to_skip = self.index.codec == "mpeg4" and not codec.has_b_frames and self.index.container == "avi"
        can_skip = self.index.can_skip and not none_to_skip
        entered = entry == 0  # whatever the file begins with is decoded the same in order
        most_strips = 0  # Cinepak: of later pictures, if the first is not the file's
        entry_pts = int(self.index.pts[entry])
        codec.skip_frame = "DEFAULT"
        skipping = False
        to_come = to_find = len(group)  # packets of wanted frames, and these frames themselves
        while to_find:
            # With the last one in, what the decoder holds is drained rather than pushed out by more packets.
            try:
                packet = next(packets, None) if to_come else None
            except (self._error, OSError):  # a damaged end is an end
                packet = None
            if packet is not None:
                if times:
                    packet.pts = times.get(packet.pos)
                if most_strips and strips(memoryview(packet)) > most_strips:
                    return False
                if packet.pts in group:
                    to_come -= 1
                    if skipping:
                        skipping, codec.skip_frame = False, "DEFAULT"
                elif can_skip and not skipping:
                    skipping, codec.skip_frame = True, "NONREF"
            frames = self._decode(packet)
            for frame in frames:
                time = frame.pts
                if not entered:
                    if time is None or time < entry_pts:
                        continue  # stored after the keyframe, shown before it: refers to what was not decoded
                    if time != entry_pts:
                        return False
                    if self.index.codec == "cinepak":
                        most_strips = _strips_of_its_own(frame, packet)
                        if not most_strips:
                            return False
                    elif not (frame.key_frame and frame.pict_type == 1):
                        return False
                    entered = True
                if time in group and time in missing:
                    self._convert(frame, missing.pop(time), pictures)
                    to_find -= 1
            frames, frame = [], None  # a decoder that changes its last picture (Cinepak) has to copy one that is held
            if packet is None:
                break
        return True

    def _decode_in_order(self, missing: dict[int, int], pictures: _Pictures) -> None:
        """As :meth:`_decode_wanted`, the slow way; frames that can only be counted are ``missing`` by number."""
        for number, frame in enumerate(self._decode_all()):
            key = number if self.index.counted else frame.pts
            if key in missing:
                self._convert(frame, missing.pop(key), pictures)
                if not missing:
                    return

    def _decode_all(self) -> Iterator[Any]:
        """Every frame, in order, from a new decoder: what the short cuts must equal."""
        if self._used or not self._probed:
            self._open(probe=True)
        packets = self._packets_from(0)
        self._codec.skip_frame = "DEFAULT"
        for packet in self._timed(packets):
            yield from self._decode(packet)
        yield from self._decode(None)

    def _decode(self, packet: Any) -> list[Any]:
        """Frames ``packet`` brings out of the decoder; none from a damaged one: its neighbours may be fine."""
        self._used = True
        try:
            frames: list[Any] = self._codec.decode(packet)
        except self._error:
            frames = []
        return frames

    def _convert(self, frame: Any, number: int, pictures: _Pictures) -> None:
        if frame.rotation or not self._direct.convert(frame, pictures.address(number, frame.height, frame.width)):
            pictures.put(number, self._upright(frame))

    def _upright(self, frame: Any) -> NDArray[np.uint8]:
        """Any frame as (H, W, 3) uint8, its rotation applied."""
        try:
            return upright(frame, self._reformatter)
        except (self._error, ValueError) as error:
            raise DecodeError(self.path, f"its pixel format {frame.format.name!r} has no way to RGB") from error


def _strips_of_its_own(frame: Any, packet: Any) -> int:
    """Of a Cinepak frame, which comes out as its packet goes in; 0 where it may need another."""
    if packet is None or frame.format.name != "rgb24":  # in 256 colours the palette may be an earlier one's
        return 0
    return whole_strips(memoryview(packet), frame.width, frame.height)


class _Pictures:
    """Collects the pictures of the ``wanted`` frames, of one size, each once, into one array."""

    def __init__(self, path: str, wanted: Int64) -> None:
        self._path = path
        self._wanted: list[int] = wanted.tolist()
        self.numbers = sorted(set(self._wanted))
        self._slots = {number: slot for slot, number in enumerate(self.numbers)}
        self._array: Frame_THWC | None = None
        self._size = (0, 0)
        self._address = 0

    def put(self, number: int, picture: NDArray[np.uint8]) -> None:
        self._ready_for(*picture.shape[:2])
        assert self._array is not None
        self._array[self._slots[number]] = picture

    def address(self, number: int, height: int, width: int) -> int:
        """Where in memory a picture of this size belongs; ``SLACK`` bytes behind it are ours, too."""
        self._ready_for(height, width)
        return self._address + self._slots[number] * height * width * 3

    def _ready_for(self, height: int, width: int) -> None:
        if (height, width) == self._size:
            return
        if self._array is not None:
            before, across = self._size
            raise DecodeError(
                self._path,
                f"its frames change size, from {across}×{before} to {width}×{height}; re-encode it to one size",
            )
        shape = (len(self.numbers), height, width, 3)
        memory = np.empty(math.prod(shape) + SLACK, dtype=np.uint8)
        self._array, self._size, self._address = memory[:-SLACK].reshape(shape), (height, width), memory.ctypes.data

    def arranged(self) -> Frame_THWC:
        """The pictures in the order asked for, repeats included."""
        assert self._array is not None
        if self._wanted == self.numbers:
            return self._array
        arranged: Frame_THWC = self._array[[self._slots[number] for number in self._wanted]]
        return arranged


def _import_av() -> Any:
    try:
        import av
        import av.error
        import av.stream
        import av.video.reformatter
    except ImportError as error:
        raise ImportError("reading video needs PyAV: pip install av (frame folders and packs do without)") from error
    return av


def _named_source(source: object) -> tuple[str, str | BinaryIO]:
    """A name for messages, and what to open."""
    if isinstance(source, str | os.PathLike):
        path = os.fsdecode(source)
        return path, path
    if isinstance(source, bytes | bytearray | memoryview):
        return "<bytes>", io.BytesIO(source)
    if isinstance(source, io.TextIOBase):
        raise TypeError('a text file object cannot be read as video; open the file in binary mode: open(path, "rb")')
    if hasattr(source, "read"):
        name = getattr(source, "name", None)
        path = name if isinstance(name, str) else "<file object>"
        seekable = getattr(source, "seekable", None)
        if seekable is None or not seekable():
            return path, io.BytesIO(source.read())
        return path, source  # type: ignore[return-value]
    raise TypeError(
        f"cannot read frames from a {type(source).__name__}; "
        "give a path, bytes, a binary file object or a uint8 array of shape (T, H, W, 3)"
    )


def _common_format(source: str | BinaryIO) -> str | None:
    """FFmpeg's name of a common container, by the file's first bytes: spares FFmpeg trying all it knows."""
    try:
        if isinstance(source, str):
            file = os.open(source, os.O_RDONLY | getattr(os, "O_BINARY", 0))
            try:
                head = os.read(file, 64)
            finally:
                os.close(file)
        else:
            head = source.read(64)
            source.seek(0)
    except OSError:  # opening says why
        return None
    if head[4:8] == b"ftyp":
        return "mp4"
    if head.startswith(b"\x1aE\xdf\xa3") and b"\x42\x82\x84webm" in head:  # EBML; its document type
        return "webm"
    return "avi" if head.startswith(b"RIFF") and head[8:12] == b"AVI " else None


def _why_unreadable(source: str | BinaryIO, error: Exception) -> str:
    """What is wrong with a file that FFmpeg will not open, in the words of somebody who wants to mend it."""
    try:
        if isinstance(source, str):
            if not os.path.exists(source):
                return "no such file; check the path, and the folder a relative path starts from"
            if os.path.isdir(source):
                return "is a folder, not a video; open_frames() reads folders of JPEG frames"
            with open(source, "rb") as file:
                return _diagnosis(file, error)
        return _diagnosis(source, error)
    except (OSError, ValueError) as second:
        return f"cannot be read ({_first_line(second)}); check its permissions"


def _diagnosis(file: BinaryIO, error: Exception) -> str:
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(512)
    if not size:
        return "is empty (0 bytes); copy or download it again"
    if head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"<":
        return "is an HTML or XML page, not a video: the download gave an error page; download it again"
    if head[4:8] == b"ftyp" and not _has_moov(file, size):
        return (
            "is an mp4 without its index (no 'moov' box): the recording or download broke off before it was written; "
            "fetch it again"
        )
    return f"is not a video that FFmpeg can read, or its start is damaged ({_first_line(error)}); fetch it again"


def _has_moov(file: BinaryIO, size: int) -> bool:
    position = 0
    while position + 8 <= size:
        file.seek(position)
        header = file.read(16)
        length = int.from_bytes(header[:4], "big")
        if header[4:8] == b"moov":
            return position + length <= size
        if length == 1:
            length = int.from_bytes(header[8:16], "big")
        if length < 8:
            return False
        position += length
    return False


def _first_line(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return str(text).splitlines()[0] if text else type(error).__name__


def _checked_indices(path: str, indices: Sequence[int] | NDArray[np.integer[Any]], num_frames: int) -> Int64:
    array = np.asarray(indices)
    if array.ndim != 1 or not array.size:
        raise ValueError(f"indices are a sequence of one or more frame numbers, got {array.shape = }")
    if not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"indices are whole numbers, got {array.dtype = }")
    outside = array[(array < 0) | (array >= num_frames)]
    if outside.size:
        raise IndexError(f"{path}: frame {int(outside[0])} asked for, but it has {num_frames} (0 to {num_frames - 1})")
    return array.astype(np.int64, copy=False)


def _checked_fps(path: str, fps: float | None) -> float | None:
    if fps is None:
        return None
    if not (math.isfinite(fps) and fps > 0):
        raise ValueError(f"{path}: fps is a positive number of frames per second, got {fps!r}")
    return float(fps)


def _frame_rate(index: PacketIndex) -> float | None:
    """Frames per second by the frames' own times: what the header says may be wrong."""
    if not index.counted and index.num_frames > 1:
        shown = index.pts[index.frames]
        ticks, base = int(shown[-1] - shown[0]), index.time_base
        return (index.num_frames - 1) * base.denominator / (ticks * base.numerator)  # a Fraction's way takes ten times
    return index.rate


def _even_segment(
    path: str, num_frames: int, fps: float | None, start: float | None, end: float | None
) -> tuple[int, int]:
    """:func:`_segment` for frames that come at a steady rate."""
    if fps is None and not (start is None and end is None):
        raise DecodeError(path, f"start and end ({start}, {end}) are seconds: state the frame rate, fps=…, as well")
    rate = fps or 1.0
    return _segment(path, num_frames, lambda: np.arange(num_frames) / rate, 1e-3 / rate, start, end)


def _segment(
    path: str,
    num_frames: int,
    seconds: Callable[[], NDArray[np.float64]],
    tick: float,
    start: float | None,
    end: float | None,
) -> tuple[int, int]:
    """First frame and one past the last with start ≤ time < end; times are rounded to ``tick`` seconds."""
    if start is None and end is None:
        return 0, num_frames
    low, high = 0.0 if start is None else float(start), math.inf if end is None else float(end)
    if not (0 <= low < high):
        raise DecodeError(path, f"the segment from {start} s to {end} s is empty; start must lie in [0, end)")
    times = seconds()
    if np.isnan(times).any():
        raise DecodeError(path, f"start and end ({start}, {end}) mean nothing: it states no frame rate; re-encode it")
    slack = min(tick, 1e-3) / 2  # a Matroska file, say, stores 33 ms for a start of 1/30 s
    first, last = (int(np.searchsorted(times, moment - slack)) for moment in (low, high))
    if first >= num_frames:
        raise DecodeError(
            path,
            f"the segment starts at {low:g} s, but the last of its {num_frames} frames is at {times[-1]:.3f} s",
        )
    if first >= last:
        raise DecodeError(path, f"no frame lies between {low:g} s and {high:g} s; widen the segment")
    return first, last


@dataclass(frozen=True, slots=True)
class _FrameNames:
    """The names of a folder's frames: what stands before the number, its digits (fewer are filled up with zeros), what
    stands behind it."""

    before: str
    digits: int
    behind: str
    first: int
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, place: int) -> str:
        return f"{self.before}{self.first + place:0{self.digits}}{self.behind}"


# Of long recordings, listing the frames and putting them in order takes 0.1 s, for every clip: each process keeps how
# the names are made, until a folder changes. All of them take 2 MB at most.
_KEPT_FOLDERS = 4096
_kept_names: dict[tuple[str, int, int, int], _FrameNames] = {}
_SETTLED = 2 * 10**9  # ns; a change sooner after the last one may leave a folder's time of change as it is


def _frame_names(folder: str) -> _FrameNames | list[str]:
    """File names of a folder's frames in the order of their numbers."""
    if not os.path.isdir(folder):
        raise DecodeError(folder, "no such folder; check the path")
    try:
        status = os.stat(folder)
        key = (folder, status.st_dev, status.st_ino, status.st_mtime_ns)
        known = _kept_names.get(key)
        if known is not None:
            return known
        names = _in_order(folder, os.listdir(folder))
    except OSError as error:
        raise DecodeError(folder, f"cannot be listed ({error.strerror})") from error
    parts = frame_number(names[0])
    assert parts is not None
    before, digits = parts
    made = _FrameNames(before, len(digits), names[0][len(before + digits) :], int(digits), len(names))
    if any(made[place] != name for place, name in enumerate(names)):
        return names
    if time_ns() - status.st_mtime_ns > _SETTLED:
        if len(_kept_names) >= _KEPT_FOLDERS:
            _kept_names.clear()
        _kept_names[key] = made
    return made


def _in_order(folder: str, names: Iterable[str]) -> list[str]:
    """The frames among the names of files, by their numbers. Raises DecodeError for none, several series and gaps."""
    kinds: dict[str, list[tuple[int, str]]] = {}
    for name in names:
        found = frame_number(name)
        if found is not None:
            kinds.setdefault(found[0], []).append((int(found[1]), name))
    if not kinds:
        raise DecodeError(folder, "no numbered JPEG frames in it (img_00001.jpg, 000001.jpg …)")
    if len(kinds) > 1:
        some = ", ".join(sorted(f"{prefix}*.jpg" for prefix in kinds)[:3])
        raise DecodeError(folder, f"holds more than one series of frames ({some}); keep each in a folder of its own")
    (series,) = kinds.values()
    series.sort()
    for (number, name), (following, other) in itertools.pairwise(series):
        if following == number:
            raise DecodeError(folder, f"frame {number} is there twice ({name}, {other}); remove one")
        if following > number + 1:
            raise DecodeError(
                folder,
                f"frame {number + 1} is missing (after {name} comes {other}); extract the frames again",
            )
    return [name for _, name in series]


def _read_jpeg(path: str) -> NDArray[np.uint8]:
    from PIL import Image

    try:
        with Image.open(Path(path)) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DecodeError(path, f"is not a readable JPEG image ({_first_line(error)}); extract it again") from error
