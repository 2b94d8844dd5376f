"""Loggers that put a fit's records into its run folder and name them after the block and the stage.

The names of the metrics are stable: ``train/loss`` is the sum of the terms ``train/reconstruction``,
``train/warping``, ``train/flow``, ``train/unmasked``, ``train/perceptual``, ``train/identity`` and
``train/adversarial``, those that the stage has; ``train/critic_loss``, ``train/critic_estimate`` and
``train/penalty`` come from the critic, ``grad/...`` are norms of the terms' gradients. Validation writes its
terms under the same names, and ``val/psnr``, ``val/psnr_face``, ``val/ssim``, ``val/lr_consistency``, or (the
warping) ``val/end_point_error``, ``val/flow_correlation``, ``val/face_l1``. ``val/panel`` is the picture of
`ImagePanels`. Steps count batches.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from itertools import count
from os import environ
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn

from rpf_lightning.environment import first_process
from rpf_lightning.files import write_atomically
from rpf_lightning.model.storage import CONFIG_FILE, WEIGHTS_FILE
from rpf_lightning.stages import RPFStage

GROUP_FILE = Path("runs") / "group.txt"
RUN_FILE = "wandb_run.txt"
MODEL_FILES = (CONFIG_FILE, WEIGHTS_FILE, "state.json")


class WandbRun(WandbLogger):
    """Weights & Biases: a group per model directory, a run per fit.

    `describe` names the run ``block2-synthesis``, with the stage as its job type, the tags ``block2`` and
    ``side64`` and the whole configuration. The run's id is drawn when a fit starts from its beginning and kept in the
    run folder: one that goes on from a checkpoint goes on in the same run. What the arguments name themselves stays.
    The run's files go into the run folder. ``WANDB_MODE=offline`` needs neither an account nor a network.

    Args:
        project: Name of the W&B project.
        save_dir: None: the run folder, or ``WANDB_DIR``.
        log_model_dir: Log the model directory as an artifact of type ``model`` when a fit has ended: versions
            of one artifact per group, each with the fit as its alias. Its `state.json` does not yet name this
            fit as finished.
        watch: Histograms of the ``"gradients"`` or ``"parameters"`` of what is trained, or of ``"all"`` (both), every
            100 batches; None: none.
        **kwargs: Further arguments of `WandbLogger` and of `wandb.init`, such as `entity` or `tags`.
    """

    def __init__(
        self,
        project: str = "rpf-lightning",
        save_dir: str | None = None,
        log_model_dir: bool = True,
        watch: Literal["gradients", "parameters", "all"] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(project=project, save_dir=save_dir, **kwargs)  # type: ignore[arg-type]  # None works
        self._wandb_init.pop("anonymous", None)  # W&B ignores it and warns
        self.log_model_dir = log_model_dir
        self.watched = watch
        self._model_dir: Path | None = None

    def describe(
        self, stage: RPFStage, config: Mapping[str, Any], command: str = "fit", resumed: bool = False
    ) -> None:
        """Name the run after the stage, before it is begun.

        Args:
            stage: The stage that is run.
            config: The whole configuration in plain types.
            command: ``"fit"``; other commands have runs of their own, without an artifact.
            resumed: Whether the fit goes on from a checkpoint.
        """
        fits, fit, given = command == "fit", stage.fit_name, self._wandb_init
        name = fit if fits else f"{fit}-{command}"
        group = run_group(stage.model_dir)
        tags = [f"block{stage.block}", f"side{stage.side}", *(given.get("tags") or ())]
        folder = given.get("dir") or environ.get("WANDB_DIR") or str(stage.run_dir)
        Path(folder).mkdir(parents=True, exist_ok=True)  # W&B would go elsewhere without a word
        described = {"name": name, "group": group}
        if given.get("id") is None:
            described["id"] = _run_id(stage.run_dir / RUN_FILE if fits else None, f"{group}-{name}", resumed)
        described["job_type"] = stage.name if fits else command
        given.update({key: value for key, value in described.items() if given.get(key) is None})
        given.update(tags=tags, dir=folder, config={**config, **(given.get("config") or {})})
        self._name, self._id, self._save_dir = given["name"], given["id"], folder
        self._model_dir = stage.model_dir if fits else None
        self._artifact = (f"rpf-{group}", fit)

    @rank_zero_only
    def log_graph(self, model: nn.Module, input_array: Tensor | None = None) -> None:
        """Watch what the stage trains, when the Trainer begins."""
        if self.watched is not None and isinstance(model, RPFStage) and self._model_dir is not None:
            self.watch(model.trained_module, self.watched, log_graph=False)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Log the model directory if all went well, and end the run: the next fit has its own."""
        super().finalize(status)
        run, self._experiment = self._experiment, None
        if run is None or run.id != self._id:  # never begun, or somebody else's: theirs to end
            return
        if status == "success" and self.log_model_dir and self._model_dir is not None:
            import wandb  # slow, and not needed by other loggers

            name, alias = self._artifact
            artifact = wandb.Artifact(name, type="model")
            for file in MODEL_FILES:
                if (self._model_dir / file).is_file():
                    artifact.add_file(str(self._model_dir / file))  # copied: the next fit changes the files
            run.log_artifact(artifact, aliases=["latest", alias])
        run.finish(exit_code=0 if status == "success" else 1)


