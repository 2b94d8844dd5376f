"""CelebA-HQ's text files: reading, counts, splits."""

import json
from pathlib import Path

import pytest

from rpf_lightning.cli import main
from rpf_lightning.data.preparation import celeba

# index -> person; 1003 and 1004 are one person in two partitions, 5 stands alone
PEOPLE = {0: 7, 1: 7, 2: 8, 1000: 8, 1001: 9, 1002: 9, 1003: 10, 1004: 10, 5: 11}
PARTITION = {0: 0, 1: 0, 2: 1, 1000: 1, 1001: 2, 1002: 2, 1003: 0, 1004: 2, 5: 0}
HEADER = "idx         orig_idx    orig_file\n"


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Mapping, identities and partition of `PEOPLE`, in the released layout."""
    contents = (
        "".join(f"{index:<11}{100 + index:<10}{name(index)}\n" for index in PEOPLE),
        "".join(f"{name(index)} {person}\n" for index, person in PEOPLE.items()),
        "".join(f"{name(index)} {part}\n" for index, part in PARTITION.items()),
    )
    paths = [tmp_path / name for name in ("mapping.txt", "identities.txt", "partition.txt")]
    for path, text in zip(paths, contents, strict=True):
        path.write_text(text)
    return paths


def name(index: int) -> str:
    return f"{101 + index:06d}.jpg"


COUNTS = {
    "identities": 5,
    "images_with_partner": 8,
    "paper": {"train": 4, "test": 3},  # 1000's only partner is below 1000, 2's may be anywhere
    "disjoint": {"train": 2, "val": 2, "test": 2},
}


def test_counts_by_hand(files: list[Path]) -> None:
    assert celeba.counts(celeba.read_metadata(*files)) == COUNTS
    without = celeba.counts(celeba.read_metadata(*files[:2]))
    assert without == {key: value for key, value in COUNTS.items() if key != "disjoint"}


@pytest.mark.parametrize("change", ["header", "crlf", "bom", "blank lines"])
def test_layouts_of_the_files(files: list[Path], change: str) -> None:
    for path in files:
        text = path.read_text()
        if change == "header" and path is files[0]:
            text = HEADER + text
        elif change == "crlf":
            text = text.replace("\n", "\r\n")
        elif change == "bom":
            text = "\ufeff" + text
        elif change == "blank lines":
            text = text.replace("\n", "\n\n")
        path.write_bytes(text.encode())
    assert celeba.counts(celeba.read_metadata(*files)) == COUNTS


def test_parts_and_candidates(files: list[Path]) -> None:
    parts = celeba.split_indices(celeba.read_metadata(*files))
    assert parts["paper_test"] == ([0, 1, 2, 5], sorted(PEOPLE))
    assert parts["paper_train"] == ([1000, 1001, 1002, 1003, 1004],) * 2
    assert parts["disjoint_train"] == ([0, 1, 5, 1003],) * 2
    assert parts["disjoint_val"] == ([2, 1000],) * 2


@pytest.mark.parametrize("which", [0, 1, 2])
def test_missing_and_short_files_are_named_with_what_they_should_hold(files: list[Path], which: int) -> None:
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


def test_wrong_rows_name_their_line(files: list[Path]) -> None:
    text = files[0].read_text()
    files[0].write_text(text + "x 1 a.jpg\n")
    with pytest.raises(ValueError, match=r"mapping.txt, line 10: expected rows `idx orig_idx orig_file`"):
        celeba.read_metadata(*files)
    files[0].write_text(text + "0 1 a.jpg\n")
    with pytest.raises(ValueError, match="line 10: 0 is listed twice"):
        celeba.read_metadata(*files)
    files[0].write_text(text)
    files[2].write_text(files[2].read_text() + "z.jpg 3\n")
    with pytest.raises(ValueError, match=r"partition.txt, line 10"):
        celeba.read_metadata(*files)


def test_rows_that_point_nowhere_are_people_unknown(files: list[Path]) -> None:
    files[0].write_text(files[0].read_text() + "77 1 nowhere.jpg\n")
    metadata = celeba.read_metadata(*files)
    assert metadata.nowhere == {77: "nowhere.jpg"}
    assert metadata.identities[77] == ""
    assert celeba.counts(metadata) == COUNTS
    assert any("index 77 points to nowhere.jpg" in line for line in celeba.describe(metadata, 3))


def test_counts_are_printed_as_one_json_object(files: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    mapping, identities, partition = map(str, files)
    args = ["prepare", "celeba-hq", "--mapping", mapping, "--identities", identities]
    main([*args, "--partition", partition, "--counts"])
    captured = capsys.readouterr()
    assert json.loads(captured.out) == COUNTS
    assert "holds 9 rows" in captured.err


@pytest.mark.realdata
def test_counts_of_the_released_files(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = shared / "data" / "celeba_metadata"
    paths = [
        root / name
        for name in ("CelebA-HQ-to-CelebA-mapping.txt", "identity_CelebA.txt", "list_eval_partition.txt")
    ]
    mapping, identities, partition = map(str, paths)
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
    metadata = celeba.read_metadata(*paths)
    same = [a for a, b in celeba.KNOWN_DUPLICATES if metadata.identities[a] == metadata.identities[b]]
    assert same == [3329, 7384, 12885, 13825, 15506]
    assert len(celeba.KNOWN_DUPLICATES) == 13
