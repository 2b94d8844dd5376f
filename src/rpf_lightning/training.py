"""`rpf fit|validate|test|predict`: LightningCLI over the stages and the datamodules."""

from __future__ import annotations

import warnings
from argparse import ArgumentError
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import lightning
import yaml
from jsonargparse import Namespace
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger

from rpf_lightning.callbacks import ImagePanels, LastCheckpoint, PredictionWriter
from rpf_lightning.environment import first_process
from rpf_lightning.errors import RefusedError
from rpf_lightning.loggers import TensorBoardRun, WandbRun
from rpf_lightning.presets import ConfigFile
from rpf_lightning.refused_options import refuse_ignored
from rpf_lightning.stages import RPFStage
from rpf_lightning.stages.sole_fit import sole_fit

EXPECTED_WARNINGS = (
    ".*does not have many workers.*",  # num_workers: 0 is a choice where samples are cached in memory
    ".*args parameter is intended to run from within Python.*",  # the curriculum does just that
    ".*module\\(s\\) in eval mode at the start of training.*",  # frozen modules
    ".*Checkpoint directory .* exists and is not empty.*",  # a fit that continues
    ".*treespec, LeafSpec.*",  # Lightning 2.6 on newer torch
)

WRAPPED = "Does not validate against any of the Union subtypes"  # jsonargparse, of what a constructor raised

# typing holds Optional[Union[int, float]] and Optional[Union[float, int]] for one: whichever module was imported
# first (rich has the other) sets the order for all, and jsonargparse would read `limit_val_batches: 1`, one batch,
# as 1.0, all of them. `|` is not cached.
for _name in ("train", "val", "test", "predict"):
    Trainer.__init__.__annotations__[f"limit_{_name}_batches"] = int | float | None


class SaveConfig(SaveConfigCallback):
    """Saves the configuration beside the fit's own logs; other loggers' folder is that of all runs."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write `config.yaml` into the CSV log's folder, or else into the run folder; give it to the loggers."""
        assert isinstance(pl_module, RPFStage)
        logger = trainer.logger
        # not trainer.log_dir: that is a broadcast, and only the first process is here
        folder = Path(logger.log_dir) if isinstance(logger, CSVLogger) else pl_module.run_dir
        folder.mkdir(parents=True, exist_ok=True)
        self.parser.save(self.config, folder / "config.yaml", overwrite=True, multifile=False)
        for logger in trainer.loggers:
            if not isinstance(logger, WandbRun):  # has it since `describe`
                logger.log_hyperparams(_plain(self.parser, self.config))


