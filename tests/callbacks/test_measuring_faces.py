"""FaceMetrics: values of validation and testing equal those computed by hand, and training does not notice."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from torch import Tensor

from rpf_lightning.callbacks import FaceMetrics, face_metrics
from rpf_lightning.cli import main
from rpf_lightning.data import SyntheticFacesDataModule
from rpf_lightning.metrics import ISC, LPIPSDistance, ReferenceISC
from rpf_lightning.metrics.per_image import NetworkMetric
from rpf_lightning.stages import RefinementStage, RPFStage, SynthesisStage
from small_fits import FACES, QUIET, write_fit


def distance(output: Tensor, gt: Tensor) -> Tensor:
    return (output - gt).abs().flatten(1).mean(1)


def features(image: Tensor) -> Tensor:
    return image.flatten(2).mean(2) - 0.3


class Distance(NetworkMetric):
    def __init__(self) -> None:
        super().__init__(distance)

    def update(self, output: Tensor, gt: Tensor) -> None:
        self._measure(self.network, output, gt)


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(face_metrics, "LPIPSDistance", Distance)
    monkeypatch.setattr(face_metrics, "ISC", lambda: ISC(features))
    monkeypatch.setattr(face_metrics, "landmark_model", lambda spec, device: spec)
    monkeypatch.setattr(face_metrics, "LandmarkDistance", lambda model: Distance())


def by_hand(stage: RPFStage, data: SyntheticFacesDataModule) -> dict[str, Tensor]:
    values: dict[str, list[Tensor]] = {"lpips": [], "isc": [], "isc_reference": []}
    stage.eval()
    for batch in data.val_dataloader():
        with torch.no_grad():
            output = stage.generate(batch)["output"].clamp(0, 1)
        values["lpips"].append(distance(output, batch.gt))
        for name, other in (("isc", batch.gt), ("isc_reference", batch.reference)):
            values[name].append(torch.cosine_similarity(features(output), features(other)))
    return {name: torch.cat(value).mean() for name, value in values.items()}


@pytest.mark.usefixtures("fakes")
@pytest.mark.parametrize("phase", ["val", "test"])
def test_values_are_means_over_images(model_dir: Path, phase: str) -> None:
    stage = SynthesisStage(str(model_dir), 2)
    data = SyntheticFacesDataModule(**{**FACES["init_args"], "people": 9})
    trainer = Trainer(callbacks=[FaceMetrics(lpips=True, isc=True, landmarks="some")], **QUIET)
    (logged,) = (trainer.validate if phase == "val" else trainer.test)(stage, data, verbose=False)
    expected = by_hand(stage, data)
    assert len(data.val_dataloader()) > 1
    for name, value in expected.items():
        assert logged[f"{phase}/{name}"] == pytest.approx(value.item(), abs=1e-6)
    assert logged[f"{phase}/landmark_distance"] == logged[f"{phase}/lpips"]


@pytest.mark.usefixtures("fakes")
def test_every_epoch_begins_anew_and_stage_1_has_no_reference(model_dir: Path) -> None:
    seen: list[dict[str, Any]] = []

    class Keep(FaceMetrics):
        def on_validation_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
            super().on_validation_epoch_end(trainer, pl_module)
            seen.append({k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")})

    stage = RefinementStage(
        str(model_dir), 1, input="lr", learning_rate=0.0,
        adversarial_weight=0, perceptual_weight=0, identity_weight=0,
    )  # fmt: skip
    data = SyntheticFacesDataModule(**FACES["init_args"])
    trainer = Trainer(callbacks=[Keep(isc=True)], max_epochs=2, **QUIET)
    trainer.fit(stage, data)
    assert seen[0]["val/isc"] == seen[1]["val/isc"]
    assert not {"val/lpips", "val/landmark_distance"} & seen[0].keys()


@pytest.mark.usefixtures("fakes")
def test_batches_without_a_reference_have_no_isc_to_it(model_dir: Path) -> None:
    callback, data = FaceMetrics(isc=True), SyntheticFacesDataModule(lr_size=16, size=64, side=32)
    data.setup()
    batch = next(iter(data.val_dataloader()))
    face = type("Face", (), {"gt": batch.gt})()
    callback.setup(Trainer(**QUIET), SynthesisStage(str(model_dir), 1, adversarial_weight=0), "validate")
    callback.on_validation_batch_end(None, None, {"output": batch.gt}, face, 0)
    assert callback._metrics["isc"].update_called
    assert not callback._metrics["isc_reference"].update_called


@pytest.mark.usefixtures("fakes")
def test_from_the_command_line(model_dir: Path, tmp_path: Path) -> None:
    config = write_fit(
        tmp_path / "fit.yaml", "SynthesisStage", model_dir=str(model_dir), block=2, adversarial_weight=0.0
    )
    more = ["--trainer.callbacks+=rpf_lightning.callbacks.FaceMetrics", "--trainer.callbacks.isc=true"]
    main(["fit", "--config", str(config), *more])
    (log,) = (model_dir / "runs" / "block2-synthesis").rglob("metrics.csv")
    assert {"val/isc", "val/isc_reference"} <= set(log.read_text().splitlines()[0].split(","))
    assert "val/lpips" not in log.read_text()


def test_missing_weights_say_so_before_anything_runs(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RPF_WEIGHTS_DIR", str(tmp_path))
    monkeypatch.setenv("RPF_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("RPF_OFFLINE", "1")
    stage = SynthesisStage(str(model_dir), 2, adversarial_weight=0)
    data = SyntheticFacesDataModule(**FACES["init_args"])
    with pytest.raises(FileNotFoundError, match="alexnet"):
        Trainer(callbacks=[FaceMetrics(lpips=True)], **QUIET).validate(stage, data)


@pytest.mark.weights
def test_the_real_networks(model_dir: Path, real_weights: Path) -> None:
    stage = SynthesisStage(str(model_dir), 1, adversarial_weight=0)
    data = SyntheticFacesDataModule(**FACES["init_args"])
    trainer = Trainer(callbacks=[FaceMetrics(lpips=True, isc=True)], **QUIET)
    (logged,) = trainer.validate(stage, data, verbose=False)
    perceptual, isc = LPIPSDistance(), ISC()
    reference = ReferenceISC(isc.network)
    for batch in data.val_dataloader():
        with torch.no_grad():
            output = stage.generate(batch)["output"].clamp(0, 1)
            perceptual.update(output, batch.gt)
            isc.update(output, batch.gt)
            reference.update(output, batch.reference)
    for name, metric in (("lpips", perceptual), ("isc", isc), ("isc_reference", reference)):
        assert logged[f"val/{name}"] == pytest.approx(metric.compute().item(), abs=1e-5)
