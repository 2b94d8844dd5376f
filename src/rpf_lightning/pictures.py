"""Tensors as 8-bit pictures, PNG bytes, and which file belongs to which photo."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from rpf_lightning.files import leads_out

GREY = 4  # levels
MOST_PIXELS = 48.5e6  # of a photo that is enhanced or helps; cameras of "48 megapixels" have a little more
JPEG = frozenset({".jpg", ".jpeg", ".jfif"})
IMAGES = JPEG | {".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".heic", ".heif"}
"""Suffixes of names of photos, in lower case."""


def to_uint8(images: Tensor) -> NDArray[np.uint8]:
    """Round images to 8 bit, clamped to [0, 1].

    Args:
        images: (3, H, W) or (B, 3, H, W) on any device, of any floating type.

    Returns:
        (H, W, 3) or (B, H, W, 3).

    Raises:
        ValueError: If a value is NaN or infinite: a picture would show it as black or white.
    """
    images = images.detach().float()
    if not images.isfinite().all():
        raise ValueError("an image to be made a picture holds NaN or infinite values: expected finite ones")
    pixels = (images.clamp(0, 1) * 255).round().to(torch.uint8)
    return np.ascontiguousarray(pixels.movedim(-3, -1).cpu().numpy())


def to_tensor(image: NDArray[np.uint8]) -> Tensor:
    """(H, W, 3) in 8 bit -> (1, 3, H, W) in [0, 1], fp32."""
    return torch.from_numpy(image.astype(np.float32) / 255).permute(2, 0, 1)[None]


def is_grey(image: NDArray[np.uint8]) -> bool:
    """Whether an (H, W, 3) image has no colours: its channels differ by four levels at most, as a scan's may."""
    few = image[::8, ::8].astype(np.int16)  # tells of nearly all coloured images, fast
    if np.ptp(few, axis=2).max() > GREY:
        return False
    red, green, blue = (image[..., channel].astype(np.int16) for channel in range(3))
    return all(int(np.abs(a - b).max()) <= GREY for a, b in ((red, green), (green, blue), (red, blue)))


def to_grey(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W, 3) -> the same with three equal channels, the luma of ITU-R BT.601."""
    return np.asarray(Image.fromarray(image).convert("L").convert("RGB"))


def png(image: NDArray[np.uint8] | Image.Image, texts: Mapping[str, str] | None = None) -> bytes:
    """Encode an (H, W, 3) uint8 image or a picture.

    Args:
        image: The pixels.
        texts: Written into the file beside them, by key.
    """
    notes = PngInfo()
    for key, text in (texts or {}).items():
        notes.add_text(key, text)
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", pnginfo=notes)
    return buffer.getvalue()


def stem(photo: str) -> str:
    """Return a photo's name without the suffix of an image, subfolders kept: what names a result."""
    path = PurePosixPath(photo)
    return (path.with_suffix("") if path.suffix.lower() in IMAGES else path).as_posix()


def result_file(photo: str) -> str:
    """Return where the result for a photo lies in a folder of results: `a/1.jpg` -> `a/1.png`.

    Raises:
        ValueError: If it would lie outside of the folder: the name is absolute, empty, or has `..` in it.
    """
    if leads_out(photo) or not PurePosixPath(photo).name:
        raise ValueError(f"{photo!r}: expected a relative name without '..'")
    return f"{stem(photo)}.png"


def results_in(root: Path) -> dict[str, Path]:
    """Find the images of a folder of results and its subfolders; nothing hidden is a result.

    Returns:
        `stem` of the path below `root` -> file: what belongs to the photo of that stem.

    Raises:
        ValueError: If two images have one name.
    """
    files: dict[str, Path] = {}
    for path in sorted(root.rglob("*")):
        inside = path.relative_to(root)
        hidden = any(part.startswith(".") for part in inside.parts)
        if hidden or path.suffix.lower() not in IMAGES or not path.is_file():
            continue
        key = stem(inside.as_posix())
        if key in files:
            raise ValueError(f"two images of one name, {files[key]} and {path}")
        files[key] = path
    return files
