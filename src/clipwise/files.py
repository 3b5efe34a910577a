"""Small things done with files in several places; above all, writing them whole or not at all."""

import contextlib
import errno
import hashlib
import json
import os
import platform
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "check_writable",
    "file_sha256",
    "held_alone",
    "name_for_result",
    "portable_path",
    "printable",
    "write_json",
    "written_whole",
]


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


def printable(text: str | Path) -> str:
    """A text with file names in it, or such a name: with � for each byte of them that is no UTF-8."""
    return str(text).encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all, from which names that are no UTF-8 are read back as they were."""
    with written_whole(path) as partial, partial.open("w", encoding="utf-8", errors="backslashreplace") as file:
        # In a JSON string such a backslash begins an escape, that of the character which Python has for the byte.
        file.write(json.dumps(value, indent=1, ensure_ascii=False) + "\n")


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


def check_writable(output: Path) -> None:
    """Make the folder of a file that is to be written at the end of some work, before the work.

    Raises:
        ValueError: if nothing can be written there.
    """
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output.parent):
            pass
    except OSError as error:
        raise ValueError(f"{output}: cannot be written ({error.strerror}); give another name") from error


def name_for_result(target: Path, record: dict[str, Any], condition: Callable[[dict[str, Any]], Any]) -> Path:
    """``target``, or where it holds a result of another condition, the same name and eight digits of this one's."""

    def digits(record: dict[str, Any]) -> str:
        return hashlib.sha256(json.dumps(condition(record), sort_keys=True).encode()).hexdigest()[:8]

    tag = digits(record)
    try:
        same = not target.exists() or digits(json.loads(target.read_text(encoding="utf-8"))) == tag
    except (ValueError, KeyError, TypeError, AttributeError):  # it is no such result
        same = False
    return target if same else target.with_stem(f"{target.stem}_{tag}")
