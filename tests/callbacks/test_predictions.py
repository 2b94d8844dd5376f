"""PredictionWriter: pixel values, names, whole files."""

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Trainer
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from rpf_lightning.callbacks import PredictionWriter
from rpf_lightning.evaluation.folder import Folder
from small_fits import QUIET
from stage_fits import make


def write(folder: Path, names: list[str], images: Tensor) -> None:
    PredictionWriter(str(folder)).write_on_batch_end(
        SimpleNamespace(default_root_dir=str(folder)), None, (names, images), None, None, 0, 0
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_value_is_written_as_it_is(tmp_path: Path, dtype: torch.dtype) -> None:
    values = torch.arange(256, dtype=torch.float32).reshape(1, 1, 16, 16)
    image = torch.cat((values, values.flip(-1), values.flip(-2)), 1) / 255
    write(tmp_path, ["a"], image.to(dtype))
    pixels = torch.from_numpy(np.array(Image.open(tmp_path / "a.png"))).permute(2, 0, 1)
    expected = (image.to(dtype).float() * 255).round()
    assert torch.equal(pixels.float(), expected[0])
    if dtype == torch.float32:
        assert torch.equal(pixels[0].flatten().float(), torch.arange(256.0))


def test_names(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    names = ["00001.jpg", "id00002_001", "p1.5", "a/1.jpg", "b/1.jpg"]
    write(folder, names, torch.rand(5, 3, 4, 4))
    assert {p.relative_to(folder).as_posix() for p in folder.rglob("*.png")} == {
        "00001.png", "id00002_001.png", "p1.5.png", "a/1.png", "b/1.png",
    }  # fmt: skip
    method = Folder("ours", folder)
    method.prepare(names, 2, 4)  # where `rpf evaluate` finds each of them
    assert set(method.files) == {"00001", "id00002_001", "p1.5", "a/1", "b/1"}
    assert method.faults() == []
    with pytest.raises(ValueError, match="relative name"):
        write(folder, ["../1.jpg"], torch.zeros(1, 3, 4, 4))


@pytest.mark.parametrize("batches", [[["a.jpg", "b.jpg"], ["a.png"]], [["a.jpg", "b.jpg", "a.png"]]])
def test_no_prediction_overwrites_that_of_another_photo(tmp_path: Path, batches: list[list[str]]) -> None:
    writer, trainer = PredictionWriter(str(tmp_path)), SimpleNamespace(default_root_dir=str(tmp_path))

    def run(batches: list[list[str]], value: float) -> None:
        writer.on_predict_start(trainer, None)
        for number, names in enumerate(batches):
            images = torch.full((len(names), 3, 4, 4), value)
            writer.write_on_batch_end(trainer, None, (names, images), None, None, number, 0)

    with pytest.raises(ValueError, match=r"a\.png would stand for two photos, a\.jpg and a\.png"):
        run(batches, 0.0)
    run([["a.png"], ["a.png", "sub/a.jpg"]], 1.0)  # another run, and a sampler that repeats a photo
    assert np.asarray(Image.open(tmp_path / "a.png")).min() == 255


def test_default_folder(tmp_path: Path) -> None:
    PredictionWriter().write_on_batch_end(
        SimpleNamespace(default_root_dir=str(tmp_path)), None, (["a"], torch.zeros(1, 3, 4, 4)), None, None, 0, 0
    )  # fmt: skip
    assert (tmp_path / "predictions" / "a.png").is_file()


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        write(tmp_path, ["a"], torch.zeros(1, 3, 4, 4))
    assert list(tmp_path.iterdir()) == []


def test_files_equal_the_stages_outputs(
    model_dir: Path, tmp_path: Path, batch_of: Callable[..., Any]
) -> None:
    stage = make("lr", model_dir)
    trainer = Trainer(callbacks=[PredictionWriter(str(tmp_path / "out"))], **QUIET)
    trainer.predict(stage, DataLoader([batch_of(2, 0), batch_of(2, 1)], batch_size=None))
    for batch in (batch_of(2, 0), batch_of(2, 1)):
        with torch.no_grad():
            output = stage.generate(batch)["output"].clamp(0, 1)
        for name, image in zip(batch.id, output, strict=True):
            pixels = np.asarray(Image.open(tmp_path / "out" / f"{name}.png"), dtype=np.float32)
            assert np.abs(pixels / 255 - image.permute(1, 2, 0).numpy()).max() <= 0.5 / 255 + 1e-6
