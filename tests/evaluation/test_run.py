"""`rpf evaluate` on a prepared folder."""

import csv
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluations import PLAIN, gts, noisy, run, write_folder
from PIL import Image

from rpf_lightning.cli import main
from rpf_lightning.data import ReferencePairsDataModule
from rpf_lightning.data.prepared_photos import PreparedPhotos
from rpf_lightning.evaluation import evaluate
from rpf_lightning.evaluation.chosen_metrics import choose_metrics
from rpf_lightning.evaluation.evaluation_pairs import choose_pairs
from rpf_lightning.evaluation.methods import Bicubic
from rpf_lightning.evaluation.paper_tables import TABLE1, paper_latex
from rpf_lightning.faces import dlib_models
from rpf_lightning.faces.landmarks import Found
from rpf_lightning.metrics import psnr
from rpf_lightning.model import RPFModel


def test_the_short_form(prepared: Path, model_dir: Path, tmp_path: Path) -> None:
    images = noisy(gts(prepared))
    folder = write_folder(tmp_path / "pulse", images)
    out = tmp_path / "out"
    results = run(
        prepared, out, "--method", f"folder:PULSE={folder}", "--method", f"model:my_model={model_dir}",
        "--method", f"model-swap:swapped={model_dir}", "--method=reference", "--batch-size", "5",
    )  # fmt: skip
    assert list(results["methods"]) == ["bicubic", "PULSE", "my_model", "swapped", "reference"]
    photos = PreparedPhotos(prepared)
    protocol = results["protocol"]
    assert protocol["photos_sha256"] == photos.sha256
    assert protocol["split"] == "all"
    assert len(protocol["pairs_sha256"]) == 64
    assert protocol["pairs"] == len(images) == len(results["per_image"]) == 18
    # the folder's numbers once more
    expected = [
        10 * np.log10(255**2 / np.mean((images[name].astype(float) - gt) ** 2))
        for name, gt in gts(prepared).items()
    ]
    assert results["methods"]["PULSE"]["psnr"] == pytest.approx(np.mean(expected), abs=1e-3)
    assert results["faults"] == {}
    low, high = results["intervals"]["PULSE"]["psnr"]
    assert low < results["methods"]["PULSE"]["psnr"] < high

    identities = dict(zip(photos.ids, photos.identities, strict=True))
    for row in results["per_image"]:
        assert identities[row["id"]] == identities[row["reference_id"]] != identities[row["other_id"]]

    gaps = {(gap["method"], gap["minus"]): gap["metrics"] for gap in results["gaps"]}
    assert list(gaps) == [
        ("PULSE", "bicubic"), ("my_model", "bicubic"), ("swapped", "bicubic"), ("reference", "bicubic"),
        ("my_model", "swapped"),
    ]  # fmt: skip
    gained = results["methods"]["PULSE"]["psnr"] - results["methods"]["bicubic"]["psnr"]
    assert gaps["PULSE", "bicubic"]["psnr"]["mean"] == pytest.approx(gained)

    rows = list(csv.DictReader((out / "per_image.csv").open(encoding="utf-8")))
    assert len(rows) == 18 * 5
    assert float(rows[1]["psnr"]) == results["per_image"][0]["metrics"]["PULSE"]["psnr"]
    assert sorted(path.name for path in out.iterdir()) == [
        ".lock", "best.png", "grid.png", "median.png", "per_image.csv", "results.json", "table.md", "table.tex",
        "worst.png",
    ]  # fmt: skip


