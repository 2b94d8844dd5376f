"""Facial masks: BiSeNet's preprocessing and labels, the hull of landmarks, the mean of hand-made masks."""

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rpf_lightning.drawn_faces.photo import render_photo
from rpf_lightning.faces import parsing
from rpf_lightning.faces.labels import facial_mask
from rpf_lightning.faces.parsing import BiSeNetParser, hull_mask, mean_mask, template_mask


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


@pytest.fixture(scope="module")
def bisenet_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random file of facexlib's name and shapes."""
    from facexlib.parsing.bisenet import BiSeNet

    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    torch.save(BiSeNet(num_class=19).state_dict(), folder / "parsing_bisenet.pth")
    return folder


@pytest.fixture(scope="module")
def parser(bisenet_weights: Path) -> Iterator[BiSeNetParser]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RPF_WEIGHTS_DIR", str(bisenet_weights))
        yield BiSeNetParser("cpu")


def test_bisenet_reads_our_file(bisenet_weights: Path, parser: BiSeNetParser) -> None:
    state = torch.load(bisenet_weights / "parsing_bisenet.pth")
    assert all(torch.equal(value, state[key]) for key, value in parser._network.state_dict().items())
    assert not parser._network.training


def test_bisenet_without_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RPF_WEIGHTS_DIR", str(tmp_path))
    monkeypatch.setenv("RPF_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("RPF_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match=r"parsing_bisenet\.pth"):
        BiSeNetParser()


