"""Several people in one photo, each with their own portraits."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from rpf_lightning.cli import main
from rpf_lightning.enhancing import (
    RefusedError,
    enhance_people,
    enhance_photo,
    find_faces,
    match_people,
    people_in,
    read_people,
    read_portrait,
)
from rpf_lightning.enhancing.choosing import reference_face
from rpf_lightning.enhancing.outputs import write_enhanced
from rpf_lightning.enhancing.paste import corrected, paste
from rpf_lightning.model import RPFModel
from rpf_lightning.pictures import to_tensor

Draw = Callable[..., NDArray[np.uint8]]
GROUP = ((10, 10, 56, 255), (90, 20, 50, 0), (200, 40, 20, 0))  # two people, and one too small to compare


@pytest.fixture
def detailed(bicubic: RPFModel) -> RPFModel:
    """A model that adds something to the bicubic enlargement."""
    torch.manual_seed(0)
    with torch.no_grad():
        for block in bicubic.blocks:
            block.synthesis.to_rgb.weight.normal_(0, 0.05)
    return bicubic


def person(drawn: Draw, blue: int, side: int = 100, green: int = 0) -> NDArray[np.uint8]:
    return drawn(side + 20, side + 20, (10, 10, side, blue), green=green)


def test_faces_are_found_once(drawn: Draw, networks: Any, bicubic: RPFModel, monkeypatch: Any) -> None:
    photo = drawn(300, 120, *GROUP)
    found = find_faces(photo, networks)
    assert [face.index for face in found] == [0, 1, 2]
    assert [round(face.side) for face in found] == [56, 50, 20]
    assert found[1].box == pytest.approx((90, 20, 140, 70))
    assert found[1].thumbnail.shape == (128, 128, 3)
    assert tuple(found[0].thumbnail[64, 64]) == (255, 0, 255)
    assert tuple(found[1].thumbnail[64, 64]) == (255, 0, 0)
    assert len(found) == 3
    direct = enhance_people(photo, {1: [person(drawn, 0)]}, bicubic, networks)
    portrait = read_portrait(person(drawn, 0), networks)
    own = networks.detector.detect

    def detect(image: NDArray[np.uint8]) -> Any:  # of squares alone: whether the face stands in it
        return own(image) if image.shape[0] == image.shape[1] else pytest.fail("searched again")

    monkeypatch.setattr(networks.detector, "detect", detect)
    again = enhance_people(found, {1: [portrait]}, bicubic, networks)
    np.testing.assert_array_equal(again.image, direct.image)
    assert enhance_photo(found, [portrait], bicubic, networks).face_index == 1


def test_several_people_on_one_enlargement(drawn: Draw, networks: Any, detailed: RPFModel) -> None:
    """The factor serves the smallest face; every face is as it would be alone, and nothing else changes."""
    photo = drawn(300, 120, *GROUP)
    people = {2: [person(drawn, 0)], 0: [person(drawn, 255)]}
    result = enhance_people(photo, people, detailed, networks)
    assert result.factor == 4  # 20 -> 64; the face of 56 alone needs 2
    assert result.image.shape == result.before.shape == (480, 1200, 3)
    assert [face.face_index for face in result.faces] == [0, 2]
    assert (result.face_index, result.face_side) == (0, pytest.approx(56, abs=0.5))
    image = result.before
    for face in reversed(result.faces):
        image = corrected(paste(image, face.face, face.matrix), photo, face.matrix)
        alone = enhance_people(photo, {face.face_index: people[face.face_index]}, detailed, networks, scale=4)
        np.testing.assert_array_equal(alone.face, face.face)
        left, top = np.floor(face.matrix[:, 2]).astype(int)
        inside = np.s_[top : top + round(4 * face.face_side), left : left + round(4 * face.face_side)]
        np.testing.assert_array_equal(result.image[inside], alone.image[inside])
        assert (result.image[inside] != result.before[inside]).any()
    np.testing.assert_array_equal(result.image, image)
    assert (result.image[80:280, 360:560] == result.before[80:280, 360:560]).all()  # face 1 was not asked for
    assert [name for face in result.faces for name in face.names] == [
        "face 0's portrait 0",
        "face 2's portrait 0",
    ]


def test_large_faces_are_left_alone_when_others_are_done(
    drawn: Draw, networks: Any, bicubic: RPFModel
) -> None:
    photo = drawn(300, 120, (10, 10, 70, 255), (120, 20, 50, 0))
    people = {0: [person(drawn, 255)], 1: [person(drawn, 0)]}
    result = enhance_people(photo, people, bicubic, networks)
    assert [face.face_index for face in result.faces] == [1]
    assert [str(face) for face in result.left] == [
        "face 0 (70 pixels) is left as it is: it is large enough, the model makes 64 pixels"
    ]
    with pytest.raises(RefusedError, match="face 0 of the photo has 70 pixels already"):
        enhance_people(photo, {0: people[0]}, bicubic, networks)


def test_all_is_refused_before_anything_is_computed(
    drawn: Draw, networks: Any, bicubic: RPFModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = drawn(300, 120, *GROUP)
    monkeypatch.setattr(RPFModel, "forward", lambda *_: pytest.fail("computed"))
    with pytest.raises(RefusedError, match="face 1's portrait 0 is clearly another person than face 1"):
        enhance_people(photo, {0: [person(drawn, 255)], 1: [person(drawn, 255)]}, bicubic, networks)
    with pytest.raises(RefusedError, match=r"--face 3 is not there\. Faces found: --face 0"):
        enhance_people(photo, {0: [person(drawn, 255)], 3: [person(drawn, 0)]}, bicubic, networks)
    with pytest.raises(ValueError, match="people: expected a face"):
        enhance_people(photo, {}, bicubic, networks)
    with pytest.raises(ValueError, match="people, face 0: expected one portrait at least"):
        enhance_people(photo, {0: []}, bicubic, networks)
    with pytest.raises(ValueError, match="people, face 0: expected a list"):
        enhance_people(photo, {0: "a.png"}, bicubic, networks)


@pytest.mark.parametrize("several", [True, False])
def test_a_model_of_several_references_gets_all_portraits(
    drawn: Draw, networks: Any, bicubic: RPFModel, several: bool
) -> None:
    """Those that may be used, the nearest pose first; another model gets that one alone."""
    torch.manual_seed(0)
    model = RPFModel(bicubic.config, synthesis_copy=True).eval() if several else bicubic
    photo = drawn(160, 120, (70, 40, 52, 0))
    portraits = [person(drawn, 0, green=50), person(drawn, 255), person(drawn, 0), person(drawn, 40)]
    given: list[torch.Tensor] = []
    model.register_forward_pre_hook(lambda _, inputs: given.extend(inputs))
    result = enhance_people(photo, {0: portraits}, model, networks)
    (face,) = result.faces
    assert "face 0's portrait 1 is clearly another person" in result.warnings[0]
    wanted = (2, 0, 3) if several else (2,)
    assert face.reference_indices == wanted
    assert face.names == tuple(f"face 0's portrait {i}" for i in wanted)
    _, references, masks = given
    assert references.shape == ((1, 3, 3, 64, 64) if several else (1, 3, 64, 64))
    assert masks.shape == ((1, 3, 1, 64, 64) if several else (1, 1, 64, 64))
    assert face.references.shape == (len(wanted), 64, 64, 3)
    assert face.masks.shape == (len(wanted), 64, 64)
    for place, reference in enumerate(references.reshape(-1, 3, 64, 64)):
        assert torch.equal(reference[None], to_tensor(face.references[place]))
    np.testing.assert_array_equal(result.reference, face.references[0])
    assert int(face.references[-1][32, 32, 2]) == (40 if several else 0)


def test_people_are_matched_best_first(drawn: Draw, networks: Any) -> None:
    """Each person has one face, each face one person; the rest is listed with its reason."""
    squares = [(10, 10, 56, 0), (90, 10, 54, 60), (170, 10, 52, 255), (250, 10, 30, 0)]
    found = find_faces(drawn(320, 120, *squares), networks)
    sides = {"anna": person(drawn, 10), "ben": person(drawn, 120), "tiny": person(drawn, 255, side=40)}
    people = {name: [read_portrait(photo, networks)] for name, photo in sides.items()}
    matches = match_people(found, people, networks)
    # both are also like the other one's face, but less
    assert matches.people == {0: "anna", 1: "ben"}
    assert [(face.index, round(face.side)) for face in matches.left] == [(2, 52), (3, 30)]
    assert "below 48 pixels, people cannot be told apart; --face 3=PORTRAIT" in matches.left[1].reason
    assert matches.left[0].reason.startswith("most like ben, cosine 0.67")
    assert matches.left[0].reason.endswith("who is face 1")
    only = match_people(found, {"anna": people["anna"]}, networks)
    assert only.people == {0: "anna"}
    assert only.left[0].reason.endswith("who is face 0")
    assert "and a sure match has 0.36 or more" in only.left[1].reason
    taken = match_people(found, people, networks, taken=[0])
    assert set(taken.people) == {1, 2}
    assert [face.index for face in taken.left] == [3]
    small = match_people(found, {"tiny": people["tiny"]}, networks)
    assert small.people == {}
    assert "no portrait has a face of 48 pixels" in small.left[0].reason


def test_bad_portraits_of_people_are_left_out(drawn: Draw, networks: Any) -> None:
    warnings: list[str] = []
    people = read_people(
        {"anna": [drawn(60, 60), person(drawn, 0)], "ben": [drawn(60, 60)]}, networks, warnings
    )
    assert list(people) == ["anna"]
    assert len(people["anna"]) == 1
    assert warnings == [
        "a portrait of anna is left out: portrait 0 of anna: no face found; a reference shows one large face",
        "a portrait of ben is left out: portrait 0 of ben: no face found; a reference shows one large face",
        "ben has no portrait that can be used and is not sought",
    ]
    with pytest.raises(
        ValueError, match="expected one portrait at least that can be used; a portrait of ben"
    ):
        read_people({"ben": [drawn(60, 60)]}, networks, [])


def test_portraits_keep_what_lies_around_the_face(drawn: Draw, networks: Any) -> None:
    """The crop is that of the whole photo, which is not held; reflections at its edge included."""
    photo = np.random.default_rng(0).integers(0, 40, (400, 500, 3), dtype=np.uint8)
    photo[5:65, 430:490] = (255, 0, 90)
    portrait = read_portrait(photo, networks)
    whole = reference_face(photo, "", networks)
    assert portrait.face.image.size < photo.size / 4
    np.testing.assert_array_equal(portrait.face.crop(64), whole.crop(64))
    assert portrait.face.side == pytest.approx(whole.side)


@pytest.fixture
def group(tmp_path: Path, drawn: Draw, bicubic: RPFModel, monkeypatch: Any, networks: Any) -> Path:
    """A photo of three people, a folder of portraits per person, a model."""
    (tmp_path / "people" / "anna").mkdir(parents=True)
    (tmp_path / "people" / "ben").mkdir()
    Image.fromarray(drawn(300, 120, *GROUP)).save(tmp_path / "group.png")
    for name, blue in (("anna", 255), ("ben", 0)):
        for number, green in enumerate((0, 50)):
            portrait = person(drawn, blue, green=green)
            Image.fromarray(portrait).save(tmp_path / "people" / name / f"{number}.png")
    bicubic.save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("rpf_lightning.enhancing.FaceNetworks", lambda *_: networks)
    return tmp_path


def lines(capsys: pytest.CaptureFixture[str], words: str) -> list[str]:
    main(["enhance", *words.split(), "--model-dir", "model"])
    return capsys.readouterr().out.splitlines()


def test_the_command_takes_a_portrait_per_face(group: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (
        "group.png --face 0=people/anna/0.png --face 2=people/ben/1.png --face 2=people/ben/0.png --out a.png"
    )
    said = lines(capsys, words)
    assert said[:2] == [
        "face 0: 56 -> 64 pixels, entering at 32, photo enlarged 4 times, identity cosine 1.00; "
        "reference people/anna/0.png",
        "face 2: 20 -> 64 pixels, entering at 16, photo enlarged 4 times, identity not compared; "
        "reference people/ben/0.png",  # the nearest pose
    ]
    with Image.open("a.png") as image:
        assert image.size == (1200, 480)
    single = lines(capsys, "group.png --face 0 --reference people/anna/0.png --out b.png")
    with Image.open("a_side_by_side.png") as two, Image.open("b_side_by_side.png") as one:
        assert two.width == one.width
        assert two.height > 1.7 * one.height  # a row per face
    assert single[0].startswith("face 0: 56 -> 64 pixels, entering at 32, photo enlarged 2 times")


def test_the_command_says_which_portraits_were_used(
    group: Path, bicubic: RPFModel, capsys: pytest.CaptureFixture[str]
) -> None:
    RPFModel(bicubic.config, synthesis_copy=True).save_pretrained("model")
    words = "group.png --face 0=people/anna/1.png --face 0=people/anna/0.png --out a.png"
    assert lines(capsys, words)[0].endswith("; references people/anna/0.png, people/anna/1.png")


def test_the_command_matches_people(group: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = lines(capsys, "group.png --people people --out a.png")
    assert said[0].endswith("identity cosine 1.00, anna; reference people/anna/0.png")
    assert said[1].startswith("face 1: 50 -> 64")
    assert said[1].endswith("identity cosine 1.00, ben; reference people/ben/0.png")
    assert said[2] == (
        "face 2 (20 pixels) is left as it is: below 48 pixels, people cannot be told apart; --face 2=PORTRAIT says "
        "who it is"
    )
    # who is named for a face is not sought in the others
    said = lines(capsys, "group.png --people people --face 2=people/ben/0.png --out a.png")
    assert [line.partition(":")[0] for line in said[:3]] == [
        "face 0",
        "face 2",
        "face 1 (50 pixels) is left as it is",
    ]
    assert "most like anna, cosine 0.00, and a sure match has 0.36" in said[2]


def test_nobody_is_recognised(group: Path, drawn: Draw, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(drawn(160, 120, (70, 40, 24, 0))).save("small.png")
    with pytest.raises(SystemExit, match="2"):
        lines(capsys, "small.png --people people --out a.png")
    err = capsys.readouterr().err
    assert "small.png: nobody was recognised: face 0 (24 pixels) is left as it is: below 48 pixels" in err
    assert not Path("a.png").exists()


def test_folders_of_people(group: Path, drawn: Draw) -> None:
    found = people_in("people")
    assert {name: [file.name for file in files] for name, files in found.items()} == {
        "anna": ["0.png", "1.png"],
        "ben": ["0.png", "1.png"],
    }
    (group / "people" / "anna" / "notes.txt").write_text("no photo")
    assert people_in("people") == found
    Image.fromarray(person(drawn, 0)).save("people/carl.png")
    with pytest.raises(ValueError, match=r"people: expected a folder per person, and carl\.png lies beside"):
        people_in("people")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        people_in("nowhere")


def test_colours_of_every_face_are_the_photos_own(
    group: Path, wide_profile: bytes, networks: Any, detailed: RPFModel, drawn: Draw
) -> None:
    """Both faces are converted to the profile of the photo, and nothing else of it."""
    Image.open("group.png").save("wide.png", icc_profile=wide_profile)
    found = find_faces("wide.png", networks)
    result = enhance_people(
        found, {0: [person(drawn, 255)], 1: [person(drawn, 0)]}, detailed, networks, force=True
    )
    write_enhanced(result, "out.png")
    with Image.open("out.png") as image, Image.open("wide.png") as own:
        written = np.asarray(image).astype(int)
        enlarged = np.asarray(own.resize(image.size, Image.Resampling.BICUBIC)).astype(int)
    changed = (result.image != result.before).any(2)
    for face in result.faces:
        column = round(face.matrix[0, 2] + face.face_side * result.factor / 2)
        assert changed[:, column].any()
    assert (written == enlarged)[~changed].all()
    assert (written != result.image)[changed].any()
