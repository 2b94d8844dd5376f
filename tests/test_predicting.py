"""`rpf predict --csv`: a list of small faces with references, no GT."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from rpf_lightning.cli import main
from rpf_lightning.model import RPFModel
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


def test_writes_what_the_model_makes(album: Path, model_dir: Path, tmp_path: Path) -> None:
    path = write(
        album, "lr,reference,mask", *(f"lr{n}.png,photos/ref{n}.png,photos/mask{n}.png" for n in range(2))
    )
    main(["predict", "--csv", str(path), "--model", str(model_dir), "--out", str(tmp_path / "out")])
    model = RPFModel.from_pretrained(model_dir)
    for n in range(2):
        mask = load_mask(album / "photos" / f"mask{n}.png")
        with torch.no_grad():
            wanted = model(
                load(album / f"lr{n}.png")[None], load(album / "photos" / f"ref{n}.png")[None], mask[None]
            )[0]
        assert (load(tmp_path / "out" / f"lr{n}.png") - wanted).abs().max() <= 0.5 / 255 + 1e-5
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["lr0.png", "lr1.png"]


def load_mask(path: Path) -> Tensor:
    return torch.from_numpy((np.asarray(Image.open(path)) > 0).astype(np.float32))[None]


def test_mask_and_reference_may_be_left_out(album: Path, model_dir: Path, tmp_path: Path) -> None:
    rows = ["lr0.png,photos/ref0.png,photos/mask0.png,a", "lr0.png,photos/ref0.png,,b", "lr0.png,,,c"]
    files = predict_list(
        model_dir, read_list(write(album, "lr,reference,mask,name", *rows)), tmp_path / "out"
    )
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
    files = predict_list(
        model_dir,
        read_list(write(album, "lr,reference", "lr0.png,big.png", "lr32.png,big.png")),
        tmp_path / "out",
    )
    assert [Image.open(file).size for file in files] == [(64, 64)] * 2


def test_what_is_there_is_not_made_again(
    album: Path, model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = read_list(write(album, "lr", "lr0.png", "lr1.png"))
    first = predict_list(model_dir, rows, tmp_path / "out")
    first[0].write_bytes(b"kept")
    first[1].unlink()
    predict_list(model_dir, rows, tmp_path / "out")
    assert first[0].read_bytes() == b"kept"
    assert Image.open(first[1]).size == (64, 64)
    first[1].unlink()
    main(
        [
            "predict",
            "--csv",
            str(album / "list.csv"),
            "--model",
            str(model_dir),
            "--out",
            str(tmp_path / "out"),
        ]
    )
    assert capsys.readouterr().out.splitlines()[-1] == f"2 images in {tmp_path / 'out'}, 1 of them new"


def test_batches_do_not_change_results(album: Path, model_dir: Path, tmp_path: Path) -> None:
    rows = read_list(
        write(
            album, "lr,reference,name", "lr0.png,photos/ref0.png,a", "lr1.png,photos/ref1.png,b", "lr0.png,,c"
        )
    )
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
        (["lr,name", "lr0.png,../x"], r"line 2: name '\.\./x' is no plain file name"),
    ],
)
def test_bad_lists(album: Path, lines: list[str], message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_list(write(album, *lines))


def test_missing_list_and_bad_images_are_named(
    album: Path, model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.csv: no such file"):
        read_list(album / "none.csv")
    Image.new("RGB", (16, 20)).save(album / "tall.png")
    Image.new("RGB", (48, 48)).save(album / "side.png")
    (album / "broken.png").write_bytes(b"no image")
    for name, message in (
        ("tall", "tall.png: expected a square image, got 16 x 20"),
        ("side", "side.png: expected a side of 16, 32, got 48"),
        ("broken", "broken.png: cannot be read"),
    ):
        path = write(album, "lr", f"{name}.png")
        with pytest.raises(SystemExit):
            main(["predict", "--csv", str(path), "--model", str(model_dir), "--out", str(tmp_path / "out")])
        assert message in capsys.readouterr().err
