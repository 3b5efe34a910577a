"""Packet indices kept on disk, so that the next epoch, worker or run does not read a long file's packets again.

Measured (``index`` in benchmarks/results/loader_cpu_2cores.json): for a clip of some seconds, making the index takes 0
to 4 % of reading 8 frames from it, and keeping it does not pay. A segment of a file of five minutes takes 1.5 to 2.4
times as long to read without it; where frames can only be counted by decoding them, making it decodes the whole file.
Those are kept (:func:`worth_keeping`), each in a file of its own, in a folder beside the manifest.
"""

import hashlib
import json
import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from clipwise.data.decode import PacketIndex
from clipwise.files import written_whole

__all__ = ["FOLDER", "IndexCache", "worth_keeping"]

FOLDER = ".clipwise-index"
_VERSION = 1
_LONG = 1500  # packets
_ARRAYS = ("pts", "places", "keys", "frames")


def worth_keeping(index: PacketIndex) -> bool:
    """Whether reading the index from disk is faster than making it, by enough to matter."""
    return index.counted or (index.can_seek and len(index.pts) >= _LONG)


class IndexCache:
    """The indices of the videos below ``root`` (or elsewhere), in the folder ``root/.clipwise-index``.

    An index is found by the video's path and believed if its size and time of change are what they were, and FFmpeg is
    the same. Writing is whole or not at all, and two processes may write the same; where nothing can be written,
    nothing is, and a file that is damaged counts as absent.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = os.path.abspath(root)

    def get(self, path: str) -> PacketIndex | None:
        """The index of a video, None if it is not kept or the video has changed."""
        try:
            with open(self._place(path), "rb") as file:
                data = file.read()
            length = int.from_bytes(data[:8], "little")
            header = json.loads(data[8 : 8 + length])
            if header["key"] != self._key(path):
                return None
            arrays: dict[str, Any] = {}
            position = 8 + length
            for name, count in zip(_ARRAYS, header["counts"], strict=True):
                arrays[name] = np.frombuffer(data, np.int64, count, position)
                position += 8 * count
            if position != len(data):
                return None
            fields = header["index"]
            return PacketIndex(**{**fields, "time_base": Fraction(*fields["time_base"])}, **arrays)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def put(self, path: str, index: PacketIndex) -> None:
        """Keep the index of a video, if that can be done and is worth it."""
        if not worth_keeping(index):
            return
        arrays = [np.ascontiguousarray(getattr(index, name), np.int64) for name in _ARRAYS]
        try:
            header = json.dumps(
                {
                    "key": self._key(path),
                    "counts": [len(array) for array in arrays],
                    "index": {
                        "codec": index.codec,
                        "container": index.container,
                        "time_base": list(index.time_base.as_integer_ratio()),
                        "rate": index.rate,
                        "num_frames": index.num_frames,
                        "counted": index.counted,
                    },
                }
            ).encode()
            header += b" " * (-len(header) % 8)
            place = Path(self._place(path))
            place.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(place) as partial:
                partial.write_bytes(b"".join([len(header).to_bytes(8, "little"), header, *map(bytes, arrays)]))
        except OSError:  # a folder that may not be written to, a full disk: do without
            return

    def _place(self, path: str) -> str:
        # A text, not a Path, which takes as long to put together as a file that is not there to be missed.
        name = hashlib.sha256(os.fsencode(self._name(path))).hexdigest()
        return os.path.join(self.root, FOLDER, name[:2], f"{name[2:32]}.index")

    def _name(self, path: str) -> str:
        """A video's name wherever the whole folder lies."""
        path = os.path.abspath(path)
        return os.path.relpath(path, self.root) if path.startswith(self.root + os.sep) else path

    def _key(self, path: str) -> list[Any]:
        import av

        status = os.stat(path)
        ffmpeg = ".".join(map(str, av.library_versions["libavformat"]))
        name = os.fsencode(self._name(path)).hex()
        return [_VERSION, name, status.st_size, status.st_mtime_ns, ffmpeg]
