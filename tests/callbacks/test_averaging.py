"""AveragedWeights: what is averaged and when, who gets the average, and that fits can be interrupted."""

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

from rpf_lightning.callbacks import AveragedWeights, FreezeEarlierBlocks, LastCheckpoint
from rpf_lightning.data import SyntheticFacesDataModule
from rpf_lightning.model import RPFModel
from rpf_lightning.stages import JointStage, RefinementStage, RPFStage, SynthesisStage, WarpingStage
from rpf_lightning.training import lightning_cli
from small_fits import QUIET, write_fit

Fit = Callable[..., Any]
BatchOf = Callable[..., Any]
State = dict[str, Tensor]


def weights(stage: nn.Module, beginning: str = "") -> State:
    return {k: v.detach().clone() for k, v in stage.state_dict().items() if k.startswith(beginning)}


def equal(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def load(path: Path) -> Any:
    return torch.load(path, weights_only=True)


def run(
    stage: RPFStage, folder: Path, epochs: int = 1, ckpt_path: Path | None = None, **kwargs: Any
) -> Trainer:
    """Six batches of two pairs per epoch; the last checkpoint is `folder/last.ckpt`."""
    callbacks = [FreezeEarlierBlocks(), *kwargs.pop("callbacks", [AveragedWeights()])]
    options = {**QUIET, "max_epochs": epochs, "limit_val_batches": 0, "default_root_dir": folder, **kwargs}
    trainer = Trainer(
        **{**options, "callbacks": [*callbacks, LastCheckpoint(folder, 4)], "enable_checkpointing": True}
    )
    data = SyntheticFacesDataModule(people=8, photos_each=2, batch_size=2, val_fraction=0.25)
    trainer.fit(stage, data, ckpt_path=ckpt_path)
    return trainer


class Steps(Callback):
    """Keeps the trained parameters before the fit and after every step of the generator."""

    def __init__(self) -> None:
        self.kept: list[State] = []

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.kept = [self.look(pl_module)]

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        if pl_module.generator_steps == len(self.kept):
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
    """`start(kind)` is a stage as on the first day: the same weights in the directory, the same critic."""
    file = model_dir / "model.safetensors"
    fresh = file.read_bytes()

    def make(kind: Any = SynthesisStage, block: int = 1, keep: bool = False, **kwargs: Any) -> RPFStage:
        if not keep:
            file.write_bytes(fresh)
        torch.manual_seed(0)
        stage: RPFStage = kind(str(model_dir), block=block, **{"learning_rate": 1e-2, **kwargs})
        torch.manual_seed(1)
        return stage

    return make


Start = Callable[..., RPFStage]


# What is averaged, and when


@pytest.mark.parametrize("decay", [0.999, 0.3])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_one_update_per_generator_step(
    start: Start, fit: Fit, batch_of: BatchOf, decay: float, accumulate: int
) -> None:
    """With two optimizers, whose steps the trainer counts together, and where an epoch's last group is smaller."""
    stage, steps = start(accumulate=accumulate), Steps()
    batches = [batch_of(1, 0), batch_of(1, 1), batch_of(1, 0)]
    trainer = fit(stage, 2, [FreezeEarlierBlocks(), AveragedWeights(decay), steps], batches=batches)
    assert len(trainer.optimizers) == 2
    assert len(steps.kept) == 1 + (6 if accumulate == 1 else 4)
    expected, found = steps.average(decay), Steps.look(stage)
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-7)
        assert not torch.allclose(value, steps.kept[-1][name], rtol=1e-4, atol=1e-6)


def test_what_is_frozen_stays_as_it_was(start: Start, model_dir: Path, fit: Fit) -> None:
    """To the last bit: the stage itself refuses to write a model whose frozen weights changed."""
    stage = start(block=2)
    before = weights(stage)
    fit(stage, 3, [FreezeEarlierBlocks(), AveragedWeights()])
    own = "model.blocks.1.synthesis."
    frozen = {k: v for k, v in before.items() if k.startswith("model.") and not k.startswith(own)}
    assert len(frozen) > 10
    after = RPFModel.from_pretrained(model_dir).state_dict()
    assert all(torch.equal(after[k.removeprefix("model.")], v) for k, v in frozen.items())
    assert not any(torch.equal(stage.state_dict()[k], v) for k, v in before.items() if k.startswith(own))


