"""Photos of every mode and broken files."""

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rpf_lightning.data.image_files import read_mask, read_photo


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (12, 20, 3), np.uint8)


def test_plain(tmp_path: Path, picture: np.ndarray) -> None:
    Image.fromarray(picture).save(tmp_path / "Zoë–脸.png")
    np.testing.assert_array_equal(read_photo(tmp_path / "Zoë–脸.png"), picture)
    content = (tmp_path / "Zoë–脸.png").read_bytes()
    np.testing.assert_array_equal(read_photo(Path("elsewhere.png"), content), picture)


def test_grey_and_palette(tmp_path: Path, picture: np.ndarray) -> None:
    grey = Image.fromarray(picture).convert("L")
    grey.save(tmp_path / "grey.png")
    expected = np.repeat(np.array(grey)[..., None], 3, 2)
    np.testing.assert_array_equal(read_photo(tmp_path / "grey.png"), expected)
    palette = Image.fromarray(picture).quantize(8)
    palette.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(read_photo(tmp_path / "palette.png"), np.array(palette.convert("RGB")))


def test_transparency_is_laid_over_white(tmp_path: Path, picture: np.ndarray) -> None:
    alpha = np.zeros((12, 20), np.uint8)
    alpha[:, :10], alpha[0, 0] = 255, 51
    Image.fromarray(np.dstack([picture, alpha])).save(tmp_path / "rgba.png")
    image = read_photo(tmp_path / "rgba.png")
    np.testing.assert_array_equal(image[1:, :10], picture[1:, :10])
    assert (image[:, 10:] == 255).all()
    np.testing.assert_allclose(image[0, 0], 0.2 * picture[0, 0] + 0.8 * 255, atol=1)


@pytest.mark.parametrize(
    ("mode", "white"),
    [("I;16", 65535), ("F", 1.004), ("F", 255.0), ("F", 65535.0), ("I", 255.0), ("I", 65535.0)],
)
def test_deep_grey_has_the_range_that_it_has(
    tmp_path: Path, picture: np.ndarray, mode: str, white: float
) -> None:
    grey = picture[..., 0].astype(np.float64)
    grey *= 255 / grey.max()
    values = (grey / 255 * white).astype({"F": np.float32, "I": np.int32}.get(mode, np.uint16))
    Image.fromarray(values).save(tmp_path / "a.tiff")
    with Image.open(tmp_path / "a.tiff") as image:
        assert image.mode == mode
    read = read_photo(tmp_path / "a.tiff")  # fractions may overshoot
    np.testing.assert_allclose(read, np.repeat(grey[..., None], 3, 2), atol=1.5 if white == 1.004 else 1)


@pytest.mark.parametrize("value", [-1.0, 70000.0, np.nan])
def test_grey_of_no_known_range(tmp_path: Path, value: float) -> None:
    values = np.zeros((4, 4), np.float32)
    values[1, 1] = value
    Image.fromarray(values).save(tmp_path / "a.tiff")
    with pytest.raises(ValueError, match=r"^[^:]*a\.tiff: expected grey values in 0\.\.1"):
        read_photo(tmp_path / "a.tiff")


def test_photos_too_large_for_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match=r"a\.png: too large, cut or reduce it first"):
        read_photo(tmp_path / "a.png")


def test_exif_orientation(tmp_path: Path, picture: np.ndarray) -> None:
    turned = Image.fromarray(picture).rotate(90, expand=True)
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "exif.png", exif=exif)
    np.testing.assert_array_equal(read_photo(tmp_path / "exif.png"), picture)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_broken_files_are_named(tmp_path: Path, picture: np.ndarray, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(picture).save(path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=rf"x\.{suffix}: cannot be"):
        read_photo(path)
    path.write_text("not a photo")
    with pytest.raises(ValueError, match=rf"x\.{suffix}: cannot be read: it is no image"):
        read_photo(path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=rf"x\.{suffix}: no such file"):
        read_photo(path)


def test_malformed_exif_is_a_broken_file(tmp_path: Path, picture: np.ndarray) -> None:
    entries = struct.pack("<HHI4s", 0x0100, 2, 4, b"wid\0")  # a number's tag with a text
    entries += struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + struct.pack("<I", 0)
    Image.fromarray(picture).save(tmp_path / "x.jpg", exif=exif)
    with pytest.raises(ValueError, match=r"x\.jpg: cannot be decoded"):
        read_photo(tmp_path / "x.jpg")


def test_masks(tmp_path: Path) -> None:
    labels = np.zeros((8, 8), np.uint8)
    labels[2:4], labels[4:] = 1, 13  # skin; l_lip in BiSeNet's order, hair in CelebAMask-HQ's
    Image.fromarray(labels).save(tmp_path / "label.png")
    assert read_mask(tmp_path / "label.png", "bisenet").sum() == 48
    assert read_mask(tmp_path / "label.png", "celebamask-hq").sum() == 16
    Image.fromarray(labels + 6).save(tmp_path / "label.png")
    with pytest.raises(ValueError, match=r"label.png: labels must be in 0\.\.18"):
        read_mask(tmp_path / "label.png", "bisenet")
    Image.fromarray(np.dstack([labels] * 3)).save(tmp_path / "label.png")
    with pytest.raises(ValueError, match=r"label.png: expected one 8-bit label per pixel"):
        read_mask(tmp_path / "label.png", "bisenet")
