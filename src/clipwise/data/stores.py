"""What a manifest's frames can lie in besides files of their own: packs, shards, memory."""

from pathlib import Path
from typing import Protocol

from clipwise.data.decode import Frames

__all__ = ["INDEX", "JOURNAL", "FrameStore", "is_shards"]

INDEX = "index.safetensors"
"""Of finished shards: where each frame lies."""
JOURNAL = "unfinished.jsonl"
"""Of unfinished ones: which videos are whole."""


class FrameStore(Protocol):
    """The frames of many videos, by number. It can be pickled, and forked workers share it."""

    def __len__(self) -> int: ...

    def frames(self, index: int, path: str | None = None, fps: float | None = None) -> Frames:
        """Those of video ``index``; path and fps are what the result is to say about itself."""
        ...


def is_shards(folder: Path) -> bool:
    """Whether a folder holds shards, finished or not."""
    return (folder / INDEX).is_file() or (folder / JOURNAL).is_file()
