"""`rpf enhance`: files, messages and exits."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from rpf_lightning import enhancing
from rpf_lightning.cli import main
from rpf_lightning.enhancing import outputs
from rpf_lightning.model import RPFModel

Draw = Callable[..., NDArray[np.uint8]]


@pytest.fixture
def files(tmp_path: Path, drawn: Draw, bicubic: RPFModel, portraits: Sequence[NDArray[np.uint8]]) -> Path:
    """A photo of two people, two portraits, a crop, and a model directory."""
    pictures = {
        "photo": drawn(300, 120, (10, 10, 55, 255), (90, 20, 50, 0)),
        "side": portraits[0],
        "ahead": portraits[1],
        "crop": drawn(24, 24, (0, 0, 24, 0)),
    }
    for name, image in pictures.items():
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    bicubic.save_pretrained(tmp_path / "model")
    (tmp_path / "out").mkdir()
    return tmp_path


@pytest.fixture
def enhance(files: Path, networks: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`enhance(arguments)` runs the command in the folder of the files, with drawn faces."""
    monkeypatch.setattr(enhancing, "FaceNetworks", lambda *_: networks)
    monkeypatch.chdir(files)
    return lambda text: main(["enhance", *text.split(), "--model-dir", "model"])


def test_writes_the_photo_and_a_picture(
    enhance: Callable[..., None], files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    enhance("photo.png --reference side.png --reference ahead.png --out out/new/sharp.png")
    written = files / "out" / "new"
    assert sorted(path.name for path in written.iterdir()) == ["sharp.png", "sharp_side_by_side.png"]
    with Image.open(written / "sharp.png") as image:
        assert image.size == (600, 240)
    with Image.open(written / "sharp_side_by_side.png") as image:
        assert image.width > 5 * 128
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "face 1: 50 -> 64 pixels, entering at 32, photo enlarged 2 times, identity cosine 1.00; reference ahead.png",
        "out/new/sharp.png and out/new/sharp_side_by_side.png",
    ]
    assert err == "faces: squares; mask of the reference: the mean mask of aligned faces\n"


def test_the_photo_may_come_last(enhance: Callable[..., None], files: Path) -> None:
    enhance("--out out/sharp.png --reference side.png --reference ahead.png photo.png")
    assert (files / "out" / "sharp.png").is_file()


def test_warnings_go_to_stderr(
    enhance: Callable[..., None], files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    enhance("photo.png --reference ahead.png --face 0 --force --out out/a.png")
    assert (
        capsys.readouterr()
        .err.splitlines()[1]
        .startswith("warning: ahead.png is clearly another person than face 0 of photo.png")
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("photo.png --reference ahead.png --face 0 --out out/a.png", "--force enhances nevertheless"),
        ("photo.png --reference ahead.png --face 7 --out out/a.png", "--face 7 is not there"),
        ("photo.png --reference ahead.png --out out/a.jpg", "expected the name of a .png file"),
        ("photo.png --reference ahead.png --out ahead.png", "ahead.png would overwrite ahead.png"),
        ("photo.png --reference ahead.png --out ./photo.png", "would overwrite photo.png"),
        ("none.png --reference ahead.png --out out/a.png", "none.png: no such file"),
        ("photo.png --reference model/config.json --out out/a.png", "config.json: cannot be read"),
        (
            "crop.png --aligned --reference ahead.png --reference side.png --out out/a.png",
            "--aligned: expected one",
        ),
        ("crop.png --aligned --face 0 --reference ahead.png --out out/a.png", "--aligned: expected one"),
        ("photo.png --out out/a.png", "expected a photo and --reference"),
        ("photo.png --aligned --csv list.csv --out out", "--csv: expected --aligned with it, and no photo"),
        ("--aligned --csv list.csv --out out --mask-model template", "--csv: expected none of --mask_model"),
        ("--csv list.csv --out out", "--csv: expected --aligned with it, and no photo"),
        (
            "photo.png --reference ahead.png --out out/a.png --mask-model oval",
            "'hull', 'template']. Got value: oval",
        ),
    ],
)
def test_refusals_write_nothing(
    enhance: Callable[..., None],
    files: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: str,
    message: str,
) -> None:
    with pytest.raises(SystemExit, match="2"):
        enhance(arguments)
    assert message in capsys.readouterr().err
    assert list((files / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("out", "expected the name of a .png file"),
        ("folder.png", "folder.png is a folder"),
        ("half.png", "half_side_by_side.png is a folder"),
        ("photo.png/a.png", "is no folder that may be written to"),
        ("link.png", "link.png would overwrite photo.png"),
    ],
)
def test_places_are_checked_before_the_work(
    enhance: Callable[..., None],
    files: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    out: str,
    message: str,
) -> None:
    (files / "folder.png").mkdir()
    (files / "half_side_by_side.png").mkdir()
    if out == "link.png":  # as Photo.png is on a disk where case does not count
        (files / "link.png").hardlink_to(files / "photo.png")
    monkeypatch.setattr(enhancing, "enhance_photo", lambda *_: pytest.fail("computed"))
    with pytest.raises(SystemExit, match="2"):
        enhance(f"photo.png --reference ahead.png --out {out}")
    assert message in capsys.readouterr().err


