"""Many photos in one run of `rpf enhance`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from rpf_lightning.cli import main
from rpf_lightning.enhancing import many, portraits
from rpf_lightning.enhancing.tasks import read_tasks, tasks_of
from rpf_lightning.model import RPFModel

Draw = Callable[..., NDArray[np.uint8]]


@pytest.fixture
def album(tmp_path: Path, drawn: Draw, bicubic: RPFModel, monkeypatch: Any, networks: Any) -> Path:
    """Photos of the person of blue 0, in a folder with a subfolder, a portrait, a model."""
    for name, square in (
        ("a.png", (70, 40, 24, 0)),
        ("b.jpg", (20, 30, 30, 0)),
        ("sub/a.png", (50, 50, 52, 0)),
    ):
        path = tmp_path / "photos" / name
        path.parent.mkdir(exist_ok=True, parents=True)
        Image.fromarray(drawn(160, 120, square)).save(
            path, **({"quality": 100} if path.suffix == ".jpg" else {})
        )
    Image.fromarray(drawn(120, 120, (10, 10, 100, 0))).save(tmp_path / "ahead.png")
    Image.fromarray(drawn(120, 120, (10, 10, 100, 0), green=50)).save(tmp_path / "side.png")
    bicubic.save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("rpf_lightning.enhancing.FaceNetworks", lambda *_: networks)
    return tmp_path


def enhance(words: str) -> None:
    main(["enhance", *words.split(), "--model-dir", "model"])


def written(folder: str = "out") -> dict[str, int]:
    """Files of a folder -> when each was written."""
    return {
        path.relative_to(folder).as_posix(): path.stat().st_mtime_ns
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file()
    }


FILES = ["a.png", "a_side_by_side.png", "b.jpg", "b_side_by_side.png", "enhanced.json", "sub/a.png"]
FILES += ["sub/a_side_by_side.png"]


def test_a_folder_of_photos(album: Path, networks: Any, monkeypatch: Any, capsys: Any) -> None:
    """Results lie under the photos' names and are those of single runs; networks and portrait are loaded once."""
    loaded: list[object] = []
    load, read = RPFModel.from_pretrained, portraits.read
    monkeypatch.setattr(RPFModel, "from_pretrained", lambda name: loaded.append(name) or load(name))
    monkeypatch.setattr(portraits, "read", lambda *given: loaded.append(given[0]) or read(*given))
    (album / "photos" / "notes.txt").write_text("no photo")
    enhance("photos --reference ahead.png --out out")
    assert loaded == ["model", Path("ahead.png")]
    assert sorted(written()) == FILES
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == "3 photos in out, 3 of them new"
    assert "photos/a.png: face 0: 24 -> 64 pixels" in out
    assert "100%" in out  # the bar
    assert "warning: face 0 of photos/a.png has 24 pixels, too few to tell people apart" in err
    assert "warning: face 0 of photos/sub/a.png" not in err
    enhance("photos/b.jpg --reference ahead.png --out single.jpg")
    assert Path("single.jpg").read_bytes() == Path("out/b.jpg").read_bytes()


def test_several_photos(album: Path) -> None:
    enhance("photos/a.png --reference ahead.png --out out photos/b.jpg")
    assert sorted(written()) == FILES[:5]


def test_a_bad_photo_stops_nothing(album: Path, drawn: Draw, capsys: pytest.CaptureFixture[str]) -> None:
    (album / "photos" / "a.png").write_bytes(b"no image")
    Image.fromarray(drawn(160, 120)).save(album / "photos" / "empty.png")
    with pytest.raises(SystemExit, match="2"):
        enhance("photos nothing.png --reference ahead.png --out out")
    assert sorted(written()) == [name for name in FILES if not name.startswith("a")]
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == "2 photos in out, 2 of them new"
    listed = err[err.index("rpf enhance: error") :].splitlines()
    assert listed[0] == "rpf enhance: error: 3 of 5 photos could not be enhanced:"
    assert listed[1].startswith("  photos/a.png: cannot be read")
    assert listed[2].startswith("  photos/empty.png: no face found")
    assert listed[3].startswith("  nothing.png: no such file")


