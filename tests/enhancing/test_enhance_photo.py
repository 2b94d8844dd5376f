"""From a photo and portraits to the enhanced photo, with drawn faces and a model that enlarges bicubically."""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from rpf_lightning.drawn_faces.photo import render_photo
from rpf_lightning.enhancing import FaceNetworks, RefusedError, aligned_faces, enhance_aligned, enhance_photo
from rpf_lightning.enhancing.enhance import entry_side
from rpf_lightning.enhancing.paste import enlarge
from rpf_lightning.faces.detection import Face
from rpf_lightning.faces.parsing import template_mask
from rpf_lightning.model import RPFModel
from rpf_lightning.model.resize import resize, resize_mask
from rpf_lightning.pictures import to_tensor

Draw = Callable[..., NDArray[np.uint8]]
Portraits = Sequence[NDArray[np.uint8]]
FACE = (70, 40, 24, 0)


def details(model: RPFModel) -> None:
    """Let the syntheses add something to the bicubic enlargement."""
    torch.manual_seed(0)
    with torch.no_grad():
        for block in model.blocks:
            block.synthesis.to_rgb.weight.normal_(0, 0.05)


def test_what_comes_out(drawn: Draw, networks: Any, bicubic: RPFModel, portraits: Portraits) -> None:
    photo = drawn(160, 120, FACE)
    result = enhance_photo(photo, portraits[1:], bicubic, networks)
    assert (result.image[140:170, 230:260] == (255, 0, 0)).all()
    details(bicubic)
    result = enhance_photo(photo, portraits[1:], bicubic, networks)
    assert result.image.shape == result.before.shape == (360, 480, 3)  # 24 -> 64 pixels: three times
    assert result.factor == 3
    assert result.face.shape == result.reference.shape == (64, 64, 3)
    assert result.lr.shape == (16, 16, 3)
    assert result.face_side == pytest.approx(24)
    assert (result.face_index, result.reference_index) == (0, 0)
    np.testing.assert_allclose(result.matrix, [[72, 0, 210], [0, 72, 120]], atol=1e-6)
    wanted = resize_mask(torch.tensor(template_mask(512))[None, None], 64)[0, 0]
    np.testing.assert_array_equal(result.mask, wanted)
    np.testing.assert_array_equal(result.before, enlarge(photo, 3))
    changed = np.argwhere((result.image != result.before).any(2))
    assert changed.min(0)[0] >= 120
    assert changed.min(0)[1] >= 210
    assert (changed.max(0) < (192, 282)).all()  # inside of the aligned square
    assert result.image.dtype == np.uint8


def test_the_model_gets_face_reference_and_mask(
    drawn: Draw, networks: Any, bicubic: RPFModel, portraits: Portraits
) -> None:
    """The output is the model's own for these inputs, rounded."""
    details(bicubic)
    photo = drawn(160, 120, FACE)
    result = enhance_photo(photo, portraits, bicubic, networks)
    lr, reference = to_tensor(result.lr), to_tensor(result.reference)
    with torch.no_grad():
        mask = torch.tensor(result.mask).float()[None, None]
        wanted = bicubic(lr, reference, mask)[0]
        other = bicubic(lr, reference)[0]
    got = torch.tensor(result.face).permute(2, 0, 1) / 255
    assert (got - wanted).abs().max() <= 0.5 / 255 + 1e-5
    assert (got - other).abs().max() > 1 / 255
    enlarged = resize(lr, 64).clamp(0, 1)[0]
    assert (got - enlarged).abs().max() > 1 / 255


