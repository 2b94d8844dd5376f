"""What the fits of a curriculum cost, read from their configurations: no data, no weights, nothing allocated."""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from rpf_lightning.curriculum_file import Fit, on_meta
from rpf_lightning.data.pairs_datamodule import PairsDataModule, evenly
from rpf_lightning.data.preparation.prepared_folder import SUMMARY
from rpf_lightning.data.prepared_datamodules import PreparedDataModule
from rpf_lightning.model.summary import ModuleCount, count


def plan_lines(
    network: dict[str, Any],
    fits: Sequence[Fit],
    parsed: Mapping[str, dict[str, Any]],
    finished: Container[str],
) -> Iterator[str]:
    """A line for every fit (block, side, size, steps, file, operations), and one for what all of them take.

    Operations are those of the network's convolutions and matrix products (1 multiply-accumulate = 2 FLOP), as
    `count` counts them: three times the forward pass for what is trained, once for the frozen modules that it
    computes with. In all, references count as often as a sample has them on average. Not counted: critics, AlexNet,
    ArcFace, validation. Not subtracted: what a kept x^(n) saves, and samples that enter at a later block.

    Args:
        network: Arguments of `RPFConfig`.
        fits: The fits.
        parsed: Their configurations by their names, as `read_fit` gives them.
        finished: Names of those that are finished.
    """
    model = on_meta(network)
    counts = count(model)
    total, unknown = 0.0, 0
    for fit in fits:
        given = parsed[fit.name]
        steps, samples = _length(given)
        one, some = (_flop(fit, counts, references) for references in (1, _references(given["data"])))
        size = sum(row.parameters for row in counts if (row.block, row.module) in fit.trained)
        total += some * (samples or 0)
        unknown += samples is None
        yield (
            f"{fit.title}  side {model.sides[fit.block - 1]}  {size / 1e6:.2f} M parameters  {steps}  {fit.config}  "
            f"{_short(one / 1e9)} GFLOP a sample  {'-' if samples is None else _short(samples * some / 1e15)} PFLOP  "
            f"{'finished' if fit.name in finished else 'to do'}"
        )
    rest = f", and {unknown} fits whose number of samples is not known" if unknown else ""
    yield f"in all  {total / 1e15:.3g} PFLOP{rest}"


def _short(value: float) -> str:
    """Three digits, or all of a larger number."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _flop(fit: Fit, counts: Sequence[ModuleCount], references: float) -> float:
    """Operations for a sample with so many references."""
    flop = 0.0
    for row in counts:
        module = row.block, row.module
        passes = 3 if module in fit.trained else int(module in fit.frozen)
        flop += 2 * passes * row.macs * (1 if row.module == "refinement" else references)
    return flop


def _references(data: dict[str, Any]) -> float:
    """References of a sample on average, if all people have enough photos: a share has 2 to `max_references`."""
    arguments = data.get("init_args", {})
    most = arguments.get("max_references", 1)
    return 1 + arguments.get("several_fraction", 0) * most / 2 if most > 1 else 1


def _length(given: dict[str, Any]) -> tuple[str, int | None]:
    """Number of generator steps as far as it is known without making data, or else of epochs; and of samples."""
    trainer, data = given["trainer"], given["data"].get("init_args", {})
    epochs, limit = trainer["max_epochs"], trainer["limit_train_batches"]
    samples, devices = _samples(given["data"]), trainer["devices"]
    together = data.get("batch_size", 1) * (int(devices) if str(devices).isdecimal() else 1)
    batches = None if samples is None else samples // max(together, 1)
    if isinstance(limit, int):
        batches = limit if batches is None else min(limit, batches)
    elif limit is not None and batches is not None:
        batches = int(limit * batches)
    if batches is None:
        return f"{epochs} epoch{'' if epochs == 1 else 's'}", None
    steps = epochs * math.ceil(batches / given["model"].get("init_args", {}).get("accumulate", 1))
    return f"{steps} steps", epochs * batches * together


def _samples(data: dict[str, Any]) -> int | None:
    """Number of training samples: those of a prepared folder, or else `limit_train`; None: not known."""
    arguments = data.get("init_args", {})
    module, _, name = data["class_path"].rpartition(".")
    datamodule = getattr(import_module(module), name)
    if issubclass(datamodule, PreparedDataModule):
        source = datamodule(**arguments)
        if (Path(source.root) / SUMMARY).is_file():
            try:
                if isinstance(source, PairsDataModule):
                    return len(source.split_pairs().train)
                return len(evenly(source.parts().photos["train"], source.limit_train))
            except FileNotFoundError:
                pass  # the photos may be elsewhere; the fit will say so
    return arguments.get("limit_train")
