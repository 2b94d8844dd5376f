"""Reading photos of any colour space as sRGB, which the model was trained on, and what they say about themselves."""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps

from rpf_lightning.data.image_files import open_image, read_photo

MOST_EXIF = 65_000  # bytes; a JPEG holds no more
ORIENTATION, EXIF_IFD, GPS_IFD, WIDTH, HEIGHT = 0x0112, 0x8769, 0x8825, 0xA002, 0xA003
# tags of the first IFD that tell how a TIFF's pixels are stored, and its other copies of profile and XMP
STORAGE = frozenset(
    {
        *range(0x00FE, 0x0104),
        0x0106,
        0x010A,
        0x0111,
        *range(0x0115, 0x011A),
        0x011C,
        0x013D,
        0x0140,
        0x014A,
        0x015B,
    }
    | {*range(0x0142, 0x0146), 0x0152, 0x0153, 0x0201, 0x0202, *range(0x0211, 0x0215), 0x02BC, 0x8773}
)


@dataclass(frozen=True, eq=False)
class Metadata:
    """What a photo's file says beside its pixels.

    Attributes:
        exif: Upright, without a thumbnail; empty if there is none.
        profile: ICC profile of a photo that has one for RGB; empty: the photo counts as sRGB.
        own: (H, W, 3) uint8, the upright photo in the colours of that profile; None: they are those of sRGB.
    """

    exif: bytes = b""
    profile: bytes = b""
    own: NDArray[np.uint8] | None = None


def read_metadata(path: Path, name: str, warnings: list[str]) -> Metadata:
    """Read what is to be kept of a photo's file; sentences in `warnings` say what cannot be kept.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no image.
    """
    with open_image(path) as file:
        profile = file.info.get("icc_profile") or b""
        try:
            exif = _kept_exif(file.getexif())
        except (ValueError, TypeError, KeyError, OSError, SyntaxError, struct.error) as error:
            warnings.append(f"{name}: its EXIF cannot be kept: {error}")
            exif = b""
        if file.mode == "CMYK":
            profile = b""
    if len(exif) > MOST_EXIF:
        warnings.append(
            f"{name}: its EXIF has {len(exif):,} bytes and is not kept, a JPEG holds {MOST_EXIF:,}"
        )
        exif = b""
    if not profile:
        return Metadata(exif)
    try:
        colours = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if _is_srgb(colours):
            return Metadata(exif, profile)
        from_srgb(np.zeros((1, 1, 3), np.uint8), profile)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return Metadata(exif)  # of grey, or one that nothing can be converted to: the result is sRGB
    return Metadata(exif, profile, read_photo(path))


def _kept_exif(exif: Image.Exif) -> bytes:
    """Of an upright picture of another size; a new one takes over no thumbnail."""
    kept = Image.Exif()
    for tag, value in exif.items():
        if tag not in STORAGE and tag not in (ORIENTATION, EXIF_IFD, GPS_IFD):
            kept[tag] = value
    for tag in (EXIF_IFD, GPS_IFD):
        if values := {key: value for key, value in exif.get_ifd(tag).items() if key not in (WIDTH, HEIGHT)}:
            kept[tag] = values
    if not len(kept):
        return b""
    kept[ORIENTATION] = 1
    return kept.tobytes()


def from_srgb(image: NDArray[np.uint8], profile: bytes) -> NDArray[np.uint8]:
    """Convert (H, W, 3) uint8 from sRGB to the colours of a profile.

    Raises:
        ImageCms.PyCMSError: If the profile cannot be used so.
    """
    target = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    converted = ImageCms.profileToProfile(Image.fromarray(image), ImageCms.createProfile("sRGB"), target)
    assert converted is not None  # only in place it is
    return np.asarray(converted)


def read_srgb(path: Path, name: str, warnings: list[str]) -> NDArray[np.uint8]:
    """Read a photo as `read_photo` does, converted to sRGB if it has a colour profile.

    Args:
        path: A file that Pillow reads.
        name: For warnings.
        warnings: Gets a sentence if the profile cannot be used; the photo is then taken as it is.

    Returns:
        (H, W, 3) uint8, RGB.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no image or a broken one.
    """
    image = read_photo(path, notes=warnings)
    with open_image(path) as file:
        content = file.info.get("icc_profile")
        if not content:
            return image
        try:
            profile = ImageCms.ImageCmsProfile(io.BytesIO(content))
            # asked of the profile itself: names such as "Linear sRGB" say nothing, and rounding would change pixels
            if file.mode != "CMYK" and _is_srgb(profile):
                return image
            return _converted(image, file, profile)
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError, ImportError) as error:
            warnings.append(f"{name}: its colour profile cannot be used, colours may be wrong: {error}")
            return image


def _is_srgb(profile: ImageCms.ImageCmsProfile) -> bool:
    """Whether colours stay as they are, to two levels."""
    if profile.profile.xcolor_space.strip() != "RGB":
        return False
    levels = np.linspace(0, 255, 9).round().astype(np.uint8)
    colours = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(27, 27, 3)
    converted = ImageCms.profileToProfile(
        Image.fromarray(colours), profile, ImageCms.createProfile("sRGB"), outputMode="RGB"
    )
    return bool(np.abs(np.asarray(converted).astype(int) - colours).max() <= 2)


def _converted(
    image: NDArray[np.uint8], file: Image.Image, profile: ImageCms.ImageCmsProfile
) -> NDArray[np.uint8]:
    space = profile.profile.xcolor_space.strip()
    if space == "RGB" and file.mode != "CMYK":
        source = Image.fromarray(image)
    elif space == "GRAY" and np.ptp(image, axis=2).max() == 0:
        source = Image.fromarray(np.ascontiguousarray(image[..., 0]))
    elif space == "CMYK" == file.mode:
        source = ImageOps.exif_transpose(file)
    else:
        raise ValueError(f"a profile for {space} in a photo of mode {file.mode}")
    converted = ImageCms.profileToProfile(source, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    assert converted is not None  # only in place it is
    return np.asarray(converted)
