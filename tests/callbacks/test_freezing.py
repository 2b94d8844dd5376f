"""FreezeEarlierBlocks: on every start and every resume, before the optimizers are made."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel
from torch import nn

from rpf_lightning.callbacks import FreezeEarlierBlocks
from rpf_lightning.stages import RefinementStage, RPFStage, SynthesisStage, WarpingStage

Fit = Callable[..., Any]
OFF = {"adversarial_weight": 0.0, "perceptual_weight": 0.0, "identity_weight": 0.0}


class Watch(Callback):
    """Notes in every training batch which parameters have gradients on and which modules are in train mode."""

    def __init__(self) -> None:
        self.requires_grad: list[set[str]] = []
        self.training: list[set[str]] = []
        self.held: list[set[int]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        model = pl_module.model
        self.requires_grad.append({name for name, p in model.named_parameters() if p.requires_grad})
        self.training.append({name for name, module in model.named_modules() if module.training})
        self.held.append({id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]})


def stages(model_dir: Path) -> list[RPFStage]:
    path = str(model_dir)
    return [
        WarpingStage(path, 2),
        SynthesisStage(path, 2),
        RefinementStage(path, 2, **{**OFF, "adversarial_weight": 1.0}),
        RefinementStage(path, 1, input="synthesized", **OFF),
    ]


def names(stage: RPFStage) -> tuple[str, set[str], set[str]]:
    own = next(name for name, module in stage.model.named_modules() if module is stage.trained_module)
    parameters = {name for name, _ in stage.model.named_parameters() if name.startswith(own + ".")}
    modules = {name for name, _ in stage.model.named_modules() if name == own or name.startswith(own + ".")}
    return own, parameters, modules


@pytest.mark.parametrize("number", range(4))
def test_only_the_trained_module_is_free(model_dir: Path, fit: Fit, number: int) -> None:
    stage, watch = stages(model_dir)[number], Watch()
    _, parameters, modules = names(stage)
    # validation after the first epoch: Lightning switches modes there and back
    fit(stage, epochs=2, callbacks=[FreezeEarlierBlocks(), watch], validate=True)
    assert watch.requires_grad == [parameters] * 4
    assert watch.training == [modules] * 4
    own = {id(p) for p in stage.trained_module.parameters()}
    assert watch.held == [own] * 4


def test_freezes_again_after_resuming(model_dir: Path, tmp_path: Path, fit: Fit) -> None:
    first = WarpingStage(str(model_dir), 2)
    checkpoint = ModelCheckpoint(tmp_path, save_last=True)
    fit(first, callbacks=[FreezeEarlierBlocks(), checkpoint], enable_checkpointing=True)
    again, watch = WarpingStage(str(model_dir), 2), Watch()
    _, parameters, modules = names(again)
    assert all(p.requires_grad for p in again.model.parameters())  # a new stage starts free
    fit(again, epochs=2, callbacks=[FreezeEarlierBlocks(), watch], ckpt_path=tmp_path / "last.ckpt")
    assert watch.requires_grad == [parameters] * 2
    assert watch.training == [modules] * 2


def test_frees_a_module_that_was_frozen_before(model_dir: Path, fit: Fit) -> None:
    stage = WarpingStage(str(model_dir), 1)
    stage.model.requires_grad_(False)
    before = stage.trained_module.flow_head.bias.clone()
    fit(stage, callbacks=[FreezeEarlierBlocks()])
    assert not before.equal(stage.trained_module.flow_head.bias)


def test_leaves_the_critic_free(model_dir: Path, fit: Fit) -> None:
    stage = SynthesisStage(str(model_dir), 1)
    fit(stage, callbacks=[FreezeEarlierBlocks()])
    assert all(p.requires_grad for p in stage.critic.parameters())


def test_frozen_dropout_stays_silent(model_dir: Path, fit: Fit) -> None:
    """A layer that tells training from evaluation, in a frozen block and in the trained module."""
    seen: dict[str, list[bool]] = {"frozen": [], "trained": []}

    class Spy(nn.Module):
        def __init__(self, inner: nn.Module, key: str) -> None:
            super().__init__()
            self.inner, self.key = inner, key

        def forward(self, *args: Any) -> Any:
            seen[self.key].append(self.training)
            return self.inner(*args)

    stage = WarpingStage(str(model_dir), 2)
    latents = stage.model.blocks[0].refinement.latents  # called as modules in strips too
    latents[0] = Spy(latents[0], "frozen")
    features = stage.model.blocks[1].warping.reference_features
    stage.model.blocks[1].warping.reference_features = Spy(features, "trained")
    fit(stage, callbacks=[FreezeEarlierBlocks()], fast_dev_run=2)
    assert seen == {"frozen": [False] * 2, "trained": [True] * 2}


def test_foreign_module() -> None:
    trainer = Trainer(
        fast_dev_run=True, accelerator="cpu", callbacks=[FreezeEarlierBlocks()], logger=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    with pytest.raises(TypeError, match="BoringModel"):
        trainer.fit(BoringModel())
