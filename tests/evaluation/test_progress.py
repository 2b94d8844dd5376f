"""What a comparison goes on from, and that two do not share a folder."""

import json
import logging
import multiprocessing
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from rpf_lightning.evaluation.chosen_metrics import image_metrics
from rpf_lightning.evaluation.evaluation_batch import EvaluationBatch, Fault
from rpf_lightning.evaluation.measuring import compare
from rpf_lightning.evaluation.methods import Bicubic, Method
from rpf_lightning.evaluation.progress import Progress, sole_evaluation
from rpf_lightning.metrics import ISC, NetworkMetric, PerImageMetric, ReferenceISC
from rpf_lightning.model.resize import resize


class Pairs(Dataset[EvaluationBatch]):
    """Noise, and what says which noise it is."""

    def __init__(self, name: str = "a", count: int = 6) -> None:
        self.name, self.count = name, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> EvaluationBatch:
        gt = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(index))
        lr = resize(gt[None], 16)[0].clamp(0, 1)
        return EvaluationBatch(lr, gt, torch.ones(1, 32, 32), gt, None, f"{self.name}{index}", "r", None)

    def fingerprint(self) -> str:
        return self.name


class Stop(Exception):
    """Ends a comparison half-way."""


class Faulty(Method):
    """Has no image for every second photo; stops at one of them."""

    kind = "folder"

    def __init__(self, stop_at: str | None = None) -> None:
        super().__init__("faulty")
        self.stop_at, self.asked = stop_at, list[str]()

    def __call__(self, batch: EvaluationBatch) -> Tensor:
        if self.stop_at in batch.id:
            raise Stop
        self.asked += batch.id
        return batch.gt * 0.9

    def fault(self, photo: str) -> Fault | None:
        return Fault("missing", f"{photo} is not there") if int(photo[-1]) % 2 == 0 else None


def run(
    out: Path, method: Faulty, pairs: Pairs, more: dict[str, PerImageMetric] | None = None, **extra: Any
) -> dict[str, Any]:
    return compare(
        [Bicubic("bicubic"), method], pairs, out, image_metrics() | (more or {}), lr_size=16, size=32, batch_size=1,
        device=torch.device("cpu"), protocol_extra=extra,
    )  # fmt: skip


def half(out: Path, **extra: Any) -> list[str]:
    """Stop a comparison after some images; return the ids that were written."""
    with pytest.raises(Stop):
        run(out, Faulty("a4"), Pairs(), **extra)
    lines = (out / "progress.jsonl").read_text().splitlines()[1:]
    return [json.loads(line)["id"] for line in lines]


def test_faults_found_before_the_stop_are_not_lost(tmp_path: Path) -> None:
    known = half(tmp_path)
    assert known == ["a0", "a1", "a2"]
    method = Faulty()
    results = run(tmp_path, method, Pairs())
    assert method.asked == ["a3", "a4", "a5"]
    assert results["faults"] == {"faulty": {"missing": [f"a{i} is not there" for i in (0, 2, 4)]}}
    assert results["counts"]["faulty"]["psnr"] == 3
    assert [row.get("faults") for row in results["per_image"]][:2] == [
        {"faulty": ["missing", "a0 is not there"]}, None,
    ]  # fmt: skip
    assert results == run(tmp_path / "whole", Faulty(), Pairs())


