"""Files that are there whole or not at all, and locks beside them."""

import errno
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock, Timeout

from rpf_lightning.errors import disk_trouble
from rpf_lightning.files import locked, read_utf8, write_atomically


def test_texts_of_other_encodings_are_named(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    text = "lr\nJosé.png\n"
    for encoding in ("utf-8", "utf-8-sig"):
        path.write_bytes(text.encode(encoding))
        assert read_utf8(path) == text
    for encoding, found in (
        ("cp1252", "byte 0xe9 in line 2"),
        ("utf-16", "it looks like UTF-16"),
        ("utf-16-be", "byte 0xe9 in line 2"),
        ("utf-16-le", "byte 0xe9 in line 2"),
    ):
        path.write_bytes(text.encode(encoding))
        with pytest.raises(ValueError, match=f"list.csv: expected text in UTF-8, {found}; save it as UTF-8"):
            read_utf8(path)
    path.write_bytes(b"l\0r\0\n\0")
    with pytest.raises(ValueError, match="it looks like UTF-16"):
        read_utf8(path)


def test_a_lock_keeps_others_out_and_is_given_back(tmp_path: Path) -> None:
    lock = tmp_path / "folder" / ".lock"
    with locked(lock), pytest.raises(Timeout), locked(lock, blocking=False):
        raise AssertionError("both at once")
    with locked(lock, blocking=False):
        pass


def test_a_full_disk_names_the_file_and_leaves_the_old_one(
    tmp_path: Path, disk_full_after_1000_bytes: Any
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"earlier")
    with disk_full_after_1000_bytes, pytest.raises(OSError, match=f"File too large: '{path}'"):
        write_atomically(path, bytes(5000))
    assert path.read_bytes() == b"earlier"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("number", "held"), [(errno.ENOLCK, True), (errno.EOPNOTSUPP, True), (errno.EACCES, False)]
)
def test_a_disk_without_locks_keeps_nobody_out(
    number: int, held: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def acquire(*_: object, **__: object) -> None:
        raise OSError(number, "no")

    monkeypatch.setattr(FileLock, "acquire", acquire)
    outcome = nullcontext() if held else pytest.raises(OSError, match="no")
    with outcome, locked(tmp_path / ".lock"):
        (tmp_path / "entered").touch()
    assert (tmp_path / "entered").exists() is held


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_a_write_that_fails_leaves_what_was_there_and_is_told_in_a_line(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"before")

    def fail(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=str(path)) as error:
        write_atomically(path, b"after")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
    assert path.read_bytes() == b"before"
    text = disk_trouble(error.value)
    assert text is not None
    assert text.startswith(f"{path}: {os.strerror(number)}")
    assert "\n" not in text
    assert ("make room" in text) == (number in (errno.ENOSPC, errno.EDQUOT))
    assert disk_trouble(OSError(errno.EMFILE, "too many files")) is None
    assert disk_trouble(ValueError("no disk")) is None
