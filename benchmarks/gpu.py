"""Inference on a GPU: latency at batch 1, throughput at batch 8, memory, against the floors of FLOP and bandwidth.

    python benchmarks/gpu.py                 # 16 -> 1024 at width 1; benchmarks/inference.py runs it at its end

Every row is measured in a process of its own, so that no memory of another variant counts. The FLOP floor of a row
is that of a large matrix product in its precision; fp32 means fp32, not TF32. Without a CUDA device it says so and
measures nothing.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import measure
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rpf_lightning.model import RPFModel
from rpf_lightning.model.summary import count

Network = Callable[[Tensor, Tensor], Tensor]
CONVOLUTION = torch.ops.aten.convolution


class Traffic(TorchDispatchMode):
    """Counts the values that the convolutions read and write: what a perfect fusion of all else would move."""

    values = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket is CONVOLUTION:
            self.values += args[0].numel() + args[1].numel() + result.numel()
        return result


def traffic(scale: int, width: float, batch: int) -> int:
    """Values moved by the convolutions of one forward."""
    with torch.device("meta"):
        model = RPFModel(16, scale, width=width, validate=False).to("meta")
        images = torch.empty(batch, 3, 16, 16), torch.empty(batch, 3, model.size, model.size)
    with Traffic() as mode:
        model(*images)
    return mode.values


def bandwidth() -> float:
    """Bytes per second of copying 1 GB in the GPU's memory, read and written."""
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    target.copy_(source)
    return 2 * 2**30 / min(measure.seconds(lambda: target.copy_(source), "cuda") for _ in range(5))


def eager_fp32(model: RPFModel) -> Network:
    """Eager, fp32, contiguous."""
    return model


def bf16(model: RPFModel) -> Network:
    """Eager, fused, channels_last, bf16 autocast."""
    model.fuse()

    def run(lr: Tensor, reference: Tensor) -> Tensor:
        with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
            return model(lr, reference)

    return run


def compiled(model: RPFModel) -> Network:
    """The same with torch.compile and CUDA graphs."""
    network: Network = torch.compile(bf16(model), mode="max-autotune")
    return network


def low(model: RPFModel) -> Network:
    """Eager, fused, bf16, memory="low"."""
    model.memory = "low"
    return bf16(model)


def report(scale: int, width: float) -> None:
    """Print the table."""
    if not torch.cuda.is_available():
        print("GPU: this machine has no CUDA device; the GPU part was not run.")
        return
    print(measure.heading())
    rows = []
    for variant in (eager_fp32, bf16, compiled, low):
        for batch in (1, 8):
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                rows.append(process.submit(row, variant, scale, width, batch).result())
    head = ["variant", "batch", "ms", "images/s", "peak GB", "FLOP floor, ms", "bandwidth floor, ms"]
    print(measure.markdown(head, rows))


def row(variant: Callable[[RPFModel], Network], scale: int, width: float, batch: int) -> list[object]:
    """Measure one variant in this process: a row of the table."""
    torch.backends.cudnn.allow_tf32 = False  # on by default for convolutions, off for matrix products
    dtype = torch.float32 if variant is eager_fp32 else torch.bfloat16
    with torch.device("meta"):
        flop = 2 * sum(entry.macs for entry in count(RPFModel(16, scale, width=width)))
    floors = (
        flop * batch / measure.ceiling("cuda", dtype, 8192),
        traffic(scale, width, batch) * dtype.itemsize / bandwidth(),
    )
    spent, memory = _measure(variant, scale, width, batch)
    return [
        variant.__doc__, batch, f"{1e3 * spent:.1f}", f"{batch / spent:.1f}", f"{memory / 1e9:.1f}",
        *(f"{1e3 * floor:.1f}" for floor in floors),
    ]  # fmt: skip


def _measure(
    variant: Callable[[RPFModel], Network], scale: int, width: float, batch: int
) -> tuple[float, int]:
    torch.manual_seed(0)
    torch.cuda.empty_cache()
    with torch.device("cuda"):
        model = RPFModel(16, scale, width=width, validate=False).eval().cuda()
        lr, reference = torch.rand(batch, 3, 16, 16), torch.rand(batch, 3, model.size, model.size)
    with torch.no_grad():
        run = variant(model)
        for _ in range(3):
            run(lr, reference)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()  # without the workspaces of autotuning
        spent = min(measure.seconds(lambda: run(lr, reference), "cuda") for _ in range(10))
    return spent, torch.cuda.max_memory_allocated()


def main() -> None:
    """Read the command line."""
    parser = measure.parser(__doc__, prepared=False)
    parser.add_argument("--scale", type=int, default=64)
    parser.add_argument("--width", type=float, default=1.0)
    options = parser.parse_args()
    report(options.scale, options.width)


if __name__ == "__main__":
    main()
