"""What is measured of every method, and what is refused."""

import io
import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor
from torch.utils.data import Dataset

from rpf_lightning.evaluation.chosen_metrics import image_metrics
from rpf_lightning.evaluation.evaluation_batch import EvaluationBatch
from rpf_lightning.evaluation.measuring import compare
from rpf_lightning.evaluation.methods import Bicubic, Function, Method, Model
from rpf_lightning.evaluation.result_files import write_results
from rpf_lightning.evaluation.result_tables import table_for_console, table_markdown
from rpf_lightning.metrics import PerImageMetric
from rpf_lightning.model.resize import resize
from rpf_lightning.model.rpf import RPFModel

METRICS = ["psnr", "ssim", "psnr_face", "detail_error", "lr_consistency"]
METHODS = ["bicubic", "without_reference", "with_reference", "other_person"]


class Pairs(Dataset[EvaluationBatch]):
    """Noise; the references are near the GT."""

    def __init__(self, count: int = 5) -> None:
        self.samples = [self.sample(index) for index in range(count)]
        self.modes: set[bool] = set()

    @staticmethod
    def sample(index: int) -> EvaluationBatch:
        generator = torch.Generator().manual_seed(index)
        gt = 0.2 + 0.6 * torch.rand(3, 32, 32, generator=generator)
        noise = torch.randn(2, 3, 32, 32, generator=generator)
        own, other = (gt + 0.05 * (1 + index) * n for n in noise)
        mask = torch.zeros(1, 32, 32)
        mask[:, 8:-8, 8:-8] = 1
        lr = (resize(gt[None], 16).clamp(0, 1) * 255).round()[0] / 255
        names = f"gt{index}", f"own{index}", f"other{index}"
        return EvaluationBatch(lr, gt, mask, own.clamp(0.1, 0.9), other.clamp(0.1, 0.9), *names)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> EvaluationBatch:
        self.modes.add(torch.is_inference_mode_enabled())
        return self.samples[index]


class Copier(RPFModel):
    """Returns its reference, or grey without one."""

    modes: ClassVar[set[tuple[bool, bool]]] = set()

    def forward(self, lr: Tensor, reference: Tensor | None = None) -> Tensor:  # type: ignore[override]
        self.modes.add((torch.is_inference_mode_enabled(), self.training))
        return torch.full((len(lr), 3, 32, 32), 0.5) if reference is None else reference


def four() -> list[Method]:
    model = Copier(lr_size=16, scale=2, channels=8, width=1 / 64).train()
    return [
        Bicubic("bicubic"),
        Model("without_reference", model, "none"),
        Model("with_reference", model),
        Model("other_person", model, "swap"),
    ]


def run(
    out: Path,
    pairs: Pairs,
    methods: list[Method] | None = None,
    metrics: dict[str, PerImageMetric] | None = None,
    **kwargs: Any,
) -> dict[str, Any]:
    return compare(
        four() if methods is None else methods, pairs, out, metrics or image_metrics(), lr_size=16, size=32,
        device=torch.device("cpu"), batch_size=kwargs.pop("batch_size", 2), **kwargs,
    )  # fmt: skip


def numpy_psnr(pred: Tensor, gt: Tensor) -> float:
    return float(10 * np.log10(1 / np.mean((pred.double().numpy() - gt.double().numpy()) ** 2)))


def test_each_method_gets_its_own_input(tmp_path: Path) -> None:
    pairs = Pairs()
    results = run(tmp_path, pairs)
    methods = results["methods"]
    assert list(methods) == METHODS
    expected = [
        [resize(s.lr[None], 32)[0].clamp(0, 1), torch.full_like(s.gt, 0.5), s.reference, s.other]
        for s in pairs.samples
    ]
    for place, method in enumerate(METHODS):
        assert list(methods[method]) == METRICS
        values = [numpy_psnr(e[place], s.gt) for e, s in zip(expected, pairs.samples, strict=True)]
        assert methods[method]["psnr"] == pytest.approx(np.mean(values), abs=1e-3), method
        assert results["per_image"][1]["metrics"][method]["psnr"] == pytest.approx(values[1], abs=1e-3)
    crop = np.s_[:, 8:-8, 8:-8]
    faces = [numpy_psnr(s.reference[crop], s.gt[crop]) for s in pairs.samples]
    assert methods["with_reference"]["psnr_face"] == pytest.approx(np.mean(faces), abs=1e-3)
    small = [numpy_psnr(resize(s.reference[None], 16)[0].clamp(0, 1), s.lr) for s in pairs.samples]
    assert methods["with_reference"]["lr_consistency"] == pytest.approx(np.mean(small), abs=1e-3)
    # grey has no details: its error is the strength of the GT's
    details = [
        (s.gt - resize(resize(s.gt[None], 16), 32)[0]).abs()[crop].mean().item() for s in pairs.samples
    ]
    assert methods["without_reference"]["detail_error"] == pytest.approx(np.mean(details), abs=1e-6)
    row = results["per_image"][1]
    assert (row["id"], row["reference_id"], row["other_id"]) == ("gt1", "own1", "other1")
    # the data sets outside of inference mode: what they cache may be used for training later
    assert pairs.modes == {False}
    assert Copier.modes == {(True, False)}


def test_images_without_a_value_are_left_out_and_counted(tmp_path: Path) -> None:
    pairs = Pairs()
    pairs.samples[2].mask.zero_()
    results = run(tmp_path, pairs)
    faces = [row["metrics"]["bicubic"]["psnr_face"] for row in results["per_image"]]
    assert [value is None for value in faces] == [False, False, True, False, False]
    assert results["methods"]["bicubic"]["psnr_face"] == pytest.approx(
        np.mean([face for face in faces if face is not None])
    )
    assert results["counts"]["bicubic"] == {**dict.fromkeys(METRICS, 5), "psnr_face": 4, "detail_error": 4}
    assert "psnr_face 4, detail_error 4" in table_markdown(results)


def test_the_hash_changes_with_a_pair(tmp_path: Path) -> None:
    hashes = []
    for changed in ({}, {}, {"reference_id": "a third one"}, {"other_id": "a third one"}):
        pairs = Pairs(2)
        pairs.samples[1] = pairs.samples[1]._replace(**changed)
        hashes.append(run(tmp_path, pairs)["protocol"]["pairs_sha256"])
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3


def test_tables_show_every_method_and_the_best_in_bold(tmp_path: Path) -> None:
    results = run(tmp_path, Pairs())
    write_results(tmp_path, results)
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

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    stored = (tmp_path / "results.json").read_text(encoding="utf-8")
    assert json.loads(stored, parse_constant=refuse) == results


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"methods": [Function("nan", lambda b: b.gt * torch.nan)]}, ValueError, "nan: the output is not finite .*gt0"),
        ({"methods": [Function("lr", lambda b: b.lr)]}, ValueError, r"lr: gave a result of the shape .*16\)"),
        ({"pairs": Pairs(0)}, ValueError, "at least one pair"),
        ({"batch_size": 0}, ValueError, "batch_size >= 1"),
        ({"protocol_extra": {"path": Path()}}, TypeError, "JSON"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured(
    tmp_path: Path, changed: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        run(tmp_path / "out", **{"pairs": Pairs(2), **changed})
    assert not (tmp_path / "out").exists()
