"""LPIPS, identity similarity and landmark distance in validation and testing: off by default, they need networks."""

from __future__ import annotations

from typing import Any

from lightning import Callback, LightningModule, Trainer
from torchmetrics import Metric

from rpf_lightning.data.batches import ReferenceBatch
from rpf_lightning.faces.landmarks import landmark_model
from rpf_lightning.metrics import ISC, LPIPS, LandmarkDistance, ReferenceISC
from rpf_lightning.stages.base import RPFStage


class FaceMetrics(Callback):
    """Logs `val/lpips`, `val/isc`, `val/isc_reference` and `val/landmark_distance` (`test/...`), as far as wanted.

    They are measured on what the stage makes (the warping stage: the aligned reference), clamped, and are means
    over all images and processes. Where the stage reads no reference (stage 1), there is no `isc_reference`, whatever
    the data hold.

    Args:
        lpips: LPIPS (AlexNet); needs AlexNet's weights.
        isc: Identity similarity to the GT and to the reference; needs an insightface pack, whose models are for
            non-commercial research only. The identity term of the training asks the same network.
        landmarks: as `landmark_model` takes it; None measures no landmark distance.

    Raises:
        FileNotFoundError: When the Trainer starts, if weights are missing.
    """

    def __init__(self, lpips: bool = False, isc: bool = False, landmarks: str | None = None) -> None:
        super().__init__()
        self.lpips, self.isc, self.landmarks = lpips, isc, landmarks
        self._metrics: dict[str, Metric] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Load the networks, the first time."""
        if self._metrics or stage == "predict":
            return
        if self.lpips:
            self._metrics["lpips"] = LPIPS()
        if self.isc:
            isc = ISC()
            self._metrics["isc"] = isc
            self._metrics["isc_reference"] = ReferenceISC(isc.network)
        if self.landmarks is not None:
            self._metrics["landmark_distance"] = LandmarkDistance(
                landmark_model(self.landmarks, trainer.strategy.root_device)
            )

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew: an epoch that was interrupted has left its images."""
        for metric in self._metrics.values():
            metric.reset()

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Add a batch."""
        assert isinstance(pl_module, RPFStage)
        given = {"output": outputs["output"].clamp(0, 1), "gt": batch.gt, "seen": {}}
        if pl_module.needs_references:
            assert isinstance(batch, ReferenceBatch)  # or the stage has refused it
            given["reference"] = batch.reference
        for name, metric in self._metrics.items():
            if name != "isc_reference" or pl_module.needs_references:
                metric.to(batch.gt.device).update(**given)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the means."""
        phase = "test" if trainer.testing else "val"
        for name, metric in self._metrics.items():
            if metric.update_called:
                # `compute` has brought the processes together; `sync_dist` only tells Lightning so
                pl_module.log(f"{phase}/{name}", metric.compute(), sync_dist=True)

    on_test_epoch_start = on_validation_epoch_start
    on_test_batch_end = on_validation_batch_end
    on_test_epoch_end = on_validation_epoch_end
