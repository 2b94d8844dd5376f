"""One process at a time."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from rpf_lightning.data.locking import locked

OTHER = """
import sys, time
from pathlib import Path
from rpf_lightning.data.locking import locked
lock, ready, inside = map(Path, sys.argv[1:])
ready.touch()
with locked(lock):
    inside.touch()
    time.sleep(600)
"""


def wait_for(path: Path) -> None:
    began = time.monotonic()
    while not path.exists():
        assert time.monotonic() - began < 60, path
        time.sleep(0.05)


@pytest.mark.skipif(sys.platform == "win32", reason="no flock")
def test_others_wait_and_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    lock, ready, inside = tmp_path / "new folder" / ".lock", tmp_path / "ready", tmp_path / "inside"
    with locked(lock):
        other = subprocess.Popen([sys.executable, "-c", OTHER, str(lock), str(ready), str(inside)])
        wait_for(ready)
        time.sleep(0.5)
        assert not inside.exists()
    wait_for(inside)
    other.kill()
    other.wait()
    with locked(lock):  # would wait for ten minutes
        assert lock.exists()
