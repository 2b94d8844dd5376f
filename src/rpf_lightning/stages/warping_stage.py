"""Stage 2, first half: the warping module of one block (paper III-C-1, eq. 3)."""

from __future__ import annotations

from typing import Any

from torchmetrics import Metric

from rpf_lightning.data.batches import ReferenceBatch
from rpf_lightning.losses import masked_l1
from rpf_lightning.metrics import EndPointError, FlowCorrelation
from rpf_lightning.stages.base import Outputs
from rpf_lightning.stages.block import BlockStage
from rpf_lightning.stages.roles import WARPING


class WarpingStage(BlockStage):
    """Trains the warping module so that the aligned reference equals the thin-plate-warped one.

    Args:
        args: `model_dir`, `block` and `network` of `RPFStage`.
        flow_weight: Weight of the masked L1 between the flow and the thin-plate flow, in units of S/64
            pixels. Not in the paper: the warping loss can fall while the flow learns nothing.
        kwargs: Further arguments of `BlockStage`; this stage has no critic.
    """

    role = WARPING
    monitor = ("val/end_point_error", "min")
    output_title = "aligned"
    compared_at = "flow"  # the flow term does not see the aligned image
    needs_warped_reference = True

    def __init__(self, *args: Any, flow_weight: float = 0.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.flow_weight = flow_weight

    def generate(self, batch: ReferenceBatch) -> Outputs:
        """Flow and aligned reference."""
        _, alignment = self.align(batch)
        return {"output": alignment.image, "flow": alignment.flow}

    def terms(self, batch: ReferenceBatch, outputs: Outputs) -> Outputs:
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
        """In validation, the L1s beside those that no warp at all, and the thin-plate warp, give."""
        if self.training:
            return {}
        assert batch.warped_reference is not None
        return {
            "warping_unwarped": masked_l1(batch.reference, batch.warped_reference),
            "face_l1": masked_l1(outputs["output"], batch.gt, batch.gt_mask),
            "face_l1_unwarped": masked_l1(batch.reference, batch.gt, batch.gt_mask),
            "face_l1_thin_plate": masked_l1(batch.warped_reference, batch.gt, batch.gt_mask),
        }
