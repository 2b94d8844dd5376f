"""CelebA-HQ: its text files, counts and splits, and the prepared folder."""

import json
import shutil

import pytest
from csv_files import rejected, rows, write

from rpf_lightning.cli import main
from rpf_lightning.data.preparation import Options, celeba, prepare_celeba_hq
from rpf_lightning.data.prepared_photos import PreparedPhotos

# index -> person; 1003 and 1004 are one person in two partitions, 5 stands alone
PEOPLE = {0: 7, 1: 7, 2: 8, 1000: 8, 1001: 9, 1002: 9, 1003: 10, 1004: 10, 5: 11}
PARTITION = {0: 0, 1: 0, 2: 1, 1000: 1, 1001: 2, 1002: 2, 1003: 0, 1004: 2, 5: 0}
COUNTS = {
    "identities": 5,
    "images_with_partner": 8,
    "paper": {"train": 4, "test": 3},  # 1000's only partner is below 1000, 2's may be anywhere
    "disjoint": {"train": 2, "val": 2, "test": 2},
}


def write_files(root, people, partition):
    """Mapping, identities and partition in the released layout."""
    contents = {
        "mapping": "".join(f"{i:<11}{100 + i:<10}{101 + i:06d}.jpg\n" for i in people),
        "identities": "".join(f"{101 + i:06d}.jpg {person}\n" for i, person in people.items()),
        "partition": "".join(f"{101 + i:06d}.jpg {part}\n" for i, part in partition.items()),
    }
    for name, text in contents.items():
        (root / f"{name}.txt").write_text(text)
    return [root / f"{name}.txt" for name in contents]


@pytest.fixture
def files(tmp_path):
    return write_files(tmp_path, PEOPLE, PARTITION)


def test_counts_and_parts_by_hand(files):
    metadata = celeba.read_metadata(*files)
    assert celeba.counts(metadata) == COUNTS
    without = celeba.counts(celeba.read_metadata(*files[:2]))
    assert without == {key: value for key, value in COUNTS.items() if key != "disjoint"}
    parts = celeba.split_indices(metadata)
    assert parts["paper_test"] == ([0, 1, 2, 5], sorted(PEOPLE))
    assert parts["paper_train"] == ([1000, 1001, 1002, 1003, 1004],) * 2
    assert parts["disjoint_train"] == ([0, 1, 5, 1003],) * 2
    assert parts["disjoint_val"] == ([2, 1000],) * 2


def test_layouts_of_the_files(files):
    texts = [path.read_text() for path in files]
    texts[0] = "idx         orig_idx    orig_file\n" + texts[0]
    for end, beginning in (("\r\n", ""), ("\n", "\ufeff"), ("\n\n", "")):
        for path, text in zip(files, texts, strict=True):
            path.write_bytes((beginning + text.replace("\n", end)).encode())
        assert celeba.counts(celeba.read_metadata(*files)) == COUNTS


@pytest.mark.parametrize("which", [0, 1, 2])
def test_missing_and_short_files_are_named_with_what_they_should_hold(files, which):
    rows = ("30,000", "202,599", "202,599")[which]
    warnings = celeba.read_metadata(*files).warnings
    assert str(files[which]) in warnings[which]
    assert f"holds 9 rows; the released file holds {rows}" in warnings[which]
    files[which].write_text("\n")
    with pytest.raises(ValueError, match=f"holds no row; it should hold {rows}"):
        celeba.read_metadata(*files)
    files[which].unlink()
    with pytest.raises(FileNotFoundError, match=f"{files[which].name}: no such file; it should hold {rows}"):
        celeba.read_metadata(*files)


@pytest.mark.parametrize(
    ("which", "row", "message"),
    [
        (0, b"x 1 a.jpg\n", r"mapping.txt, line 10: expected rows `idx orig_idx orig_file`"),
        (0, b"0 1 a.jpg\n", r"line 10: 0 is listed twice"),
        (1, b"caf\xe9.jpg 1\n", r"identities.txt: expected text in UTF-8, byte 0xe9 in line 1"),
        (2, b"z.jpg 3\n", r"partition.txt, line 10"),
        (2, b"z.jpg -1\n", r"partition.txt, line 10"),
    ],
)
def test_wrong_rows_name_their_line(files, which, row, message):
    files[which].write_bytes(files[which].read_bytes() + row)
    with pytest.raises(ValueError, match=message):
        celeba.read_metadata(*files)


def test_counts_are_printed_as_one_json_object(files, capsys):
    files[0].write_text(files[0].read_text() + "77 1 nowhere.jpg\n")  # somebody unknown
    mapping, identities, partition = map(str, files)
    args = ["prepare", "celeba-hq", "--mapping", mapping, "--identities", identities]
    main([*args, "--partition", partition, "--counts"])
    captured = capsys.readouterr()
    assert json.loads(captured.out) == COUNTS
    assert "holds 10 rows" in captured.err


