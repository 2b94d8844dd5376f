"""What preparing a folder makes of photos, people and annotations."""

import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from csv_files import rejected, rows, write
from PIL import Image

from rpf_lightning.cli import main
from rpf_lightning.data.image_files import read_photo
from rpf_lightning.data.pairing import grey_thumbnail, near_duplicates, nearest_references
from rpf_lightning.data.preparation import Options, annotator, prepare_faces, prepared_folder, sheets, verify
from rpf_lightning.data.preparation.sources import identities_from_csv, landmarks_from_csv
from rpf_lightning.data.prepared_photos import PreparedPhotos
from rpf_lightning.drawn_faces.photo import render_photo
from rpf_lightning.faces import dlib_models
from rpf_lightning.faces.landmarks import Found
from rpf_lightning.faces.turned import points_back
from turned_heads import Heads, photo_of


def add(folder, name, like="0-0.png", person="p0"):
    """Give a photo that the test wrote the annotations of another one."""
    people, points = rows(folder, "identities.csv"), rows(folder, "landmarks.csv")
    write(folder, "identities.csv", [*people, [name, person]])
    write(folder, "landmarks.csv", [*points, [name, *next(row for row in points if row[0] == like)[1:]]])
    shutil.copy(folder / "labels" / like, (folder / "labels" / name).with_suffix(".png"))


def test_prepared_photos_are_what_the_folder_holds(prepared, folder):
    photos = PreparedPhotos(prepared)
    assert photos.ids == sorted(path.name for path in (folder / "images").iterdir())
    drawn = render_photo(2, 1, 64)
    index = photos.ids.index("2-1.png")
    photo = photos.photo(index)
    assert (photo.id, photo.identity) == ("2-1.png", "p2")
    np.testing.assert_array_equal(photo.image, drawn.image)
    np.testing.assert_allclose(photo.landmarks, drawn.landmarks, atol=0.006)
    np.testing.assert_array_equal(photo.mask, np.isin(drawn.parsing, range(1, 14)))
    points = prepared_folder.read_landmarks(prepared / prepared_folder.LANDMARKS)[1]
    np.testing.assert_array_equal(points, np.rint(points * 100) / 100)  # kept to a hundredth of a pixel
    thumbnails = np.load(prepared / prepared_folder.THUMBNAILS)
    np.testing.assert_array_equal(thumbnails[index], grey_thumbnail(drawn.image))
    assert {path.name for path in prepared.iterdir()} == {
        "images.parquet", "landmarks.parquet", "masks.npy", "thumbnails.npy", "pairs_all.parquet",
        "duplicates.csv", "rejected.csv", "prepare.json", "distances.png", "contact_sheet.png",
    }  # fmt: skip
    for name in ("distances.png", "contact_sheet.png"):
        assert np.asarray(Image.open(prepared / name)).std() > 10
    found = near_duplicates(photos.landmarks, thumbnails)
    assert photos.near_duplicates() == found
    assert photos.pairs("all") == nearest_references(photos.identities, photos.landmarks, found)
    assert len(photos.pairs("all")) == 18


def test_several_references_and_a_split_by_person(prepare, tmp_path):
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
    assert prepare("other", references=2, val_fraction=0.34, seed=1)["sha256"] != summary["sha256"]


def test_the_hash_is_that_of_the_inputs(prepare, folder):
    """Not of where they lie, nor of how they are worked on."""
    first = prepare("one")
    moved = folder.rename(folder.parent / "elsewhere")
    folder.mkdir()
    (folder / "images").symlink_to(moved / "images")
    again = prepare(
        "two", batch_size=5, num_workers=1, identities=moved / "identities.csv",
        landmarks=str(moved / "landmarks.csv"), labels=str(moved / "labels"),
    )  # fmt: skip
    assert again["sha256"] == first["sha256"]
    assert again["arguments"] == first["arguments"]


def test_duplicates_are_no_references_and_leaks_are_reported(prepare, folder, tmp_path):
    for name, person in (("twin.png", "p0"), ("leak.png", "p5")):
        shutil.copy(folder / "images" / "0-0.png", folder / "images" / name)
        add(folder, name, person=person)
    lines = []
    counts = prepare(say=lines.append)["counts"]
    assert counts["near_duplicates"] == {"one_identity": 1, "two_identities": 2, "all": 3}
    photos = PreparedPhotos(tmp_path / "prepared")
    pairs = {photos.ids[pair.gt]: photos.ids[pair.reference] for pair in photos.pairs("all")}
    assert pairs["twin.png"] != "0-0.png"
    assert pairs["0-0.png"] != "twin.png"
    assert counts["changed_by_the_rule"] == {"all": 2}
    text = "\n".join(lines)
    assert "1 pairs of one person" in text
    assert "leak: 0-0.png and leak.png" in text
    assert "changes the references of 2 GTs" in text
    found = rows(tmp_path / "prepared", "duplicates.csv")[1:]
    assert found == [
        ["0-0.png", "leak.png", "two"], ["0-0.png", "twin.png", "one"], ["leak.png", "twin.png", "two"],
    ]  # fmt: skip
    named = [[photos.ids[a], photos.ids[b]] for a, b in photos.near_duplicates()]
    assert named == [row[:2] for row in found]


