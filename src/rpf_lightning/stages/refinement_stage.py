"""Stages 1 and 3: the refinement module of one block (paper III-C-3, eq. 6 to 9)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from rpf_lightning.data.batches import ReferenceBatch
from rpf_lightning.losses import masked_l1
from rpf_lightning.model.resize import resize
from rpf_lightning.stages.base import Outputs
from rpf_lightning.stages.block import BlockStage
from rpf_lightning.stages.image_terms import ImageTerms
from rpf_lightning.stages.roles import FINETUNE, REFINEMENT

RefinementInput = Literal["x2", "lr", "mix", "synthesized"]


class RefinementStage(ImageTerms, BlockStage):
    """Trains the refinement module, without a reference (stage 1) or on synthesized images (stage 3).

    Args:
        args: `model_dir`, `block` and `network` of `RPFStage`. With equalized weights its `learning_rate` of 1e-4, the
            paper's, hardly moves them.
        input: What the module is fed with. Stage 1: ``"x2"``, the GT reduced to S/2 and enlarged; ``"lr"``, the
            enlarged LR; ``"mix"``, from a random side among L .. S/2 in every step. Stage 3, not in the
            paper: ``"synthesized"``, what the block's own frozen modules make, as at inference.
        adversarial_weight: See `ImageTerms`; eq. 6.
        perceptual_weight: See `ImageTerms`; eq. 6. With weight 1, the paper's, its gradient outweighs L1's a thousand
            times (logged as `grad/perceptual_relative`).
        identity_weight: See `ImageTerms`; eq. 6.
        kwargs: Further arguments of `ImageTerms` and `BlockStage`.

    Raises:
        ValueError: If `entry_fraction` is given in stage 1, which reads no x^(n), or as `BlockStage`.
    """

    role = REFINEMENT

    def __init__(
        self,
        *args: Any,
        input: RefinementInput = "x2",
        adversarial_weight: float = 1.0,
        perceptual_weight: float = 1.0,
        identity_weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            *args, adversarial_weight=adversarial_weight, perceptual_weight=perceptual_weight,
            identity_weight=identity_weight, **kwargs,
        )  # fmt: skip
        self.input = input
        if input == "synthesized":
            self.role = FINETUNE
        elif self.entry_fraction:
            raise ValueError(
                f"entry_fraction: stage 1 reads no x^(n); expected 0 with input {input}, got {self.entry_fraction}"
            )

    def generate(self, batch: ReferenceBatch) -> Outputs:
        """Refined image."""
        if self.input != "synthesized":
            small = self._reduced(batch)
            return {"output": self.current_block.refinement(resize(small, self.side))}
        with torch.no_grad():
            x, alignment = self.align(batch)
            synthesized = self.current_block.synthesize(x, alignment).image
        output = self.current_block.refine(x, synthesized)
        return {
            "output": output, "flow": alignment.flow, "aligned": alignment.image, "synthesized": synthesized,
        }  # fmt: skip

    def terms(self, batch: ReferenceBatch, outputs: Outputs) -> Outputs:
        """Eq. 7."""
        return {"reconstruction": masked_l1(outputs["output"], batch.gt)}

    def _reduced(self, batch: ReferenceBatch) -> Tensor:
        """The GT at the side that the module's input is enlarged from."""
        sides = [side for side in (self.lr_size, *self.model.sides) if side < self.side]
        if self.input == "lr":
            side = sides[0]
        elif self.input == "x2":
            side = sides[-1]
        else:
            side = sides[int(torch.randint(len(sides), ()))]
        return batch.lr if side == self.lr_size else resize(batch.gt, side).clamp(0, 1)
