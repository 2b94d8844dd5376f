"""Whether long commands keep more and more: the resident memory of the process beside what it has done.

    python benchmarks/memory.py --pairs 300

`rpf evaluate`, `rpf enhance --aligned --csv` and `rpf enhance` (a folder of photos) work on as many small pairs; the
memory is sampled 20 times a second, and the means over the first and the last 50 pairs are compared. Linux alone.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean

import measure
import small_work
from kills import said, started

SHARE = 50  # pairs at the beginning, and at the end


def lines(place: Path) -> int:
    """Pairs that an evaluation has noted."""
    file = place / "progress.jsonl"
    return file.read_bytes().count(b"\n") - 1 if file.is_file() else 0


def pictures(place: Path) -> int:
    """Results without those that stand side by side with their input."""
    return sum(not file.stem.endswith("_side_by_side") for file in place.glob("[!.]*.png"))


DONE: dict[str, Callable[[Path], int]] = {
    "evaluate": lines,
    "enhance --aligned --csv": pictures,
    "enhance": pictures,
}


def resident(number: int) -> float:
    """MB of a process."""
    for line in Path(f"/proc/{number}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1e3
    return 0.0  # it has ended


def sampled(name: str, place: Path) -> list[tuple[int, float]]:
    """Run a command; pairs that were done and resident MB, 20 times a second.

    Raises:
        RuntimeError: If it fails.
    """
    samples, process = [], started(small_work.COMMANDS[name], place)
    while process.poll() is None:
        samples.append((DONE[name](place), resident(process.pid)))
        time.sleep(0.05)
    if process.returncode != 0:
        raise RuntimeError(f"{name}: {said(place)}")
    return samples


def main(args: list[str] | None = None) -> None:
    """Print Markdown."""
    parser = measure.parser(__doc__, prepared=False)
    parser.add_argument("--pairs", type=int, default=300)
    parser.add_argument("--only", choices=DONE, nargs="+", default=list(DONE))
    options = parser.parse_args(args)
    rows: list[list[object]] = []
    with tempfile.TemporaryDirectory() as folder:
        root, pairs = Path(folder) / "work", options.pairs
        small_work.write_album(root, people=-(-pairs // 3), each=3)
        small_work.write_list(root, pairs)
        small_work.write_model(root)
        if "enhance" in options.only:
            small_work.write_photos(root, pairs)
        if "evaluate" in options.only:
            started(small_work.COMMANDS["prepare"], root / "prepared").wait()
        for number, name in enumerate(options.only):
            samples = [sample for sample in sampled(name, root / f"out{number}") if sample[0] > 0]
            share = min(SHARE, pairs // 2)
            parts = (
                [mb for done, mb in samples if done <= share],
                [mb for done, mb in samples if pairs - share < done <= pairs],
            )
            first, last = (fmean(part) if part else 0.0 for part in parts)
            most = max(mb for _, mb in samples)
            rows.append([f"`rpf {name}`", pairs, f"{first:.0f}", f"{last:.0f}", f"{most:.0f}"])
            print(rows[-1], file=sys.stderr)
    print(measure.heading())
    head = ["command", "pairs", f"first {SHARE}, MB", f"last {SHARE}, MB", "most, MB"]
    print("", measure.markdown(head, rows), sep="\n")


if __name__ == "__main__":
    main()
