"""Stopping a command: SIGTERM and a closed terminal stop it as Ctrl-C does."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
CLEANING = (
    5.0  # seconds in which further signals are ignored: a launcher sends several, files are being removed
)


class Stopped(KeyboardInterrupt):
    """A signal, named by its argument.

    Where a `KeyboardInterrupt` itself passes through `exec` of a text, as of a dataclass, Python remembers it and ends
    with SIGINT's exit code, whoever has caught it.
    """


@contextmanager
def stoppable(command: str, goes_on: str = "") -> Iterator[None]:
    """Turn signals into a KeyboardInterrupt, so that whatever runs cleans up, and end with 128 + the signal's number.

    A signal that is ignored, as under `nohup`, stays so. Lightning hears SIGTERM as well, but then ends a fit with
    exit code 0 and goes on with a prediction.

    Args:
        command: Begins the line that is said.
        goes_on: What the user can do to go on; ends that line.

    Raises:
        SystemExit: If a signal came.
    """
    if threading.current_thread() is not threading.main_thread():  # only that one may handle signals
        yield
        return
    first: list[tuple[int, float]] = []

    def stop(number: int, frame: FrameType | None) -> None:
        if first and time.monotonic() < first[0][1] + CLEANING:
            return
        first.append((number, time.monotonic()))
        raise Stopped(signal.Signals(number).name)

    before = {number: signal.getsignal(number) for number in SIGNALS}
    taken = [number for number, handler in before.items() if handler not in (signal.SIG_IGN, None)]
    for number in taken:
        signal.signal(number, stop)
    try:
        yield
    except BaseException:
        # Lightning makes an exit of an interrupt, and processes whose peers went raise what they like
        if not first:
            raise
        text = f"{command}: stopped by {signal.Signals(first[0][0]).name}"
        print(f"{text}; {goes_on}" if goes_on else text, file=sys.stderr)
        sys.exit(128 + first[0][0])
    finally:
        for number in taken:
            signal.signal(number, before[number])
