"""`rpf evaluate` on a prepared folder."""

import csv
import hashlib
import json
from pathlib import Path

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
from rpf_lightning.faces import dlib_models
from rpf_lightning.faces.landmarks import Found
from rpf_lightning.metrics import psnr
from rpf_lightning.model import RPFModel

DEFAULT = ["bicubic", "without_reference", "with_reference", "other_person"]


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_short_form(prepared, model_dir, tmp_path):
    images, out = noisy(gts(prepared)), tmp_path / "out"
    folder = write_folder(tmp_path / "pulse", images)
    results = run(
        prepared, out, "--method", f"folder:PULSE={folder}", "--method", f"model:my_model={model_dir}",
        "--method", f"model-swap:swapped={model_dir}", "--method=reference", "--batch-size", "5",
    )  # fmt: skip
    methods, protocol = results["methods"], results["protocol"]
    assert list(methods) == ["bicubic", "PULSE", "my_model", "swapped", "reference"]
    photos = PreparedPhotos(prepared)
    assert protocol["photos_sha256"] == photos.sha256
    assert protocol["split"] == "all"
    assert len(protocol["pairs_sha256"]) == 64
    assert protocol["pairs"] == len(images) == len(results["per_image"]) == 18
    errors = [np.mean((images[name].astype(float) - gt) ** 2) for name, gt in gts(prepared).items()]
    assert methods["PULSE"]["psnr"] == pytest.approx(
        np.mean(10 * np.log10(255**2 / np.array(errors))), abs=1e-3
    )
    assert results["faults"] == {}
    low, high = results["intervals"]["PULSE"]["psnr"]
    assert low < methods["PULSE"]["psnr"] < high

    identities = dict(zip(photos.ids, photos.identities, strict=True))
    for row in results["per_image"]:
        assert identities[row["id"]] == identities[row["reference_id"]] != identities[row["other_id"]]

    gaps = {(gap["method"], gap["minus"]): gap["metrics"] for gap in results["gaps"]}
    assert list(gaps) == [*((name, "bicubic") for name in list(methods)[1:]), ("my_model", "swapped")]
    gained = methods["PULSE"]["psnr"] - methods["bicubic"]["psnr"]
    assert gaps["PULSE", "bicubic"]["psnr"]["mean"] == pytest.approx(gained)

    rows = list(csv.DictReader((out / "per_image.csv").open(encoding="utf-8")))
    assert len(rows) == 18 * 5
    assert float(rows[1]["psnr"]) == results["per_image"][0]["metrics"]["PULSE"]["psnr"]
    text = (out / "table.md").read_text(encoding="utf-8")
    assert f"| {methods['PULSE']['psnr']:.2f} [{low:.2f}, {high:.2f}] |" in text[text.index("## Table 1") :]
    assert r"my\_model & " in (out / "table.tex").read_text(encoding="utf-8")
    assert sorted(path.name for path in out.iterdir()) == [
        ".lock", "best.png", "grid.png", "median.png", "per_image.csv", "results.json", "table.md", "table.tex",
        "worst.png",
    ]  # fmt: skip


