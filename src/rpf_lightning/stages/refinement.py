"""Stages 1 and 3: the refinement module of one block (paper III-C-3, eq. 6 to 9)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from rpf_lightning.data.records import ReferenceBatch
from rpf_lightning.losses import masked_l1
from rpf_lightning.model import RPFConfig
from rpf_lightning.model.resize import resize
from rpf_lightning.stages.base import Outputs, RPFStage

RefinementInput = Literal["x2", "lr", "mix", "synthesized"]


class RefinementStage(RPFStage):
    """Trains the refinement module, without a reference (stage 1) or on synthesized images (stage 3).

    Args:
        model_dir: See `RPFStage`.
        block: n, counted from 1.
        network: See `RPFStage`.
        learning_rate: Adam's learning rate. With equalized weights 1e-4, the paper's, hardly moves them.
        input: What the module is fed with. Stage 1: ``"x2"``, the GT reduced to S/2 and enlarged; ``"lr"``, the
            enlarged LR; ``"mix"``, from a random side among L .. S/2 in every step. Stage 3, not in the
            paper: ``"synthesized"``, what the block's own frozen modules make, as at inference.
        adversarial_weight: See `RPFStage`; eq. 6.
        perceptual_weight: See `RPFStage`; eq. 6. With weight 1, the paper's, its gradient outweighs L1's a thousand
            times (logged as `grad/perceptual_relative`).
        identity_weight: See `RPFStage`; eq. 6.
        kwargs: Further arguments of `RPFStage`.

    Raises:
        ValueError: If `entry_fraction` is given in stage 1, which reads no x^(n), or as `RPFStage`.
    """

    def __init__(
        self,
        model_dir: str,
        block: int = 1,
        network: RPFConfig | None = None,
        learning_rate: float = 1e-4,
        input: RefinementInput = "x2",
        adversarial_weight: float = 1.0,
        perceptual_weight: float = 1.0,
        identity_weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            model_dir, block, network, learning_rate, adversarial_weight=adversarial_weight,
            perceptual_weight=perceptual_weight, identity_weight=identity_weight, **kwargs,
        )  # fmt: skip
        self.input = input
        self.name = "finetune" if input == "synthesized" else "refinement"
        self.needs_references = input == "synthesized"
        if self.entry_fraction and not self.needs_references:
            raise ValueError(
                f"entry_fraction: stage 1 reads no x^(n); expected 0 with input {input}, got {self.entry_fraction}"
            )
        self.save_hyperparameters()

    @property
    def trained_module(self) -> nn.Module:
        """The refinement module."""
        return self.current_block.refinement

    def read_modules(self) -> list[str]:
        """None in stage 1; in stage 3 all that make the synthesized image."""
        if self.input != "synthesized":
            return []
        block = f"blocks.{self.block - 1}"
        return [*super().read_modules(), f"{block}.warping", f"{block}.synthesis"]

    def terms(self) -> dict[str, float]:
        """Weights of all terms."""
        return {"L1": 1.0, **super().terms()}

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

    def reconstruction_terms(self, batch: ReferenceBatch, outputs: Outputs) -> Outputs:
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