@pytest.mark.parametrize("side", [17, 24, 31, 32, 50, 63])
def test_what_lies_between_the_entry_sides_is_not_lost(
    bicubic: RPFModel, networks: Any, portraits: Portraits, side: int
) -> None:
    """The output holds the photo's own pixels, also those that the model was not given."""
    sharp = render_photo(10_000, 0, 64).image
    photo = np.asarray(Image.fromarray(sharp).resize((side, side), Image.Resampling.BICUBIC))
    result = enhance_aligned(photo, portraits[0], bicubic, networks, force=True)

    def psnr(image: NDArray[np.uint8], of: NDArray[np.uint8]) -> float:
        return float(-10 * np.log10(((image.astype(float) - of) ** 2).mean() / 255**2))

    lost = np.asarray(Image.fromarray(result.lr).resize((64, 64), Image.Resampling.BICUBIC))
    assert psnr(result.image, sharp) > psnr(result.before, sharp) > psnr(lost, sharp) - 0.01
    reduced = Image.fromarray(result.image).resize((side, side), Image.Resampling.BICUBIC)
    assert psnr(np.asarray(reduced), photo) > 38


def test_enters_at_the_resolution_that_the_face_has() -> None:
    model = RPFModel(lr_size=16, scale=8, channels=2, width=1 / 64)
    assert [entry_side(model, side) for side in (5, 16, 31.9, 32, 63, 64, 127)] == [
        16, 16, 16, 32, 32, 64, 64,
    ]  # fmt: skip
    single = RPFModel(lr_size=16, scale=8, channels=2, width=1 / 64, progressive=False)
    assert entry_side(single, 100) == 16


def test_faces_as_large_as_the_output_are_refused(
    drawn: Draw, networks: Any, bicubic: RPFModel, portraits: Portraits
) -> None:
    with pytest.raises(
        RefusedError, match="face 0 of the photo has 70 pixels already, and the model makes 64"
    ):
        enhance_photo(drawn(160, 120, (20, 20, 70, 0)), portraits, bicubic, networks, force=True)
    with pytest.raises(RefusedError, match="the photo has 64 pixels already"):
        enhance_aligned(drawn(64, 64), portraits[0], bicubic, networks)


def test_tiny_faces_are_enlarged_with_a_warning(
    drawn: Draw, networks: Any, bicubic: RPFModel, portraits: Portraits
) -> None:
    result = enhance_photo(drawn(160, 120, (70, 40, 13, 0)), portraits, bicubic, networks)
    assert result.lr.shape == (16, 16, 3)
    assert result.factor == 5
    assert any("13 pixels, less than the 16" in text for text in result.warnings)


def test_people_are_not_compared_in_tiny_faces(
    drawn: Draw, networks: Any, bicubic: RPFModel, portraits: Portraits
) -> None:
    result = enhance_photo(drawn(160, 120, (70, 40, 24, 255)), portraits, bicubic, networks)
    assert result.identity is None
    assert networks.compared == 0
    (warning,) = result.warnings
    assert "face 0 of the photo has 24 pixels, too few to tell people apart" in warning


def test_another_person_is_refused_unless_forced(
    drawn: Draw, networks: Any, bicubic: RPFModel, portraits: Portraits
) -> None:
    photo = drawn(160, 120, (70, 40, 52, 255))
    with pytest.raises(RefusedError, match=r"reference 0 is clearly another person than face 0.*--force"):
        enhance_photo(photo, portraits[:1], bicubic, networks)
    forced = enhance_photo(photo, portraits[:1], bicubic, networks, force=True)
    assert "clearly another person" in forced.warnings[0]
    assert forced.identity is not None
    assert forced.identity.cosine == pytest.approx(0, abs=0.05)
    same = enhance_photo(drawn(160, 120, (70, 40, 52, 0)), portraits[:1], bicubic, networks)
    assert same.identity is not None
    assert same.identity.matches
    assert same.warnings == ()
    assert same.lr.shape == (32, 32, 3)


def test_doubt_is_a_warning(drawn: Draw, networks: Any, bicubic: RPFModel, portraits: Portraits) -> None:
    """Neither surely one person nor clearly two: a shade of blue with cosine 0.2."""
    result = enhance_photo(drawn(160, 120, (70, 40, 52, 222)), portraits[:1], bicubic, networks)
    assert result.identity is not None
    assert result.identity.cosine == pytest.approx(0.2, abs=0.03)
    (warning,) = result.warnings
    assert warning.startswith(
        "reference 0 may be another person than face 0 of the photo: their cosine is 0.2"
    )


