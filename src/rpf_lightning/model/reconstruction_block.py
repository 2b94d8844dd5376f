"""One reconstruction block: warping, synthesis, refinement, in the order of Fig. 2 (b)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rpf_lightning.model.config import RPFConfig
from rpf_lightning.model.layers import is_traced
from rpf_lightning.model.reference_slots import Slots
from rpf_lightning.model.refinement import RefinementModule
from rpf_lightning.model.resize import Resize
from rpf_lightning.model.strips import WHOLE, Rows
from rpf_lightning.model.synthesis import CopySynthesisModule, SynthesisModule, Synthesized
from rpf_lightning.model.warping import WarpingModule


class BlockOutput(NamedTuple):
    """What one reconstruction block computed; images are fp32 and not clamped.

    With five-dimensional references, `flow`, `aligned` and `weights` have an axis K behind B.

    Attributes:
        flow: (B, 2, S, S) in pixels of side S, eq. 2.
        aligned: (B, 3, S, S) aligned reference.
        synthesized: (B, 3, S, S) output of the synthesis module.
        output: (B, 3, S, S) output of the refinement module, x^(n+1).
        gate: (B, 1, S, S) in [0, 1], see `CopySynthesisModule`; None without `synthesis_copy`.
        weights: (B, 1, S, S) the references' shares; None without `synthesis_copy`.
    """

    flow: Tensor
    aligned: Tensor
    synthesized: Tensor
    output: Tensor
    gate: Tensor | None = None
    weights: Tensor | None = None


class Alignment(NamedTuple):
    """References aligned to a block's input: one row per reference, without the absent ones.

    Attributes:
        flow: (R, 2, S, S) in pixels of side S.
        aligned: (R, 3, S, S), or (R, 4, S, S) with ok.
        slots: Which reference of which sample each row is; a single reference per sample is its own row.
    """

    flow: Tensor
    aligned: Tensor
    slots: Slots

    @property
    def image(self) -> Tensor:
        """(R, 3, S, S): without ok."""
        return self.aligned[:, :3]


class ReconstructionBlock(nn.Module):
    """One reconstruction block, Fig. 2 (b): warping, synthesis, refinement.

    Args:
        config: The network's structure.
        block: n, counted from 1.
    """

    def __init__(self, config: RPFConfig, block: int) -> None:
        super().__init__()
        self.side, self.in_side = config.sides[block - 1], config.entry_sides[block - 1]
        self.refinement_mean = config.refinement_mean
        self.warping = WarpingModule(config, block)
        self.synthesis = (CopySynthesisModule if config.synthesis_copy else SynthesisModule)(config, block)
        self.refinement = RefinementModule(config, block)
        self.enlarge = Resize(self.in_side, self.side)

    def forward(
        self, x: Tensor, reference: Tensor, previous: Tensor | None = None, rows: Rows = WHOLE
    ) -> BlockOutput:
        """Reconstruct.

        Args:
            x: x^(n), (B, 3, in_side, in_side) in [0, 1].
            reference: r_hat^(n), (B, 3, S, S) in [0, 1], masked; with `synthesis_copy` (B, 4, S, S), see
                `RPFModel.pyramid`. Several: (B, K, ..., S, S).
            previous: The flow of the block before; see `WarpingModule`.
            rows: On whole maps or, without gradients, in strips.
        """
        alignment = self.align(x, reference, previous, rows)
        image, gate, weights = self.synthesize(x, alignment, rows)
        flow, aligned = (alignment.slots.spread(each) for each in (alignment.flow, alignment.image))
        return BlockOutput(flow, aligned, image, self.refine(x, image, rows), gate, weights)

    def align(
        self, x: Tensor, reference: Tensor, previous: Tensor | None = None, rows: Rows = WHOLE
    ) -> Alignment:
        """Align the references; arguments as in `forward`.

        With `synthesis_copy` a sample without any reference gets the enlarged input, and a flow of zero.
        """
        copies = isinstance(self.synthesis, CopySynthesisModule)
        slots = Slots(reference, packed=copies and not is_traced())
        own = slots.of_samples(x)
        before = None if previous is None else slots.of_references(previous)
        present = slots.present if copies else None
        flow, aligned = self.warping(own, slots.of_references(reference), before, rows, present)
        if present is not None:
            nothing = F.pad(self.enlarge(own).clamp(0, 1), (0, 0, 0, 0, 0, 1))  # and ok = 0
            aligned = torch.where(present[:, None, None, None], aligned, nothing)
        return Alignment(flow, aligned, slots)

    def synthesize(self, x: Tensor, alignment: Alignment, rows: Rows = WHOLE) -> Synthesized:
        """Blend what `align` returned into the face."""
        if isinstance(self.synthesis, CopySynthesisModule):
            copied: Synthesized = self.synthesis(x, alignment.aligned, alignment.slots, rows=rows)
            return copied
        return Synthesized(self.synthesis(x, alignment.aligned, rows=rows))

    def refine(self, x: Tensor, synthesized: Tensor, rows: Rows = WHOLE) -> Tensor:
        """Refinement of the mean of the enlarged input and the synthesized image (paper III-B-3), or of the latter."""
        image = (self.enlarge(x) + synthesized) / 2 if self.refinement_mean else synthesized
        refined: Tensor = self.refinement(image, rows=rows)
        return refined
