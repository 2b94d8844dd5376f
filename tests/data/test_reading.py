"""Photos of every mode and broken files."""

import io
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rpf_lightning.data import image_files
from rpf_lightning.data.image_files import open_image, read_mask, read_photo


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


def smooth(height: int = 480) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (height // 20, 20, 3), np.uint8)
    return Image.fromarray(noise).resize((320, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("lacking", [1, 2, 3, 40])
def test_jpegs_that_lack_their_last_bytes(tmp_path: Path, lacking: int, progressive: bool) -> None:
    path = tmp_path / "a.jpg"
    smooth().save(path, quality=90, progressive=progressive)
    whole = read_photo(path)
    path.write_bytes(path.read_bytes()[:-lacking])
    notes: list[str] = []
    read = read_photo(path, notes=notes)
    (note,) = notes
    assert note.startswith(f"{path}: its last bytes are missing, ")
    lost = int(note.split("missing, ")[1].split(" of 480 rows")[0])
    assert (lost == 0) == (lacking <= 2)  # the end mark has two
    assert lost <= 48
    np.testing.assert_array_equal(read[: 480 - lost], whole[: 480 - lost])
    content = path.read_bytes()
    np.testing.assert_array_equal(read_photo(Path("elsewhere.jpg"), content), read)


@pytest.mark.parametrize("progressive", [False, True])
def test_half_a_jpeg_is_no_photo(tmp_path: Path, progressive: bool) -> None:
    path = tmp_path / "a.jpg"
    smooth().save(path, quality=90, progressive=progressive)
    content = path.read_bytes()
    for share in (0.2, 0.5, 0.8):
        path.write_bytes(content[: int(share * len(content))])
        with pytest.raises(ValueError, match=r"a\.jpg: cannot be decoded: .*truncated"):
            read_photo(path)


def test_only_documented_formats_are_opened(tmp_path: Path) -> None:
    """PostScript would start Ghostscript."""
    path = tmp_path / "a.jpg"
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\nshowpage\n%%EOF\n")
    assert Image.open(path).format == "EPS"
    expected = (
        r"a\.jpg: cannot be read: it is no image, expected PNG, JPEG, WebP, TIFF, BMP, GIF, AVIF or HEIC"
    )
    with pytest.raises(ValueError, match=expected):
        read_photo(path)
    with pytest.raises(ValueError, match=expected):
        open_image(path)


@pytest.mark.parametrize("suffix", ["jfif", "tif", "bmp", "avif", "gif", "webp"])
def test_kinds(tmp_path: Path, suffix: str) -> None:
    smooth(320).save(tmp_path / f"a.{suffix}")
    notes: list[str] = []
    read = read_photo(tmp_path / f"a.{suffix}", notes=notes)
    assert np.abs(read.astype(int) - np.asarray(smooth(320))).mean() < 12  # GIF has 256 colours
    assert notes == []


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif"])
def test_of_an_animation_the_first_frame_is_taken(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    notes: list[str] = []
    np.testing.assert_allclose(read_photo(path, notes=notes)[4, 4], (255, 0, 0), atol=3)
    (note,) = notes
    assert note.startswith(f"{path}: the first of 3 pictures was taken")


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40)


def test_heic_without_pillow_heif_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.heic").write_bytes(HEIC)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    image_files._formats.cache_clear()
    try:
        for content in (None, HEIC):
            with pytest.raises(
                ValueError, match=r"a\.heic: .* it is HEIC, which needs pillow-heif.* save it as JPEG"
            ):
                read_photo(tmp_path / "a.heic", content)
    finally:
        image_files._formats.cache_clear()


def test_broken_heic_is_named(tmp_path: Path) -> None:
    pytest.importorskip("pillow_heif")
    (tmp_path / "a.heic").write_bytes(HEIC)
    with pytest.raises(
        ValueError,
        match=r"a\.heic: cannot be read: it is HEIC, which pillow-heif cannot read; or save it as JPEG",
    ):
        read_photo(tmp_path / "a.heic")


def test_heic(tmp_path: Path) -> None:
    """Upright: pillow-heif turns the picture and resets the tag."""
    pillow_heif = pytest.importorskip("pillow_heif")
    exif = Image.Exif()
    exif[0x0112] = 6
    content = io.BytesIO()
    pillow_heif.from_pillow(smooth()).save(content, quality=95, exif=exif.tobytes())
    (tmp_path / "a.heic").write_bytes(content.getvalue())
    notes: list[str] = []
    read = read_photo(tmp_path / "a.heic", notes=notes)
    assert read.shape == (320, 480, 3)
    assert np.abs(read.astype(int) - np.rot90(smooth(), -1)).mean() < 12
    assert notes == []
