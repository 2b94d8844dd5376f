"""Stage 2, second half: the synthesis module of one block (paper III-C-2, eq. 4 and 5)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from rpf_lightning.data.records import ReferenceBatch
from rpf_lightning.losses import masked_l1
from rpf_lightning.model import RPFConfig
from rpf_lightning.stages.base import Outputs, RPFStage


class SynthesisStage(RPFStage):
    """Trains the synthesis module on the aligned reference of the frozen warping module.

    Differs from the paper: eq. 5 prints the reference's mask, which is not aligned with the GT; by default
    the GT's mask is used in both terms.

    Args:
        model_dir: See `RPFStage`.
        block: n, counted from 1.
        network: See `RPFStage`.
        rec_mask: Whose mask eq. 5 uses, ``"gt"`` or ``"reference"``.
        unmasked_weight: Weight of an L1 over the whole image; the masked loss alone leaves everything outside
            the face free. Not in the paper.
        adversarial_weight: alpha of eq. 4.
        kwargs: Further arguments of `RPFStage`; its perceptual and identity term are not in the paper for this
            module.
    """

    name = "synthesis"
    monitor = ("val/psnr_face", "max")
    output_title = "synthesized"

    def __init__(
        self,
        model_dir: str,
        block: int = 1,
        network: RPFConfig | None = None,
        rec_mask: Literal["gt", "reference"] = "gt",
        unmasked_weight: float = 0.0,
        adversarial_weight: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(model_dir, block, network, adversarial_weight=adversarial_weight, **kwargs)
        self.rec_mask = rec_mask
        self.unmasked_weight = unmasked_weight
        self.save_hyperparameters()

    @property
    def trained_module(self) -> nn.Module:
        """The synthesis module."""
        return self.current_block.synthesis

    def read_modules(self) -> list[str]:
        """Those of earlier blocks, and the block's warping module."""
        return [*super().read_modules(), f"blocks.{self.block - 1}.warping"]

    def terms(self) -> dict[str, float]:
        """Weights of all terms."""
        return {f"masked L1 ({self.rec_mask})": 1.0, "unmasked L1": self.unmasked_weight, **super().terms()}

    def generate(self, batch: ReferenceBatch) -> Outputs:
        """Synthesized image from the frozen flow."""
        with torch.no_grad():
            x, alignment = self.align(batch)
        output = self.current_block.synthesize(x, alignment).image
        return {"output": output, "flow": alignment.flow, "aligned": alignment.image}

    def reconstruction_terms(self, batch: ReferenceBatch, outputs: Outputs) -> Outputs:
        """Eq. 5 and the unmasked term."""
        mask = batch.gt_mask if self.rec_mask == "gt" else batch.reference_mask
        terms = {"reconstruction": masked_l1(outputs["output"], batch.gt, mask)}
        if self.unmasked_weight:
            terms["unmasked"] = self.unmasked_weight * masked_l1(outputs["output"], batch.gt)
        return terms

    def critic_images(self, batch: ReferenceBatch, image: Tensor) -> tuple[Tensor, Tensor]:
        """Both images inside the GT's facial mask (paper III-C-2)."""
        return batch.gt * batch.gt_mask, image * batch.gt_mask
