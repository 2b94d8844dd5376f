"""AveragedWeights: what is averaged and when, who gets the average, and that fits can be interrupted."""

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning import Callback, Trainer
from torch import Tensor, nn

import stage_fits
from rpf_lightning.callbacks import AveragedWeights, LastCheckpoint
from rpf_lightning.model import RPFModel
from rpf_lightning.stages import RPFStage
from rpf_lightning.training import lightning_cli
from small_fits import write_fit
from stage_fits import call, differing, kill

Fit = Callable[..., Any]
BatchOf = Callable[..., Any]
State = dict[str, Tensor]


def weights(stage: nn.Module, beginning: str = "") -> State:
    return {k: v.detach().clone() for k, v in stage.state_dict().items() if k.startswith(beginning)}


def load(path: Path) -> Any:
    return torch.load(path, weights_only=True)


def equal(a: State, b: State) -> bool:
    return a.keys() == b.keys() and not differing(a, b)


def run(
    stage: RPFStage, folder: Path, epochs: int = 1, ckpt_path: Path | None = None, **kwargs: Any
) -> Trainer:
    """Six batches of two pairs per epoch; the last checkpoint is `folder/last.ckpt`."""
    callbacks = [*kwargs.pop("callbacks", [AveragedWeights()]), LastCheckpoint(folder, 4)]
    options = {"callbacks": callbacks, "enable_checkpointing": True, **kwargs}
    return stage_fits.run(stage, stage_fits.faces(), folder, epochs, ckpt_path=ckpt_path, **options)


class Steps(Callback):
    """Keeps the trained parameters before the fit and after every step of the generator."""

    def __init__(self) -> None:
        self.kept: list[State] = []
        self.offset = 0  # steps of before the fit went on

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.kept = [self.look(pl_module)]

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        if pl_module.generator_steps - self.offset == len(self.kept):
            self.kept.append(self.look(pl_module))

    @staticmethod
    def look(stage: Any) -> State:
        return {k: v.detach().clone() for k, v in stage.trained_module.named_parameters()}

    def average(self, decay: float) -> State:
        mean = {k: v.double() for k, v in self.kept[0].items()}
        for t, step in enumerate(self.kept[1:]):
            keep = min(decay, (1 + t) / (10 + t))
            mean = {k: keep * mean[k] + (1 - keep) * step[k].double() for k in mean}
        return {k: v.float() for k, v in mean.items()}


@pytest.fixture
def start(model_dir: Path) -> Callable[..., RPFStage]:
    """`start(kind)` is a stage as on the first day."""
    return partial(stage_fits.fresh(model_dir), block=1, learning_rate=1e-2)


Start = Callable[..., RPFStage]


# What is averaged, and when


