"""The model directory that every fit reads and writes, and the LightningModule that does so."""

from __future__ import annotations

from abc import ABC
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from rpf_lightning.files import locked
from rpf_lightning.model import ReconstructionBlock, RPFConfig, RPFModel, storage
from rpf_lightning.model.storage import CONFIG_FILE, weights_hash
from rpf_lightning.stages.checkpoint_files import use_checkpoint_files
from rpf_lightning.stages.finite import refuse_not_finite
from rpf_lightning.stages.roles import Modules, Role

LOCK = ".lock"


def open_model(model_dir: Path, network: RPFConfig) -> RPFModel:
    """Read the model of a directory, or make a new one and write it there.

    Raises:
        ValueError: If `network` differs from the model's configuration.
    """
    model, new = find_model(model_dir, network)
    return keep_model(model_dir, model) if new else model


def keep_model(model_dir: Path, model: RPFModel) -> RPFModel:
    """Write a new model into its directory; of several processes that start at once one does, and all get its model."""
    with locked(model_dir / LOCK):
        if not (model_dir / CONFIG_FILE).is_file():
            model.save_pretrained(model_dir)
            return model
    return find_model(model_dir, model.config)[0]


def find_model(model_dir: Path, network: RPFConfig | None) -> tuple[RPFModel, bool]:
    """Read the model of a directory, or make a new one; tell whether it is new: nothing is written.

    Raises:
        FileNotFoundError: If the directory holds no model and `network` is None.
        ValueError: If `network` differs from the model's configuration.
    """
    if not (model_dir / CONFIG_FILE).is_file():
        if network is not None:
            return RPFModel(network), True
        raise FileNotFoundError(
            f"{model_dir} holds no model: expected config.json and model.safetensors. Make one with "
            "`rpf curriculum`, RPFModel(...).save_pretrained(directory), or the argument network"
        )
    model = RPFModel.from_pretrained(model_dir)
    if network is not None and (changed := model.config.differences(network)):
        text = ", ".join(f"{key}: {old!r} there, {new!r} here" for key, (old, new) in changed.items())
        raise ValueError(f"{model_dir} holds a model with other arguments ({text})")
    return model, False


