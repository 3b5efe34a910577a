"""A whole manifest as tar files of resized frames: for sets too large for one pack, and for other programs.

``<folder>/shard-000000.tar`` … hold, video by video in the manifest's order, what WebDataset takes for one sample::

    00000012.000000.jpg …   its frames (``jpeg``), or
    00000012.000000.rgb …   its frames' bytes, height × width × 3 (``uint8``), or
    00000012.h264           its frames as an H.264 stream, each a keyframe that needs no other (``h264``)
    00000012.json           path, label, split, segment, whether played backwards, frames, height, width, fps
    00000012.cls            index of its class, where it has exactly one

``index.safetensors`` says where each frame lies, so that any frame is one read away and no tar is ever searched: a
training run draws what it likes, in whatever order, and resumes. It is written last. Until then ``unfinished.jsonl``
tells which videos are whole; writing goes on behind them.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import tarfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray

from clipwise.data.decode import DecodeError
from clipwise.data.direct_rgb import rgb_pixels
from clipwise.data.manifest import Manifest
from clipwise.data.pack import Options, PackReport, check_encoding, chunks_in_order, pack_metadata
from clipwise.data.stores import INDEX, JOURNAL, is_shards
from clipwise.data.workers import available_cores
from clipwise.files import written_whole

__all__ = ["SHARD_BYTES", "ShardedFile", "ShardedFrames", "encode_intra", "write_shards"]

SHARD_BYTES = 2**30
_KEY = "clipwise_shards"
_BLOCK = 512  # of a tar
_END = bytes(2 * _BLOCK)
_TENSORS: dict[str, np.dtype[Any]] = {
    "offset": np.dtype("<i8"),  # (frames,) of a frame in its shard
    "length": np.dtype("<i4"),  # (frames,) in bytes
    "video_offset": np.dtype("<i8"),  # (videos + 1,) which frames a video has
    "shard": np.dtype("<i4"),  # (videos,)
    "size": np.dtype("<i4"),  # (videos, 2) height and width in pixels
    "shard_bytes": np.dtype("<i8"),  # (shards,)
}
_OPEN_FILES = 32  # shards that a process holds open
_GAP = 2**16  # frames closer than this are fetched in one read
_seeking = threading.Lock()

ShardFormat = Literal["jpeg", "uint8", "h264"]


# Writing


def write_shards(
    manifest: Manifest,
    output: str | os.PathLike[str],
    *,
    format: ShardFormat = "jpeg",
    short_side: int | None = None,
    quality: int = 95,
    enlarge: bool = False,
    shard_bytes: int = SHARD_BYTES,
    workers: int | None = None,
    overwrite: bool = False,
    resume: bool = False,
    on_error: Literal["raise", "skip"] = "raise",
    progress: Callable[[int, int], object] | None = None,
) -> PackReport:
    """Decodes every video of a manifest into a folder of tar files, in the manifest's order.

    The arguments that it shares with :func:`clipwise.data.pack.pack` mean the same. quality: 1 to 100, of JPEG or, as
    far as that goes, of H.264. shard_bytes: a shard that has this size is full. resume: go on where an earlier call
    with the same videos and options broke off; what comes out is the same, byte for byte. overwrite: begin anew.

    Raises DecodeError for an unreadable video, ValueError for a folder that cannot be used or is full,
    ChildProcessError if a worker process dies. Whatever ends it, what is whole stays for ``resume``.
    """
    output = Path(os.path.abspath(output))
    if format not in get_args(ShardFormat):
        raise ValueError(f"format of shards must be {', '.join(map(repr, get_args(ShardFormat)))}, got {format!r}")
    check_encoding(on_error, short_side, quality)
    if shard_bytes < 1:
        raise ValueError(f"shard_bytes must be at least 1, got {shard_bytes}")
    if resume and overwrite:
        raise ValueError("resume goes on with what is there and overwrite deletes it: give one of them")
    options = Options(format, short_side, quality, enlarge)
    writer = _Writer(manifest, output, options, shard_bytes)
    workers = min(len(manifest), available_cores() if workers is None else workers)
    try:
        finished = writer.prepare(resume=resume, overwrite=overwrite)
        if finished is not None:
            return finished
        try:
            return writer.run(workers, on_error == "skip", progress)
        finally:
            writer.close()
    except ChildProcessError:  # a kind of OSError that does not concern the files
        raise
    except OSError as error:
        raise ValueError(
            f"{output}: cannot be written ({error.strerror or error}) after {writer.done} of {len(manifest)} videos; "
            "what is whole is kept: make room, or see to it that the folder may be written to, and go on with --resume "
            "(resume=True in Python)"
        ) from error


class _Writer:
    """The shards of one manifest, as far as they are written."""

    def __init__(self, manifest: Manifest, output: Path, options: Options, shard_bytes: int) -> None:
        self.manifest = manifest
        self.output = output
        self.options = options
        self.shard_bytes = shard_bytes
        self.entries: list[dict[str, Any]] = []  # one for each video, as in the journal
        self.lengths: list[NDArray[np.int32]] = []  # of the frames of each that is kept
        self.shard = 0
        self.file: BinaryIO | None = None
        self.journal: BinaryIO | None = None

    @property
    def done(self) -> int:
        return len(self.entries)

    def prepare(self, *, resume: bool, overwrite: bool) -> PackReport | None:
        """Make the folder, or take up what is in it; a report if nothing is left to do."""
        output = self.output
        if output.exists() and not output.is_dir():
            raise ValueError(f"{output}: is a file; give a folder for the shards")
        ours = output.is_dir() and is_shards(output)
        if output.is_dir() and any(output.iterdir()) and not ours:
            raise ValueError(f"{output}: holds files that are no shards; give an empty folder, or a new one")
        if ours and not (resume or overwrite):
            state = "exists" if (output / INDEX).is_file() else "was begun and not finished; go on with it: --resume"
            raise ValueError(f"{output}: {state}; choose another name, or --overwrite (overwrite=True in Python)")
        if ours and overwrite:
            for path in [output / INDEX, output / JOURNAL, *_shards_in(output)]:
                path.unlink(missing_ok=True)
            ours = False
        output.mkdir(parents=True, exist_ok=True)
        if not ours:
            with written_whole(output / JOURNAL) as partial:
                partial.write_text(json.dumps(self._terms()) + "\n", encoding="utf-8")
        elif (output / INDEX).is_file():
            return self._finished()
        else:
            self._take_up()
        self.journal = open(output / JOURNAL, "ab")  # noqa: SIM115 – closed by close()
        return None

    def close(self) -> None:
        for file in (self.file, self.journal):
            if file is not None:
                with contextlib.suppress(OSError):  # of a full disk; the journal does not speak of what is lost
                    file.close()

    def run(self, workers: int, skip: bool, progress: Callable[[int, int], object] | None) -> PackReport:
        total = len(self.manifest)
        start = 0
        lengths: list[NDArray[np.int64]] = []  # of the video in hand
        with contextlib.closing(chunks_in_order(self.manifest, self.options, workers, self.done)) as chunks:
            for index, chunk in chunks:
                if isinstance(chunk, str):
                    item = self.manifest[index]
                    if not skip:
                        raise DecodeError(
                            item.path,
                            f"{chunk} [video {index + 1} of {total} of {self.manifest.source}; those before it are "
                            "kept: repair it and go on with --resume, or leave such videos out: --resume "
                            "--skip-unreadable (on_error='skip' in Python)]",
                        )
                    if lengths and self.file is not None:
                        self.file.seek(start)
                        self.file.truncate()
                    self._enter({"skipped": [item.name, chunk]})
                else:
                    if not lengths:
                        start = self._place()
                    self._write_frames(index, sum(map(len, lengths)), chunk.data, chunk.lengths)
                    lengths.append(chunk.lengths)
                    if chunk.more is not None:
                        continue
                    of_video = np.concatenate(lengths).astype(np.int32)
                    size = (chunk.height, chunk.width)
                    end = self._write_account(index, start, of_video, size, chunk.fps)
                    self.lengths.append(of_video)
                    self._enter(
                        {
                            "shard": self.shard,
                            "start": start,
                            "end": end,
                            "size": size,
                            "fps": chunk.fps,
                            "lengths": of_video.tolist(),
                        }
                    )
                lengths = []
                if progress is not None:
                    progress(self.done, total)
        return self._finish()

    def _place(self) -> int:
        """Where the next video goes; opens the next shard if this one is full."""
        if self.file is not None and self.file.tell() >= self.shard_bytes:
            self._end_shard()
            self.shard += 1
        if self.file is None:
            self.file = open(self.output / _shard_name(self.shard), "wb")  # noqa: SIM115 – closed by close()
        return self.file.tell()

    def _end_shard(self) -> None:
        assert self.file is not None
        self.file.write(_END)
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        self.file = None

    def _write_frames(self, index: int, first: int, data: bytes, lengths: NDArray[np.int64]) -> None:
        assert self.file is not None
        if self.options.format == "h264":
            if not first:
                self.file.write(bytes(_BLOCK))  # the member's header, once its size is known
            self.file.write(data)
            return
        position, suffix = 0, "jpg" if self.options.format == "jpeg" else "rgb"
        for number, length in enumerate(lengths.tolist(), first):
            self._write_member(f"{index:08d}.{number:06d}.{suffix}", data[position : position + length])
            position += length

    def _write_member(self, name: str, data: bytes) -> None:
        assert self.file is not None
        self.file.write(_tar_header(name, len(data)) + data + bytes(-len(data) % _BLOCK))

    def _write_account(
        self, index: int, start: int, lengths: NDArray[np.int32], size: tuple[int, int], fps: float | None
    ) -> int:
        """What is told of a video behind its frames; returns where it ends."""
        assert self.file is not None
        if self.options.format == "h264":
            length = int(lengths.sum(dtype=np.int64))
            self.file.write(bytes(-length % _BLOCK))
            end = self.file.tell()
            self.file.seek(start)
            self.file.write(_tar_header(f"{index:08d}.h264", length))
            self.file.seek(end)
        item = self.manifest[index]
        names = self.manifest.names_of(index)
        labels: dict[str, Any] = {"label": names[0]} if item.label is not None else {"labels": list(names)}
        account = {
            "path": item.name,
            **labels,
            **{key: value for key, value in asdict(item).items() if key in ("split", "start", "end")},
            **({"reversed": True} if item.reversed else {}),
            "frames": len(lengths),
            "height": size[0],
            "width": size[1],
            "fps": fps,
        }
        self._write_member(f"{index:08d}.json", json.dumps(account, ensure_ascii=False).encode())
        if item.label is not None:
            self._write_member(f"{index:08d}.cls", str(item.label).encode())
        return self.file.tell()

    def _enter(self, entry: dict[str, Any]) -> None:
        """Into the journal, once the video is in the file."""
        assert self.journal is not None
        if self.file is not None:
            self.file.flush()
        self.journal.write(json.dumps(entry).encode() + b"\n")
        self.journal.flush()
        self.entries.append(entry)

    def _finish(self) -> PackReport:
        if self.file is not None:
            self._end_shard()
        kept = [index for index, entry in enumerate(self.entries) if "skipped" not in entry]
        skipped = tuple(tuple(entry["skipped"]) for entry in self.entries if "skipped" in entry)
        if not kept:
            raise ValueError(
                f"{self.manifest.source}: none of {len(self.entries)} videos could be decoded; {': '.join(skipped[0])}"
            )
        entries = [self.entries[index] for index in kept]
        offsets = [
            _offsets(self.options.format, entry["start"], lengths)
            for entry, lengths in zip(entries, self.lengths, strict=True)
        ]
        # A shard in which every video was left out is empty, and there all the same.
        shards = _shards_in(self.output)
        tensors: dict[str, NDArray[Any]] = {
            "offset": np.concatenate(offsets),
            "length": np.concatenate(self.lengths),
            "video_offset": np.cumsum([0, *map(len, self.lengths)]),
            "shard": np.array([entry["shard"] for entry in entries]),
            "size": np.array([entry["size"] for entry in entries]),
            "shard_bytes": np.array([path.stat().st_size for path in shards]),
        }
        metadata = json.loads(
            pack_metadata(
                self.manifest, self.options, kept, [entry["fps"] for entry in entries], [name for name, _ in skipped]
            )
        )
        _write_index(self.output / INDEX, tensors, {**metadata, "terms": self._terms()})
        (self.output / JOURNAL).unlink()
        size = int(tensors["shard_bytes"].sum())
        return PackReport(self.output, len(kept), len(tensors["offset"]), size, skipped)

    def _finished(self) -> PackReport:
        """The report of shards that were finished before."""
        (self.output / JOURNAL).unlink(missing_ok=True)
        file, metadata = ShardedFile.open_with_metadata(self.output)
        self._refuse_other_terms(metadata.get("terms", {}))
        skipped = tuple((name, "left out before") for name in metadata["skipped"])
        return PackReport(self.output, len(file), file.num_frames, file.num_bytes, skipped)

    def _terms(self) -> dict[str, Any]:
        """What must be the same for one call to go on where another broke off."""
        manifest = self.manifest
        rows = [
            [i.name, i.split, i.start, i.end, i.fps, list(manifest.names_of(n)), *([True] if i.reversed else [])]
            for n, i in enumerate(manifest)
        ]
        return {
            "format": self.options.format,
            "short_side": self.options.short_side,
            "quality": self.options.quality,
            "enlarge": self.options.enlarge,
            "shard_bytes": self.shard_bytes,
            "videos": hashlib.sha256(json.dumps([manifest.label_space.to_json(), rows]).encode()).hexdigest(),
        }

    def _refuse_other_terms(self, before: dict[str, Any]) -> None:
        now = self._terms()
        for key, value in now.items():
            if before.get(key) != value:
                what = "other videos or labels" if key == "videos" else f"{key} {before.get(key)} and not {value}"
                raise ValueError(f"{self.output}: was begun with {what}; give the same to resume, or --overwrite it")

    def _take_up(self) -> None:
        """Read the journal, believe what the files bear out, and cut off the rest."""
        path = self.output / JOURNAL
        lines = path.read_bytes().split(b"\n")[:-1]  # a line without its end was cut off
        try:
            terms, *entries = [json.loads(line) for line in lines]
        except ValueError as error:
            raise ValueError(f"{path}: is damaged; begin anew with --overwrite (overwrite=True in Python)") from error
        self._refuse_other_terms(terms)
        sizes = {path.name: path.stat().st_size for path in _shards_in(self.output)}
        shard, end = 0, 0
        for entry in entries:
            if "skipped" not in entry:
                if sizes.get(_shard_name(entry["shard"]), 0) < entry["end"] or not self._is_there(entry):
                    break
                shard, end = entry["shard"], entry["end"]
                self.lengths.append(np.array(entry["lengths"], np.int32))
            self.entries.append(entry)
        for extra in _shards_in(self.output):
            if extra.name > _shard_name(shard):
                extra.unlink()
        first = self.output / _shard_name(shard)
        first.touch()
        self.shard, self.file = shard, open(first, "r+b")  # noqa: SIM115 – closed by close()
        self.file.truncate(end)
        self.file.seek(end)
        kept = b"\n".join([*lines[: 1 + len(self.entries)], b""])
        with written_whole(path) as partial:
            partial.write_bytes(kept)

    def _is_there(self, entry: dict[str, Any]) -> bool:
        """Whether a video begins where the journal says: after a power failure there may be zeros."""
        with open(self.output / _shard_name(entry["shard"]), "rb") as file:
            file.seek(entry["start"])
            return file.read(_BLOCK)[257:262] == b"ustar"


def _shard_name(number: int) -> str:
    return f"shard-{number:06d}.tar"


def _shards_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("shard-*.tar"))


def _tar_header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    # USTAR holds members below 8 GiB; GNU's form of larger sizes is read everywhere.
    return info.tobuf(tarfile.GNU_FORMAT if size >= 8 * 2**30 else tarfile.USTAR_FORMAT)


def _offsets(format: str, start: int, lengths: NDArray[np.int32]) -> NDArray[np.int64]:
    """Of a video's frames in their shard, the video's first header being at ``start``."""
    steps = lengths.astype(np.int64)
    if format != "h264":  # a member for each frame
        steps = _BLOCK + -(-steps // _BLOCK) * _BLOCK
    return start + _BLOCK + np.concatenate([[0], np.cumsum(steps)[:-1]])


def _write_index(path: Path, tensors: dict[str, NDArray[Any]], metadata: dict[str, Any]) -> None:
    from safetensors.numpy import save_file

    arrays = {name: np.ascontiguousarray(tensor, _TENSORS[name]) for name, tensor in tensors.items()}
    with written_whole(path) as partial:
        save_file(arrays, partial, {_KEY: json.dumps(metadata)})


def encode_intra(frames: NDArray[np.uint8], quality: int) -> list[bytes]:
    """(N, H, W, 3) RGB as N pieces of an H.264 stream, each of which decodes by itself.

    Sides that are odd, which 4:2:0 does not know, get one more row or column, a copy of the last.
    """
    import av

    height, width = frames.shape[1:3]
    if height % 2 or width % 2:
        frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    codec: Any = av.CodecContext.create("libx264", "w")
    codec.width, codec.height, codec.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
    codec.thread_count = 1
    codec.options = {
        "preset": "veryfast",
        "tune": "fastdecode",
        # A constant quantiser: a rate factor spends little on streams of keyframes alone. 17 is about JPEG's 90 to 95.
        "qp": str(round(min(51, 17 + (95 - quality) * 0.4))),
        # Every picture a keyframe with the headers before it; nothing held back.
        "x264-params": "keyint=1:scenecut=0:bframes=0:repeat-headers=1:annexb=1:rc-lookahead=0:sync-lookahead=0",
    }
    codec.time_base = Fraction(1, 25)
    packets: list[Any] = []
    for number, picture in enumerate(frames):
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame.pts = number
        packets += codec.encode(frame)
    packets += codec.encode(None)
    if len(packets) != len(frames):
        raise ValueError(f"the encoder gave {len(packets)} pictures for {len(frames)}")
    return [bytes(packet) for packet in packets]


# Reading


class ShardedFile:
    """Shards, opened for reading: ``frames(i)`` are the frames of the i-th video.

    The index is mapped into memory and shards are opened on first use, in each process by itself; pickling passes on
    where they lie.
    """

    def __init__(self, path: Path, pixel_format: ShardFormat, layout: dict[str, tuple[list[int], int]], size: int):
        self.path = path
        self.pixel_format = pixel_format
        self._layout = layout  # tensor -> shape, position in the index
        self._size = size  # of the index
        self._tensors: dict[str, NDArray[Any]] | None = None
        self._files: OrderedDict[int, io.FileIO] = OrderedDict()

    @classmethod
    def open_with_metadata(cls, path: str | os.PathLike[str]) -> tuple[ShardedFile, dict[str, Any]]:
        """With the metadata: the classes, and each video's path, label, split and so on.

        Raises ValueError for a folder that is missing, unfinished or no shards, and for shards that are missing.
        """
        path = Path(os.path.abspath(path))
        index = path / INDEX
        if not index.is_file() and (path / JOURNAL).is_file():
            raise ValueError(
                f"{path}: its shards were begun and not finished; finish them: clipwise data pack … --resume"
            )
        try:
            with open(index, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                length = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(length)) if length <= size - 8 else {}
            metadata = json.loads(header.pop("__metadata__")[_KEY])
            layout = {name: (header[name]["shape"], 8 + length + header[name]["data_offsets"][0]) for name in _TENSORS}
            end = 8 + length + max(entry["data_offsets"][1] for entry in header.values())
            pixel_format = metadata["pixel_format"]
        except OSError as error:
            raise ValueError(f"{index}: cannot be read ({error.strerror})") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{index}: not the index of shards, or cut off; write it with: clipwise data pack"
            ) from error
        if size != end:
            raise ValueError(f"{index}: {size} bytes where {end} were written; copy it again, or pack again")
        file_ = cls(path, pixel_format, layout, size)
        for number, expected in enumerate(file_._mapped()["shard_bytes"].tolist()):
            file_._check(number, expected)
        return file_, metadata

    def _check(self, number: int, expected: int) -> None:
        shard = self.path / _shard_name(number)
        size = shard.stat().st_size if shard.is_file() else None
        if size != expected:
            what = "is missing" if size is None else f"has {size} bytes where {expected} were written"
            raise ValueError(f"{shard}: {what}; copy it again")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tensors": None, "_files": OrderedDict()}

    def __len__(self) -> int:
        return self._layout["size"][0][0]

    @property
    def num_frames(self) -> int:
        """Of all videos."""
        return self._layout["offset"][0][0]

    @property
    def num_bytes(self) -> int:
        """Of all shards."""
        return int(self._mapped()["shard_bytes"].sum())

    def frames(self, index: int, path: str | None = None, fps: float | None = None) -> ShardedFrames:
        """The frames of video ``index``; path and fps are what the result is to say about itself."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self.path}: video {index} of {len(self)}")
        tensors = self._mapped()
        first, last = (int(offset) for offset in tensors["video_offset"][index : index + 2])
        height, width = tensors["size"][index].tolist()
        return ShardedFrames(
            path or f"{self.path}[{index}]",
            fps,
            (height, width),
            self,
            int(tensors["shard"][index]),
            tensors["offset"][first:last],
            tensors["length"][first:last],
        )

    def read(self, shard: int, start: int, length: int) -> memoryview:
        """``length`` bytes of a shard. Raises DecodeError."""
        data = np.empty(length, np.uint8).data
        self.read_into(shard, start, data)
        return data

    def read_into(self, shard: int, start: int, out: memoryview) -> None:
        """Fill ``out``, which is contiguous, with a shard's bytes. Raises DecodeError."""
        file = self._files.pop(shard, None)
        try:
            if file is None:
                file = open(self.path / _shard_name(shard), "rb", buffering=0)  # noqa: SIM115 – kept open
            self._files[shard] = file
            while len(self._files) > _OPEN_FILES:
                self._files.popitem(last=False)[1].close()
            length = _read_at(file, start, out)
        except OSError as error:
            raise DecodeError(str(self.path / _shard_name(shard)), f"cannot be read ({error.strerror})") from error
        if length != out.nbytes:
            raise DecodeError(str(self.path / _shard_name(shard)), "is cut off; copy it again")

    def _mapped(self) -> dict[str, NDArray[Any]]:
        if self._tensors is None:
            index = self.path / INDEX
            try:
                whole = np.memmap(index, dtype=np.uint8, mode="r").view(np.ndarray)
            except (OSError, ValueError) as error:
                raise DecodeError(str(index), f"cannot be read any more ({error}); open it again") from error
            if len(whole) != self._size:
                raise DecodeError(str(index), "changed since it was opened; open it again")
            self._tensors = {}
            for name, (shape, position) in self._layout.items():
                size = int(np.prod(shape)) * _TENSORS[name].itemsize
                self._tensors[name] = whole[position : position + size].view(_TENSORS[name]).reshape(shape)
        return self._tensors