def test_references_of_another_person_are_left_out(
    drawn: Draw, networks: Any, bicubic: RPFModel, portraits: Portraits
) -> None:
    stranger = drawn(120, 120, (10, 10, 100, 255))
    photo = drawn(160, 120, (70, 40, 52, 0))
    for force in (False, True):
        result = enhance_photo(photo, [stranger, portraits[0]], bicubic, networks, force=force)
        assert result.reference_index == 1
        (warning,) = result.warnings
        assert warning.startswith("reference 0 is clearly another person")


@pytest.mark.parametrize(("green", "wanted"), [(0, 1), (50, 0)])
def test_the_reference_of_the_nearest_pose(
    drawn: Draw, networks: Any, bicubic: RPFModel, portraits: Portraits, green: int, wanted: int
) -> None:
    result = enhance_photo(drawn(160, 120, FACE, green=green), portraits, bicubic, networks)
    assert result.reference_index == wanted


def test_a_match_comes_before_a_nearer_pose(drawn: Draw, networks: Any, bicubic: RPFModel) -> None:
    """Neither a reference in doubt nor one that is too small to compare is taken because of its pose."""
    photo = drawn(160, 120, (70, 40, 52, 0))
    match = drawn(120, 120, (10, 10, 100, 0), green=50)
    doubtful = drawn(120, 120, (10, 10, 100, 222))
    small_stranger = drawn(120, 120, (10, 10, 40, 255))
    for nearer, told in ((doubtful, "may be another person"), (small_stranger, "too small to compare")):
        result = enhance_photo(photo, [nearer, match], bicubic, networks)
        assert result.reference_index == 1
        assert result.identity is not None
        assert result.identity.matches
        assert [told in warning for warning in result.warnings] == [True]
    # without a match, one that was compared
    turned = drawn(120, 120, (10, 10, 100, 222), green=50)
    assert enhance_photo(photo, [small_stranger, turned], bicubic, networks).reference_index == 1
    # among matches, the pose
    ahead = drawn(120, 120, (10, 10, 100, 0))
    assert enhance_photo(photo, [match, ahead, doubtful], bicubic, networks).reference_index == 1


def test_arguments_are_named(drawn: Draw, networks: Any, bicubic: RPFModel, portraits: Portraits) -> None:
    photo = drawn(160, 120, (70, 40, 52, 0))
    for single in ("a.png", Path("a.png"), portraits[0]):
        with pytest.raises(ValueError, match="references: expected a list"):
            enhance_photo(photo, single, bicubic, networks)
    with pytest.raises(ValueError, match="reference 1: expected an RGB photo"):
        enhance_photo(photo, [portraits[0], portraits[1][..., 0]], bicubic, networks)
    with pytest.raises(ValueError, match="the photo: expected an RGB photo"):
        enhance_photo(photo / 255, portraits, bicubic, networks)


def test_nobody_is_refused_by_a_network_that_was_not_measured(
    drawn: Draw, networks: Any, bicubic: RPFModel, portraits: Portraits
) -> None:
    networks.models.recogniser = SimpleNamespace(file="w600k_r50.onnx")
    photo = drawn(160, 120, (70, 40, 52, 255))
    result = enhance_photo(photo, portraits[:1], bicubic, networks)
    assert result.warnings[0].startswith("the limits were not measured for w600k_r50.onnx")
    assert result.warnings[1] == "reference 0 and face 0 of the photo: their cosine is 0.000"
    # a match still chooses, and the warning says so
    chosen = enhance_photo(
        drawn(300, 120, (10, 10, 55, 255), (90, 20, 50, 0)), portraits[:1], bicubic, networks
    )
    assert chosen.face_index == 1
    assert "make sure yourself that the right face was chosen" in chosen.warnings[0]
    two = drawn(300, 120, (10, 10, 55, 255), (90, 20, 50, 200))
    with pytest.raises(
        RefusedError, match=r"--face 0: 55 pixels.*cosine 0\.00; --face 1: 50 pixels.*cosine 0\.3"
    ):
        enhance_photo(two, portraits[:1], bicubic, networks)
    crop = drawn(60, 60, (0, 0, 60, 255))
    aligned = enhance_aligned(crop, drawn(100, 100, (0, 0, 100, 0)), bicubic, networks)
    assert aligned.warnings[0].startswith("the limits were not measured for w600k_r50.onnx")


