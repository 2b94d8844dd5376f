"""The file from which a comparison that was killed goes on."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

from filelock import Timeout

from rpf_lightning.files import locked

PROGRESS = "progress.jsonl"

logger = logging.getLogger(__name__)
Row = dict[str, Any]


class Progress:
    """Values that were measured, a JSON object per line; the first line says what they depend on.

    Args:
        path: The file.
        setup: What the values depend on; None keeps no file.
    """

    def __init__(self, path: Path, setup: Mapping[str, Any] | None) -> None:
        self.path, self.setup = path, None if setup is None else json.loads(json.dumps(setup))

    def read(self) -> list[Row]:
        """Return the rows of a comparison like this one; a torn last line is dropped, another's file is renamed."""
        if not self.path.is_file():
            return []
        lines = self.path.read_bytes().split(b"\n")[:-1]  # what follows the last line's end is torn
        try:
            header, *rows = [json.loads(line) for line in lines]
        except ValueError:  # empty, or torn by a crash of the machine
            header, rows = {}, []
        if self.setup is None or header != self.setup:
            known = self.setup or {}
            header = header if isinstance(header, dict) else {}
            differing = sorted(key for key in {*header, *known} if header.get(key) != known.get(key))
            kept = self._kept()
            self.path.rename(kept)
            logger.warning(
                "%s: starts anew, the unfinished comparison there differs in: %s; it is kept as %s",
                self.path, ", ".join(differing) or "nothing that is known", kept.name,
            )  # fmt: skip
            return []
        whole = b"".join(line + b"\n" for line in lines)
        if self.path.stat().st_size != len(whole):
            with self.path.open("r+b") as file:
                file.truncate(len(whole))
        return rows

    def append(self, rows: Sequence[Row]) -> None:
        """Add rows."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.setup is None:
            return
        lines = [*([] if self.path.is_file() else [self.setup]), *rows]
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(json.dumps(line, allow_nan=False) + "\n" for line in lines))
        except OSError as error:  # a full disk has no name
            error.filename = error.filename or str(self.path)
            raise

    def _kept(self) -> Path:
        """A name beside the file that is not taken."""
        names = (self.path.with_name(f"{self.path.stem}.{n}{self.path.suffix}") for n in count(1))
        return next(path for path in names if not path.exists())


@contextmanager
def sole_evaluation(out: Path) -> Iterator[None]:
    """Keep another evaluation out of a folder of results; the lock of a process that was killed is open.

    Args:
        out: The folder; made if it is missing, and removed again if nothing was written into it.

    Raises:
        FileExistsError: If another evaluation is at work there.
    """
    made, lock = not out.is_dir(), out / ".lock"
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(lock, blocking=False))
        except Timeout as error:
            raise FileExistsError(
                f"{out}: another evaluation writes there; wait for its end, or take another folder"
            ) from error
        try:
            yield
        finally:
            with suppress(OSError):  # Windows keeps what is open
                if made and [file.name for file in out.iterdir()] == [lock.name]:
                    lock.unlink()
                    out.rmdir()
