"""What is measured of every method, and what is refused."""

import io
import json
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from evaluations import Pairs, compared
from rich.console import Console

from rpf_lightning.evaluation.methods import Bicubic, Function, Method, Model
from rpf_lightning.evaluation.result_files import write_results
from rpf_lightning.evaluation.result_tables import table_for_console, table_markdown
from rpf_lightning.metrics import ISC, ReferenceISC
from rpf_lightning.model.resize import resize
from rpf_lightning.model.rpf import RPFModel

METRICS = ["psnr", "ssim", "psnr_face", "detail_error", "lr_consistency"]
METHODS = ["bicubic", "without_reference", "with_reference", "other_person"]


class Copier(RPFModel):
    """Returns its reference, or grey without one."""

    modes: ClassVar[set] = set()

    def forward(self, lr, reference=None):
        self.modes.add((torch.is_inference_mode_enabled(), self.training))
        return torch.full((len(lr), 3, 32, 32), 0.5) if reference is None else reference


def run(out, pairs, methods=None, **kwargs):
    """Bicubic and three variants of one model, unless `methods` are given."""
    model = Copier(lr_size=16, scale=2, channels=8, width=1 / 64).train()
    given = zip(METHODS[1:], ("none", "own", "swap"), strict=True)
    four = [Bicubic("bicubic"), *(Model(name, model, reference) for name, reference in given)]
    return compared(out, pairs, four if methods is None else methods, **kwargs)


def numpy_psnr(pred, gt):
    return float(10 * np.log10(1 / np.mean((pred.double().numpy() - gt.double().numpy()) ** 2)))


def test_each_method_gets_its_own_input(tmp_path):
    pairs = Pairs()
    results = run(tmp_path, pairs)
    methods, samples = results["methods"], pairs.samples
    assert list(methods) == METHODS
    outputs = [
        [resize(s.lr[None], 32)[0].clamp(0, 1), torch.full_like(s.gt, 0.5), s.reference, s.other] for s in samples
    ]  # fmt: skip
    for place, method in enumerate(METHODS):
        assert list(methods[method]) == METRICS
        values = [numpy_psnr(of[place], s.gt) for of, s in zip(outputs, samples, strict=True)]
        assert methods[method]["psnr"] == pytest.approx(np.mean(values), abs=1e-3), method
        assert results["per_image"][1]["metrics"][method]["psnr"] == pytest.approx(values[1], abs=1e-3)
    crop = np.s_[:, 8:-8, 8:-8]
    faces = [numpy_psnr(s.reference[crop], s.gt[crop]) for s in samples]
    assert methods["with_reference"]["psnr_face"] == pytest.approx(np.mean(faces), abs=1e-3)
    small = [numpy_psnr(resize(s.reference[None], 16)[0].clamp(0, 1), s.lr) for s in samples]
    assert methods["with_reference"]["lr_consistency"] == pytest.approx(np.mean(small), abs=1e-3)
    # grey has no details: its error is the strength of the GT's
    details = [(s.gt - resize(resize(s.gt[None], 16), 32)[0]).abs()[crop].mean().item() for s in samples]
    assert methods["without_reference"]["detail_error"] == pytest.approx(np.mean(details), abs=1e-6)
    row = results["per_image"][1]
    assert (row["id"], row["reference_id"], row["other_id"]) == ("gt1", "own1", "other1")
    # the data sets outside of inference mode: what they cache may be used for training later
    assert pairs.modes == {False}
    assert Copier.modes == {(True, False)}


def test_images_without_a_value_are_left_out_and_counted(tmp_path):
    pairs = Pairs()
    pairs.samples[2].mask.zero_()
    results = run(tmp_path, pairs)
    faces = [row["metrics"]["bicubic"]["psnr_face"] for row in results["per_image"]]
    assert faces.pop(2) is None
    assert results["methods"]["bicubic"]["psnr_face"] == pytest.approx(np.mean(faces))
    assert results["counts"]["bicubic"] == {**dict.fromkeys(METRICS, 5), "psnr_face": 4, "detail_error": 4}
    assert "psnr_face 4, detail_error 4" in table_markdown(results)


def test_the_hash_changes_with_a_pair(tmp_path):
    hashes = []
    for number, changed in enumerate(({}, {}, {"reference_id": "a third one"}, {"other_id": "a third one"})):
        pairs = Pairs(2)
        pairs.samples[1] = pairs.samples[1]._replace(**changed)
        hashes.append(run(tmp_path / str(number), pairs)["protocol"]["pairs_sha256"])
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3


def test_tables_show_every_method_and_the_best_in_bold(tmp_path):
    results = run(tmp_path, Pairs())
    write_results(tmp_path, results)
    lines = (tmp_path / "table.md").read_text(encoding="utf-8").splitlines()
    header, _, *table = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines[:6])
    assert header == [
        "method", "PSNR (dB) ↑", "SSIM ↑", "PSNR face (dB) ↑", "detail error ↓", "LR consistency (dB) ↑",
    ]  # fmt: skip
    assert [row[0] for row in table] == [name.replace("_", " ") for name in METHODS]
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

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    stored = (tmp_path / "results.json").read_text(encoding="utf-8")
    assert json.loads(stored, parse_constant=refuse) == results


def test_the_identity_to_the_reference_is_that_of_what_a_method_saw(tmp_path):
    """And what the networks see in GT and reference is computed once for all methods."""
    asked = []

    def identity(images):
        asked.append(len(images))
        return images.mean((2, 3)) - torch.tensor([0.5, 0.4, 0.3])

    class Given(Method):
        def __call__(self, batch):
            return batch.gt * 0.5

        def reference(self, batch):
            return batch.other if self.name == "swapped" else batch.reference

    pairs = Pairs(1)
    sample = pairs.samples[0]
    sample = pairs.samples[0] = sample._replace(reference=sample.gt * 0.3, other=sample.gt.flip(0) * 0.8)
    methods = [Given(name) for name in ("swapped", "b", "c")]
    metrics = {"isc": ISC(identity), "isc_reference": ReferenceISC(identity)}
    results = compared(tmp_path, pairs, methods, metrics)
    assert len(asked) == 1 + 3 + 2  # the GT, three outputs, two references
    out = identity(sample.gt[None] * 0.5)
    for name, reference in (("swapped", sample.other), ("b", sample.reference), ("c", sample.reference)):
        for metric, image in (("isc_reference", reference), ("isc", sample.gt)):
            wanted = torch.cosine_similarity(out, identity(image[None])).item()
            assert results["methods"][name][metric] == pytest.approx(wanted, abs=1e-5)


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
def test_what_cannot_be_measured(tmp_path, changed, error, message):
    with pytest.raises(error, match=message):
        run(tmp_path / "out", **{"pairs": Pairs(2), **changed})
    assert not (tmp_path / "out").exists()