@pytest.mark.parametrize("first", [True, False])
def test_parts_of_the_trained_module_that_are_frozen_are_not_averaged(
    start: Start, tmp_path: Path, first: bool
) -> None:
    """Whichever of the callbacks is set up first."""

    class FreezeHead(Callback):
        def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
            pl_module.trained_module.flow_head.requires_grad_(False)

    callbacks = [AveragedWeights(), FreezeHead()] if first else [FreezeHead(), AveragedWeights()]
    stage = start(WarpingStage)
    run(stage, tmp_path, callbacks=callbacks)
    names = load(tmp_path / "last.ckpt")["current_model_state"].keys()
    own = {f"model.blocks.0.warping.{name}" for name, _ in stage.trained_module.named_parameters()}
    assert names == {name for name in own if "flow_head" not in name} < own


def test_several_blocks(start: Start, model_dir: Path, tmp_path: Path) -> None:
    """Of a joint fit: the stage's list of blocks is made anew each time; interrupted within an epoch."""
    options = {"perceptual_weight": 0.0, "identity_weight": 0.0}
    whole = start(JointStage, 2, **options)
    run(whole, tmp_path / "a", 2)
    last = load(tmp_path / "a" / "last.ckpt")
    names = {f"model.{name}" for name, _ in whole.model.blocks.named_parameters(prefix="blocks")}
    assert last["current_model_state"].keys() == names
    with pytest.raises(KeyError, match="killed"):
        run(start(JointStage, 2, **options), tmp_path / "b", 2, callbacks=[AveragedWeights(), Stop(11)])
    resumed = start(JointStage, 2, **options)
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


