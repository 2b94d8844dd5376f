import pytest
import torch

from rpf_lightning.losses import masked_l1


def test_mask_leaves_out_what_is_outside_and_divides_by_all_elements() -> None:
    prediction, target = torch.full((2, 3, 4, 4), 0.5), torch.zeros(2, 3, 4, 4)
    mask = torch.zeros(2, 1, 4, 4)
    mask[0, 0, :2] = 1  # half of one of two images
    assert masked_l1(prediction, target, mask).item() == pytest.approx(0.5 / 4)
    by_the_formula = (mask * prediction - mask * target).abs().mean()
    assert masked_l1(prediction, target, mask).item() == pytest.approx(by_the_formula.item())


def test_pixels_outside_the_range_receive_gradient() -> None:
    prediction = torch.tensor([-0.1, 1.1, 0.5]).reshape(1, 3, 1, 1).requires_grad_()
    masked_l1(prediction, torch.tensor([0.0, 1.0, 0.5]).reshape(1, 3, 1, 1)).backward()
    assert prediction.grad.flatten()[:2].tolist() == pytest.approx([-1 / 3, 1 / 3])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_computed_in_at_least_fp32(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    prediction, target = torch.rand(2, 1, 3, 32, 32).to(dtype)
    mask = (torch.rand(1, 1, 32, 32) > 0.5).to(dtype)
    for given in (None, mask):
        value = masked_l1(prediction, target, given)
        weight = 1.0 if given is None else given.double()
        expected = ((prediction.double() - target.double()).abs() * weight).mean()
        assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert value.item() == pytest.approx(expected.item(), rel=1e-6)
