import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor
from torch.utils.data import Dataset

from rpf_lightning.data.records import ReferenceBatch
from rpf_lightning.evaluation.compare import evaluate
from rpf_lightning.evaluation.contact import PICTURE_TITLES
from rpf_lightning.evaluation.tables import table_for_console
from rpf_lightning.metrics import psnr, ssim
from rpf_lightning.model.resize import resize
from rpf_lightning.model.rpf import BlockOutput, RPFModel
from rpf_lightning.model.storage import weights_hash

METRICS = ["psnr", "ssim", "psnr_face", "detail_error", "lr_consistency"]

METHODS = ("bicubic", "without_reference", "with_reference", "other_person")


class ListDataset(Dataset[ReferenceBatch]):
    def __init__(self, samples: list[ReferenceBatch]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> ReferenceBatch:
        return self.samples[index]


def sample(index: int, reference_seed: int, reference_id: str, side: int = 32) -> ReferenceBatch:
    generator = torch.Generator().manual_seed(index)
    gt = 0.2 + 0.6 * torch.rand(3, side, side, generator=generator)
    mask = torch.zeros(1, side, side)
    mask[:, 8:-8, 8:-8] = 1
    generator = torch.Generator().manual_seed(reference_seed)
    reference = (gt + 0.05 * (1 + index) * torch.randn(3, side, side, generator=generator)).clamp(0.1, 0.9)
    lr = (resize(gt[None], 16).clamp(0, 1) * 255).round()[0] / 255
    flow, points, known = torch.zeros(2, side, side), torch.zeros(68, 2), torch.tensor(1.0)
    return ReferenceBatch(
        lr, gt, reference, mask, mask, mask, None, flow, known, points, points, f"gt{index}", reference_id
    )


def pairs(count: int = 5, side: int = 32) -> tuple[ListDataset, ListDataset]:
    own = [sample(i, 100 + i, f"own{i}", side) for i in range(count)]
    others = [sample(i, 200 + i, f"other{i}", side) for i in range(count)]
    return ListDataset(own), ListDataset(others)


def tiny() -> RPFModel:
    torch.manual_seed(0)
    return RPFModel(lr_size=16, scale=2, channels=8, width=1 / 64)


class Copier(RPFModel):
    """Returns its reference, or grey without one: known numbers, and its pictures have known colours."""

    def forward(self, lr, reference=None, mask=None, return_intermediates=False):
        assert not self.training
        grey = torch.full((len(lr), 3, self.size, self.size), 0.5)
        output = grey if reference is None else reference
        blocks = [BlockOutput(grey[:, :2], grey * 0 + 0.25, grey * 0 + 0.75, output)]
        return (output, blocks) if return_intermediates else output


def copier() -> Copier:
    return Copier(lr_size=16, scale=2, channels=8, width=1 / 64)


def numpy_psnr(pred: Tensor, gt: Tensor) -> float:
    return float(10 * np.log10(1 / np.mean((pred.double().numpy() - gt.double().numpy()) ** 2)))


def mean_psnr(dataset: ListDataset, predictions: list[Tensor]) -> float:
    return float(np.mean([numpy_psnr(p, s.gt) for p, s in zip(predictions, dataset.samples, strict=True)]))


def strict_json(path: Path) -> dict:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def test_each_method_gets_its_own_input(tmp_path: Path) -> None:
    own, others = pairs()
    results = evaluate(copier(), own, others, tmp_path, batch_size=2, device="cpu")
    methods = results["methods"]
    assert list(methods) == ["bicubic", "without_reference", "with_reference", "other_person"]
    expected = {
        "bicubic": [resize(s.lr[None], 32)[0].clamp(0, 1) for s in own.samples],
        "without_reference": [torch.full_like(s.gt, 0.5) for s in own.samples],
        "with_reference": [s.reference for s in own.samples],
        "other_person": [s.reference for s in others.samples],
    }
    for method, predictions in expected.items():
        assert list(methods[method]) == METRICS
        assert methods[method]["psnr"] == pytest.approx(mean_psnr(own, predictions), abs=1e-3), method
    assert len({round(methods[method]["psnr"], 3) for method in METHODS}) == 4

    # inside the face and in the LR, once more by numpy
    crop = np.s_[:, 8:-8, 8:-8]
    faces = [numpy_psnr(s.reference[crop], s.gt[crop]) for s in own.samples]
    assert methods["with_reference"]["psnr_face"] == pytest.approx(np.mean(faces), abs=1e-3)
    small = [numpy_psnr(resize(s.reference[None], 16)[0].clamp(0, 1), s.lr) for s in own.samples]
    assert methods["with_reference"]["lr_consistency"] == pytest.approx(np.mean(small), abs=1e-3)
    # grey has no details: its error is the strength of the GT's
    details = [(s.gt - resize(resize(s.gt[None], 16), 32)[0]).abs()[crop].mean().item() for s in own.samples]
    assert methods["without_reference"]["detail_error"] == pytest.approx(np.mean(details), abs=1e-6)

    second = results["per_image"][1]
    assert (second["id"], second["reference_id"], second["other_id"]) == ("gt1", "own1", "other1")
    assert second["metrics"]["other_person"]["psnr"] == pytest.approx(
        numpy_psnr(others[1].reference, own[1].gt), abs=1e-3
    )


def test_a_model_and_its_directory_give_the_same_and_the_model_comes_back_as_it_was(tmp_path: Path) -> None:
    own, others = pairs(3)
    model = tiny().train()
    model.save_pretrained(tmp_path / "model")
    results = evaluate(model, own, others, tmp_path / "a", grid_images=0)
    again = evaluate(tmp_path / "model", own, others, tmp_path / "b", grid_images=0, batch_size=1)
    assert model.training
    assert not next(model.parameters()).is_inference()
    for method in METHODS:
        assert results["methods"][method] == pytest.approx(again["methods"][method], rel=1e-3)
    with torch.no_grad():
        alone = model.eval()(torch.stack([s.lr for s in own.samples]))
    gt = torch.stack([s.gt for s in own.samples])
    assert results["methods"]["without_reference"]["psnr"] == pytest.approx(
        psnr(alone, gt).mean().item(), abs=1e-3
    )
    assert results["methods"]["without_reference"]["ssim"] == pytest.approx(
        ssim(alone, gt).mean().item(), abs=1e-4
    )


def test_results_file_is_strict_json_with_its_protocol(tmp_path: Path) -> None:
    own, others = pairs()
    own.samples[2].gt_mask.zero_()
    model = tiny()
    results = evaluate(
        model,
        own,
        others,
        tmp_path / "deep" / "out",
        protocol_extra={"data": "random", "pairs": 99, "isc": "?"},
    )
    stored = strict_json(tmp_path / "deep" / "out" / "results.json")
    assert stored == results
    protocol = stored["protocol"]
    assert (protocol["lr_size"], protocol["size"], protocol["pairs"]) == (16, 32, 5)
    assert protocol["data"] == "random"
    assert protocol["lpips"] == protocol["isc"] == "off: not given"
    assert protocol["torch"] == torch.__version__
    assert protocol["weights_sha256"] == weights_hash(model.state_dict())
    names = [[f"gt{i}", f"own{i}", f"other{i}"] for i in range(5)]
    assert protocol["pairs_sha256"] == hashlib.sha256(json.dumps(names).encode()).hexdigest()
    for key in ("range", "rounding", "crop", "ssim", "detail_error", "lr_consistency", "rpf_lightning"):
        assert protocol[key], key

    # the image without a face has no value there, and the means leave it out
    faces = [row["metrics"]["bicubic"]["psnr_face"] for row in stored["per_image"]]
    assert [value is None for value in faces] == [False, False, True, False, False]
    assert stored["methods"]["bicubic"]["psnr_face"] == pytest.approx(
        np.mean([f for f in faces if f is not None])
    )
    assert stored["counts"]["bicubic"] == {**dict.fromkeys(METRICS, 5), "psnr_face": 4, "detail_error": 4}
    assert "psnr_face 4, detail_error 4" in (tmp_path / "deep" / "out" / "table.md").read_text(
        encoding="utf-8"
    )
    assert sorted(path.name for path in (tmp_path / "deep" / "out").iterdir()) == [
        "grid.png", "per_image.csv", "results.json", "table.md", "table.tex",
    ]  # fmt: skip


def test_the_hash_changes_with_a_pair(tmp_path: Path) -> None:
    own, others = pairs(3)

    def pairs_hash() -> str:
        return evaluate(copier(), own, others, tmp_path, grid_images=0)["protocol"]["pairs_sha256"]

    hashes = [pairs_hash()]
    assert pairs_hash() == hashes[0]
    for dataset in (own, others):
        before = dataset.samples[1]
        dataset.samples[1] = before._replace(reference_id="a third one")
        hashes.append(pairs_hash())
        dataset.samples[1] = before
    assert len(set(hashes)) == 3


def test_optional_networks_are_measured_when_given(tmp_path: Path) -> None:
    own, others = pairs(3)
    seen: list[tuple[float, float]] = []

    def perceptual(pred: Tensor, gt: Tensor) -> Tensor:
        seen.append((pred.min().item(), pred.max().item()))
        return (pred - gt).abs().mean(dim=(1, 2, 3))

    def identity(images: Tensor) -> Tensor:
        return images.flatten(1)

    results = evaluate(
        copier(),
        own,
        others,
        tmp_path,
        perceptual=perceptual,
        identity=identity,
        protocol_extra={"isc": "flat"},
    )
    expected = np.mean([(s.reference - s.gt).abs().mean().item() for s in own.samples])
    assert results["methods"]["with_reference"]["lpips"] == pytest.approx(expected, abs=1e-6)
    cosines = []
    for s in others.samples:
        a, b = s.reference.flatten().double().numpy(), s.gt.flatten().double().numpy()
        cosines.append(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    assert results["methods"]["other_person"]["isc"] == pytest.approx(np.mean(cosines), abs=1e-5)
    assert results["protocol"]["isc"] == "flat"
    assert not results["protocol"]["lpips"].startswith("off")
    assert all(low >= 0 and high <= 1 for low, high in seen)
    assert "LPIPS ↓ | ISC ↑" in (tmp_path / "table.md").read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="lpips: expected 3 values"):
        evaluate(copier(), own, others, tmp_path, perceptual=lambda pred, gt: (pred - gt).abs().mean())


def test_the_model_runs_in_inference_mode_and_the_data_does_not(tmp_path: Path) -> None:
    modes = {"data": set(), "model": set()}

    class Watched(ListDataset):
        def __getitem__(self, index: int) -> ReferenceBatch:
            modes["data"].add(torch.is_inference_mode_enabled())
            return self.samples[index]

    class Watching(Copier):
        def forward(self, lr, reference=None, mask=None, return_intermediates=False):
            modes["model"].add(torch.is_inference_mode_enabled())
            return super().forward(lr, reference, mask, return_intermediates)

    own, others = pairs(2)
    model = Watching(lr_size=16, scale=2, channels=8, width=1 / 64)
    evaluate(model, Watched(own.samples), Watched(others.samples), tmp_path)
    assert modes == {"data": {False}, "model": {True}}


def test_tables_show_every_method_and_the_best_in_bold(tmp_path: Path) -> None:
    own, others = pairs()
    results = evaluate(copier(), own, others, tmp_path, grid_images=0)
    lines = (tmp_path / "table.md").read_text(encoding="utf-8").splitlines()
    header = [cell.strip() for cell in lines[0].strip("|").split("|")]
    assert header == [
        "method", "PSNR (dB) ↑", "SSIM ↑", "PSNR face (dB) ↑", "detail error ↓", "LR consistency (dB) ↑",
    ]  # fmt: skip
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:6]]
    assert [row[0] for row in table] == ["bicubic", "without reference", "with reference", "other person"]
    for column, metric in enumerate(METRICS, start=1):
        values = [results["methods"][method][metric] for method in METHODS]
        best = min(values) if metric == "detail_error" else max(values)
        for row, value in zip(table, values, strict=True):
            digits = len(row[column].strip("*").partition(".")[2])
            assert float(row[column].strip("*")) == round(value, digits)
            assert row[column].startswith("**") == (round(value, digits) == round(best, digits))

    gain = results["methods"]["with_reference"]["psnr"] - results["methods"]["other_person"]["psnr"]
    assert f"Own minus another person's reference: PSNR (dB) {gain:+.2f}, SSIM" in "\n".join(lines)

    console = Console(width=200, file=io.StringIO())
    console.print(table_for_console(results))
    text = console.file.getvalue()
    assert all(title in text for title in header)
    assert all(row[0] in text and row[1].strip("*") in text for row in table)


