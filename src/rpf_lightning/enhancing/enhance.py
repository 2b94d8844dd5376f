"""The road from a photo and portraits to the enhanced photo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rpf_lightning.enhancing.aligned_faces import AlignedFace, FaceNetworks, MaskOf, RefusedError
from rpf_lightning.enhancing.choosing import check_index, chosen_face, nearest_reference, upright
from rpf_lightning.enhancing.covered import Cover, cover_of, glasses_of, uncovered
from rpf_lightning.enhancing.found import (
    FoundFaces,
    LeftFace,
    Photo,
    check_size,
    find_faces,
    metadata_of,
    photo_name,
    read,
)
from rpf_lightning.enhancing.identity_check import (
    Comparison,
    Limits,
    compare,
    limits_of,
    not_measured,
)
from rpf_lightning.enhancing.inputs import Metadata
from rpf_lightning.enhancing.paste import corrected, enlarge, enlargement, paste
from rpf_lightning.enhancing.portraits import Portrait, check_portraits, read_portraits
from rpf_lightning.enhancing.results import Enhanced, EnhancedFace
from rpf_lightning.faces.glasses import Glasses
from rpf_lightning.model import RPFModel
from rpf_lightning.model.resize import resize_mask
from rpf_lightning.pictures import is_grey, to_grey, to_tensor, to_uint8

MASK_SIDE = 512  # of the faces that the masks of training are made from


def enhance_people(
    photo: Photo | FoundFaces,
    people: Mapping[int, Sequence[Photo | Portrait]],
    model: RPFModel,
    networks: FaceNetworks | None = None,
    force: bool = False,
    scale: int | None = None,
) -> Enhanced:
    """Super-resolve several faces of a photo, each with portraits of its person, and paste them back.

    The photo is enlarged once, as its smallest of these faces needs it; the faces are pasted one after another, the
    largest last.

    Args:
        photo: The photo, or what `find_faces` found in it.
        people: Face -> one or more portraits of its person, one large face each; 0 is the largest face of the photo.
            Of the portraits that surely match, else of those that were compared, a model with `synthesis_copy` gets
            all, another one the one whose pose is nearest; those whose face is covered come last.
        model: On any device; it is put into eval mode.
        networks: Detector, recogniser and mask; None: `FaceNetworks()`.
        force: Enhance although the portraits of a face clearly show another person.
        scale: How much the photo is enlarged, 1 for its own size; None: as the smallest face needs it.

    Returns:
        The photo with one record per face. Faces that are as large as the model's output already are left as they are
        if there is another one.

    Raises:
        RefusedError: If a photo shows no face, or one that cannot be aligned upright, or the photo has none of an
            index; if all faces are as large as the
            model's output already; if a photo or portrait is too large, or the photo is too large to be enlarged; if
            every portrait of a face clearly shows
            another person. All of this is known before the first face is super-resolved.
        FileNotFoundError: If a photo or weights are missing.
        ValueError: If a photo cannot be read or is no RGB image, or there is no list of portraits.
    """
    networks = networks or FaceNetworks()
    if not people:
        raise ValueError("people: expected a face and its portraits at least, got none")
    check_size(photo.image if isinstance(photo, FoundFaces) else photo, scale)
    for index, given in people.items():
        check_portraits(given, f"people, face {index}")
    mask_of = networks.mask  # first of all: searching a photo takes a while
    portraits = {
        index: read_portraits(people[index], f"people, face {index}", networks, f"face {index}'s portrait")
        for index in sorted(people)
    }
    found = photo if isinstance(photo, FoundFaces) else find_faces(photo, networks)
    warnings = [
        *found.warnings,
        *(text for each in portraits.values() for one in each for text in one.warnings),
    ]
    for index in portraits:
        check_index(found, index)
    labels = {index: f"face {index} of {found.name}" for index in portraits}
    aligned = {
        index: upright(found[index].aligned, found.search.faces[index], labels[index], networks)
        for index in portraits
    }
    todo = [index for index in portraits if aligned[index].side < model.size]
    if not todo:
        texts = [_nothing_to_gain(labels[index], aligned[index], model) for index in portraits]
        raise RefusedError("; ".join([*texts, *([found.search.hint] if found.search.hint else [])]))
    left = [
        LeftFace(index, aligned[index].side, f"it is large enough, the model makes {model.size} pixels")
        for index in portraits
        if index not in todo
    ]
    smallest = min(aligned[index].side for index in todo)
    factor, limited = (scale, False) if scale else enlargement(found.image, smallest, model.size)
    chosen = {
        index: _chosen(
            aligned[index],
            labels[index],
            portraits[index],
            model,
            networks,
            force,
            warnings,
            found.search.hint,
        )
        for index in todo
    }
    faces = []
    for index, (places, covers, identity) in chosen.items():
        face, used = aligned[index], [portraits[index][place] for place in places]
        lr, sharp, references, masks = _super_resolve(
            face, labels[index], [one.face for one in used], [one.name for one in used], model, mask_of, warnings,
            found.grey, covers,
        )  # fmt: skip
        enhanced = EnhancedFace(
            sharp, lr, references, masks, face.matrix * factor, index, face.side, tuple(places),
            tuple(one.name for one in used), identity,
        )  # fmt: skip
        faces.append(enhanced)
    if factor == 1 or limited:
        how = "it keeps its size" if factor == 1 else f"enlarged {factor} times only, since it is large"
        which = "the face" if len(faces) == 1 else "the smallest face"
        warnings.append(
            f"{found.name}: {how}; {which} has {smallest * factor:.0f} pixels there and loses detail. Cut the photo to "
            "the surroundings of the face to keep it"
        )
    before = enlarge(found.image, factor)
    image = before
    for enhanced in reversed(faces):  # the largest is nearest to the camera
        image = corrected(paste(image, enhanced.face, enhanced.matrix), found.image, enhanced.matrix)
    return _result(
        faces, image=image, before=before, factor=factor, warnings=tuple(dict.fromkeys(warnings)), left=tuple(left),
        sought=found.search.smallest, metadata=found.metadata,
    )  # fmt: skip


def enhance_photo(
    photo: Photo | FoundFaces,
    references: Sequence[Photo | Portrait],
    model: RPFModel,
    networks: FaceNetworks | None = None,
    face: int | None = None,
    force: bool = False,
    scale: int | None = None,
) -> Enhanced:
    """Super-resolve one face of a photo with portraits of the same person, and paste it back: see `enhance_people`.

    Args:
        photo: Where a face is smaller than the model's output; or what `find_faces` found in it.
        references: One or more portraits of the person, one large face each.
        model: On any device; it is put into eval mode.
        networks: Detector, recogniser and mask; None: `FaceNetworks()`.
        face: Which face of the photo, 0 is the largest; None: the only one, or the one that the references match.
        force: Enhance although the references clearly show another person.
        scale: How much the photo is enlarged, 1 for its own size; None: as the face needs it.

    Raises:
        RefusedError: As `enhance_people`, and if there are several faces without a choice.
        FileNotFoundError: If a photo or weights are missing.
        ValueError: If a photo cannot be read or is no RGB image, or there is no list of references.
    """
    networks = networks or FaceNetworks()
    check_size(photo.image if isinstance(photo, FoundFaces) else photo, scale)
    check_portraits(references, "references")
    networks.mask  # noqa: B018  # first of all: searching a photo takes a while
    portraits = read_portraits(references, "references", networks, "reference")
    found = photo if isinstance(photo, FoundFaces) else find_faces(photo, networks)
    index = chosen_face(found, face, [portrait.face for portrait in portraits], networks)
    return enhance_people(found, {index: portraits}, model, networks, force, scale)


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
        networks: Recogniser and mask; None: `FaceNetworks()`. Without the recogniser's weights the identity is not
            compared.
        force: Enhance although the reference clearly shows another person.

    Raises:
        RefusedError: If the crop is as large as the model's output already, a photo is too large, or the reference is
            another person.
        FileNotFoundError: If a photo or the mask's weights are missing.
        ValueError: If a photo cannot be read or is not square.
    """
    networks = networks or FaceNetworks()
    name, reference_name = photo_name(photo, "the photo"), photo_name(reference, "the reference")
    warnings: list[str] = []
    check_size(photo)
    check_size(reference)
    image, metadata = read(photo, name, warnings), metadata_of(photo, name, warnings)
    metadata = Metadata(metadata.exif)  # there is no photo around the face whose colours it has to meet
    grey = is_grey(image)
    found = AlignedFace.whole(to_grey(image) if grey else image, name)
    portrait = AlignedFace.whole(read(reference, reference_name, warnings), reference_name)
    if found.side >= model.size:
        raise RefusedError(_nothing_to_gain(name, found, model))
    mask_of = networks.mask  # before the recogniser's weights, which may be fetched
    try:
        compared = compare(found, portrait, networks)
        unknown = not_measured(networks) if compared else ""
    except FileNotFoundError as error:
        compared = None
        warnings.append(f"whether {reference_name} shows the same person was not compared: {error}")
    else:
        limits = limits_of(networks)
        _same_person([compared], limits, name, found, [reference_name], force, warnings, unknown)
    covers = [cover_of(portrait, networks.labels)]
    lr, sharp, references, masks = _super_resolve(
        found, name, [portrait], [reference_name], model, mask_of, warnings, grey, covers
    )
    matrix = np.array([[model.size, 0, 0], [0, model.size, 0]], np.float64)
    face = EnhancedFace(
        sharp, lr, references, masks, matrix, 0, found.side, (0,), (reference_name,), compared
    )
    return _result(
        [face], image=corrected(sharp, found.image), before=found.crop(model.size), factor=1,
        warnings=tuple(warnings), metadata=metadata,
    )  # fmt: skip