def test_the_mask_is_made_and_reduced_as_in_training(
    drawn: Draw, networks: Any, bicubic: RPFModel, portraits: Portraits
) -> None:
    """From 512 pixels by area: stripes of 3 of 8 pixels vanish, of 5 of 8 fill the mask."""
    for width, value in ((3, 0), (5, 1)):
        sides = []

        def stripes(
            face: NDArray[np.uint8], width: int = width, sides: list[int] = sides
        ) -> NDArray[np.uint8]:
            sides.append(len(face))
            mask = np.zeros(face.shape[:2], np.uint8)
            for column in range(width):
                mask[:, column + 1 :: 8] = 1
            return mask

        networks.__dict__["mask"] = stripes
        result = enhance_photo(drawn(160, 120, FACE), portraits, bicubic, networks)
        assert sides == [512]
        assert result.mask.shape == (64, 64)
        assert (result.mask == value).all()


def test_what_was_not_sought_is_said(
    drawn: Draw, networks: Any, bicubic: RPFModel, portraits: Portraits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(aligned_faces.MAX_PIXELS, 4, 15 * 300 * 700)
    several = drawn(700, 300, (10, 10, 55, 255), (200, 40, 20, 0))
    missed = "aces below 10 pixels were not sought, since the photo is large: cut it to the surroundings"
    with pytest.raises(RefusedError, match=f"choose with --face.*F{missed}"):
        enhance_photo(several, portraits, bicubic, networks)
    with pytest.raises(RefusedError, match=f"--force enhances nevertheless. F{missed}"):
        enhance_photo(drawn(700, 300, (10, 10, 55, 255)), portraits, bicubic, networks)
    with pytest.raises(RefusedError, match=f"nothing to gain; f{missed}"):
        enhance_photo(drawn(700, 300, (10, 10, 80, 255)), portraits, bicubic, networks)
    with pytest.raises(RefusedError, match=f"no face found, sought from 10 pixels on; f{missed}"):
        enhance_photo(drawn(700, 300), portraits, bicubic, networks)
    chosen = enhance_photo(several, portraits, bicubic, networks, face=1)
    assert (chosen.factor, chosen.sought) == (4, 10)
    assert enhance_photo(drawn(700, 300, (10, 10, 55, 0)), portraits, bicubic, networks).warnings == ()


def test_several_faces(drawn: Draw, networks: Any, bicubic: RPFModel, portraits: Portraits) -> None:
    """The match is taken where people can be told apart; else, the faces are listed."""
    photo = drawn(300, 120, (10, 10, 55, 255), (90, 20, 50, 0), (200, 40, 20, 0))
    result = enhance_photo(photo, portraits, bicubic, networks)
    assert result.face_index == 1
    strangers = drawn(300, 120, (10, 10, 55, 255), (200, 40, 20, 0))
    listed = r"--face 0: 55 pixels, around x 38, y 38, cosine 0\.00; --face 1: 20 pixels"
    with pytest.raises(RefusedError, match=listed):
        enhance_photo(strangers, portraits, bicubic, networks)
    chosen = enhance_photo(strangers, portraits, bicubic, networks, face=1)
    assert chosen.face_side == pytest.approx(20)
    for index in (2, -1):
        with pytest.raises(RefusedError, match=rf"--face {index} is not there\. Faces found: --face 0"):
            enhance_photo(strangers, portraits, bicubic, networks, face=index)


def test_no_face(drawn: Draw, networks: Any, bicubic: RPFModel, portraits: Portraits) -> None:
    with pytest.raises(RefusedError, match="the photo: no face found"):
        enhance_photo(drawn(100, 100), portraits, bicubic, networks)
    with pytest.raises(RefusedError, match="reference 1: no face found"):
        enhance_photo(drawn(100, 100, FACE), [portraits[0], drawn(100, 100)], bicubic, networks)
    with pytest.raises(ValueError, match="expected one portrait at least"):
        enhance_photo(drawn(100, 100, FACE), [], bicubic, networks)


def test_missing_weights_of_the_mask_are_known_before_anything_is_searched(
    drawn: Draw, bicubic: RPFModel
) -> None:
    with pytest.raises(FileNotFoundError, match=r"parsing_bisenet\.pth.*--mask-model hull"):
        enhance_photo(drawn(100, 100), [drawn(100, 100)], bicubic, FaceNetworks(mask_model="bisenet"))


def test_missing_weights_of_the_mask_are_known_before_anything_is_compared(
    drawn: Draw, networks: Any, bicubic: RPFModel
) -> None:
    networks.mask_model = "bisenet"
    with pytest.raises(FileNotFoundError, match=r"parsing_bisenet\.pth.*--mask-model hull"):
        enhance_aligned(drawn(48, 48), drawn(120, 120), bicubic, networks)
    assert networks.compared == 0


def test_two_faces_in_a_reference(
    drawn: Draw, networks: Any, bicubic: RPFModel, portraits: Portraits
) -> None:
    background = drawn(300, 120, (10, 10, 100, 0), (200, 40, 40, 255))
    assert enhance_photo(drawn(100, 100, FACE), [background], bicubic, networks).reference[32, 32, 2] == 0
    couple = drawn(300, 120, (10, 10, 100, 0), (150, 10, 90, 255))
    with pytest.raises(RefusedError, match="reference 0: 2 faces found; expected one person"):
        enhance_photo(drawn(100, 100, FACE), [couple], bicubic, networks)


def test_small_references(drawn: Draw, networks: Any, bicubic: RPFModel) -> None:
    result = enhance_photo(
        drawn(160, 120, (70, 40, 52, 0)), [drawn(60, 60, (5, 5, 40, 0))], bicubic, networks
    )
    assert any("too small to compare" in text for text in result.warnings)
    assert any("its face has 40 pixels, less than the 64" in text for text in result.warnings)


def test_huge_photos_are_enlarged_less(
    drawn: Draw, networks: Any, bicubic: RPFModel, portraits: Portraits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rpf_lightning.enhancing.paste.MAX_PIXELS", 4 * 160 * 120)
    result = enhance_photo(drawn(160, 120, FACE), portraits, bicubic, networks)
    assert result.factor == 2
    assert result.image.shape == (240, 320, 3)
    assert any("enlarged 2 times only" in text for text in result.warnings)
    assert (result.image[93:113, 153:173] == (255, 0, 0)).all()


def test_photos_too_large_to_be_enlarged_keep_their_size(
    drawn: Draw, networks: Any, bicubic: RPFModel, portraits: Portraits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the face in it, and what that costs is said."""
    details(bicubic)
    photo = drawn(160, 120, FACE)
    monkeypatch.setattr("rpf_lightning.enhancing.paste.MAX_PIXELS", 2 * 160 * 120)
    result = enhance_photo(photo, portraits, bicubic, networks)
    assert result.factor == 1
    np.testing.assert_array_equal(result.before, photo)
    changed = np.argwhere((result.image != photo).any(2))
    assert len(changed) > 100
    assert (changed.min(0) >= (40, 70)).all()
    assert (changed.max(0) < (64, 94)).all()
    assert (
        "the photo: it keeps its size; the face has 24 pixels there and loses detail" in result.warnings[-1]
    )


@pytest.mark.parametrize("kind", ["file", "array"])
def test_sizes_are_known_before_anything_is_computed(
    drawn: Draw, bicubic: RPFModel, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rpf_lightning.enhancing.found.read_srgb", lambda *_: pytest.fail("decoded"))
    photo: Any = np.zeros((7000, 7000, 3), np.uint8)
    large: Any = np.zeros((4000, 4000, 3), np.uint8)
    if kind == "file":
        for name, array in (("a", photo), ("b", large)):
            Image.fromarray(array).save(tmp_path / f"{name}.png")
        photo, large = tmp_path / "a.png", tmp_path / "b.png"
    networks = FaceNetworks()
    monkeypatch.setattr(FaceNetworks, "mask", property(lambda _: pytest.fail("loaded")))
    with pytest.raises(RefusedError, match=r"has 49 million pixels, expected 48 at most: cut it"):
        enhance_photo(photo, [photo], bicubic, networks)
    with pytest.raises(
        RefusedError, match=r"has 16\.0 million pixels, 3 times as large 144 million, expected 100"
    ):
        enhance_photo(large, [large], bicubic, networks, scale=3)
    for enhance in (
        lambda: enhance_photo(large, [large, photo], bicubic, networks),
        lambda: enhance_aligned(large, photo, bicubic, networks),
    ):
        with pytest.raises(RefusedError, match=r"has 49 million pixels, expected 48 at most: cut it"):
            enhance()
    with pytest.raises(ValueError, match="scale: expected 1 or more, got 0"):
        enhance_photo(large, [large], bicubic, networks, scale=0)


@pytest.mark.parametrize("scale", [1, 2, 5])
def test_a_scale_that_is_given_is_taken(
    drawn: Draw, networks: Any, bicubic: RPFModel, portraits: Portraits, scale: int
) -> None:
    for side in (21, 22, 32, 33):  # would be 4, 3, 2, 2
        result = enhance_photo(drawn(160, 120, (70, 40, side, 0)), portraits, bicubic, networks, scale=scale)
        assert result.factor == scale
        assert result.image.shape == (120 * scale, 160 * scale, 3)
        np.testing.assert_allclose(result.matrix[:, 2], (70 * scale, 40 * scale), atol=1e-6)


def see_grey(detector: Any, face_points: Any) -> None:
    """Let a detector see grey squares too, of `FACE` and of its crop."""
    own = detector.detect
    places = {(120, 160): FACE[:3], (256, 256): (0, 0, 256)}

    def detect(image: NDArray[np.uint8]) -> list[Face]:
        if np.ptp(image[..., 1:].astype(int), axis=2).max() > 100 or image.shape[:2] not in places:
            return own(image)
        left, top, side = places[image.shape[:2]]
        box = np.array([left, top, left + side, top + side], np.float64)
        return [Face(box, 1.0, face_points(left, top, side))]

    detector.detect = detect


@pytest.mark.parametrize("noise", [0, 4])
def test_a_grey_photo_stays_grey(
    drawn: Draw, networks: Any, bicubic: RPFModel, portraits: Portraits, noise: int, face_points: Any
) -> None:
    """Whatever the model makes of it and the colours of the reference, in a scan whose channels differ a little too."""
    details(bicubic)
    grey = np.repeat(drawn(160, 120, FACE)[..., 2:], 3, 2)
    grey[..., 0] += np.uint8(noise)
    see_grey(networks.detector, face_points)
    result = enhance_photo(grey, portraits, bicubic, networks)
    for picture in (result.image, result.face, result.before, result.lr):
        assert np.ptp(picture.astype(int), axis=2).max() == 0
    assert np.ptp(result.reference.astype(int), axis=2).max() > 200
    assert (result.image != result.before).any()
    crop = enhance_aligned(grey[40:64, 70:94], drawn(64, 64, (0, 0, 64, 0)), bicubic, networks)
    assert np.ptp(crop.image.astype(int), axis=2).max() == 0
    # a photo with one coloured spot has colours
    grey[100:108, 100:108] = (200, 100, 100)
    spot = enhance_photo(grey, portraits, bicubic, networks)
    assert np.ptp(spot.face.astype(int), axis=2).max() > 0


@pytest.mark.parametrize("kind", ["grey", "transparent", "turned"])
def test_files_of_all_kinds(
    drawn: Draw,
    networks: Any,
    bicubic: RPFModel,
    portraits: Portraits,
    tmp_path: Path,
    kind: str,
    face_points: Any,
) -> None:
    pixels = drawn(160, 120, FACE)
    photo = Image.fromarray(pixels)
    path = tmp_path / "photo.png"
    if kind == "turned":
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned by 90 degrees
        photo.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    elif kind == "transparent":
        photo.putalpha(255)
        photo.paste((0, 0, 0, 0), (0, 0, 30, 120))
        photo.save(path)
        pixels[:, :30] = 255  # over white
    else:
        photo.convert("L").save(path)
        grey = np.asarray(photo.convert("L"))
        pixels = np.repeat(grey[..., None], 3, axis=2)
        see_grey(networks.detector, face_points)
    result = enhance_photo(str(path), portraits[1:], bicubic, networks)
    assert result.image.shape == (360, 480, 3)
    np.testing.assert_array_equal(result.before, enlarge(pixels, 3))
    if kind == "grey":
        assert np.ptp(result.face.astype(int), axis=2).max() == 0
        assert np.ptp(result.lr, axis=2).max() == 0
        assert result.lr[8, 8, 0] == grey[52, 82] == 76


def test_unreadable_files_are_named(
    networks: Any, bicubic: RPFModel, portraits: Portraits, tmp_path: Path, drawn: Draw
) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"broken\.png: cannot be read"):
        enhance_photo(tmp_path / "broken.png", portraits, bicubic, networks)
    with pytest.raises(ValueError, match=r"broken\.png: cannot be read"):
        enhance_photo(drawn(160, 120, FACE), [tmp_path / "broken.png"], bicubic, networks)
    with pytest.raises(FileNotFoundError, match=r"none\.png: no such file"):
        enhance_aligned(tmp_path / "none.png", portraits[0], bicubic, networks)


def test_aligned_crops(drawn: Draw, networks: Any, bicubic: RPFModel) -> None:
    crop, reference = drawn(40, 40, (0, 0, 40, 0)), drawn(100, 100, (0, 0, 100, 0))
    result = enhance_aligned(crop, reference, bicubic, networks)
    assert result.lr.shape == (32, 32, 3)
    assert result.factor == 1
    assert result.identity is None  # 40 pixels
    np.testing.assert_array_equal(result.image, result.face)
    assert result.before.shape == (64, 64, 3)
    np.testing.assert_allclose(result.matrix @ (1, 1, 1), 64)
    with pytest.raises(RefusedError, match="the reference: expected a square, aligned photo, got 60 x 40"):
        enhance_aligned(crop, drawn(60, 40), bicubic, networks)
    stranger = drawn(100, 100, (0, 0, 100, 255))
    with pytest.raises(RefusedError, match="the reference is clearly another person than the photo"):
        enhance_aligned(drawn(60, 60, (0, 0, 60, 0)), stranger, bicubic, networks)
    assert enhance_aligned(drawn(60, 60, (0, 0, 60, 0)), stranger, bicubic, networks, force=True).warnings


def test_a_model_that_overflows_enhances_nothing(
    drawn: Draw, networks: Any, bicubic: RPFModel, portraits: Portraits
) -> None:
    """What the photo corrects would look like a photo."""
    for validate, value in ((True, 3e38), (False, float("nan"))):
        bicubic.validate = validate
        for block in bicubic.blocks:
            block.refinement.to_rgb.bias.data.fill_(value)
            block.synthesis.to_rgb.bias.data.fill_(value)
        with pytest.raises(ValueError, match="NaN or infinite values"):
            enhance_photo(drawn(160, 120, FACE), portraits[1:], bicubic, networks)
