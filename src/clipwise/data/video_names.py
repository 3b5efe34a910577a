"""What stands for a video, by names alone: a video file, or a folder of numbered JPEG frames.

Of the standard library alone, so that whatever only lists folders need not wait for NumPy.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

__all__ = ["frame_number", "is_video_file", "why_no_frames"]

# fmt: off
_VIDEO_SUFFIXES = frozenset({
    ".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv",
    ".ts", ".vob", ".webm", ".wmv",
})
# fmt: on
_FRAME = re.compile(r"^(.*?)(\d+)\.jpe?g$", re.IGNORECASE)


def is_video_file(name: str) -> bool:
    """Whether a file of this name is a video."""
    return os.path.splitext(name)[1].lower() in _VIDEO_SUFFIXES


def frame_number(name: str) -> tuple[str, str] | None:
    """What stands before a frame's number, and its digits: ``img_00001.jpg`` is ``("img_", "00001")``.

    None for any other file, for optical flow beside the frames (``flow_x_00001.jpg``) and for hidden files.
    """
    match = _FRAME.match(name)
    if match is None or name.startswith(".") or match[1].lower().startswith("flow"):
        return None
    return match[1], match[2]


def why_no_frames(entries: Iterable[os.DirEntry[str]]) -> str | None:
    """What keeps a folder from being one of frames, None where it is one: numbered JPEG files, no video, no folder.

    ``entries``: all in it but hidden ones. Other files (``Thumbs.db``, ``n_frames``) do not matter.
    """
    found = False
    for entry in entries:
        if entry.is_dir():
            return f"it holds a folder, {entry.name}/"
        if is_video_file(entry.name):
            return f"it holds a video, {entry.name}"
        found = found or frame_number(entry.name) is not None
    return None if found else "no numbered JPEG frames lie in it (img_00001.jpg, 000001.jpg …)"
