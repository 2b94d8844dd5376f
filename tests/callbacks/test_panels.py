"""ImagePanels: pixels, files, and that training does not notice."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Callback, Trainer, seed_everything
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from rpf_lightning.callbacks import AveragedWeights, FreezeEarlierBlocks, ImagePanels
from rpf_lightning.drawing import CAPTION, GAP, TITLE
from rpf_lightning.stages import RefinementStage, RPFStage, SynthesisStage, WarpingStage
from small_fits import QUIET
from stage_fits import differing

Fit = Callable[..., Any]


def cell_of(panel: Image.Image, column: int, cell: int) -> Tensor:
    x, y = GAP + column * (cell + GAP), GAP + TITLE + CAPTION
    return torch.from_numpy(np.array(panel.crop((x, y, x + cell, y + cell)))).permute(2, 0, 1)


def off(model_dir: Path, kind: str) -> RPFStage:
    path = str(model_dir)
    if kind == "refinement":
        return RefinementStage(path, 1, input="mix", perceptual_weight=0.0, identity_weight=0.0)
    return WarpingStage(path, 1) if kind == "warping" else SynthesisStage(path, 2)


@pytest.mark.parametrize("kind", ["refinement", "synthesis"])
def test_panel_of_every_stage(model_dir: Path, fit: Fit, batch_of: Callable[..., Any], kind: str) -> None:
    stage = off(model_dir, kind)
    fit(stage, epochs=2, callbacks=[ImagePanels(images=1)], validate=True)
    assert sorted(p.name for p in (stage.run_dir / "panels").iterdir()) == ["epoch0000.png", "epoch0001.png"]
    panel = Image.open(stage.run_dir / "panels" / "epoch0001.png")
    batch = batch_of(stage.block, 0)
    with torch.random.fork_rng():
        names = list(stage.pictures(batch))
    cell = {32: 160, 64: 192}[stage.side]
    assert panel.size == (GAP + len(names) * (cell + GAP), GAP + TITLE + CAPTION + cell + GAP)  # one row
    shown = cell_of(panel, names.index("GT"), cell)[:, :: cell // stage.side, :: cell // stage.side]
    assert torch.equal(shown, (batch.gt[0] * 255).round().byte())


def test_every_second_epoch_and_in_no_validation_of_its_own(
    model_dir: Path, fit: Fit, batch_of: Callable[..., Any]
) -> None:
    stage = WarpingStage(str(model_dir), 1)
    fit(stage, epochs=4, callbacks=[ImagePanels(every_n_epochs=2)], validate=True)
    files = sorted((stage.run_dir / "panels").iterdir())
    assert [file.name for file in files] == ["epoch0001.png", "epoch0003.png"]
    files[0].unlink()
    Trainer(callbacks=[ImagePanels()], **QUIET).validate(
        stage, DataLoader([batch_of(1)], batch_size=None), verbose=False
    )
    assert list((stage.run_dir / "panels").iterdir()) == files[1:]


@pytest.mark.parametrize("how", ["never", "sanity", "fast_dev_run", "no validation", "another process"])
def test_no_panel(model_dir: Path, fit: Fit, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    stage = WarpingStage(str(model_dir), 1)
    panels = ImagePanels(every_n_epochs=0 if how == "never" else 1)
    options: dict[str, dict[str, Any]] = {
        "sanity": {"num_sanity_val_steps": 1, "check_val_every_n_epoch": 2},
        "fast_dev_run": {"fast_dev_run": 1},
    }
    if how == "another process":
        monkeypatch.setattr(Trainer, "is_global_zero", property(lambda trainer: False))
    monkeypatch.setattr(WarpingStage, "pictures", None)  # not even called
    fit(stage, callbacks=[panels], validate=how != "no validation", **options.get(how, {}))
    assert not (stage.run_dir / "panels").exists()


class Greedy(TensorBoardLogger):
    """As W&B, which draws names for its files."""

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


def test_training_does_not_notice(
    model_dir: Path, tmp_path: Path, fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random inputs and the penalty's random points, against pictures and loggers that draw from every generator."""
    pictures = RefinementStage.pictures

    def greedy(self: RefinementStage, batch: Any) -> dict[str, Tensor]:
        torch.rand(3), np.random.rand(3), random.random()  # noqa: NPY002
        return pictures(self, batch)

    monkeypatch.setattr(RefinementStage, "pictures", greedy)
    states, numbers, logger = [], [], Greedy(tmp_path)
    before = (model_dir / "model.safetensors").read_bytes()
    for callbacks in ([], [ImagePanels()]):
        (model_dir / "model.safetensors").write_bytes(before)
        seed_everything(0, verbose=False)
        stage = off(model_dir, "refinement")
        fit(stage, epochs=2, callbacks=callbacks, validate=True, logger=logger)
        states.append({key: value.clone() for key, value in stage.state_dict().items()})
        numbers.append((random.random(), np.random.rand(), torch.rand(()).item()))  # noqa: NPY002
    assert logger.pictures == 2
    assert not differing(*states)
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


@pytest.mark.parametrize(("name", "value"), [("every_n_epochs", -1), ("images", 0)])
def test_bad_numbers(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected . or more, got {value}"):
        ImagePanels(**{name: value})


@pytest.mark.parametrize("callback", [ImagePanels, FreezeEarlierBlocks, AveragedWeights])
def test_foreign_modules_are_refused(callback: type[Callback]) -> None:
    trainer = Trainer(
        max_epochs=1, limit_train_batches=1, limit_val_batches=1, callbacks=[callback()], **QUIET
    )
    with pytest.raises(
        TypeError, match=f"{callback.__name__}: expected a stage of rpf_lightning, got BoringModel"
    ):
        trainer.fit(BoringModel())
