"""The thin-plate spline against scipy's own evaluation and against its defining properties."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.interpolate import RBFInterpolator
from small_data import make_sample

from rpf_lightning.data.batches import Photo
from rpf_lightning.data.image_files import read_mask, read_photo
from rpf_lightning.data.pairing import nearest_references
from rpf_lightning.data.preparation.sources import identities_from_csv, landmarks_from_csv
from rpf_lightning.data.thin_plate import tps_flow, warp
from rpf_lightning.model.warping import backward_warp


def face(seed: int, jitter: float = 0.02) -> tuple[np.ndarray, np.ndarray]:
    """68 points spread over an ellipse, and the same points moved smoothly and a little at random."""
    rng = np.random.default_rng(seed)
    index = np.arange(68)
    radius, angle = np.sqrt((index + 0.5) / 68), index * 2.39996
    gt = 0.5 + np.stack([0.25 * radius * np.cos(angle), 0.33 * radius * np.sin(angle)], 1)
    moved = (gt - 0.5) @ np.array([[1.05, 0.04], [-0.06, 0.96]]) + [0.53, 0.48]
    return gt, moved + rng.normal(0, jitter, gt.shape) * [0.5, 0.5]


def grid(side: int) -> np.ndarray:
    """The pixels' centres, (side, side, 2) in fractions of the side."""
    centre = (np.arange(side) + 0.5) / side
    return np.stack(np.meshgrid(centre, centre), -1)


def exact(gt: np.ndarray, reference: np.ndarray, side: int) -> np.ndarray:
    """Evaluate scipy's spline at every pixel centre: (side, side, 2) in pixels."""
    points, first = np.unique(2 * gt - 1, axis=0, return_index=True)
    spline = RBFInterpolator(points, 2 * reference[first] - 1, kernel="thin_plate_spline", smoothing=1e-4)
    at = 2 * grid(side) - 1
    return (spline(at.reshape(-1, 2)).reshape(at.shape) - at) * side / 2


def test_agrees_with_scipy_to_a_tenth_of_a_pixel() -> None:
    gt, reference = face(0)
    flow = tps_flow(gt, reference, 512)
    assert flow.shape == (2, 512, 512)
    assert flow.dtype == torch.float32
    error = np.abs(flow.permute(1, 2, 0).numpy() - exact(gt, reference, 512))
    assert np.abs(exact(gt, reference, 512)).max() > 10  # the comparison means something
    assert error.max() < 0.1  # border included: it extrapolates


