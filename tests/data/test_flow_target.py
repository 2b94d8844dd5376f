"""The flow to be learned: thin-plate, similarity, and what lies between."""

import numpy as np
import pytest
import torch

from rpf_lightning.data.flow_target import rest_of, target_flow
from rpf_lightning.data.thin_plate import tps_flow

RNG = np.random.default_rng(0)
GT = 0.5 + RNG.uniform(-0.3, 0.3, (68, 2))
OTHER = GT + RNG.normal(0, 0.02, (68, 2))


def moved(
    points: np.ndarray, angle: float = 0.2, scale: float = 1.1, shift: tuple[float, float] = (0.03, -0.05)
):
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return scale * points @ turn.T + shift


def grid(side: int) -> np.ndarray:
    centre = (np.arange(side) + 0.5) / side
    return np.stack(np.meshgrid(centre, centre), -1)


def test_names_and_shares() -> None:
    assert [rest_of(value) for value in ("tps", "similarity", 0.25, 1, 0)] == [1, 0, 0.25, 1, 0]
    for wrong in ("affine", -0.1, 1.5, float("nan"), True, None):
        with pytest.raises(
            ValueError, match=r"flow_target: expected tps, similarity or a number in \[0, 1\]"
        ):
            rest_of(wrong)


def test_the_similarity_is_found() -> None:
    side = 32
    expected = ((moved(grid(side)) - grid(side)) * side).transpose(2, 0, 1)
    flow = target_flow(GT, moved(GT), side, 0.0)
    np.testing.assert_allclose(flow.numpy(), expected, atol=1e-4)
    for rest in (0.5, 1.0):  # the spline of a similarity is that similarity
        np.testing.assert_allclose(target_flow(GT, moved(GT), side, rest).numpy(), expected, atol=0.02)


def test_it_is_the_best_one_and_no_reflection() -> None:
    """Compared with scipy's least squares over rotation, scale and shift."""
    from scipy.optimize import least_squares

    def miss(p: np.ndarray) -> np.ndarray:
        return (GT @ np.array([[p[0], p[1]], [-p[1], p[0]]]) + p[2:] - target).ravel()

    for target in (OTHER, GT * [-1, 1] + [1, 0]):
        best = least_squares(miss, [1.0, 0, 0, 0]).x
        expected = grid(32) @ np.array([[best[0], best[1]], [-best[1], best[0]]]) + best[2:] - grid(32)
        flow = target_flow(GT, target, 32, 0.0)
        np.testing.assert_allclose(flow.permute(1, 2, 0).numpy(), expected * 32, atol=1e-3)


def test_a_share_lies_between() -> None:
    none, all_ = target_flow(GT, OTHER, 32, 0.0), target_flow(GT, OTHER, 32, 1.0)
    assert torch.equal(all_, tps_flow(GT, OTHER, 32))
    assert (all_ - none).abs().max() > 0.3
    torch.testing.assert_close(target_flow(GT, OTHER, 32, 0.25), none + 0.25 * (all_ - none))


@pytest.mark.parametrize("rest", [0.0, 0.5, 1.0])
def test_a_moved_reference_moves_the_flows_ends(rest: float) -> None:
    ends, of_moved = (
        grid(32) + target_flow(GT, reference, 32, rest).permute(1, 2, 0).numpy() / 32
        for reference in (OTHER, moved(OTHER))
    )
    np.testing.assert_allclose(of_moved, moved(ends), atol=1e-4)


def test_landmarks_at_one_place_are_refused() -> None:
    with pytest.raises(ValueError, match="not all at one place"):
        target_flow(np.full((68, 2), 0.5), OTHER, 16, 0.0)