def test_faults_are_rejected_and_nothing_else_is_lost(prepare, folder, tmp_path, caplog):
    images, labels = folder / "images", folder / "labels"
    picture = Image.open(images / "0-0.png").convert("RGB")
    good = {"grey.png": picture.convert("L"), "rgba.png": picture.convert("RGBA"), "alone.png": picture}
    good["deep.png"] = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
    good["Zoë–脸.webp"] = picture
    for name, image in good.items():
        image.save(images / name, lossless=True)
        add(folder, name, person="nobody else" if name == "alone.png" else "p0")
    turned = picture.rotate(90, expand=True)
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(images / "exif.png", exif=exif)
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
    for name in ("labelled.png", "faceless.png", "flat.png", "of twice the size.png"):
        shutil.copy(images / "1-0.png", images / name)
    bad = ("labelled.png", "faceless.png", "flat.png", "of twice the size.png", "truncated.jpg", "text.jpg",
           "wide.png", "ghost.png")  # fmt: skip
    for name in ("exif.png", *bad):
        add(folder, name)
    (labels / "labelled.png").write_text("no map")
    Image.new("L", (64, 64)).save(labels / "faceless.png")
    points = rows(folder, "landmarks.csv")
    for row in points:
        if row[0] == "flat.png":
            row[1:] = ["0"] * 136
        elif row[0] == "of twice the size.png":
            row[1:] = [str(2 * float(value)) for value in row[1:]]
    write(folder, "landmarks.csv", points)

    counts = prepare()["counts"]
    out = tmp_path / "prepared"
    reasons = rejected(out)
    assert set(reasons) == {*bad, "film.mov"}
    for name, reason in {
        "truncated.jpg": "truncated",
        "text.jpg": "no image",
        "film.mov": "no photo by its suffix",
        "wide.png": "not square (64 x 50)",
        "ghost.png": f"listed in {folder / 'identities.csv'}, not in {images}",
        "labelled.png": "labels",
        "faceless.png": "the parsing map shows no face",
        "flat.png": "the landmarks are all on one line",
        "of twice the size.png": "landmarks lie far outside of the photo of 64 pixels",
    }.items():
        assert reason in reasons[name]
    cut = images / "cut.jpg"
    assert f"warning: {cut}: its last bytes are missing, 0 of 64 rows may be wrong" in caplog.messages
    assert (counts["photos"], counts["kept"], counts["rejected"]) == (33, 26, 7)
    assert counts["listed_without_use"] == 2
    assert counts["identities_with_one_photo"] == 1
    photos = PreparedPhotos(out)
    assert {*good, "exif.png", "bitmap.bmp", "cut.jpg"} <= set(photos.ids)
    np.testing.assert_array_equal(photos.photo(photos.ids.index("exif.png")).image, np.asarray(picture))
    assert photos.ids.index("alone.png") not in {pair.gt for pair in photos.pairs("all")}


def arguments(folder, *more):
    """`rpf prepare faces`, all annotations from files."""
    args = ["--images", str(folder / "images"), "--identities", str(folder / "identities.csv")]
    args += ["--landmarks", str(folder / "landmarks.csv"), "--labels", str(folder / "labels")]
    return ["prepare", "faces", *args, "--label-scheme", "bisenet", "--num-workers", "0", *more]


def test_exit_codes(folder, tmp_path, capsys):
    (folder / "images" / "0-0.png").write_text("no photo")
    main(arguments(folder, "--out", str(tmp_path / "out")))  # one photo of 18 is no failure
    captured = capsys.readouterr().out
    assert "17 of 18 photos kept, 1 rejected" in captured
    assert "no embeddings" in captured  # the pack is missing: said, and not silently left out
    sheet, histogram = (tmp_path / "out" / name for name in ("contact_sheet.png", "distances.png"))
    assert captured.splitlines()[-1] == f"look at {sheet} and {histogram}"

    def fails(*more):
        with pytest.raises(SystemExit, match="2"):
            main(arguments(folder, *more, "--out", str(tmp_path / "other")))
        return capsys.readouterr().err

    assert "none.csv: no such file" in fails("--landmarks", "none.csv")
    assert "val_fraction must be in [0, 1), got 20" in fails("--val-fraction", "20")
    for path in (folder / "images").iterdir():
        path.write_text("no photo")
    said = fails()
    assert "none of 18 photos can be used" in said
    assert "no image" in said
    assert "rejected.csv" in said
    assert len(rejected(tmp_path / "other")) == 18