def test_every_fault_of_a_folder_is_named(prepared, tmp_path, capsys):
    images = noisy(gts(prepared))
    small, broken, gone, grey, *_ = names = [Path(name).with_suffix(".png").name for name in images]
    folder = write_folder(tmp_path / "pulse", images)
    Image.open(folder / small).resize((32, 32)).save(folder / small)
    (folder / broken).write_bytes((folder / broken).read_bytes()[:200])
    (folder / gone).unlink()
    Image.open(folder / grey).convert("L").save(folder / grey)
    Image.open(folder / grey).save(folder / "nobody.png")
    results = run(prepared, tmp_path / "out", "--method", f"folder:PULSE={folder}")
    kinds = {"wrong size": small, "corrupt": broken, "missing": gone, "grey": grey, "extra": "nobody.png"}
    faults = results["faults"]["PULSE"]
    assert {kind: len(texts) for kind, texts in faults.items()} == dict.fromkeys(kinds, 1)
    text = (tmp_path / "out" / "table.md").read_text(encoding="utf-8")
    table = list(csv.DictReader((tmp_path / "out" / "per_image.csv").open(encoding="utf-8")))
    for kind, name in kinds.items():
        assert Path(name).stem in faults[kind][0]
        assert f"PULSE: 1 {kind}: {faults[kind][0]}" in text
        assert any(row["fault"].startswith(kind) for row in table) or kind == "extra"
    # the other images count, and the gap is taken over them alone
    assert results["counts"]["PULSE"]["psnr"] == len(names) - 3
    assert results["counts"]["bicubic"]["psnr"] == len(names)
    (gap,) = results["gaps"]
    both = [row["metrics"] for row in results["per_image"] if row["metrics"]["PULSE"]["psnr"] is not None]
    gaps = [values["PULSE"]["psnr"] - values["bicubic"]["psnr"] for values in both]
    assert gap["metrics"]["psnr"]["mean"] == pytest.approx(np.mean(gaps))
    assert len(gaps) == gap["metrics"]["psnr"]["count"] == len(names) - 3
    assert "1 missing" in capsys.readouterr().out.replace("\n", " ")


class Killed(BaseException):
    """Stands for the end of the process."""


def kill_after(monkeypatch, batches=99):
    """Let bicubic end the process at a batch; return the names of what it was asked for."""
    seen, call = [], Bicubic.__call__

    def counted(self, batch):
        if len(seen) == 4 * batches:
            raise Killed
        seen.extend(batch.id)
        return call(self, batch)

    monkeypatch.setattr(Bicubic, "__call__", counted)
    return seen


def test_a_killed_evaluation_goes_on(prepared, model_dir, tmp_path, monkeypatch):
    words = ["--method", f"model:RPF={model_dir}", "--batch_size", "4", "--contact-images", "0"]
    whole, out = run(prepared, tmp_path / "whole", *words), tmp_path / "out"
    with monkeypatch.context() as patch:
        kill_after(patch, 3)
        with pytest.raises(Killed):
            run(prepared, out, *words)
    progress = out / "progress.jsonl"
    lines = progress.read_bytes().splitlines(keepends=True)
    assert len(lines) == 1 + 8  # two of three batches were measured
    progress.write_bytes(b"".join(lines[:-1]) + lines[-1][:40])  # and the last line was torn
    seen = kill_after(monkeypatch)
    again = run(prepared, out, *words)
    ids = [row["id"] for row in whole["per_image"]]
    assert seen == ids[7:]
    for name, means in whole["methods"].items():
        assert again["methods"][name] == pytest.approx(means, rel=1e-4)
    assert again["protocol"] == whole["protocol"]
    assert [row["id"] for row in again["per_image"]] == ids
    assert not progress.exists()


def test_splits(prepare, tmp_path):
    prepare("prepared", val_fraction=0.34)
    root = tmp_path / "prepared"
    photos = PreparedPhotos(root)

    def chosen(split):
        data, said = choose_pairs(ReferencePairsDataModule(str(root), lr_size=16, size=64), split)
        return {photos.ids[pair.gt] for pair in data.val_dataset().pairs}, said

    for split in ("train", "val"):
        assert chosen(split)[0] == {photos.ids[pair.gt] for pair in photos.pairs(split)}
    assert chosen(None) == chosen("val")
    assert chosen("test") == (chosen("val")[0], "test (no such part: validation)")
    with pytest.raises(FileNotFoundError, match="no split 'paper_test': expected one of train, val, test"):
        chosen("paper_test")


