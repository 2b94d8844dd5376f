import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from rpf_lightning.metrics import detail_error, lr_consistency, psnr, psnr_face, ssim


def images(count=3, side=32, seed=0):
    """Smooth pictures with some noise, inside [0.15, 0.85]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 5, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear")
    noise = torch.rand(count, 3, side, side, generator=generator)
    return 0.15 + 0.5 * smooth + 0.2 * noise


def pil_resize(image, side):
    """(3, H, H) resized by Pillow, whose bicubic has a = -0.5 and antialiasing too."""
    planes = [Image.fromarray(x).resize((side, side), Image.Resampling.BICUBIC) for x in image]
    return np.stack([np.asarray(plane) for plane in planes])


def half_mask():
    mask = torch.zeros(3, 1, 32, 32)
    mask[..., :16] = 1
    return mask


GT, PRED = images(seed=1), images(seed=2)


def test_psnr_equals_skimage_for_each_image():
    expected = [
        peak_signal_noise_ratio(g.numpy(), p.numpy(), data_range=1) for g, p in zip(GT, PRED, strict=True)
    ]
    assert psnr(PRED, GT).tolist() == pytest.approx(expected, abs=1e-4)


def test_psnr_averages_images_and_not_their_errors():
    gt = torch.full((2, 3, 8, 8), 0.5)
    pred = gt + torch.tensor([0.1, 0.01]).view(2, 1, 1, 1)
    values = psnr(pred, gt)
    assert values.tolist() == pytest.approx([20, 40], abs=1e-3)
    assert values.mean().item() == pytest.approx(30.0, abs=1e-3)


def test_ssim_equals_skimage_for_each_image():
    # skimage leaves out the border of half a window: with a reflected border of that width none is left out
    border = ((0, 0), (5, 5), (5, 5))
    expected = [
        structural_similarity(
            np.pad(g.double().numpy(), border, mode="reflect"),
            np.pad(p.double().numpy(), border, mode="reflect"),
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            channel_axis=0,
            data_range=1,
        )
        for g, p in zip(GT, PRED, strict=True)
    ]
    values = ssim(PRED, GT)
    assert values.tolist() == pytest.approx(expected, abs=1e-5)
    assert max(expected) - min(expected) > 1e-3  # so that the order of the images matters


def test_psnr_face_is_the_error_of_the_face_pixels():
    mask = (images(seed=3)[:, :1] > 0.5).float()
    expected = []
    for p, g, m in zip(PRED.numpy(), GT.numpy(), mask.numpy(), strict=True):
        inside = np.broadcast_to(m.astype(bool), g.shape)
        expected.append(10 * np.log10(1 / np.mean((p[inside] - g[inside]) ** 2)))
    assert psnr_face(PRED, GT, mask).tolist() == pytest.approx(expected, abs=1e-4)
    elsewhere = torch.where(mask.bool(), PRED, torch.rand_like(PRED))
    assert torch.equal(psnr_face(elsewhere, GT, mask), psnr_face(PRED, GT, mask))
    assert torch.equal(psnr_face(PRED, GT, mask.bool()), psnr_face(PRED, GT, mask))


def test_detail_error_equals_pillows_high_pass():
    mask, expected = half_mask(), []
    for p, g in zip(PRED.numpy(), GT.numpy(), strict=True):
        high = [image - pil_resize(pil_resize(image, 8), 32) for image in (p, g)]
        expected.append(np.abs(high[0] - high[1])[:, :, :16].mean())
    assert detail_error(PRED, GT, mask, 8).tolist() == pytest.approx(expected, abs=1e-5)


def test_detail_error_ignores_what_the_lr_shows():
    assert detail_error(GT + 0.1, GT, half_mask(), 8).max() < 1e-6  # brighter
    assert detail_error(torch.full_like(GT, 0.5), GT, half_mask(), 8).min() > 0.01  # flat


def test_lr_consistency_equals_pillows_reduction():
    lr = images(side=8, seed=4)
    expected = [
        10 * np.log10(1 / np.mean((np.clip(pil_resize(p, 8), 0, 1) - small) ** 2))
        for p, small in zip(PRED.numpy(), lr.numpy(), strict=True)
    ]
    assert lr_consistency(PRED, lr).tolist() == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("output", "gt"),
    [(GT, GT), ((GT > 0.5) * 3.0 - 1, (GT > 0.5).float())],  # the second: -1 and 2
    ids=["identical", "clamped first"],
)
def test_identical_images_reach_the_documented_cap(output, gt):
    assert psnr(output, gt).tolist() == [100] * 3
    assert psnr_face(output, gt, half_mask()).tolist() == [100] * 3
    assert lr_consistency(output, gt).tolist() == [100] * 3
    assert torch.equal(lr_consistency(output, images(side=8)), lr_consistency(gt, images(side=8)))
    assert ssim(output, gt).tolist() == pytest.approx([1] * 3)
    assert detail_error(output, gt, half_mask(), 8).tolist() == [0] * 3


def test_an_empty_mask_is_nan():
    mask = half_mask()
    mask[1] = 0
    for values in (psnr_face(PRED, GT, mask), detail_error(PRED, GT, mask, 8)):
        assert values.isnan().tolist() == [False, True, False]


def test_shapes_are_checked_instead_of_broadcast():
    for metric in (psnr, ssim):
        with pytest.raises(ValueError, match="one shape"):
            metric(PRED[:1], GT)
    with pytest.raises(ValueError, match="mask: expected"):
        psnr_face(PRED, GT, half_mask()[:1])
    with pytest.raises(ValueError, match="mask: expected"):
        detail_error(PRED, GT, half_mask().expand(-1, 3, -1, -1), 8)
    with pytest.raises(ValueError, match="one shape"):
        lr_consistency(PRED, images(side=8)[:1])