def test_the_sheet_shows_the_farthest_pair_and_does_not_decide_whether_the_data_exist(
    prepare, folder, tmp_path, monkeypatch
):
    people = rows(folder, "identities.csv")
    known = [row if row[0] < "2" else [row[0], ""] for row in people[1:]]
    write(folder, "identities.csv", [people[0], *known])
    shown, lines = [], []

    def broken(*args):
        shown.extend(args[-1])
        raise ValueError("cannot be drawn")

    monkeypatch.setattr(sheets, "_sheet", broken)
    prepare(say=lines.append)
    pairs = sorted(PreparedPhotos(tmp_path / "prepared").pairs("all"), key=lambda pair: pair.distance)
    assert len(pairs) == 6
    assert [pair.distance for pair in shown] == [pair.distance for pair in pairs]
    assert {pair[:2] for pair in shown} == {pair[:2] for pair in pairs}
    assert any("could not be drawn: cannot be drawn" in line for line in lines)
    assert lines[-1] == f"look at {tmp_path / 'prepared' / 'distances.png'}"  # only at what is there


def test_held_out_people_have_pairs(prepare, folder):
    people = rows(folder, "identities.csv")
    single = [[row[0], row[1] if row[0] < "2" else row[0]] for row in people[1:]]  # 4 people of 6 become 12
    write(folder, "identities.csv", [people[0], *single])
    for seed in range(2):
        assert prepare(f"s{seed}", val_fraction=0.1, seed=seed)["counts"]["pairs"] == {"train": 3, "val": 3}
    write(folder, "identities.csv", [people[0], *[row for row in single if row[1] != "p0"]])
    lines = []
    prepare("one", val_fraction=0.1, say=lines.append)
    assert any("warning: pairs_train is empty: too few people" in line for line in lines)


def lying(side, scores=(0.9, 0.6, 0.55, 0.7)):
    """Prepares heads, which are found however they lie; a landmark network that finds the same points in all photos."""
    module = annotator.Annotator("onnx:x", "template", side, None, False, "", "")
    module.detector = SimpleNamespace(detect=Heads(*scores), sure_upright=0.8)
    points = render_photo(0, 0, 64).landmarks / 64
    module.find_landmarks = lambda images: [
        Found(points * len(image), module.detector.detect(image)) for image in images
    ]
    module.parser = None
    return module


@pytest.mark.parametrize("turns", range(4))
def test_photos_that_lie_are_aligned_as_upright_ones(turns):
    upright, turned = (
        annotator.Annotated(i, image=np.rot90(photo_of((40, 30, 32, 0)), k).copy())
        for i, k in ((0, 0), (1, turns))
    )
    one, other = lying(64).predict_step([upright, turned], 0)
    assert one.reason == other.reason == ""
    np.testing.assert_array_equal(other.image, one.image)
    assert (other.image[22, 20:44, 1] > 200).all()  # the forehead


def test_a_face_that_does_not_stand_once_aligned_is_rejected():
    """Here the detector sees no face in what its points place."""
    module = lying(64)
    heads = module.detector.detect
    module.detector.detect = lambda image: heads(image) if image.shape[0] != 256 else []
    (item,) = module.predict_step([annotator.Annotated(0, image=photo_of((40, 30, 32, 0)))], 0)
    assert item.reason == "the face is not upright once it is aligned"


def test_landmarks_that_lie_are_rejected_where_nothing_is_aligned():
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


def test_people_from_folders(folder, prepare, tmp_path):
    for part in ("images", "labels"):
        for path in list((folder / part).iterdir()):
            person = folder / part / path.name[0]
            person.mkdir(exist_ok=True)
            path.rename(person / path.name)
    points = rows(folder, "landmarks.csv")
    write(folder, "landmarks.csv", [points[0], *([f"{row[0][0]}/{row[0]}", *row[1:]] for row in points[1:])])
    counts = prepare(identities=None, people_in_folders=True)["counts"]
    assert counts["identities"] == 6
    assert counts["pairs"] == {"all": 18}
    assert PreparedPhotos(tmp_path / "prepared").identities[:4] == ["0", "0", "0", "1"]
    with pytest.raises(ValueError, match="not both"):
        prepare("x", people_in_folders=True)


