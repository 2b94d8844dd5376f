"""The benchmark scripts measure what they say: the same network in every row, its operations counted once."""

import argparse
import inspect
import json
import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from rpf_lightning import presets, stages
from rpf_lightning.curriculum_file import read_curriculum
from rpf_lightning.faces.dlib_models import chips
from rpf_lightning.model import RPFConfig, RPFModel, strips
from rpf_lightning.model.storage import weights_hash
from rpf_lightning.model.summary import count
from rpf_lightning.training import read_fit

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "").parent == FOLDER:
            del sys.modules[name]


def cells_of(text):
    """Rows of all tables: name -> cells by their headings."""
    found, head = {}, []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) < 2:
            head = []
        elif not head:
            head = cells
        elif cells[0] != "---":
            found[(head[0], cells[0])] = dict(zip(head, cells, strict=True))
    return found


@pytest.fixture
def inference(monkeypatch):
    import inference
    import measure

    monkeypatch.setattr(measure, "ceiling", lambda: 100e9)
    monkeypatch.setattr(measure, "convolution_ceiling", lambda: 200e9)
    return inference


@pytest.fixture
def options(tmp_path):
    return argparse.Namespace(
        scale=4, width=1 / 16, threads=1, repeats=1, layers=True, folder=tmp_path / "model"
    )


def test_variants_compute_the_same(inference, options, monkeypatch):
    """In strips or not, as they say; the light network is another one, and measured in its own way."""
    asked, call = [], strips.Strips.__call__

    def noted(*given, **more):
        asked.append(given)
        return call(*given, **more)

    monkeypatch.setattr(strips.Strips, "__call__", noted)
    monkeypatch.setattr(strips, "STRIP_BYTES", 100_000)
    options.layers = False
    inference.save(options.folder, options)
    model, lr, reference = inference.build(options)
    expected, records = model(lr, reference, return_intermediates=True)
    assert ((expected > 0) & (expected < 1)).float().mean() > 0.9
    assert all(record.flow.std() > 0.5 for record in records)
    names = [variant.__name__ for variant in inference.DEFAULT]
    assert [*inference.VARIANTS] == [*names, "compiled"]
    for name in names:
        asked.clear()
        result = inference.run_variant(name, options)
        output = torch.load(options.folder / name)
        if name != "light":
            torch.testing.assert_close(output, expected.detach(), atol=1e-4, rtol=0)
        assert output.shape == expected.shape
        assert (result["ceiling"], result["convolution"]) == (100e9, 200e9)
        assert 0 < result["seconds"] < 60
        assert result["loaded"] > 100
        assert bool(asked) == (name in ("ours", "unfused", "low", "light"))


def test_the_light_network_is_the_one_that_is_counted(inference):
    model = inference.light_network(6)
    assert model.size == 1024
    assert model.config.synthesis_copy
    assert model.config.chains_flow
    assert sum(entry.macs for entry in count(model)) / 1e9 == pytest.approx(96.5, abs=0.1)
    per_block = [block.synthesis.to_rgb.in_channels for block in inference.light_network(4).blocks]
    assert per_block == [64, 64, 64, 32]


def test_layers_hold_every_operation_once(inference, options):
    inference.save(options.folder, options)
    result = inference.run_variant("ours", options)
    layers = result["layers"]
    assert [row[0] for row in result["sides"]] == [32, 64]
    assert all(value > 0 for row in result["sides"] for value in row[1::2])
    assert strips.STRIP_BYTES < 2**40  # what it was
    model = inference.build(options)[0]
    assert sum(row[2] for row in layers) == pytest.approx(sum(c.macs for c in count(model)) / 1e9, rel=0.01)
    assert [row[3] for row in layers] == sorted((row[3] for row in layers), reverse=True)
    convolutions = {name: gmac for name, _, gmac, _ in layers if name.startswith(("conv", "deconv", "FIR"))}
    assert all(gmac > 0 for gmac in convolutions.values())
    # eight of the synthesis' residual blocks at side 64, and of the warping module a stride 2
    assert convolutions["conv 64 -> 64, width 64"] == pytest.approx(8.25 * 64 * 64 * 9 * 64 * 64 / 1e9)


def test_without_a_gpu_the_script_says_so(capsys, monkeypatch):
    import gpu

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    gpu.report(4, 1 / 16)
    assert capsys.readouterr().out == "GPU: this machine has no CUDA device; the GPU part was not run.\n"


