"""Stage 2, first half: the warping module of one block (paper III-C-1, eq. 3)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torchmetrics import Metric

from rpf_lightning.data.records import ReferenceBatch
from rpf_lightning.losses import masked_l1
from rpf_lightning.metrics import EndPointError, FlowCorrelation
from rpf_lightning.model import RPFConfig
from rpf_lightning.stages.base import Outputs, RPFStage


class WarpingStage(RPFStage):
    """Trains the warping module so that the aligned reference equals the thin-plate-warped one.

    Args:
        model_dir: See `RPFStage`.
        block: n, counted from 1.
        network: See `RPFStage`.
        flow_weight: Weight of the masked L1 between the flow and the thin-plate flow, in units of S/64
            pixels. Not in the paper: the warping loss can fall while the flow learns nothing.
        kwargs: `learning_rate`, `decay`, `accumulate`, `cache_prefix` and `gradient_norms_every` of `RPFStage`;
            this stage has no critic.
    """

    name = "warping"
    monitor = ("val/end_point_error", "min")
    output_title = "aligned"
    needs_warped_reference = True

    def __init__(
        self,
        model_dir: str,
        block: int = 1,
        network: RPFConfig | None = None,
        flow_weight: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            model_dir, block, network,
            adversarial_weight=0.0, perceptual_weight=0.0, identity_weight=0.0, identity_norm="l1",
            perceptual_norm="mse", perceptual_jitter=1, critic="srntt", critic_learning_rate=0.0, penalty_weight=0.0,
            penalty_norm="rms", **kwargs,
        )  # fmt: skip
        self.flow_weight = flow_weight
        self.save_hyperparameters()

    @property
    def trained_module(self) -> nn.Module:
        """The warping module."""
        return self.current_block.warping

    def terms(self) -> dict[str, float]:
        """Weights of the two terms of this stage."""
        return {"warping L1": 1.0, "flow": self.flow_weight}

    def generate(self, batch: ReferenceBatch) -> Outputs:
        """Flow and aligned reference."""
        _, alignment = self.align(batch)
        return {"output": alignment.image, "flow": alignment.flow}

    def gradients_at(self, outputs: Outputs) -> Tensor:
        """At the flow: the flow term does not see the aligned image."""
        return outputs["flow"]

    def reconstruction_terms(self, batch: ReferenceBatch, outputs: Outputs) -> Outputs:
        """Eq. 3 and the flow term."""
        assert batch.warped_reference is not None
        terms = {"warping": masked_l1(outputs["output"], batch.warped_reference)}
        if self.flow_weight:
            error = masked_l1(outputs["flow"], batch.flow, batch.gt_mask) * (64 / self.side)
            terms["flow"] = self.flow_weight * error
        return terms

    def metrics(self) -> dict[str, Metric]:
        """Whether the flow learns, inside the face; the aligned reference is no reconstruction."""
        return {
            "end_point_error": EndPointError(),
            "end_point_error_unwarped": EndPointError(unwarped=True),
            "flow_correlation": FlowCorrelation(),
        }

    def diagnostics(self, batch: ReferenceBatch, outputs: Outputs) -> Outputs:
        """The L1s beside those that no warp at all, and the thin-plate warp, give."""
        assert batch.warped_reference is not None
        return {
            "warping_unwarped": masked_l1(batch.reference, batch.warped_reference),
            "face_l1": masked_l1(outputs["output"], batch.gt, batch.gt_mask),
            "face_l1_unwarped": masked_l1(batch.reference, batch.gt, batch.gt_mask),
            "face_l1_thin_plate": masked_l1(batch.warped_reference, batch.gt, batch.gt_mask),
        }