class RPFCLI(LightningCLI):
    """LightningCLI whose runs land in the model directory: `runs/block<n>-<stage>/`.

    Unless the configuration says otherwise it logs to CSV, keeps the last and the best checkpoint of the fit
    and draws panels of the validation. Checkpoints are read as data only: none can run code.
    """

    def __init__(self, args: list[str] | None) -> None:
        self._asked = args[0] if args else ""
        with ExitStack() as self._held:  # it runs in here
            super().__init__(
                RPFStage, LightningDataModule, subclass_mode_model=True, subclass_mode_data=True, args=args,
                seed_everything_default=0, save_config_callback=SaveConfig,
                save_config_kwargs={"save_to_log_dir": False},
            )  # fmt: skip

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """The one that is asked for; the parsers of the other three would be made for nothing."""
        known = LightningCLI.subcommands()
        return {self._asked: known[self._asked]} if self._asked in known else known

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Lightning's parser, whose `--config` knows presets."""
        header = [f"lightning.pytorch=={lightning.__version__}"]
        parser = LightningArgumentParser(dump_header=header, **kwargs)
        parser.add_argument("-c", "--config", action=ConfigFile, help="a file or a preset (`rpf presets`)")
        return parser

    def instantiate_classes(self) -> None:
        """Refuse what the stages would not heed, before anything is made."""
        refuse_ignored(self._whole(), self.subcommand == "fit")
        try:
            super().instantiate_classes()
        except ValueError as error:
            if not str(error).startswith(WRAPPED):
                raise
            raise RefusedError(str(_first(error))) from error  # what a stage or a datamodule itself said

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Fill in the run folder, the loggers, the checkpoints and the panels."""
        stage = self.model
        assert isinstance(stage, RPFStage)
        config = self._get(self.config_init, "trainer", default={})
        callbacks = list(config.get("callbacks") or [])
        trying = bool(config.get("fast_dev_run"))
        validating = config.get("limit_val_batches") != 0
        self._checkpoint = self._find_checkpoint(stage, any(isinstance(c, Checkpoint) for c in callbacks))
        if self.subcommand == "fit" and not trying and first_process():
            self._held.enter_context(sole_fit(stage.run_dir))
            stage.alone = True
        if config.get("default_root_dir") is None:
            kwargs["default_root_dir"] = str(stage.run_dir)
        loggers = config.get("logger")
        if loggers in (None, True):
            kwargs["logger"] = CSVLogger(stage.run_dir, name="logs")
        elif loggers and not trying:
            for logger in loggers if isinstance(loggers, list) else [loggers]:
                if isinstance(logger, WandbRun | TensorBoardRun):
                    resumed = self._checkpoint is not None
                    logger.describe(stage, self._whole(), self.subcommand or "fit", resumed)
        drawn = self.subcommand != "fit" or any(isinstance(c, ImagePanels) for c in callbacks)
        if validating and not trying and not drawn:
            callbacks.append(ImagePanels())
        checkpointing = config.get("enable_checkpointing") is not False and not trying
        if checkpointing and not any(isinstance(c, Checkpoint) for c in callbacks):
            folder = stage.run_dir / "checkpoints"
            if validating:  # or there is no score, and it would warn of that
                monitor, mode = stage.monitor
                best = ModelCheckpoint(
                    folder, filename="best", monitor=monitor, mode=mode, enable_version_counter=False
                )
                callbacks.append(best)  # with a version counter a second fit would leave the first one's
            callbacks.append(LastCheckpoint(folder))  # after the best, so that it knows its score
        if self.subcommand == "predict":
            callbacks.append(PredictionWriter())
        return super().instantiate_trainer(callbacks=callbacks, **kwargs)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        # Lightning leaves it to torch, which an environment variable switches off
        return {**kwargs, "ckpt_path": self._checkpoint, "weights_only": True}

    def _find_checkpoint(self, stage: RPFStage, own: bool) -> str | None:
        """The checkpoint that was asked for; `best` and `last` are the run folder's, whichever process wrote them.

        Args:
            stage: Names the run folder.
            own: Whether the configuration says where checkpoints go: Lightning knows `best` and `last` of those.

        Raises:
            FileNotFoundError: If there is none.
        """
        given = self._get(self.config_init, "ckpt_path")
        if given is None:
            return None
        named = given in ("best", "last")
        path = stage.run_dir / "checkpoints" / f"{given}.ckpt" if named else Path(given)
        if path.is_file():
            return str(path)
        if (named and own) or given == "hpc":  # SLURM's
            return str(given)
        raise FileNotFoundError(f"--ckpt_path {given}: there is no {path}")

    def _whole(self) -> dict[str, Any]:
        """The command's whole configuration in plain types; Lightning needs it, too, and keeps it."""
        self._dump_config()
        whole: dict[str, Any] = self.config_dump
        return whole

    def _parse_ckpt_path(self) -> None:
        # Lightning would let a checkpoint's hyperparameters override the command line
        return


def _first(error: BaseException) -> BaseException:
    """The error with which it began."""
    while (before := error.__cause__ or error.__context__) is not None:
        error = before
    return error


def _plain(parser: Any, config: Any) -> dict[str, Any]:
    """A parsed configuration in plain types, with class paths."""
    plain: dict[str, Any] = yaml.safe_load(parser.dump(config, skip_link_targets=False, skip_unset=False))
    return plain


def lightning_cli(args: list[str]) -> RPFCLI:
    """Run one of LightningCLI's subcommands; a notebook can call it as well.

    Args:
        args: What follows `rpf`, such as ``["fit", "--config", "warping.yaml"]``.
    """
    with warnings.catch_warnings():
        for message in EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        return RPFCLI(args)


class _FitParser(RPFCLI):
    """Makes the parser of `rpf fit`, and stops there."""

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = Namespace(subcommand=None)

    def _set_seed(self) -> None:
        pass

    def instantiate_classes(self) -> None:
        pass


@cache
def _fit_parser() -> LightningArgumentParser:
    parser = _FitParser(["fit"])._parser("fit")
    parser.exit_on_error = False
    return parser


def read_fit(words: Sequence[str]) -> dict[str, Any]:
    """Read options as `rpf fit` does, and make nothing: neither model nor data need be there.

    Args:
        words: What follows `rpf fit`.

    Returns:
        All arguments in plain types, nested as in a configuration file, defaults included.

    Raises:
        ValueError: If an option or a file is unknown, a value is none of its type, or the stages would not heed it.
    """
    parser = _fit_parser()
    try:
        config = _plain(parser, parser.parse_args(list(words)))
    except ArgumentError as error:
        raise ValueError(str(error)) from error
    refuse_ignored(config)
    return config