def runs(line: np.ndarray) -> list[tuple[int, int]]:
    """Start and end of the stretches of pixels that are not white."""
    dark = np.concatenate([[False], (line < 250).any(-1), [False]]).astype(int)
    return list(zip(np.flatnonzero(np.diff(dark) == 1), np.flatnonzero(np.diff(dark) == -1), strict=True))


def test_the_grid_has_a_row_per_face_and_a_column_per_picture(tmp_path: Path) -> None:
    own, others = pairs(6)
    evaluate(copier(), own, others, tmp_path, grid_images=3)
    grid = np.asarray(Image.open(tmp_path / "grid.png"))
    right = grid.shape[1] - 20
    rows = [run for run in runs(grid[:, right]) if run[1] - run[0] >= 128]
    assert len(rows) == 3
    columns = runs(grid[sum(rows[0]) // 2])
    assert len(columns) == len(PICTURE_TITLES) + 1 == 7
    assert all(end - start >= 128 for start, end in columns)

    for (top, bottom), index in zip(rows, (0, 2, 4), strict=True):  # evenly spread
        s = own[index]
        grey = torch.full((3, 4, 4), 0.25), torch.full((3, 4, 4), 0.75)
        bicubic = resize(s.lr[None], 32)[0]
        for (left, end), image in zip(
            columns, (s.lr, bicubic, *grey, s.reference, s.gt, s.reference), strict=True
        ):
            cell = grid[top:bottom, left:end].astype(float)
            # quarters: another image, or a flipped one, has other means
            small = np.asarray(Image.fromarray(cell.astype(np.uint8)).resize((4, 4), Image.Resampling.BOX))
            expected = resize(image[None].float(), 4)[0].permute(1, 2, 0).numpy() * 255
            assert np.abs(small - expected).mean() < 6, index
        # the LR keeps its pixels
        (left, end), pixels = columns[0], (s.lr * 255).round().permute(1, 2, 0).numpy()
        factor = (end - left) // 16
        assert np.array_equal(grid[top:bottom, left:end], pixels.repeat(factor, 0).repeat(factor, 1))
    # titles above the columns: dark pixels over each
    head = grid[: rows[0][0] - 26]
    assert all((head[:, start:end] < 100).any() for start, end in columns)


def test_no_grid_removes_an_earlier_one(tmp_path: Path) -> None:
    own, others = pairs(2)
    evaluate(copier(), own, others, tmp_path, grid_images=6)  # more than there are faces
    assert (tmp_path / "grid.png").exists()
    evaluate(copier(), own, others, tmp_path, grid_images=0)
    assert not (tmp_path / "grid.png").exists()


def test_datasets_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    own, others = pairs(3)
    out = tmp_path / "out"
    model = copier()
    with pytest.raises(ValueError, match="expected as many other-person pairs"):
        evaluate(model, own, ListDataset(others.samples[:2]), out)
    with pytest.raises(ValueError, match="at least one"):
        evaluate(model, ListDataset([]), ListDataset([]), out)
    with pytest.raises(ValueError, match="expected the GT 'gt0' as in dataset, got 'gt2'"):
        evaluate(model, own, ListDataset(others.samples[::-1]), out)
    with pytest.raises(ValueError, match="expected another reference for the GT 'gt0'"):
        evaluate(model, own, own, out)
    with pytest.raises(ValueError, match=r"dataset: expected gt of side 32 .* got \(64, 64\)"):
        evaluate(model, pairs(3, side=64)[0], others, out)
    with pytest.raises(ValueError, match="other_person: expected gt of side 32"):
        evaluate(model, own, pairs(3, side=64)[1], out)
    small = [s._replace(lr=resize(s.lr[None], 8)[0]) for s in own.samples]
    with pytest.raises(ValueError, match="dataset: expected lr of side 16"):
        evaluate(model, ListDataset(small), others, out)
    assert not out.exists()


def test_an_output_of_nan_is_an_error_and_no_missing_value(tmp_path: Path) -> None:
    class Broken(Copier):
        def forward(self, lr, reference=None, mask=None, return_intermediates=False):
            return super().forward(lr, reference) * torch.nan

    own, others = pairs(2)
    model = Broken(lr_size=16, scale=2, channels=8, width=1 / 64).train()
    with pytest.raises(ValueError, match=r"without_reference: the output is not finite .*gt0"):
        evaluate(model, own, others, tmp_path)
    assert model.training


def test_bad_arguments_fail_before_the_measurement(tmp_path: Path) -> None:
    class Untouched(Copier):
        def forward(self, lr, reference=None, mask=None, return_intermediates=False):
            raise AssertionError("measured")

    own, others = pairs(2)
    model = Untouched(lr_size=16, scale=2, channels=8, width=1 / 64)
    with pytest.raises(ValueError, match="batch_size >= 1"):
        evaluate(model, own, others, tmp_path, batch_size=0)
    with pytest.raises(TypeError, match="JSON"):
        evaluate(model, own, others, tmp_path, protocol_extra={"path": tmp_path})
