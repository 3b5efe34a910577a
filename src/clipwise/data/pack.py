"""A whole manifest as one file of resized frames: training from it needs no video decoder.

The file is laid out as safetensors does it, so ``safetensors.safe_open`` reads it too:

data           uint8 (bytes,)        every frame of every video, one after the other
frame_offset   int64 (frames + 1,)   where frame f lies: data[frame_offset[f]:frame_offset[f + 1]]
video_offset   int64 (videos + 1,)   which frames video v has: video_offset[v] .. video_offset[v + 1]
size           int32 (videos, 2)     height and width in pixels
metadata       ``clipwise_pack``: JSON of the manifest (classes, paths, labels, splits, fps …) and options

A frame is either its pixels (``uint8``: height x width x RGB) or a JPEG file (``jpeg``, read with PIL). The
file is memory-mapped: frames that no clip asks for are never read from disk.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from clipwise.data.decode import DecodeError
from clipwise.data.workers import available_cores, end_with_parent, leave_signals_to_parent
from clipwise.files import written_whole

if TYPE_CHECKING:
    from clipwise.data.manifest import Manifest

Format = Literal["uint8", "jpeg"]
VERSION = 2
"""Of packs with several heads or sets of labels; the others are written as version 1, which has only ``classes``."""
_TENSORS = {"data": "U8", "frame_offset": "I64", "video_offset": "I64", "size": "I32"}
_DTYPES: dict[str, np.dtype[Any]] = {"U8": np.dtype("u1"), "I32": np.dtype("<i4"), "I64": np.dtype("<i8")}
_MAX_HEADER = 100_000_000  # of the safetensors format
_CHUNK_BYTES = 256 * 2**20  # decoded pixels that one task holds


@dataclass(frozen=True)
class PackReport:
    """What was written. skipped: (path as the manifest writes it, reason) of every video left out."""

    path: Path
    videos: int
    frames: int
    bytes: int
    skipped: tuple[tuple[str, str], ...]


class Options(NamedTuple):
    """How frames are stored; ``h264`` is for shards."""

    format: Format | Literal["h264"]
    short_side: int | None
    quality: int
    enlarge: bool


class Chunk(NamedTuple):
    """Consecutive frames of one video, encoded; ``more`` is the next frame, None after the last."""

    data: bytes
    lengths: NDArray[np.int64]
    height: int
    width: int
    fps: float | None
    more: int | None


def check_encoding(on_error: str, short_side: int | None, quality: int) -> None:
    """Raises ValueError for what neither a pack nor shards can be written with."""
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error must be 'raise' or 'skip', got {on_error!r}")
    if short_side is not None and short_side < 1:
        raise ValueError(f"short_side must be at least 1 pixel, or None to keep the size, got {short_side}")
    if not 1 <= quality <= 100:
        raise ValueError(f"quality must be from 1 to 100, got {quality}")


def pack(
    manifest: Manifest,
    output: str | os.PathLike[str],
    *,
    format: Format = "jpeg",
    short_side: int | None = None,
    quality: int = 95,
    enlarge: bool = False,
    workers: int | None = None,
    overwrite: bool = False,
    on_error: Literal["raise", "skip"] = "raise",
    progress: Callable[[int, int], object] | None = None,
) -> PackReport:
    """Decodes every video of a manifest into one ``*.pack`` file, in the manifest's order.

    short_side: pixels of the shorter side (bilinear, antialiased); None keeps every size. A smaller video
    keeps its size unless ``enlarge``. quality: of the JPEG frames, 1 to 100. workers: processes, by default
    one per core; 0 or 1 decodes in this one. progress: called with (videos done, videos in all).
    on_error: what a video that cannot be decoded does: "raise" stops, "skip" leaves it out and lists it in
    the report and in the file.
    Memory is bounded whatever the videos' lengths. The file appears only when it is complete.
    Raises DecodeError for an unreadable video, ValueError for an output that exists or cannot be written,
    ChildProcessError if a worker process dies.
    """
    output = Path(os.path.abspath(output))
    if format not in ("uint8", "jpeg"):
        raise ValueError(f"format must be 'uint8' or 'jpeg', got {format!r}")
    check_encoding(on_error, short_side, quality)
    if output.suffix != ".pack":
        raise ValueError(f"{output}: a pack is recognised by its name; call it {output.with_suffix('.pack').name}")
    if output.exists() and not overwrite:
        raise ValueError(f"{output}: exists; choose another name, or --overwrite (overwrite=True in Python)")

    options = Options(format, short_side, quality, enlarge)
    workers = min(len(manifest), available_cores() if workers is None else workers)
    try:
        with written_whole(output) as unfinished, unfinished.open("wb") as file:
            report = _write(file, manifest, output, options, workers, on_error == "skip", progress)
            file.flush()
            os.fsync(file.fileno())
    except ChildProcessError:  # a kind of OSError that does not concern the file
        raise
    except OSError as error:
        raise ValueError(
            f"{output}: cannot be written ({error.strerror or error}); choose a folder that exists, that you "
            "may write to and that has room"
        ) from error
    return report


def _write(
    file: BinaryIO,
    manifest: Manifest,
    output: Path,
    options: Options,
    workers: int,
    skip: bool,
    progress: Callable[[int, int], object] | None,
) -> PackReport:
    # The header comes first but is known last: leave room for the longest it can become. A skipped video's
    # path only moves from one list to another.
    total = len(manifest)
    longest = pack_metadata(manifest, options, range(total), [-1.2345678901234567e-300] * total, [])
    begin = 8 + len(_header(longest, dict.fromkeys(_TENSORS, (10**15,))))
    begin += -begin % 8
    if begin > _MAX_HEADER:
        raise ValueError(f"{manifest.source}: {total} videos are too many for one pack; pack its splits one by one")

    kept: list[int] = []
    skipped: list[tuple[str, str]] = []
    fps: list[float | None] = []
    sizes: list[tuple[int, int]] = []
    counts: list[int] = []
    lengths: list[NDArray[np.int64]] = []
    unfinished: list[NDArray[np.int64]] = []  # lengths of the video in progress
    file.seek(begin)
    with contextlib.closing(chunks_in_order(manifest, options, workers)) as chunks:
        for index, chunk in chunks:
            if isinstance(chunk, str):
                item = manifest[index]
                if not skip:
                    raise DecodeError(
                        item.path,
                        f"{chunk} [video {index + 1} of {total} of {manifest.source}, nothing was packed; "
                        "repair or remove it, or leave such videos out: --skip-unreadable (on_error='skip' in Python)]",
                    )
                file.seek(-sum(int(part.sum()) for part in unfinished), os.SEEK_CUR)
                file.truncate()
                skipped.append((item.name, chunk))
            else:
                file.write(chunk.data)
                unfinished.append(chunk.lengths)
                if chunk.more is not None:
                    continue
                kept.append(index)
                fps.append(chunk.fps)
                sizes.append((chunk.height, chunk.width))
                counts.append(sum(map(len, unfinished)))
                lengths += unfinished
            unfinished = []
            if progress is not None:
                progress(len(kept) + len(skipped), total)
    if not kept:
        raise ValueError(f"{manifest.source}: none of {total} videos could be decoded; {': '.join(skipped[0])}")

    # Padding keeps the integers after the pixels aligned, which reading them in place needs.
    file.write(bytes(-file.tell() % 8))
    tensors = {
        "frame_offset": np.cumsum(np.concatenate([[0], *lengths]), dtype="<i8"),
        "video_offset": np.cumsum([0, *counts], dtype="<i8"),
        "size": np.array(sizes, dtype="<i4"),
    }
    shapes: dict[str, tuple[int, ...]] = {"data": (file.tell() - begin,)}
    for name, tensor in tensors.items():
        shapes[name] = tensor.shape
        file.write(tensor.tobytes())
    size = file.tell()
    header = _header(pack_metadata(manifest, options, kept, fps, [name for name, _ in skipped]), shapes)
    file.seek(0)
    file.write((begin - 8).to_bytes(8, "little") + header.ljust(begin - 8))
    return PackReport(output, len(kept), sum(counts), size, tuple(skipped))


def pack_metadata(
    manifest: Manifest,
    options: Options,
    kept: Sequence[int],
    fps: Sequence[float | None],
    skipped: list[str],
) -> str:
    items = [manifest[index] for index in kept]
    label_space = manifest.label_space.to_json()
    labels = manifest.labels[list(kept)]
    return json.dumps(
        {
            "version": VERSION if "heads" in label_space else 1,
            "pixel_format": options.format,
            "short_side": options.short_side,
            "quality": None if options.format == "uint8" else options.quality,
            "source": manifest.source.name,
            **label_space,
            "paths": [item.name for item in items],
            # Indices: one, one for each head, or those of the set.
            "labels": [np.flatnonzero(row).tolist() for row in labels] if manifest.multi_label else labels.tolist(),
            "splits": [item.split for item in items],
            "starts": [item.start for item in items],
            "ends": [item.end for item in items],
            "fps": list(fps),
            # The frames are stored as they are played; this tells the two directions of a video apart.
            **({"reversed": [item.reversed for item in items]} if any(item.reversed for item in items) else {}),
            "skipped": skipped,
        }
    )


def _header(metadata: str, shapes: dict[str, tuple[int, ...]]) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"clipwise_pack": metadata}}
    end = 0
    for name, shape in shapes.items():
        dtype = _TENSORS[name]
        start, end = end, end + math.prod(shape) * _DTYPES[dtype].itemsize
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": (start, end)}
    return json.dumps(header).encode()


def chunks_in_order(
    manifest: Manifest, options: Options, workers: int, first: int = 0
) -> Generator[tuple[int, Chunk | str], None, None]:
    """(item, its next chunk, or why it cannot be decoded), in order from item ``first`` on.

    At most 2 x workers tasks are in flight.
    """
    with contextlib.ExitStack() as stack:
        executor: ProcessPoolExecutor | None = None
        if workers > 1:
            # Not fork: the parent may hold threads and a CUDA context.
            context = multiprocessing.get_context("spawn")
            executor = ProcessPoolExecutor(workers, context, _start_worker, (manifest, options))
            stack.callback(executor.shutdown, cancel_futures=True)

        def submit(index: int, first: int) -> Callable[[], Chunk | str]:
            if executor is None:
                return partial(_encode, manifest, options, index, first)
            return executor.submit(_encode_in_worker, index, first).result

        waiting = iter(range(first, len(manifest)))
        results: deque[tuple[int, Callable[[], Chunk | str]]] = deque()
        while True:
            while len(results) < max(1, 2 * workers) and (index := next(waiting, -1)) >= 0:
                results.append((index, submit(index, 0)))
            if not results:
                return
            index, result = results.popleft()
            try:
                chunk = result()
            except BrokenProcessPool as error:
                raise ChildProcessError(
                    f"a worker process died while decoding {manifest[index].path} or one of the next "
                    f"{2 * workers}: out of memory, or a script that calls pack() without "
                    "if __name__ == '__main__'; try fewer workers"
                ) from error
            if not isinstance(chunk, str) and chunk.more is not None:
                results.appendleft((index, submit(index, chunk.more)))
            yield index, chunk


def _encode(manifest: Manifest, options: Options, index: int, first: int) -> Chunk | str:
    """Frames of an item from ``first`` on, as many as fit a task; or the reason why it cannot be decoded."""
    try:
        with manifest.open(index) as frames:
            if frames.num_frames < 1:
                return "it has no frames"
            count = max(1, _CHUNK_BYTES // frames.read([first]).nbytes)
            last = min(frames.num_frames, first + count)
            pixels = _resize(frames.read(range(first, last)), options)
            fps = frames.fps
            more = last if last < frames.num_frames else None
    except (ValueError, OSError) as error:
        if isinstance(error, DecodeError) and error.path == manifest[index].path:
            return error.reason
        return str(error)
    if options.format == "uint8":
        encoded = [pixels.tobytes()]
        lengths = np.full(len(pixels), pixels[0].nbytes)
    else:
        if options.format == "h264":
            from clipwise.data.shards import encode_intra

            encoded = encode_intra(pixels, options.quality)
        else:
            encoded = [_jpeg(frame, options.quality) for frame in pixels]
        lengths = np.array([len(frame) for frame in encoded])
    return Chunk(b"".join(encoded), lengths, pixels.shape[1], pixels.shape[2], fps, more)


_worker: tuple[Manifest, Options]


def _start_worker(manifest: Manifest, options: Options) -> None:
    global _worker
    _worker = manifest, options
    leave_signals_to_parent()
    end_with_parent()
    torch.set_num_threads(1)


def _encode_in_worker(index: int, first: int) -> Chunk | str:
    return _encode(*_worker, index, first)


def resized_size(height: int, width: int, options: Options) -> tuple[int, int]:
    """Height and width with the wanted short side."""
    short = min(height, width)
    side = options.short_side
    if side is None or side == short or (side > short and not options.enlarge):
        return height, width
    return round(height * side / short), round(width * side / short)


def _resize(frames: NDArray[np.uint8], options: Options) -> NDArray[np.uint8]:
    """(N, H, W, 3) to (N, h, w, 3) with the wanted short side."""
    size = resized_size(frames.shape[1], frames.shape[2], options)
    if size == frames.shape[1:3]:
        return frames
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2)
    resized = F.interpolate(pixels, size=size, mode="bilinear", antialias=True)
    return resized.permute(0, 2, 3, 1).contiguous().numpy()


def _jpeg(frame: NDArray[np.uint8], quality: int) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


class PackedFile:
    """A pack, opened for reading: ``frames(i)`` are the frames of its i-th video.

    The file is mapped into memory on first use, in each process by itself; pickling passes on where it lies.
    """

    def __init__(self, path: Path, pixel_format: Format, size: int, layout: dict[str, tuple[str, list[int], int]]):
        self.path = path
        self.pixel_format = pixel_format
        self._size = size
        self._layout = layout  # tensor -> safetensors dtype, shape, position in the file
        self._tensors: dict[str, NDArray[Any]] | None = None

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> PackedFile:
        """Raises ValueError for a file that is missing, cut off or no pack."""
        return cls.open_with_metadata(path)[0]

    @classmethod
    def open_with_metadata(cls, path: str | os.PathLike[str]) -> tuple[PackedFile, dict[str, Any]]:
        """As ``open``, with the metadata: the classes, and each video's path, label, split and so on."""
        path = Path(os.path.abspath(path))
        try:
            with open(path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                length = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(length)) if length <= min(_MAX_HEADER, size - 8) else {}
            metadata = json.loads(header["__metadata__"]["clipwise_pack"])
            version = int(metadata["version"])
            pixel_format = metadata["pixel_format"]
            del header["__metadata__"]
            layout = {
                name: (entry["dtype"], entry["shape"], 8 + length + entry["data_offsets"][0])
                for name, entry in header.items()
            }
            end = 8 + length + max(entry["data_offsets"][1] for entry in header.values())
        except OSError as error:
            raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path}: not a pack, or one cut off at its beginning; write one with: clipwise data pack"
            ) from error
        if not 1 <= version <= VERSION:
            raise ValueError(f"{path}: pack format {version}, this version reads {VERSION}; update, or pack again")
        if size != end:
            raise ValueError(f"{path}: {size} bytes where {end} were written; copy it again, or pack again")
        return cls(path, pixel_format, size, layout), metadata

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tensors": None}

    def __len__(self) -> int:
        return self._layout["size"][1][0]

    def frames(self, index: int, path: str | None = None, fps: float | None = None) -> PackedFrames:
        """The frames of video ``index``; path and fps are what the result is to say about itself."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self.path}: video {index} of {len(self)}")
        if self._tensors is None:
            self._tensors = self._map()
        first, last = (int(offset) for offset in self._tensors["video_offset"][index : index + 2])
        return PackedFrames(
            path or f"{self.path}[{index}]",
            fps,
            self.pixel_format,
            self._tensors["size"][index],
            self._tensors["frame_offset"][first : last + 1],
            self._tensors["data"],
        )

    def _map(self) -> dict[str, NDArray[Any]]:
        try:
            whole = np.memmap(self.path, dtype=np.uint8, mode="r").view(np.ndarray)
        except (OSError, ValueError) as error:
            raise DecodeError(str(self.path), f"the pack cannot be read any more ({error}); open it again") from error
        if len(whole) != self._size:
            raise DecodeError(str(self.path), "the pack changed since it was opened; open it again")
        tensors = {}
        for name, (dtype, shape, position) in self._layout.items():
            size = math.prod(shape) * _DTYPES[dtype].itemsize
            tensors[name] = whole[position : position + size].view(_DTYPES[dtype]).reshape(shape)
        return tensors


class PackedFrames:
    """The frames of one video of a pack; see ``clipwise.data.decode.Frames``."""

    def __init__(
        self,
        path: str,
        fps: float | None,
        pixel_format: Format,
        size: NDArray[np.int32],
        offsets: NDArray[np.int64],
        data: NDArray[np.uint8],
    ) -> None:
        self.path = path
        self.fps = fps
        self.num_frames = len(offsets) - 1
        self._pixel_format = pixel_format
        self._size = (int(size[0]), int(size[1]))
        self._offsets = offsets
        self._data = data

    def read(self, indices: Sequence[int] | NDArray[np.integer[Any]]) -> NDArray[np.uint8]:
        """(len(indices), H, W, 3) RGB in the order asked. Raises IndexError, DecodeError (damaged JPEG)."""
        frames = np.empty((len(indices), *self._size, 3), np.uint8)
        for position, index in enumerate(indices):
            if not 0 <= index < self.num_frames:
                raise IndexError(f"{self.path}: frame {index} of {self.num_frames}")
            stored = self._data[self._offsets[index] : self._offsets[index + 1]]
            if self._pixel_format == "uint8":
                frames[position] = stored.reshape(frames.shape[1:])
            else:
                frames[position] = self._decode(int(index), stored)
        return frames

    def _decode(self, index: int, stored: NDArray[np.uint8]) -> NDArray[np.uint8]:
        from PIL import Image

        try:
            with Image.open(io.BytesIO(stored.tobytes())) as image:
                pixels = np.asarray(image.convert("RGB"))
            if pixels.shape[:2] != self._size:
                raise ValueError(f"{pixels.shape[:2]} pixels where {self._size} were written")
        except (OSError, ValueError, SyntaxError) as error:
            raise DecodeError(self.path, f"frame {index} is damaged ({error}); copy the pack again") from error
        return pixels

    def close(self) -> None:
        """Nothing to do: the mapping is shared by all videos of the pack."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
