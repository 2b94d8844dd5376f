"""How near a flow is to the thin-plate flow."""

import numpy as np
import pytest
import torch

from rpf_lightning.metrics import EndPointError, FlowCorrelation, end_point_error, flow_correlation


@pytest.fixture
def given():
    """Two flows and a mask, of three images."""
    generator = torch.Generator().manual_seed(0)
    flow, goal = torch.randn(2, 3, 2, 8, 8, generator=generator)
    return flow, goal, (torch.rand(3, 1, 8, 8, generator=generator) > 0.5).float()


def test_equal_numpy(given):
    flow, goal, mask = given
    errors, correlations = [], []
    for a, b, m in zip(flow.numpy(), goal.numpy(), mask.numpy()[:, 0] > 0, strict=True):
        a, b = a[:, m], b[:, m]
        errors.append(np.sqrt(((a - b) ** 2).sum(0)).mean())
        a, b = (x - x.mean(1, keepdims=True) for x in (a, b))
        correlations.append(np.corrcoef(a.ravel(), b.ravel())[0, 1])  # both means are 0
    np.testing.assert_allclose(end_point_error(flow, goal, mask), errors, rtol=1e-5)
    np.testing.assert_allclose(flow_correlation(flow, goal, mask), correlations, rtol=1e-4)


def test_a_shift_is_no_correlation(given):
    """A network that has learned the mean motion alone has learned nothing of the face's shape."""
    flow, goal, mask = given
    shift = torch.tensor([3.0, -1.0])[None, :, None, None]
    near = shift + 0.1 * goal
    assert flow_correlation(shift.expand_as(goal), near, mask).abs().max() == 0
    plain = flow_correlation(flow, goal, mask)
    torch.testing.assert_close(flow_correlation(flow + 7, near, mask), plain, atol=1e-4, rtol=0)
    torch.testing.assert_close(flow_correlation(shift + 2 * goal, goal, mask), torch.ones(3))


def test_faces_without_a_mask_are_left_out_of_the_mean(given):
    flow, goal, mask = given
    mask[1] = 0
    for metric, function in ((EndPointError(), end_point_error), (FlowCorrelation(), flow_correlation)):
        values = function(flow, goal, mask)
        assert values.isnan().tolist() == [False, True, False]
        for part in (slice(0, 1), slice(1, 3)):
            metric.update(flow=flow[part], goal=goal[part], mask=mask[part])
        assert metric.compute().item() == pytest.approx(values.nanmean().item(), rel=1e-5)
        assert int(metric.missing) == 1


def test_unwarped_is_the_goals_length(given):
    flow, goal, mask = given
    wanted = end_point_error(0 * flow, goal, mask).mean().item()
    for any_flow in (flow, flow * torch.nan):
        metric = EndPointError(unwarped=True)
        metric.update(flow=any_flow, goal=goal, mask=mask)
        assert metric.compute().item() == pytest.approx(wanted, rel=1e-6)
