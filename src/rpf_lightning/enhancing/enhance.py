"""The road from a photo and portraits to the enhanced photo."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from rpf_lightning.data.image_files import open_image
from rpf_lightning.enhancing import paste as pasting
from rpf_lightning.enhancing.aligned_faces import AlignedFace, FaceNetworks, MaskOf, RefusedError
from rpf_lightning.enhancing.choosing import nearest_reference, photo_face, reference_face, upright
from rpf_lightning.enhancing.covered import Cover, cover_of, glasses_of, uncovered
from rpf_lightning.enhancing.identity_check import (
    OTHER,
    SAME,
    SMALLEST_SIDE,
    Comparison,
    comparable,
    compare,
    not_measured,
)
from rpf_lightning.enhancing.inputs import Metadata, read_metadata, read_srgb
from rpf_lightning.enhancing.paste import corrected, enlarge, enlargement, paste
from rpf_lightning.faces.alignment import check_photo
from rpf_lightning.model import RPFModel
from rpf_lightning.model.resize import resize_mask
from rpf_lightning.pictures import is_grey, to_grey, to_tensor, to_uint8

Photo = str | Path | NDArray[np.uint8]
"""A file, or (H, W, 3) uint8 RGB (sRGB)."""

MOST_PIXELS = 48.5e6  # of a photo; cameras of "48 megapixels" have a little more
MASK_SIDE = 512  # of the faces that the masks of training are made from


@dataclass(frozen=True, eq=False)
class Enhanced:
    """An enhanced photo and how it came about.

    Attributes:
        image: (H factor, W factor, 3) uint8 RGB: the photo, enlarged, with the face, which is corrected by the
            photo's own pixels (`back_project`); of an aligned crop the face alone.
        before: The same size: the enlarged photo without the face; of an aligned crop its enlargement.
        face: (S, S, 3) uint8, what the model made.
        lr: (l, l, 3) uint8, what it was given, l = L * 2^k.
        reference: (S, S, 3) uint8, the aligned reference, without what covers it (`covered.uncovered`).
        mask: (S, S) uint8, 1 on the reference's face and 0 elsewhere.
        matrix: (2, 3) float64: fractions of the face's aligned square -> pixels of `image`.
        face_index: Which face of the photo, 0 is the largest.
        face_side: Side of the aligned square in pixels of the photo: the resolution that the face had.
        reference_index: Which reference.
        factor: How much the photo was enlarged; 1 of an aligned crop.
        identity: How alike face and reference are; None where it was not compared.
        warnings: What the user should know, as sentences.
        sought: From which side on faces were sought, in pixels of the photo; 0 of an aligned crop.
        metadata: What the photo's file says beside its pixels.
    """

    image: NDArray[np.uint8]
    before: NDArray[np.uint8]
    face: NDArray[np.uint8]
    lr: NDArray[np.uint8]
    reference: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    matrix: NDArray[np.float64]
    face_index: int
    face_side: float
    reference_index: int
    factor: int
    identity: Comparison | None
    warnings: tuple[str, ...]
    sought: int = 0
    metadata: Metadata = field(default_factory=Metadata)


def enhance_photo(
    photo: Photo,
    references: Sequence[Photo],
    model: RPFModel,
    networks: FaceNetworks | None = None,
    face: int | None = None,
    force: bool = False,
    scale: int | None = None,
) -> Enhanced:
    """Super-resolve one face of a photo with a portrait of the same person, and paste it back.

    Args:
        photo: Where a face is smaller than the model's output.
        references: One or more portraits of the person, one large face each. Of those that surely match, else of those
            that were compared, the one whose pose is nearest is used; those whose face is covered come last.
        model: On any device; it is put into eval mode.
        networks: Detector, ArcFace and mask; None: `FaceNetworks()`.
        face: Which face of the photo, 0 is the largest; None: the only one, or the one that the references match.
        force: Enhance although the references clearly show another person.
        scale: How much the photo is enlarged, 1 for its own size; None: as the face needs it.

    Raises:
        RefusedError: If a photo shows no face, several without a choice, or one that cannot be aligned upright; if the
            face is as large as the model's
            output already; if the photo is too large to be enlarged; if every reference clearly shows another person.
        FileNotFoundError: If a photo or weights are missing.
        ValueError: If a photo cannot be read or is no RGB image, or there is no list of references.
    """
    networks = networks or FaceNetworks()
    if isinstance(references, str | Path | np.ndarray):
        raise ValueError("references: expected a list of portraits, got a single one")
    names = [_name(reference, f"reference {i}") for i, reference in enumerate(references)]
    if not names:
        raise ValueError("references: expected one portrait at least, got none")
    warnings: list[str] = []
    name = _name(photo, "the photo")
    check_size(photo, scale)
    image, metadata = _read(photo, name, warnings), _metadata(photo, name, warnings)
    if grey := is_grey(image):
        image, metadata = to_grey(image), Metadata(metadata.exif)  # other colours would tint it
    mask_of = networks.mask  # first of all: searching a photo takes a while
    portraits = [
        reference_face(_read(reference, name, warnings), name, networks)
        for reference, name in zip(references, names, strict=True)
    ]
    index, found, search = photo_face(image, name, face, portraits, networks)
    label = f"face {index} of {name}"
    found = upright(found, search.faces[index], label, networks)
    _refuse_large(found, label, model, search.hint)
    factor, limited = (scale, False) if scale else enlargement(image, found.side, model.size)
    compared = [compare(found, portrait, networks) for portrait in portraits]
    unknown = not_measured(networks) if any(compared) else ""
    allowed = _same_person(compared, label, found, names, force, warnings, unknown, search.hint)
    covers = {i: cover_of(portraits[i], networks.labels) for i in allowed}
    allowed = [i for i in allowed if not covers[i].hides(glasses_of(found))] or allowed
    chosen = allowed[nearest_reference(found, [portraits[i] for i in allowed])]
    lr, sharp, reference, mask = _super_resolve(
        found, label, portraits[chosen], names[chosen], model, mask_of, warnings, grey, covers[chosen]
    )
    if factor == 1 or limited:
        how = "it keeps its size" if factor == 1 else f"enlarged {factor} times only, since it is large"
        warnings.append(
            f"{name}: {how}; the face has {found.side * factor:.0f} pixels there and loses detail. Cut the photo to "
            "the surroundings of the face to keep it"
        )
    before = enlarge(image, factor)
    matrix = found.matrix * factor
    return Enhanced(
        corrected(paste(before, sharp, matrix), image, matrix), before, sharp, lr, reference, mask, matrix, index,
        found.side, chosen, factor, compared[chosen], tuple(warnings), search.smallest, metadata,
    )  # fmt: skip


def enhance_aligned(
    photo: Photo,
    reference: Photo,
    model: RPFModel,
    networks: FaceNetworks | None = None,
    force: bool = False,
) -> Enhanced:
    """Super-resolve a crop that is aligned as in CelebA-HQ and FFHQ, with an aligned reference; detects nothing.

    Args:
        photo: Square, smaller than the model's output.
        reference: Square, of any size.
        model: On any device; it is put into eval mode.
        networks: ArcFace and mask; None: `FaceNetworks()`. Without ArcFace's weights the identity is not compared.
        force: Enhance although the reference clearly shows another person.

    Raises:
        RefusedError: If the crop is as large as the model's output already, or the reference is another person.
        FileNotFoundError: If a photo or the mask's weights are missing.
        ValueError: If a photo cannot be read or is not square.
    """
    networks = networks or FaceNetworks()
    name, reference_name = _name(photo, "the photo"), _name(reference, "the reference")
    warnings: list[str] = []
    check_size(photo)
    image, metadata = _read(photo, name, warnings), _metadata(photo, name, warnings)
    metadata = Metadata(metadata.exif)  # there is no photo around the face whose colours it has to meet
    grey = is_grey(image)
    found = AlignedFace.whole(to_grey(image) if grey else image, name)
    portrait = AlignedFace.whole(_read(reference, reference_name, warnings), reference_name)
    _refuse_large(found, name, model)
    mask_of = networks.mask  # before ArcFace's weights, which may be fetched
    try:
        compared = compare(found, portrait, networks)
        unknown = not_measured(networks) if compared else ""
    except FileNotFoundError as error:
        compared = None
        warnings.append(f"whether {reference_name} shows the same person was not compared: {error}")
    else:
        _same_person([compared], name, found, [reference_name], force, warnings, unknown)
    cover = cover_of(portrait, networks.labels)
    lr, sharp, square, mask = _super_resolve(
        found, name, portrait, reference_name, model, mask_of, warnings, grey, cover
    )
    matrix = np.array([[model.size, 0, 0], [0, model.size, 0]], np.float64)
    return Enhanced(
        corrected(sharp, found.image), found.crop(model.size), sharp, lr, square, mask, matrix, 0, found.side, 0, 1,
        compared, tuple(warnings), 0, metadata,
    )  # fmt: skip


def check_size(photo: Photo, scale: int | None = None) -> None:
    """Check how many pixels a photo has, before anything is computed.

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
    name = _name(photo, "the photo")
    cut = "cut it to the surroundings of the face"
    if pixels > MOST_PIXELS:
        raise RefusedError(f"{name} has {pixels / 1e6:.0f} million pixels, expected 48 at most: {cut}")
    if scale and scale > 1 and scale**2 * pixels > pasting.MAX_PIXELS:
        raise RefusedError(
            f"{name} has {pixels / 1e6:.1f} million pixels, {scale} times as large {scale**2 * pixels / 1e6:.0f} "
            f"million, expected {pasting.MAX_PIXELS / 1e6:.0f} at most: {cut} or take a smaller --scale"
        )


