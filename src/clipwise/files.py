"""Small things done with files in several places; above all, writing them whole or not at all."""

import contextlib
import errno
import hashlib
import json
import os
import platform
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["file_sha256", "held_alone", "portable_path", "write_json", "written_whole"]


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


@contextlib.contextmanager
def held_alone(path: Path) -> Iterator[None]:
    """Keep other processes from using ``path``, which need not exist, by a locked file beside it.

    The lock ends with this process however it ends. (A record lock, which also works over NFS and which processes that
    are forked meanwhile do not hold on to.) Where system or file system have none, nobody is kept from anything.

    Raises:
        ValueError: if another process holds it.
        OSError: if no file can be written there.
    """
    if fcntl is None:
        yield
        return
    made = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    try:
        with _locked(lock) as file:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}\n")
            file.flush()
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
    finally:
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()  # if nothing was written there


def _locked(lock: Path) -> TextIO:
    while True:
        file = lock.open("a+", encoding="utf-8")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):  # a file system without locks
                return file
            file.seek(0)
            holder = file.read().strip()
            file.close()
            name = lock.name.removeprefix(".").removesuffix(".lock")
            raise ValueError(f"{lock.with_name(name)}: is in use by {holder or 'another process'}") from error
        with contextlib.suppress(FileNotFoundError):
            # Its holder may have deleted it since it was opened, and another have made it anew.
            if os.path.samestat(os.fstat(file.fileno()), lock.stat()):
                return file
        file.close()


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
