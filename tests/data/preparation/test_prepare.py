"""Preparing a folder from end to end, with faults, kills and a full disk."""

import csv
import errno
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from facexlib.parsing.bisenet import BiSeNet
from PIL import Image

from rpf_lightning.cli import main
from rpf_lightning.data.image_files import read_photo
from rpf_lightning.data.pairing import grey_thumbnail, near_duplicates, nearest_references
from rpf_lightning.data.preparation import (
    DiskFullError,
    NothingUsableError,
    Options,
    StoppedError,
    annotating,
    annotator,
    prepare_celeba_hq,
    prepare_faces,
    prepared_folder,
    sheets,
    verify,
)
from rpf_lightning.data.preparation.sources import identities_from_csv, landmarks_from_csv
from rpf_lightning.data.prepared_photos import PreparedPhotos
from rpf_lightning.drawn_faces.photo import render_photo
from rpf_lightning.faces.alignment import align_face, alignment_matrix
from rpf_lightning.faces.detection import Face
from rpf_lightning.faces.landmarks import Found
from rpf_lightning.faces.parsing import BiSeNetParser
from rpf_lightning.faces.turned import points_back
from turned_heads import Heads, photo_of

Prepare = Callable[..., dict[str, Any]]


def rejected(out: Path) -> dict[str, str]:
    with (out / "rejected.csv").open(newline="", encoding="utf-8") as file:
        return {row["file"]: row["reason"] for row in csv.DictReader(file)}


def rows(folder: Path, name: str) -> list[list[str]]:
    with (folder / name).open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def write(folder: Path, name: str, content: list[list[str]]) -> None:
    with (folder / name).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(content)


def add(folder: Path, name: str, like: str = "0-0.png", person: str = "p0") -> None:
    """Give a photo that the test wrote the annotations of another one."""
    people, points = rows(folder, "identities.csv"), rows(folder, "landmarks.csv")
    write(folder, "identities.csv", [*people, [name, person]])
    write(folder, "landmarks.csv", [*points, [name, *next(row for row in points if row[0] == like)[1:]]])
    shutil.copy(folder / "labels" / like, (folder / "labels" / name).with_suffix(".png"))


def test_prepared_photos_are_what_the_folder_holds(prepared: Path, folder: Path) -> None:
    photos = PreparedPhotos(prepared)
    assert photos.ids == sorted(path.name for path in (folder / "images").iterdir())
    drawn = render_photo(2, 1, 64)
    index = photos.ids.index("2-1.png")
    photo = photos.photo(index)
    assert (photo.id, photo.identity) == ("2-1.png", "p2")
    np.testing.assert_array_equal(photo.image, drawn.image)
    np.testing.assert_allclose(photo.landmarks, drawn.landmarks, atol=0.006)
    facial = np.isin(drawn.parsing, range(1, 14))
    np.testing.assert_array_equal(photo.mask, facial)
    thumbnails = np.load(prepared / prepared_folder.THUMBNAILS)
    np.testing.assert_array_equal(thumbnails[index], grey_thumbnail(drawn.image))
    assert not (prepared / "work").exists()
    assert {path.name for path in prepared.iterdir()} == {
        "images.parquet", "landmarks.parquet", "masks.npy", "thumbnails.npy", "pairs_all.parquet",
        "duplicates.csv", "rejected.csv", "prepare.json", "distances.png", "contact_sheet.png",
    }  # fmt: skip
    for name in ("distances.png", "contact_sheet.png"):
        assert np.asarray(Image.open(prepared / name)).std() > 10


def test_pairs_are_the_nearest(prepared: Path) -> None:
    photos = PreparedPhotos(prepared)
    found = near_duplicates(photos.landmarks, np.load(prepared / prepared_folder.THUMBNAILS))
    assert photos.near_duplicates() == found
    expected = nearest_references(photos.identities, photos.landmarks, found)
    assert photos.pairs("all") == expected
    assert len(expected) == 18


def test_several_references_and_a_split_by_person(prepare: Prepare, tmp_path: Path) -> None:
    summary = prepare("k", references=2, val_fraction=0.34)
    assert summary["splits"] == ["train", "val"]
    assert summary["counts"]["pairs"] == {"train": 24, "val": 12}
    table = prepared_folder.read_table(
        tmp_path / "k" / "pairs_train.parquet", ["gt", "reference", "rank", "distance"]
    )
    assert table["rank"] == [0, 1] * 12
    assert all(a <= b for a, b in zip(table["distance"][::2], table["distance"][1::2], strict=True))
    val = prepared_folder.read_table(tmp_path / "k" / "pairs_val.parquet", ["gt"])["gt"]
    assert not {name[0] for name in val} & {name[0] for name in table["gt"]}
    assert len(PreparedPhotos(tmp_path / "k").pairs("train")) == 12  # the nearest only
    other = prepare("other", val_fraction=0.34, seed=1)
    assert other["sha256"] != prepare("same", val_fraction=0.34)["sha256"]