def test_a_folder_that_may_not_be_written_to(
    enhance: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(outputs.os, "access", lambda *_: False)
    monkeypatch.setattr(enhancing, "enhance_photo", lambda *_: pytest.fail("computed"))
    with pytest.raises(SystemExit, match="2"):
        enhance("photo.png --reference ahead.png --out out/new/a.png")
    assert "out/new/a.png cannot be written" in capsys.readouterr().err


def test_options_reach_the_networks(
    files: Path, networks: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: list[object] = []
    monkeypatch.setattr(enhancing, "FaceNetworks", lambda *arguments: given.append(arguments) or networks)
    monkeypatch.chdir(files)
    text = "enhance photo.png --reference ahead.png --out out/a.png --model_dir model --pack antelopev2"
    main(
        [
            *text.split(),
            "--mask-model",
            "hull",
            "--landmark-model",
            "onnx:a.onnx",
            "--device",
            "cpu",
            "--face-models",
            "insightface",
        ]
    )
    assert given == [("antelopev2", "hull", "onnx:a.onnx", torch.device("cpu"), "insightface")]
    for device, message in (
        ("gpu", "device: expected auto, cpu"),
        ("cuda:99", "device: cuda:99 is not here"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main([*text.split(), "--device", device])
        assert message in capsys.readouterr().err


def test_the_default_model_is_the_packaged_one(
    files: Path, drawn: Draw, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(files)
    text = "--aligned --reference ahead.png --out out/a.png --mask-model template"
    for side in (24, 63, 64, 100):
        Image.fromarray(drawn(side, side, (0, 0, side, 0))).save("crop.png")
        main(["enhance", "crop.png", *text.split()])
        assert f"entering at {max(n for n in (16, 32, 64) if n <= side)}," in capsys.readouterr().out
        with Image.open("out/a.png") as image:
            assert image.size == (128, 128)


def test_missing_models_are_named(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["enhance", str(files / "photo.png"), "--reference", str(files / "ahead.png")]
    with pytest.raises(SystemExit):
        main([*arguments, "--out", str(files / "a.png"), "--model-dir", str(files / "nowhere")])
    assert "nowhere" in capsys.readouterr().err


def test_aligned_crops_need_no_weights_with_the_template(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(files)
    text = "enhance crop.png --aligned --reference ahead.png --out out/a.png --model_dir model --mask-model template"
    main(text.split())
    with Image.open("out/a.png") as image:
        assert image.size == (64, 64)
    assert "entering at 16" in capsys.readouterr().out
    Image.open("crop.png").resize((60, 60)).save("crop60.png")
    main([*text.replace("crop.png", "crop60.png").split(), "--face-models", "insightface"])
    assert "was not compared: the weights 'buffalo_l'" in capsys.readouterr().err


def test_the_mask_model_is_named_where_weights_are_missing(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(files)
    text = "enhance crop.png --aligned --reference ahead.png --out out/a.png --model_dir model --mask-model bisenet"
    with pytest.raises(SystemExit):
        main(text.split())
    assert "--mask-model hull (from 68 landmarks) or --mask-model template" in capsys.readouterr().err


def test_the_picture_stays_inside_of_the_photo(
    drawn: Draw, networks: Any, bicubic: RPFModel, portraits: Any
) -> None:
    from rpf_lightning.enhancing import enhance_photo

    result = enhance_photo(drawn(160, 30, (1, 2, 26, 0)), portraits, bicubic, networks)
    assert outputs._around_face(result.image, result).shape == (128, 128, 3)


def test_an_error_of_the_second_picture_leaves_nothing(
    enhance: Callable[..., None], files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise ValueError("cannot be drawn")

    monkeypatch.setattr(outputs, "draw_rows", broken)
    with pytest.raises(SystemExit):
        enhance("photo.png --reference ahead.png --out out/new/a.png")
    assert list((files / "out").iterdir()) == []
