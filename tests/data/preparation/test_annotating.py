"""Where landmarks, masks and aligned faces come from."""

import numpy as np
import pytest
import torch
from csv_files import rejected, rows, write
from facexlib.parsing.bisenet import BiSeNet
from PIL import Image

from rpf_lightning.data.preparation import annotating, annotator
from rpf_lightning.data.prepared_photos import PreparedPhotos
from rpf_lightning.drawn_faces.photo import render_photo
from rpf_lightning.faces.alignment import align_face, alignment_matrix
from rpf_lightning.faces.detection import Face
from rpf_lightning.faces.landmarks import Found
from rpf_lightning.faces.parsing import BiSeNetParser

WITHOUT_MAPS = {"labels": None, "label_scheme": None, "mask_model": "hull"}


def test_landmarks_that_place_no_square_are_rejected(prepare, folder, tmp_path):
    """Eyes and mouth in one point, though not all points are on one line. Given landmarks need no detector."""
    content = rows(folder, "landmarks.csv")
    points = np.array(content[1][1:], float).reshape(68, 2)
    points[36:] = 32
    content[1][1:] = [str(value) for value in points.ravel()]
    del content[2]  # this one would need it
    write(folder, "landmarks.csv", content)
    assert prepare(**WITHOUT_MAPS, align="always", side=64)["counts"]["kept"] == 16
    reasons = rejected(tmp_path / "prepared")
    assert reasons.pop("0-1.png").startswith("not in ")
    assert reasons == {"0-0.png": "cannot be aligned: eyes and mouth coincide: they place no square"}
    photos = PreparedPhotos(tmp_path / "prepared")
    drawn = render_photo(2, 1, 64)
    index = photos.ids.index("2-1.png")
    np.testing.assert_array_equal(
        photos.photo(index).image, align_face(drawn.image, drawn.landmarks.round(3), 64)
    )
    # aligning the aligned face changes nothing: its landmarks moved with it
    np.testing.assert_allclose(alignment_matrix(photos.landmarks[index]), np.eye(2, 3), atol=0.002)
    assert np.abs(alignment_matrix(drawn.landmarks / 64) - np.eye(2, 3)).max() > 0.02


def test_aligned_faces_replace_no_photo_and_no_other_face(prepare, folder, tmp_path):
    photo = folder / "images" / "0-0.png"
    before = photo.read_bytes()
    for out in ("folder", "folder/images"):  # `folder/images/0-0.png` would be the face's name too
        with pytest.raises(ValueError, match=f"{out}: holds photos; give another --out for the aligned"):
            prepare(out, **WITHOUT_MAPS, align="always", side=64)
    assert photo.read_bytes() == before
    content = rows(folder, "landmarks.csv")
    for name, like in (("0-0.webp", "1-0.png"), ("0-0.png.png", "2-0.png")):  # one name in all, if shortened
        Image.open(folder / "images" / like).save(folder / "images" / name, lossless=True)
        content.append([name, *next(row for row in content if row[0] == like)[1:]])
    write(folder, "landmarks.csv", content)
    assert prepare(**WITHOUT_MAPS, align="always", side=64)["counts"]["kept"] == 20
    photos = PreparedPhotos(tmp_path / "prepared")
    for name, person in (("0-0.png.png", 0), ("0-0.webp.png", 1), ("0-0.png.png.png", 2)):
        drawn = render_photo(person, 0, 64)
        expected = align_face(drawn.image, drawn.landmarks.round(3), 64)
        np.testing.assert_array_equal(photos.photo(photos.ids.index(name)).image, expected)