def test_same_inputs_give_the_same_hash(prepare: Prepare, folder: Path, tmp_path: Path) -> None:
    first = prepare("one")
    assert prepare("two", batch_size=5, num_workers=1)["sha256"] == first["sha256"]
    moved = tmp_path / "elsewhere"
    shutil.copytree(folder, moved)
    options = annotated(moved)
    again = prepare_faces(
        moved / "images", tmp_path / "three", identities=moved / "identities.csv", options=options,
        say=lambda line: None,
    )  # fmt: skip
    assert again["sha256"] == first["sha256"]
    assert again["arguments"] == first["arguments"]


def test_duplicates_are_no_references_and_leaks_are_reported(
    prepare: Prepare, folder: Path, tmp_path: Path
) -> None:
    for name, person in (("twin.png", "p0"), ("leak.png", "p5")):
        shutil.copy(folder / "images" / "0-0.png", folder / "images" / name)
        add(folder, name, person=person)
    lines: list[str] = []
    summary = prepare(say=lines.append)
    counts = summary["counts"]
    assert counts["near_duplicates"] == {"one_identity": 1, "two_identities": 2, "all": 3}
    pairs = {pair[0]: pair[1] for pair in PreparedPhotos(tmp_path / "prepared").pairs("all")}
    ids = PreparedPhotos(tmp_path / "prepared").ids
    assert ids[pairs[ids.index("twin.png")]] != "0-0.png"
    assert ids[pairs[ids.index("0-0.png")]] != "twin.png"
    assert counts["changed_by_the_rule"] == {"all": 2}
    named = [(ids[a], ids[b]) for a, b in PreparedPhotos(tmp_path / "prepared").near_duplicates()]
    assert named == [("0-0.png", "leak.png"), ("0-0.png", "twin.png"), ("leak.png", "twin.png")]
    text = "\n".join(lines)
    assert "1 pairs of one person" in text
    assert "leak: 0-0.png and leak.png" in text
    assert "changes the references of 2 GTs" in text
    assert rows(tmp_path / "prepared", "duplicates.csv")[1:] == [
        ["0-0.png", "leak.png", "two"], ["0-0.png", "twin.png", "one"], ["leak.png", "twin.png", "two"],
    ]  # fmt: skip


