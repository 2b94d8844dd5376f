"""What the fits of a curriculum cost, read from their configurations: no data, no weights, nothing allocated."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from lightning import LightningDataModule

from rpf_lightning.curriculum_file import Fit, on_meta
from rpf_lightning.data.modules import PreparedDataModule
from rpf_lightning.data.pairs import PairsDataModule, evenly
from rpf_lightning.data.preparation.tables import SUMMARY
from rpf_lightning.model.summary import ModuleCount, count
from rpf_lightning.stages import RPFStage
from rpf_lightning.training import RPFCLI


class FitCost(NamedTuple):
    """What a fit costs.

    Attributes:
        line: Block, side, size, steps, file, operations: one line without a break.
        flop: Operations of the network in all, or None where the number of samples is not known.
    """

    line: str
    flop: float | None


def fit_costs(
    network: dict[str, Any], fits: Sequence[Fit], arguments: Callable[[Fit], list[str]]
) -> Iterator[FitCost]:
    """What every fit costs, its options read as the fit itself would read them.

    Operations are those of the network's convolutions and matrix products (1 multiply-accumulate = 2 FLOP), as
    `count` counts them: three times the forward pass for what is trained, once for the frozen modules that it
    computes with. In all, references count as often as a sample has them on average. Not counted: critics, AlexNet,
    ArcFace, validation. Not subtracted: what a kept x^(n) saves, and samples that enter at a later block.

    Args:
        network: Arguments of `RPFModel`.
        fits: The fits.
        arguments: Gives the words of a fit's command line.
    """
    model = on_meta(network)
    counts = count(model)
    read: dict[tuple[str, ...], tuple[dict[str, Any], str, int | None]] = {}
    for fit in fits:
        key = (str(fit.config), fit.stage, *fit.options)
        if key not in read:  # all blocks share them, but for their number
            given = _read_options(arguments(fit))
            read[key] = given, *_length(given)
        given, steps, samples = read[key]
        data = given["data"].get("init_args", {})
        one, some = (_flop(fit, counts, references) for references in (1, _references(data)))
        flop = None if samples is None else samples * some
        size = sum(row.parameters for row in counts if (row.block, row.module) in fit.trained)
        yield FitCost(
            f"{fit.title}  side {model.sides[fit.block - 1]}  {size / 1e6:.2f} M parameters  "
            f"{steps}  {fit.config}  {_short(one / 1e9)} GFLOP a sample  "
            f"{'-' if flop is None else _short(flop / 1e15)} PFLOP",
            flop,
        )


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
    most = data.get("max_references", 1)
    return 1 + data.get("several_fraction", 0) * most / 2 if most > 1 else 1


class _Reader(RPFCLI):
    """Reads options as `rpf fit` does, and stops there."""

    def _set_seed(self) -> None:
        pass

    def instantiate_classes(self) -> None:
        """Make nothing: neither model nor data need be there."""

    def _run_subcommand(self, subcommand: str) -> None:
        pass


def _read_options(args: list[str]) -> dict[str, Any]:
    """Read the options of a fit; they stand as in a configuration file, with all defaults."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*args parameter is intended to run from within Python.*")
        reader = _Reader(
            RPFStage, LightningDataModule, subclass_mode_model=True, subclass_mode_data=True, args=args
        )
    options: dict[str, Any] = reader.config["fit"].as_dict()
    return options


def _length(options: dict[str, Any]) -> tuple[str, int | None]:
    """Number of generator steps as far as it is known without making data, or else of epochs; and of samples."""
    trainer, data = options["trainer"], options["data"].get("init_args", {})
    epochs, limit = trainer["max_epochs"], trainer["limit_train_batches"]
    samples, devices = _samples(options["data"]), trainer["devices"]
    together = data.get("batch_size", 1) * (int(devices) if str(devices).isdecimal() else 1)
    batches = None if samples is None else samples // max(together, 1)
    if isinstance(limit, int):
        batches = limit if batches is None else min(limit, batches)
    elif limit is not None and batches is not None:
        batches = int(limit * batches)
    if epochs is None or epochs < 0:
        return "no number of epochs", None
    if batches is None:
        return f"{epochs} epoch{'' if epochs == 1 else 's'}", None
    steps = epochs * math.ceil(batches / options["model"].get("init_args", {}).get("accumulate", 1))
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
