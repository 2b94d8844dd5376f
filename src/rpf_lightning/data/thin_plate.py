"""Thin-plate spline between two faces (P III-B-1): the supervision of the warping module, r_warp in eq. 3.

The spline is Bookstein's (1989), fitted to the 68 landmark pairs. It runs backwards, from the GT to the
reference, so that it is a flow for `backward_warp`.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.interpolate import RBFInterpolator
from torch import Tensor

from rpf_lightning.model.resize import resize

# In [-1, 1] coordinates. It keeps the system regular when landmarks almost coincide. On real faces the spline
# misses the landmarks by 0.04 px of 512 on average, but by several where lips touch and their targets do not.
SMOOTHING = 1e-4
MARGIN = 2  # coarse cells beyond the border
ROUGH = 0.4 / 512  # third difference on the coarse grid, in fractions of the side: 0.06 px of 512


def tps_flow(
    gt_landmarks: NDArray[np.float64], reference_landmarks: NDArray[np.float64], side: int, grid: int = 128
) -> Tensor:
    """Compute the dense flow that pulls the reference onto the GT (eq. 3).

    ``out(p) = r(p + flow(p))``: at a GT landmark the flow points to the same landmark of the reference. Equal
    landmarks give a flow of exactly 0. Up to ``side == grid`` the spline is evaluated at every pixel
    centre; above, on a grid of cell centres and interpolated bicubically, except where the flow is too rough
    for that (the lips, mostly). It stays within 0.1 px of 512 of the exact spline.

    Args:
        gt_landmarks: (68, 2) x and y as fractions of the image's side, the image spanning 0..1. Landmarks
            that coincide count as one, with the mean of their targets.
        reference_landmarks: (68, 2) the same points of the reference.
        side: Side S of the flow in pixels.
        grid: Side of the coarse grid; divides `side` where it is smaller.

    Returns:
        (2, S, S) float32, x then y, in pixels of S.

    Raises:
        ValueError: if the landmarks differ in shape, are not finite, or are all on one line, or if `side`
            is above `grid` and not a multiple of it.
    """
    if gt_landmarks.shape != reference_landmarks.shape or gt_landmarks.shape[1:] != (2,):
        raise ValueError(
            f"landmarks must be two arrays of the same shape (68, 2), "
            f"got {gt_landmarks.shape} and {reference_landmarks.shape}"
        )
    if not (np.isfinite(gt_landmarks).all() and np.isfinite(reference_landmarks).all()):
        raise ValueError("landmarks must be finite, got NaN or infinity")
    if side > grid and side % grid:
        raise ValueError(f"side {side} must be a multiple of grid {grid}")
    spline = _fit(2 * gt_landmarks - 1, 2 * (reference_landmarks - gt_landmarks))

    if side <= grid:
        return _to_pixels(spline(_points(_centres(side))), side).reshape(2, side, side)

    # Bicubic interpolation reaches two cells, hence the margin. a = -0.5, which `resize` uses, reproduces
    # linear flows; torch's plain bicubic (-0.75) does not.
    factor = side // grid
    cells = grid + 2 * MARGIN
    coarse = _to_pixels(spline(_points(_centres(grid, MARGIN))), side).reshape(2, cells, cells)
    inside = slice(MARGIN * factor, MARGIN * factor + side)
    flow = resize(coarse[None], cells * factor)[0, :, inside, inside].contiguous()

    # The spline bends too sharply for the grid where lips touch in the GT and are apart in the reference.
    rough = _rough(coarse, ROUGH * side)[MARGIN:-MARGIN, MARGIN:-MARGIN].numpy()
    y, x = np.nonzero(rough.repeat(factor, axis=0).repeat(factor, axis=1))
    centre = _centres(side)
    flow[:, y, x] = _to_pixels(spline(np.stack([centre[x], centre[y]], axis=-1)), side)
    return flow


def _rough(flow: Tensor, limit: float) -> Tensor:
    """Mark the cells of a (2, n, n) flow under a third difference (bicubic's error) above `limit`."""
    n = flow.shape[-1]
    rough = torch.zeros(n, n, dtype=torch.bool)
    along_x = flow.diff(n=3, dim=2).abs().amax(0) > limit
    along_y = flow.diff(n=3, dim=1).abs().amax(0) > limit
    for k in range(4):
        rough[:, k : n - 3 + k] |= along_x
        rough[k : n - 3 + k] |= along_y
    return rough


def _centres(cells: int, margin: int = 0) -> NDArray[np.float64]:
    """Return the centres of `cells` cells over [-1, 1], with `margin` more cells on either side."""
    return (np.arange(-margin, cells + margin) + 0.5) / cells * 2 - 1


def _points(centre: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the (n * n, 2) points of a square grid, row by row."""
    return np.stack(np.meshgrid(centre, centre, indexing="xy"), axis=-1).reshape(-1, 2)


def _to_pixels(displacements: NDArray[np.float64], side: int) -> Tensor:
    """Turn (n, 2) displacements in [-1, 1] coordinates into (2, n) float32 pixels of `side`."""
    return torch.from_numpy(displacements.T * (side / 2)).float().contiguous()


def _fit(points: NDArray[np.float64], displacements: NDArray[np.float64]) -> RBFInterpolator:
    """Fit the spline in [-1, 1] coordinates, with coinciding points merged."""
    unique, index = np.unique(points.round(9), axis=0, return_inverse=True)
    index = index.reshape(-1)
    values = np.zeros_like(unique)
    np.add.at(values, index, displacements)
    values /= np.bincount(index)[:, None]
    if np.linalg.matrix_rank(unique - unique.mean(axis=0), tol=1e-6) < 2:
        raise ValueError(
            "landmarks are all on one line; a thin-plate spline needs at least three that are not"
        )
    return RBFInterpolator(unique, values, kernel="thin_plate_spline", smoothing=SMOOTHING)