def _result(faces: Sequence[EnhancedFace], **photo: Any) -> Enhanced:
    return Enhanced(**vars(faces[0]), faces=tuple(faces), **photo)


def entry_side(model: RPFModel, face_side: float) -> int:
    """Side at which a face enters the model: L * 2^k, as far as the face has it, L at least."""
    return max([side for side in model.config.entry_sides if side <= face_side], default=model.lr_size)


def _nothing_to_gain(label: str, face: AlignedFace, model: RPFModel) -> str:
    return f"{label} has {face.side:.0f} pixels already, and the model makes {model.size}: nothing to gain"


def _chosen(
    face: AlignedFace,
    label: str,
    portraits: Sequence[Portrait],
    model: RPFModel,
    networks: FaceNetworks,
    force: bool,
    warnings: list[str],
    hint: str,
) -> tuple[list[int], list[Cover], Comparison | None]:
    """Places of the portraits for a face, the nearest pose first; their covers; how alike the first is."""
    compared = [compare(face, portrait.face, networks) for portrait in portraits]
    unknown = not_measured(networks) if any(compared) else ""
    names = [portrait.name for portrait in portraits]
    limits = limits_of(networks)
    allowed = _same_person(compared, limits, label, face, names, force, warnings, unknown, hint)
    covers = {place: cover_of(portraits[place].face, networks.labels) for place in allowed}
    glasses = glasses_of(face)
    allowed = [place for place in allowed if not covers[place].hides(glasses)] or allowed
    nearest = allowed[nearest_reference(face, [portraits[place].face for place in allowed])]
    others = [place for place in allowed if place != nearest] if model.config.synthesis_copy else []
    places = [nearest, *others]
    return places, [covers[place] for place in places], compared[nearest]


