"""The grid and the contact sheets of an evaluation."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluations import gts, noisy, run, write_folder
from PIL import Image

from rpf_lightning.data import ReferencePairsDataModule
from rpf_lightning.drawing import CAPTION, GAP, TITLE, Row, draw_rows
from rpf_lightning.evaluation import evaluate
from rpf_lightning.evaluation.contact import chosen_places
from rpf_lightning.model import RPFModel
from rpf_lightning.model.resize import resize
from rpf_lightning.pictures import to_uint8


def test_sheets_show_the_worst_and_the_best(prepared: Path, tmp_path: Path) -> None:
    """Two images are copies of the GT and two are black: the sheets' cells have their colours."""
    truth = gts(prepared)
    images = noisy(truth)
    names = list(images)
    for name in names[:2]:
        images[name] = np.zeros_like(images[name])
    for name in names[2:4]:
        images[name] = truth[name]
    folder = write_folder(tmp_path / "p", images)
    run(prepared, tmp_path / "out", "--method", f"folder:p={folder}", "--contact-images", "2")
    cells = {}
    for sheet in ("worst", "median", "best"):
        pixels = np.asarray(Image.open(tmp_path / "out" / f"{sheet}.png")).astype(int)
        left, top = (
            GAP + 2 * (192 + GAP),
            GAP + TITLE + CAPTION,
        )  # the third column is the folder's, the fourth the GT
        cells[sheet] = [
            [pixels[y : y + 192, x : x + 192] for x in (left, left + 192 + GAP)]
            for y in (top, top + 192 + GAP + CAPTION)
        ]
    assert all(output.max() == 0 and gt.mean() > 20 for output, gt in cells["worst"])
    assert all(np.array_equal(output, gt) for output, gt in cells["best"])
    assert all(0 < np.abs(output - gt).mean() < 20 for output, gt in cells["median"])


def test_sheets_begin_with_the_worst_and_with_the_best() -> None:
    """A small PSNR is bad, a small LPIPS good."""
    names = [f"{n}" for n in range(7)]
    for metric in ("psnr", "lpips"):
        values = [3.0, 1.0, None, 6.0, 2.0, 5.0, 4.0]
        rows = [
            {"id": name, "metrics": {"it": {metric: value, "psnr": value}, "not": {metric: 0, "psnr": 0}}}
            for name, value in zip(names, values, strict=True)
        ]
        found, places = chosen_places({"per_image": rows}, "it", 2)
        assert found == metric
        low, high = [(1, 1.0), (4, 2.0)], [(3, 6.0), (5, 5.0)]
        assert places["worst"] == (low if metric == "psnr" else high)
        assert places["best"] == (high if metric == "psnr" else low)
        assert places["median"] == [(0, 3.0), (6, 4.0)][:: 1 if metric == "psnr" else -1]
        assert chosen_places({"per_image": rows}, "it", 0)[1] == {"worst": [], "median": [], "best": []}


def test_pictures_of_an_earlier_evaluation_do_not_stay(
    prepared: Path, model_dir: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    pictures = ["best.png", "grid.png", "median.png", "worst.png"]
    run(prepared, out, "--method", f"model:RPF={model_dir}", "--contact-images", "1", "--grid-images", "1")
    assert sorted(path.name for path in out.glob("*.png")) == pictures
    first = {name: (out / name).read_bytes() for name in pictures}
    run(prepared, out, "--contact-images", "1")  # no model: no grid, and other sheets
    assert sorted(path.name for path in out.glob("*.png")) == ["best.png", "median.png", "worst.png"]
    assert all((out / name).read_bytes() != first[name] for name in ("best.png", "worst.png"))
    run(prepared, out, "--contact-images", "0")
    assert not list(out.glob("*.png"))


def test_a_comparison_without_any_value_has_no_sheets(prepared: Path, tmp_path: Path) -> None:
    images = {name: image[:32, :32] for name, image in gts(prepared).items()}
    folder = write_folder(tmp_path / "small", images)
    results = run(prepared, tmp_path / "out", "--method", f"folder:small={folder}")
    assert results["counts"]["small"]["psnr"] == 0
    assert not list((tmp_path / "out").glob("*.png"))


def test_pictures_say_what_the_reference_is(
    prepared: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    titles: list[tuple[str, ...]] = []

    def noted(rows: list[Row]) -> Any:
        titles.append(tuple(rows[0].cells))
        return draw_rows(rows)

    monkeypatch.setattr("rpf_lightning.evaluation.contact.draw_rows", noted)
    monkeypatch.setattr("rpf_lightning.evaluation.result_files.draw_rows", noted)
    for masked, said in ((True, "reference (masked)"), (False, "reference (unmasked)")):
        data = ReferencePairsDataModule(str(prepared), val_fraction=0.34, mask_reference=masked)
        results = evaluate(
            model_dir=str(model_dir), data=data, out=str(tmp_path / said), grid_images=1, contact_images=1
        )
        assert results["protocol"]["mask_reference"] is masked
        assert len(titles) == 4
        assert {of[-1] for of in titles} == {said}
        titles.clear()


def test_the_grid_shows_what_a_model_does(prepared: Path, model_dir: Path, tmp_path: Path) -> None:
    data = ReferencePairsDataModule(str(prepared), val_fraction=0.5)
    evaluate(model_dir=str(model_dir), data=data, out=str(tmp_path), grid_images=2, contact_images=0)
    grid = np.asarray(Image.open(tmp_path / "grid.png"))
    dataset, model = data.val_dataset(), RPFModel.from_pretrained(model_dir)
    assert grid.shape[:2] == (GAP + TITLE + 2 * (CAPTION + 192 + GAP), GAP + 7 * (192 + GAP))
    for row, place in enumerate((0, len(dataset) // 2)):  # evenly spread
        sample = dataset[place]
        with torch.no_grad():
            output, blocks = model(sample.lr[None], sample.reference[None], return_intermediates=True)
        last, bicubic = blocks[-1], resize(sample.lr[None], 64)
        shown = (
            sample.lr[None],
            bicubic,
            last.aligned,
            last.synthesized,
            output,
            sample.gt[None],
            sample.reference[None],
        )
        top = GAP + TITLE + CAPTION + row * (CAPTION + 192 + GAP)
        for column, image in enumerate(shown):
            left = GAP + column * (192 + GAP)
            pixels, factor = to_uint8(image[0]), 192 // image.shape[-1]
            assert np.array_equal(
                grid[top : top + 192, left : left + 192], pixels.repeat(factor, 0).repeat(factor, 1)
            )
