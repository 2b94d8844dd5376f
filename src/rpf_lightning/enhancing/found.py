"""A photo and the faces in it: read and searched once, then enhanced as often as wanted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rpf_lightning.data.image_files import open_image
from rpf_lightning.enhancing import paste as pasting
from rpf_lightning.enhancing.aligned_faces import (
    AlignedFace,
    FaceNetworks,
    RefusedError,
    Search,
    search_faces,
)
from rpf_lightning.enhancing.inputs import Metadata, read_metadata, read_srgb
from rpf_lightning.faces.alignment import check_photo
from rpf_lightning.pictures import MOST_PIXELS, is_grey, to_grey

Photo = str | Path | NDArray[np.uint8]
"""A file, or (H, W, 3) uint8 RGB (sRGB)."""

THUMBNAIL = 128  # pixels


@dataclass(frozen=True)
class LeftFace:
    """A face that stays as it is.

    Attributes:
        index: Which face of the photo, 0 is the largest.
        side: Side of its aligned square in pixels of the photo.
        reason: Why, as the end of a sentence.
    """

    index: int
    side: float
    reason: str

    def __str__(self) -> str:
        return f"face {self.index} ({self.side:.0f} pixels) is left as it is: {self.reason}"


@dataclass(frozen=True, eq=False)
class FoundFace:
    """One face of a photo.

    Attributes:
        index: 0 is the largest.
        box: Left, top, right and bottom in pixels of the photo.
        aligned: The face in its photo.
    """

    index: int
    box: tuple[float, float, float, float]
    aligned: AlignedFace

    @property
    def side(self) -> float:
        """Side of the aligned square in pixels of the photo: the resolution that the face has."""
        return self.aligned.side

    @property
    def thumbnail(self) -> NDArray[np.uint8]:
        """The aligned square, (128, 128, 3) uint8 RGB."""
        return self.aligned.crop(THUMBNAIL)


@dataclass(frozen=True, eq=False)
class FoundFaces:
    """A photo and its faces, which it is a sequence of, the largest first.

    Attributes:
        name: Of the photo, for messages.
        image: (H, W, 3) uint8 RGB; of a grey photo three equal channels.
        grey: Whether it is one.
        faces: At least one, the largest first.
        search: How it was searched.
        metadata: What the photo's file says beside its pixels.
        warnings: What the user should know of the file, as sentences.
    """

    name: str
    image: NDArray[np.uint8]
    grey: bool
    faces: tuple[FoundFace, ...]
    search: Search
    metadata: Metadata
    warnings: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.faces)

    def __iter__(self) -> Iterator[FoundFace]:
        return iter(self.faces)

    def __getitem__(self, index: int) -> FoundFace:
        return self.faces[index]


def find_faces(photo: Photo, networks: FaceNetworks) -> FoundFaces:
    """Read a photo and find its faces, tiny ones too.

    Args:
        photo: A file or an array.
        networks: The detector.

    Returns:
        The faces with index, side, box and thumbnail; `enhance_people` and `enhance_photo` take it in place of the
        photo, which is then not searched again.

    Raises:
        RefusedError: If there is no face, or the photo has too many pixels, see `check_size`.
        FileNotFoundError: If the photo or the detector's weights are missing.
        ValueError: If the photo cannot be read or is no RGB image.
    """
    check_size(photo)
    name, warnings = photo_name(photo, "the photo"), list[str]()
    image, metadata = read(photo, name, warnings), metadata_of(photo, name, warnings)
    if grey := is_grey(image):
        image, metadata = to_grey(image), Metadata(metadata.exif)  # other colours would tint it
    search = search_faces(image, networks.detector)
    if not search.faces:
        missed = f"; {search.hint}" if search.hint else ""
        smaller = "; --face-models insightface finds smaller ones" if networks.models.kind == "dlib" else ""
        raise RefusedError(f"{name}: no face found, sought from {search.smallest} pixels on{missed}{smaller}")
    faces = []
    for index, face in enumerate(search.faces):
        left, top, right, bottom = face.box.tolist()
        faces.append(FoundFace(index, (left, top, right, bottom), AlignedFace.found(image, face)))
    return FoundFaces(name, image, grey, tuple(faces), search, metadata, tuple(warnings))


def check_size(photo: Photo, scale: int | None = None) -> None:
    """Check how many pixels a photo or a portrait has, before anything is decoded.

    Args:
        photo: A file, whose head alone is read, or an array.
        scale: How much it shall be enlarged.

    Raises:
        RefusedError: If it has more than 48 million pixels, or the enlarged one more than 100 million.
        FileNotFoundError: If there is no such file.
        ValueError: If it is no image, or `scale` is below 1.
    """
    if scale is not None and scale < 1:
        raise ValueError(f"scale: expected 1 or more, got {scale}")
    if isinstance(photo, np.ndarray):
        pixels = int(np.prod(photo.shape[:2]))
    else:
        with open_image(Path(photo)) as file:
            pixels = file.width * file.height
    name = photo_name(photo, "the photo")
    cut = "cut it to the surroundings of the face"
    if pixels > MOST_PIXELS:
        raise RefusedError(f"{name} has {pixels / 1e6:.0f} million pixels, expected 48 at most: {cut}")
    if scale and scale > 1 and scale**2 * pixels > pasting.MAX_PIXELS:
        raise RefusedError(
            f"{name} has {pixels / 1e6:.1f} million pixels, {scale} times as large {scale**2 * pixels / 1e6:.0f} "
            f"million, expected {pasting.MAX_PIXELS / 1e6:.0f} at most: {cut} or take a smaller --scale"
        )


def photo_name(photo: Photo, otherwise: str) -> str:
    """What messages call a photo: the file, or another name where it is an array."""
    return otherwise if isinstance(photo, np.ndarray) else str(photo)


def read(photo: Photo, name: str, warnings: list[str]) -> NDArray[np.uint8]:
    """Read a photo as (H, W, 3) uint8 sRGB; `warnings` gets a sentence on what could not be read."""
    if not isinstance(photo, np.ndarray):
        return read_srgb(Path(photo), name, warnings)
    try:
        check_photo(photo)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    return photo


def metadata_of(photo: Photo, name: str, warnings: list[str]) -> Metadata:
    """What a photo's file says beside its pixels; nothing for an array."""
    return Metadata() if isinstance(photo, np.ndarray) else read_metadata(Path(photo), name, warnings)