def entry_side(model: RPFModel, face_side: float) -> int:
    """Side at which a face enters the model: L * 2^k, as far as the face has it, L at least."""
    return max([side for side in model.config.entry_sides if side <= face_side], default=model.lr_size)


def _name(photo: Photo, otherwise: str) -> str:
    return otherwise if isinstance(photo, np.ndarray) else str(photo)


def _read(photo: Photo, name: str, warnings: list[str]) -> NDArray[np.uint8]:
    if not isinstance(photo, np.ndarray):
        return read_srgb(Path(photo), name, warnings)
    try:
        check_photo(photo)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    return photo


def _metadata(photo: Photo, name: str, warnings: list[str]) -> Metadata:
    return Metadata() if isinstance(photo, np.ndarray) else read_metadata(Path(photo), name, warnings)


def _refuse_large(face: AlignedFace, label: str, model: RPFModel, hint: str = "") -> None:
    if face.side >= model.size:
        raise RefusedError(
            f"{label} has {face.side:.0f} pixels already, and the model makes {model.size}: nothing to gain"
            + (f"; {hint}" if hint else "")
        )


def _same_person(
    compared: Sequence[Comparison | None],
    label: str,
    face: AlignedFace,
    names: Sequence[str],
    force: bool,
    warnings: list[str],
    unknown: str,
    hint: str = "",
) -> list[int]:
    """Places of the references that may be used: matches if there are any, else those compared, else the others.

    `unknown` is not empty where the limits were not measured for the network: then it is a warning and nothing is
    refused. `hint` ends a refusal.
    """
    if not comparable(face):
        warnings.append(
            f"{label} has {face.side:.0f} pixels, too few to tell people apart (from {SMALLEST_SIDE} on): make "
            "sure yourself that the reference shows the same person"
        )
        return list(range(len(names)))
    if unknown:
        warnings.append(unknown)
    others = {}
    for place, found in enumerate(compared):
        if found is None:
            warnings.append(f"{names[place]}: its face is below {SMALLEST_SIDE} pixels, too small to compare")
        elif unknown:
            warnings.append(f"{names[place]} and {label}: their cosine is {found.cosine:.3f}")
        elif found.differs:
            others[place] = (
                f"{names[place]} is clearly another person than {label}: their cosine is {found.cosine:.3f}, and that "
                f"of two photos of one person hardly ever below {OTHER}"
            )
        elif not found.matches:
            warnings.append(
                f"{names[place]} may be another person than {label}: their cosine is {found.cosine:.3f}, a sure match "
                f"has {SAME} or more"
            )
    if len(others) == len(names) and not force:
        missed = f". {hint.capitalize()}" if hint else ""
        raise RefusedError("; ".join(others.values()) + f". --force enhances nevertheless{missed}")
    warnings += others.values()
    sure = [place for place, found in enumerate(compared) if found and found.matches]
    doubtful = [place for place, found in enumerate(compared) if found and place not in others]
    return sure or doubtful or [place for place in range(len(names)) if place not in others] or list(others)