def _same_person(
    compared: Sequence[Comparison | None],
    limits: Limits,
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
    if face.side < limits.smallest_side:
        warnings.append(
            f"{label} has {face.side:.0f} pixels, too few to tell people apart (from {limits.smallest_side} on): make "
            "sure yourself that the reference shows the same person"
        )
        return list(range(len(names)))
    if unknown:
        warnings.append(unknown)
    others = {}
    for place, found in enumerate(compared):
        if found is None:
            warnings.append(
                f"{names[place]}: its face is below {limits.smallest_side} pixels, too small to compare"
            )
        elif unknown:
            warnings.append(f"{names[place]} and {label}: their cosine is {found.cosine:.3f}")
        elif found.differs:
            others[place] = (
                f"{names[place]} is clearly another person than {label}: their cosine is {found.cosine:.3f}, and that "
                f"of two photos of one person hardly ever below {limits.other}"
            )
        elif not found.matches:
            warnings.append(
                f"{names[place]} may be another person than {label}: their cosine is {found.cosine:.3f}, a sure match "
                f"has {limits.same} or more"
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
    portraits: Sequence[AlignedFace],
    names: Sequence[str],
    model: RPFModel,
    mask_of: MaskOf,
    warnings: list[str],
    grey: bool,
    covers: Sequence[Cover],
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]:
    """LR, output, aligned references and their masks; the output of a grey photo is grey, whatever the references are.

    Several portraits go to a model that takes several references.
    """
    if face.side < model.lr_size:
        warnings.append(
            f"{label} has {face.side:.0f} pixels, less than the {model.lr_size} that the model was made for: expect "
            "little likeness"
        )
    lr = face.crop(entry_side(model, face.side))
    pairs = [
        _masked(portrait, name, model.size, mask_of, warnings, cover, glasses_of(face))
        for portrait, name, cover in zip(portraits, names, covers, strict=True)
    ]
    references = torch.cat([to_tensor(reference) for reference, _ in pairs])
    masks = torch.stack([mask for _, mask in pairs])
    given = [references, masks] if len(pairs) == 1 else [references[None], masks[None]]  # (1, K, ., S, S)
    device = next(model.parameters()).device
    with torch.inference_mode():
        output = model.eval()(to_tensor(lr).to(device), *(each.to(device) for each in given))[0]
    sharp = to_uint8(output)
    return (
        lr,
        to_grey(sharp) if grey else sharp,
        np.stack([reference for reference, _ in pairs]),
        masks[:, 0].numpy().astype(np.uint8),
    )


def _masked(
    portrait: AlignedFace,
    name: str,
    size: int,
    mask_of: MaskOf,
    warnings: list[str],
    cover: Cover,
    photo: Glasses,
) -> tuple[NDArray[np.uint8], torch.Tensor]:
    """The aligned reference, (S, S, 3), and its mask, (1, S, S) of 0 and 1, both without what covers it."""
    if portrait.side < size:
        warnings.append(
            f"{name}: its face has {portrait.side:.0f} pixels, less than the {size} of the output; a larger "
            "portrait gives more detail"
        )
    reference = portrait.crop(size)
    try:
        large = mask_of(portrait.crop(MASK_SIDE))
    except ValueError as error:
        raise RefusedError(f"{name}: {error}") from error
    reference, large, told = uncovered(reference, large, cover, photo, name)
    warnings += told
    return reference, resize_mask(torch.from_numpy(large.astype(np.float32))[None, None], size)[0]