def test_a_second_run_goes_on(album: Path, capsys: Any, monkeypatch: Any, drawn: Draw) -> None:
    """What is finished with the same inputs is not computed again."""

    def run(words: str = "photos --reference ahead.png --out out") -> set[str]:
        before = written() if Path("out").exists() else {}
        enhance(words)
        new = {name for name, time in written().items() if before.get(name) != time} - {"enhanced.json"}
        told = capsys.readouterr().out.splitlines()[-1]
        assert told == f"3 photos in out, {len(new) // 2} of them new"
        return {name for name in new if "side_by_side" not in name}

    everything = {"a.png", "b.jpg", "sub/a.png"}
    assert run() == everything
    with monkeypatch.context() as patched:
        patched.setattr(many, "find_faces", lambda *_: pytest.fail("searched"))
        assert run() == set()
    Path("out/b.jpg").unlink()
    assert run() == {"b.jpg"}
    Path("out/sub/a_side_by_side.png").unlink()
    assert run() == {"sub/a.png"}
    Image.fromarray(drawn(160, 120, (71, 40, 24, 0))).save("photos/a.png")
    assert run() == {"a.png"}
    assert run("photos --reference ahead.png --out out --quality 90") == everything
    assert run() == everything
    assert run("photos --reference ahead.png --out out --scale 4") == everything
    Image.open("side.png").save("ahead.png")
    assert run("photos --reference ahead.png --out out --scale 4") == everything
    model = RPFModel.from_pretrained("model")
    next(model.parameters()).data.add_(0.1)
    model.save_pretrained("model")
    assert run("photos --reference ahead.png --out out --scale 4") == everything