class DirectoryStage(LightningModule, ABC):
    """Reads the model when it is made, and writes what it trained back when a fit has finished; see `RPFStage`.

    A new model is written when a Trainer begins, and not before: whatever is refused until then leaves nothing.
    Checkpoints hold what is trained and its critic (``self.critic``), and a hash of what that was trained on:
    not a copy of the whole model.
    """

    role: Role
    """What is trained, and what that computes with."""

    def __init__(self, model_dir: str, block: int, network: RPFConfig | None) -> None:
        super().__init__()
        self.model_dir = Path(model_dir)
        self.model, self._new = find_model(self.model_dir, network)
        self.model.to(memory_format=torch.channels_last)  # faster on a CPU
        self.model.validate = False  # our own data; the check would synchronise a GPU in every step
        if not 1 <= block <= len(self.model.blocks):
            raise ValueError(f"block: expected 1 .. {len(self.model.blocks)}, got {block}")
        self.first = self.block = block
        self.lr_size, self.size = self.model.lr_size, self.model.size
        self.side = self.model.sides[block - 1]
        self._hash_at_start: str | None = None
        self.alone = False
        """Whether who made the stage keeps others out of its run folder; else its `SoleFit` does."""

    @property
    def name(self) -> str:
        """Name of the stage."""
        return self.role.name

    @property
    def fit_name(self) -> str:
        """Name of this fit: its run folder's, and the curriculum's."""
        return self.role.fit_name(self.first, self.block)

    @property
    def run_dir(self) -> Path:
        """Where this fit's logs and checkpoints go: `runs/block<n>-<stage>` in the model directory."""
        return self.model_dir / "runs" / self.fit_name

    @property
    def current_block(self) -> ReconstructionBlock:
        """The (last) block that is trained."""
        block = self.model.blocks[self.block - 1]
        assert isinstance(block, ReconstructionBlock)
        return block

    @property
    def trained_module(self) -> nn.Module:
        """The module of the model that this stage trains, or a list of such modules."""
        blocks = self.model.blocks[self.first - 1 : self.block]
        modules = [getattr(block, name) for block in blocks for name in self.role.trains]
        return modules[0] if len(modules) == 1 else nn.ModuleList(modules)

    def frozen_hash(self) -> str:
        """SHA-256 over the weights that this stage reads but does not train."""
        read = _beginnings(self.role.frozen(self.first, self.block))
        return weights_hash({k: v for k, v in self.model.state_dict().items() if k.startswith(read)})

    def setup(self, stage: str) -> None:
        """Write a new model, where nothing is only tried, and let checkpoints be written and read safely."""
        use_checkpoint_files(self.trainer)
        if self._new and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            self.model.load_state_dict(keep_model(self.model_dir, self.model).state_dict())
            self._new = False

    def on_fit_start(self) -> None:
        """Remember what is frozen."""
        self._hash_at_start = self.frozen_hash()

    def on_fit_end(self) -> None:
        """Write what was trained into the model directory, also when a resumed fit had nothing left to train.

        Raises:
            FloatingPointError: If a weight is NaN or infinite.
            RuntimeError: If a frozen weight changed during the fit.
            ValueError: If the directory holds a model of another network by now.
        """
        if self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        refuse_not_finite(self.trained_module.state_dict())
        if self.frozen_hash() != self._hash_at_start:
            raise RuntimeError(
                f"{self.run_dir}: weights that are frozen changed during the fit; nothing was written"
            )
        if self.trainer.is_global_zero:
            self._write()
        self.trainer.strategy.barrier()  # the next fit reads the directory in every process

    def _write(self) -> None:
        """Write what was trained; what others trained there meanwhile stays, with a warning if this stage read it."""
        trained, read = (
            _beginnings(of(self.first, self.block)) for of in (self.role.trained, self.role.frozen)
        )
        with locked(self.model_dir / LOCK):
            config, state = self.model.config, self.model.state_dict()
            if (self.model_dir / CONFIG_FILE).is_file():
                config, there = storage.load(self.model_dir)
                if {k: v.shape for k, v in there.items()} != {k: v.shape for k, v in state.items()}:
                    raise ValueError(
                        f"{self.model_dir} holds another network than the trained one by now; nothing was written"
                    )
                changed = [
                    name for name, value in state.items()
                    if name.startswith(read) and not torch.equal(value.cpu(), there[name].to(value.dtype))
                ]  # fmt: skip
                if changed:
                    rank_zero_warn(
                        f"{self.model_dir}: {changed[0]} and others changed there while {self.fit_name} was trained on "
                        "them"
                    )
                state = {**there, **{k: v for k, v in state.items() if k.startswith(trained)}}
            storage.save(self.model_dir, config, state)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what is trained and its critic, and a hash in place of the frozen rest.

        Raises:
            FloatingPointError: If a weight is NaN or infinite: the checkpoint before stays.
        """
        own, state = self._own_keys(), checkpoint["state_dict"]
        checkpoint["state_dict"] = {key: value for key, value in state.items() if key.startswith(own)}
        # with `AveragedWeights` the state is the average, and the weights that are trained stand beside it
        refuse_not_finite({**checkpoint["state_dict"], **checkpoint.get("current_model_state", {})})
        checkpoint["fit"] = self.fit_name
        checkpoint["frozen_hash"] = self._hash_at_start or self.frozen_hash()
        if "model_dir" in checkpoint.get("hyper_parameters", {}):  # a Path could not be read safely
            checkpoint["hyper_parameters"]["model_dir"] = str(self.model_dir)
            checkpoint["hyper_parameters"].pop("network", None)  # nor an RPFConfig; the directory holds it

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Complete what is trained with the directory's frozen rest.

        Raises:
            ValueError: If it is a checkpoint of another fit, or its frozen rest differs from the directory's.
        """
        if (fit := checkpoint.get("fit", "something else")) != self.fit_name:
            raise ValueError(f"expected a checkpoint of {self.fit_name}, got one of {fit}")
        if checkpoint["frozen_hash"] != self.frozen_hash():
            raise ValueError(
                f"the checkpoint of {self.fit_name} was trained on another model than the one in "
                f"{self.model_dir}: their frozen modules differ. Delete {self.run_dir} to train it anew"
            )
        own = self._own_keys()
        frozen = {key: value for key, value in self.state_dict().items() if not key.startswith(own)}
        checkpoint["state_dict"] = {**frozen, **checkpoint["state_dict"]}

    def _own_keys(self) -> tuple[str, ...]:
        """Beginnings of the names, in the stage's state, of what it trains."""
        trained = _beginnings(self.role.trained(self.first, self.block))
        return (*(f"model.{name}" for name in trained), "critic.")


def _beginnings(modules: Modules) -> tuple[str, ...]:
    """Beginnings of the names of modules' weights in the model."""
    return tuple(f"blocks.{n - 1}.{module}." for n, module in sorted(modules))
