"""The page of a figure: sides of the cells, texts and blanks."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from rpf_lightning.drawing import Row, cell, cell_side, write_figure

CELL = 192  # 64 pixels three times


@pytest.fixture
def out(tmp_path):
    return tmp_path / "figures" / "figure.png"


def noise(side):
    return torch.rand(3, side, side, generator=torch.Generator().manual_seed(side))


@pytest.mark.parametrize(
    ("side", "columns", "expected"),
    [
        (64, 5, 192),
        (16, 3, 160),
        (256, 8, 256),
        (1024, 2, 1024),
        (1024, 3, 512),
        (1024, 8, 256),
        (1024, 20, 256),
        (64, 20, 192),
    ],
)
def test_side_of_the_cells(side, columns, expected):
    assert cell_side(side, columns) == expected


def test_large_pictures_are_reduced(out):
    pictures = {f"{n}": cell(noise(1024)) for n in range(7)} | {"LR": cell(noise(16))}
    (row,) = write_figure(out, [Row("x", pictures)])
    page = Image.open(out)
    assert page.width <= 3000
    assert row.boxes["3"][2] - row.boxes["3"][0] == 256
    lr = np.asarray(page.crop(row.boxes["LR"]))
    np.testing.assert_array_equal(lr[::16, ::16], pictures["LR"].pixels)  # still whole pixels
    reduced = np.asarray(page.crop(row.boxes["3"])).astype(float)
    assert abs(reduced.mean() - pictures["3"].pixels.mean()) < 1


def test_text_grows_with_large_cells(out):
    (row,) = write_figure(out, [Row("x", {"A": cell(torch.ones(3, 1024, 1024), "PSNR 20 dB")})])
    page = np.asarray(Image.open(out).convert("L"))
    left, top, right, bottom = row.boxes["A"]
    assert (top, page.shape) == (8 + 5 * (24 + 22), (top + 1024 + 5 * 16 + 8, 1040))
    written = np.nonzero((page[bottom:] < 128).any(1))[0]
    assert 30 < written.max() - written.min() < 80
    assert (page[top:bottom, left:right] == 255).all()


def test_text_stays_in_its_place(out):
    """Long texts are cut; nothing is written over a picture, and blanks stay white."""
    long = "a very long name of a photo " * 30
    rows = [
        Row(long, {long: cell(torch.zeros(3, 64, 64), long, "PSNR 12.35 dB", "ISC -")}),
        Row("second\nline", {"other": cell(torch.zeros(3, 64, 64))}),
    ]
    first, second = write_figure(out, rows)
    page = np.asarray(Image.open(out).convert("RGB"))
    assert page.shape[1] == 8 + 2 * (CELL + 8)
    for row, title in ((first, long), (second, "other")):
        left, top, right, bottom = row.boxes[title]
        assert not page[top:bottom, left:right].any()
    assert (page[:, :4] == 255).all()
    assert (page[:, -4:] == 255).all()
    left, _, right, bottom = first.boxes[long]
    under = page[bottom : bottom + 48]
    assert (under[:, right + 4 :] == 255).all()  # the second column has nothing under its blank
    for line in range(3):
        assert (under[16 * line : 16 * line + 16, left:right] < 128).any()
    assert second.boxes["other"][1] >= bottom + 48
    blank = page[second.boxes["other"][1] : second.boxes["other"][3], : CELL + 8]
    assert (blank == 255).all()


def test_a_cell_is_clamped():
    image = torch.tensor([-1.0, 2.0, 0.0, 0.5]).reshape(1, 2, 2).expand(3, 2, 2)
    assert cell(image).pixels[..., 0].tolist() == [[0, 255], [0, 128]]


def test_a_figure_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(b"earlier")

    def full(descriptor):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        write_figure(tmp_path / "a.png", [Row("x", {"A": cell(noise(16))})])
    assert (tmp_path / "a.png").read_bytes() == b"earlier"
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
