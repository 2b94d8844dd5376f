"""What `rpf enhance` writes: the enhanced photo, and beside it what changed."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rpf_lightning.drawing import Cell, Row, draw_rows
from rpf_lightning.enhancing.inputs import Metadata, from_srgb
from rpf_lightning.enhancing.paste import box_around, enlarge
from rpf_lightning.enhancing.results import Enhanced, EnhancedFace
from rpf_lightning.files import write_atomically
from rpf_lightning.pictures import JPEG, png

QUALITY = 95
WRITTEN = JPEG | {".png", ".webp"}  # suffixes
SURROUNDINGS = 1.5  # of the aligned square's side: what the side-by-side picture shows of the photo


def write_enhanced(
    result: Enhanced, out: str | Path, strip_metadata: bool = False, quality: int = QUALITY
) -> tuple[Path, Path]:
    """Write the enhanced photo, and beside it what changed; each file appears whole or not at all.

    Args:
        result: What `enhance_photo` or `enhance_aligned` gave.
        out: A name that ends in .png, .jpg (.jpeg, .jfif) or .webp; its folder is made if it is missing.
        strip_metadata: Write neither the photo's EXIF nor its colour profile; the pixels are sRGB then.
        quality: Of JPEG and WebP, 1 to 100.

    Returns:
        `out`, and `<name>_side_by_side.png`, a row per face: the face in the enlarged photo before and after, the LR,
        the model's output and the masked references.

    Raises:
        ValueError: If the name ends otherwise, `quality` is out of its range, or the photo is too large for the format.
    """
    out = checked_out(out, quality)
    photo = (
        _encoded(result.image, out, Metadata(), quality)
        if strip_metadata
        else _encoded(_in_own_colours(result), out, result.metadata, quality)
    )
    # both are encoded before the first one is written, so that an error leaves nothing
    figure = png(draw_rows([_row(result, face) for face in result.faces])[0])
    _, beside = files_of(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, photo)
    write_atomically(beside, figure)
    return out, beside


def _row(result: Enhanced, face: EnhancedFace) -> Row:
    cells = {
        "photo, enlarged": Cell(_around_face(result.before, face)),
        "enhanced": Cell(_around_face(result.image, face)),
        "input": Cell(face.lr, (f"{len(face.lr)} x {len(face.lr)}",)),
        "output": Cell(face.face),
    }
    for place, masked in enumerate(face.references * face.masks[..., None]):
        cells[f"reference {place + 1} (masked)" if place else "reference (masked)"] = Cell(masked)
    return Row(summary(result, face), cells)


def checked_out(out: str | Path, quality: int = QUALITY) -> Path:
    """The name of the result.

    Raises:
        ValueError: If it does not end in the suffix of a format that is written, or `quality` is out of its range.
    """
    if Path(out).suffix.lower() not in WRITTEN:
        raise ValueError(f"out: expected the name of a .png, .jpg or .webp file, got {str(out)!r}")
    if not 1 <= quality <= 100:
        raise ValueError(f"quality: expected 1 to 100, got {quality}")
    return Path(out)


def _in_own_colours(result: Enhanced) -> NDArray[np.uint8]:
    """The result in the colours of the photo's profile; around the faces those that sRGB lacks are there again."""
    if result.metadata.own is None:
        return result.image
    image = enlarge(result.metadata.own, result.factor)
    for face in result.faces:
        left, top, right, bottom = box_around(face.matrix, image)
        box = slice(top, bottom), slice(left, right)
        changed = (result.image[box] != result.before[box]).any(2)
        if changed.any():
            image[box][changed] = from_srgb(result.image[box][changed][None], result.metadata.profile)[0]
    return image


def _encoded(image: NDArray[np.uint8], out: Path, metadata: Metadata, quality: int) -> bytes:
    picture = Image.fromarray(image)
    kept = {"exif": metadata.exif, "icc_profile": metadata.profile}
    given: dict[str, Any] = {key: content for key, content in kept.items() if content}
    suffix, buffer = out.suffix.lower(), io.BytesIO()
    try:
        if suffix == ".png":
            # a level above 1 costs seconds for some per cent
            picture.save(buffer, "PNG", compress_level=1, **given)
        elif suffix == ".webp":
            picture.save(buffer, "WEBP", quality=quality, **given)
        else:
            picture.save(buffer, "JPEG", quality=quality, subsampling=0, **given)
    except (ValueError, OSError) as error:
        size = f"{picture.width} x {picture.height}"
        raise ValueError(f"out: {out} cannot hold {size} pixels and their metadata: {error}") from error
    return buffer.getvalue()


def files_of(out: Path) -> tuple[Path, Path]:
    """The enhanced photo, and what is written beside it."""
    return out, out.with_name(f"{out.stem}_side_by_side.png")


def check_places(outs: Sequence[str | Path], inputs: Iterable[str | Path], quality: int = QUALITY) -> None:
    """Check that the files of all results can be written and are none of the inputs.

    Raises:
        ValueError: If not.
    """
    given = {}  # a name may be another one's, by links or by case
    for file in inputs:
        if Path(file).exists():
            given[_identity(Path(file))] = file
    for out in outs:
        for target in files_of(checked_out(out, quality)):
            if target.is_dir():
                raise ValueError(f"out: expected the name of a file, and {target} is a folder")
            if target.exists() and (taken := given.get(_identity(target))):
                raise ValueError(f"out: {target} would overwrite {taken}; take another name")
    folders = {Path(out).absolute().parent: out for out in outs}
    for parent, name in folders.items():
        folder = next((place for place in (parent, *parent.parents) if place.exists()), None)
        if folder is None or not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
            where = folder or parent.anchor
            raise ValueError(f"out: {name} cannot be written, {where} is no folder that may be written to")


def _identity(file: Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_dev, found.st_ino


def summary(result: Enhanced, face: EnhancedFace) -> str:
    """What was done to a face of a photo, in a line."""
    alike = "not compared" if face.identity is None else f"cosine {face.identity.cosine:.2f}"
    size = "photo at its own size" if result.factor == 1 else f"photo enlarged {result.factor} times"
    parts = [
        f"face {face.face_index}: {face.face_side:.0f} -> {len(face.face)} pixels",
        f"entering at {len(face.lr)}",
        *([size] if result.sought else []),  # an aligned crop is no photo around it
        f"identity {alike}",
    ]
    return ", ".join(parts)


def _around_face(image: NDArray[np.uint8], face: EnhancedFace) -> NDArray[np.uint8]:
    """The largest square around the face that has at most 1.5 times its side and lies in the photo."""
    side = min(round(SURROUNDINGS * float(np.hypot(*face.matrix[:, 0]))), *image.shape[:2])
    middle = face.matrix @ (0.5, 0.5, 1)
    left, top = np.rint(middle - side / 2).astype(int).clip(0, (image.shape[1] - side, image.shape[0] - side))
    square = Image.fromarray(image[top : top + side, left : left + side])
    # so that the figure enlarges its other pictures by whole factors, without interpolation
    shown = 2 * len(face.face)
    return np.asarray(square.resize((shown, shown), Image.Resampling.BICUBIC))