@pytest.mark.parametrize(
    ("pairs", "extra", "differing"),
    [
        (Pairs("b"), {}, "data"),
        (Pairs(), {"lpips_sha256": "2"}, "lpips_sha256"),
        (Pairs(), {"isc_sha256": "2"}, "isc_sha256"),
    ],
)
def test_values_of_other_pairs_or_weights_are_not_taken_and_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, pairs: Pairs, extra: dict[str, str], differing: str
) -> None:
    weights = {"lpips_sha256": "1", "isc_sha256": "1"}
    half(tmp_path, **weights)
    before = (tmp_path / "progress.jsonl").read_bytes()
    method = Faulty()
    with caplog.at_level(logging.WARNING):
        results = run(tmp_path, method, pairs, **weights | extra)
    assert (
        method.asked == [row["id"] for row in results["per_image"]] == [f"{pairs.name}{i}" for i in range(6)]
    )
    assert f"differs in: {differing}; it is kept as progress.1.jsonl" in caplog.text
    assert (tmp_path / "progress.1.jsonl").read_bytes() == before
    half(tmp_path / "again", **weights)
    assert run(tmp_path / "again", Faulty(), Pairs(), **weights)["protocol"]["pairs"] == 6
    assert not (tmp_path / "again" / "progress.1.jsonl").exists()


def test_no_file_that_is_kept_is_overwritten(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / "progress.jsonl").write_text(f'{{"a": {number}}}\n')
        assert Progress(tmp_path / "progress.jsonl", {"a": "other"}).read() == []
    assert [(tmp_path / f"progress.{n}.jsonl").read_text() for n in (1, 2, 3)] == [
        '{"a": 0}\n', '{"a": 1}\n', '{"a": 2}\n',
    ]  # fmt: skip


def test_the_identity_to_the_reference_is_that_of_what_a_method_saw(tmp_path: Path) -> None:
    """And what the networks see in GT and reference is computed once for all methods."""
    asked: list[int] = []

    def identity(images: Tensor) -> Tensor:
        asked.append(len(images))
        return images.mean((2, 3)) - torch.tensor([0.5, 0.4, 0.3])

    class Swapped(Method):
        kind = "model-swap"

        def __call__(self, batch: EvaluationBatch) -> Tensor:
            return batch.gt * 0.5

        def reference(self, batch: EvaluationBatch) -> Tensor:
            assert batch.other is not None
            return batch.other

    class Own(Swapped):
        def reference(self, batch: EvaluationBatch) -> Tensor:
            return batch.reference

    class Three(Pairs):
        def __getitem__(self, index: int) -> EvaluationBatch:
            sample = super().__getitem__(index)
            return sample._replace(reference=sample.gt * 0.3, other=sample.gt.flip(0) * 0.8, other_id="o")

    methods = [Swapped("a"), Own("b"), Own("c")]
    data = Three(count=1)
    metrics: dict[str, PerImageMetric] = {"isc": ISC(identity), "isc_reference": ReferenceISC(identity)}
    results = compare(methods, data, tmp_path, metrics, lr_size=16, size=32, device=torch.device("cpu"))
    sample = data[0]
    assert sample.other is not None
    out = identity(sample.gt[None] * 0.5)
    for name, reference in (("a", sample.other), ("b", sample.reference), ("c", sample.reference)):
        for metric, image in (("isc_reference", reference), ("isc", sample.gt)):
            wanted = torch.cosine_similarity(out, identity(image[None])).item()
            assert results["methods"][name][metric] == pytest.approx(wanted, abs=1e-5)
    assert len(asked) == 1 + 6 + (1 + 3 + 2)  # the test's; GT, three outputs, two references


def hold(folder: str, started: Any) -> None:
    with sole_evaluation(Path(folder)):
        started.set()
        time.sleep(600)


@pytest.fixture
def busy(tmp_path: Path) -> Iterator[Path]:
    """A folder into which another process evaluates."""
    context = multiprocessing.get_context("fork" if os.name == "posix" else "spawn")
    started = context.Event()
    process = context.Process(target=hold, args=(str(tmp_path / "busy"), started))
    process.start()
    assert started.wait(60)
    yield tmp_path / "busy"
    process.kill()
    process.join()


def test_two_evaluations_do_not_share_a_folder(busy: Path) -> None:
    with pytest.raises(FileExistsError, match="another evaluation writes there"), sole_evaluation(busy):
        raise AssertionError("both at once")


