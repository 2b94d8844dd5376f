"""What the benchmark scripts share: the machine's ceiling, peak memory, versions, validation pairs, Markdown tables."""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path

import torch
import torch.nn.functional as F

from rpf_lightning import ReferencePairsDataModule, RPFModel
from rpf_lightning.data.batches import ReferenceBatch


def parser(doc: str | None, prepared: bool = True) -> argparse.ArgumentParser:
    """A command line that shows a script's docstring; its first argument is a prepared folder unless said otherwise."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    if prepared:
        made.add_argument("prepared", type=_prepared, help="a prepared folder")
    return made


def _prepared(folder: str) -> str:
    if not (Path(folder) / "prepare.json").is_file():
        raise argparse.ArgumentTypeError(f"{folder} is no prepared folder: it has no prepare.json")
    return folder


def seconds(function: Callable[[], object], device: str = "cpu") -> float:
    """Wall-clock time of one call, the device's queue emptied before and after."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def ceiling(device: str = "cpu", dtype: torch.dtype = torch.float32, side: int = 4096) -> float:
    """FLOP per second of a large matrix product: the best of five."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.mm(a, b)
    return 2 * side**3 / min(seconds(lambda: torch.mm(a, b, out=out), device) for _ in range(5))


def convolution_ceiling(side: int = 64, channels: int = 512) -> float:
    """FLOP per second of the network's kindest convolution on a CPU, 3x3 in channels_last: the best of five.

    On some processors it is faster than the library's matrix product, so that `ceiling` alone would flatter.
    """
    x = torch.randn(1, channels, side, side).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(channels, channels, 3, 3).contiguous(memory_format=torch.channels_last)
    F.conv2d(x, weight, padding=1)
    spent = min(seconds(lambda: F.conv2d(x, weight, padding=1)) for _ in range(5))
    return 2 * channels**2 * 9 * side**2 / spent


def resident() -> float:
    """Resident memory of this process in MB."""
    return _status("VmRSS")


def reset_peak() -> None:
    """Start a new measurement of `peak` (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def peak() -> float:
    """Largest resident memory since `reset_peak`, in MB."""
    return _status("VmHWM")


def _status(key: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024 / 1e6
    raise OSError(f"/proc/self/status has no {key}: memory is measured on Linux only")


def validation_batches(prepared: str, model: RPFModel, pairs: int) -> list[ReferenceBatch]:
    """Evenly spread validation pairs of a prepared folder at a model's sides, from the photos, in batches of 8."""
    data = ReferencePairsDataModule(
        prepared, lr_size=model.lr_size, size=model.size, side=model.size, batch_size=8, cache_side=0, limit_val=pairs
    )  # fmt: skip
    data.setup()
    return list(data.val_dataloader())


def processor() -> str:
    """Name of the CPU and its number of cores."""
    name = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            name = line.split(":", 1)[1].strip()
            break
    return f"{name}, {torch.get_num_threads()} threads"


def heading() -> str:
    """Date, processor and versions: what every table of results starts with."""
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return (
        f"{date.today()}, {processor()}{gpu}, Python {platform.python_version()}, torch {torch.__version__}"
    )


def markdown(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