def test_lips_that_touch_in_the_gt_only_need_more_than_the_coarse_grid(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gt, reference = face(1, jitter=0.0)
    gt[1] = gt[0] + [0.0, 1.5 / 512]
    reference[0], reference[1] = reference[0] - [0, 0.03], reference[0] + [0, 0.03]
    truth = exact(gt, reference, 512)
    error = np.abs(tps_flow(gt, reference, 512).permute(1, 2, 0).numpy() - truth)
    assert error.max() < 0.1
    monkeypatch.setattr("rpf_lightning.data.thin_plate.ROUGH", float("inf"))
    error = np.abs(tps_flow(gt, reference, 512).permute(1, 2, 0).numpy() - truth)
    assert error.max() > 0.3


def test_interpolates_the_landmarks() -> None:
    gt, reference = face(2)
    flow = tps_flow(gt, reference, 64)
    at = torch.tensor(2 * gt - 1, dtype=torch.float32)[None, None]
    sampled = torch.nn.functional.grid_sample(flow[None], at, align_corners=False)[0, :, 0].T.numpy() / 64
    assert np.abs(gt + sampled - reference).max() < 1.5 / 512
    assert np.abs(gt - reference).max() > 10 / 512


@pytest.mark.parametrize("side", [32, 512])
def test_equal_landmarks_give_no_flow(side: int) -> None:
    gt, _ = face(3)
    assert torch.count_nonzero(tps_flow(gt, gt, side)) == 0


def test_linear_motion_is_linear_up_to_the_border() -> None:
    gt, _ = face(4)
    matrix, shift = np.array([[1.1, 0.05], [-0.02, 0.93]]), np.array([0.03, -0.02])
    flow = tps_flow(gt, gt @ matrix.T + shift, 256).numpy()
    p = grid(256)
    np.testing.assert_allclose(flow.transpose(1, 2, 0), (p @ matrix.T + shift - p) * 256, atol=1e-3)


def test_coinciding_landmarks_go_to_their_mean() -> None:
    gt, reference = face(6, jitter=0.0)
    gt[1] = gt[0]
    reference[0], reference[1] = gt[0] + [0.02, 0], gt[0] + [0.04, 0]
    flow = tps_flow(gt, reference, 256)
    assert torch.isfinite(flow).all()
    x, y = (gt[0] * 256).astype(int)
    assert flow[0, y, x].item() == pytest.approx(0.03 * 256, abs=0.4)


def test_sign_pulls_the_reference_onto_the_gt() -> None:
    gt, _ = face(7)
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    moved = torch.roll(image, shifts=(3, 5), dims=(2, 3))  # content goes 5 px right and 3 px down
    flow = tps_flow(gt, gt + np.array([5, 3]) / 64, 64)
    warped = backward_warp(moved, flow[None])
    torch.testing.assert_close(warped[..., 8:56, 8:56], image[..., 8:56, 8:56], atol=1e-3, rtol=0)


def test_bad_landmarks_are_refused() -> None:
    gt, reference = face(8)
    with pytest.raises(ValueError, match="same shape"):
        tps_flow(gt, reference[:60], 64)
    with pytest.raises(ValueError, match="finite"):
        tps_flow(gt, reference * np.nan, 64)
    with pytest.raises(ValueError, match="one line"):
        tps_flow(np.repeat(np.linspace(0.2, 0.8, 68)[:, None], 2, 1), reference, 64)
    with pytest.raises(ValueError, match="multiple"):
        tps_flow(gt, reference, 192)


def test_almost_coinciding_points_are_evaluated_in_double(monkeypatch: pytest.MonkeyPatch) -> None:
    gt, reference = face(1, jitter=0.0)
    for i in range(0, 40, 2):
        gt[i + 1] = gt[i] + [0.0, 0.3 / 512]
        reference[i], reference[i + 1] = reference[i] - [0, 0.06], reference[i] + [0, 0.06]
    truth = exact(gt, reference, 128)
    error = np.abs(tps_flow(gt, reference, 128).permute(1, 2, 0).numpy() - truth).max() * 4
    assert error < 1e-3
    monkeypatch.setattr("rpf_lightning.data.thin_plate.CANCELLING", float("inf"))
    in_single = np.abs(tps_flow(gt, reference, 128).permute(1, 2, 0).numpy() - truth).max() * 4
    assert in_single > 10 * error


def test_warp_is_backward_warp() -> None:
    gt, reference = face(2)
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    flow = tps_flow(gt, reference, 64) + torch.tensor([20.0, -5.0])[:, None, None]  # partly outside
    torch.testing.assert_close(warp(image, flow), backward_warp(image, flow[None]), atol=1e-4, rtol=0)
    assert (warp(image, flow) == 0).any()


@pytest.mark.realdata
def test_real_pairs_are_warped_within_a_tenth_of_a_pixel_and_come_nearer(shared: Path) -> None:
    root = shared / "data" / "celeba_hq_subset"
    points = {name: p / 512 for name, p in landmarks_from_csv(root / "landmarks.csv").items()}
    people = identities_from_csv(root / "identities.csv")
    names = [name for name in points if people.get(name)][:800]
    pairs = nearest_references([people[name] for name in names], [points[name] for name in names])

    def photo(index: int) -> Photo:
        name = names[index]
        mask = read_mask((root / "labels" / name).with_suffix(".png"), "celebamask-hq")
        return Photo(name, people[name], read_photo(root / "images" / name), points[name] * 512, mask)

    errors, before, after = [], [], []
    for pair in pairs[::16]:
        face_photo, gt, reference = photo(pair.gt), points[names[pair.gt]], points[names[pair.reference]]
        inside = face_photo.mask.astype(bool)
        flow = tps_flow(gt, reference, 512).permute(1, 2, 0).numpy()[inside]
        at = 2 * grid(512)[inside] - 1
        spline = RBFInterpolator(2 * gt - 1, 2 * reference - 1, kernel="thin_plate_spline", smoothing=1e-4)
        errors.append(np.abs(flow - (spline(at) - at) * 256).max())
        sides = {"lr_size": 16, "size": 512, "side": 64, "mask_reference": False, "warped": True}
        sample = make_sample(face_photo, photo(pair.reference), **sides)
        before.append((sample.gt_mask * (sample.reference - sample.gt).abs()).mean())
        after.append((sample.gt_mask * (sample.warped_reference - sample.gt).abs()).mean())
    assert len(errors) > 15
    assert np.median(errors) < 0.1
    assert np.mean(after) < np.mean(before)