def test_what_was_done_before_an_interruption_counts(
    album: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    write, calls = many.write_enhanced, []

    def interrupted(*given: Any) -> None:
        calls.append(given)
        if len(calls) == 2:
            raise KeyboardInterrupt
        write(*given)

    with monkeypatch.context() as patched:
        patched.setattr(many, "write_enhanced", interrupted)
        with pytest.raises(KeyboardInterrupt):
            enhance("photos --reference ahead.png --out out")
    enhance("photos --reference ahead.png --out out")
    assert capsys.readouterr().out.splitlines()[-1] == "3 photos in out, 2 of them new"


def test_a_record_of_others_is_named(album: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("out").mkdir()
    Path("out/enhanced.json").write_text("[1]")
    with pytest.raises(SystemExit, match="2"):
        enhance("photos --reference ahead.png --out out")
    assert "out/enhanced.json: expected what rpf enhance wrote" in capsys.readouterr().err


def test_results_in_the_folder_of_photos_are_no_photos(album: Path, capsys: Any) -> None:
    for new in (3, 0):
        enhance("photos --reference ahead.png --out photos/sharp")
        assert capsys.readouterr().out.splitlines()[-1] == f"3 photos in photos/sharp, {new} of them new"


def test_kinds_that_are_not_written_become_png(album: Path) -> None:
    Image.open("photos/a.png").save("c.tif")
    assert [task.out for task in tasks_of(["c.tif", "photos/b.jpg"], "out", {})] == [
        Path("out/c.png"),
        Path("out/b.jpg"),
    ]


@pytest.mark.parametrize(
    ("photos", "message"),
    [
        ("photos/a.png photos/sub/a.png", r"photos/a\.png and photos/sub/a\.png would both write out/a\.png"),
        ("photos/a.png A.PNG", r"photos/a\.png and A\.PNG would both write out/A\.PNG"),
        ("photos/a.png a.tif", r"photos/a\.png and a\.tif would both write out/a\.png"),
        ("photos/b.jpg b_side_by_side.png", r"both write out/b_side_by_side\.png"),
        ("photos/b.jpg b.webp", r"both write out/b_side_by_side\.png"),
    ],
)
def test_names_that_clash(album: Path, photos: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tasks_of(photos.split(), "out", {})


def test_a_photo_that_is_named_twice_is_one(album: Path) -> None:
    assert len(tasks_of(["photos", "photos/a.png", "photos/sub/../a.png"], "out", {})) == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("photos --reference ahead.png --out photos", "out: photos holds the photos of photos"),
        ("photos --reference ahead.png --out .", "out: . holds the photos of photos"),
        ("photos --reference ahead.png --out out.png", "out: expected a folder for several photos"),
        ("photos --reference photos/b.jpg --out ahead.png/x", "is no folder that may be written to"),
        ("photos/a.png photos/b.jpg --reference ahead.png --out photos", "would overwrite photos/a.png"),
        ("photos --reference none.png --out out", "none.png: no such file"),
        ("photos --reference model/config.json --out out", "config.json: cannot be read"),
        ("people --reference ahead.png --out out", "people: no such file"),
        ("photos --people photos --out out", "photos: expected a folder per person"),
        ("photos --out out", "expected a photo and --reference, --face INDEX=PORTRAIT or --people FOLDER"),
    ],
)
def test_refusals_before_anything_is_searched(
    album: Path, words: str, message: str, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(many, "find_faces", lambda *_: pytest.fail("searched"))
    with pytest.raises(SystemExit, match="2"):
        enhance(words)
    assert message in capsys.readouterr().err


def test_missing_weights_are_told_once(album: Path, networks: Any, capsys: Any, monkeypatch: Any) -> None:
    def missing(_: object) -> None:
        raise FileNotFoundError("the weights of arcface are not there")

    monkeypatch.setattr(type(networks), "recogniser", property(missing))
    with pytest.raises(SystemExit, match="2"):
        enhance("photos --reference ahead.png --out out")
    err = capsys.readouterr().err.splitlines()
    assert err[-1] == "rpf enhance: error: the weights of arcface are not there"
    assert not any("photos/" in line for line in err)


def test_people_in_many_photos(album: Path, drawn: Draw, capsys: pytest.CaptureFixture[str]) -> None:
    for name, blue in (("anna", 0), ("ben", 255)):
        Path("people", name).mkdir(parents=True)
        Image.fromarray(drawn(120, 120, (10, 10, 100, blue))).save(f"people/{name}/1.png")
    Image.fromarray(drawn(60, 60)).save("people/ben/2.png")
    Image.fromarray(drawn(300, 120, (10, 10, 55, 255), (90, 20, 50, 0))).save("photos/b.png")
    Path("photos/b.jpg").unlink()
    with pytest.raises(SystemExit, match="2"):
        enhance("photos --people people --out out")
    assert sorted(written()) == ["b.png", "b_side_by_side.png", "enhanced.json", *FILES[-2:]]
    out, err = capsys.readouterr()
    assert "photos/b.png: face 0: 55 -> 64" in out
    assert "ben; reference people/ben/1.png" in out
    assert err.count("warning: a portrait of ben is left out: people/ben/2.png: no face found") == 1
    assert "1 of 3 photos could not be enhanced:\n  photos/a.png: nobody was recognised" in err
    Path("people/ben/2.png").unlink()  # other portraits: all anew
    Path("photos/a.png").unlink()
    enhance("photos --people people --out out")
    assert capsys.readouterr().out.splitlines()[-1] == "2 photos in out, 2 of them new"


def test_a_list(album: Path, drawn: Draw, capsys: pytest.CaptureFixture[str]) -> None:
    """Several portraits and several faces of a photo stand in several lines."""
    Image.fromarray(drawn(300, 120, (10, 10, 55, 0), (90, 20, 50, 0))).save("photos/two.png")
    Path("list.csv").write_text(
        "photo,reference,face,name\n"
        "photos/a.png,ahead.png,,\nphotos/a.png,side.png,,\n"
        "photos/two.png,side.png,1,\nphotos/two.png,ahead.png,0,\n"
        "photos/sub/a.png,ahead.png,,other/c.png\n"
    )
    enhance("--csv list.csv --out out")
    assert [name for name in written() if "side_by" not in name] == [
        "enhanced.json", "other/c.png", "photos/a.png", "photos/two.png",
    ]  # fmt: skip
    out = capsys.readouterr().out.replace("\n", " ")
    assert "photos/two.png: face 0: 55 -> 64" in out
    assert "photos/two.png: face 1: 50 -> 64" in out
    record = json.loads(Path("out/enhanced.json").read_text())
    assert sorted(record) == ["other/c.png", "photos/a.png", "photos/two.png"]
    enhance("--csv list.csv --out out")
    assert capsys.readouterr().out.splitlines()[-1] == "3 photos in out, 0 of them new"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            ["reference", "ahead.png"],
            r"list\.csv: expected the column photo and at most photo, reference, face",
        ),
        (["photo,lr", "photos/a.png,x"], r"expected the column photo .*, got photo, lr"),
        (["photo", "none.png"], r"line 2: photo none\.png is not there"),
        (["photo,reference", ",ahead.png"], "line 2: photo is empty"),
        (["photo,reference", "photos/a.png,no.png"], r"line 2: reference no\.png is not there"),
        (["photo,reference,face", "photos/a.png,ahead.png,left"], "line 2: face: expected a number"),
        (["photo,face", "photos/a.png,1"], "line 2: face without a reference"),
        (
            ["photo,reference,face", "photos/a.png,ahead.png,", "photos/a.png,side.png,1"],
            r"line 3: expected a face in every line of photos/a\.png or in none",
        ),
        (["photo,name", "photos/a.png,x", "photos/b.jpg,x"], "line 3: .* have the name x"),
        (["photo,name", "photos/a.png,../x"], r"line 2: name '\.\./x': expected a relative name"),
        (["photo,name", "photos/a.png,x.png", "photos/b.jpg,x"], r"would both write out/x\.png"),
    ],
)
def test_bad_lists(album: Path, lines: list[str], message: str) -> None:
    Path("list.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_tasks("list.csv", "out")


def test_a_list_needs_portraits_or_people(album: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("list.csv").write_text("photo\nphotos/sub/a.png\n")
    with pytest.raises(SystemExit, match="2"):
        enhance("--csv list.csv --out out")
    assert (
        "list.csv: expected a reference for photos/sub/a.png, or --people FOLDER" in capsys.readouterr().err
    )
    Path("people/anna").mkdir(parents=True)
    Image.open("ahead.png").save("people/anna/1.png")
    enhance("--csv list.csv --people people --out out")
    assert sorted(written()) == ["enhanced.json", "photos/sub/a.png", "photos/sub/a_side_by_side.png"]