def test_the_command_refuses_a_busy_folder(
    busy: Path, prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from rpf_lightning.cli import main

    words = [
        "--data",
        str(prepared),
        "--split",
        "all",
        "--lr-size",
        "16",
        "--size",
        "64",
        "--method",
        "bicubic",
    ]
    with pytest.raises(SystemExit):
        main(["evaluate", *words, "--out", str(busy)])
    assert "another evaluation writes there" in capsys.readouterr().err
    assert [path.name for path in busy.iterdir()] == [".lock"]


def test_only_a_folder_that_it_made_is_removed_again(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for name in ("there", "made"):
        with pytest.raises(Stop), sole_evaluation(tmp_path / name):
            raise Stop
    assert (tmp_path / "there").is_dir()
    assert not (tmp_path / "made").exists()


def test_a_folder_is_free_after_an_evaluation(tmp_path: Path) -> None:
    for _ in range(2):
        with sole_evaluation(tmp_path / "out"):
            pass


class Brightness(NetworkMetric):
    def per_image(self, output: Tensor, gt: Tensor) -> Tensor:
        return (output - gt).abs().flatten(1).mean(1) * self.network


def brightness(factor: float) -> dict[str, PerImageMetric]:
    return {"lpips": Brightness(factor)}


def test_values_of_two_networks_are_never_mixed(tmp_path: Path) -> None:
    """A network that nothing identifies may be another one now; one whose hash is known may not."""
    for name, extra in (("unknown", {}), ("changed", {"lpips_sha256": "a"})):
        out = tmp_path / name
        with pytest.raises(Stop):
            run(out, Faulty("a4"), Pairs(), brightness(1), **extra)
        extra = dict.fromkeys(extra, "b")
        method = Faulty()
        results = run(out, method, Pairs(), brightness(100), **extra)
        assert method.asked == [f"a{i}" for i in range(6)]
        values = [row["metrics"]["bicubic"]["lpips"] for row in results["per_image"]]
        assert min(values) > 1
    with pytest.raises(Stop):
        run(tmp_path / "same", Faulty("a4"), Pairs(), brightness(1), lpips_sha256="a")
    method = Faulty()
    run(tmp_path / "same", method, Pairs(), brightness(1), lpips_sha256="a")
    assert method.asked == ["a3", "a4", "a5"]


def test_what_nothing_identifies_starts_anew(tmp_path: Path) -> None:
    """A method or a metric of somebody else may be another one now, under the same name."""

    class Outside(Faulty):
        kind = ""

        def __init__(self, factor: float, stop_at: str | None = None) -> None:
            super().__init__(stop_at)
            self.factor = factor

        def __call__(self, batch: EvaluationBatch) -> Tensor:
            return super().__call__(batch) * self.factor

    class Level(PerImageMetric):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.factor = factor

        def per_image(self, output: Tensor) -> Tensor:
            return output.mean((1, 2, 3)) * self.factor

    with pytest.raises(Stop):
        run(tmp_path / "method", Outside(1, "a4"), Pairs())
    results = run(tmp_path / "method", Outside(0.5), Pairs())
    assert results["methods"] == run(tmp_path / "whole", Outside(0.5), Pairs())["methods"]
    with pytest.raises(Stop):
        run(tmp_path / "metric", Faulty("a4"), Pairs(), {"level": Level(1)})
    method = Faulty()
    run(tmp_path / "metric", method, Pairs(), {"level": Level(2)})
    assert method.asked == [f"a{i}" for i in range(6)]


def test_another_set_of_metrics_starts_anew(tmp_path: Path) -> None:
    """Or their values would be missing for the pairs that were measured before."""
    half(tmp_path, lpips="given")
    results = run(tmp_path, Faulty(), Pairs(), brightness(1), lpips="given", lpips_sha256="a")
    assert all("lpips" in row["metrics"]["bicubic"] for row in results["per_image"])
    assert results["counts"]["bicubic"]["lpips"] == 6