def test_faults_are_rejected_and_nothing_else_is_lost(
    prepare: Prepare, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = folder / "images"
    picture = Image.open(images / "0-0.png").convert("RGB")
    good = {"grey.png": picture.convert("L"), "rgba.png": picture.convert("RGBA")}
    good["deep.png"] = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
    good["Zoë–脸.webp"] = picture
    for name, image in good.items():
        image.save(images / name, lossless=True)
        add(folder, name)
    turned = picture.rotate(90, expand=True)
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(images / "exif.png", exif=exif)
    add(folder, "exif.png")
    picture.save(images / "truncated.jpg")
    (images / "truncated.jpg").write_bytes((images / "truncated.jpg").read_bytes()[:500])
    (images / "text.jpg").write_text("no photo")
    (images / "film.mov").write_text("no photo")
    picture.save(images / "cut.jpg")
    (images / "cut.jpg").write_bytes((images / "cut.jpg").read_bytes()[:-2])
    add(folder, "cut.jpg")
    picture.save(images / "bitmap.bmp")
    add(folder, "bitmap.bmp")
    picture.resize((64, 50)).save(images / "wide.png")
    for name in ("truncated.jpg", "text.jpg", "wide.png", "ghost.png"):
        add(folder, name)
    picture.save(images / "alone.png")
    add(folder, "alone.png", person="nobody else")
    shutil.copy(images / "1-0.png", images / "labelled.png")
    add(folder, "labelled.png")
    (folder / "labels" / "labelled.png").write_text("no map")

    summary = prepare()
    out = tmp_path / "prepared"
    reasons = rejected(out)
    assert set(reasons) == {"truncated.jpg", "text.jpg", "wide.png", "ghost.png", "labelled.png", "film.mov"}
    assert "no photo by its suffix" in reasons["film.mov"]
    assert "truncated" in reasons["truncated.jpg"]
    assert "no image" in reasons["text.jpg"]
    assert "not square (64 x 50)" in reasons["wide.png"]
    assert "not in" in reasons["ghost.png"]
    assert "labels" in reasons["labelled.png"]
    cut = images / "cut.jpg"
    assert f"warning: {cut}: its last bytes are missing, 0 of 64 rows may be wrong" in caplog.messages
    counts = summary["counts"]
    assert (counts["photos"], counts["kept"], counts["rejected"]) == (30, 26, 4)
    assert counts["listed_without_use"] == 2
    assert counts["identities_with_one_photo"] == 1
    photos = PreparedPhotos(out)
    assert {*good, "exif.png", "alone.png", "bitmap.bmp", "cut.jpg"} <= set(photos.ids)
    np.testing.assert_array_equal(photos.photo(photos.ids.index("exif.png")).image, np.asarray(picture))
    assert photos.ids.index("alone.png") not in {pair.gt for pair in photos.pairs("all")}


def test_nothing_usable(prepare: Prepare, folder: Path, tmp_path: Path) -> None:
    for path in (folder / "images").iterdir():
        path.write_text("no photo")
    with pytest.raises(NothingUsableError, match=r"none of 18 photos can be used: .*no image.*rejected.csv"):
        prepare()
    assert len(rejected(tmp_path / "prepared")) == 18
    shutil.rmtree(folder / "images")
    (folder / "images").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no photo"):
        prepare("other")


def test_exit_codes(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = [
        "prepare",
        "faces",
        "--images",
        str(folder / "images"),
        "--identities",
        str(folder / "identities.csv"),
    ]
    args += ["--landmarks", str(folder / "landmarks.csv"), "--labels", str(folder / "labels")]
    args += ["--label-scheme", "bisenet", "--num-workers", "0"]
    (folder / "images" / "0-0.png").write_text("no photo")
    main([*args, "--out", str(tmp_path / "out")])  # one photo of 18 is no failure
    captured = capsys.readouterr().out
    assert "17 of 18 photos kept, 1 rejected" in captured
    assert "no embeddings" in captured  # the pack is missing: said, and not silently left out
    with pytest.raises(SystemExit, match="2"):
        main([*args, "--landmarks", "none.csv", "--out", str(tmp_path / "other")])
    assert "none.csv: no such file" in capsys.readouterr().err
    for path in (folder / "images").iterdir():
        path.write_text("no photo")
    with pytest.raises(SystemExit, match="2"):
        main([*args, "--out", str(tmp_path / "other")])
    assert "none of 18 photos can be used" in capsys.readouterr().err


def test_finished_folders_are_not_made_again(
    prepare: Prepare, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepare()
    monkeypatch.setattr(annotator, "read_photo", None)  # would fail if a photo were read
    lines: list[str] = []
    assert prepare(say=lines.append, batch_size=3) == first
    assert "was prepared before" in lines[0]
    with pytest.raises(ValueError, match=r"begun with other arguments:\n  references: 1 then, 2 now"):
        prepare(references=2)
    write(folder, "identities.csv", rows(folder, "identities.csv")[:-1])
    with pytest.raises(ValueError, match=r"identities: 'identities\.csv "):
        prepare()


@pytest.mark.parametrize("disk", [0, errno.ENOSPC, errno.EDQUOT], ids=["killed", "disk full", "quota"])
def test_stopped_runs_continue(
    prepare: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disk: int
) -> None:
    whole = prepare("whole")
    write_atomically, read = annotator.write_atomically, []

    def stop(path: Path, content: bytes) -> None:
        if len(list(path.parent.glob("*.npz"))) == 3:
            raise OSError(disk, "No space left on device") if disk else RuntimeError("killed")
        write_atomically(path, content)

    def counting(path: Path, content: bytes, notes: list[str]) -> Any:
        read.append(path.name)
        return read_photo(path, content, notes)

    monkeypatch.setattr(annotator, "write_atomically", stop)
    monkeypatch.setattr(annotator, "read_photo", counting)
    expected = (DiskFullError, "the disk is full.*continues") if disk else (RuntimeError, "killed")
    with pytest.raises(expected[0], match=expected[1]):
        prepare(batch_size=4)
    assert not (tmp_path / "prepared" / "prepare.json").exists()
    monkeypatch.setattr(annotator, "write_atomically", write_atomically)
    before = set(read[:12])
    read.clear()
    lines: list[str] = []
    with pytest.raises(ValueError, match="mask_model: 'bisenet' then, 'hull' now"):
        prepare(batch_size=4, mask_model="hull")
    summary = prepare(batch_size=5, say=lines.append)
    assert "12 of 18 photos were done before" in lines
    assert len(read) == 6  # nothing twice
    assert not before & set(read)
    assert summary["sha256"] == whole["sha256"]  # nothing lost


def test_other_photos_are_not_taken_for_those_that_were_done(
    prepare: Prepare, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches go by the photos' places: with one photo replaced, all annotations would move."""
    with monkeypatch.context() as patch:
        patch.setattr(prepared_folder, "new_array", None)
        with pytest.raises(TypeError):
            prepare()
    for part in ("images", "labels"):
        (folder / part / "0-0.png").rename(folder / part / "9-9.png")
    with pytest.raises(ValueError, match=r"photos: '18 files \w+' then, '18 files \w+' now"):
        prepare()
    prepare("other")
    (folder / "labels" / "9-9.png").write_bytes(b"another map")
    with pytest.raises(ValueError, match=r"labels: '18 files \w+' then"):
        prepare("other")


def test_pairing_may_change_without_annotating_anew(
    prepare: Prepare, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(prepared_folder, "new_array", None)
        with pytest.raises(TypeError):
            prepare()
    write(folder, "identities.csv", rows(folder, "identities.csv")[:-3])
    monkeypatch.setattr(annotator, "read_photo", None)
    counts = prepare(references=2, val_fraction=0.4)["counts"]
    assert sum(counts["pairs"].values()) == 30
    with pytest.raises(ValueError, match=r"val_fraction must be in \[0, 1\), got 20"):
        prepare("other", val_fraction=20)


def test_parsing_maps_without_a_face_are_rejected(prepare: Prepare, folder: Path, tmp_path: Path) -> None:
    Image.new("L", (64, 64)).save(folder / "labels" / "0-0.png")
    prepare()
    assert "the parsing map shows no face" in rejected(tmp_path / "prepared")["0-0.png"]


def test_pictures_do_not_decide_whether_the_data_exist(
    prepare: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ValueError("cannot be drawn")

    monkeypatch.setattr(sheets, "_sheet", broken)
    lines: list[str] = []
    prepare(say=lines.append)
    assert (tmp_path / "prepared" / "prepare.json").is_file()
    assert any("could not be drawn: cannot be drawn" in line for line in lines)


def test_landmarks_of_no_use_are_rejected(prepare: Prepare, folder: Path, tmp_path: Path) -> None:
    content = rows(folder, "landmarks.csv")
    content[1][1:] = ["0"] * 136
    content[2][1:] = [str(2 * float(value)) for value in content[2][1:]]  # of a photo of twice the size
    write(folder, "landmarks.csv", content)
    assert prepare()["counts"]["kept"] == 16
    assert rejected(tmp_path / "prepared") == {
        "0-0.png": "the landmarks are all on one line",
        "0-1.png": "landmarks lie far outside of the photo of 64 pixels",
    }


def test_the_sheet_shows_the_farthest_pair(
    prepare: Prepare, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    people = rows(folder, "identities.csv")
    write(
        folder, "identities.csv", [people[0], *[row if row[0] < "2" else [row[0], ""] for row in people[1:]]]
    )
    shown: list[Any] = []
    sheet = sheets._sheet
    monkeypatch.setattr(sheets, "_sheet", lambda *args: shown.extend(args[2]) or sheet(*args))
    prepare()
    pairs = sorted(PreparedPhotos(tmp_path / "prepared").pairs("all"), key=lambda pair: pair.distance)
    assert len(pairs) == 6
    assert [pair.distance for pair in shown] == [pair.distance for pair in pairs]
    assert {pair[:2] for pair in shown} == {pair[:2] for pair in pairs}


def test_held_out_people_have_pairs(prepare: Prepare, folder: Path, tmp_path: Path) -> None:
    people = rows(folder, "identities.csv")
    single = [[row[0], row[1] if row[0] < "2" else row[0]] for row in people[1:]]  # 4 people of 6 become 12
    write(folder, "identities.csv", [people[0], *single])
    for seed in range(4):
        assert prepare(f"s{seed}", val_fraction=0.1, seed=seed)["counts"]["pairs"] == {"train": 3, "val": 3}
    write(folder, "identities.csv", [people[0], *[row for row in single if row[1] != "p0"]])
    lines: list[str] = []
    prepare("one", val_fraction=0.1, say=lines.append)
    assert any("warning: pairs_train is empty: too few people" in line for line in lines)


def test_aligned_faces_replace_no_photo_and_no_other_face(
    prepare: Prepare, folder: Path, tmp_path: Path
) -> None:
    options = {"labels": None, "label_scheme": None, "mask_model": "hull", "align": "always", "side": 64}
    photo = folder / "images" / "0-0.png"
    before = photo.read_bytes()
    for out in ("folder", "folder/images"):  # `folder/images/0-0.png` would be the face's name too
        with pytest.raises(ValueError, match=f"{out}: holds photos; give another --out for the aligned"):
            prepare(out, **options)
    assert photo.read_bytes() == before
    content = rows(folder, "landmarks.csv")
    for name, like in (("0-0.webp", "1-0.png"), ("0-0.png.png", "2-0.png")):  # one name in all, if shortened
        Image.open(folder / "images" / like).save(folder / "images" / name, lossless=True)
        content.append([name, *next(row for row in content if row[0] == like)[1:]])
    write(folder, "landmarks.csv", content)
    assert prepare(**options)["counts"]["kept"] == 20
    photos = PreparedPhotos(tmp_path / "prepared")
    for name, person in (("0-0.png.png", 0), ("0-0.webp.png", 1), ("0-0.png.png.png", 2)):
        drawn = render_photo(person, 0, 64)
        expected = align_face(drawn.image, drawn.landmarks.round(3), 64)
        np.testing.assert_array_equal(photos.photo(photos.ids.index(name)).image, expected)


def test_landmarks_that_place_no_square_are_rejected(prepare: Prepare, folder: Path, tmp_path: Path) -> None:
    """Eyes and mouth in one point, though not all points are on one line. Given landmarks need no detector."""
    content = rows(folder, "landmarks.csv")
    points = np.array(content[1][1:], float).reshape(68, 2)
    points[36:] = 32
    content[1][1:] = [str(value) for value in points.ravel()]
    write(folder, "landmarks.csv", content)
    del content[2]  # this one would need it
    write(folder, "landmarks.csv", content)
    counts = prepare(labels=None, label_scheme=None, mask_model="hull", align="always", side=64)["counts"]
    assert counts["kept"] == 16
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


def test_what_the_landmark_model_finds_decides(
    prepare: Prepare, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in that knows the drawn photos: one, no, two and one-and-a-small face, and a failure."""
    known = {render_photo(p, s, 64).image.tobytes(): (p, s) for p in range(6) for s in range(3)}
    asked: list[Any] = []

    def face(side: float) -> Face:
        return Face(np.array([0, 0, side, side]), 0.9, np.zeros((5, 2)))

    def model(images: list[np.ndarray]) -> list[Found]:
        results = []
        for image in images:
            person, shot = known[image.tobytes()]
            points, faces = render_photo(person, shot, 64).landmarks, [face(40)]
            if person == 1:
                faces = []
            elif person == 2:
                faces = [face(40), face(21)]  # 0.28 of the area
            elif person == 3:
                faces = [face(40), face(19)]  # 0.23: somebody in the background
            elif person == 4:
                points = np.full((68, 2), np.nan)
            results.append(Found(points, faces))
        return results

    def choose(*args: Any) -> Any:
        asked.append(args)
        return model

    monkeypatch.setattr(annotating, "_check_landmark_model", lambda options: None)
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
        index = photos.ids.index(name)
        drawn = render_photo(int(name[0]), int(name[2]), 64)
        np.testing.assert_allclose(photos.landmarks[index], drawn.landmarks / 64, atol=1e-4)


def lying(side: int | None, scores: tuple[float, ...] = (0.9, 0.6, 0.55, 0.7)) -> annotator.Annotator:
    """Prepares heads, which are found however they lie; a landmark network that finds the same points in all photos."""
    module = annotator.Annotator("onnx:x", "template", side, None, False)
    module.detector = SimpleNamespace(detect=Heads(*scores), sure_upright=0.8)
    points = render_photo(0, 0, 64).landmarks / 64
    module.find_landmarks = lambda images: [
        Found(points * len(image), module.detector.detect(image)) for image in images
    ]
    module.parser = None
    return module


@pytest.mark.parametrize("turns", range(4))
def test_photos_that_lie_are_aligned_as_upright_ones(turns: int) -> None:
    upright, turned = (
        annotator.Annotated(i, image=np.rot90(photo_of((40, 30, 32, 0)), k).copy())
        for i, k in ((0, 0), (1, turns))
    )
    one, other = lying(64).predict_step([upright, turned], 0)
    assert one.reason == other.reason == ""
    np.testing.assert_array_equal(other.image, one.image)
    assert (other.image[22, 20:44, 1] > 200).all()  # the forehead


def test_a_face_that_does_not_stand_once_aligned_is_rejected() -> None:
    """Here the detector sees no face in what its points place."""
    module = lying(64)
    heads = module.detector.detect
    module.detector.detect = lambda image: heads(image) if image.shape[0] != 256 else []
    (item,) = module.predict_step([annotator.Annotated(0, image=photo_of((40, 30, 32, 0)))], 0)
    assert item.reason == "the face is not upright once it is aligned"


def test_landmarks_that_lie_are_rejected_where_nothing_is_aligned() -> None:
    module = lying(None)
    find = module.find_landmarks
    items = [annotator.Annotated(i, image=photo_of((20, 20, 40, 0), height=90, width=90)) for i in range(4)]
    reasons = []
    for turns, item in enumerate(items):
        module.find_landmarks = lambda images, turns=turns: [
            Found(points_back(found.landmarks, turns, (90, 90)), found.faces) for found in find(images)
        ]
        reasons.append(module.predict_step([item], 0)[0].reason)
    assert reasons == ["", *["the face is not upright; --align always turns it"] * 3]


def test_masks_by_bisenet(
    prepare: Prepare, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through facexlib's network with random weights: the masks are those of the parser, photo by photo."""
    torch.manual_seed(0)
    (tmp_path / "weights").mkdir()
    torch.save(BiSeNet(num_class=19).state_dict(), tmp_path / "weights" / "parsing_bisenet.pth")
    monkeypatch.setenv("RPF_WEIGHTS_DIR", str(tmp_path / "weights"))
    for path in [*(folder / "images").iterdir()]:
        if path.name[0] > "1":
            path.unlink()
    for name in ("0-1.png", "1-0.png"):
        (folder / "labels" / name).unlink()
    prepare(identities=None)
    photos = PreparedPhotos(tmp_path / "prepared")
    lacking = [render_photo(0, 1, 64).image, render_photo(1, 0, 64).image]
    for name, mask in zip(("0-1.png", "1-0.png"), BiSeNetParser()(lacking), strict=True):
        stored = prepared_folder.unpack_mask(
            np.load(tmp_path / "prepared" / prepared_folder.MASKS)[photos.ids.index(name)]
        )
        np.testing.assert_array_equal(stored, mask)
        assert 0 < mask.mean() < 1
    given = photos.photo(photos.ids.index("0-0.png")).mask
    np.testing.assert_array_equal(given, np.isin(render_photo(0, 0, 64).parsing, range(1, 14)))


def test_landmarks_are_kept_to_a_hundredth_of_a_pixel(prepared: Path) -> None:
    points = prepared_folder.read_landmarks(prepared / prepared_folder.LANDMARKS)[1]
    np.testing.assert_array_equal(points, np.rint(points * 100) / 100)


def test_pictures_that_were_not_drawn_are_not_pointed_at(prepare: Prepare, tmp_path: Path) -> None:
    lines: list[str] = []
    prepare(identities=None, say=lines.append)
    assert not any("look at" in line for line in lines)
    prepare("other", say=lines.append)
    sheet, histogram = (tmp_path / "other" / name for name in ("contact_sheet.png", "distances.png"))
    assert lines[-1] == f"look at {sheet} and {histogram}"


def test_ctrl_c_keeps_what_was_done(
    prepare: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning may end a prediction quietly then: half of the photos must not pass for all of them."""
    whole, seen = prepare("whole"), []
    handler = signal.getsignal(signal.SIGINT)

    def interrupted(path: Path, content: bytes, notes: list[str]) -> Any:
        seen.append(path)
        if len(seen) == 9:
            raise KeyboardInterrupt
        return read_photo(path, content, notes)

    try:
        with monkeypatch.context() as patch:
            patch.setattr(annotator, "read_photo", interrupted)
            with pytest.raises((SystemExit, KeyboardInterrupt, StoppedError)):
                prepare(batch_size=4)
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning leaves it ignored
    assert not (tmp_path / "prepared" / "prepare.json").exists()
    assert prepare()["sha256"] == whole["sha256"]

    monkeypatch.setattr(annotating, "_run", lambda *_: True)  # a pass that ends quietly
    with pytest.raises(StoppedError, match="stopped after 0 of 18 photos; the same command continues"):
        prepare("quiet")


def test_a_full_disk_while_the_tables_are_written(
    prepare: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = prepare("whole")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(prepared_folder, "new_array", full)
        with pytest.raises(DiskFullError, match="the disk is full"):
            prepare()
    assert (tmp_path / "prepared" / "work").is_dir()
    with monkeypatch.context() as patch:
        patch.setattr(annotator, "read_photo", None)
        with pytest.raises(TypeError):  # control: reading would fail
            prepare("control")
    assert prepare()["sha256"] == whole["sha256"]


def test_people_from_folders(folder: Path, prepare: Prepare, tmp_path: Path) -> None:
    for path in list((folder / "images").iterdir()):
        person = folder / "images" / path.name[0]
        person.mkdir(exist_ok=True)
        path.rename(person / path.name)
        (folder / "labels" / path.name[0]).mkdir(exist_ok=True)
        (folder / "labels" / path.name).rename(folder / "labels" / path.name[0] / path.name)
    points = rows(folder, "landmarks.csv")
    write(folder, "landmarks.csv", [points[0], *([f"{row[0][0]}/{row[0]}", *row[1:]] for row in points[1:])])
    summary = prepare(identities=None, people_in_folders=True)
    assert summary["counts"]["identities"] == 6
    assert summary["counts"]["pairs"] == {"all": 18}
    assert PreparedPhotos(tmp_path / "prepared").identities[:4] == ["0", "0", "0", "1"]
    with pytest.raises(ValueError, match="not both"):
        prepare("x", people_in_folders=True)


@pytest.mark.parametrize("name", ["identities", "landmarks"])
def test_names_relative_to_another_folder_are_refused(folder: Path, prepare: Prepare, name: str) -> None:
    content = rows(folder, f"{name}.csv")
    write(folder, f"{name}.csv", [content[0], *([f"images/{row[0]}", *row[1:]] for row in content[1:])])
    message = (
        rf"{name}\.csv: lists 'images/0-0\.png' and others, but not one of the photos, such as '0-0\.png'"
    )
    with pytest.raises(ValueError, match=message):
        prepare()


def test_faces_of_unknown_people_have_no_pairs(prepare: Prepare, tmp_path: Path) -> None:
    summary = prepare(identities=None)
    assert summary["counts"]["without_identity"] == 18
    assert summary["counts"]["pairs"] == {"all": 0}
    assert PreparedPhotos(tmp_path / "prepared").pairs("all") == []


def test_missing_weights_are_an_error_or_a_reason(prepare: Prepare, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"s3fd-619a316812\.pth"):
        prepare("none", landmarks=None)
    with pytest.raises(FileNotFoundError, match=r"parsing_bisenet\.pth"):
        prepare("none", labels=None, label_scheme=None)
    write(folder, "landmarks.csv", rows(folder, "landmarks.csv")[:-1])
    (folder / "labels" / "0-0.png").unlink()
    lines: list[str] = []
    summary = prepare(say=lines.append)
    reasons = rejected(tmp_path / "prepared")
    assert "not in" in reasons["5-2.png"]
    assert "s3fd" in reasons["5-2.png"]
    assert "parsing_bisenet.pth" in reasons["0-0.png"]
    assert sum(line.startswith("warning: 1 photos have no") for line in lines) == 2
    assert summary["counts"]["kept"] == 16


@pytest.mark.parametrize("model", ["hull", "template"])
def test_masks_without_a_network_are_asked_for_by_name(prepare: Prepare, tmp_path: Path, model: str) -> None:
    prepare(labels=None, label_scheme=None, mask_model=model)
    photos = PreparedPhotos(tmp_path / "prepared")
    masks = np.stack([photos.photo(i).mask for i in range(3)])
    assert 0.1 < masks.mean() < 0.6
    assert (masks[0] != masks[1]).any() == (model == "hull")  # the template is the same for all


def test_options_that_do_not_fit_are_refused() -> None:
    for wrong, message in (
        ({"labels": "x"}, "labels and label_scheme go together"),
        ({"labels": "x", "label_scheme": "auto"}, "unknown label scheme 'auto'"),
        ({"mask_model": "none"}, "mask_model: expected bisenet, hull or template, got 'none'"),
        ({"landmark_model": "pfld"}, "landmark_model: expected face-alignment, onnx:PATH or"),
        ({"align": "yes"}, "align: expected auto, always or never"),
        ({"references": 0}, "references: expected at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            Options(**wrong)


def annotated(folder: Path) -> Options:
    """All annotations come from files."""
    return Options(
        landmarks=str(folder / "landmarks.csv"), labels=str(folder / "labels"), label_scheme="bisenet",
        embeddings=False, num_workers=0,
    )  # fmt: skip


def celeba(folder: Path, tmp_path: Path, names: dict[str, str]) -> dict[str, Path]:
    """Rename the drawn photos to CelebA-HQ indices; write the text files with two-column people."""
    for old, new in names.items():
        for part in ("images", "labels"):
            (folder / part / f"{old}.png").rename(folder / part / f"{new}.png")
    points = rows(folder, "landmarks.csv")
    renamed = [[f"{names[row[0][:-4]]}.png", *row[1:]] for row in points[1:]]
    write(folder, "landmarks.csv", [points[0], *renamed])
    index = {int(new): old for old, new in names.items()}
    files = {name: tmp_path / f"{name}.txt" for name in ("mapping", "identities", "partition")}
    files["mapping"].write_text("".join(f"{i} {i} {i:06d}.jpg\n" for i in index))
    files["identities"].write_text("".join(f"{i:06d}.jpg {old[0]}\n" for i, old in index.items()))
    files["partition"].write_text("".join(f"{i:06d}.jpg {int(old[0]) % 3}\n" for i, old in index.items()))
    return files


def names(first: int = 998) -> dict[str, str]:
    return {f"{p}-{s}": str(first + 3 * p + s) for p in range(6) for s in range(3)}


def test_celeba_hq(folder: Path, tmp_path: Path) -> None:
    files = celeba(folder, tmp_path, names())  # 998, 999, 1000 are one person
    shutil.copy(folder / "images" / "1001.png", folder / "images" / "portrait.png")
    lines: list[str] = []
    options = annotated(folder)
    out = tmp_path / "out"
    summary = prepare_celeba_hq(folder / "images", out=out, **files, options=options, say=lines.append)
    text = "\n".join(lines)
    assert "holds 18 rows; the released file holds 30,000" in text
    assert "identities: 6 (released files: 6,217)" in text
    assert summary["counts"]["pairs"] == {
        "paper_train": 15, "paper_test": 2, "disjoint_train": 6, "disjoint_val": 6, "disjoint_test": 6,
    }  # fmt: skip
    assert rejected(out) == {"portrait.png": "its name is no index that mapping.txt lists"}
    photos = PreparedPhotos(out)
    assert photos.ids[:3] == ["998.png", "999.png", "1000.png"]  # by number
    gts = {photos.ids[pair.gt] for pair in photos.pairs("paper_test")}
    assert gts == {"998.png", "999.png"}
    train = photos.pairs("paper_train")
    assert {photos.ids[i] for pair in train for i in pair[:2]} == {f"{i}.png" for i in range(1001, 1016)}
    for part in ("train", "val", "test"):
        people = {photos.identities[pair.gt] for pair in photos.pairs(f"disjoint_{part}")}
        assert people == {str(p) for p in range(6) if p % 3 == ("train", "val", "test").index(part)}


def test_known_duplicates_of_celeba_hq(folder: Path, tmp_path: Path) -> None:
    """Index pairs 3329/3330 (one person here) and 234/235 (two): made-up pictures that the rule cannot find."""
    numbers = names(2000) | {"0-0": "3329", "0-1": "3330", "1-0": "234", "2-0": "235"}
    files = celeba(folder, tmp_path, numbers)
    options = annotated(folder)
    lines: list[str] = []
    summary = prepare_celeba_hq(
        folder / "images", out=tmp_path / "out", **files, options=options, say=lines.append
    )
    assert summary["counts"]["near_duplicates"] == {"one_identity": 1, "two_identities": 1, "all": 2}
    assert any("leak: 234.png and 235.png" in line for line in lines)
    photos = PreparedPhotos(tmp_path / "out")
    pairs = {(photos.ids[pair.gt], photos.ids[pair.reference]) for pair in photos.pairs("paper_train")}
    assert ("3329.png", "2002.png") in pairs
    assert ("3330.png", "2002.png") in pairs


@pytest.mark.parametrize("fault", ["mapping row without photo", "no photo at all", "two files of one index"])
def test_celeba_hq_faults(folder: Path, tmp_path: Path, fault: str) -> None:
    files = celeba(folder, tmp_path, names())
    options = annotated(folder)
    lines: list[str] = []

    def run() -> dict[str, Any]:
        return prepare_celeba_hq(
            folder / "images", out=tmp_path / "out", **files, options=options, say=lines.append
        )

    if fault == "mapping row without photo":
        files["mapping"].write_text(files["mapping"].read_text() + "29999 5 999999.jpg\n")
        assert run()["counts"]["kept"] == 18
        assert any("index 29999 points to 999999.jpg" in line for line in lines)
    elif fault == "no photo at all":
        for path in (folder / "images").iterdir():
            path.rename(path.with_name(f"x{path.name}"))
        with pytest.raises(FileNotFoundError, match="no photo there is named by an index"):
            run()
    else:
        shutil.copy(folder / "images" / "1001.png", folder / "images" / "01001.png")
        with pytest.raises(ValueError, match=r"have the same CelebA-HQ index"):
            run()


@pytest.mark.realdata
def test_near_duplicates_of_the_real_photos(shared: Path) -> None:
    """The rule takes five of the nearest pairs; without it they would be references."""
    root = shared / "data" / "celeba_hq_subset"
    people = identities_from_csv(root / "identities.csv")
    found = landmarks_from_csv(root / "landmarks.csv")
    files = [file for file in found if people.get(file)]
    names, points = [people[file] for file in files], [found[file] / 512 for file in files]
    without = nearest_references(names, points)
    near = sorted({i for pair in without if pair.distance < 0.01 for i in pair[:2]})
    thumbnails = [grey_thumbnail(read_photo(root / "images" / files[i])) for i in near]
    twins = [(near[a], near[b]) for a, b in near_duplicates([points[i] for i in near], thumbnails)]
    assert [(files[a], files[b]) for a, b in twins] == [
        ("00017.jpg", "03889.jpg"), ("00175.jpg", "02418.jpg"), ("00240.jpg", "04578.jpg"),
        ("02352.jpg", "03085.jpg"), ("02792.jpg", "04170.jpg"),
    ]  # fmt: skip
    references = {pair.gt: pair.reference for pair in without}
    assert all(references[a] == b and references[b] == a for a, b in twins)
    changed = {pair.gt: pair.reference for pair in nearest_references(names, points, twins)}
    assert len(references) == len(changed)
    assert sum(changed[gt] != reference for gt, reference in references.items()) == 10


@pytest.mark.realdata
@pytest.mark.weights
def test_an_album_of_real_photos(shared: Path, real_weights: Path, tmp_path: Path) -> None:
    """Faces are found, aligned, annotated and paired; the same person looks alike to ArcFace.

    One of them, 7228/132978.jpg, is turned by 50 degrees: upright, its points are wrong.
    """
    album = tmp_path / "album"
    for person in ("7201", "7205", "7228"):
        shutil.copytree(shared / "data" / "wild_photos" / person, album / person)
    (album / "7201" / "nobody.jpg").parent.chmod(0o755)
    Image.new("RGB", (300, 400), "grey").save(album / "7201" / "nobody.jpg")
    both = [Image.open(path).resize((400, 500)) for path in sorted(album.glob("*/0*.jpg"))[:2]]
    two = Image.new("RGB", (800, 500))
    for place, picture in enumerate(both):
        two.paste(picture, (400 * place, 0))
    two.save(album / "7201" / "two.jpg")
    options = Options(
        landmark_model=f"onnx:{real_weights / 'pfld.onnx'}", mask_model="hull", side=256, num_workers=0
    )
    out = tmp_path / "out"
    summary = prepare_faces(album, out, people_in_folders=True, options=options, say=lambda line: None)
    assert rejected(out) == {
        "7201/nobody.jpg": "no face found",
        "7201/two.jpg": "2 faces found; expected one person",
    }
    assert summary["counts"]["kept"] == summary["counts"]["pairs"]["all"] == 12
    assert verify(out) == []
    photos = PreparedPhotos(out)
    for index in range(12):
        photo, points = photos.photo(index), photos.landmarks[index]
        assert photo.image.shape == (256, 256, 3)
        eyes, mouth = points[36:48].mean(0), points[48:60].mean(0)
        np.testing.assert_allclose(eyes, (0.5, 0.47), atol=0.06)  # where FFHQ's recipe puts them
        np.testing.assert_allclose(mouth, (0.5, 0.72), atol=0.08)
        assert 0.15 < photo.mask.mean() < 0.5
    embeddings = np.load(out / "embeddings.npy")
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    same = np.equal.outer(photos.identities, photos.identities)
    cosine = embeddings @ embeddings.T
    assert cosine[same & ~np.eye(12, dtype=bool)].mean() > cosine[~same].mean() + 0.3


@pytest.mark.slow
def test_two_processes_do_the_work_of_one(folder: Path, prepare: Prepare, tmp_path: Path) -> None:
    args = ["--images", str(folder / "images"), "--identities", str(folder / "identities.csv")]
    args += ["--landmarks", str(folder / "landmarks.csv"), "--labels", str(folder / "labels")]
    args += ["--label-scheme", "bisenet", "--num-workers", "0", "--batch-size", "2"]
    args += ["--accelerator", "cpu", "--devices", "2", "--out", str(tmp_path / "both")]
    command = [sys.executable, "-m", "rpf_lightning", "prepare", "faces", *args]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("18 of 18 photos kept") == 1  # the first process says it
    assert run.stdout.count("warning: no embeddings") == 1
    summary = json.loads((tmp_path / "both" / "prepare.json").read_text())
    assert summary["sha256"] == prepare()["sha256"]
    # fewer photos than processes: each must have something to do
    for path in sorted((folder / "images").iterdir())[1:]:
        path.unlink()
    command[command.index(str(tmp_path / "both"))] = str(tmp_path / "few")
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert "1 of 1 photos kept" in run.stdout
