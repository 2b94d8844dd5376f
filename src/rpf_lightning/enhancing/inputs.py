"""Reading photos of any colour space as sRGB, which the model was trained on."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps

from rpf_lightning.data.image_files import read_photo


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
    image = read_photo(path)
    with Image.open(path) as file:
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