def test_one_copy_of_the_trained_parameters_for_the_time_of_the_fit(start: Start, fit: Fit) -> None:
    sizes = []

    class Look(Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            assert average._average_model is not None
            sizes.append(sum(p.numel() for p in average._average_model.module.state_dict().values()))

    stage, average = start(), AveragedWeights()
    fit(stage, callbacks=[average, Look()])
    assert sizes == [sum(p.numel() for p in stage.trained_module.parameters())] * 2
    assert average._average_model is None
    assert average._trained == {}


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

    class Look(Callback):
        def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
            ends.append(weights(pl_module, "model.blocks.0.synthesis."))

    run(start(), tmp_path, callbacks=[AveragedWeights(), Look()])
    last = load(tmp_path / "last.ckpt")
    for name, value in RPFModel.from_pretrained(model_dir).blocks[0].synthesis.state_dict().items():
        assert torch.equal(value, last["state_dict"][f"model.blocks.0.synthesis.{name}"])
        assert not torch.equal(value, ends[0][f"model.blocks.0.synthesis.{name}"])
    assert equal(ends[0], last["current_model_state"])


def test_the_directory_gets_the_average_where_no_batch_is_left(
    start: Start, model_dir: Path, tmp_path: Path
) -> None:
    """Killed between the last checkpoint and the model directory."""
    run(start(), tmp_path)
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
    options = {"perceptual_weight": 0.0, "identity_weight": 0.5, "input": "lr"}
    stage = start(RefinementStage, **options)
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
    run(stage := start(RefinementStage, **options), tmp_path / "b")
    assert (tmp_path / "last.ckpt").stat().st_size == (tmp_path / "b" / "last.ckpt").stat().st_size


class Stop(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        if pl_module.generator_steps == self.step:
            raise KeyError("killed")


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("within", [False, True])
def test_going_on_equals_not_stopping(start: Start, tmp_path: Path, within: bool, accumulate: int) -> None:
    """Bitwise, raw and average: resumed after an epoch's end, and within an epoch."""
    options = {"limit_val_batches": 1}
    whole = start(accumulate=accumulate, decay="cosine" if within else "none")
    run(whole, tmp_path / "a", 2, **options)
    first = start(accumulate=accumulate, decay="cosine" if within else "none")
    if within:  # 6 batches per epoch, and a checkpoint after the fourth
        with pytest.raises(KeyError, match="killed"):
            run(
                first,
                tmp_path / "b",
                2,
                callbacks=[AveragedWeights(), Stop(11 if accumulate == 1 else 6)],
                **options,
            )
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


@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_validation_batch_end"])
@pytest.mark.parametrize("first", [True, False])
def test_whoever_saves_in_between_saves_the_same(
    start: Start, tmp_path: Path, hook: str, first: bool
) -> None:
    """Before the average is updated, and while it stands in the place of the raw weights."""

    def save(trainer: Trainer, *args: Any) -> None:
        trainer.save_checkpoint(tmp_path / "between.ckpt", weights_only=False)

    saver = Callback()
    setattr(saver, hook, save)
    callbacks = [saver, AveragedWeights()] if first else [AveragedWeights(), saver]
    run(start(), tmp_path, callbacks=callbacks, limit_val_batches=1)
    last, between = load(tmp_path / "last.ckpt"), load(tmp_path / "between.ckpt")
    for part in ("state_dict", "current_model_state", "averaging_state"):
        assert equal(last[part], between[part])


def test_a_checkpoint_without_average_starts_one(start: Start, tmp_path: Path) -> None:
    run(start(), tmp_path / "a", callbacks=[])
    stage, steps = start(), Steps()
    with pytest.warns(UserWarning, match="holds no averaged weights: the average starts from its weights"):
        run(
            stage,
            tmp_path / "b",
            2,
            tmp_path / "a" / "last.ckpt",
            callbacks=[AveragedWeights(), Later(steps)],
        )
    assert len(steps.kept) == 7
    for name, value in steps.average(0.999).items():
        torch.testing.assert_close(Steps.look(stage)[name], value, rtol=1e-5, atol=1e-7)
    assert load(tmp_path / "b" / "last.ckpt")["averaging_state"]["n_averaged"] == 6


class Later(Callback):
    """`Steps` of a fit that goes on."""

    def __init__(self, steps: Steps) -> None:
        self.steps = steps

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.steps.on_fit_start(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        self.steps.kept.append(Steps.look(pl_module))


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

    class Poison(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 3:
                batch.gt[0, 0, 5, 5] = float("nan")

    with pytest.raises(FloatingPointError, match="loss not finite"):
        run(start(), tmp_path / "a", callbacks=[AveragedWeights(), Poison()])
    assert not (tmp_path / "a" / "last.ckpt").exists()


# Configuration


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_decay_must_be_a_share(decay: float) -> None:
    with pytest.raises(ValueError, match=rf"decay: expected a number in \[0, 1\), got {decay}"):
        AveragedWeights(decay)


def test_other_modules_are_refused() -> None:
    with pytest.raises(
        TypeError, match="AveragedWeights: expected a stage of rpf_lightning, got LightningModule"
    ):
        AveragedWeights().setup(Trainer(**QUIET), LightningModule(), "fit")


AVERAGED = {"class_path": "rpf_lightning.callbacks.AveragedWeights", "init_args": {"decay": 0.9}}
FREEZE = {"class_path": "rpf_lightning.callbacks.FreezeEarlierBlocks"}
LAST = {"class_path": "rpf_lightning.callbacks.LastCheckpoint", "init_args": {"every_n_batches": 1}}


@pytest.mark.parametrize(
    "callbacks",
    [[FREEZE, AVERAGED], [AVERAGED, FREEZE], [LAST, AVERAGED, FREEZE]],
    ids=["after", "before", "own"],
)
def test_from_yaml(tmp_path: Path, model_dir: Path, callbacks: list[Any]) -> None:
    """The best checkpoint has the score of what it holds, and validation of the directory finds it again."""
    path = write_fit(
        tmp_path / "fit.yaml", "WarpingStage", {"callbacks": callbacks, "max_epochs": 2},
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
    if LAST in callbacks:
        return  # then there is no best one
    best = next(s for s in last["callbacks"].values() if "best_model_score" in s)["best_model_score"]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # such as that the average cannot be restored
        warnings.filterwarnings("ignore", "The dirpath has changed|.*TypedStorage")
        cli = lightning_cli(["validate", "--config", str(path), "--ckpt_path", str(folder / "best.ckpt")])
    assert cli.trainer.callback_metrics["val/end_point_error"].item() == pytest.approx(best.item(), rel=1e-4)


# Two processes

SCRIPT = """
import json, os, shutil, sys
from pathlib import Path
import torch
from lightning import Callback, Trainer
from rpf_lightning.callbacks import AveragedWeights, FreezeEarlierBlocks, LastCheckpoint
from rpf_lightning.data import SyntheticFacesDataModule
from rpf_lightning.model.storage import weights_hash
from rpf_lightning.stages import SynthesisStage

class Watch(Callback):
    def __init__(self): self.raw, self.average = [], []
    def on_train_epoch_start(self, trainer, stage):
        if trainer.current_epoch == 1 and trainer.is_global_zero and (OUT / "last.ckpt").is_file():
            shutil.copy(OUT / "last.ckpt", OUT / "first.ckpt")
    def on_train_batch_end(self, trainer, stage, *args):
        self.raw.append(weights_hash(stage.trained_module.state_dict()))
    def on_validation_batch_end(self, trainer, stage, *args):
        self.average.append(weights_hash(stage.trained_module.state_dict()))
    def on_fit_end(self, trainer, stage):
        self.average.append(weights_hash(stage.trained_module.state_dict()))
        (OUT / f"rank{trainer.global_rank}.json").write_text(json.dumps([self.raw, self.average]))

if __name__ == "__main__":
    OUT, MODEL = Path(sys.argv[1]), sys.argv[2]
    torch.manual_seed(0)
    stage = SynthesisStage(MODEL, 1, learning_rate=1e-2, accumulate=2)
    torch.manual_seed(100 + int(os.environ.get("LOCAL_RANK", 0)))
    data = SyntheticFacesDataModule(people=8, photos_each=3, batch_size=2, val_fraction=0.25, flip=True)
    Trainer(
        accelerator="cpu", devices=2, max_epochs=2, limit_val_batches=1, num_sanity_val_steps=0,
        strategy="ddp_find_unused_parameters_true", logger=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=OUT,
        callbacks=[FreezeEarlierBlocks(), LastCheckpoint(OUT), AveragedWeights(), Watch()],
    ).fit(stage, data, ckpt_path=sys.argv[3] if len(sys.argv) > 3 else None)
"""


def two(out: Path, model_dir: Path, *extra: str) -> list[list[list[str]]]:
    out.mkdir()
    (out / "train.py").write_text(SCRIPT)
    command = [sys.executable, str(out / "train.py"), str(out), str(model_dir), *extra]
    # another test's `seed_everything` leaves its seed there, and Lightning would seed both processes with it
    environment = {name: value for name, value in os.environ.items() if name != "PL_GLOBAL_SEED"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads((out / f"rank{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.slow
def test_two_processes_keep_the_same_average(model_dir: Path, tmp_path: Path) -> None:
    """And two that go on equal two that never stopped."""
    fresh = (model_dir / "model.safetensors").read_bytes()
    whole = two(tmp_path / "whole", model_dir)
    assert whole[0] == whole[1]
    raw, average = whole[0]
    assert len(raw) == 8
    assert len(set(raw)) == 5  # the start, and a step every two batches
    assert len(set(average)) == 2  # after each epoch, and the last one at the end
    assert set(raw).isdisjoint(average)
    written = RPFModel.from_pretrained(model_dir).blocks[0].synthesis.state_dict()
    last = load(tmp_path / "whole" / "last.ckpt")["state_dict"]
    assert all(torch.equal(v, last[f"model.blocks.0.synthesis.{k}"]) for k, v in written.items())
    (model_dir / "model.safetensors").write_bytes(fresh)
    rest = two(tmp_path / "rest", model_dir, str(tmp_path / "whole" / "first.ckpt"))
    assert rest == [[raw[4:], average[1:]]] * 2