@pytest.mark.parametrize(("decay", "accumulate"), [(0.999, 1), (0.3, 2)])
def test_one_update_per_generator_step(
    start: Start, fit: Fit, batch_of: BatchOf, decay: float, accumulate: int
) -> None:
    """With two optimizers, whose steps the trainer counts together, and where an epoch's last group is smaller."""
    stage, steps = start(accumulate=accumulate), Steps()
    batches = [batch_of(1, 0), batch_of(1, 1), batch_of(1, 0)]
    trainer = fit(stage, 2, [AveragedWeights(decay), steps], batches=batches)
    assert len(trainer.optimizers) == 2
    assert len(steps.kept) == 1 + (6 if accumulate == 1 else 4)
    expected, found = steps.average(decay), Steps.look(stage)
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-7)
        assert not torch.allclose(value, steps.kept[-1][name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("first", [True, False])
def test_parts_of_the_trained_module_that_are_frozen_are_not_averaged(
    start: Start, tmp_path: Path, first: bool
) -> None:
    """Whichever of the callbacks is set up first."""

    freeze = call(setup=lambda _, module, **__: module.trained_module.flow_head.requires_grad_(False))
    callbacks = [AveragedWeights(), freeze] if first else [freeze, AveragedWeights()]
    stage = start("warping")
    run(stage, tmp_path, callbacks=callbacks)
    names = load(tmp_path / "last.ckpt")["current_model_state"].keys()
    own = {f"model.blocks.0.warping.{name}" for name, _ in stage.trained_module.named_parameters()}
    assert names == {name for name in own if "flow_head" not in name} < own


def test_several_blocks(start: Start, model_dir: Path, tmp_path: Path) -> None:
    """Of a joint fit: the stage's list of blocks is made anew each time; interrupted within an epoch."""
    whole = start("joint", block=2)
    run(whole, tmp_path / "a", 2)
    last = load(tmp_path / "a" / "last.ckpt")
    names = {f"model.{name}" for name, _ in whole.model.blocks.named_parameters(prefix="blocks")}
    assert last["current_model_state"].keys() == names
    with pytest.raises(KeyError, match="killed"):
        run(start("joint", block=2), tmp_path / "b", 2, callbacks=[AveragedWeights(), kill(11)])
    resumed = start("joint", block=2)
    run(resumed, tmp_path / "b", 2, tmp_path / "b" / "last.ckpt")
    assert equal(weights(whole), weights(resumed))
    assert equal(last["current_model_state"], load(tmp_path / "b" / "last.ckpt")["current_model_state"])
    assert equal(weights(whole.model), dict(RPFModel.from_pretrained(model_dir).state_dict()))


def test_training_is_the_same_with_and_without(start: Start, tmp_path: Path) -> None:
    """The raw weights, the critic and both optimizers, with validations in between."""
    runs = {"with": [AveragedWeights()], "without": []}
    for name, callbacks in runs.items():
        options = {"limit_val_batches": 1, "val_check_interval": 1, "callbacks": callbacks}
        run(start(accumulate=2), tmp_path / name, 2, **options)
    averaged, plain = (load(tmp_path / name / "last.ckpt") for name in runs)
    assert equal({**averaged["state_dict"], **averaged["current_model_state"]}, plain["state_dict"])
    torch.testing.assert_close(averaged["optimizer_states"], plain["optimizer_states"], rtol=0, atol=0)
    assert torch.equal(averaged["random_states"][0]["torch"], plain["random_states"][0]["torch"])


# Who gets it


def test_validation_sees_the_average_and_training_the_raw_weights(start: Start, fit: Fit) -> None:
    seen: list[State] = []

    class Look(Callback):
        def on_validation_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
            seen.append(Steps.look(pl_module))

        def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
            assert equal(Steps.look(pl_module), steps.kept[-1])

    stage, steps = start(), Steps()
    fit(stage, 2, [AveragedWeights(), steps, Look()], validate=True)
    assert len(seen) == 4
    assert equal(seen[2], seen[3])
    for name, value in steps.average(0.999).items():
        torch.testing.assert_close(seen[3][name], value, rtol=1e-5, atol=1e-7)
    assert equal(Steps.look(stage), seen[3])  # after the fit


def test_a_validation_that_breaks_off_leaves_the_raw_weights(start: Start, fit: Fit) -> None:
    class Break(Callback):
        def on_validation_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
            assert not equal(Steps.look(pl_module), steps.kept[-1])
            raise KeyError("killed")

    stage, steps = start(), Steps()
    with pytest.raises(KeyError, match="killed"):
        fit(stage, 1, [AveragedWeights(), steps, Break()], validate=True)
    assert equal(Steps.look(stage), steps.kept[-1])


def test_the_directory_gets_the_average(start: Start, model_dir: Path, tmp_path: Path) -> None:
    """The raw weights are there until all checkpoints are written."""
    ends = []

    look = call(on_train_end=lambda _, stage: ends.append(weights(stage, "model.blocks.0.synthesis.")))
    trainer = run(start(), tmp_path, callbacks=[AveragedWeights(), look])
    last = load(tmp_path / "last.ckpt")
    trainer.save_checkpoint(tmp_path / "after.ckpt", weights_only=False)
    assert equal(load(tmp_path / "after.ckpt")["state_dict"], last["state_dict"])
    for name, value in RPFModel.from_pretrained(model_dir).blocks[0].synthesis.state_dict().items():
        assert torch.equal(value, last["state_dict"][f"model.blocks.0.synthesis.{name}"])
        assert not torch.equal(value, ends[0][f"model.blocks.0.synthesis.{name}"])
    assert equal(ends[0], last["current_model_state"])
    # also where no batch is left: killed between the last checkpoint and the model directory
    file = model_dir / "model.safetensors"
    after = file.read_bytes()
    stage = start()
    assert file.read_bytes() != after
    run(stage, tmp_path, ckpt_path=tmp_path / "last.ckpt")
    assert file.read_bytes() == after


# Checkpoints


def test_checkpoints_hold_the_trained_module_twice_and_nothing_else(
    start: Start, tmp_path: Path, make_pack: Callable[..., Path]
) -> None:
    make_pack()
    stage = start("lr", identity_weight=0.5)
    assert any(name.startswith("identity.") for name in stage.state_dict())
    run(stage, tmp_path)
    checkpoint = load(tmp_path / "last.ckpt")
    for part in ("state_dict", "current_model_state", "averaging_state"):
        assert {type(value) for value in checkpoint[part].values()} == {Tensor}
    own = {name: value.shape for name, value in weights(stage, "model.blocks.0.refinement.").items()}
    critic = weights(stage, "critic.")
    assert checkpoint["state_dict"].keys() == own.keys() | critic.keys()
    assert {name: value.shape for name, value in checkpoint["current_model_state"].items()} == own
    assert not any(
        torch.equal(checkpoint["state_dict"][k], checkpoint["current_model_state"][k]) for k in own
    )
    assert equal({k: checkpoint["state_dict"][k] for k in critic}, critic)  # not averaged
    run(stage := start("lr", identity_weight=0.5), tmp_path / "b")
    assert (tmp_path / "last.ckpt").stat().st_size == (tmp_path / "b" / "last.ckpt").stat().st_size


@pytest.mark.parametrize(("within", "accumulate"), [(False, 1), (True, 2)])
def test_going_on_equals_not_stopping(start: Start, tmp_path: Path, within: bool, accumulate: int) -> None:
    """Bitwise, raw and average: resumed after an epoch's end, and within an epoch."""
    options = {"limit_val_batches": 1}
    whole = start(accumulate=accumulate, decay="cosine" if within else "none")
    run(whole, tmp_path / "a", 2, **options)
    first = start(accumulate=accumulate, decay="cosine" if within else "none")
    if within:  # 6 batches per epoch, and a checkpoint after the fourth
        with pytest.raises(KeyError, match="killed"):
            run(first, tmp_path / "b", 2, callbacks=[AveragedWeights(), kill(6)], **options)
    else:
        run(first, tmp_path / "b", 1, **options)
    last = tmp_path / "b" / "last.ckpt"
    assert load(last)["generator_steps"] == (10 if within else 6) // accumulate
    resumed = start(accumulate=accumulate, decay="cosine" if within else "none", keep=not within)
    torch.manual_seed(99)
    run(resumed, tmp_path / "b", 2, last, **options)
    assert equal(weights(whole), weights(resumed))  # the average, the critic
    ends = [load(tmp_path / name / "last.ckpt") for name in ("a", "b")]
    for part in ("state_dict", "current_model_state", "averaging_state"):
        assert equal(ends[0][part], ends[1][part])
    assert ends[1]["averaging_state"] == {"n_averaged": torch.tensor(12 // accumulate)}
    torch.testing.assert_close(ends[0]["optimizer_states"], ends[1]["optimizer_states"], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("hook", "first"), [("on_train_batch_end", True), ("on_validation_batch_end", False)]
)
def test_whoever_saves_in_between_saves_the_same(
    start: Start, tmp_path: Path, hook: str, first: bool
) -> None:
    """Before the average is updated, and while it stands in the place of the raw weights."""

    def save(trainer: Trainer, *args: Any) -> None:
        trainer.save_checkpoint(tmp_path / "between.ckpt", weights_only=False)

    saver = call(**{hook: save})
    callbacks = [saver, AveragedWeights()] if first else [AveragedWeights(), saver]
    run(start(), tmp_path, callbacks=callbacks, limit_val_batches=1)
    last, between = load(tmp_path / "last.ckpt"), load(tmp_path / "between.ckpt")
    for part in ("state_dict", "current_model_state", "averaging_state"):
        assert equal(last[part], between[part])


def test_a_checkpoint_without_average_starts_one(start: Start, tmp_path: Path) -> None:
    run(start(), tmp_path / "a", callbacks=[])
    stage, steps = start(), Steps()
    steps.offset = 6
    with pytest.warns(UserWarning, match="holds no averaged weights: the average starts from its weights"):
        run(stage, tmp_path / "b", 2, tmp_path / "a" / "last.ckpt", callbacks=[AveragedWeights(), steps])
    assert len(steps.kept) == 7
    for name, value in steps.average(0.999).items():
        torch.testing.assert_close(Steps.look(stage)[name], value, rtol=1e-5, atol=1e-7)
    assert load(tmp_path / "b" / "last.ckpt")["averaging_state"]["n_averaged"] == 6


def test_a_fit_without_the_callback_goes_on_with_the_average(start: Start, tmp_path: Path) -> None:
    run(start(), tmp_path / "a")
    stage, steps = start(), Steps()
    with pytest.warns(UserWarning, match=r"add the following callbacks: \['AveragedWeights'\]"):
        run(stage, tmp_path / "b", 2, tmp_path / "a" / "last.ckpt", callbacks=[steps])
    saved, own = load(tmp_path / "a" / "last.ckpt"), "model.blocks.0.synthesis."
    assert all(torch.equal(v, saved["state_dict"][own + k]) for k, v in steps.kept[0].items())
    assert stage.generator_steps == 12
    assert "current_model_state" not in load(tmp_path / "b" / "last.ckpt")


def test_weights_that_are_not_finite_are_not_saved(start: Start, tmp_path: Path) -> None:
    """Also where they come from the last batch of all; the message names the loss, as without the callback."""

    def poison(trainer: Trainer, stage: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 3:
            batch.gt[0, 0, 5, 5] = float("nan")

    with pytest.raises(FloatingPointError, match="loss not finite"):
        run(start(), tmp_path / "a", callbacks=[AveragedWeights(), call(on_train_batch_start=poison)])
    assert not (tmp_path / "a" / "last.ckpt").exists()


# Configuration


@pytest.mark.parametrize("decay", [1.0, float("nan")])
def test_decay_must_be_a_share(decay: float) -> None:
    with pytest.raises(ValueError, match=rf"decay: expected a number in \[0, 1\), got {decay}"):
        AveragedWeights(decay)


AVERAGED = {"class_path": "rpf_lightning.callbacks.AveragedWeights", "init_args": {"decay": 0.9}}


def test_from_yaml(tmp_path: Path, model_dir: Path) -> None:
    """The best checkpoint has the score of what it holds, and validation of the directory finds it again."""
    path = write_fit(
        tmp_path / "fit.yaml", "WarpingStage", {"callbacks": [AVERAGED], "max_epochs": 2},
        model_dir=str(model_dir), block=2, learning_rate=1e-2, flow_weight=0.02,
    )  # fmt: skip
    cli = lightning_cli(["fit", "--config", str(path)])
    assert [c.decay for c in cli.trainer.callbacks if isinstance(c, AveragedWeights)] == [0.9]
    saved = yaml.safe_load((model_dir / "runs/block2-warping/logs/version_0/config.yaml").read_text())
    assert AVERAGED in saved["trainer"]["callbacks"]
    folder = model_dir / "runs" / "block2-warping" / "checkpoints"
    last = load(folder / "last.ckpt")
    assert last["averaging_state"]["n_averaged"] == 4
    assert last["state_dict"].keys() == last["current_model_state"].keys()  # no critic
    for name, value in RPFModel.from_pretrained(model_dir).blocks[1].warping.state_dict().items():
        assert torch.equal(value, last["state_dict"][f"model.blocks.1.warping.{name}"])
    best = next(s for s in last["callbacks"].values() if "best_model_score" in s)["best_model_score"]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # such as that the average cannot be restored
        warnings.filterwarnings("ignore", "The dirpath has changed|.*TypedStorage")
        cli = lightning_cli(["validate", "--config", str(path), "--ckpt_path", str(folder / "best.ckpt")])
    assert cli.trainer.callback_metrics["val/end_point_error"].item() == pytest.approx(best.item(), rel=1e-4)
