"""One sample: sizes, LR, masks, pyramid and r_warp."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_data import make_sample

from rpf_lightning.data.batches import Photo
from rpf_lightning.data.degradation import Degradation
from rpf_lightning.data.sample import landmark_fractions, lr_as_reference, mirror
from rpf_lightning.model import RPFModel
from rpf_lightning.model.resize import resize

INDEX = np.arange(68)
POINTS = 0.5 + (np.sqrt((INDEX + 0.5) / 68) * np.stack([np.cos(INDEX * 2.4), np.sin(INDEX * 2.4)]) * 0.35).T


def made_up(name: str, side: int = 64, shift: tuple[int, int] = (0, 0), seed: int = 0) -> Photo:
    """A random smooth picture with a disc as the face; `shift` moves everything right and down."""
    rng = torch.Generator().manual_seed(seed)
    image = F.interpolate(torch.rand(1, 3, 8, 8, generator=rng), size=side, mode="bicubic").clamp(0, 1)
    y, x = np.mgrid[:side, :side] + 0.5
    mask = (np.hypot(x / side - 0.5, y / side - 0.5) < 0.36).astype(np.uint8)
    pixels = (image[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    return Photo(
        id=name,
        identity="a",
        image=np.roll(pixels, shift[::-1], (0, 1)),
        landmarks=POINTS * side + np.array(shift),
        mask=np.roll(mask, shift[::-1], (0, 1)),
    )


def tensor(photo: Photo) -> torch.Tensor:
    return torch.from_numpy(photo.image).permute(2, 0, 1)[None].float() / 255


def bicubic(image: torch.Tensor, side: int) -> torch.Tensor:
    return F.interpolate(image, size=side, mode="bicubic", antialias=True).clamp(0, 1)


@pytest.mark.parametrize("side", [16, 64])
def test_shapes_ranges_and_names(side: int) -> None:
    sample = make_sample(made_up("g"), made_up("r", seed=1), lr_size=8, size=64, side=side, warped=True)
    assert sample.lr.shape == (3, 8, 8)
    for image in (sample.gt, sample.reference, sample.warped_reference):
        assert (image.shape, image.dtype) == ((3, side, side), torch.float32)
        assert image.min() >= 0
        assert image.max() <= 1
    for mask in (sample.gt_mask, sample.reference_mask, sample.reference_ok):
        assert (mask.shape, mask.dtype) == ((1, side, side), torch.float32)
        assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert sample.flow.shape == (2, side, side)
    assert sample.flow_known == 1
    assert (sample.id, sample.reference_id) == ("g", "r")


def test_gt_is_one_step_and_lr_is_eight_bit() -> None:
    photo = made_up("g", side=128)
    sample = make_sample(photo, made_up("r"), lr_size=8, size=64, side=32)
    torch.testing.assert_close(sample.gt, bicubic(tensor(photo), 32)[0])
    in_levels = sample.lr * 255
    torch.testing.assert_close(in_levels, in_levels.round(), atol=1e-4, rtol=0)
    exact = bicubic(bicubic(tensor(photo), 64), 8)[0] * 255
    assert (in_levels - exact).abs().max() <= 0.501
    assert (in_levels - exact).abs().max() > 0.05  # it was rounded
    full = make_sample(photo, made_up("r"), lr_size=8, size=64, side=64).gt
    assert torch.equal(Degradation("bicubic", 8)(full[None], ["g"])[0], sample.lr)


def test_reference_pyramid_is_repeated_halving() -> None:
    photo = made_up("r", seed=3)
    sample = make_sample(made_up("g"), photo, lr_size=8, size=64, side=16)
    masked = tensor(photo) * torch.from_numpy(photo.mask)[None, None]
    torch.testing.assert_close(sample.reference, bicubic(bicubic(masked, 32), 16)[0])
    assert (sample.reference - bicubic(masked, 16)[0]).abs().max() > 1e-3
    assert sample.reference[:, 0, 0].abs().max() == 0


def test_reference_without_mask() -> None:
    gt, reference = made_up("g"), made_up("r", seed=3)
    sample = make_sample(gt, reference, lr_size=8, size=64, side=16, mask_reference=False, warped=True)
    torch.testing.assert_close(sample.reference, bicubic(bicubic(tensor(reference), 32), 16)[0])
    assert sample.reference_mask.min() == sample.reference_ok.min() == 1
    torch.testing.assert_close(sample.warped_reference, bicubic(tensor(reference), 16)[0], atol=1e-4, rtol=0)
    assert sample.gt_mask.min() == 0  # the GT's mask is another matter


def test_source_of_a_degradation_takes_the_place_of_the_lr() -> None:
    photo = made_up("g")
    sample = make_sample(photo, made_up("r"), lr_size=8, size=64, side=16, source_side=32)
    torch.testing.assert_close(sample.lr, bicubic(tensor(photo), 32)[0])


def mirrored(photo: Photo) -> Photo:
    side = len(photo.image)
    assert photo.landmarks is not None
    points = photo.landmarks[MIRRORED_POINTS] * [-1, 1] + [side, 0]
    return replace(
        photo, image=photo.image[:, ::-1].copy(), mask=photo.mask[:, ::-1].copy(), landmarks=points
    )


# jaw, brows, nose, eyes and mouth of iBUG's 68 points, written down independently of the code: left <-> right
SWAPS = [
    (0, 16),
    (7, 9),
    (17, 26),
    (21, 22),
    (31, 35),
    (36, 45),
    (37, 44),
    (38, 43),
    (39, 42),
    (40, 47),
    (41, 46),
]
SWAPS += [(48, 54), (49, 53), (50, 52), (55, 59), (56, 58), (60, 64), (61, 63), (65, 67)]
SWAPS += [(i, 16 - i) for i in range(1, 7)] + [(i, 43 - i) for i in range(18, 21)] + [(32, 34)]
MIRRORED_POINTS = np.arange(68)
for left, right in SWAPS:
    MIRRORED_POINTS[[left, right]] = right, left


def test_mirrored_sample_is_the_sample_of_mirrored_photos() -> None:
    gt, reference = made_up("g"), made_up("r", shift=(5, -3), seed=2)
    sides = {"lr_size": 8, "size": 64, "side": 32, "warped": True}
    flipped = mirror(make_sample(gt, reference, **sides))
    direct = make_sample(mirrored(gt), mirrored(reference), **sides)
    for name, value in direct._asdict().items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(getattr(flipped, name), value, atol=2e-3, rtol=0, msg=name)
    straight = make_sample(gt, reference, **sides)
    assert (straight.flow - direct.flow).abs().max() > 4
    assert (straight.gt_landmarks - direct.gt_landmarks).abs().max() > 0.1


def test_masks_are_area_averages() -> None:
    gt, reference = made_up("g"), made_up("r", shift=(6, 2))
    sample = make_sample(gt, reference, lr_size=8, size=64, side=16)
    for photo, mask in ((gt, sample.gt_mask), (reference, sample.reference_mask)):
        expected = photo.mask.reshape(16, 4, 16, 4).mean((1, 3)) >= 0.5
        np.testing.assert_array_equal(mask[0].numpy(), expected)


def test_ok_needs_every_pixel_underneath() -> None:
    reference = made_up("r", shift=(6, 2))
    reference.mask[30, 33] = 0
    for side in (16, 32, 64):
        sample = make_sample(made_up("g"), reference, lr_size=8, size=64, side=side)
        f = 64 // side
        expected = reference.mask.reshape(side, f, side, f).min((1, 3))
        np.testing.assert_array_equal(sample.reference_ok[0].numpy(), expected)
        assert not sample.reference_ok[0, 30 // f, 33 // f]
    assert sample.warped_reference is None  # nobody asked for it


def test_the_flow_of_another_person_is_no_target() -> None:
    gt, other = made_up("g"), replace(made_up("r"), identity="b")
    assert make_sample(gt, other, lr_size=8, size=64, side=16).flow_known == 0


@pytest.mark.parametrize("side", [32, 64])
def test_translated_reference_is_warped_onto_the_gt(side: int) -> None:
    gt, reference = made_up("g"), made_up("r", shift=(6, -4))
    sample = make_sample(gt, reference, lr_size=8, size=64, side=side, warped=True)
    scale = side / 64
    torch.testing.assert_close(sample.flow[0], torch.full((side, side), 6 * scale), atol=1e-3, rtol=0)
    torch.testing.assert_close(sample.flow[1], torch.full((side, side), -4 * scale), atol=1e-3, rtol=0)
    masked_gt = bicubic(tensor(gt) * torch.from_numpy(gt.mask)[None, None], side)[0]
    torch.testing.assert_close(sample.warped_reference, masked_gt, atol=2e-3, rtol=0)
    assert (sample.reference - masked_gt).abs().mean() > 0.02  # it was not aligned before


def test_small_photos_are_enlarged() -> None:
    small = made_up("g", side=32)
    sample = make_sample(small, made_up("r", side=32, seed=1), lr_size=8, size=64, side=64)
    torch.testing.assert_close(sample.gt, bicubic(tensor(small), 64)[0])
    np.testing.assert_array_equal(sample.gt_mask[0], np.kron(small.mask, np.ones((2, 2))))


def test_bad_input_is_refused_by_name() -> None:
    good = made_up("good")
    sides = {"lr_size": 8, "size": 64, "side": 32}
    blind = replace(made_up("blind"), landmarks=None)
    for refused in (lambda: make_sample(good, blind, **sides), lambda: landmark_fractions(blind)):
        with pytest.raises(ValueError, match="'blind' has no landmarks"):
            refused()
    with pytest.raises(ValueError, match="'wide' must be square"):
        landmark_fractions(replace(good, id="wide", image=good.image[:50]))
    for wrong in ({"side": 48}, {"size": 96}, {"lr_size": 0}):
        with pytest.raises(ValueError, match=r"must be a power of two"):
            make_sample(good, good, **{**sides, **wrong})
    for wrong in ({"side": 8}, {"side": 128}):
        with pytest.raises(ValueError, match=r"lr_size < side <= size"):
            make_sample(good, good, **{**sides, **wrong})


def test_lr_as_reference_is_what_the_model_takes_without_one(batch_of) -> None:
    torch.manual_seed(0)
    model = RPFModel(16, 4, channels=4, width=1 / 64).eval()
    for block in (1, 2):
        batch = lr_as_reference(batch_of(block), 64)
        levels = model.encode_reference(resize(batch.lr, 64).clamp(0, 1))
        torch.testing.assert_close(batch.reference, levels[block - 1])
        assert batch.flow.abs().max() == 0
        assert torch.equal(batch.warped_reference, batch.reference)
        assert batch.reference_mask.min() == batch.reference_ok.min() == batch.flow_known.min() == 1
        unasked = batch_of(block)._replace(warped_reference=None)
        assert lr_as_reference(unasked, 64).warped_reference is None
