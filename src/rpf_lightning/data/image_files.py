"""Reading photos and parsing maps from files, whatever their mode."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from rpf_lightning.faces.labels import facial_mask

KINDS = "PNG, JPEG, WebP, TIFF, BMP, GIF, AVIF or HEIC"
# Pillow knows many more, and hands PostScript over to Ghostscript, whatever the file is called
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "AVIF")
ANIMATED = {"PNG": "animation", "WEBP": "animation", "GIF": "animation", "AVIF": "animation", "TIFF": "pages"}
HEIC_BRANDS = frozenset({b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"})
MOST_LOST = 0.1  # of the rows: a JPEG that lacks more of them is no photo any more


def read_photo(path: Path, content: bytes | None = None, notes: list[str] | None = None) -> NDArray[np.uint8]:
    """Read a photo upright (EXIF orientation applied) as RGB.

    Grey photos get three equal channels, transparent ones are laid over white, 16-bit ones and fractions are scaled to
    8 bit. A JPEG that lacks its last bytes is read if a tenth of its rows at most depends on them.

    Args:
        path: A file of the `KINDS`.
        content: Its bytes, where they were read already; `path` then only names it.
        notes: Gets a sentence that names the file where bytes are missing, and where it holds several pictures, of
            which the first one is read.

    Returns:
        (H, W, 3) uint8.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no image or a broken one; the message names the file.
    """
    notes = [] if notes is None else notes
    with open_image(path, content) as file:
        try:
            frames = getattr(file, "n_frames", 1) if file.format in ANIMATED else 1
            file.load()
        except Exception as error:  # decoders raise whatever a broken file makes them stumble over
            if file.format not in ("JPEG", "MPO"):
                raise ValueError(f"{path}: cannot be decoded: {error}") from error
            return _upright(_mended(path, content, error, notes), path)
        if frames > 1:
            notes.append(f"{path}: the first of {frames} pictures was taken ({ANIMATED[file.format or '']})")
        return _upright(file, path)


def _upright(file: Image.Image, path: Path) -> NDArray[np.uint8]:
    with file:
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


def _mended(path: Path, content: bytes | None, error: Exception, notes: list[str]) -> Image.Image:
    """Open a JPEG that lacks its last bytes.

    Two endings are put in their place: the rows in which they differ are those that the missing bytes decide.
    """
    # half a marker would eat the ending's first byte
    start = (path.read_bytes() if content is None else content).rstrip(b"\xff")
    noise = np.random.default_rng(0).integers(0, 255, len(start), np.uint8).tobytes()
    try:
        image, other = (open_image(path, start + ending + b"\xff\xd9") for ending in (b"", noise))
        lost = int((np.asarray(image) != np.asarray(other)).reshape(image.height, -1).any(1).sum())
    except OSError:
        lost = -1
    if not 0 <= lost <= MOST_LOST * image.height:
        raise ValueError(f"{path}: cannot be decoded: {error}") from error
    notes.append(f"{path}: its last bytes are missing, {lost} of {image.height} rows may be wrong")
    return image


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
    """Open an image of the `KINDS` without decoding it.

    Args:
        path: The file.
        content: Its bytes, where they were read already.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is none of them, or too large; the message names the file.
    """
    try:
        return Image.open(path if content is None else io.BytesIO(content), formats=_formats())
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except UnidentifiedImageError:
        if _is_heic(path, content):
            needs = "which needs pillow-heif (pip install 'rpf-lightning[heic]')"
            why = "which pillow-heif cannot read" if "HEIF" in _formats() else needs
            raise ValueError(f"{path}: cannot be read: it is HEIC, {why}; or save it as JPEG") from None
        raise ValueError(f"{path}: cannot be read: it is no image, expected {KINDS}") from None
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path}: too large, cut or reduce it first: {error}") from error
    except OSError as error:
        raise ValueError(f"{path}: cannot be read as an image: {error}") from error


@cache
def _formats() -> tuple[str, ...]:
    """What Pillow may open; HEIC where pillow-heif is installed."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return FORMATS
    register_heif_opener()
    return (*FORMATS, "HEIF")


def _is_heic(path: Path, content: bytes | None) -> bool:
    if content is None:
        with path.open("rb") as file:
            content = file.read(12)
    return content[4:8] == b"ftyp" and content[8:12] in HEIC_BRANDS
