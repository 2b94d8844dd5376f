"""What covers a reference: glasses, hair, hands; by parsing maps that are written here, and in real photos."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from rpf_lightning.data.image_files import read_photo
from rpf_lightning.enhancing import FaceNetworks, covered, enhance_aligned, enhance_photo
from rpf_lightning.enhancing.aligned_faces import AlignedFace
from rpf_lightning.enhancing.covered import Cover, cover_of, uncovered
from rpf_lightning.faces.glasses import Glasses
from rpf_lightning.faces.labels import BISENET, CELEBAMASK_HQ
from rpf_lightning.faces.parsing import template_mask
from rpf_lightning.model import RPFModel

Draw = Callable[..., NDArray[np.uint8]]
Labels = NDArray[np.uint8]
NONE, CLEAR, DARK = Glasses(False, False), Glasses(True, False), Glasses(True, True)


def put(labels: Labels, name: str, top: float, bottom: float, left: float, right: float) -> None:
    rows, columns = slice(round(top * 512), round(bottom * 512)), slice(round(left * 512), round(right * 512))
    labels[rows, columns] = BISENET.index(name)


def parsing_map(*things: tuple[str, float, float, float, float], eyes: bool = True) -> Labels:
    """A face of skin with eyes, nose and lips, and what is put over it."""
    labels = template_mask(512) * np.uint8(BISENET.index("skin"))
    put(labels, "nose", 0.5, 0.62, 0.45, 0.55)
    put(labels, "u_lip", 0.7, 0.74, 0.4, 0.6)
    if eyes:
        put(labels, "l_eye", 0.45, 0.5, 0.57, 0.67)
        put(labels, "r_eye", 0.45, 0.5, 0.33, 0.43)
    for thing in things:
        put(labels, *thing)
    return labels


GLASSES = [("eye_g", 0.42, 0.44, 0.25, 0.75), ("eye_g", 0.52, 0.56, 0.25, 0.75)]
LENSES = [("eye_g", 0.42, 0.56, 0.25, 0.75)]


def face_of(labels: Labels, light: int = 200, at_eyes: int | None = None) -> AlignedFace:
    image = np.full((512, 512, 3), light, np.uint8)
    if at_eyes is not None:
        image[220:290, 130:380] = at_eyes
    return AlignedFace.whole(image, "")


def cover(labels: Labels, **light: Any) -> Cover:
    return cover_of(face_of(labels, **light), lambda _: labels)


def test_a_free_face() -> None:
    found = cover(parsing_map())
    assert (found.glasses, found.region, found.things) == (NONE, None, ())
    mask, image = template_mask(512), np.zeros((64, 64, 3), np.uint8)
    reference, kept, told = uncovered(image, mask, found, NONE, "ref.png")
    np.testing.assert_array_equal(kept, mask)
    np.testing.assert_array_equal(reference, image)
    assert told == []
    assert not any(found.hides(photo) for photo in (NONE, CLEAR, DARK))
    closed = cover(parsing_map(eyes=False))  # skin where the eyes would be
    assert (closed.glasses, closed.things) == (NONE, ())


@pytest.mark.parametrize(
    ("things", "eyes", "at_eyes", "wanted"),
    [
        (GLASSES, True, None, CLEAR),
        (GLASSES, True, 70, DARK),  # the network guesses eyes behind dark lenses
        (LENSES, False, None, DARK),  # mirrored ones are bright
        ([("eye_g", 0.1, 0.2, 0.25, 0.75)], True, None, NONE),  # worn on the hair
    ],
)
def test_glasses_of_a_parsing_map(things: Any, eyes: bool, at_eyes: int | None, wanted: Glasses) -> None:
    assert cover(parsing_map(*things, eyes=eyes), at_eyes=at_eyes).glasses == wanted


@pytest.mark.parametrize(
    ("thing", "told"),
    [
        (("hair", 0.2, 0.6, 0.2, 0.5), "hair or a hat covers an eye"),
        (("hat", 0.2, 0.52, 0.2, 0.8), "hair or a hat covers an eye"),
        (("background", 0.42, 0.56, 0.2, 0.8), "something covers an eye"),
        (("background", 0.6, 0.9, 0.3, 0.6), "nose and mouth"),
        (("cloth", 0.6, 0.9, 0.3, 0.6), "nose and mouth"),
    ],
)
def test_things_before_the_face_are_a_warning(thing: Any, told: str) -> None:
    found = cover(parsing_map(thing))
    assert len(found.things) == 1
    assert found.hides(NONE)
    *_, (warning,) = uncovered(np.zeros((64, 64, 3), np.uint8), template_mask(512), found, NONE, "ref.png")
    assert warning.startswith("ref.png: ")
    assert told in warning


def test_things_beside_the_face_are_none() -> None:
    for thing in (("hair", 0, 0.4, 0, 1), ("hair", 0.3, 1, 0.7, 1), ("background", 0.5, 1, 0, 0.35)):
        assert cover(parsing_map(thing)).things == ()


@pytest.mark.parametrize("photo", [NONE, CLEAR, DARK])
@pytest.mark.parametrize("worn", [CLEAR, DARK])
def test_glasses_that_the_photo_does_not_show(worn: Glasses, photo: Glasses) -> None:
    """Those that it shows stay; dark ones are foreign to clear ones, since they hide the eyes."""
    region = np.zeros((512, 512), bool)
    region[200:300] = True
    found, mask = Cover(worn, region), template_mask(512)
    image = np.tile(np.arange(64, dtype=np.uint8)[:, None, None], (1, 64, 3))
    reference, kept, told = uncovered(image, mask, found, photo, "ref.png")
    foreign = photo == NONE or (worn == DARK and photo == CLEAR)
    assert found.hides(photo) == foreign
    assert len(told) == foreign
    assert (reference != image).any() == foreign
    assert (kept != mask).any() == (foreign and worn == DARK)


def test_dark_glasses_are_masked_out() -> None:
    mask, image = template_mask(512), np.zeros((64, 64, 3), np.uint8)
    dark = cover(parsing_map(*LENSES, eyes=False))
    reference, kept, (warning,) = uncovered(image, mask, dark, NONE, "ref.png")
    np.testing.assert_array_equal(reference, image)
    assert warning.startswith("ref.png shows dark glasses that the photo does not: they are masked out")
    rows, columns = np.nonzero(mask != kept)
    np.testing.assert_allclose((rows.min(), rows.max()), (0.42 * 512, 0.56 * 512), atol=6)
    np.testing.assert_allclose((columns.min(), columns.max()), (0.25 * 512, 0.75 * 512), atol=6)


def test_clear_glasses_are_painted_over() -> None:
    """With what is around them, and the eyes behind them stay."""
    labels = parsing_map(*GLASSES)
    image = np.full((512, 512, 3), (200, 150, 120), np.uint8)
    image[labels == BISENET.index("eye_g")] = 0
    eye = (labels == BISENET.index("l_eye")) | (labels == BISENET.index("r_eye"))
    image[eye] = (30, 60, 90)
    image[labels == 0] = 255  # is not around the glasses
    mask = template_mask(512)
    reference, kept, (warning,) = uncovered(image, mask, cover(labels), NONE, "ref.png")
    np.testing.assert_array_equal(kept, mask)
    np.testing.assert_array_equal(reference[eye], image[eye])
    assert "they are painted over" in warning
    differs = np.abs(reference.astype(int) - (200, 150, 120)).max(2)
    glasses = (labels == BISENET.index("eye_g")) & (mask > 0)
    assert differs[glasses].mean() < 30  # near the eyes with these
    assert differs[275:][glasses[275:]].max() < 60  # the lower rim, away from them; it was 200
    assert (reference[400:] == image[400:]).all()


def test_where_clear_glasses_are_is_not_known_without_a_network() -> None:
    mask, image = template_mask(512), np.zeros((64, 64, 3), np.uint8)
    reference, kept, (warning,) = uncovered(image, mask, Cover(CLEAR), NONE, "ref.png")
    np.testing.assert_array_equal(kept, mask)
    np.testing.assert_array_equal(reference, image)
    assert "--mask-model bisenet" in warning
    assert "rims may appear" in warning


@pytest.fixture
def worn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dark glasses are told by green."""
    monkeypatch.setattr(covered, "find_glasses", lambda face: DARK if face[..., 1].mean() > 40 else NONE)