def test_traffic_is_what_convolutions_read_and_write():
    import gpu

    with gpu.Traffic() as mode:
        nn.Conv2d(3, 5, 3, stride=2, padding=1)(torch.zeros(2, 3, 8, 8)).relu()
    assert mode.values == 2 * 3 * 8 * 8 + 5 * 3 * 3 * 3 + 2 * 5 * 4 * 4
    one, two, three = (gpu.traffic(4, 1 / 16, batch) for batch in (1, 2, 3))
    assert three - two == two - one  # the weights are read once
    assert 0 < two - one < one


def test_data_benchmark_compares_the_same_samples(prepared, capsys):
    import data as benchmark

    benchmark.main([str(prepared), "--sides", "32", "--pairs", "10", "--seconds", "0.1", "--photos", "50"])
    text = capsys.readouterr().out
    assert "S = 32, photos of 64 pixels, 10 pairs" in text
    assert text.count("| ") > 10
    assert "together" in text
    assert "50 photos of 10 people" in text
    assert "`cache_side: 64`: 0.00 GB for 18 photos of 64 pixels" in text
    assert "| 64 | 64 |" in text

    photos = benchmark.PreparedPhotos(prepared)
    pairs = photos.pairs("all")
    plain = benchmark.PillowPairs(photos, pairs, 32)[0]
    ours = benchmark.PairsDataset(photos, pairs, lr_size=16, size=64, side=32)[0]
    for name in ("gt", "lr", "reference"):
        image = getattr(ours, name).permute(1, 2, 0)
        assert plain[name].shape == image.shape
        assert (plain[name] - image).abs().mean() < 0.02


TRAINED = RPFConfig(16, 4, channels=4, width=1 / 64, residual=True, synthesis_residual=True)


@pytest.mark.parametrize("kind", ["refinement", "warping", "synthesis", "finetune"])
def test_straightforward_training_computes_what_the_stage_computes(kind, monkeypatch, tmp_path, batch_of):
    import training

    monkeypatch.setattr(training, "SMALL", TRAINED)
    step = training.StraightforwardStep(kind, 2)
    with torch.no_grad():
        for block in step.model.blocks:
            block.warping.flow_head.weight.normal_(std=0.1)
    step.model.save_pretrained(tmp_path)
    stage = training.make_stage(kind, str(tmp_path), 2, TRAINED)
    batch = batch_of(2)
    with torch.no_grad():
        torch.testing.assert_close(step.generate(batch), stage.generate(batch)["output"], rtol=0, atol=1e-4)
    before = [p.detach().clone() for p in step.model.parameters()]
    step(batch)
    changed = [not torch.equal(a, b) for a, b in zip(before, step.model.parameters(), strict=True)]
    own = {id(p) for p in step.trained.parameters()}
    assert any(changed)
    assert all(id(p) in own for p, new in zip(step.model.parameters(), changed, strict=True) if new)


def test_straightforward_critic_is_the_same_critic():
    import training

    torch.manual_seed(0)
    critic = training.Critic(32)
    plain = training.StraightforwardCritic(32)
    plain.load_state_dict(critic.state_dict())
    image = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(plain(image), critic(image))


