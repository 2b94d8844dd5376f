"""One process at a time, on one machine or on a shared disk."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait for the lock of a file, which is made; the lock of a process that was killed is open."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        with contextlib.suppress(OSError):  # some network disks have no locks: then nothing waits
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
