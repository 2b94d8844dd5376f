"""Changed references: as sharp as before, where the flow says, and masked where they were."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_data import data

from rpf_lightning.data.dataset import PairsDataset
from rpf_lightning.data.jitter import Colour, Warp, inverse_flow, resample
from rpf_lightning.data.level_cache import CachedPairs
from rpf_lightning.data.sample import ReferenceLevel
from rpf_lightning.data.thin_plate import warp as backward
from rpf_lightning.model.resize import resize

CENTRE = np.array([0.5, 0.55])


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("seed", range(5))
def test_warps_are_inverted(seed: int) -> None:
    points = torch.rand(500, 2, dtype=torch.float64)
    for warp in (Warp.similarity(rng(seed), 0.3, CENTRE), Warp.smooth(rng(seed), CENTRE)):
        torch.testing.assert_close(warp(warp.inverse(points)), points, atol=1e-5, rtol=0)
        torch.testing.assert_close(warp.inverse(warp(points)), points, atol=1e-5, rtol=0)
        assert 0.001 < (warp(points) - points).abs().max() < 0.6


def test_a_similarity_has_the_strength_that_was_asked_for() -> None:
    angles, scales, shifts = [], [], []
    for seed in range(300):
        warp = Warp.similarity(rng(seed), 0.1, CENTRE)
        a, b = warp.matrix[:, 0]
        angles.append(torch.atan2(b, a))
        scales.append(torch.hypot(a, b).log())
        shifts.append(warp(torch.from_numpy(CENTRE)) - torch.from_numpy(CENTRE))
    for values, limit in ((angles, 0.1), (scales, 0.1), (shifts, 0.05)):
        size = torch.stack(values).abs()
        assert 0.97 * limit < size.max() <= limit
        assert 0.4 * limit < size.mean() < 0.6 * limit


@pytest.mark.parametrize("cache_side", [32, 64])
def test_a_face_that_is_its_own_reference_is_found_by_the_flow(prepared: Path, cache_side: int) -> None:
    module = data(prepared, side=32, self_fraction=1.0, cache_side=cache_side)
    dataset = module.train_dataset
    found, before = [], []
    for index in range(len(dataset)):
        sample = dataset[index, 3]
        assert sample.reference_id == sample.id
        assert sample.flow_known == 1
        assert 0.2 < sample.flow.abs().max() < 6
        sure = backward(sample.reference_ok[None], sample.flow)[0] > 0.99
        sure = -F.max_pool2d(-sure.float(), 3, 1, 1)
        assert sure.sum() > 80
        aligned = backward(sample.reference[None], sample.flow)[0]
        for errors, image in ((found, aligned), (before, sample.reference)):
            errors.append(((image - sample.gt).abs() * sure).sum() / sure.sum() / 3)
    # drawn faces have lines that 32 pixels cannot hold, least of all sampled twice
    assert max(found) < 0.035
    assert sum(found) < 0.45 * sum(before)


def test_the_inverse_of_a_smooth_picture_is_exact() -> None:
    centre = (torch.arange(128) + 0.5) / 128
    y, x = torch.meshgrid(centre, centre, indexing="ij")
    waves = [torch.sin(9 * x) * torch.cos(7 * y), torch.sin(8 * y + 3 * x), torch.cos(9 * y)]
    picture = torch.stack(waves) / 2 + 0.5
    full = torch.ones(1, 128, 128)
    warp = Warp.smooth(rng(4), CENTRE)
    found = resample(ReferenceLevel(picture, full, full), 64, warp)
    back = backward(found.image[None], inverse_flow(warp, 64))[0]
    wanted = resize(picture[None], 64)[0]
    inside = slice(10, 54)
    assert (back - wanted)[:, inside, inside].abs().max() < 0.004
    assert (found.image - wanted)[:, inside, inside].abs().max() > 0.1


def test_a_moved_reference_and_its_flow_belong_together(prepared: Path) -> None:
    plain, moved = (
        data(prepared, side=32, similarity_jitter=strength, warped_reference=True).train_dataset
        for strength in (0.0, 0.1)
    )
    errors, before = [], []
    for index in range(len(plain)):
        straight, sample = plain[index], moved[index, 1]
        assert sample.reference_id == straight.reference_id
        shift = (sample.reference_landmarks - straight.reference_landmarks).abs().max()
        assert 0.002 < shift < 0.15
        # at a landmark of the GT, the flow points to that landmark of the moved reference
        at = 2 * sample.gt_landmarks[None, :, None] - 1
        flow = F.grid_sample(sample.flow[None], at, align_corners=False)[0, :, :, 0].T
        miss = sample.gt_landmarks + flow / 32 - sample.reference_landmarks
        assert miss.abs().mean() * 32 < 0.2
        torch.testing.assert_close(sample.warped_reference, straight.warped_reference)
        aligned = [backward(given.reference[None], given.flow)[0] for given in (straight, sample)]
        sure = [backward(given.reference_ok[None], given.flow)[0] > 0.99 for given in (straight, sample)]
        both = -F.max_pool2d(-(sure[0] & sure[1]).float(), 3, 1, 1)
        errors.append(((aligned[0] - aligned[1]).abs() * both).sum() / both.sum())
        before.append(((straight.reference - sample.reference).abs() * both).sum() / both.sum())
    assert torch.stack(errors).mean() < 0.35 * torch.stack(before).mean()


def noise(side: int) -> ReferenceLevel:
    """All that twice a level's side can hold, masked outside of a disc."""
    image = torch.rand(3, side, side, generator=torch.Generator().manual_seed(0))
    y, x = torch.meshgrid(torch.arange(side) + 0.5, torch.arange(side) + 0.5, indexing="ij")
    mask = (torch.hypot(x - side / 2, y - side / 2) < 0.35 * side).float()[None]
    return ReferenceLevel(image * mask, mask, mask)


