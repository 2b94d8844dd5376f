"""`rpf enhance`: files, messages and exits."""

import io
import struct
from collections.abc import Callable, Sequence
from dataclasses import replace
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
from rpf_lightning.enhancing.inputs import read_metadata
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
        "faces were sought from 5 pixels on",
        "out/new/sharp.png and out/new/sharp_side_by_side.png",
    ]
    assert err == "faces: squares\nmask of the reference: the mean mask of aligned faces\n"


def test_the_photo_may_come_last(enhance: Callable[..., None], files: Path) -> None:
    enhance("--out out/sharp.png --reference side.png --reference ahead.png photo.png")
    assert (files / "out" / "sharp.png").is_file()


def test_warnings_go_to_stderr(
    enhance: Callable[..., None], files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    enhance("photo.png --reference ahead.png --face 0 --force --out out/a.png")
    assert (
        capsys.readouterr()
        .err.splitlines()[2]
        .startswith("warning: ahead.png is clearly another person than face 0 of photo.png")
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("photo.png --reference ahead.png --face 0 --out out/a.png", "--force enhances nevertheless"),
        ("photo.png --reference ahead.png --face 7 --out out/a.png", "--face 7 is not there"),
        (
            "photo.png --reference ahead.png --out out/a.gif",
            "expected the name of a .png, .jpg or .webp file",
        ),
        ("photo.png --reference ahead.png --out out/a.jpg --quality 0", "quality: expected 1 to 100, got 0"),
        ("photo.png --reference ahead.png --out out/a.png --scale 0", "scale: expected 1 or more"),
        ("photo.png --reference ahead.png --out out/a.png --scale 2 --keep-size", "expected one of them"),
        ("crop.png --aligned --reference ahead.png --out out/a.png --scale 2", "none with --aligned"),
        ("--aligned --csv list.csv --out out --keep-size", "--csv: expected none of --scale, --keep_size"),
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
        ("out", "expected the name of a .png, .jpg or .webp file"),
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


def exif_of_a_camera() -> Image.Exif:
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "Maker", 6
    exif[0x8769] = {0x9003: "2020:01:02 03:04:05", 0xA002: 120}
    exif[0x8825] = {1: "N", 2: (47.0, 22.0, 0.0)}
    return exif


@pytest.mark.parametrize("source", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_metadata_is_kept_or_stripped(
    enhance: Callable[..., None],
    files: Path,
    wide_profile: bytes,
    source: str,
    suffix: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """EXIF stays, upright and without a thumbnail; so does a colour profile, and the colours with it."""
    turned = Image.open("photo.png").transpose(Image.Transpose.ROTATE_90)
    turned.save(f"camera.{source}", exif=exif_of_a_camera().tobytes(), icc_profile=wide_profile, quality=95)
    enhance(f"camera.{source} --reference ahead.png --face 1 --force --scale 2 --out out/kept.{suffix}")
    with Image.open(f"out/kept.{suffix}") as kept:
        assert kept.size == (600, 240)
        exif = kept.getexif()
        assert exif[0x010F] == "Maker"
        assert exif[0x0112] == 1
        assert exif.get_ifd(0x8769) == {0x9003: "2020:01:02 03:04:05"}
        assert exif.get_ifd(0x8825)[2] == (47.0, 22.0, 0.0)
        assert 256 not in exif
        assert not exif.get_ifd(1)
        assert kept.info["icc_profile"] == wide_profile
        same = np.asarray(kept.convert("RGB").resize((300, 120))).astype(int)
    original = np.rot90(np.asarray(turned), -1)
    assert np.abs(same - original)[80:, :60].mean() < 3  # the background, in the photo's own colours
    enhance(
        f"camera.{source} --reference ahead.png --face 1 --force --strip-metadata --out out/bare.{suffix}"
    )
    with Image.open(f"out/bare.{suffix}") as bare:
        assert not bare.getexif()
        assert "icc_profile" not in bare.info
    assert "warning: camera" not in capsys.readouterr().err


def test_the_thumbnail_is_dropped(files: Path) -> None:
    small = io.BytesIO()
    Image.new("RGB", (16, 12)).save(small, "JPEG")
    exif = exif_of_a_camera()
    content = bytearray(exif.tobytes())
    # a second IFD behind the first: the place and the length of a JPEG
    order, first = "<" if content[6:8] == b"II" else ">", 14
    (count,) = struct.unpack_from(order + "H", content, first)
    at = len(content) - 6
    struct.pack_into(order + "I", content, first + 2 + 12 * count, at)
    content += struct.pack(order + "H", 2)
    content += struct.pack(order + "HHII", 0x0201, 4, 1, at + 30)
    content += struct.pack(order + "HHII", 0x0202, 4, 1, len(small.getvalue())) + struct.pack(order + "I", 0)
    content += small.getvalue()
    Image.open(files / "photo.png").save(files / "a.jpg", exif=bytes(content))
    assert small.getvalue() in (files / "a.jpg").read_bytes()
    warnings: list[str] = []
    kept = read_metadata(files / "a.jpg", "a.jpg", warnings)
    assert warnings == []
    assert small.getvalue() not in kept.exif
    assert b"Maker" in kept.exif


def test_quality(enhance: Callable[..., None], files: Path) -> None:
    sizes = []
    for quality in (30, 95):
        enhance(f"photo.png --reference ahead.png --out out/a.jpg --quality {quality}")
        sizes.append((files / "out" / "a.jpg").stat().st_size)
    assert 2 * sizes[0] < sizes[1]
    with Image.open("out/a.jpg") as image:
        assert image.format == "JPEG"


def test_what_a_format_cannot_hold(
    files: Path, drawn: Draw, networks: Any, bicubic: RPFModel, portraits: Any
) -> None:
    wide = np.zeros((20, 17_000, 3), np.uint8)
    result = replace(
        enhancing.enhance_photo(drawn(160, 120, (70, 40, 24, 0)), portraits, bicubic, networks), image=wide
    )
    with pytest.raises(ValueError, match=r"out: .*a\.webp cannot hold 17000 x 20 pixels"):
        outputs.write_enhanced(result, files / "out" / "a.webp")
    assert list((files / "out").iterdir()) == []


def test_large_photos_are_refused_before_the_model_is_loaded(
    enhance: Callable[..., None],
    files: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Image.new("RGB", (8000, 7000)).save("large.png")
    monkeypatch.setattr(RPFModel, "from_pretrained", lambda *_: pytest.fail("loaded"))
    with pytest.raises(SystemExit, match="2"):
        enhance("large.png --reference ahead.png --out out/a.png")
    assert "large.png has 56 million pixels, expected 48 at most: cut it" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        enhance("photo.png --reference ahead.png --reference large.png --out out/a.png")
    assert "large.png has 56 million pixels, expected 48 at most: cut it" in capsys.readouterr().err


def test_frames_keep_their_size(enhance: Callable[..., None], files: Path) -> None:
    for words, size in (("--keep-size", (300, 120)), ("--scale 3", (900, 360))):
        enhance(f"photo.png --reference ahead.png --out out/a.png {words}")
        with Image.open("out/a.png") as image:
            assert image.size == size


def test_notes_about_files_are_warnings(
    enhance: Callable[..., None], files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = [Image.open("photo.png"), Image.new("RGB", (300, 120))]
    frames[0].save("moving.webp", save_all=True, append_images=frames[1:], lossless=True)
    Image.open("ahead.png").save("cut.jpg", quality=95)
    (files / "cut.jpg").write_bytes((files / "cut.jpg").read_bytes()[:-2])
    enhance("moving.webp --reference cut.jpg --face 1 --force --out out/a.png")
    err = capsys.readouterr().err
    assert "warning: moving.webp: the first of 2 pictures was taken (animation)" in err
    assert "warning: cut.jpg: its last bytes are missing, 0 of 120 rows may be wrong" in err
