"""What goes into and comes out of a stage, as pictures of one side."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor
from torchvision.utils import flow_to_image  # type: ignore[import-untyped]

from rpf_lightning.data.batches import FaceBatch, ReferenceBatch
from rpf_lightning.model.resize import resize


def draw_stage(
    batch: FaceBatch | ReferenceBatch, outputs: Mapping[str, Tensor], output_title: str
) -> dict[str, Tensor]:
    """Lay out a batch and what a stage makes of it, in the order of the computation.

    Args:
        batch: At the level of side S.
        outputs: ``"output"``, and as far as the stage has them ``"flow"``, ``"aligned"``, ``"synthesized"``.
        output_title: Title of ``"output"``.

    Returns:
        Title -> (B, 3, S, S) in [0, 1]. The flow's direction is its hue, its length the saturation; white is 0.
    """
    side = batch.gt.shape[-1]
    found = {
        "LR": F.interpolate(batch.lr, size=(side, side), mode="nearest"),
        "bicubic": resize(batch.lr, side),
    }
    if "flow" in outputs:
        found["flow"] = flow_to_image(outputs["flow"].float()).float() / 255
    found |= {name: outputs[name] for name in ("aligned", "synthesized") if name in outputs}
    found |= {output_title: outputs["output"], "GT": batch.gt}
    if isinstance(batch, ReferenceBatch):
        found["reference"] = batch.reference
        if batch.warped_reference is not None:
            found["thin-plate"] = batch.warped_reference
    found["mask"] = batch.gt_mask.expand_as(batch.gt)
    return {name: image.float().clamp(0, 1) for name, image in found.items()}
