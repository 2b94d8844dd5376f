"""FreezeEarlierBlocks: every stage brings it; on every start and every resume, before the optimizers are made."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning import Callback, Trainer
from torch import nn

from rpf_lightning.callbacks import AveragedWeights, FreezeEarlierBlocks, LastCheckpoint
from rpf_lightning.stages import JointStage, RefinementStage, RPFStage, SynthesisStage, WarpingStage
from rpf_lightning.stages.sole_fit import SoleFit
from stage_fits import BARE, call, faces, kill, make, run

Fit = Callable[..., Any]


class Watch(Callback):
    """Notes in every training batch which parameters have gradients on and which modules are in train mode."""

    def __init__(self) -> None:
        self.requires_grad: list[set[str]] = []
        self.training: list[set[str]] = []
        self.held: list[set[str]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        model = pl_module.model
        names = {id(p): name for name, p in model.named_parameters()}
        self.requires_grad.append({name for name, p in model.named_parameters() if p.requires_grad})
        self.training.append({name for name, module in model.named_modules() if module.training})
        groups = trainer.optimizers[0].param_groups
        self.held.append({names[id(p)] for group in groups for p in group["params"]})


def names(stage: RPFStage, *own: str) -> tuple[set[str], set[str]]:
    """Of the parameters and of the modules that a stage trains."""
    beginnings = tuple(f"{name}." for name in own)
    parameters = {name for name, _ in stage.model.named_parameters() if name.startswith(beginnings)}
    return parameters, {name for name, _ in stage.model.named_modules() if f"{name}.".startswith(beginnings)}


JOINT = [f"blocks.1.{module}" for module in ("warping", "synthesis", "refinement")]


@pytest.mark.parametrize(
    ("start", "own", "listed"),
    [
        (lambda path: WarpingStage(path, 2), ["blocks.1.warping"], []),
        (lambda path: SynthesisStage(path, 2), ["blocks.1.synthesis"], [FreezeEarlierBlocks]),
        (lambda path: RefinementStage(path, 1, input="synthesized", **BARE), ["blocks.0.refinement"], []),
        (lambda path: JointStage(path, 2, 2, **BARE), JOINT, []),
    ],
    ids=["warping", "synthesis, listed", "finetune", "joint"],
)
def test_only_what_is_trained_is_free(
    model_dir: Path, fit: Fit, start: Callable[[str], RPFStage], own: list[str], listed: list[type[Callback]]
) -> None:
    stage, watch = start(str(model_dir)), Watch()
    parameters, modules = names(stage, *own)
    # validation after the first epoch: Lightning switches modes there and back
    trainer = fit(stage, epochs=2, callbacks=[*(kind() for kind in listed), watch], validate=True)
    assert watch.requires_grad == watch.held == [parameters] * 4
    assert watch.training == [modules] * 4
    if getattr(stage, "critic", None) is not None:
        assert all(p.requires_grad for p in stage.critic.parameters())
    assert [type(c) for c in trainer.callbacks].count(FreezeEarlierBlocks) == 1


def test_the_order_of_callbacks(model_dir: Path, tmp_path: Path) -> None:
    """Checkpoints come last; a Trainer that goes on with another stage still has one of each."""
    trainer = run(
        WarpingStage(str(model_dir), 1), faces(), tmp_path, callbacks=[LastCheckpoint(), AveragedWeights()],
        enable_checkpointing=True, limit_train_batches=1,
    )  # fmt: skip
    for _ in range(2):
        kinds = [type(callback) for callback in trainer.callbacks]
        assert kinds == [AveragedWeights, FreezeEarlierBlocks, SoleFit, LastCheckpoint]
        trainer.fit(SynthesisStage(str(model_dir), 1), faces())


def test_freezes_again_after_resuming_within_an_epoch(model_dir: Path, tmp_path: Path) -> None:
    kept = LastCheckpoint(tmp_path, every_n_batches=2)
    options = {"callbacks": [kept, kill(3)], "enable_checkpointing": True}
    with pytest.raises(KeyError, match="killed"):
        run(make("warping", model_dir), faces(), tmp_path, **options)
    again, watch = make("warping", model_dir), Watch()
    parameters, modules = names(again, "blocks.1.warping")
    assert all(p.requires_grad for p in again.model.parameters())  # a new stage starts free
    run(again, faces(), tmp_path, callbacks=[watch], ckpt_path=tmp_path / "last.ckpt")
    assert watch.requires_grad == [parameters] * 4
    assert watch.training == [modules] * 4


@pytest.mark.parametrize("whole", [True, False])
def test_frees_a_module_that_was_frozen_before_and_no_part_that_others_froze(
    model_dir: Path, fit: Fit, whole: bool
) -> None:
    def freeze(trainer: Trainer, module: Any, **_: Any) -> None:
        (module.model if whole else module.trained_module.flow_head).requires_grad_(False)

    stage = WarpingStage(str(model_dir), 1)
    before = stage.trained_module.flow_head.bias.clone()
    fit(stage, callbacks=[call(setup=freeze)])
    assert before.equal(stage.trained_module.flow_head.bias) is not whole


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
    fit(stage, fast_dev_run=2)
    assert seen == {"frozen": [False] * 2, "trained": [True] * 2}