@pytest.mark.usefixtures("worn")
def test_covered_references_come_last(
    drawn: Draw, networks: Any, bicubic: RPFModel, portraits: Sequence[NDArray[np.uint8]]
) -> None:
    """Whatever their pose; one alone is used, without what covers it, and that is said."""
    free, dark = portraits[1], portraits[0]  # this one has green, and a nose to the side
    for green, chosen in ((0, 1), (50, 0)):
        photo = drawn(160, 120, (70, 40, 24, 0), green=green)
        result = enhance_photo(photo, [dark, free], bicubic, networks)
        assert result.reference_index == chosen
        assert not any("glasses" in warning for warning in result.warnings)
    photo = drawn(160, 120, (70, 40, 24, 0))
    result = enhance_photo(photo, [dark], bicubic, networks)
    assert result.warnings[-1].startswith(
        "reference 0 shows dark glasses that the photo does not: they are masked"
    )
    whole = enhance_photo(photo, [free], bicubic, networks)
    assert result.mask.sum() < whole.mask.sum()
    assert not result.mask[26:35, 14:28].any()
    aligned = enhance_aligned(drawn(24, 24, (0, 0, 24, 0)), dark[10:110, 10:110], bicubic, networks)
    np.testing.assert_array_equal(aligned.mask, result.mask)


