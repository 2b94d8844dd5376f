"""Thin-plate spline between two faces (P III-B-1): the supervision of the warping module, r_warp in eq. 3.

The spline is Bookstein's (1989), fitted to the 68 landmark pairs. It runs backwards, from the GT to the
reference, so that it is a flow for `backward_warp`.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from rpf_lightning.model.resize import resize

# In [-1, 1] coordinates. It keeps the system regular when landmarks almost coincide. On real faces the spline
# misses the landmarks by 0.04 px of 512 on average, but by several where lips touch and their targets do not.
SMOOTHING = 1e-4
ROWS, CHUNK = 8, 1024  # of the grid, points: what the processor's cache holds
CANCELLING = 250.0  # sum of the weights' magnitudes from which on fp32 is not used
GRID = 128  # side of the coarse grid
MARGIN = 2  # coarse cells beyond the border
ROUGH = 0.4 / 512  # third difference on the coarse grid, in fractions of the side: 0.06 px of 512


def tps_flow(
    gt_landmarks: NDArray[np.float64], reference_landmarks: NDArray[np.float64], side: int
) -> Tensor:
    """Compute the dense flow that pulls the reference onto the GT (eq. 3).

    ``out(p) = r(p + flow(p))``: at a GT landmark the flow points to the same landmark of the reference. Equal
    landmarks give a flow of exactly 0. Up to a side of `GRID` the spline is evaluated at every pixel
    centre; above, on a grid of cell centres and interpolated bicubically, except where the flow is too rough
    for that (the lips, mostly). It stays within 0.1 px of 512 of the exact spline.

    Args:
        gt_landmarks: (68, 2) x and y as fractions of the image's side, the image spanning 0..1. Landmarks
            that coincide count as one, with the mean of their targets.
        reference_landmarks: (68, 2) the same points of the reference.
        side: Side S of the flow in pixels.

    Returns:
        (2, S, S) float32, x then y, in pixels of S.

    Raises:
        ValueError: if the landmarks differ in shape, are not finite, or are all on one line, or if `side`
            is above `GRID` and not a multiple of it.
    """
    if gt_landmarks.shape != reference_landmarks.shape or gt_landmarks.shape[1:] != (2,):
        raise ValueError(
            f"landmarks must be two arrays of the same shape (68, 2), "
            f"got {gt_landmarks.shape} and {reference_landmarks.shape}"
        )
    if not (np.isfinite(gt_landmarks).all() and np.isfinite(reference_landmarks).all()):
        raise ValueError("landmarks must be finite, got NaN or infinity")
    if side > GRID and side % GRID:
        raise ValueError(f"side {side} must be a multiple of {GRID}")
    spline = _Spline(2 * gt_landmarks - 1, 2 * (reference_landmarks - gt_landmarks))

    if side <= GRID:
        return (spline.on_grid(_centres(side)) * (side / 2)).float()

    # Bicubic interpolation reaches two cells, hence the margin. a = -0.5, which `resize` uses, reproduces
    # linear flows; torch's plain bicubic (-0.75) does not.
    factor = side // GRID
    cells = GRID + 2 * MARGIN
    coarse = (spline.on_grid(_centres(GRID, MARGIN)) * (side / 2)).float()
    inside = slice(MARGIN * factor, MARGIN * factor + side)
    flow = resize(coarse[None], cells * factor)[0, :, inside, inside].contiguous()

    # The spline bends too sharply for the grid where lips touch in the GT and are apart in the reference.
    rough = _rough(coarse, ROUGH * side)[MARGIN:-MARGIN, MARGIN:-MARGIN]
    y, x = rough.repeat_interleave(factor, 0).repeat_interleave(factor, 1).nonzero(as_tuple=True)
    centre = _centres(side)
    flow[:, y, x] = (spline.at(centre[x], centre[y]) * (side / 2)).float()
    return flow


def warp(image: Tensor, flow: Tensor) -> Tensor:
    """Warp backwards as `backward_warp` does, without gradients and faster: its grid is written once.

    Args:
        image: (1, C, S, S) fp32.
        flow: (2, S, S) fp32, in pixels.

    Returns:
        (1, C, S, S) fp32.
    """
    side = flow.shape[-1]
    centre = (torch.arange(side) + 0.5) * (2 / side) - 1
    grid = torch.empty(1, side, side, 2)
    torch.add(centre, flow[0], alpha=2 / side, out=grid[0, ..., 0])
    torch.add(centre[:, None], flow[1], alpha=2 / side, out=grid[0, ..., 1])
    return F.grid_sample(image, grid, "bilinear", "zeros", align_corners=False)


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


def _centres(cells: int, margin: int = 0) -> Tensor:
    """Return the centres of `cells` cells over [-1, 1], with `margin` more cells on either side, in float64."""
    return (torch.arange(-margin, cells + margin, dtype=torch.float64) + 0.5) / cells * 2 - 1


class _Spline:
    """Bookstein's spline in [-1, 1] coordinates: sum_i w_i r_i^2 log r_i + a + b x + c y, r_i the distance to point i.

    Fitted with smoothing, as scipy's `RBFInterpolator` does it, in float64. Evaluated in fp32, which is faster, but
    where the weights of almost coinciding points are large and cancel, so that fp32 is not exact enough.

    Args:
        points: (n, 2) float64; those that coincide are merged, with the mean of their values.
        values: (n, 2) displacements.

    Raises:
        ValueError: If the points are all on one line.
    """

    def __init__(self, points: NDArray[np.float64], values: NDArray[np.float64]) -> None:
        unique, index = np.unique(points.round(9), axis=0, return_inverse=True)
        index = index.reshape(-1)
        n = len(unique)
        if np.linalg.matrix_rank(unique - unique.mean(axis=0), tol=1e-6) < 2:
            raise ValueError(
                "landmarks are all on one line; a thin-plate spline needs at least three that are not"
            )
        right = np.zeros((n + 3, 2))
        np.add.at(right, index, values)
        right[:n] /= np.bincount(index)[:, None]
        control = torch.from_numpy(unique)
        left = np.zeros((n + 3, n + 3))
        distance = (control[:, None] - control[None]).square().sum(-1)
        left[:n, :n] = _kernel(distance).numpy() + SMOOTHING * np.eye(n)
        left[:n, n] = left[n, :n] = 1
        left[:n, n + 1 :], left[n + 1 :, :n] = unique, unique.T
        solution = np.linalg.solve(left, right)
        self.dtype = torch.float32 if np.abs(solution[:n]).sum(0).max() < CANCELLING else torch.float64
        self.points = control.to(self.dtype)
        coefficients = torch.from_numpy(solution).to(self.dtype)
        self.weights = coefficients[:n].T.contiguous()
        self.constant, self.linear = coefficients[n], coefficients[n + 1 :].T

    def on_grid(self, centre: Tensor) -> Tensor:
        """Evaluate at all points of a square grid: (cells,) coordinates to (2, cells, cells)."""
        cells, centre = len(centre), centre.to(self.dtype)
        square = (centre[None] - self.points.T[..., None]).square()  # (2, n, cells)
        flow = torch.empty(2, cells, cells, dtype=self.dtype)
        for start in range(0, cells, ROWS):
            distance = square[1][:, start : start + ROWS, None] + square[0][:, None]
            flow[:, start : start + ROWS] = torch.tensordot(self.weights, _kernel(distance), 1)
        x, y = self.linear.T[..., None, None]
        return flow + self.constant[:, None, None] + x * centre + y * centre[:, None]

    def at(self, x: Tensor, y: Tensor) -> Tensor:
        """Evaluate at (m,) points: (2, m)."""
        x, y = x.to(self.dtype), y.to(self.dtype)
        flow = torch.empty(2, len(x), dtype=self.dtype)
        for start in range(0, len(x), CHUNK):
            part = slice(start, start + CHUNK)
            distance = (x[part] - self.points[:, :1]).square() + (y[part] - self.points[:, 1:]).square()
            flow[:, part] = self.weights @ _kernel(distance)
        return flow + self.constant[:, None] + self.linear @ torch.stack([x, y])


def _kernel(squared: Tensor) -> Tensor:
    """r^2 log r of squared distances, 0 at 0."""
    return squared.clamp(min=torch.finfo(squared.dtype).tiny).log_().mul_(squared).mul_(0.5)
