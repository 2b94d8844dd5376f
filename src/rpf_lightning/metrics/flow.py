"""How near a flow is to the thin-plate flow inside the face: one value per image (docs/method.md section 10)."""

from __future__ import annotations

import torch
from torch import Tensor

from rpf_lightning.metrics.per_image import PerImageMetric


def end_point_error(flow: Tensor, goal: Tensor, mask: Tensor) -> Tensor:
    """Mean distance of two flows in pixels.

    Args:
        flow: (B, 2, S, S).
        goal: (B, 2, S, S).
        mask: (B, 1, S, S) of 0 and 1.

    Returns:
        (B,); NaN where the mask is empty.
    """
    distance = (flow - goal).norm(dim=1, keepdim=True)
    return (distance * mask).sum((1, 2, 3)) / mask.sum((1, 2, 3))


def flow_correlation(flow: Tensor, goal: Tensor, mask: Tensor) -> Tensor:
    """Pearson's correlation of two flows, x and y each around its own mean.

    A shift of the whole face is in neither: 1 is the goal up to a factor and a shift, 0 nothing of its shape.

    Args:
        flow: (B, 2, S, S).
        goal: (B, 2, S, S).
        mask: (B, 1, S, S) of 0 and 1.

    Returns:
        (B,); 0 for a flow that is the same everywhere, NaN where the mask is empty.
    """
    count = mask.sum((2, 3), keepdim=True)
    a, b = ((x - (x * mask).sum((2, 3), keepdim=True) / count) * mask for x in (flow, goal))
    lengths = a.flatten(1).norm(dim=1) * b.flatten(1).norm(dim=1)
    # the mean is rounded: what is left of a constant flow is no shape
    flat = lengths <= 1e-6 * (flow * mask).flatten(1).norm(dim=1) * (goal * mask).flatten(1).norm(dim=1)
    correlation = (a * b).sum((1, 2, 3)) / lengths.where(~flat, torch.ones_like(lengths))
    return correlation.where(~flat | correlation.isnan(), torch.zeros_like(lengths))


class EndPointError(PerImageMetric):
    """Mean distance to the thin-plate flow in pixels, see `end_point_error`.

    Args:
        unwarped: Measure what no warp at all has.
    """

    label, unit, digits, higher_is_better = "end-point error", "px", 2, False

    def __init__(self, unwarped: bool = False) -> None:
        super().__init__()
        self.unwarped = unwarped

    def update(self, flow: Tensor, goal: Tensor, mask: Tensor) -> None:
        """Add a batch; what no warp has does not depend on a flow that is not finite."""
        super().update(torch.zeros_like(flow) if self.unwarped else flow, goal, mask)

    def per_image(self, flow: Tensor, goal: Tensor, mask: Tensor) -> Tensor:
        """See `end_point_error`."""
        return end_point_error(torch.zeros_like(flow) if self.unwarped else flow, goal, mask)


class FlowCorrelation(PerImageMetric):
    """Correlation with the thin-plate flow, see `flow_correlation`."""

    label, higher_is_better = "flow correlation", True
    per_image = staticmethod(flow_correlation)
