"""`rpf fit|validate|test|predict`: LightningCLI over the stages and the datamodules."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from lightning import LightningDataModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import CSVLogger

from rpf_lightning.callbacks import PredictionWriter
from rpf_lightning.stages import RPFStage

EXPECTED_WARNINGS = (
    ".*does not have many workers.*",  # num_workers: 0 is a choice where samples are cached in memory
    ".*args parameter is intended to run from within Python.*",  # the curriculum does just that
    ".*module\\(s\\) in eval mode at the start of training.*",  # frozen modules
    ".*Checkpoint directory .* exists and is not empty.*",  # a fit that continues
    ".*treespec, LeafSpec.*",  # Lightning 2.6 on newer torch
)


class RPFCLI(LightningCLI):
    """LightningCLI whose runs land in the model directory: `runs/block<n>-<stage>/`.

    Unless the configuration says otherwise it logs to CSV and keeps the last checkpoint of the fit.
    """

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Fill in the run folder, the logger and the checkpoint."""
        stage = self.model
        assert isinstance(stage, RPFStage)
        config = self._get(self.config_init, "trainer", default={})
        callbacks = list(config.get("callbacks") or [])
        if config.get("default_root_dir") is None:
            kwargs["default_root_dir"] = str(stage.run_dir)
        if config.get("logger") in (None, True):
            kwargs["logger"] = CSVLogger(stage.run_dir, name="logs")
        checkpointing = config.get("enable_checkpointing") is not False and not config.get("fast_dev_run")
        if checkpointing and not any(isinstance(c, ModelCheckpoint) for c in callbacks):
            callbacks.append(
                ModelCheckpoint(
                    stage.run_dir / "checkpoints",
                    filename="{epoch}",
                    save_last=True,
                    enable_version_counter=False,  # or a second fit would leave the first one's last.ckpt
                )
            )
        if self.subcommand == "predict":
            callbacks.append(PredictionWriter())
        return super().instantiate_trainer(callbacks=callbacks, **kwargs)

    def _parse_ckpt_path(self) -> None:
        # Lightning would let a checkpoint's hyperparameters override the command line
        return


def lightning_cli(args: list[str]) -> RPFCLI:
    """Run one of LightningCLI's subcommands; a notebook can call it as well.

    Args:
        args: What follows `rpf`, such as ``["fit", "--config", "warping.yaml"]``.
    """
    torch.set_float32_matmul_precision("high")  # TF32 where there are tensor cores; no effect on a CPU
    with warnings.catch_warnings():
        for message in EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        return RPFCLI(
            RPFStage,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            save_config_kwargs={"overwrite": True},
            args=args,
        )