def _super_resolve(
    face: AlignedFace,
    label: str,
    portrait: AlignedFace,
    name: str,
    model: RPFModel,
    mask_of: MaskOf,
    warnings: list[str],
    grey: bool,
    cover: Cover,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]:
    """LR, output, aligned reference and its mask; the output of a grey photo is grey, whatever the reference is."""
    if face.side < model.lr_size:
        warnings.append(
            f"{label} has {face.side:.0f} pixels, less than the {model.lr_size} that the model was made for: expect "
            "little likeness"
        )
    if portrait.side < model.size:
        warnings.append(
            f"{name}: its face has {portrait.side:.0f} pixels, less than the {model.size} of the output; a larger "
            "portrait gives more detail"
        )
    lr, reference = face.crop(entry_side(model, face.side)), portrait.crop(model.size)
    try:
        large = mask_of(portrait.crop(MASK_SIDE))
    except ValueError as error:
        raise RefusedError(f"{name}: {error}") from error
    reference, large, told = uncovered(reference, large, cover, glasses_of(face), name)
    warnings += told
    device = next(model.parameters()).device
    with torch.inference_mode():
        mask = resize_mask(torch.from_numpy(large.astype(np.float32))[None, None], model.size)
        output = model.eval()(to_tensor(lr).to(device), to_tensor(reference).to(device), mask.to(device))[0]
    sharp = to_uint8(output)
    return lr, to_grey(sharp) if grey else sharp, reference, mask[0, 0].numpy().astype(np.uint8)
