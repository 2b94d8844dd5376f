"""What a comparison goes on from, and that two do not share a folder."""

import json
import logging
import multiprocessing
import os
import time
from pathlib import Path

import pytest
from evaluations import PLAIN, Pairs, compared

from rpf_lightning.cli import main
from rpf_lightning.evaluation.chosen_metrics import image_metrics
from rpf_lightning.evaluation.evaluation_batch import Fault
from rpf_lightning.evaluation.methods import Bicubic, Method
from rpf_lightning.evaluation.progress import Progress, sole_evaluation
from rpf_lightning.metrics import NetworkMetric, PerImageMetric

IDS = [f"a{n}" for n in range(6)]


class Stop(Exception):
    """Ends a comparison half-way."""


class Faulty(Method):
    """Has no image for every second photo; stops at one of them."""

    kind = "folder"

    def __init__(self, stop_at=None, factor=1.0):
        super().__init__("faulty")
        self.stop_at, self.factor, self.asked = stop_at, factor, []

    def __call__(self, batch):
        if self.stop_at in batch.id:
            raise Stop
        self.asked += batch.id
        return batch.gt * 0.9 * self.factor

    def fault(self, photo):
        return Fault("missing", f"{photo} is not there") if int(photo[-1]) % 2 == 0 else None


class Outside(Faulty):
    kind = ""


class Level(PerImageMetric):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def per_image(self, output):
        return output.mean((1, 2, 3)) * self.factor


class Brightness(NetworkMetric):
    def per_image(self, output, gt):
        return (output - gt).abs().flatten(1).mean(1) * self.network


def run(out, method, pairs="a", metric=None, **extra):
    metrics = image_metrics() | ({} if metric is None else {"lpips": metric})
    pairs, methods = Pairs(6, pairs), [Bicubic("bicubic"), method]
    return compared(out, pairs, methods, metrics, batch_size=1, protocol_extra=extra)


def half(out, method=Faulty, **given):
    """Stop a comparison after some images."""
    with pytest.raises(Stop):
        run(out, method("a4"), **given)


def test_faults_found_before_the_stop_are_not_lost(tmp_path):
    half(tmp_path)
    lines = (tmp_path / "progress.jsonl").read_text().splitlines()[1:]
    assert [json.loads(line)["id"] for line in lines] == IDS[:3]
    method = Faulty()
    results = run(tmp_path, method)
    assert method.asked == IDS[3:]
    assert results["faults"] == {"faulty": {"missing": [f"a{i} is not there" for i in (0, 2, 4)]}}
    assert results["counts"]["faulty"]["psnr"] == 3
    faults = [row.get("faults") for row in results["per_image"]]
    assert faults[:2] == [{"faulty": ["missing", "a0 is not there"]}, None]
    assert results == run(tmp_path / "whole", Faulty())


@pytest.mark.parametrize(
    ("first", "second", "differing"),
    [
        ({}, {"pairs": "b"}, "data"),
        ({"isc_sha256": "1"}, {"isc_sha256": "2"}, "isc_sha256"),
        ({"lpips": "given"}, {"lpips": "given", "lpips_sha256": "1", "metric": Brightness(1)}, "lpips_sha256, metrics"),
        (
            {"lpips_sha256": "1", "metric": Brightness(1)}, {"lpips_sha256": "2", "metric": Brightness(100)},
            "lpips_sha256",
        ),
        # what nothing identifies may be another one now, under the same name
        ({"metric": Brightness(1)}, {"metric": Brightness(100)}, None),
        ({"metric": Level(1)}, {"metric": Level(2)}, None),
        ({"method": Outside}, {"method": lambda: Outside(factor=0.5)}, None),
    ],
)  # fmt: skip
def test_values_of_other_pairs_or_weights_are_not_taken_and_kept(tmp_path, caplog, first, second, differing):
    half(tmp_path, **first)
    file = tmp_path / "progress.jsonl"
    before = file.read_bytes() if file.exists() else None
    assert (before is None) == (differing is None)
    given = {"method": Faulty, **second}
    make = given.pop("method")
    method = make()
    with caplog.at_level(logging.WARNING):
        results = run(tmp_path, method, **given)
    assert len(method.asked) == 6
    assert results == run(tmp_path / "whole", make(), **given)
    if differing:
        assert f"differs in: {differing}; it is kept as progress.1.jsonl" in caplog.text
        assert (tmp_path / "progress.1.jsonl").read_bytes() == before


def test_the_same_network_goes_on(tmp_path):
    half(tmp_path, metric=Brightness(1), lpips_sha256="1")
    method = Faulty()
    run(tmp_path, method, metric=Brightness(1), lpips_sha256="1")
    assert method.asked == IDS[3:]
    assert not (tmp_path / "progress.1.jsonl").exists()


def test_no_file_is_an_obstacle_and_none_that_is_kept_is_overwritten(tmp_path):
    contents = [b"", b'{"torn', b'{"a": 1}\n', b"[1]\n", b"no json\n"]
    for content in contents:
        (tmp_path / "progress.jsonl").write_bytes(content)
        assert Progress(tmp_path / "progress.jsonl", {"a": "other"}).read() == []
    assert [(tmp_path / f"progress.{n}.jsonl").read_bytes() for n in range(1, 6)] == contents


def hold(folder, started):
    with sole_evaluation(Path(folder)):
        started.set()
        time.sleep(600)


def test_a_full_disk_names_the_file_and_what_was_measured_is_kept(tmp_path, disk_full_after_1000_bytes):
    progress = Progress(tmp_path / "progress.jsonl", {"a": "one"})
    progress.append([{"value": 1}])
    with pytest.raises(OSError, match=r"File too large: '.*progress\.jsonl'"), disk_full_after_1000_bytes:
        progress.append([{"value": "x" * 2000}])
    assert progress.read() == [{"value": 1}]  # the torn line is dropped


def test_two_evaluations_do_not_share_a_folder(tmp_path, prepared, capsys):
    context = multiprocessing.get_context("fork" if os.name == "posix" else "spawn")
    started, busy = context.Event(), tmp_path / "busy"
    process = context.Process(target=hold, args=(str(busy), started))
    process.start()
    try:
        assert started.wait(60)
        with pytest.raises(SystemExit):
            main(["evaluate", "--data", str(prepared), "--split", "all", *PLAIN, "--out", str(busy)])
    finally:
        process.kill()
        process.join()
    assert f"{busy}: another evaluation writes there" in capsys.readouterr().err
    assert [path.name for path in busy.iterdir()] == [".lock"]


def test_only_a_folder_that_it_made_is_removed_again(tmp_path):
    (tmp_path / "there").mkdir()
    for name in ("there", "made"):
        with pytest.raises(Stop), sole_evaluation(tmp_path / name):
            raise Stop
    assert (tmp_path / "there").is_dir()
    assert not (tmp_path / "made").exists()