@pytest.mark.parametrize("name", ["identities", "landmarks"])
def test_names_relative_to_another_folder_are_refused(folder, prepare, name):
    content = rows(folder, f"{name}.csv")
    write(folder, f"{name}.csv", [content[0], *([f"images/{row[0]}", *row[1:]] for row in content[1:])])
    message = (
        rf"{name}\.csv: lists 'images/0-0\.png' and others, but not one of the photos, such as '0-0\.png'"
    )
    with pytest.raises(ValueError, match=message):
        prepare()


def test_faces_of_unknown_people_have_no_pairs(prepare, tmp_path):
    lines = []
    counts = prepare(identities=None, say=lines.append)["counts"]
    assert counts["without_identity"] == 18
    assert counts["pairs"] == {"all": 0}
    assert PreparedPhotos(tmp_path / "prepared").pairs("all") == []
    assert not any("look at" in line for line in lines)  # nothing was drawn


def test_options_that_do_not_fit_are_refused():
    for wrong, message in (
        ({"labels": "x"}, "labels and label_scheme go together"),
        ({"labels": "x", "label_scheme": "auto"}, "unknown label scheme 'auto'"),
        ({"mask_model": "none"}, "mask_model: expected bisenet, hull or template, got 'none'"),
        ({"landmark_model": "pfld"}, "landmark_model: expected face-alignment, dlib, onnx:PATH or"),
        ({"align": "yes"}, "align: expected auto, always or never"),
        ({"references": 0}, "references: expected at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            Options(**wrong)


@pytest.mark.realdata
def test_near_duplicates_of_the_real_photos(shared):
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
def test_an_album_of_real_photos(shared, real_weights, tmp_path):
    """Faces are found, aligned, annotated and paired; the same person looks alike to ArcFace.

    One of them, 7228/132978.jpg, is turned by 50 degrees: upright, its points are wrong.
    """
    album = tmp_path / "album"
    for person in ("7201", "7205", "7228"):
        shutil.copytree(shared / "data" / "wild_photos" / person, album / person)
    (album / "7201").chmod(0o755)
    Image.new("RGB", (300, 400), "grey").save(album / "7201" / "nobody.jpg")
    two = Image.new("RGB", (800, 500))
    for place, path in enumerate(sorted(album.glob("*/0*.jpg"))[:2]):
        two.paste(Image.open(path).resize((400, 500)), (400 * place, 0))
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


@pytest.mark.skipif(not dlib_models.is_installed(), reason="dlib is not installed")
@pytest.mark.realdata
def test_an_album_with_dlibs_landmarks(shared, tmp_path):
    """The paper's extractor, without any weights of others: `--landmark-model dlib`."""
    for person in ("7201", "7205"):
        shutil.copytree(shared / "data" / "wild_photos" / person, tmp_path / "album" / person)
    options = ["--landmark-model", "dlib", "--mask-model", "hull", "--side", "128", "--num-workers", "0"]
    album = ["--images", str(tmp_path / "album"), "--identities-from-folders", "--out", str(tmp_path / "out")]
    main(["prepare", "faces", *album, *options])
    out = tmp_path / "out"
    assert json.loads((out / "prepare.json").read_text())["arguments"]["landmark_model"] == "dlib"
    assert verify(out) == []
    photos = PreparedPhotos(out)
    assert len(photos) >= 7
    for points in photos.landmarks:
        np.testing.assert_allclose(points[36:48].mean(0), (0.5, 0.47), atol=0.04)
        np.testing.assert_allclose(points[48:60].mean(0), (0.5, 0.72), atol=0.06)


@pytest.mark.slow
def test_two_processes_do_the_work_of_one(folder, prepare, tmp_path):
    def run(out):
        more = ["--batch-size", "2", "--accelerator", "cpu", "--devices", "2", "--out", str(tmp_path / out)]
        command = [sys.executable, "-m", "rpf_lightning", *arguments(folder, *more)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout

    said = run("both")
    assert said.count("18 of 18 photos kept") == 1  # the first process says it
    assert said.count("warning: no embeddings") == 1
    summary = json.loads((tmp_path / "both" / "prepare.json").read_text())
    assert summary["sha256"] == prepare()["sha256"]
    # fewer photos than processes: each must have something to do
    for path in sorted((folder / "images").iterdir())[1:]:
        path.unlink()
    assert "1 of 1 photos kept" in run("few")
