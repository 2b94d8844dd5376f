"""The grid and the contact sheets of an evaluation."""

import numpy as np
import torch
from evaluations import gts, noisy, run, write_folder
from PIL import Image

from rpf_lightning.data import ReferencePairsDataModule
from rpf_lightning.drawing import CAPTION, GAP, TITLE, draw_rows
from rpf_lightning.evaluation import evaluate
from rpf_lightning.evaluation.result_files import chosen_places
from rpf_lightning.model import RPFModel
from rpf_lightning.model.resize import resize
from rpf_lightning.pictures import to_uint8

SIDE = 192  # of a cell: 64 pixels three times


def cell_of(page, row, column):
    """The pixels of a cell."""
    top, left = GAP + TITLE + CAPTION + row * (CAPTION + SIDE + GAP), GAP + column * (SIDE + GAP)
    return page[top : top + SIDE, left : left + SIDE]


def test_sheets_show_the_worst_and_the_best(prepared, tmp_path):
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
        page = np.asarray(Image.open(tmp_path / "out" / f"{sheet}.png")).astype(int)
        cells[sheet] = [
            (cell_of(page, row, 2), cell_of(page, row, 3)) for row in (0, 1)
        ]  # the folder's, the GT
    assert all(output.max() == 0 and gt.mean() > 20 for output, gt in cells["worst"])
    assert all(np.array_equal(output, gt) for output, gt in cells["best"])
    assert all(0 < np.abs(output - gt).mean() < 20 for output, gt in cells["median"])


def test_sheets_begin_with_the_worst_and_with_the_best():
    """A small PSNR is bad, a small LPIPS good."""
    for metric in ("psnr", "lpips"):
        rows = [
            {"id": "x", "metrics": {"it": {metric: value, "psnr": value}, "not": {metric: 0, "psnr": 0}}}
            for value in (3.0, 1.0, None, 6.0, 2.0, 5.0, 4.0)
        ]
        found, places = chosen_places({"per_image": rows}, "it", 2)
        assert found == metric
        low, high = [(1, 1.0), (4, 2.0)], [(3, 6.0), (5, 5.0)]
        assert places["worst"] == (low if metric == "psnr" else high)
        assert places["best"] == (high if metric == "psnr" else low)
        assert places["median"] == [(0, 3.0), (6, 4.0)][:: 1 if metric == "psnr" else -1]
        assert chosen_places({"per_image": rows}, "it", 0)[1] == {"worst": [], "median": [], "best": []}


def test_pictures_of_an_earlier_evaluation_do_not_stay(prepared, model_dir, tmp_path):
    out = tmp_path / "out"

    def pictures(*words):
        run(prepared, out, *words)
        return {path.name: path.read_bytes() for path in out.glob("*.png")}

    first = pictures("--method", f"model:RPF={model_dir}", "--contact-images", "1", "--grid-images", "1")
    assert sorted(first) == ["best.png", "grid.png", "median.png", "worst.png"]
    second = pictures("--contact-images", "1")  # no model: no grid, and other sheets
    assert sorted(second) == ["best.png", "median.png", "worst.png"]
    assert all(second[name] != first[name] for name in ("best.png", "worst.png"))
    small = write_folder(tmp_path / "small", {name: image[:32, :32] for name, image in gts(prepared).items()})
    assert pictures("--method", f"folder:small={small}") == {}  # no image has a value


def test_pictures_say_what_the_reference_is(prepared, model_dir, tmp_path, monkeypatch):
    titles = []

    def noted(rows):
        titles.append(list(rows[0].cells)[-1])
        return draw_rows(rows)

    monkeypatch.setattr("rpf_lightning.evaluation.result_files.draw_rows", noted)
    data = ReferencePairsDataModule(str(prepared), val_fraction=0.34, mask_reference=False)
    results = evaluate(
        model_dir=str(model_dir), data=data, out=str(tmp_path), grid_images=1, contact_images=1
    )
    assert results["protocol"]["mask_reference"] is False
    assert titles == ["reference (unmasked)"] * 4


def test_the_grid_shows_what_a_model_does(prepared, model_dir, tmp_path):
    data = ReferencePairsDataModule(str(prepared), val_fraction=0.5)
    evaluate(model_dir=str(model_dir), data=data, out=str(tmp_path), grid_images=2, contact_images=0)
    grid = np.asarray(Image.open(tmp_path / "grid.png"))
    assert [path.name for path in tmp_path.glob("*.png")] == ["grid.png"]
    dataset, model = data.val_dataset(), RPFModel.from_pretrained(model_dir)
    assert grid.shape[:2] == (GAP + TITLE + 2 * (CAPTION + SIDE + GAP), GAP + 7 * (SIDE + GAP))
    for row, place in enumerate((0, len(dataset) // 2)):  # evenly spread
        sample = dataset[place]
        lr, reference = sample.lr[None], sample.reference[None]
        with torch.no_grad():
            output, blocks = model(lr, reference, return_intermediates=True)
        last = blocks[-1]
        shown = (lr, resize(lr, 64), last.aligned, last.synthesized, output, sample.gt[None], reference)
        for column, image in enumerate(shown):
            pixels, factor = to_uint8(image[0]), SIDE // image.shape[-1]
            assert np.array_equal(cell_of(grid, row, column), pixels.repeat(factor, 0).repeat(factor, 1))