def _read_at(file: io.FileIO, start: int, out: memoryview) -> int:
    """Fill ``out`` from a file that others, too, read from; the number of bytes that were there."""
    if hasattr(os, "preadv"):
        # Neither moves a position that forked workers would share, nor maps memory that counts as theirs.
        return os.preadv(file.fileno(), [out], start)
    # Windows, where nothing forks: a process has its files to itself, though not a thread.
    with _seeking:
        file.seek(start)
        return file.readinto(out)


class ShardedFrames:
    """The frames of one video in shards; see ``clipwise.data.decode.Frames``."""

    def __init__(
        self,
        path: str,
        fps: float | None,
        size: tuple[int, int],
        file: ShardedFile,
        shard: int,
        offsets: NDArray[np.int64],
        lengths: NDArray[np.int32],
    ) -> None:
        self.path = path
        self.fps = fps
        self.num_frames = len(offsets)
        self._size = size
        self._file = file
        self._shard = shard
        self._offsets = offsets
        self._lengths = lengths

    def read(self, indices: Sequence[int] | NDArray[np.integer[Any]]) -> NDArray[np.uint8]:
        """(len(indices), H, W, 3) RGB in the order asked. Raises IndexError, DecodeError (damaged frame)."""
        places: dict[int, list[int]] = {}
        for position, index in enumerate(indices):
            if not 0 <= index < self.num_frames:
                raise IndexError(f"{self.path}: frame {index} of {self.num_frames}")
            places.setdefault(int(index), []).append(position)
        frames = np.empty((len(indices), *self._size, 3), np.uint8)
        numbers = sorted(places)
        if self._file.pixel_format == "uint8":
            self._fetch(numbers, frames, places)
        else:
            decode = {"jpeg": self._decode_jpeg, "h264": self._decode_h264}[self._file.pixel_format]
            decode(numbers, self._stored(numbers), frames, places)
        return frames

    def _fetch(self, numbers: list[int], frames: NDArray[np.uint8], places: dict[int, list[int]]) -> None:
        """Frames that are stored as they are, read to where they are wanted."""
        for number in numbers:
            if self._lengths[number] != frames[0].nbytes:
                error = ValueError(f"{self._lengths[number]} bytes where {frames[0].nbytes} were written")
                raise self._damaged(number, error)
            first, *others = places[number]
            self._file.read_into(self._shard, int(self._offsets[number]), frames[first].data)
            for position in others:
                frames[position] = frames[first]

    def _stored(self, numbers: list[int]) -> list[memoryview]:
        """The bytes of frames in rising order; those close together in one read."""
        starts = self._offsets[numbers].tolist()
        ends = [start + length for start, length in zip(starts, self._lengths[numbers].tolist(), strict=True)]
        stored: list[memoryview] = []
        first = 0
        for place in range(len(starts)):
            if place + 1 < len(starts) and starts[place + 1] - ends[place] <= _GAP:
                continue
            data = self._file.read(self._shard, starts[first], ends[place] - starts[first])
            stored += [data[starts[k] - starts[first] : ends[k] - starts[first]] for k in range(first, place + 1)]
            first = place + 1
        return stored

    def _decode_jpeg(
        self, numbers: list[int], stored: list[memoryview], frames: NDArray[np.uint8], places: dict[int, list[int]]
    ) -> None:
        from PIL import Image

        for number, data in zip(numbers, stored, strict=True):
            try:
                with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
                    pixels = np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
                if pixels.shape[:2] != self._size:
                    raise ValueError(f"{pixels.shape[:2]} pixels where {self._size} were written")
            except (OSError, ValueError, SyntaxError) as error:
                raise self._damaged(number, error) from error
            for position in places[number]:
                frames[position] = pixels

    def _decode_h264(
        self, numbers: list[int], stored: list[memoryview], frames: NDArray[np.uint8], places: dict[int, list[int]]
    ) -> None:
        import av
        import av.error
        import av.video.reformatter

        codec: Any = av.CodecContext.create("h264", "r")
        codec.thread_count = 1
        reformatter = av.video.reformatter.VideoReformatter()
        missing = set(numbers)
        height, width = self._size
        try:
            for number, data in [*zip(numbers, stored, strict=True), (-1, None)]:
                packet = None
                if data is not None:
                    packet = av.Packet(bytes(data))
                    packet.pts = packet.dts = number
                for frame in codec.decode(packet):
                    rgb = reformatter.reformat(frame, format="rgb24", threads=1)
                    if frame.pts not in missing or rgb.height < height or rgb.width < width:
                        raise ValueError("it is not what was written")
                    missing.remove(frame.pts)
                    pixels = rgb_pixels(rgb)[:height, :width]
                    for position in places[frame.pts]:
                        frames[position] = pixels
        except (av.error.FFmpegError, ValueError) as error:
            raise self._damaged(min(missing, default=numbers[-1]), error) from error
        if missing:
            raise self._damaged(min(missing), ValueError("it does not decode"))

    def _damaged(self, number: int, error: Exception) -> DecodeError:
        shard = _shard_name(self._shard)
        return DecodeError(self.path, f"frame {number} is damaged ({error}); copy {shard} again")

    def close(self) -> None:
        """Nothing to do: the shards stay open for other videos."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
