"""What flow the warping is to learn: the thin-plate spline's (P III-B-1), a similarity, or something between."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rpf_lightning.data.thin_plate import tps_flow

FlowTarget = Literal["tps", "similarity"] | float


def rest_of(flow_target: FlowTarget) -> float:
    """Return which share of the thin-plate flow beyond the similarity a target keeps: "tps" 1, "similarity" 0.

    Raises:
        ValueError: If it is neither of these nor a number in [0, 1].
    """
    named = {"tps": 1.0, "similarity": 0.0}
    if isinstance(flow_target, str):
        if flow_target in named:
            return named[flow_target]
    elif isinstance(flow_target, int | float) and not isinstance(flow_target, bool) and 0 <= flow_target <= 1:
        return float(flow_target)
    raise ValueError(f"flow_target: expected tps, similarity or a number in [0, 1], got {flow_target!r}")


def target_flow(
    gt_landmarks: NDArray[np.float64], reference_landmarks: NDArray[np.float64], side: int, rest: float = 1.0
) -> Tensor:
    """Compute u = u_sim + rest * (u_tps - u_sim).

    u_sim is the similarity (rotation, scale, shift; no reflection) that fits the landmark pairs best. Moving the
    reference by another similarity moves the flow's ends with it, whatever `rest` is.

    Args:
        gt_landmarks: (68, 2) as fractions of the side.
        reference_landmarks: (68, 2) likewise.
        side: Side S of the flow in pixels.
        rest: 1: the thin-plate flow (the paper's); 0: the similarity.

    Returns:
        (2, S, S) float32, x then y, in pixels of S: ``out(p) = r(p + flow(p))``.

    Raises:
        ValueError: As in `tps_flow`, and where the GT's landmarks coincide.
    """
    if rest == 1:
        return tps_flow(gt_landmarks, reference_landmarks, side)
    flow = _similarity_flow(gt_landmarks, reference_landmarks, side)
    if rest == 0:
        return flow
    return torch.lerp(flow, tps_flow(gt_landmarks, reference_landmarks, side), rest)


def _similarity_flow(
    gt_landmarks: NDArray[np.float64], reference_landmarks: NDArray[np.float64], side: int
) -> Tensor:
    """Procrustes in complex numbers: z -> factor * z + shift, least squares, which cannot reflect."""
    gt, reference = (points @ np.array([1, 1j]) for points in (gt_landmarks, reference_landmarks))
    z, target = gt - gt.mean(), reference - reference.mean()
    spread = np.vdot(z, z).real
    if not spread > 0:
        raise ValueError("landmarks must be finite and not all at one place")
    factor = np.vdot(z, target) / spread
    centre = (np.arange(side) + 0.5) / side
    grid = centre + 1j * centre[:, None]
    moved = ((factor - 1) * (grid - gt.mean()) + reference.mean() - gt.mean()) * side
    return torch.from_numpy(np.stack([moved.real, moved.imag])).float()
