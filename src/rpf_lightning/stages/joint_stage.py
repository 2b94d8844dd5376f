"""Joint training of several blocks, end to end; not in the paper."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, cast

import torch
from torch import Tensor

from rpf_lightning.data.batches import ReferenceBatch
from rpf_lightning.losses import masked_l1
from rpf_lightning.losses.identity_loss import IdentityNorm
from rpf_lightning.model import BlockOutput, ReconstructionBlock, RPFConfig
from rpf_lightning.model.resize import at_least_fp32, resize, resize_mask
from rpf_lightning.stages.base import Outputs
from rpf_lightning.stages.block import refuse_no_share
from rpf_lightning.stages.image_terms import ImageTerms
from rpf_lightning.stages.roles import JOINT


class JointStage(ImageTerms):
    """Trains blocks f to l with all their modules, from the loss at the side of block l; earlier ones are frozen.

    Identity is lost where each module learns for itself: trained together the blocks carry it through to the output,
    and the flow learns from what the image needs (docs/method.md section 13). Terms at the sides below that of block l
    count `lower_weight` times. Takes several references per sample, and samples without any.

    Args:
        model_dir: See `RPFStage`.
        first: f, counted from 1.
        block: l.
        network: See `RPFStage`.
        learning_rate: Adam's; betas (0.9, 0.99).
        decay: See `RPFStage`.
        face_weight: Weight of a pixel inside the GT's facial mask in the L1; outside it is 1.
        synthesized_weight: Weight of the synthesized image's L1 inside the mask.
        lower_weight: What every term counts at the sides below that of block l.
        flow_weight: Weight of the masked L1 between the flow and the data's target, in units of S/64 pixels, at the
            start; it falls to 0 over the fit. References of other people have no target.
        gradient_clip: See `RPFStage`.
        entry_fraction: Share of the training samples that enter at a random block f..l with the GT reduced to the side
            of its input, without a flow before it and without losses below: what the block gets where inference enters
            at it.
        adversarial_weight: See `ImageTerms`, as are the next two.
        perceptual_weight: At every side.
        identity_weight: On outputs of 64 pixels and more.
        identity_norm: See `IdentityLoss`.
        kwargs: Further arguments of `ImageTerms` and `RPFStage`. What the frozen blocks make is not kept.

    Raises:
        ValueError: If not 1 <= first <= block, or as `RPFStage`.
    """

    role = JOINT
    betas = (0.9, 0.99)
    monitor = ("val/psnr_face", "max")
    identity_side = 64  # ArcFace sees nothing of a person in less
    takes_several = True

    def __init__(
        self,
        model_dir: str,
        first: int = 1,
        block: int = 2,
        network: RPFConfig | None = None,
        learning_rate: float = 3e-4,
        decay: Literal["none", "cosine"] = "cosine",
        face_weight: float = 2.0,
        synthesized_weight: float = 0.5,
        lower_weight: float = 0.5,
        flow_weight: float = 0.1,
        gradient_clip: float = 1.0,
        entry_fraction: float = 0.25,
        adversarial_weight: float = 0.0,
        perceptual_weight: float = 1e-3,
        identity_weight: float = 0.05,
        identity_norm: IdentityNorm = "cosine",
        **kwargs: Any,
    ) -> None:
        super().__init__(  # by name: jsonargparse takes the others for further arguments
            model_dir=model_dir, block=block, network=network, learning_rate=learning_rate, decay=decay,
            adversarial_weight=adversarial_weight, perceptual_weight=perceptual_weight,
            identity_weight=identity_weight, identity_norm=identity_norm, gradient_clip=gradient_clip, **kwargs,
        )  # fmt: skip
        refuse_no_share(entry_fraction)
        if not 1 <= first <= block:
            raise ValueError(f"first: expected 1 .. {block}, the fit's last block, got {first}")
        self.first = first
        self.face_weight = face_weight
        self.synthesized_weight = synthesized_weight
        self.lower_weight = lower_weight
        self.flow_weight = flow_weight
        self.entry_fraction = entry_fraction

    def generate(self, batch: ReferenceBatch) -> Outputs:
        """Outputs at the side of block l in the batch's order; those of lower sides with ``_<side>`` at their names."""
        outputs: Outputs = {}
        for side, rows, record in self._run(batch):
            named = {name: value for name, value in record._asdict().items() if value is not None}
            if side == self.side:
                order = rows.argsort()
                outputs |= {name: value[order] for name, value in named.items()}
            else:
                outputs |= {f"{name}_{side}": value for name, value in named.items()}
                outputs[f"rows_{side}"] = rows
        return outputs

    def terms(self, batch: ReferenceBatch, outputs: Outputs) -> Outputs:
        """L1, weighted inside the face; the synthesized image's; the flow's; all of these and more at lower sides."""
        terms = self._level_terms(batch, outputs)
        below = [
            value * (len(rows) / len(batch.gt))  # each sample counts the same, whatever came with it
            for side in self.model.sides[self.first - 1 : self.block - 1]
            if len(rows := outputs.get(f"rows_{side}", batch.gt.new_zeros(0)))
            for value in self._terms_below(batch, outputs, side, rows)
        ]
        if below:
            terms["below"] = self.lower_weight * torch.stack(below).sum()
        return terms

    @torch.no_grad()
    def diagnostics(self, batch: ReferenceBatch, outputs: Outputs) -> Outputs:
        """Means of the gates, and the entropy in nats of the weights where there are several references."""
        found = {name: value.mean() for name, value in outputs.items() if name.startswith("gate")}
        weights = outputs.get("weights")
        if weights is not None and weights.ndim == 5:
            several = (weights.amax((2, 3, 4)) > 0).sum(1) > 1
            if several.any():
                found["weights_entropy"] = -torch.xlogy(weights, weights).sum(1)[several].mean()
        return found

    def _level_terms(self, batch: ReferenceBatch, outputs: Outputs) -> Outputs:
        difference = (at_least_fp32(outputs["output"]) - batch.gt).abs()
        weight = 1 + (self.face_weight - 1) * batch.gt_mask
        terms = {"reconstruction": (weight * difference).mean()}
        if self.synthesized_weight:
            l1 = masked_l1(outputs["synthesized"], batch.gt, batch.gt_mask)
            terms["synthesized"] = self.synthesized_weight * l1
        if self.flow_weight:
            shown = batch.flow_known[..., None, None, None] * batch.gt_mask.view(
                len(batch.gt), *(1,) * (batch.flow.ndim - 4), 1, *batch.gt.shape[-2:]
            )
            error = (shown * (outputs["flow"] - batch.flow).abs()).mean() * (64 / batch.gt.shape[-1])
            passed = self.progress() if self.trainer.training else 0.0
            terms["flow"] = self.flow_weight * (1 - passed) * error
        return terms

    def _terms_below(
        self, batch: ReferenceBatch, outputs: Outputs, side: int, rows: Tensor
    ) -> Iterator[Tensor]:
        """All terms of a lower side, with GT, mask and flow reduced from the side of block l."""
        flow = resize(batch.flow.flatten(0, -4), side).view(*batch.flow.shape[:-2], side, side)
        reduced = batch._replace(
            gt=resize(batch.gt, side).clamp(0, 1)[rows],
            gt_mask=resize_mask(batch.gt_mask, side)[rows],
            flow=flow[rows] * (side / batch.gt.shape[-1]),
            flow_known=batch.flow_known[rows],
        )
        own = {name: outputs[f"{name}_{side}"] for name in ("output", "synthesized", "flow")}
        yield from self._level_terms(reduced, own).values()
        yield from self.feature_terms(own["output"], reduced.gt).values()

    def _run(self, batch: ReferenceBatch) -> Iterator[tuple[int, Tensor, BlockOutput]]:
        """Run the blocks f to l, each on the samples that have entered by then.

        Yields:
            S of the block; (R,) the places in the batch of the samples that came through it; what it made of them.
        """
        enters = self._entries(len(batch.gt)).to(batch.gt.device)
        levels = self.model.pyramid(self.references(batch), self.block)
        rows, x, flow = (enters == 0).nonzero()[:, 0], batch.lr[:0], None
        if len(rows):
            with torch.no_grad():
                x, flow = self.model.after(
                    batch.lr[rows], [level[rows] for level in levels[: self.first - 1]]
                )
        blocks = cast("list[ReconstructionBlock]", self.model.blocks)
        for n in range(self.first, self.block + 1):
            block, level = blocks[n - 1], levels[n - 1]
            new = (enters == n).nonzero()[:, 0]
            if len(new):
                sharp = resize(batch.gt[new], block.in_side).clamp(0, 1)
                x = torch.cat((x, sharp)) if len(rows) else sharp
                rows = torch.cat((rows, new))
                if flow is not None:
                    flow = torch.cat((flow, flow.new_zeros((len(new), *flow.shape[1:]))))
            if not len(rows):
                continue
            record = block(x, level[rows], flow)
            yield block.side, rows, record
            x = record.output.clamp(0, 1)
            flow = self.model.handed_on(record)

    def _entries(self, count: int) -> Tensor:
        """The block at which each sample enters; 0: at the LR, before all blocks."""
        if not (self.entry_fraction and self.trainer.training):
            return torch.zeros(count, dtype=torch.long)
        blocks = torch.randint(self.first, self.block + 1, (count,))
        entered = (torch.rand(count) < self.entry_fraction) & (blocks > 1)  # at block 1 that is the LR itself
        return torch.where(entered, blocks, 0)
