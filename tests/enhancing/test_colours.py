"""Photos of other colour spaces are brought to sRGB."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from rpf_lightning.enhancing import enhance_photo
from rpf_lightning.enhancing.inputs import read_srgb
from rpf_lightning.model import RPFModel

Draw = Callable[..., NDArray[np.uint8]]


def fixed(value: float) -> bytes:
    return round(value * 65536).to_bytes(4, "big", signed=True)


def test_display_p3_becomes_srgb(tmp_path: Path, wide_profile: bytes) -> None:
    """Known values: P3's (200, 100, 100) is sRGB's (213, 96, 98), to a level or two; white stays white."""
    pixels = np.full((8, 8, 3), (200, 100, 100), np.uint8)
    pixels[0] = 255
    Image.fromarray(pixels).save(tmp_path / "p3.png", icc_profile=wide_profile)
    warnings: list[str] = []
    read = read_srgb(tmp_path / "p3.png", "p3.png", warnings)
    assert warnings == []
    np.testing.assert_allclose(read[4, 4], (213, 94, 97), atol=3)
    np.testing.assert_allclose(read[0, 0], 255, atol=1)


def gamma_1(name: str) -> bytes:
    """lcms's sRGB with linear curves, but still called sRGB, as "Linear sRGB" is."""
    content = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for number in range(int.from_bytes(content[128:132], "big")):
        at = 132 + 12 * number
        tag, start = bytes(content[at : at + 4]), int.from_bytes(content[at + 4 : at + 8], "big")
        if tag in (b"rTRC", b"gTRC", b"bTRC"):
            content[start : start + 16] = b"para" + bytes(8) + fixed(1.0)  # y = x^1
    return bytes(content)


def test_linear_photos_become_brighter(tmp_path: Path) -> None:
    """A linear 0.2140 is sRGB's 0.5."""
    profile = gamma_1("linear")
    assert "srgb" in ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(profile))).lower()
    Image.new("RGB", (8, 8), (55, 55, 55)).save(tmp_path / "linear.png", icc_profile=profile)
    warnings: list[str] = []
    np.testing.assert_allclose(read_srgb(tmp_path / "linear.png", "linear", warnings), 128, atol=2)
    assert warnings == []


def test_profiles_of_grey_photos(tmp_path: Path) -> None:
    """A grey photo with a profile for colours stays grey; one whose profile is for grey is converted by it."""
    Image.new("L", (8, 8), 55).save(tmp_path / "grey.png", icc_profile=gamma_1("linear"))
    warnings: list[str] = []
    np.testing.assert_allclose(read_srgb(tmp_path / "grey.png", "grey", warnings), 128, atol=2)
    Image.new("L", (8, 8), 55).save(tmp_path / "grey.png", icc_profile=linear_grey())
    np.testing.assert_allclose(read_srgb(tmp_path / "grey.png", "grey", warnings), 128, atol=2)
    assert warnings == []


def linear_grey() -> bytes:
    """The smallest profile of grey that lcms takes: a header, a white point and a curve of gamma 1."""
    tags = {
        b"wtpt": b"XYZ " + bytes(4) + fixed(0.9642) + fixed(1.0) + fixed(0.8249),
        b"kTRC": b"curv" + bytes(4) + (0).to_bytes(4, "big"),
    }
    body, table, at = b"", len(tags).to_bytes(4, "big"), 128 + 4 + 12 * len(tags)
    for tag, data in tags.items():
        table += tag + (at + len(body)).to_bytes(4, "big") + len(data).to_bytes(4, "big")
        body += data
    header = bytearray(128)
    header[:4] = (at + len(body)).to_bytes(4, "big")
    header[8:12] = bytes.fromhex("02400000")
    header[12:24] = b"mntrGRAYXYZ "
    header[36:40] = b"acsp"
    header[68:80] = fixed(0.9642) + fixed(1.0) + fixed(0.8249)
    return bytes(header) + table + body


def test_srgb_and_photos_without_a_profile_stay_as_they_are(tmp_path: Path, drawn: Draw) -> None:
    pixels = drawn(40, 30, (5, 5, 12, 99))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for name, profile in (("none", None), ("srgb", srgb)):
        path = tmp_path / f"{name}.png"
        Image.fromarray(pixels).save(path, icc_profile=profile)
        warnings: list[str] = []
        np.testing.assert_array_equal(read_srgb(path, name, warnings), pixels)
        assert warnings == []


@pytest.mark.parametrize("kind", ["broken", "of another space"])
def test_profiles_that_cannot_be_used_are_told(
    kind: str, tmp_path: Path, drawn: Draw, networks: Any, bicubic: RPFModel, portraits: Any
) -> None:
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    path = tmp_path / "photo.png"
    pixels = drawn(160, 120, (70, 40, 52, 0))
    Image.fromarray(pixels).save(path, icc_profile=b"no profile" if kind == "broken" else lab)
    result = enhance_photo(path, portraits, bicubic, networks)
    (warning,) = result.warnings
    assert "photo.png: its colour profile cannot be used" in warning
    assert result.before.shape == (240, 320, 3)


def test_references_are_converted_too(
    tmp_path: Path, wide_profile: bytes, drawn: Draw, networks: Any, bicubic: RPFModel
) -> None:
    pixels = drawn(120, 120, (10, 10, 100, 0), green=50)
    Image.fromarray(pixels).save(tmp_path / "reference.png", icc_profile=wide_profile)
    photo = drawn(160, 120, (70, 40, 52, 0))
    plain = enhance_photo(photo, [pixels], bicubic, networks)
    wide = enhance_photo(photo, [tmp_path / "reference.png"], bicubic, networks)
    assert wide.reference[32, 32, 1] < plain.reference[32, 32, 1] - 20


def test_grey_and_turned_photos(tmp_path: Path, wide_profile: bytes) -> None:
    content = io.BytesIO()
    grey = np.arange(48, dtype=np.uint8).reshape(6, 8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.repeat(grey[..., None], 3, 2)).save(
        content, "PNG", icc_profile=wide_profile, exif=exif
    )
    (tmp_path / "a.png").write_bytes(content.getvalue())
    read = read_srgb(tmp_path / "a.png", "a", [])
    assert read.shape == (8, 6, 3)
    np.testing.assert_allclose(read[..., 0], np.rot90(grey, -1), atol=2)