@pytest.mark.realdata
def test_counts_of_the_released_files(shared, capsys):
    root = shared / "data" / "celeba_metadata"
    names = ("CelebA-HQ-to-CelebA-mapping.txt", "identity_CelebA.txt", "list_eval_partition.txt")
    mapping, identities, partition = (str(root / name) for name in names)
    args = ["prepare", "celeba-hq", "--mapping", mapping, "--identities", identities]
    main([*args, "--partition", partition, "--counts"])
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {
        "identities": 6217,
        "images_with_partner": 28299,
        "paper": {"train": 27294, "test": 987},
        "disjoint": {"train": 22820, "val": 2834, "test": 2645},
    }
    assert captured.err == ""
    metadata = celeba.read_metadata(mapping, identities, partition)
    same = [a for a, b in celeba.KNOWN_DUPLICATES if metadata.identities[a] == metadata.identities[b]]
    assert same == [3329, 7384, 12885, 13825, 15506]
    assert len(celeba.KNOWN_DUPLICATES) == 13


def release(folder, first=998, **others):
    """Rename the drawn photos to CelebA-HQ indices; arguments of `prepare_celeba_hq`."""
    index = {f"{p}-{s}": first + 3 * p + s for p in range(6) for s in range(3)} | others
    for old, new in index.items():
        for part in ("images", "labels"):
            (folder / part / f"{old}.png").rename(folder / part / f"{new}.png")
    points = rows(folder, "landmarks.csv")
    renamed = [[f"{index[row[0][:-4]]}.png", *row[1:]] for row in points[1:]]
    write(folder, "landmarks.csv", [points[0], *renamed])
    people = {new: int(old[0]) for old, new in index.items()}
    mapping, identities, partition = write_files(folder, people, {i: p % 3 for i, p in people.items()})
    options = Options(
        landmarks=str(folder / "landmarks.csv"), labels=str(folder / "labels"), label_scheme="bisenet",
        embeddings=False, num_workers=0,
    )  # fmt: skip
    return {
        "images": folder / "images", "mapping": mapping, "identities": identities, "partition": partition,
        "out": folder.parent / "out", "options": options,
    }  # fmt: skip


def test_celeba_hq(folder):
    given = release(folder)  # 998, 999, 1000 are one person
    shutil.copy(folder / "images" / "1001.png", folder / "images" / "portrait.png")
    given["mapping"].write_text(given["mapping"].read_text() + "29999 5 999999.jpg\n")
    lines = []
    summary = prepare_celeba_hq(**given, say=lines.append)
    text = "\n".join(lines)
    assert "holds 19 rows; the released file holds 30,000" in text
    assert "index 29999 points to 999999.jpg" in text
    assert "identities: 6 (released files: 6,217)" in text
    assert "disjoint val: 6 (released files: 2,834)" in text
    assert summary["counts"]["pairs"] == {
        "paper_train": 15, "paper_test": 2, "disjoint_train": 6, "disjoint_val": 6, "disjoint_test": 6,
    }  # fmt: skip
    assert rejected(given["out"]) == {"portrait.png": "its name is no index that mapping.txt lists"}
    photos = PreparedPhotos(given["out"])
    assert photos.ids[:3] == ["998.png", "999.png", "1000.png"]  # by number
    gts = {photos.ids[pair.gt] for pair in photos.pairs("paper_test")}
    assert gts == {"998.png", "999.png"}
    train = photos.pairs("paper_train")
    assert {photos.ids[i] for pair in train for i in pair[:2]} == {f"{i}.png" for i in range(1001, 1016)}
    for number, part in enumerate(("train", "val", "test")):
        people = {photos.identities[pair.gt] for pair in photos.pairs(f"disjoint_{part}")}
        assert people == {str(p) for p in range(6) if p % 3 == number}


def test_known_duplicates_of_celeba_hq(folder):
    """Index pairs 3329/3330 (one person here) and 234/235 (two): made-up pictures that the rule cannot find."""
    given = release(folder, 2000, **{"0-0": 3329, "0-1": 3330, "1-0": 234, "2-0": 235})
    lines = []
    summary = prepare_celeba_hq(**given, say=lines.append)
    assert summary["counts"]["near_duplicates"] == {"one_identity": 1, "two_identities": 1, "all": 2}
    assert any("leak: 234.png and 235.png" in line for line in lines)
    photos = PreparedPhotos(given["out"])
    pairs = {(photos.ids[pair.gt], photos.ids[pair.reference]) for pair in photos.pairs("paper_train")}
    assert {("3329.png", "2002.png"), ("3330.png", "2002.png")} <= pairs


def test_names_that_are_no_index_or_one_index_twice_are_refused(folder):
    given = release(folder)
    shutil.copy(folder / "images" / "1001.png", folder / "images" / "01001.png")
    with pytest.raises(ValueError, match=r"have the same CelebA-HQ index"):
        prepare_celeba_hq(**given)
    for path in list((folder / "images").iterdir()):
        path.rename(path.with_name(f"x{path.name}"))
    with pytest.raises(FileNotFoundError, match="no photo there is named by an index"):
        prepare_celeba_hq(**given)
