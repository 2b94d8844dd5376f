"""Reading a folder of photos, and what it says when something is missing."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rpf_lightning.data.folder import PhotoFolder

SIDE = 16
COLUMNS = ["file", *(f"{axis}{i}" for i in range(68) for axis in "xy")]


def write(path: Path, rows: list[list[object]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three photos; the last has no landmarks and no identity."""
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    rng = np.random.default_rng(0)
    names = ["b.png", "a.png", "c.png"]
    for name in names:
        Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)).save(tmp_path / "images" / name)
        labels = np.zeros((SIDE, SIDE), np.uint8)
        labels[4:12, 4:12] = 1  # skin in both schemes
        labels[:4] = 13  # l_lip in BiSeNet's order, hair in CelebAMask-HQ's
        Image.fromarray(labels).save(tmp_path / "labels" / name)
    write(
        tmp_path / "identities.csv",
        [["file", "extra", "identity"], *([name, 1, "p1"] for name in names[:2]), ["c.png", 0, ""]],
    )
    points = [round(float(v), 2) for v in rng.uniform(2, 14, 136)]
    write(tmp_path / "landmarks.csv", [COLUMNS, ["b.png", *points], ["a.png", *points], ["x.png", *points]])
    return tmp_path


def test_reads_in_the_order_of_the_rows(root: Path) -> None:
    photos = PhotoFolder(root, "celebamask-hq")
    assert len(photos) == 3
    assert photos.ids == ["b.png", "a.png", "c.png"]
    assert photos.identities == ["p1", "p1", ""]
    assert photos.landmarks[2] is None
    assert photos.landmarks[0] is not None
    photo = photos.photo(0)
    assert (photo.id, photo.identity) == ("b.png", "p1")
    np.testing.assert_array_equal(photo.image, np.array(Image.open(root / "images" / "b.png")))
    assert photo.landmarks is not None
    np.testing.assert_allclose(photo.landmarks, photos.landmarks[0] * SIDE)  # fractions and pixels
    with (root / "landmarks.csv").open() as file:
        assert float(next(csv.DictReader(file))["y3"]) == pytest.approx(photo.landmarks[3, 1])
    assert photos.photo(2).landmarks is None


def test_label_scheme_decides_the_mask(root: Path) -> None:
    celeba = PhotoFolder(root, "celebamask-hq").photo(0).mask
    bisenet = PhotoFolder(root, "bisenet").photo(0).mask
    assert celeba.dtype == np.uint8
    assert celeba.sum() == 64
    assert bisenet.sum() == 64 + 4 * SIDE


def test_labels_of_another_size_follow_the_photo(root: Path) -> None:
    with Image.open(root / "labels" / "b.png") as labels:
        labels.resize((8, 8), Image.Resampling.NEAREST).save(root / "labels" / "b.png")
    mask = PhotoFolder(root, "celebamask-hq").photo(0).mask
    assert mask.shape == (SIDE, SIDE)
    assert mask.sum() == 64


def test_exif_orientation_and_grey_photos(root: Path) -> None:
    upright = Image.open(root / "images" / "b.png").convert("L")
    exif = Image.Exif()
    exif[0x0112] = 6  # stored rotated by 90 degrees
    upright.transpose(Image.Transpose.ROTATE_90).save(root / "images" / "b.png", exif=exif)
    image = PhotoFolder(root, "celebamask-hq").photo(0).image
    np.testing.assert_array_equal(image, np.array(upright.convert("RGB")))


@pytest.mark.parametrize(
    "missing", ["images", "labels", "identities.csv", "landmarks.csv", "images/a.png", "labels/a.png"]
)
def test_missing_files_are_named(root: Path, missing: str) -> None:
    (root / missing).rename(root / "away")
    with pytest.raises(FileNotFoundError, match=missing):
        PhotoFolder(root, "celebamask-hq")


def test_bad_tables_are_explained(root: Path) -> None:
    path = root / "identities.csv"
    good = path.read_text()
    path.write_text(good.replace("identity", "person"))
    with pytest.raises(ValueError, match=r"identities\.csv: the header lacks identity"):
        PhotoFolder(root, "celebamask-hq")
    path.write_text(good + "b.png,1,p2\n")
    with pytest.raises(ValueError, match=r"line 5: 'b\.png' is listed twice"):
        PhotoFolder(root, "celebamask-hq")
    path.write_text(good + "d.png\n")
    with pytest.raises(ValueError, match="line 5: no value for identity"):
        PhotoFolder(root, "celebamask-hq")
    path.write_text(good)

    rows = (root / "landmarks.csv").read_text().splitlines()
    for broken, message in (
        (["a.png"] + ["nan"] * 136, "finite"),
        (["a.png"] + ["left"] * 136, "136 numbers"),
        (["a.png"] + ["1"] * 100, "no value for"),
    ):
        (root / "landmarks.csv").write_text("\n".join([*rows[:2], ",".join(broken)]))
        with pytest.raises(ValueError, match=rf"landmarks\.csv, line 3.*{message}"):
            PhotoFolder(root, "celebamask-hq")
    (root / "landmarks.csv").write_text("\n".join(rows[1:]))
    with pytest.raises(ValueError, match="header lacks"):
        PhotoFolder(root, "celebamask-hq")


def test_bad_images_are_named(root: Path) -> None:
    with pytest.raises(ValueError, match="celebamask-hq"):
        PhotoFolder(root, "auto")
    photos = PhotoFolder(root, "celebamask-hq")
    Image.fromarray(np.full((SIDE, SIDE), 19, np.uint8)).save(root / "labels" / "b.png")
    with pytest.raises(ValueError, match=r"b\.png: labels must be in 0\.\.18"):
        photos.photo(0)
    Image.new("RGB", (SIDE, SIDE)).save(root / "labels" / "b.png")
    with pytest.raises(ValueError, match=r"b\.png: expected one 8-bit label"):
        photos.photo(0)
    data = (root / "images" / "b.png").read_bytes()
    (root / "images" / "b.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"b\.png: cannot be decoded"):
        photos.photo(0)
    (root / "images" / "b.png").write_text("not an image")
    with pytest.raises(ValueError, match=r"images.b\.png: cannot be read"):
        photos.photo(0)
    Image.new("RGB", (SIDE, 20)).save(root / "images" / "b.png")
    with pytest.raises(ValueError, match=r"b\.png: the photo must be square"):
        PhotoFolder(root, "celebamask-hq")