def test_samples_are_those_of_the_training(prepared, model_dir, tmp_path):
    """The lean samples of the evaluation against those of `val_dataset`."""
    data = ReferencePairsDataModule(str(prepared), val_fraction=0.34, degradation="dpsr")
    results = evaluate(
        model_dir=str(model_dir), data=data, out=str(tmp_path), grid_images=0, contact_images=0
    )
    samples, model = list(data.val_dataset()), RPFModel.from_pretrained(model_dir)
    with torch.no_grad():
        values = [psnr(model(s.lr[None], s.reference[None]), s.gt[None]).item() for s in samples]
    assert results["methods"]["with_reference"]["psnr"] == pytest.approx(np.mean(values), abs=1e-3)
    assert list(results["methods"]) == DEFAULT
    assert results["protocol"]["reference"] == "photo"
    assert not (tmp_path / "grid.png").exists()


def test_metrics_of_networks(prepared, tmp_path, alexnet_state, make_pack):
    """LPIPS and ISC are measured where their weights are here, or a word says so; nothing is downloaded for them."""
    results = run(prepared, tmp_path / "none")
    assert not {"lpips", "isc"} & results["methods"]["bicubic"].keys()
    assert results["protocol"]["lpips"] == results["protocol"]["isc"] == "off: no weights here"

    weights = make_pack("a").parents[3]
    torch.save(alexnet_state, weights / "alexnet_features.pth")
    results = run(prepared, tmp_path / "here")
    assert {"lpips", "isc"} <= results["methods"]["bicubic"].keys()
    assert results["protocol"]["lpips"] == results["protocol"]["isc"] == "on"
    results = run(prepared, tmp_path / "off", "--lpips", "false", "--isc", "false")
    assert not {"lpips", "isc"} & results["methods"]["bicubic"].keys()
    assert results["protocol"]["lpips"] == "off: not asked for"

    make_pack("b")
    results = run(prepared, tmp_path / "out", "--method", "reference", "--lpips", "--isc", "--pack", "b")
    copied = results["methods"]["reference"]
    assert list(copied)[-3:] == ["lpips", "isc", "isc_reference"]
    assert copied["isc_reference"] == pytest.approx(1, abs=1e-5)
    assert copied["isc"] < 0.9999
    assert copied["lpips"] > 0
    assert results["protocol"]["isc_network"] == "b/x.onnx"
    for key, file in (("lpips", "alexnet_features.pth"), ("isc", "insightface/models/b/x.onnx")):
        assert results["protocol"][f"{key}_sha256"] == sha256(weights / file)


def test_landmark_distance_through_the_comparison(prepared, tmp_path, monkeypatch, make_pack):
    """A model that finds all landmarks at (mean red, 0) of the picture, and none in black ones."""

    def landmarks(images):
        reds = [float(image[..., 0].mean()) for image in images]
        return [Found(np.full((68, 2), (red, 0.0)) if red else None, []) for red in reds]

    def model(spec, device, pack=None):
        asked.append((spec, str(device), pack))
        return landmarks

    asked = []
    monkeypatch.setattr("rpf_lightning.evaluation.chosen_metrics.landmark_model", model)
    truth = gts(prepared)
    images = {name: np.clip(image, 0, 200) + 10 for name, image in truth.items()}
    black, *rest = images
    images[black] = np.zeros_like(images[black])
    pack, net = make_pack("mbf"), tmp_path / "net.onnx"
    net.write_bytes(b"weights")
    folder = write_folder(tmp_path / "p", images)
    results = run(
        prepared, tmp_path / "out", "--method", f"folder:p={folder}", "--landmark-model", f"onnx:{net}",
        "--pack", "mbf", "--device", "cpu:0",
    )  # fmt: skip
    assert asked == [(f"onnx:{net}", "cpu:0", "mbf")]
    assert results["protocol"]["landmark_network"] == "onnx:net.onnx"
    assert results["protocol"]["landmark_sha256"] == [sha256(net), sha256(pack)]
    assert "landmark distance" in (tmp_path / "out" / "table.tex").read_text(encoding="utf-8")
    expected = [abs(images[n][..., 0].mean() - truth[n][..., 0].mean()) / 64 * 100 for n in rest]
    assert results["methods"]["p"]["landmark_distance"] == pytest.approx(np.mean(expected), rel=1e-3)
    assert results["counts"]["p"]["landmark_distance"] == len(rest)


