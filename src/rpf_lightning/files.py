"""Files that are there whole or not at all, and locks beside them."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Write a file under a temporary name beside it and rename it: never half a file.

    Raises:
        OSError: If it cannot be written, as on a full disk; it names the file.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if (
            error.errno and error.filename is None
        ):  # of a full disk, which says nothing about what was written
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def read_utf8(path: Path) -> str:
    """Read a text file in UTF-8, with or without a byte order mark.

    Raises:
        ValueError: If it is in another encoding, as spreadsheets may save it; the message says what to do.
    """
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
        if "\0" not in text:
            return text
        found = "it looks like UTF-16"
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        utf16 = content.startswith((b"\xff\xfe", b"\xfe\xff"))
        found = "it looks like UTF-16" if utf16 else f"byte {content[error.start]:#04x} in line {line}"
    raise ValueError(
        f"{path}: expected text in UTF-8, {found}; save it as UTF-8 (in a spreadsheet: 'CSV UTF-8')"
    )


@contextmanager
def locked(path: Path, blocking: bool = True) -> Iterator[None]:
    """Hold a lock file, whose folder is made; the lock of a process that was killed is open.

    On a disk without locks, as some network disks are, nothing is held.

    Raises:
        filelock.Timeout: If another process holds it, and not `blocking`.
    """
    lock = FileLock(path, blocking=blocking)
    try:
        lock.acquire()
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP):
            raise
    try:
        yield
    finally:
        lock.release()
