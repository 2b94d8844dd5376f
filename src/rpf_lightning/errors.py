"""Errors that a command tells in a line, without a traceback."""

from __future__ import annotations

import errno
import os

FULL = (errno.ENOSPC, errno.EDQUOT)
CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS)


class RefusedError(ValueError):
    """What is found wrong before anything has begun."""


class DamagedError(ValueError):
    """A file that does not hold what was written into it; the message names it."""

    def __init__(self, message: str) -> None:
        # a loader's process hands an error over with its traceback, and the message at the end
        super().__init__(message.rpartition(f"{type(self).__name__}: ")[2].strip())


def disk_trouble(error: BaseException) -> str | None:
    """Say in a line what a full disk, or a file or folder without permission, has stopped; None: it is another error.

    Args:
        error: What was raised.
    """
    if not isinstance(error, OSError) or error.errno not in (*FULL, *CLOSED):
        return None
    own = error.strerror != os.strerror(error.errno)  # a sentence of this package
    text = f"{error.strerror}" if error.filename is None else f"{error.filename}: {error.strerror}"
    if own or error.errno not in FULL:
        return text
    return f"{text}. Nothing is half-written; make room and start the same command again"