def test_the_files_of_dlibs_landmarks_are_recorded():
    if not dlib_models.is_installed():
        pytest.skip("dlib is not installed")
    metrics, said = choose_metrics(False, False, None, "dlib", torch.device("cpu"))
    assert "landmark_distance" in metrics
    assert said["landmark_network"] == "dlib"
    assert said["landmark_sha256"] == [dlib_models.SHA256[dlib_models.LANDMARKS]]


def test_the_kept_command_line(prepared, model_dir, tmp_path):
    """The form of the earlier releases, and a file with methods to which the command line adds one."""
    out = tmp_path / "out" / "results.json"
    words = ["--data", "rpf_lightning.data.ReferencePairsDataModule", "--data.init_args.root", str(prepared)]
    words += ["--data.init_args.val_fraction=0.34", "--out", str(tmp_path / "out"), "--lpips", "false"]
    main(["evaluate", "--model_dir", str(model_dir), "--batch_size", "2", "--grid_images", "1", *words])
    results = json.loads(out.read_text(encoding="utf-8"))
    assert list(results["methods"]) == DEFAULT
    assert results["protocol"]["model_dir"] == "model"
    (tmp_path / "e.yaml").write_text(f"model_dir: {model_dir}\nmethods: [bicubic, 'model-gt:best']\n")
    main(["evaluate", "--config", str(tmp_path / "e.yaml"), "--method", "reference", *words])
    assert list(json.loads(out.read_text(encoding="utf-8"))["methods"]) == ["bicubic", "best", "reference"]


def test_a_size_below_the_models_stops_there(prepared, model_dir, tmp_path):
    """No later block runs: `test_methods_stop_at_the_side_of_the_faces`."""
    model = ["--method", f"model:RPF={model_dir}", "--method", f"model-none:none={model_dir}"]
    results = run(prepared, tmp_path / "out", *model, "--size", "32", "--contact-images", "1")
    assert results["protocol"]["size"] == 32
    assert results["methods"]["RPF"]["psnr"] > 0
    assert (tmp_path / "out" / "grid.png").is_file()


def test_what_cannot_work_says_so_in_one_line(prepared, model_dir, tmp_path, capsys):
    data, out = ["--data", str(prepared), "--split", "all"], ["--out", str(tmp_path / "out")]
    plain = [*data, *PLAIN]
    (tmp_path / "notes.txt").write_text("no checkpoint")
    for words, message in [
        (["--data", str(tmp_path / "nowhere"), *PLAIN], "prepare"),
        ([*data, "--method", "bicubic"], "size is unknown"),
        (PLAIN, "required: data"),
        ([*plain, "--method", "bicubik"], "method 'bicubik': expected kind"),
        ([*plain, "--method", "folder:a=nowhere"], "a: nowhere: no such folder"),
        ([*plain, "--method", f"folder:a={prepared}"], "holds none of the 18 images"),
        ([*plain, "--method", "model:a=nowhere/at/all"], "nowhere/at/all"),
        ([*plain, "--method", f"gcfsr:a={tmp_path / 'notes.txt'}"], "notes.txt"),
        ([*plain, "--method", f"model:a={model_dir}", "--lr-size", "8"], "takes an LR of side 16, 32"),
        ([*plain, "--batch-size", "0"], "batch_size >= 1"),
        ([*plain, "--contact-images", "-1"], "contact_images: expected 0 or more, got -1"),
        ([*plain, "--table", "3"], "table: expected 1 or 2, got 3"),
        ([*plain, "--device", "abacus"], "device: expected auto, cpu, cuda or cuda:1, got 'abacus'"),
        ([*plain, "--device", "cuda:99"], "device: cuda:99 is not here"),
        ([*plain, "--lpips"], "alexnet"),
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


def test_loader_processes_give_the_same(prepared, tmp_path):
    a = run(prepared, tmp_path / "a", "--num-workers", "1", "--contact-images", "0")
    b = run(prepared, tmp_path / "b", "--contact-images", "0")
    assert a["per_image"] == b["per_image"]
