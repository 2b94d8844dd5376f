import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from rpf_lightning.model.resize import Resize, minimum_pool, resample_matrix, resize, resize_mask


def antialiased(image, side):
    return F.interpolate(image, size=(side, side), mode="bicubic", antialias=True)


def pil_resize(image, side, box=None):
    """PIL's bicubic filter (a = -0.5, widened when it reduces) on one channel of floats."""
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC, box=box))


@pytest.mark.parametrize(("source", "target"), [(64, 16), (16, 64), (48, 20), (20, 48)])
def test_matrix_module_and_function_equal_torch_and_pil(source, target):
    image = torch.rand(2, 3, source, source)
    matrix, module = resample_matrix(source, target), Resize(source, target)
    expected = antialiased(image.double(), target)
    torch.testing.assert_close(matrix @ image.double() @ matrix.T, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(module(image).double(), expected, atol=1e-6, rtol=0)
    assert torch.equal(module.matrix, matrix.float())
    assert torch.equal(resize(image.double(), target), expected)
    assert torch.equal(resize(image, target), antialiased(image, target))
    pil = pil_resize(image[0, 0].numpy(), target)
    np.testing.assert_allclose(resize(image, target)[0, 0].numpy(), pil, atol=2e-6, rtol=0)


def test_filter_is_the_sharper_cubic():
    # halfway between two pixels a = -0.5 weighs (-1, 9, 9, -1) / 16; torch's plain bicubic has -0.75
    row = resample_matrix(8, 8, start=1 / 16, stop=1 + 1 / 16)[3]
    expected = torch.tensor([0, 0, -1, 9, 9, -1, 0, 0], dtype=torch.float64) / 16
    torch.testing.assert_close(row, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("target", [8, 96])
def test_whole_pixel_crop_equals_resizing_the_crop(target):
    image = torch.rand(1, 1, 64, 64, dtype=torch.float64)
    rows, columns = (
        resample_matrix(64, target, 16 / 64, 48 / 64),
        resample_matrix(64, target, 24 / 64, 56 / 64),
    )
    result = rows @ image @ columns.T
    expected = antialiased(image[..., 16:48, 24:56], target)
    border = 2 if target <= 32 else 2 * target // 32  # the filter reaches two source or two target pixels out
    inside = slice(border, -border)
    torch.testing.assert_close(result[..., inside, inside], expected[..., inside, inside], atol=1e-6, rtol=0)


@pytest.mark.parametrize("target", [7, 60])
def test_fractional_crop_equals_pil_with_a_box(target):
    image = torch.rand(32, 32)
    left, top, right, bottom = 3.25, 5.625, 27.75, 30.125
    expected = pil_resize(image.numpy(), target, (left, top, right, bottom))
    rows = resample_matrix(32, target, top / 32, bottom / 32)
    columns = resample_matrix(32, target, left / 32, right / 32)
    np.testing.assert_allclose(rows @ image.double() @ columns.T, expected, atol=2e-6, rtol=0)


def test_matrix_built_in_inference_mode_serves_training():
    with torch.inference_mode():
        resample_matrix(11, 6)  # the cache must not hand out an inference tensor afterwards
    image = torch.rand(11, 11, dtype=torch.float64, requires_grad=True)
    (resample_matrix(11, 6) @ image).sum().backward()
    torch.testing.assert_close(image.grad[:, 0], resample_matrix(11, 6).sum(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("target", [16, 64])
def test_fp32_under_autocast(dtype, target):
    image = torch.rand(1, 3, 32, 32).to(dtype)
    module = Resize(32, target)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        results = module(image), resize(image, target)
    for result, expected in zip(results, (module(image.float()), resize(image.float(), target)), strict=True):
        assert result.dtype == torch.float32
        assert torch.equal(result, expected)


def test_resize_is_not_clamped_and_keeps_its_matrix_out_of_the_weights():
    step = torch.zeros(1, 1, 8, 8)
    step[..., 4:] = 1
    module = Resize(8, 16)
    result = module(step)
    assert result.min() < -0.01
    assert result.max() > 1.01
    assert not module.state_dict()


@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_mask_is_reduced_by_area(factor, dtype):
    mask = (torch.rand(4, 1, 16, 16) < 0.5).to(dtype)
    mask[:, :, :factor, :factor] = 0
    mask[:, :, : factor // 2, :factor] = 1  # exactly half of the first cell: counts as inside
    mask[:, :, :factor, factor : 2 * factor] = 0
    mask[:, :, :factor, factor : factor + factor // 2] = 1
    mask[:, :, 0, factor] = 0  # just under half
    side = 16 // factor
    area = mask.double().numpy().reshape(4, 1, side, factor, side, factor).mean(axis=(3, 5))
    result = resize_mask(mask, side)
    assert result.dtype == dtype
    assert torch.equal(resize_mask(mask, 16), mask)
    np.testing.assert_array_equal(result.double().numpy(), (area >= 0.5).astype(float))
    assert result[0, 0, 0, 0] == 1
    assert result[0, 0, 0, 1] == 0


def test_minimum_pool_needs_every_pixel() -> None:
    mask = (torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0)) > 0.05).float()
    for side in (32, 16, 4):
        factor = 32 // side
        expected = mask.reshape(2, 1, side, factor, side, factor).amin((3, 5))
        assert torch.equal(minimum_pool(mask, side), expected)
    assert torch.equal(minimum_pool(mask, 64), mask.repeat_interleave(2, 2).repeat_interleave(2, 3))
    for wrong in (12, 24):
        with pytest.raises(
            ValueError, match=f"mask: expected a side of {wrong} times a power of two, got 32"
        ):
            minimum_pool(mask, wrong)
