"""`rpf enhance --aligned --csv`: a list of small faces with references, no GT."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from rpf_lightning.cli import main
from rpf_lightning.evaluation.folder import Folder
from rpf_lightning.model import RPFModel
from rpf_lightning.pictures import stem
from rpf_lightning.predicting import predict_list, read_list


def save(path: Path, image: Tensor) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((image * 255).round().byte().permute(1, 2, 0).squeeze(-1).numpy()).save(path)
    return path


def load(path: Path) -> Tensor:
    return torch.from_numpy(np.asarray(Image.open(path)).astype(np.float32) / 255).permute(2, 0, 1)


@pytest.fixture
def album(tmp_path: Path, batch_of: Callable[..., Any]) -> Path:
    """Two people: LR, reference (unmasked stand-in), mask; and a list."""
    batch = batch_of(2)
    for n in range(2):
        save(tmp_path / "album" / f"lr{n}.png", batch.lr[n])
        save(tmp_path / "album" / "photos" / f"ref{n}.png", batch.gt[n])
        save(tmp_path / "album" / "photos" / f"mask{n}.png", batch.gt_mask[n])
    return tmp_path / "album"


def write(album: Path, *lines: str) -> Path:
    (album / "list.csv").write_text("\n".join(lines) + "\n")
    return album / "list.csv"


def enhance(listed: Path, model: Path, out: Path) -> list[str]:
    return f"enhance --aligned --csv {listed} --model_dir {model} --out {out}".split()


def test_writes_what_the_model_makes(album: Path, model_dir: Path, tmp_path: Path) -> None:
    lines = (f"lr{n}.png,photos/ref{n}.png,photos/mask{n}.png" for n in range(2))
    main(enhance(write(album, "lr,reference,mask", *lines), model_dir, tmp_path / "out"))
    model = RPFModel.from_pretrained(model_dir)
    for n in range(2):
        given = load(album / f"lr{n}.png"), load(album / "photos" / f"ref{n}.png")
        mask = load_mask(album / "photos" / f"mask{n}.png")
        with torch.no_grad():
            wanted = model(*(image[None] for image in (*given, mask)))[0]
        assert (load(tmp_path / "out" / f"lr{n}.png") - wanted).abs().max() <= 0.5 / 255 + 1e-5
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["lr0.png", "lr1.png"]


def load_mask(path: Path) -> Tensor:
    return torch.from_numpy((np.asarray(Image.open(path)) > 0).astype(np.float32))[None]


def test_mask_and_reference_may_be_left_out(album: Path, model_dir: Path, tmp_path: Path) -> None:
    rows = ["lr0.png,photos/ref0.png,photos/mask0.png,a", "lr0.png,photos/ref0.png,,b", "lr0.png,,,c"]
    listed = read_list(write(album, "lr,reference,mask,name", *rows))
    files = predict_list(model_dir, listed, tmp_path / "out")
    assert [file.name for file in files] == ["a.png", "b.png", "c.png"]
    masked, whole, none = (load(file) for file in files)
    assert not torch.equal(masked, whole)
    assert not torch.equal(whole, none)
    with torch.no_grad():
        wanted = RPFModel.from_pretrained(model_dir)(load(album / "lr0.png")[None])[0]
    assert (none - wanted).abs().max() <= 0.5 / 255 + 1e-5


def test_larger_references_are_reduced_and_larger_lrs_enter_later(
    album: Path, model_dir: Path, tmp_path: Path, batch_of: Callable[..., Any]
) -> None:
    big = torch.nn.functional.interpolate(batch_of(2).gt[:1], scale_factor=4, mode="nearest")[0]
    save(album / "big.png", big)
    save(album / "lr32.png", batch_of(1).gt[0])
    rows = read_list(write(album, "lr,reference", "lr0.png,big.png", "lr32.png,big.png"))
    files = predict_list(model_dir, rows, tmp_path / "out", num_workers=1)
    assert [Image.open(file).size for file in files] == [(64, 64)] * 2


def test_what_is_there_is_not_made_again(
    album: Path, model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    rows = read_list(write(album, "lr", "lr0.png", "lr1.png"))
    first = predict_list(model_dir, rows, out)
    written = [file.stat().st_mtime_ns for file in first]
    first[1].unlink()
    main(enhance(album / "list.csv", model_dir, out))
    assert capsys.readouterr().out.splitlines()[-1] == f"2 images in {out}, 1 of them new"
    assert first[0].stat().st_mtime_ns == written[0]
    assert Image.open(first[1]).size == (64, 64)


def made_again(album: Path, model_dir: Path, out: Path, files: list[Path]) -> list[str]:
    """Run the list again; return the names of the files that were written anew, all of which must be right."""
    before = [file.stat().st_ino for file in files]
    rows = read_list(album / "list.csv")
    predict_list(model_dir, rows, out)
    fresh = predict_list(model_dir, rows, out.with_name("fresh"))
    for file, wanted in zip(files, fresh, strict=True):
        assert torch.equal(load(file), load(wanted))
    shutil.rmtree(out.with_name("fresh"))
    return [f.name for f, inode in zip(files, before, strict=True) if f.stat().st_ino != inode]


def test_what_was_made_from_something_else_is_made_again(
    album: Path, model_dir: Path, tmp_path: Path
) -> None:
    out, photos = tmp_path / "out", album / "photos"
    lines = [f"lr{n}.png,photos/ref{n}.png,photos/mask{n}.png" for n in range(2)]
    files = predict_list(model_dir, read_list(write(album, "lr,reference,mask", *lines)), out)
    assert made_again(album, model_dir, out, files) == []
    save(album / "lr0.png", load(album / "lr0.png").flip(-1))
    assert made_again(album, model_dir, out, files) == ["lr0.png"]
    save(photos / "ref1.png", load(photos / "ref1.png").flip(-1))
    assert made_again(album, model_dir, out, files) == ["lr1.png"]
    save(photos / "mask0.png", 1 - load_mask(photos / "mask0.png"))
    assert made_again(album, model_dir, out, files) == ["lr0.png"]
    write(album, "lr,reference,mask", lines[0], "lr1.png,photos/ref0.png,photos/mask1.png")
    assert made_again(album, model_dir, out, files) == ["lr1.png"]
    write(album, "lr,reference,mask", lines[0], "lr1.png,,")
    assert made_again(album, model_dir, out, files) == ["lr1.png"]
    # what others have put there, or a disk has damaged
    Image.new("RGB", (64, 64)).save(files[0])
    files[1].write_bytes(b"torn")
    assert made_again(album, model_dir, out, files) == ["lr0.png", "lr1.png"]
    # another model, and the same weights in another network
    model = RPFModel.from_pretrained(model_dir)
    with torch.no_grad():
        next(model.parameters()).add_(0.1)
    model.save_pretrained(model_dir)
    assert made_again(album, model_dir, out, files) == ["lr0.png", "lr1.png"]
    other = RPFModel(model.config, residual=not model.config.residual)
    other.load_state_dict(model.state_dict())
    other.save_pretrained(model_dir)
    assert made_again(album, model_dir, out, files) == ["lr0.png", "lr1.png"]


def test_results_lie_where_an_evaluation_looks_for_them(album: Path, model_dir: Path, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        save(album / folder / "1.jpg", load(album / "lr0.png"))
    save(tmp_path / "elsewhere" / "2.png", load(album / "lr0.png"))
    lines = ["a/1.jpg,", "b/1.jpg,", "../elsewhere/2.png,", "lr1.png,c/p1.5", f"{album / 'lr1.png'},d/x.jpg"]
    names = ["a/1.jpg", "b/1.jpg", "2.png", "c/p1.5", "d/x.jpg"]
    out = tmp_path / "out"
    files = predict_list(model_dir, read_list(write(album, "lr,name", *lines)), out)
    assert [file.relative_to(out).as_posix() for file in files] == [
        "a/1.png", "b/1.png", "2.png", "c/p1.5.png", "d/x.png",
    ]  # fmt: skip
    folder = Folder("ours", out)
    folder.prepare(names, 16, 64)
    assert folder.faults() == []
    assert set(folder.files) == {stem(name) for name in names}


@pytest.mark.parametrize("side", [48, 256])
def test_masks_of_any_side_are_brought_to_the_outputs(
    album: Path, model_dir: Path, tmp_path: Path, side: int
) -> None:
    """Reduced by the share that is face, at least half; enlarged as it is."""
    mask = np.random.default_rng(side).random((side, side)) > 0.5
    save(album / "mask.png", torch.from_numpy(mask)[None] * (1 / 255))  # anything but black shows the face
    rows = read_list(write(album, "lr,reference,mask", "lr0.png,photos/ref0.png,mask.png"))
    (file,) = predict_list(model_dir, rows, tmp_path / "out")
    f = max(side // 64, 1)
    reduced = mask.reshape(side // f, f, side // f, f).mean((1, 3)) >= 0.5
    nearest = np.arange(64) * len(reduced) // 64
    whole = torch.from_numpy(reduced[nearest][:, nearest])[None, None].float()
    model = RPFModel.from_pretrained(model_dir)
    given = load(album / "lr0.png")[None], load(album / "photos" / "ref0.png")[None]
    with torch.no_grad():
        wanted, unmasked = model(*given, whole)[0], model(*given)[0]
    assert (load(file) - wanted).abs().max() <= 0.5 / 255 + 1e-5
    assert (load(file) - unmasked).abs().max() > 2 / 255


def test_sides_are_those_that_the_model_takes(
    album: Path, tmp_path: Path, network: dict[str, Any], batch_of: Callable[..., Any]
) -> None:
    """A model of one block takes its own side alone."""
    save(album / "lr32.png", batch_of(1).gt[0])
    rows = read_list(write(album, "lr", "lr0.png", "lr1.png", "lr32.png"))
    model = RPFModel(**{**network, "progressive": False})
    with pytest.raises(ValueError, match=r"lr32\.png: expected a side of 16, got 32"):
        predict_list(model, rows, tmp_path / "out", batch_size=1)
    assert not list(tmp_path.glob("out/*"))  # said before the first is made
    assert len(predict_list(RPFModel(**network), rows, tmp_path / "out")) == 3


def test_bad_arguments_are_named(
    album: Path, model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(album, "lr", "lr0.png")
    words = enhance(path, model_dir, tmp_path / "out")
    for option, value, message in (
        ("--batch-size", "0", "batch_size: expected 1 or more, got 0"),
        ("--device", "cuda:99", "device: cuda:99 is not here"),
        ("--model_dir", "nowhere/at/all", "nowhere/at/all"),
    ):
        with pytest.raises(SystemExit):
            main([*words, option, value])
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_batches_do_not_change_results(album: Path, model_dir: Path, tmp_path: Path) -> None:
    lines = ["lr0.png,photos/ref0.png,a", "lr1.png,photos/ref1.png,b", "lr0.png,,c"]
    rows = read_list(write(album, "lr,reference,name", *lines))
    one = predict_list(model_dir, rows, tmp_path / "one", batch_size=1)
    all_ = predict_list(model_dir, rows, tmp_path / "all", batch_size=8)
    for a, b in zip(one, all_, strict=True):
        assert (load(a) - load(b)).abs().max() <= 1 / 255 + 1e-6


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["reference", "photos/ref0.png"], r"list\.csv: expected the column lr"),
        (["lr,gt", "lr0.png,x"], r"expected the column lr and at most .*, got lr, gt"),
        (["lr", "none.png"], r"list\.csv, line 2: lr .*none\.png is not there"),
        (["lr,reference", "lr0.png,nowhere.png"], r"line 2: reference .*nowhere\.png is not there"),
        (["lr,mask", "lr0.png,photos/mask0.png"], r"line 2: mask without a reference"),
        (["lr,reference", ",photos/ref0.png"], r"line 2: lr is empty"),
        (["lr", "lr0.png", "lr0.png"], r"lines 2 and 3 both write lr0\.png"),
        (["lr,name", "lr0.png,../x"], r"line 2: name '\.\./x': expected a relative name without"),
        (["lr,name", "lr0.png,/x"], r"line 2: name '/x': expected a relative name"),
        (["lr,name", "lr0.png,a/x", "lr1.png,a/x.jpg"], r"lines 2 and 3 both write a/x\.png"),
    ],
)
def test_bad_lists(album: Path, lines: list[str], message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_list(write(album, *lines))


def test_missing_list_and_bad_images_are_named(
    album: Path,
    model_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.csv: no such file"):
        read_list(album / "none.csv")
    Image.new("RGB", (16, 20)).save(album / "tall.png")
    Image.new("RGB", (48, 48)).save(album / "side.png")
    Image.new("RGB", (400, 400)).save(album / "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 64)
    (album / "broken.png").write_bytes(b"no image")
    for name, message in (
        ("tall", "tall.png: expected a square image, got 16 x 20"),
        ("side", "side.png: expected a side of 16, 32, got 48"),
        ("broken", "broken.png: cannot be read"),
        ("huge", "huge.png: too large, cut or reduce it first"),
    ):
        path = write(album, "lr", f"{name}.png")
        with pytest.raises(SystemExit):
            main(enhance(path, model_dir, tmp_path / "out"))
        assert message in capsys.readouterr().err


def test_grey_faces_stay_grey(album: Path, model_dir: Path, tmp_path: Path) -> None:
    with Image.open(album / "lr0.png") as lr:
        lr.convert("L").save(album / "lr0.png")
    listed = write(album, "lr,reference", "lr0.png,photos/ref0.png", "lr1.png,photos/ref0.png")
    main(enhance(listed, model_dir, tmp_path / "out"))
    grey, coloured = (np.asarray(Image.open(tmp_path / "out" / f"lr{n}.png")).astype(int) for n in range(2))
    assert np.ptp(grey, axis=2).max() == 0
    assert np.ptp(coloured, axis=2).max() > 20


def test_a_model_that_overflows_writes_no_picture(album: Path, model_dir: Path, tmp_path: Path) -> None:
    model = RPFModel.from_pretrained(model_dir)
    model.blocks[0].refinement.to_rgb.weight.data.fill_(3e38)
    rows = read_list(write(album, "lr,reference", "lr0.png,photos/ref0.png", "lr1.png,photos/ref1.png"))
    for validate in (
        True,
        False,
    ):  # infinite values are found by the model, NaN by whoever makes a picture as well
        model.validate = validate
        if not validate:
            model.blocks[0].refinement.to_rgb.weight.data.fill_(float("nan"))
        with pytest.raises(ValueError, match=r"NaN or infinite values"):
            predict_list(model, rows, tmp_path / "out")
        assert not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize("column", ["reference", "mask"])
def test_huge_references_are_refused_before_they_are_decoded(
    column: str, album: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("L", (7000, 7000)).save(album / "huge.png")
    monkeypatch.setattr("rpf_lightning.predicting.read_photo", lambda *_, **__: pytest.fail("decoded"))
    line = {"reference": "lr0.png,huge.png,", "mask": "lr0.png,photos/ref0.png,huge.png"}[column]
    rows = read_list(write(album, "lr,reference,mask", line))
    with pytest.raises(ValueError, match=r"huge\.png has 49 million pixels, expected 48 at most"):
        predict_list(model_dir, rows, tmp_path / "out")