class TensorBoardRun(TensorBoardLogger):
    """TensorBoard files in the run folder; `tensorboard --logdir runs/demo/model/runs` shows all fits.

    A fit that goes on from a checkpoint goes on in the same folder. Needs the package `tensorboard`.

    Args:
        save_dir: None: the run folder.
        name: Folder in it.
        version: Folder in that.
        default_hp_metric: Log a metric ``hp_metric`` of -1, which only TensorBoard's table of parameters needs.
        **kwargs: Further arguments of `TensorBoardLogger`.
    """

    def __init__(
        self,
        save_dir: str | None = None,
        name: str = "tensorboard",
        version: str = "",
        default_hp_metric: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(save_dir or ".", name, version, default_hp_metric=default_hp_metric, **kwargs)
        self._placed = save_dir is not None

    def describe(
        self, stage: RPFStage, config: Mapping[str, Any], command: str = "fit", resumed: bool = False
    ) -> None:
        """Take the run folder, and for other commands than ``"fit"`` a folder of their own in it.

        A fit from the beginning takes a new folder beside those of earlier ones: `tensorboard_2`.
        """
        if not self._placed:
            self._root_dir = str(stage.run_dir if command == "fit" else stage.run_dir / command)
            root, name = Path(self._root_dir), self._name

            def numbered(number: int) -> str:
                return name if number == 1 else f"{name}_{number}"

            free = next(number for number in count(1) if not (root / numbered(number)).exists())
            self._name = numbered(max(free - 1, 1) if resumed else free)


def _run_id(path: Path | None, name: str, resumed: bool) -> str:
    """The id of a run: a new one, or of a fit that goes on the one that it was begun with.

    Args:
        path: Where it is kept; None: nowhere.
        name: Its beginning; all of it in older releases.
        resumed: Whether the fit goes on.
    """
    if resumed and path is not None:
        return path.read_text().strip() if path.is_file() else name
    new = f"{name}-{secrets.token_hex(4)}"
    if path is not None and first_process():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, f"{new}\n".encode())
    return new


def run_group(model_dir: Path) -> str:
    """The name under which W&B shows a model directory's fits together.

    It is drawn once and kept in `runs/group.txt`, so that it stays when the directory is moved, and another
    directory of the same name has another one.
    """
    path = model_dir / GROUP_FILE
    if not path.is_file():
        name = re.sub(r"[^\w.-]+", "-", model_dir.resolve().name, flags=re.ASCII) or "model"
        if not first_process():  # has no run; the first process names the group
            return name
        path.parent.mkdir(parents=True, exist_ok=True)
        # not of the seeded generators: these must be different, and training undisturbed
        write_atomically(path, f"{name[:60]}-{secrets.token_hex(4)}\n".encode())
    return path.read_text().strip()