def test_tables_hold_the_papers_numbers(prepared: Path, model_dir: Path, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "p", noisy(gts(prepared)))
    results = run(
        prepared,
        tmp_path / "out",
        "--method",
        f"folder:pulse={folder}",
        "--method",
        f"model:my_net={model_dir}",
    )
    text = (tmp_path / "out" / "table.md").read_text(encoding="utf-8")
    rows = {
        line.split("|")[1].strip(): line
        for line in text[text.index("## Table 1") :].splitlines()
        if "|" in line
    }
    mean, (low, high) = results["methods"]["pulse"]["psnr"], results["intervals"]["pulse"]["psnr"]
    assert f"| {mean:.2f} [{low:.2f}, {high:.2f}] |" in rows["pulse"]
    assert rows["pulse"].endswith("| 17.53 | 0.5306 | 0.6068 | 0.4068 |")
    assert rows["my_net"].endswith("| 23.16 | 0.6980 | 0.3591 | 0.7101 |")
    assert rows["bicubic"].endswith("| – | – | – | – |")
    assert rows["GLEAN (paper)"].endswith("| 21.38 | 0.6016 | 0.4109 | 0.6118 |")
    assert "PULSE (paper)" not in rows
    assert "| paper ×64 ISC\\* |" in text
    assert "*: not comparable with ours in any case" in text
    assert "none for our factor of 4" in text
    tex = (tmp_path / "out" / "table.tex").read_text(encoding="utf-8")
    assert r"my\_net & " in tex
    assert r"& 23.16 & 0.6980 & 0.3591 & 0.7101 \\" in tex
    body = [line for line in tex.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
    assert {line.count("&") for line in body} == {4 + 1 + 4}
    assert not set(tex) & set("–↑→×")
    assert tex.count("{") == tex.count("}")
    assert tex.count(r"\begin") == tex.count(r"\end") == 2

    results["protocol"]["size"] = 32 * 16  # the paper's other factor
    assert "25.03 & 0.6913 & 0.3003 & 0.8063" in paper_latex(results)
    assert "none for our factor" not in paper_latex(results)
    assert TABLE1.values[32].keys() == TABLE1.values[64].keys()


def test_every_fault_of_a_folder_is_named(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = noisy(gts(prepared))
    small, broken, gone, grey, *_ = names = [Path(name).with_suffix(".png").name for name in images]
    folder = write_folder(tmp_path / "pulse", images)
    Image.open(folder / small).resize((32, 32)).save(folder / small)
    (folder / broken).write_bytes((folder / broken).read_bytes()[:200])
    (folder / gone).unlink()
    Image.open(folder / grey).convert("L").save(folder / grey)
    Image.open(folder / grey).save(folder / "nobody.png")
    results = run(prepared, tmp_path / "out", "--method", f"folder:PULSE={folder}")
    faults = results["faults"]["PULSE"]
    assert {kind: len(texts) for kind, texts in faults.items()} == {
        "wrong size": 1, "corrupt": 1, "missing": 1, "grey": 1, "extra": 1,
    }  # fmt: skip
    text = (tmp_path / "out" / "table.md").read_text(encoding="utf-8")
    table = list(csv.DictReader((tmp_path / "out" / "per_image.csv").open(encoding="utf-8")))
    for kind, name in {
        "wrong size": small, "corrupt": broken, "missing": gone, "grey": grey, "extra": "nobody.png",
    }.items():  # fmt: skip
        assert Path(name).stem in faults[kind][0]
        assert f"PULSE: 1 {kind}: {faults[kind][0]}" in text
        assert any(row["fault"].startswith(kind) for row in table) or kind == "extra"
    # the other images count, and the gap is taken over them alone
    assert results["counts"]["PULSE"]["psnr"] == len(names) - 3
    assert results["counts"]["bicubic"]["psnr"] == len(names)
    (gap,) = results["gaps"]
    both = [row["metrics"] for row in results["per_image"] if row["metrics"]["PULSE"]["psnr"] is not None]
    assert gap["metrics"]["psnr"]["mean"] == pytest.approx(
        np.mean([values["PULSE"]["psnr"] - values["bicubic"]["psnr"] for values in both])
    )
    assert len(both) == gap["metrics"]["psnr"]["count"] == len(names) - 3
    assert "1 missing" in capsys.readouterr().out.replace("\n", " ")


class Killed(BaseException):
    """Stands for the end of the process."""


def kill_after(monkeypatch: pytest.MonkeyPatch, batches: int | None) -> list[str]:
    """Let bicubic end the process at a batch; return the names of what it was asked for."""
    seen: list[str] = []
    call = Bicubic.__call__

    def counted(self: Bicubic, batch: Any) -> torch.Tensor:
        if batches is not None and len(seen) == 4 * batches:
            raise Killed
        seen.extend(batch.id)
        return call(self, batch)

    monkeypatch.setattr(Bicubic, "__call__", counted)
    return seen


def test_a_killed_evaluation_goes_on(
    prepared: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--method", f"model:RPF={model_dir}", "--batch_size", "4", "--contact-images", "0"]
    whole = run(prepared, tmp_path / "whole", *words)
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        kill_after(patch, 3)
        with pytest.raises(Killed):
            run(prepared, out, *words)
    progress = out / "progress.jsonl"
    lines = progress.read_bytes().splitlines(keepends=True)
    assert len(lines) == 1 + 8  # two of three batches were measured
    progress.write_bytes(b"".join(lines[:-1]) + lines[-1][:40])  # and the last line was torn
    with monkeypatch.context() as patch:
        seen = kill_after(patch, None)
        again = run(prepared, out, *words)
    assert seen == [row["id"] for row in whole["per_image"]][7:]
    for name, means in whole["methods"].items():
        assert again["methods"][name] == pytest.approx(means, rel=1e-4)
    assert again["protocol"] == whole["protocol"]
    assert [row["id"] for row in again["per_image"]] == [row["id"] for row in whole["per_image"]]
    assert not progress.exists()


def test_splits(prepare: Any, tmp_path: Path) -> None:
    prepare("prepared", val_fraction=0.34)
    root = tmp_path / "prepared"
    photos = PreparedPhotos(root)

    def ids(split: str | None) -> set[str]:
        data = ReferencePairsDataModule(str(root), lr_size=16, size=64)
        chosen, _ = choose_pairs(data, split)
        return {photos.ids[pair.gt] for pair in chosen.val_dataset().pairs}

    for split in ("train", "val"):
        assert ids(split) == {photos.ids[pair.gt] for pair in photos.pairs(split)}
    assert ids(None) == ids("val") == ids("test")
    data = ReferencePairsDataModule(str(root), lr_size=16, size=64)
    assert choose_pairs(data, "test")[1] == "test (no such part: validation)"
    with pytest.raises(FileNotFoundError, match="no split 'paper_test': expected one of train, val, test"):
        ids("paper_test")
    first = run(root, tmp_path / "a", split="val")["protocol"]["pairs_sha256"]
    assert run(root, tmp_path / "b", split="train")["protocol"]["pairs_sha256"] != first
    assert run(root, tmp_path / "c", split="val")["protocol"]["pairs_sha256"] == first


def test_samples_are_those_of_the_training(prepared: Path, model_dir: Path, tmp_path: Path) -> None:
    """The lean samples of the evaluation against those of `val_dataset`."""
    data = ReferencePairsDataModule(str(prepared), val_fraction=0.34, degradation="dpsr")
    results = evaluate(
        model_dir=str(model_dir), data=data, out=str(tmp_path), grid_images=0, contact_images=0
    )
    samples = list(data.val_dataset())
    model = RPFModel.from_pretrained(model_dir)
    with torch.no_grad():
        outputs = [model(s.lr[None], s.reference[None]) for s in samples]
    values = [psnr(output, s.gt[None]).item() for output, s in zip(outputs, samples, strict=True)]
    assert results["methods"]["with_reference"]["psnr"] == pytest.approx(np.mean(values), abs=1e-3)
    assert list(results["methods"]) == ["bicubic", "without_reference", "with_reference", "other_person"]
    assert not (tmp_path / "grid.png").exists()


def test_metrics_of_networks(
    prepared: Path, tmp_path: Path, alexnet_state: dict[str, torch.Tensor], make_pack: Any
) -> None:
    weights = make_pack("a").parents[3]
    make_pack("b")
    torch.save(alexnet_state, weights / "alexnet_features.pth")
    results = run(prepared, tmp_path / "out", "--method", "reference", "--lpips", "--isc", "--isc-pack", "b")
    copied = results["methods"]["reference"]
    assert copied["isc_reference"] == pytest.approx(1, abs=1e-5)
    assert copied["isc"] < 0.9999
    assert copied["lpips"] > 0
    assert results["protocol"]["isc_network"] == "b/x.onnx"
    for key, file in (("lpips", "alexnet_features.pth"), ("isc", "insightface/models/b/x.onnx")):
        digest = hashlib.sha256((weights / file).read_bytes()).hexdigest()
        assert results["protocol"][f"{key}_sha256"] == digest
    assert list(copied)[-3:] == ["lpips", "isc", "isc_reference"]


@pytest.mark.parametrize("here", [True, False])
def test_without_a_word_what_has_its_weights_here_is_measured(
    here: bool, prepared: Path, tmp_path: Path, alexnet_state: dict[str, torch.Tensor], make_pack: Any
) -> None:
    """The short form of the command gives the means of LPIPS and ISC; nothing is downloaded for them."""
    if here:
        torch.save(alexnet_state, make_pack().parents[3] / "alexnet_features.pth")
    results = run(prepared, tmp_path / "out")
    means, protocol = results["methods"]["bicubic"], results["protocol"]
    assert ({"lpips", "isc"} <= means.keys()) is here
    assert protocol["lpips"] == protocol["isc"] == ("on" if here else "off: no weights here")
    results = run(prepared, tmp_path / "off", "--lpips", "false", "--isc", "false")
    assert not {"lpips", "isc"} & results["methods"]["bicubic"].keys()
    assert results["protocol"]["lpips"] == "off: not asked for"


def test_landmark_distance_through_the_comparison(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_pack: Any
) -> None:
    """A model that finds all landmarks at (mean red, 0) of the picture, and none in black ones."""

    def landmarks(images: list[np.ndarray]) -> list[Found]:
        reds = [float(image[..., 0].mean()) for image in images]
        return [Found(np.full((68, 2), (red, 0.0)) if red else None, []) for red in reds]

    asked: list[tuple[str, str, str | None]] = []
    monkeypatch.setattr(
        "rpf_lightning.faces.landmarks.landmark_model",
        lambda spec, device, pack=None: asked.append((spec, str(device), pack)) or landmarks,
    )
    images = {name: np.clip(image, 0, 200) + 10 for name, image in gts(prepared).items()}
    black, *rest = images
    pack, net = make_pack("mbf"), tmp_path / "net.onnx"
    net.write_bytes(b"weights")
    images[black] = np.zeros_like(images[black])
    folder = write_folder(tmp_path / "p", images)
    results = run(
        prepared, tmp_path / "out", "--method", f"folder:p={folder}", "--landmark-model", f"onnx:{net}",
        "--isc-pack", "mbf", "--device", "cpu:0",
    )  # fmt: skip
    assert asked == [(f"onnx:{net}", "cpu:0", "mbf")]
    assert results["protocol"]["landmark_network"] == "onnx:net.onnx"
    hashes = [hashlib.sha256(file.read_bytes()).hexdigest() for file in (net, pack)]
    assert results["protocol"]["landmark_sha256"] == hashes
    assert "landmark distance" in (tmp_path / "out" / "table.tex").read_text(encoding="utf-8")
    truth = gts(prepared)
    expected = [abs(images[n][..., 0].mean() - truth[n][..., 0].mean()) / 64 * 100 for n in rest]
    assert results["methods"]["p"]["landmark_distance"] == pytest.approx(np.mean(expected), rel=1e-3)
    assert results["counts"]["p"]["landmark_distance"] == len(rest)


def test_the_files_of_dlibs_landmarks_are_recorded() -> None:
    if not dlib_models.is_installed():
        pytest.skip("dlib is not installed")
    metrics, said = choose_metrics(False, False, None, "dlib", torch.device("cpu"))
    assert "landmark_distance" in metrics
    assert said["landmark_network"] == "dlib"
    assert said["landmark_sha256"] == [dlib_models.SHA256[dlib_models.LANDMARKS]]


@pytest.mark.parametrize("content", [b"", b'{"torn', b'{"a": 1}\n', b"[1]\n", b"no json\n"])
def test_a_broken_file_of_progress_is_no_obstacle(prepared: Path, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "progress.jsonl").write_bytes(content)
    results = run(prepared, tmp_path, "--contact-images", "0")
    assert results["protocol"]["pairs"] == 18
    assert not (tmp_path / "progress.jsonl").exists()


def test_the_kept_command_line(prepared: Path, model_dir: Path, tmp_path: Path) -> None:
    """The form of the earlier releases, and a file with methods to which the command line adds one."""
    data = ["--data", "rpf_lightning.data.ReferencePairsDataModule", "--data.init_args.root", str(prepared)]
    words = [*data, "--data.init_args.val_fraction=0.34", "--out", str(tmp_path / "out"), "--lpips", "false"]
    main(["evaluate", "--model_dir", str(model_dir), "--batch_size", "2", "--grid_images", "1", *words])
    results = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert list(results["methods"]) == ["bicubic", "without_reference", "with_reference", "other_person"]
    assert results["protocol"]["model_dir"] == "model"
    (tmp_path / "e.yaml").write_text(f"model_dir: {model_dir}\nmethods: [bicubic, 'model-gt:best']\n")
    main(["evaluate", "--config", str(tmp_path / "e.yaml"), "--method", "reference", *words])
    results = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert list(results["methods"]) == ["bicubic", "best", "reference"]


def test_a_size_below_the_models_stops_there(
    prepared: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = []
    original = RPFModel._reconstruct
    monkeypatch.setattr(
        RPFModel,
        "_reconstruct",
        lambda self, block, *args: (ran.append(block.side), original(self, block, *args))[1],
    )
    model = ["--method", f"model:RPF={model_dir}", "--method", f"model-none:none={model_dir}"]
    results = run(prepared, tmp_path / "out", *model, "--size", "32", "--contact-images", "1")
    assert set(ran) == {32}
    assert results["protocol"]["size"] == 32
    assert results["methods"]["RPF"]["psnr"] > 0
    with Image.open(tmp_path / "out" / "grid.png") as grid:
        assert grid.width > 32


def test_what_cannot_work_says_so_in_one_line(
    prepared: Path, model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = ["--data", str(prepared), "--split", "all"], ["--out", str(tmp_path / "out")]
    (tmp_path / "notes.txt").write_text("no checkpoint")
    for words, message in [
        (["--data", str(tmp_path / "nowhere"), *PLAIN], "prepare"),
        ([*data, "--method", "bicubic"], "size is unknown"),
        (PLAIN, "required: data"),
        ([*data, *PLAIN, "--method", "bicubik"], "method 'bicubik': expected kind"),
        ([*data, *PLAIN, "--method", "folder:a=nowhere"], "a: nowhere: no such folder"),
        ([*data, *PLAIN, "--method", f"folder:a={tmp_path / 'prepared'}"], "holds none of the 18 images"),
        ([*data, *PLAIN, "--method", "model:a=nowhere/at/all"], "nowhere/at/all"),
        ([*data, *PLAIN, "--method", f"gcfsr:a={tmp_path / 'notes.txt'}"], "notes.txt"),
        ([*data, *PLAIN, "--method", f"model:a={model_dir}", "--lr-size", "8"], "takes an LR of side 16, 32"),
        ([*data, *PLAIN, "--batch-size", "0"], "batch_size >= 1"),
        ([*data, *PLAIN, "--contact-images", "-1"], "contact_images: expected 0 or more, got -1"),
        ([*data, *PLAIN, "--device", "abacus"], "device: expected auto, cpu, cuda or cuda:1, got 'abacus'"),
        ([*data, *PLAIN, "--device", "cuda:99"], "device: cuda:99 is not here"),
        ([*data, *PLAIN, "--lpips"], "alexnet"),
        (["--data", str(prepared), "--split", "paper_test", *PLAIN], "no split 'paper_test'"),
    ]:
        with pytest.raises(SystemExit) as stop:
            main(["evaluate", *words, *out])
        said = capsys.readouterr().err
        assert stop.value.code == 2
        assert "error: " in said
        assert message in said
        assert "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_loader_processes_give_the_same(prepared: Path, tmp_path: Path) -> None:
    a = run(prepared, tmp_path / "a", "--num-workers", "1", "--contact-images", "0")
    b = run(prepared, tmp_path / "b", "--contact-images", "0")
    assert a["per_image"] == b["per_image"]
