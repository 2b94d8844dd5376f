"""Lists of photos and annotations that exist, and what is said when they are wrong."""

import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from rpf_lightning.data.preparation.sources import (
    identities_from_csv,
    identities_from_folders,
    label_files,
    landmarks_from_csv,
    list_photos,
    no_photos,
)

HEADER = "file," + ",".join(f"x{i},y{i}" for i in range(68))
VALUES = [str(i / 2) for i in range(136)]


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_photos_are_found_below_in_order(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no photo; expected PNG, JPEG, WebP, TIFF"):
        list_photos(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        list_photos(tmp_path / "x")
    photos = ["a.webp", "b/1.png", "b/2.JPG", "b/3.heic", "b/4.bmp", "b/5.avif", "b/6.tif", "b/7.jfif"]
    photos += ["b/8.TIFF", "b/9.gif"]
    touch(tmp_path, *reversed(photos), "a.txt", "._a.png", "b/film.mov", "c.jpeg/x.txt")
    assert list(list_photos(tmp_path)) == photos
    assert list_photos(tmp_path)["b/1.png"] == tmp_path / "b" / "1.png"
    others = no_photos(tmp_path, used=[tmp_path / "a.txt", None])
    assert list(others) == ["b/film.mov", "c.jpeg/x.txt"]
    assert others["b/film.mov"].startswith("no photo by its suffix; expected PNG")


def test_what_was_prepared_is_no_photo(tmp_path):
    touch(tmp_path, "a.png", "distances.png", "out/contact_sheet.png", "out/images/a.png")
    assert list(list_photos(tmp_path, tmp_path / "out")) == ["a.png", "distances.png"]
    assert list(list_photos(tmp_path, tmp_path)) == ["a.png", "out/contact_sheet.png", "out/images/a.png"]
    assert list(list_photos(tmp_path / "out" / "images", tmp_path / "out")) == ["a.png"]


def test_names_that_are_no_text_are_refused(tmp_path):
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jpg")).touch()
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    with pytest.raises(ValueError, match=r"caf.*\.jpg'?: the name is no UTF-8; rename the file"):
        list_photos(tmp_path)


def test_names_match_whatever_their_unicode_form(tmp_path):
    names = {form: unicodedata.normalize(form, "Zoë.png") for form in ("NFC", "NFD")}
    touch(tmp_path, names["NFD"])
    assert list(list_photos(tmp_path)) == [names["NFC"]]
    (tmp_path / "people.csv").write_text(f"file,identity\n{names['NFD']},zoe\n", encoding="utf-8")
    assert identities_from_csv(tmp_path / "people.csv") == {names["NFC"]: "zoe"}
    touch(tmp_path, names["NFC"])
    with pytest.raises(ValueError, match="two Unicode forms"):
        list_photos(tmp_path)


def test_people(tmp_path):
    found = identities_from_folders(["a/1.png", "a/2.png", "x/b/1.png", "0.png"])
    assert found == {"a/1.png": "a", "a/2.png": "a", "x/b/1.png": "x/b", "0.png": ""}
    path = tmp_path / "people.csv"
    path.write_text("\ufefffile,more,identity\r\na.png,1, p1 \r\nb.png,2,\r\n", encoding="utf-8")
    assert identities_from_csv(path) == {"a.png": "p1", "b.png": ""}
    for encoding, message in (("utf-16", "it looks like UTF-16"), ("cp1252", "byte 0xe9 in line 2")):
        path.write_bytes("file,identity\ncafé.png,p\n".encode(encoding))
        with pytest.raises(
            ValueError, match=f"people.csv: expected text in UTF-8, {message}; save it as UTF-8"
        ):
            identities_from_csv(path)
    with pytest.raises(FileNotFoundError, match=r"none.csv: no such file; expected a CSV file"):
        identities_from_csv(tmp_path / "none.csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,identity\na.png,p\na.png,q\n", r"people.csv, line 3: 'a.png' is listed twice"),
        ("file,identity\na.png\n", r"line 2: no value for identity"),
        ("name,identity\n", r"the header lacks file; expected the columns file, identity"),
    ],
)
def test_wrong_lists_of_people(tmp_path, text, message):
    (tmp_path / "people.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        identities_from_csv(tmp_path / "people.csv")


def test_landmarks_from_csv(tmp_path):
    path = tmp_path / "points.csv"
    path.write_text("\n".join([HEADER, ",".join(["a.png", *VALUES])]))
    points = landmarks_from_csv(path)["a.png"]
    np.testing.assert_array_equal(points, np.arange(136).reshape(68, 2) / 2)
    for wrong, message in (("x", "expected 136 numbers"), ("nan", "expected 136 finite numbers")):
        path.write_text("\n".join([HEADER, ",".join(["a.png", *VALUES[1:], wrong])]))
        with pytest.raises(ValueError, match=f"line 2 \\('a.png'\\).*{message}"):
            landmarks_from_csv(path)
    path.write_text("file,x0\n")
    with pytest.raises(ValueError, match="the header lacks y0, x1, y1"):
        landmarks_from_csv(path)


def test_labels_have_their_photos_name(tmp_path):
    touch(tmp_path, "a.png", "sub/b.png")
    found = label_files(tmp_path, ["a.jpg", "sub/b.webp", "c.jpg"])
    assert found == {"a.jpg": tmp_path / "a.png", "sub/b.webp": tmp_path / "sub" / "b.png"}
    with pytest.raises(ValueError, match=r"a.png: would be the parsing map of two photos"):
        label_files(tmp_path, ["a.jpg", "a.webp"])
    with pytest.raises(FileNotFoundError, match=r"holds no parsing map <name of a photo>.png, such as z.png"):
        label_files(tmp_path, ["z.jpg"])
    with pytest.raises(FileNotFoundError, match="no such folder; expected parsing maps"):
        label_files(tmp_path / "x", ["a.jpg"])
