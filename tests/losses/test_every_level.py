"""Losses that look through a network, from side 32 to 1024: finite values, gradients that reach the image."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rpf_lightning.losses import IdentityLoss, PerceptualLoss


@pytest.mark.parametrize("side", [32, 128, 1024])
@pytest.mark.parametrize(("kind", "start", "stop"), [("perceptual", 0.0, 1.0), ("identity", 0.16, 0.83)])
def test_gradient_reaches_what_the_network_sees(
    alexnet_state: dict[str, Tensor],
    make_pack: Callable[..., Path],
    kind: str,
    start: float,
    stop: float,
    side: int,
) -> None:
    torch.save(alexnet_state, make_pack().parents[3] / "alexnet_features.pth")
    torch.manual_seed(0)
    prediction, target = torch.rand(2, 1, 3, side, side).unbind()
    loss = PerceptualLoss() if kind == "perceptual" else IdentityLoss()  # the latter sees the face only
    value = loss(prediction.requires_grad_(), target)
    value.backward()
    assert value.isfinite()
    assert value > 0
    assert prediction.grad.isfinite().all()
    seen = slice(round(start * side), round(stop * side))
    assert (prediction.grad[..., seen, seen] != 0).float().mean() > 0.9
