"""FaceMetrics: values of validation and testing equal those computed by hand, and training does not notice."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer
from torch import Tensor

from rpf_lightning.callbacks import FaceMetrics, face_metrics
from rpf_lightning.cli import main
from rpf_lightning.data import SyntheticFacesDataModule
from rpf_lightning.metrics import ISC, LPIPS, NetworkMetric, ReferenceISC
from rpf_lightning.stages import RPFStage, SynthesisStage
from small_fits import FACES, QUIET, write_fit
from stage_fits import make


def distance(output: Tensor, gt: Tensor) -> Tensor:
    return (output - gt).abs().flatten(1).mean(1)


def features(image: Tensor) -> Tensor:
    return image.flatten(2).mean(2) - 0.3


class Distance(NetworkMetric):
    def __init__(self) -> None:
        super().__init__(distance)

    def per_image(self, output: Tensor, gt: Tensor) -> Tensor:
        return self.network(output, gt)


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(face_metrics, "LPIPS", Distance)
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
@pytest.mark.parametrize("phase", ["validate", "test"])
def test_an_interrupted_epoch_leaves_nothing_for_the_next(model_dir: Path, phase: str) -> None:
    class Stop(Callback):
        def on_validation_batch_end(self, *args: Any) -> None:
            raise RuntimeError("stopped")

        on_test_batch_end = on_validation_batch_end

    def run(*callbacks: Callback) -> float:
        (logged,) = getattr(Trainer(callbacks=list(callbacks), **QUIET), phase)(stage, data, verbose=False)
        return float(next(value for name, value in logged.items() if name.endswith("/lpips")))

    stage, data = SynthesisStage(str(model_dir), 1), SyntheticFacesDataModule(**FACES["init_args"])
    callback = FaceMetrics(lpips=True)
    with pytest.raises(RuntimeError, match="stopped"):
        run(callback, Stop())
    assert callback._metrics["lpips"].update_called
    assert run(callback) == run(FaceMetrics(lpips=True))


@pytest.mark.usefixtures("fakes")
def test_only_what_is_wanted_and_what_the_stage_reads_is_measured(model_dir: Path) -> None:
    """Pairs give stage 1 a reference as well, but it looks at none."""
    data = SyntheticFacesDataModule(**FACES["init_args"])
    for stage, expected in (
        (make("lr", model_dir, 1), {"isc"}),
        (SynthesisStage(str(model_dir), 1), {"isc", "isc_reference"}),
    ):
        (logged,) = Trainer(callbacks=[FaceMetrics(isc=True)], **QUIET).validate(stage, data, verbose=False)
        names = {name.removeprefix("val/") for name in logged}
        assert names & {"lpips", "isc", "isc_reference", "landmark_distance"} == expected


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
    perceptual, isc = LPIPS(), ISC()
    reference = ReferenceISC(isc.network)
    for batch in data.val_dataloader():
        with torch.no_grad():
            output = stage.generate(batch)["output"].clamp(0, 1)
            perceptual.update(output, batch.gt)
            isc.update(output, batch.gt)
            reference.update(output, batch.reference)
    for name, metric in (("lpips", perceptual), ("isc", isc), ("isc_reference", reference)):
        assert logged[f"val/{name}"] == pytest.approx(metric.compute().item(), abs=1e-5)
