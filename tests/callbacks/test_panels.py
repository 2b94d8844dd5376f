"""ImagePanels: pixels, files, and that training does not notice."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from torch import Tensor

from rpf_lightning.callbacks import FreezeEarlierBlocks, ImagePanels
from rpf_lightning.drawing import CAPTION, GAP, TITLE
from rpf_lightning.stages import RefinementStage, RPFStage, SynthesisStage, WarpingStage

Fit = Callable[..., Any]


def cell_of(panel: Image.Image, column: int, cell: int) -> Tensor:
    x, y = GAP + column * (cell + GAP), GAP + TITLE + CAPTION
    return torch.from_numpy(np.array(panel.crop((x, y, x + cell, y + cell)))).permute(2, 0, 1)


def off(model_dir: Path, kind: str) -> RPFStage:
    path = str(model_dir)
    if kind == "refinement":
        return RefinementStage(path, 1, input="mix", perceptual_weight=0.0, identity_weight=0.0)
    return WarpingStage(path, 1) if kind == "warping" else SynthesisStage(path, 2)


@pytest.mark.parametrize("kind", ["refinement", "warping", "synthesis"])
def test_panel_of_every_stage(model_dir: Path, fit: Fit, batch_of: Callable[..., Any], kind: str) -> None:
    stage = off(model_dir, kind)
    fit(stage, epochs=2, callbacks=[FreezeEarlierBlocks(), ImagePanels(images=1)], validate=True)
    assert sorted(p.name for p in (stage.run_dir / "panels").iterdir()) == ["epoch0000.png", "epoch0001.png"]
    panel = Image.open(stage.run_dir / "panels" / "epoch0001.png")
    batch = batch_of(stage.block, 0)
    with torch.random.fork_rng():
        names = list(stage.pictures(batch))
    cell = {32: 160, 64: 192}[stage.side]
    assert panel.size == (GAP + len(names) * (cell + GAP), GAP + TITLE + CAPTION + cell + GAP)  # one row
    shown = cell_of(panel, names.index("GT"), cell)[:, :: cell // stage.side, :: cell // stage.side]
    assert torch.equal(shown, (batch.gt[0] * 255).round().byte())


def test_every_second_epoch(model_dir: Path, fit: Fit) -> None:
    stage = WarpingStage(str(model_dir), 1)
    fit(stage, epochs=4, callbacks=[ImagePanels(every_n_epochs=2)], validate=True)
    assert sorted(p.name for p in (stage.run_dir / "panels").iterdir()) == ["epoch0001.png", "epoch0003.png"]


@pytest.mark.parametrize("how", ["never", "sanity", "fast_dev_run", "no validation"])
def test_no_panel(model_dir: Path, fit: Fit, how: str) -> None:
    stage = WarpingStage(str(model_dir), 1)
    panels = ImagePanels(every_n_epochs=0 if how == "never" else 1)
    options: dict[str, dict[str, Any]] = {
        "sanity": {"num_sanity_val_steps": 1, "check_val_every_n_epoch": 2},
        "fast_dev_run": {"fast_dev_run": 1},
    }
    fit(stage, callbacks=[panels], validate=how != "no validation", **options.get(how, {}))
    assert not (stage.run_dir / "panels").exists()


def test_validating_a_model_leaves_the_fits_panels(model_dir: Path, batch_of: Callable[..., Any]) -> None:
    stage = WarpingStage(str(model_dir), 1)
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False,
        callbacks=[ImagePanels()],
    )  # fmt: skip
    trainer.validate(stage, torch.utils.data.DataLoader([batch_of(1)], batch_size=None), verbose=False)
    assert not (stage.run_dir / "panels").exists()


def test_only_the_first_process_draws(model_dir: Path, fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = WarpingStage(str(model_dir), 1)
    monkeypatch.setattr(Trainer, "is_global_zero", property(lambda trainer: False))
    monkeypatch.setattr(WarpingStage, "pictures", None)  # not even called
    fit(stage, callbacks=[ImagePanels()], validate=True)
    assert not (stage.run_dir / "panels").exists()


class Modes(Callback):
    def __init__(self) -> None:
        self.training: list[set[str]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        self.training.append({name for name, module in pl_module.named_modules() if module.training})


def test_training_does_not_notice(model_dir: Path, fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random inputs and the penalty's random points, against pictures that draw from every generator."""
    pictures = RefinementStage.pictures

    def greedy(self: RefinementStage, batch: Any) -> dict[str, Tensor]:
        torch.rand(3), np.random.rand(3), random.random()  # noqa: NPY002
        return pictures(self, batch)

    monkeypatch.setattr(RefinementStage, "pictures", greedy)
    states, modes, numbers = [], [], []
    before = (model_dir / "model.safetensors").read_bytes()
    for callbacks in ([], [ImagePanels()]):
        (model_dir / "model.safetensors").write_bytes(before)
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        stage, watch = off(model_dir, "refinement"), Modes()
        fit(stage, epochs=3, callbacks=[FreezeEarlierBlocks(), watch, *callbacks], validate=True)
        states.append({key: value.clone() for key, value in stage.state_dict().items()})
        modes.append(watch.training)
        numbers.append((random.random(), np.random.rand(), torch.rand(()).item()))  # noqa: NPY002
    assert (stage.run_dir / "panels" / "epoch0002.png").is_file()
    assert [key for key in states[0] if not torch.equal(states[0][key], states[1][key])] == []
    assert modes[0] == modes[1]
    assert numbers[0] == numbers[1]


def test_loggers_that_draw_random_numbers_do_not_disturb_training(
    model_dir: Path, fit: Fit, tmp_path: Path
) -> None:
    """W&B draws names for its files."""

    class Greedy(TensorBoardLogger):
        pictures = 0

        @property
        def experiment(self) -> Any:
            return self

        def add_image(self, *args: Any, **kwargs: Any) -> None:
            self.pictures += 1
            torch.rand(3), np.random.rand(3), random.random()  # noqa: NPY002

        def log_metrics(self, *args: Any, **kwargs: Any) -> None: ...
        def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...
        def save(self) -> None: ...
        def finalize(self, status: str) -> None: ...

    logger, numbers = Greedy(tmp_path), []
    for callbacks in ([], [ImagePanels()]):
        torch.manual_seed(0)
        random.seed(0)
        fit(off(model_dir, "warping"), callbacks=callbacks, validate=True, logger=logger)
        numbers.append((random.random(), torch.rand(()).item()))
    assert logger.pictures == 1
    assert numbers[0] == numbers[1]


def test_pictures_are_computed_in_the_fits_precision(
    model_dir: Path, fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    pictures = WarpingStage.pictures

    def spy(self: WarpingStage, batch: Any) -> dict[str, Tensor]:
        seen.append(torch.is_autocast_enabled("cpu"))
        return pictures(self, batch)

    monkeypatch.setattr(WarpingStage, "pictures", spy)
    for precision in ("32-true", "bf16-mixed"):
        fit(off(model_dir, "warping"), callbacks=[ImagePanels()], validate=True, precision=precision)
    assert seen == [False, True]


def test_foreign_module() -> None:
    trainer = Trainer(
        max_epochs=1, limit_train_batches=1, limit_val_batches=1, accelerator="cpu", logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        num_sanity_val_steps=0, callbacks=[ImagePanels()],
    )  # fmt: skip
    with pytest.raises(TypeError, match="BoringModel"):
        trainer.fit(BoringModel())


@pytest.mark.parametrize(("name", "value"), [("every_n_epochs", -1), ("images", 0)])
def test_bad_numbers(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected . or more, got {value}"):
        ImagePanels(**{name: value})
