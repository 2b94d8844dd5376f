"""What the tests of the stages share: stages on the tiny network, fits of drawn faces, a kill, comparisons."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningDataModule, Trainer
from torch import Tensor

from rpf_lightning.data import SyntheticFacesDataModule
from rpf_lightning.model import RPFModel
from rpf_lightning.stages import JointStage, RefinementStage, RPFStage, SynthesisStage, WarpingStage
from small_fits import QUIET

BARE = {"perceptual_weight": 0.0, "identity_weight": 0.0}  # with a critic
OFF = {"adversarial_weight": 0.0, **BARE}


def make(kind: str, model_dir: Path, block: int = 2, **kwargs: Any) -> RPFStage:
    """A stage by name; a refinement by its input, without the terms that need others' weights."""
    if kind == "warping":
        return WarpingStage(str(model_dir), block, **kwargs)
    if kind == "synthesis":
        return SynthesisStage(str(model_dir), block, **kwargs)
    if kind == "joint":
        return JointStage(str(model_dir), 1, block, **{**BARE, **kwargs})
    return RefinementStage(str(model_dir), block, input=kind, **{**BARE, **kwargs})


def faces(**kwargs: Any) -> SyntheticFacesDataModule:
    """12 training pairs in batches of 2, and two for validation."""
    options = {"people": 8, "photos_each": 2, "batch_size": 2, "val_fraction": 0.25, **kwargs}
    return SyntheticFacesDataModule(**options)


def run(stage: RPFStage, data: LightningDataModule, folder: Path, epochs: int = 1, **kwargs: Any) -> Trainer:
    """A fit without validation."""
    ckpt_path, callbacks = kwargs.pop("ckpt_path", None), kwargs.pop("callbacks", [])
    options = {**QUIET, "max_epochs": epochs, "limit_val_batches": 0, "default_root_dir": folder, **kwargs}
    trainer = Trainer(callbacks=callbacks, **options)
    trainer.fit(stage, data, ckpt_path=ckpt_path)
    return trainer


def fresh(model_dir: Path) -> Callable[..., RPFStage]:
    """`start(kind)` makes a stage as on the first day: the same weights in the directory, the same critic."""
    file = model_dir / "model.safetensors"
    weights = file.read_bytes()

    def start(kind: str = "synthesis", block: int = 2, keep: bool = False, **kwargs: Any) -> RPFStage:
        if not keep:
            file.write_bytes(weights)
        torch.manual_seed(0)
        stage = make(kind, model_dir, block, **kwargs)
        torch.manual_seed(1)
        return stage

    return start


def call(**hooks: Callable[..., None]) -> Callback:
    """A callback of these functions of trainer, stage, ..."""
    made = Callback()
    for name, function in hooks.items():
        setattr(made, name, function)
    return made


def kill(step: int) -> Callback:
    """Ends a fit with a KeyError after so many generator steps."""

    def end(trainer: Any, stage: Any, *_: Any) -> None:
        if stage.generator_steps == step:
            raise KeyError("killed")

    return call(on_train_batch_end=end)


@torch.no_grad()
def shift(model_dir: Path, *names: str) -> None:
    """Change parameters of a directory's model a little."""
    model = RPFModel.from_pretrained(model_dir)
    for name in names:
        model.get_parameter(name).add_(0.1)
    model.save_pretrained(model_dir)


def snapshot(module: torch.nn.Module) -> dict[str, Tensor]:
    """Parameters and all buffers, those outside the state dict as well."""
    return {k: v.detach().clone() for k, v in (*module.named_parameters(), *module.named_buffers())}


def differing(a: dict[str, Tensor], b: dict[str, Tensor]) -> set[str]:
    """Names of what is not bitwise the same."""
    assert a.keys() == b.keys()
    return {key for key in a if not torch.equal(a[key], b[key])}
