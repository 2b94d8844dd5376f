"""Reading photos and parsing maps from files, whatever their mode."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from rpf_lightning.faces.labels import facial_mask

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp"})


def read_photo(path: Path, content: bytes | None = None) -> NDArray[np.uint8]:
    """Read a photo upright (EXIF orientation applied) as RGB.

    Grey photos get three equal channels, transparent ones are laid over white, 16-bit ones and fractions are scaled to
    8 bit.

    Args:
        path: A file that Pillow reads.
        content: Its bytes, where they were read already; `path` then only names it.

    Returns:
        (H, W, 3) uint8.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no image or a broken one; the message names the file.
    """
    with open_image(path, content) as file:
        try:
            image = ImageOps.exif_transpose(file)
            deep = image.mode.startswith(("I", "F"))
            if image.has_transparency_data and not deep:
                rgba = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
            pixels = np.array(image if deep else image.convert("RGB"))
        except Exception as error:
            # decoders and EXIF readers raise whatever a broken file makes them stumble over
            raise ValueError(f"{path}: cannot be decoded: {error}") from error
    return _from_deep_grey(pixels, path) if deep else pixels


def read_mask(path: Path, scheme: str) -> NDArray[np.uint8]:
    """Read a parsing map as a facial mask (eq. 1).

    Args:
        path: An image with one label per pixel.
        scheme: Order of the label values, see `facial_mask`.

    Returns:
        (H, W) uint8, 1 inside the facial classes.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read or holds other values than the scheme's labels.
    """
    with open_image(path) as file:
        if file.mode not in ("L", "P"):
            raise ValueError(f"{path}: expected one 8-bit label per pixel (mode L or P), got {file.mode}")
        try:
            labels = np.array(file)
        except Exception as error:
            raise ValueError(f"{path}: cannot be decoded: {error}") from error
    try:
        return facial_mask(labels, scheme)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _from_deep_grey(values: NDArray[np.generic], path: Path) -> NDArray[np.uint8]:
    """Bring a grey image of more than 8 bit to 8 bit; Pillow's own conversion clips it to white.

    Whole numbers of 16 bit have the range that their type says; of 32 bit and of fractions, the largest value tells.
    """
    numbers = values.astype(np.float64)
    highest = numbers.max()
    if not (numbers.min() >= 0 and highest <= 65535):
        raise ValueError(f"{path}: expected grey values in 0..1, 0..255 or 0..65535")
    white = 65535.0
    if values.dtype.itemsize == 4:
        # below 2, for what a filter has left above 1
        white = 1.0 if values.dtype.kind == "f" and highest < 2 else 255.0 if highest <= 255 else 65535.0
    grey = np.rint(numbers * (255 / white)).clip(0, 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def open_image(path: Path, content: bytes | None = None) -> Image.Image:
    """Open an image without decoding it; arguments and errors as in `read_photo`."""
    try:
        return Image.open(path if content is None else io.BytesIO(content))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except UnidentifiedImageError:
        raise ValueError(f"{path}: cannot be read: it is no image of a kind that Pillow knows") from None
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path}: too large, cut or reduce it first: {error}") from error
    except OSError as error:
        raise ValueError(f"{path}: cannot be read as an image: {error}") from error