def test_bisenet_input_and_labels(parser: BiSeNetParser, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against PIL's resizing and ImageNet's statistics, written out; the labels are those of the first output."""
    fed, given = [], torch.zeros(2, 19, 512, 512)
    given[0, 10], given[1, 14] = 1, 1  # nose and neck in BiSeNet's order
    given[0, 17, :100] = 2  # hair
    given[1, 13, :, 300:] = 2  # lower lip
    rest = torch.zeros(2, 19, 512, 512)

    def network(batch: torch.Tensor) -> tuple[torch.Tensor, ...]:
        fed.append(batch)
        return given, rest, rest

    monkeypatch.setattr(parser, "_network", network)
    photos = [render_photo(0, 0, 64).image, render_photo(1, 0, 1024).image]
    masks = parser(photos)
    (batch,) = fed
    for photo, tensor in zip(photos, batch, strict=True):
        resized = np.asarray(Image.fromarray(photo).resize((512, 512), Image.Resampling.BICUBIC))
        pixels = tensor.permute(1, 2, 0).numpy() * (0.229, 0.224, 0.225) + (0.485, 0.456, 0.406)
        assert np.abs(pixels * 255 - resized).max() < 1.5  # PIL rounds twice
        assert pixels.min() > -1e-6
        assert pixels.max() < 1 + 1e-6
    assert all(mask.shape == (512, 512) and mask.dtype == np.uint8 for mask in masks)
    assert masks[0][:100].max() == 0
    assert masks[0][100:].min() == 1
    assert masks[1][:, :300].max() == 0
    assert masks[1][:, 300:].min() == 1


def test_bisenet_runs(parser: BiSeNetParser) -> None:
    photos = [render_photo(i, 0, 64).image for i in range(2)]
    masks = parser(photos)
    with torch.no_grad():
        labels = parser._network(torch.cat([parser._prepared(photo) for photo in photos]))[0].argmax(1)
    assert np.array_equal(np.stack(masks), facial_mask(labels.numpy(), "bisenet"))
    assert len(np.unique(labels)) > 1
    assert parser([]) == []
    with pytest.raises(ValueError, match="RGB photo"):
        parser([photos[0].astype(float)])


def test_hull_reaches_over_the_forehead() -> None:
    """An upright face: chin at 0.9, brows at 0.4 from 0.3 to 0.7."""
    landmarks = np.full((68, 2), 0.5)
    landmarks[8] = (0.5, 0.9)
    landmarks[17:27] = np.stack([np.linspace(0.3, 0.7, 10), np.full(10, 0.4)], 1)
    mask = hull_mask(landmarks, 500)
    assert mask.dtype == np.uint8
    assert set(np.unique(mask)) == {0, 1}
    rows, columns = np.nonzero(mask)
    inner = 0.42 * (1 - 0.5 / 81) * 0.5  # of the two brow points next to the middle
    assert (rows.min() / 500) == pytest.approx(0.4 - inner, abs=0.004)
    assert ((rows.max() + 1) / 500) == pytest.approx(0.9, abs=0.004)
    assert columns.min() / 500 == pytest.approx(0.3, abs=0.004)
    temple = np.nonzero(mask[:, 151])[0].min() / 500  # just right of the outer end of the brow
    assert temple == pytest.approx(0.4 - 0.42 * 0.5 * 0.5, abs=0.01)


def test_hull_is_the_polygon_at_pixel_centres() -> None:
    """Turned and mirrored landmarks give the turned and mirrored mask exactly."""
    landmarks = render_photo(2, 0, 128).landmarks / 128
    mask = hull_mask(landmarks, 96)
    assert np.array_equal(hull_mask(landmarks * (-1, 1) + (1, 0), 96), mask[:, ::-1])
    assert np.array_equal(hull_mask(1 - landmarks, 96), mask[::-1, ::-1])
    assert np.array_equal(hull_mask(landmarks[:, ::-1], 96), mask.T)


def test_hull_fits_synthetic_faces() -> None:
    values = []
    for i in range(6):
        photo = render_photo(i, 0, 128)
        values.append(iou(hull_mask(photo.landmarks / 128, 128), facial_mask(photo.parsing, "bisenet")))
    assert np.mean(values) > 0.7


def test_hull_refuses_bad_landmarks() -> None:
    with pytest.raises(ValueError, match="68 finite"):
        hull_mask(np.zeros((5, 2)), 64)
    with pytest.raises(ValueError, match="68 finite"):
        hull_mask(np.full((68, 2), np.inf), 64)
    with pytest.raises(ValueError, match="one line"):
        hull_mask(np.tile(np.linspace(0, 1, 68)[:, None], 2), 64)


def test_mean_mask_by_hand(tmp_path: Path) -> None:
    labels = np.zeros((256, 256), np.uint8)
    labels[:, 128:] = 10  # mouth in CelebAMask-HQ's order, nose in BiSeNet's
    labels[:128] = 17  # neck in CelebAMask-HQ's order, hair in BiSeNet's
    Image.fromarray(labels).save(tmp_path / "a.png")
    labels[:128] = 15  # earring in CelebAMask-HQ's order, necklace in BiSeNet's
    Image.fromarray(labels).save(tmp_path / "b.png")
    files = sorted(tmp_path.glob("*.png"))
    expected = np.zeros((128, 128), np.uint8)
    expected[64:, 64:] = 255
    assert np.array_equal(mean_mask(files, "bisenet"), expected)
    expected[:64] = 128
    assert np.array_equal(mean_mask(files, "celebamask-hq"), expected)
    with pytest.raises(ValueError, match="no label map"):
        mean_mask([], "bisenet")


@pytest.mark.parametrize("side", [16, 128, 512])
def test_template(side: int) -> None:
    mask = template_mask(side)
    assert mask.shape == (side, side)
    assert mask.dtype == np.uint8
    assert 0.3 < mask.mean() < 0.36
    assert mask[side // 2, side // 2] == 1
    assert mask[0].max() == mask[:, 0].max() == mask[-1].max() == 0
    assert iou(mask, mask[:, ::-1]) > 0.9


def test_template_is_beside_the_module() -> None:
    file = Path(parsing.__file__).with_name(parsing.TEMPLATE_FILE)
    assert Image.open(file).size == (128, 128)
    assert Image.open(file).mode == "L"


@pytest.fixture
def subset(shared: Path) -> Path:
    return shared / "data" / "celeba_hq_subset"


@pytest.mark.realdata
def test_template_is_the_mean_of_real_masks(subset: Path) -> None:
    part = mean_mask(sorted((subset / "labels").glob("*.png"))[::10], "celebamask-hq")
    stored = np.asarray(Image.open(Path(parsing.__file__).with_name(parsing.TEMPLATE_FILE)))
    difference = np.abs(part.astype(float) - stored)
    assert difference.mean() < 4
    assert difference.max() < 30


@pytest.mark.realdata
def test_masks_without_a_network_fit_hand_made_ones(subset: Path) -> None:
    hulls, templates = [], []
    template = template_mask(512)
    with (subset / "landmarks.csv").open() as file:
        rows = [row for row in list(csv.reader(file))[1::60] if row[1]]
    for name, *values in rows:
        with Image.open(subset / "labels" / Path(name).with_suffix(".png")) as labels:
            mask = facial_mask(np.asarray(labels), "celebamask-hq")
        hulls.append(iou(hull_mask(np.array(values, float).reshape(68, 2) / 512, 512), mask))
        templates.append(iou(template, mask))
    assert np.mean(hulls) > 0.81
    assert np.mean(templates) > 0.74
