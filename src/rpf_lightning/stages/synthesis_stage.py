"""Stage 2, second half: the synthesis module of one block (paper III-C-2, eq. 4 and 5)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from rpf_lightning.data.batches import ReferenceBatch
from rpf_lightning.losses import masked_l1
from rpf_lightning.stages.base import Outputs
from rpf_lightning.stages.block import BlockStage
from rpf_lightning.stages.image_terms import ImageTerms
from rpf_lightning.stages.roles import SYNTHESIS


class SynthesisStage(ImageTerms, BlockStage):
    """Trains the synthesis module on the aligned reference of the frozen warping module.

    Differs from the paper: eq. 5 prints the reference's mask, which is not aligned with the GT; by default
    the GT's mask is used in both terms.

    Args:
        args: `model_dir`, `block` and `network` of `RPFStage`.
        rec_mask: Whose mask eq. 5 uses, ``"gt"`` or ``"reference"``.
        unmasked_weight: Weight of an L1 over the whole image; the masked loss alone leaves everything outside
            the face free. Not in the paper.
        adversarial_weight: alpha of eq. 4.
        kwargs: Further arguments of `ImageTerms`, whose perceptual and identity term are not in the paper for this
            module, and of `BlockStage`.
    """

    role = SYNTHESIS
    monitor = ("val/psnr_face", "max")
    output_title = "synthesized"

    def __init__(
        self,
        *args: Any,
        rec_mask: Literal["gt", "reference"] = "gt",
        unmasked_weight: float = 0.0,
        adversarial_weight: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, adversarial_weight=adversarial_weight, **kwargs)
        self.rec_mask = rec_mask
        self.unmasked_weight = unmasked_weight

    def generate(self, batch: ReferenceBatch) -> Outputs:
        """Synthesized image from the frozen flow."""
        with torch.no_grad():
            x, alignment = self.align(batch)
        output = self.current_block.synthesize(x, alignment).image
        return {"output": output, "flow": alignment.flow, "aligned": alignment.image}

    def terms(self, batch: ReferenceBatch, outputs: Outputs) -> Outputs:
        """Eq. 5 and the unmasked term."""
        mask = batch.gt_mask if self.rec_mask == "gt" else batch.reference_mask
        terms = {"reconstruction": masked_l1(outputs["output"], batch.gt, mask)}
        if self.unmasked_weight:
            terms["unmasked"] = self.unmasked_weight * masked_l1(outputs["output"], batch.gt)
        return terms

    def critic_images(self, batch: ReferenceBatch, image: Tensor) -> tuple[Tensor, Tensor]:
        """Both images inside the GT's facial mask (paper III-C-2)."""
        return batch.gt * batch.gt_mask, image * batch.gt_mask