def test_what_the_landmark_model_finds_decides(prepare, folder, tmp_path, monkeypatch):
    """A stand-in that knows the drawn photos: one, no, two and one-and-a-small face, and a failure."""
    known = {render_photo(p, s, 64).image.tobytes(): (p, s) for p in range(6) for s in range(3)}
    asked = []

    def faces(*sides):
        return [Face(np.array([0, 0, side, side]), 0.9, np.zeros((5, 2))) for side in sides]

    # 21 is 0.28 of the area, 19 is 0.23: somebody in the background
    shown = {1: faces(), 2: faces(40, 21), 3: faces(40, 19)}

    def model(images):
        results = []
        for image in images:
            person, shot = known[image.tobytes()]
            points = np.full((68, 2), np.nan) if person == 4 else render_photo(person, shot, 64).landmarks
            results.append(Found(points, shown.get(person, faces(40))))
        return results

    def choose(*args):
        asked.append(args)
        return model

    monkeypatch.setattr(annotating, "_check_landmark_model", lambda *_: None)
    monkeypatch.setattr(annotator, "landmark_model", choose)
    write(folder, "landmarks.csv", rows(folder, "landmarks.csv")[:3])  # two photos of person 0
    prepare(landmark_model="onnx:x", pack="mine")
    assert asked == [("onnx:x", "cpu", "mine")]
    reasons = rejected(tmp_path / "prepared")
    assert {name[0]: reason for name, reason in reasons.items()} == {
        "1": "no face found",
        "2": "2 faces found; expected one person",
        "4": "the landmark network gave no landmarks",
    }
    assert len(reasons) == 9
    photos = PreparedPhotos(tmp_path / "prepared")
    for name in ("0-0.png", "0-2.png", "3-1.png"):
        drawn = render_photo(int(name[0]), int(name[2]), 64)
        np.testing.assert_allclose(photos.landmarks[photos.ids.index(name)], drawn.landmarks / 64, atol=1e-4)


def test_masks_by_bisenet(prepare, folder, tmp_path, monkeypatch):
    """Through facexlib's network with random weights: the masks are those of the parser, photo by photo."""
    torch.manual_seed(0)
    (tmp_path / "weights").mkdir()
    torch.save(BiSeNet(num_class=19).state_dict(), tmp_path / "weights" / "parsing_bisenet.pth")
    monkeypatch.setenv("RPF_WEIGHTS_DIR", str(tmp_path / "weights"))
    for path in list((folder / "images").iterdir()):
        if path.name[0] > "1":
            path.unlink()
    lacking = {"0-1.png": render_photo(0, 1, 64).image, "1-0.png": render_photo(1, 0, 64).image}
    for name in lacking:
        (folder / "labels" / name).unlink()
    prepare(identities=None)
    photos = PreparedPhotos(tmp_path / "prepared")
    masks = np.unpackbits(np.load(tmp_path / "prepared" / "masks.npy"), axis=2)
    for name, mask in zip(lacking, BiSeNetParser()(list(lacking.values())), strict=True):
        np.testing.assert_array_equal(masks[photos.ids.index(name)], mask)
        assert 0 < mask.mean() < 1
    given = photos.photo(photos.ids.index("0-0.png")).mask
    np.testing.assert_array_equal(given, np.isin(render_photo(0, 0, 64).parsing, range(1, 14)))


@pytest.mark.parametrize("model", ["hull", "template"])
def test_masks_without_a_network_are_asked_for_by_name(prepare, tmp_path, model):
    prepare(**WITHOUT_MAPS | {"mask_model": model})
    photos = PreparedPhotos(tmp_path / "prepared")
    masks = np.stack([photos.photo(i).mask for i in range(3)])
    assert 0.1 < masks.mean() < 0.6
    assert (masks[0] != masks[1]).any() == (model == "hull")  # the template is the same for all


def test_missing_weights_are_an_error_or_a_reason(prepare, folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"s3fd-619a316812\.pth"):
        prepare("none", landmarks=None)
    with pytest.raises(FileNotFoundError, match=r"parsing_bisenet\.pth"):
        prepare("none", labels=None, label_scheme=None)
    write(folder, "landmarks.csv", rows(folder, "landmarks.csv")[:-1])
    (folder / "labels" / "0-0.png").unlink()
    lines = []
    assert prepare(say=lines.append)["counts"]["kept"] == 16
    reasons = rejected(tmp_path / "prepared")
    assert "not in" in reasons["5-2.png"]
    assert "s3fd" in reasons["5-2.png"]
    assert "parsing_bisenet.pth" in reasons["0-0.png"]
    assert sum(line.startswith("warning: 1 photos have no") for line in lines) == 2
