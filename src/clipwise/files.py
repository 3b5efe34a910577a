"""Small things done with files in several places; above all, writing them whole or not at all."""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["file_sha256", "portable_path", "write_json", "written_whole"]


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Write to a file beside ``path`` that takes its place at the end, so that none is ever found half-written."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        mask = os.umask(0)
        os.umask(mask)
        partial.chmod(0o666 & ~mask)  # mkstemp's 0600 is for secrets
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all."""
    with written_whole(path) as partial:
        partial.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def portable_path(path: Path, start: Path) -> str:
    """``path`` as seen from the folder ``start``, or absolute where there is no way (another drive)."""
    try:
        return os.path.relpath(path, start)
    except ValueError:
        return os.path.abspath(path)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
