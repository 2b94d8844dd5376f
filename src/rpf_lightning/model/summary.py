"""What a model costs: parameters and multiply-accumulates of every module, without running it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from rpf_lightning.model.config import RPFConfig
from rpf_lightning.model.reference_slots import Slots
from rpf_lightning.model.rpf import RPFModel
from rpf_lightning.model.storage import CONFIG_FILE, read_config

MODULES = ("warping", "synthesis", "refinement")


class ModuleCount(NamedTuple):
    """Size of one module.

    Attributes:
        block: n, counted from 1.
        side: S, side of the block's output in pixels.
        module: ``"warping"``, ``"synthesis"`` or ``"refinement"``.
        parameters: Number of values in its parameters.
        macs: Multiply-accumulates of its convolutions and matrix products for one image.
    """

    block: int
    side: int
    module: str
    parameters: int
    macs: int


def count(model: RPFModel) -> list[ModuleCount]:
    """Count parameters and multiply-accumulates (1 MAC = 2 FLOP): three modules per block, in order.

    All convolutions count, the FIR's too (16 per channel and output pixel), and all products with matrices:
    latents, styles, demodulation, the resizing inside a synthesis and of the flow. Not counted are elementwise
    work, the bilinear warp and what is outside the modules: enlarging x^(n), halving the reference. There is one
    reference: each further one costs the warping and synthesis modules once more, up to the image they make.

    Args:
        model: On any device, also on meta; it is neither run nor changed.
    """
    with torch.device("meta"):
        copy = RPFModel(model.config)
    copy.to("meta")  # the resizing matrices are built on the CPU under any device
    counts = []
    for n, (block, shapes) in enumerate(zip(model.blocks, copy.blocks, strict=True), start=1):
        x, flow = (torch.empty(1, c, shapes.in_side, shapes.in_side, device="meta") for c in (3, 2))
        image = torch.empty(1, 3, shapes.side, shapes.side, device="meta")
        level = torch.empty(1, 3 + model.config.synthesis_copy, shapes.side, shapes.side, device="meta")
        slots = (Slots(level),) if model.config.synthesis_copy else ()
        inputs: dict[str, tuple[Any, ...]] = {
            "warping": (x, level, flow if n > 1 else None),
            "synthesis": (x, level, *slots),
            "refinement": (image,),
        }
        for name in MODULES:
            with FlopCounterMode(display=False) as counter:
                getattr(shapes, name)(*inputs[name])
            parameters = sum(p.numel() for p in getattr(block, name).parameters())
            counts.append(ModuleCount(n, shapes.side, name, parameters, counter.get_total_flops() // 2))
    return counts


def table(model: RPFModel) -> str:
    """Format what `count` returns as a Markdown table: one line per block, then the totals.

    Args:
        model: See `count`.

    Returns:
        GMAC (10^9 multiply-accumulates for one image), GFLOP = 2 GMAC, parameters in millions (M).
    """
    gmacs, millions = (" | ".join(f"{name} {unit}" for name in MODULES) for unit in ("GMAC", "M"))
    lines = [f"| side | {gmacs} | GMAC | GFLOP | {millions} | M |", "|" + 10 * "---:|"]
    counts = count(model)
    for title in (*model.sides, "total"):
        rows = [row for row in counts if title in (row.side, "total")]
        macs = [sum(row.macs for row in rows if row.module == name) / 1e9 for name in MODULES]
        sizes = [sum(row.parameters for row in rows if row.module == name) / 1e6 for name in MODULES]
        values = [*macs, sum(macs), 2 * sum(macs), *sizes, sum(sizes)]
        lines.append(f"| {title} | " + " | ".join(f"{value:.3f}" for value in values) + " |")
    return "\n".join(lines)


def summary(*, model_dir: str | None = None, **network: Any) -> None:
    """Print the `table` of a network.

    Args:
        model_dir: A model directory, in place of the network's arguments.
        network: Arguments of `RPFConfig`; those left out have its defaults.

    Raises:
        ValueError: If they describe none.
        OSError: If the directory has no readable configuration.
    """
    if model_dir is not None and network:
        raise ValueError(f"--model_dir brings the network's arguments; leave out --{', --'.join(network)}")
    try:
        config = RPFConfig(**network) if model_dir is None else read_config(Path(model_dir) / CONFIG_FILE)
        with torch.device("meta"):  # 352 M parameters are described, not allocated
            model = RPFModel(config)
    except (TypeError, OverflowError) as error:
        raise ValueError(str(error)) from error
    print(table(model))
