"""What the fits of a curriculum cost, read from their configurations: no data, no weights, nothing allocated."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning import LightningDataModule

from rpf_lightning.data.modules import PreparedDataModule
from rpf_lightning.data.pairs import PairsDataModule, evenly
from rpf_lightning.data.preparation.tables import SUMMARY
from rpf_lightning.model import RPFModel
from rpf_lightning.stages import RPFStage
from rpf_lightning.stages.memory import training_memory
from rpf_lightning.training import RPFCLI


class PlannedFit(Protocol):
    """A block, a stage and its configuration."""

    @property
    def block(self) -> int:
        """n, counted from 1."""

    @property
    def stage(self) -> str:
        """Name of the stage."""

    @property
    def config(self) -> Path:
        """Its LightningCLI configuration."""


def plan_lines(
    network: dict[str, Any], fits: Sequence[PlannedFit], options: Callable[[PlannedFit], list[str]]
) -> Iterator[str]:
    """What every fit costs, its options read as the fit itself would read them.

    Args:
        network: Arguments of `RPFModel`.
        fits: The fits.
        options: Gives the options of a fit beside its file.
    """
    model = on_meta(network)
    read: dict[Path, tuple[dict[str, Any], str]] = {}
    for fit in fits:
        if fit.config not in read:  # all blocks share it, but for their number
            given = _read_options(["fit", "--config", str(fit.config), *options(fit)])
            read[fit.config] = given, _steps(given)
        given, steps = read[fit.config]
        stage, data = (given[name].get("init_args", {}) for name in ("model", "data"))
        memory = training_memory(
            network, fit.block, fit.stage, data.get("batch_size", 1),
            adversarial=bool(stage.get("adversarial_weight")) and fit.stage != "warping",
            perceptual=bool(stage.get("perceptual_weight")) and fit.stage != "warping",
            critic=stage.get("critic", "srntt"),
            bf16=given["trainer"].get("precision") in ("bf16-mixed", "bf16"),
        )  # fmt: skip
        module = getattr(model.blocks[fit.block - 1], "refinement" if fit.stage == "finetune" else fit.stage)
        size = sum(p.numel() for p in module.parameters())
        yield (
            f"block {fit.block}  {fit.stage}  side {model.sides[fit.block - 1]}  {size / 1e6:.2f} M parameters  "
            f"{memory.total / 1e9:.2f} GB  {steps}  {fit.config}"
        )


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


def _steps(options: dict[str, Any]) -> str:
    """Number of generator steps as far as it is known without making data, or else of epochs."""
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
        return "no number of epochs"
    if batches is None:
        return f"{epochs} epoch{'' if epochs == 1 else 's'}"
    return f"{epochs * math.ceil(batches / options['model'].get('init_args', {}).get('accumulate', 1))} steps"


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


def on_meta(network: dict[str, Any]) -> RPFModel:
    """Build a network of shapes only."""
    with torch.device("meta"):
        return RPFModel(**network)