def test_training_table_has_a_row_per_stage(prepared, capsys, monkeypatch):
    import measure
    import training

    monkeypatch.setattr(training, "SMALL", TRAINED)
    monkeypatch.setattr(measure, "ceiling", lambda *_: 100e9)
    training.main([str(prepared), "--blocks", "2", "--batch", "2", "--steps", "2"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| block")]
    assert len(lines) == 4
    assert all(float(cell) > 0 for line in lines for cell in line.split("|")[2:5])
    with pytest.raises(SystemExit):
        training.main([str(prepared / "nowhere")])


def test_gpu_rows_run_on_any_device(monkeypatch):
    import measure
    import training

    monkeypatch.setattr(measure, "ceiling", lambda *_: 100e9)
    monkeypatch.setattr(training, "STAGES", ("warping", "finetune"))
    rows = training.gpu(TRAINED, [2], 1, device="cpu")
    assert [row[0] for row in rows] == ["side 64 warping", "side 64 finetune"]


def test_penalty_of_both_critics_is_the_same():
    import training

    *table, _, apart = training.penalty(2, 64)
    ours, plain = (line.split("|")[3] for line in reversed(table[0].splitlines()[-2:]))
    assert float(ours) < 0.8 * float(plain)
    assert float(apart.split(": ")[1].rstrip(".")) < 1e-6


def test_gradient_norms_and_rounding_print_a_table(
    prepared, model_dir, capsys, monkeypatch, alexnet_state, make_pack
):
    import gradients

    torch.save(alexnet_state, make_pack().parents[3] / "alexnet_features.pth")
    few = ["--sides", "32", "--pairs", "2", "--batch", "2"]
    gradients.main([str(prepared), "--model", str(model_dir), *few])
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("| 32 |") for line in lines)
    changed, apart = re.search(r"at most ([\d.]+) dB; .* differ by ([\d.]+) dB", lines[-1]).groups()
    assert float(changed) < 0.1
    assert 40 < float(apart) < 90


def test_evaluation_is_timed_beside_the_network(prepared, tmp_path, capsys, monkeypatch):
    import evaluation

    RPFModel(lr_size=16, scale=8, channels=4, width=1 / 64).save_pretrained(tmp_path / "model")
    monkeypatch.setattr(evaluation, "BATCH", 2)
    # fresh processes matter to the memory alone, and take seconds each
    monkeypatch.setattr(evaluation, "ProcessPoolExecutor", lambda count, _: ThreadPoolExecutor(count))
    evaluation.main([str(prepared), "--model", str(tmp_path / "model"), "--pairs", "2"])
    text = capsys.readouterr().out
    assert re.search(r"\| network alone, 2 pairs \| \d+\.\d \| 1 \|", text)
    ratio = re.search(r"\| evaluation \| (\d+\.\d) \| (\d+\.\d\d) \|", text)
    assert float(ratio[2]) > 1
    assert [int(pairs) for pairs in re.findall(r"^\| (\d+) \| \d+ \|$", text, re.MULTILINE)] == [2, 10]
    with pytest.raises(ValueError, match="expected at least 100 pairs, got 18"):
        evaluation.evaluation(str(prepared), str(tmp_path / "model"), ["bicubic"], 100)


def test_stripes_are_found_at_their_period():
    import stripes

    noise = torch.rand(4, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    wave = 0.3 * torch.cos(2 * torch.pi * torch.arange(64) / 4)
    for direction, stripe in enumerate((wave, wave[:, None])):
        ratios = [a / b for a, b in zip(stripes.power(noise + stripe), stripes.power(noise), strict=True)]
        assert stripes.at(ratios[direction], 4.0) > 100
        assert stripes.at(ratios[1 - direction], 4.0) == pytest.approx(1, abs=0.2)
        assert stripes.at(ratios[direction], 8.0) == pytest.approx(1, abs=0.2)


def test_stripes_prints_both_tables(prepared, tmp_path, capsys, monkeypatch, alexnet_state):
    import stripes

    RPFModel(lr_size=16, scale=2, channels=4, width=1 / 64).save_pretrained(tmp_path / "model")
    torch.save(alexnet_state, tmp_path / "alexnet_features.pth")
    monkeypatch.setenv("RPF_WEIGHTS_DIR", str(tmp_path))
    stripes.main([str(prepared), "--model", str(tmp_path / "model"), "--pairs", "2"])
    text = capsys.readouterr().out
    names = ("output, along rows", "synthesized, along columns", "without", "perceptual_jitter: 4")
    rows = {name: re.search(rf"^\| {name} \|(.*)\|$", text, re.MULTILINE)[1] for name in names}
    assert all(len(row.split("|")) == len(stripes.PERIODS) for row in rows.values())


def test_faces_between_the_entry_sides(prepared, tmp_path, capsys, alexnet_state, make_pack):
    """A row per side; the correction by the photo's own pixels helps a model that was not given all of them."""
    import face_sides

    RPFModel(lr_size=16, scale=4, channels=4, width=1 / 64).save_pretrained(tmp_path / "model")
    torch.save(alexnet_state, make_pack("tiny").parents[3] / "alexnet_features.pth")
    arguments = [str(prepared), "--model", str(tmp_path / "model"), "--pairs", "2", "--pack", "tiny"]
    face_sides.main([*arguments, "--sides", "16", "48"])
    rows = re.findall(r"^\| (\d+) \| (\d+) \| (.*) \|$", capsys.readouterr().out, re.MULTILINE)
    assert [(side, entry) for side, entry, _ in rows] == [("16", "16"), ("48", "32")]
    for _, _, line in rows:
        cells = line.split(" | ")
        bicubic, sharpened, output, corrected = map(float, cells[:4])
        assert corrected > output + 1
        assert corrected != sharpened > bicubic
        assert len(cells) == 3 * 4 + 1
    with pytest.raises(SystemExit):
        face_sides.main([*arguments, "--sides", "64"])
    assert "--sides: expected 16 to 63" in capsys.readouterr().err


def test_gradients_without_the_grid_have_no_stripe(monkeypatch):
    """A loss whose gradient alternates with a period of 4 pixels, and one that sees it at random shifts."""
    import stripes

    wave = torch.cos(2 * torch.pi * torch.arange(64) / 4)

    class Grid:
        def __init__(self, jitter):
            self.jitter = jitter

        def __call__(self, image, gt):
            shift = int(torch.randint(self.jitter, ()))
            noise = torch.rand(64, generator=torch.Generator().manual_seed(shift)) / 10
            return (image * (wave.roll(shift) + noise)).sum()

    monkeypatch.setattr(stripes, "PerceptualLoss", Grid)
    given = [SimpleNamespace(lr=torch.rand(8, 3, 16, 16), gt=torch.rand(8, 3, 64, 64)) for _ in range(8)]
    place = 1 + stripes.PERIODS.index(4.0)
    without, shifted = (float(stripes.gradients(given, jitter)[place]) for jitter in (1, 4))
    assert shifted < without / 10


@pytest.fixture
def ablation(monkeypatch):
    import ablation

    monkeypatch.setattr(ablation, "NETWORK", ablation.NETWORK | {"scale": 2, "channels": 4, "width": 1 / 64})
    return ablation


def float_or_text(value):
    return float(value) if re.fullmatch(r"[-+.\de]+", str(value)) else value


def test_every_row_of_the_ablation_changes_something(ablation, tmp_path, monkeypatch):
    """Its curriculum is one, its options are arguments of the stages that they name, and no two rows are alike."""
    seen = []

    def planned(path, options, model_dir, only=None):
        if only:
            assert (only, Path(model_dir).name) == ("refinement", "stage_1")
            assert "--refinement" not in repr(options)
            RPFModel(**read_curriculum(path)[0].network).save_pretrained(model_dir)
            return
        curriculum, plan = read_curriculum(path)
        for word, value in pairwise(options):
            if ".model.init_args." in word:
                stage, argument = word.removeprefix("--").split(".model.init_args.")
                model = presets.read(next(fit.config for fit in plan if fit.stage == stage))["model"]
                classes = getattr(stages, model["class_path"].rpartition(".")[2]).__mro__
                assert any(argument in inspect.signature(cls.__init__).parameters for cls in classes)
                assert float_or_text(value) != float_or_text(model["init_args"].get(argument))
        seen.append((options, curriculum.network, curriculum.finetune))

    monkeypatch.setattr(ablation, "run_curriculum", planned)
    for name in ablation.ROWS:
        ablation.train(tmp_path, "prepared", name, ["--trainer.max_epochs", "1"], batch_size=8, limit=5)
    folders = {ablation.folder(tmp_path, name) for name in ablation.ROWS}
    assert len({repr(row) for row in seen}) == len(ablation.ROWS) == len(folders)
    for name, (words, *_) in zip(ablation.ROWS, seen, strict=True):
        size, limit = ("2", "20") if name == "batches a quarter as large" else ("8", "5")
        expected = ["data.init_args.root", "prepared", "data.init_args.batch_size", size]
        expected += ["trainer.limit_train_batches", limit, "trainer.max_epochs", "1"]
        assert [word.removeprefix("--") for word in words[:8]] == expected
    assert [name for name, row in zip(ablation.ROWS, seen, strict=True) if row[2] is None] == ["no stage 3"]


def test_a_row_of_another_network_takes_the_shared_stage_1(ablation, tmp_path, monkeypatch):
    """The modules that stage 1 has trained are put into the row's own network."""

    def made(path, options, model_dir, only=None):
        if only:
            torch.manual_seed(1)
            RPFModel(**read_curriculum(path)[0].network).save_pretrained(model_dir)

    monkeypatch.setattr(ablation, "run_curriculum", made)
    ablation.train(tmp_path, "prepared", "torch's initialisation", [])
    shared = RPFModel.from_pretrained(tmp_path / "stage_1")
    row = RPFModel.from_pretrained(ablation.folder(tmp_path, "torch's initialisation"))
    assert (shared.config.init, row.config.init) == ("kaiming", "torch")
    for own, trained in zip(row.blocks, shared.blocks, strict=True):
        torch.testing.assert_close(
            own.refinement.state_dict(), trained.refinement.state_dict(), rtol=0, atol=0
        )
        first, second = (block.warping.reference_features.weight for block in (own, trained))
        assert not torch.equal(first, second)


def test_the_ablation_trains_and_compares(
    ablation, prepared, tmp_path, capsys, alexnet_state, make_pack, monkeypatch
):
    make_pack("buffalo_l")
    torch.save(alexnet_state, tmp_path / "weights" / "alexnet_features.pth")
    arguments = [str(prepared), "--out", str(tmp_path / "out")]
    text = "trainer.max_epochs 1 trainer.limit_val_batches 0 data.init_args.num_workers 0"
    fits = re.sub(r"(trainer|data)", r"--\1", text).split()
    tiny = [*fits, "--batch-size", "4", "--batches", "1"]
    rows = ["recipe", "no stage 3"]
    ablation.main([*arguments, "--train", "--rows", *rows, *tiny])
    state = json.loads((ablation.folder(tmp_path / "out", "no stage 3") / "state.json").read_text())
    assert list(state["finished"]) == ["block1-refinement", "block1-warping", "block1-synthesis"]
    stage_1 = tmp_path / "out" / "stage_1"
    shared = min(path for path in stage_1.glob("runs/block1-refinement/**/*") if path.is_file())

    def is_a_copy(name):  # times included
        own = ablation.folder(tmp_path / "out", name) / shared.relative_to(stage_1)
        return own.stat().st_mtime_ns == shared.stat().st_mtime_ns

    assert all(is_a_copy(name) for name in rows)  # where the row leaves stage 1 as it is
    with pytest.raises(ValueError, match=r"options\.json: other rows were trained with"):
        ablation.main([*arguments, "--train", "--rows", "no flow term"])
    ablation.train(tmp_path / "out", str(prepared), "no residual", fits, 4, 1)
    assert not is_a_copy("no residual")
    state = ablation.folder(tmp_path / "out", "no residual") / "state.json"
    state.write_text(state.read_text().replace("block1-finetune", "block2-finetune"))  # as if it was stopped
    capsys.readouterr()
    ablation.main([*arguments, "--split", "all", "--rows", *rows, "no residual"])
    text = capsys.readouterr().out
    lines = {name: cells for (_, name), cells in cells_of(text).items()}
    assert list(lines) == ["bicubic", *rows]
    assert not lines["recipe"]["ISC - recipe"]
    assert re.fullmatch(r"[+-][\d.]+ \[[+-][\d.]+, [+-][\d.]+\]", lines["no stage 3"]["ISC - recipe"])
    assert "; not trained: no residual\n" in text
    monkeypatch.setattr(ablation, "evaluate", None)  # each row is evaluated once
    ablation.main([*arguments, "--split", "all", "--rows", *rows, "no residual"])
    assert text.endswith(capsys.readouterr().out)
    os.utime(ablation.folder(tmp_path / "out", "recipe") / "model.safetensors")  # trained anew
    with pytest.raises(TypeError):
        ablation.main([*arguments, "--split", "all", "--rows", "recipe"])
    for wrong in (
        ["--trainer.max_epochs", "1"],
        ["--train", "--data.init_args.val_fraction", "0.1"],
        ["--train", "--trainer.limit_train_batches", "3"],
        ["--batch-size", "6"],
    ):
        with pytest.raises(SystemExit):
            ablation.main([*arguments, *wrong])


@pytest.fixture
def gate(prepare, alexnet_state, make_pack, tmp_path, monkeypatch):
    """`gate(*arguments)` prints: two models, three people held out, and a small network in dlib's place."""
    import dlib_recogniser
    import gate

    class Recogniser:
        def __call__(self, images):
            return chips(images)[:, ::20, ::20].flatten(1)[:, :128].float()

    monkeypatch.setattr(dlib_recogniser, "DlibRecogniser", Recogniser)
    monkeypatch.setattr(gate, "BATCH", 3)
    torch.save(alexnet_state, make_pack("tiny").parents[3] / "alexnet_features.pth")
    prepare(val_fraction=0.5)
    small = {"lr_size": 16, "scale": 4, "channels": 4, "width": 1 / 64, "residual": True}
    for name, more in (("plain", {}), ("copy", {"synthesis_copy": True, "refinement_mean": False})):
        torch.manual_seed(0)
        model = RPFModel(**small, synthesis_residual=True, **more)
        with torch.no_grad():
            for block in model.blocks:
                block.warping.flow_head.bias += torch.tensor([0.5, -0.5])
        model.save_pretrained(tmp_path / name)

    def run(*arguments, models=("plain", "copy")):
        names = [str(tmp_path / name) for name in models]
        given = [str(tmp_path / "prepared"), "--pairs", "4", "--pack", "tiny", "--models", *names]
        gate.main([*given, *arguments])

    return run


def test_the_gate_looks_at_the_block_of_a_side(gate, tmp_path, capsys):
    """PSNR inside the face is that of x^(n); the copy path has a gate; differences to itself are none."""
    from rpf_lightning import ReferencePairsDataModule
    from rpf_lightning.metrics import psnr_face

    out = tmp_path / "out.json"
    arguments = ["--side", "32", "--cache", str(tmp_path / "cache"), "--out", str(out)]
    gate(*arguments)
    text = capsys.readouterr().out
    plain, copy = (cells_of(text)[("", str(tmp_path / name))] for name in ("plain", "copy"))
    data = ReferencePairsDataModule(str(tmp_path / "prepared"), lr_size=16, size=64, limit_val=4)
    gts = data.val_dataset(side=32)
    for model, cells in (("plain", plain), ("copy", copy)):
        network = RPFModel.from_pretrained(tmp_path / model).requires_grad_(False)
        for name, other in (("PSNR face", False), ("PSNR face wrong", True)):
            values = []
            for x, gt in zip(data.val_dataset(other_person=other), gts, strict=True):
                output = network(x.lr[None], x.reference[None], x.reference_mask[None], size=32)
                values.append(psnr_face(output, gt.gt[None], gt.gt_mask[None]))
            assert float(cells[name]) == pytest.approx(float(torch.cat(values).mean()), abs=0.03)
    assert float(copy["gate"]) == pytest.approx(torch.sigmoid(torch.tensor(-0.85)).item(), abs=0.01)
    assert not plain["gate"]
    assert plain["flow error"] != plain["of no flow"] == copy["of no flow"]
    assert all(cell for name, cell in copy.items() if name not in ("", "gate"))
    ends = {cells_of(text)[("", name)]["ISC share"] for name in ("bicubic", "another photo of the person")}
    assert ends == {"0%", "100%"}
    again = ["--side", "32", "--cache", str(tmp_path / "cache"), "--against", str(out)]
    gate(*again, models=["copy"])
    other = capsys.readouterr().out
    to_plain, to_itself = other.partition("\nTo ")[2].split("\nTo ")
    assert {**cells_of(other), **cells_of(text)}[("", str(tmp_path / "copy"))] == copy
    assert cells_of(to_itself)[("difference", str(tmp_path / "copy"))]["ISC"] == "+0.000 [+0.000, +0.000]"
    to_plain = cells_of(to_plain)[("difference", str(tmp_path / "copy"))]
    assert "gate" not in to_plain
    assert to_plain["PSNR"].startswith(f"{float(copy['PSNR']) - float(plain['PSNR']):+.2f}"[:4])
    with pytest.raises(ValueError, match=r"out\.json was measured on other pairs or sides"):
        gate("--against", str(out))


def test_the_gate_of_several_references_and_of_another_entry(gate, tmp_path, capsys):
    gate("--side", "64", "--entry", "32", "--references", "2", "--out", str(tmp_path / "out.json"))
    text = capsys.readouterr().out
    plain, copy = (str(tmp_path / name) for name in ("plain", "copy"))
    rows = [name for head, name in cells_of(text) if head == ""][3:]
    assert rows == [
        f"{plain}, nearest", f"{plain}, random",
        f"{copy}, nearest", f"{copy}, random", f"{copy}, 2 at once",
    ]  # fmt: skip
    assert "\n4 GTs of 3 people, 32 -> 64\n" in text
    found = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert found[f"{copy}, nearest"]["isc"] != found[f"{copy}, 2 at once"]["isc"]
    nearest, drawn = (found[f"{plain}, {kind}"]["isc"] for kind in ("nearest", "random"))
    assert nearest != drawn
    for wrong in (["--references", "9"], ["--references", "3"]):
        with pytest.raises(ValueError, match="nobody in the validation part has"):
            gate(*wrong)
    for wrong, expected in (
        (["--references", "1"], "--references: expected at least 2, got 1"),
        (["--side", "128"], "--entry, --side: expected two of 16, 32, 64, got 16 and 128"),
        (["--side", "32", "--entry", "32"], "--entry: expected a side below --side 32, got 32"),
    ):
        with pytest.raises(SystemExit):
            gate(*wrong)
        assert expected in capsys.readouterr().err


def test_intervals_of_the_gate_draw_people():
    """Twenty images of each person say no more than one; images without a value are left out."""
    import gate

    values = torch.randn(10, generator=torch.Generator().manual_seed(0)).tolist()
    twenty = [v for v in values for _ in range(20)]
    one = gate.difference(values, [0.0] * 10, [f"p{i}" for i in range(10)])
    many = gate.difference([*twenty, None], [0.0] * 201, [f"p{i // 20}" for i in range(201)])
    assert many == pytest.approx(one)
    apart = gate.difference(twenty, [0.0] * 200, [f"p{i}" for i in range(200)])
    assert (apart[2] - apart[1]) < (many[2] - many[1]) / 3
    assert one[0] == pytest.approx(sum(values) / 10)
    assert one[1] < one[0] < one[2]


@pytest.fixture
def recipe(monkeypatch):
    import recipe

    small = {"scale": 4, "channels": 4, "width": 1 / 64}
    monkeypatch.setattr(recipe, "NOTHING", recipe.NOTHING | small)
    start = RPFModel(**{**recipe.NOTHING, **small})
    rows = {
        name: row
        if row.start
        else recipe.Row({**row.network, **small, "width": row.network["width"] / 16}, row.options, None)
        for name, row in recipe.ROWS.items()
    }
    monkeypatch.setattr(recipe, "ROWS", rows)
    return recipe, start


def test_every_row_of_the_recipe_changes_something_that_the_fit_has(recipe, tmp_path, monkeypatch):
    module, start = recipe
    start.save_pretrained(tmp_path / "start")
    real = RPFModel.from_pretrained
    monkeypatch.setattr(RPFModel, "from_pretrained", lambda _, **given: real(tmp_path / "start", **given))
    seen, words = [], ["prepared", "--out", str(tmp_path / "rows"), "--train"]

    def read(words):
        directory = Path(words[words.index("--model.init_args.model_dir") + 1])
        options = read_fit(words[1:])  # refuses what no stage and no datamodule has
        options["model"]["init_args"].pop("model_dir")
        config = json.loads((directory / "config.json").read_text())
        begun = weights_hash(real(directory).state_dict())
        seen.append(repr((sorted(options.items(), key=repr), config, begun)))

    monkeypatch.setattr(module, "lightning_cli", read)
    for _ in range(2):  # the second time all are finished
        module.main(words)
        assert len(seen) == len(set(seen)) == len(module.ROWS)
    module.main([*words, "--rows", "recipe", "--seed", "1"])
    assert len(seen) == len(module.ROWS) + 1


def test_a_row_of_the_recipe_is_trained_and_judged(
    recipe, prepared, tmp_path, capsys, alexnet_state, make_pack, monkeypatch
):
    module, _ = recipe
    path = make_pack()
    torch.save(alexnet_state, path.parents[3] / "alexnet_features.pth")
    judged = []
    monkeypatch.setattr(module.gate, "main", judged.append)
    with pytest.raises(SystemExit):
        module.main([str(prepared), "--out", str(tmp_path / "rows")])
    assert "holds no finished row; begin with --train" in capsys.readouterr().err
    quick = ["--data.init_args.batch_size", "2", "--data.init_args.val_fraction", "0.34"]
    rows = ["--out", str(tmp_path / "rows"), "--rows", "from nothing"]
    module.main([str(prepared), *rows, "--train", "--samples", "12", *quick])
    directory = module.folder(tmp_path / "rows", "from nothing", 0)
    assert (directory / "runs" / "joint1-2" / "checkpoints" / "last.ckpt").is_file()
    assert RPFModel.from_pretrained(directory).config.synthesis_copy
    module.main([str(prepared), *rows, "--references", "3"])
    assert judged == [[str(prepared), "--models", module.START, str(directory), "--references", "3"]]
