"""Files that are there whole or not at all, and locks beside them."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Give a file under a temporary name to write into; it is renamed when that has succeeded: never half a file.

    Raises:
        OSError: With the file's name, also where the disk is full, which Python tells without one.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if error.errno is not None:
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Write a file, whole or not at all; see `replacing`."""
    with replacing(path) as file:
        file.write(content)


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


def read_csv(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str | None]]]]:
    """Read a CSV file in UTF-8 with a header: the names of its columns, and (line number, row).

    Raises:
        ValueError: If it is in another encoding, a column is there twice, or a field is longer than 131,072 characters,
            as where a quotation mark is missing.
    """
    reader = csv.DictReader(io.StringIO(read_utf8(path), newline=""))
    try:
        header = list(reader.fieldnames or [])
        rows = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise ValueError(
            f"{path}, after line {reader.line_num}: {error}; is a quotation mark missing?"
        ) from error
    if twice := [column for column in header if column and header.count(column) > 1]:
        raise ValueError(f"{path}: the column {twice[0]!r} is there twice")
    return header, rows


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: If it is none, or nested too deeply.
    """
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected JSON: {error}") from error


def leads_out(name: str) -> bool:
    r"""Whether a file's name, as a table may have it, leads out of its folder on any system: `../a`, `..\a`, `C:a`."""
    parts = re.split(r"[/\\]", name)
    return not parts[0] or ".." in parts or "\0" in name or re.match("[A-Za-z]:", name) is not None


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