def band(image: torch.Tensor) -> torch.Tensor:
    """Strength of the highest octave in the middle."""
    side = image.shape[-1]
    middle = slice(side // 3, -side // 3)
    high = (image - resize(resize(image[None], side // 2), side)[0])[:, middle, middle]
    return high.square().mean().sqrt()


def test_warped_references_stay_sharp() -> None:
    level = noise(128)
    wanted = band(resize(level.image[None], 64)[0])
    for seed in range(3):
        warp = Warp.similarity(rng(seed), 0.05, CENTRE)
        assert band(resample(level, 64, warp).image) > 0.9 * wanted
        bilinear = F.grid_sample(resize(level.image[None], 64), warp_grid(warp, 64), align_corners=False)
        assert band(bilinear[0]) < 0.8 * wanted


def warp_grid(warp: Warp, side: int) -> torch.Tensor:
    centre = (torch.arange(side) + 0.5) / side
    return 2 * warp(torch.stack(torch.meshgrid(centre, centre, indexing="xy"), -1))[None] - 1


@pytest.mark.parametrize(("seed", "source"), [(0, 32), (1, 64)])
def test_ok_never_claims_what_mixes_masked_pixels(seed: int, source: int) -> None:
    """Every pixel that the sampling reads, written down independently."""
    level = noise(source)
    warp = Warp.smooth(rng(seed), CENTRE)
    found = resample(level, 32, warp)
    assert set(found.ok.unique().tolist()) == set(found.mask.unique().tolist()) == {0.0, 1.0}
    factor = source // 32
    claimed = 0
    for y, x in found.ok[0].nonzero().tolist():
        for v in range(factor * y, factor * (y + 1)):
            for u in range(factor * x, factor * (x + 1)):
                q = warp(torch.tensor([(u + 0.5) / source, (v + 0.5) / source])) * source - 0.5
                weight = q - q.floor()
                for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
                    share = (weight[0] if dx else 1 - weight[0]) * (weight[1] if dy else 1 - weight[1])
                    if share > 2e-3:
                        assert level.ok[0, int(q[1].floor()) + dy, int(q[0].floor()) + dx] == 1
        claimed += 1
    assert claimed > 0.7 * found.mask.sum()


def test_what_comes_from_outside_the_image_is_masked() -> None:
    everywhere = ReferenceLevel(torch.ones(3, 64, 64), torch.ones(1, 64, 64), torch.ones(1, 64, 64))
    moved = Warp(
        *(torch.from_numpy(np.asarray(value, float)) for value in (CENTRE, np.eye(2), [0.25, 0])),
        *[torch.zeros(0, 2)] * 2,
        torch.zeros(0),
    )
    found = resample(everywhere, 32, moved)
    assert found.ok[0, :, :23].min() == 1
    for part in found:
        assert part[..., 25:].abs().max() == 0


def test_colour_leaves_the_mask_and_the_range() -> None:
    image = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(1, 32, 32)
    mask[:, 8:24, 8:24] = 1
    changes = []
    for seed in range(50):
        changed = Colour.draw(rng(seed), 0.3)(image * mask, mask)
        assert (changed * (1 - mask)).abs().max() == 0
        assert changed.min() >= 0
        assert changed.max() <= 1
        changes.append((changed - image)[:, 8:24, 8:24].mean((1, 2)))
    spread = torch.stack(changes)
    assert (spread.amax(0) > 0.05).all()
    assert (spread.amin(0) < -0.05).all()
    assert (spread[:, 0] - spread[:, 1]).abs().mean() > 0.02  # each channel for itself
    torch.testing.assert_close(Colour.draw(rng(), 0.0)(image, mask), image)


def test_colour_in_a_sample(prepared: Path) -> None:
    plain, changed = (
        data(prepared, side=32, colour_jitter=strength, warped_reference=True).train_dataset
        for strength in (0.0, 0.2)
    )
    for index in range(len(plain)):
        before, after = plain[index], changed[index, 5]
        for name in ("lr", "gt", "gt_mask", "reference_mask", "reference_ok", "flow", "reference_landmarks"):
            assert torch.equal(getattr(before, name), getattr(after, name))
        assert (after.reference - before.reference).abs().mean() > 1e-3
        assert (after.warped_reference - before.warped_reference).abs().mean() > 1e-3
        outside = (before.reference == 0).all(0) & (before.reference_mask[0] == 0)
        assert after.reference[:, outside].abs().max() == 0


def test_the_cache_and_the_photos_give_the_same(prepared: Path) -> None:
    options = {"similarity_jitter": 0.05, "colour_jitter": 0.1, "self_fraction": 0.3, "references": "all"}
    read, made = (data(prepared, side=32, **options, cache_side=side).train_dataset for side in (64, 0))
    assert isinstance(read, CachedPairs)
    assert isinstance(made, PairsDataset)
    assert read.sampled == made.sampled == 64
    for index in range(len(read)):
        a, b = read[index, 2], made[index, 2]
        assert a.reference_id == b.reference_id
        assert torch.equal(a.flow, b.flow)
        assert torch.equal(a.reference_ok, b.reference_ok)
        torch.testing.assert_close(a.reference, b.reference, atol=3 / 255, rtol=0)