def test_the_parsing_map_is_that_of_the_masks_network() -> None:
    """Where it has one."""
    networks = FaceNetworks(mask_model="bisenet")
    labels = parsing_map(*GLASSES)

    class Parser:
        def labels(self, images: list[NDArray[np.uint8]]) -> list[Labels]:
            return [labels for _ in images]

    networks.__dict__["_parser"] = Parser()
    assert networks.labels is not None
    assert cover_of(face_of(labels), networks.labels).glasses == CLEAR
    assert FaceNetworks(mask_model="template").labels is None
    assert FaceNetworks(mask_model="hull").labels is None


@pytest.mark.realdata
def test_the_hand_made_maps_of_real_photos(shared: Path) -> None:
    """Of 3,000 people few are said to be covered, and 115 wear glasses."""
    folder = shared / "data" / "celeba_hq_subset"
    order = np.array([BISENET.index(name) for name in CELEBAMASK_HQ], np.uint8)
    counts = {"glasses": 0, "dark": 0, "things": 0}
    paths = sorted((folder / "labels").glob("*.png"))[::10]
    for path in paths:
        with Image.open(path) as file:
            labels = order[np.asarray(file)]
        found = cover_of(
            AlignedFace.whole(read_photo(folder / "images" / f"{path.stem}.jpg"), ""),
            lambda _, labels=labels: labels,
        )
        counts["glasses"] += found.glasses.any
        counts["dark"] += found.glasses.dark
        counts["things"] += bool(found.things)
    assert 4 <= counts["glasses"] <= 20
    assert counts["dark"] < counts["glasses"]
    assert counts["things"] <= 6


@pytest.mark.realdata
@pytest.mark.parametrize("side", [16, 64])
def test_glasses_in_real_photos(shared: Path, side: int) -> None:
    """From the pixels alone."""
    folder = shared / "data" / "celeba_hq_subset"
    eye_g = CELEBAMASK_HQ.index("eye_g")
    right = wrong = with_glasses = without = 0
    for number, path in enumerate(sorted((folder / "labels").glob("*.png"))[:1200]):
        with Image.open(path) as file:
            share = (
                np.asarray(file.resize((64, 64), Image.Resampling.NEAREST))[23:40, 12:52] == eye_g
            ).mean()
        if share < 0.02 and number % 8:
            continue
        face = read_photo(folder / "images" / f"{path.stem}.jpg")
        small = np.asarray(Image.fromarray(face).resize((side, side), Image.Resampling.BICUBIC))
        told = covered.find_glasses(small).any
        if share > 0.02:
            with_glasses, right = with_glasses + 1, right + told
        elif share == 0:
            without, wrong = without + 1, wrong + told
    assert with_glasses > 25
    assert right > 0.8 * with_glasses
    assert wrong < 0.06 * without
