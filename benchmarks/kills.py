"""Whether long commands survive: each is killed at random moments until it ends, and its files are compared.

    python benchmarks/kills.py --kills 10
    python benchmarks/kills.py --kills 10 --only export

Of every command one run is left alone. Then it is started in an empty folder, gets a signal (kill -9, SIGTERM, in turn)
at a moment drawn between the first thing that it writes and somewhat after its end, and is started again in the same
way, until it ends by itself; then in another folder, until there were enough kills. At the end all results' bytes must
be those of the undisturbed run, and nothing else should lie there. SIGTERM must leave no
temporary file and end with 143, or with -15 where Python itself has not begun or has all but ended. All
is small and drawn, but for NASA's photo for `rpf enhance`.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import measure
import small_work

STOPS = (signal.SIGKILL, signal.SIGTERM)
# logs have times, a lock is empty; a curriculum's results are the model and what was finished
SKIPPED = {"logs", ".lock", "panels", "checkpoints", "cache"}
SUFFIX = {"export": ".pt2"}


def started(words: str, place: Path) -> subprocess.Popen[bytes]:
    """Start a command in the folder of its results."""
    with (place.parent / "said.txt").open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "rpf_lightning", *words.split(), place.name], cwd=place.parent, stdout=file,
            stderr=file, env={**os.environ, "RPF_OFFLINE": "1", "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip


def said(place: Path) -> str:
    """The end of what commands have said there."""
    return (place.parent / "said.txt").read_text()[-3000:]


def results(place: Path) -> dict[str, str]:
    """Name -> SHA-256 of what lies there; of `results.json` without the seconds that it took."""
    files = [place] if place.is_file() else [file for file in place.rglob("*") if file.is_file()]
    found = {}
    for file in files:
        name = file.relative_to(place).as_posix() if file != place else place.name
        if not SKIPPED & set(Path(name).parts):
            found[name] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found


def written(place: Path) -> set[tuple[Path, int]]:
    """Files and folders there, and those with a temporary name beside it, with their times."""
    there = [place, *place.rglob("*"), *place.parent.glob(f".{place.name}*")]
    return {(path, path.stat().st_mtime_ns) for path in there if path.exists()}


def temporary(place: Path) -> set[Path]:
    """Of these the ones with a temporary name."""
    return {path for path, _ in written(place) if path.name.startswith(".") and path.name not in SKIPPED}


def series(name: str, place: Path, span: float, stops: Iterator[signal.Signals], dice: random.Random) -> int:
    """Run a command until it ends by itself, with kills.

    Args:
        name: Of `COMMANDS`.
        place: Of its results, in the folder where it runs.
        span: Seconds between what it writes first and its end.
        stops: The signals.
        dice: Draws the moments.

    Returns:
        Number of kills.

    Raises:
        RuntimeError: If it ends with an error, or a SIGTERM does not end it as it should.
    """
    for kills in count():
        stop, moment, before, left = (
            next(stops),
            dice.uniform(0, 1.4 * span),
            written(place),
            temporary(place),
        )
        process = started(small_work.COMMANDS[name], place)
        while process.poll() is None and written(place) == before:
            time.sleep(0.01)
        try:
            process.wait(moment)
        except subprocess.TimeoutExpired:
            process.send_signal(stop)
            process.wait()
        if process.returncode == 0:
            return kills
        if process.returncode not in (
            -stop,
            128 + stop,
        ):  # -SIGTERM: Python itself begins, or ends after all is done
            raise RuntimeError(f"{name}: ended with {process.returncode}\n{said(place)}")
        if stop == signal.SIGTERM and (new := temporary(place) - left):
            raise RuntimeError(f"{name}: SIGTERM left {new}")
    raise AssertionError


def work(source: Path, folder: Path) -> Path:
    """A folder with links to the work."""
    folder.mkdir()
    for path in source.iterdir():
        (folder / path.name).symlink_to(path)
    return folder


def main(args: list[str] | None = None) -> None:
    """Print Markdown."""
    parser = measure.parser(__doc__, prepared=False)
    parser.add_argument("--kills", type=int, default=10, help="of every command")
    parser.add_argument("--only", choices=small_work.COMMANDS, nargs="+", default=list(small_work.COMMANDS))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(args)
    rows: list[list[object]] = []
    with tempfile.TemporaryDirectory() as temporary_folder:
        root = Path(temporary_folder)
        source = root / "work"
        small_work.write_album(source, people=8, each=3)
        small_work.write_list(source, 24)
        small_work.write_model(source)
        small_work.write_curriculum(source)
        if "enhance" in options.only:
            small_work.write_photos(source, 8)
        if "evaluate" in options.only:
            started(small_work.COMMANDS["prepare"], source / "prepared").wait()
        for name in options.only:
            rows.append([f"`rpf {name}`", *command(name, source, root / name.replace(" ", ""), options)])
            print(rows[-1], file=sys.stderr)
    print(measure.heading())
    head = ["command", "undisturbed, s", "kills", "ends", "files", "differing", "left over"]
    print("", measure.markdown(head, rows), sep="\n")


def command(name: str, source: Path, root: Path, options: argparse.Namespace) -> list[object]:
    """Run one command undisturbed, then with kills; the cells of its row."""
    root.mkdir()
    dice, file = random.Random(f"{options.seed} {name}"), f"out{SUFFIX.get(name, '')}"
    alone = work(source, root / "alone") / file
    start, process = time.monotonic(), started(small_work.COMMANDS[name], alone)
    while process.poll() is None and not written(alone):
        time.sleep(0.01)
    first = time.monotonic()
    if process.wait() != 0:
        raise RuntimeError(f"{name}: {said(alone)}")
    end = time.monotonic()
    expected, stops = results(alone), (STOPS[number % 2] for number in count())
    kills = ends = differing = left = 0
    while kills < options.kills:
        place = work(source, root / str(ends)) / file
        kills += series(name, place, end - first, stops, dice)
        ends += 1
        found = results(place)
        wrong = [key for key, value in expected.items() if found.get(key) != value]
        over = [*(key for key in found if key not in expected), *map(str, temporary(place))]
        if wrong or over:
            print(f"{name}: differing {wrong}, left over {over}", file=sys.stderr)
        differing += len(wrong)
        left += len(over)
        shutil.rmtree(place.parent)
    return [f"{end - start:.1f}", kills, ends, len(expected), differing, left]


if __name__ == "__main__":
    main()
