"""Files that are there whole or not at all, and locks beside them."""

import errno
from contextlib import nullcontext

import pytest
from filelock import FileLock, Timeout

from rpf_lightning.files import locked


def test_a_lock_keeps_others_out_and_is_given_back(tmp_path):
    lock = tmp_path / "folder" / ".lock"
    with locked(lock), pytest.raises(Timeout), locked(lock, blocking=False):
        raise AssertionError("both at once")
    with locked(lock, blocking=False):
        pass


@pytest.mark.parametrize(
    ("number", "held"), [(errno.ENOLCK, True), (errno.EOPNOTSUPP, True), (errno.EACCES, False)]
)
def test_a_disk_without_locks_keeps_nobody_out(number, held, tmp_path, monkeypatch):
    def acquire(*_, **__):
        raise OSError(number, "no")

    monkeypatch.setattr(FileLock, "acquire", acquire)
    outcome = nullcontext() if held else pytest.raises(OSError, match="no")
    with outcome, locked(tmp_path / ".lock"):
        (tmp_path / "entered").touch()
    assert (tmp_path / "entered").exists() is held
