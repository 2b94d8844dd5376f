"""Every file in configs/: it parses, what it names exists, and it holds no path of one machine."""

import csv
import json
import re
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import documented
from rpf_lightning.cli import main
from rpf_lightning.curriculum import run_curriculum
from rpf_lightning.curriculum_file import STAGES as ORDERED
from rpf_lightning.curriculum_file import read_curriculum
from rpf_lightning.evaluation.evaluating import DEFAULT_METHODS
from rpf_lightning.model import RPFModel
from rpf_lightning.presets import read
from rpf_lightning.stages import JointStage, RefinementStage, SynthesisStage, WarpingStage
from rpf_lightning.training import read_fit

CONFIGS = Path(__file__).parent.parent / "configs"
FILES = sorted(CONFIGS.rglob("*.yaml"))
BASES = [path for path in FILES if path.name == "base.yaml"]
CURRICULA = [path for path in FILES if "network" in read(path)]
FITS = [path for path in FILES if "model" in read(path) and path not in BASES]
OVERLAYS = [path for path in FILES if set(read(path)) in ({"trainer"}, {"data"})]
EVALUATIONS = [path for path in FILES if "out" in read(path)]
STAGES = {
    "refinement": RefinementStage,
    "warping": WarpingStage,
    "synthesis": SynthesisStage,
    "finetune": RefinementStage,
    "joint": JointStage,
}
PAPER = ("celeba_hq_x64", "celeba_hq_x32")


def name(path: Path) -> str:
    return path.relative_to(CONFIGS).as_posix()


def load(class_path: str) -> type:
    module, _, member = class_path.rpartition(".")
    return getattr(import_module(module), member)


class Strict(yaml.SafeLoader):
    """YAML itself keeps the last of two keys silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep) for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"a key is given twice: {keys}"
        return super().construct_mapping(node, deep)


@pytest.mark.parametrize("path", FILES, ids=name)
def test_every_file(path: Path) -> None:
    """A mapping without repeated keys or a path of one machine."""
    content = yaml.load(path.read_text(), Strict)
    assert isinstance(content, dict)
    assert "../shared" not in path.read_text()
    assert not re.search(r"""(?:^|[\s'"=:])(?:/\w|~/|[A-Za-z]:\\)""", yaml.safe_dump(content), re.MULTILINE)


@pytest.mark.parametrize("path", CURRICULA, ids=name)
def test_network_builds(path: Path) -> None:
    network = read(path)["network"]
    with torch.device("meta"):
        model = RPFModel(**network)
    assert json.loads(json.dumps(asdict(model.config))).items() >= network.items()
    assert all(p.is_meta for p in model.parameters())


@pytest.mark.parametrize("path", CURRICULA, ids=name)
def test_stage_files_train_what_their_name_says_in_one_model_directory(path: Path) -> None:
    curriculum, plan = read_curriculum(path)
    for fit in plan:
        content = read(fit.config)
        assert content["model"]["init_args"].get("model_dir", curriculum.model_dir) == curriculum.model_dir
        assert load(content["model"]["class_path"]) is STAGES[fit.stage]
        assert (content["model"]["init_args"].get("input") == "synthesized") is (fit.stage == "finetune")


def test_every_file_is_of_a_kind_that_is_tested() -> None:
    assert sorted([*BASES, *CURRICULA, *FITS, *OVERLAYS, *EVALUATIONS]) == FILES
    folders = {*PAPER, "celeba_hq_512", "small", "demo", "real_smoke", "table2"}
    assert {path.parent.name for path in CURRICULA} == folders
    assert {name(path) for path in OVERLAYS} == {
        "callbacks/averaged.yaml", "callbacks/learning_rate.yaml", "debug/one_step.yaml", "debug/overfit.yaml",
        "logger/wandb.yaml", "logger/wandb_watch.yaml", "logger/tensorboard.yaml",
        "table2/without_reference.yaml", "table2/without_mask.yaml",
    }  # fmt: skip


def plan_of(path: Path, *words: str) -> tuple[dict[str, str], str]:
    """The plan's lines by their fits' names, and the sum."""
    lines: list[str] = []
    run_curriculum(path, list(words), dry_run=True, say=lines.append)
    names = [fit.name for fit in read_curriculum(path)[1]]
    return dict(zip(names, lines[:-1], strict=True)), lines[-1]


def number(line: str, unit: str) -> float:
    found = re.search(rf"([\d.e+-]+) {unit}", line)
    assert found is not None
    return float(found[1])


def test_preset_from_nothing_to_512_pixels() -> None:
    """Its order, its samples, and what it may cost: figures of the forward pass times three, once what is frozen."""
    path = CONFIGS / "celeba_hq_512" / "curriculum.yaml"
    curriculum, plan = read_curriculum(path)
    assert curriculum.initial is None
    stages = ("refinement", "warping", "synthesis")
    assert [fit.name for fit in plan] == [
        "block1-refinement", "block2-refinement", "block1-warping", "block1-synthesis", "block2-warping",
        "block2-synthesis", "joint1-2", *(f"block3-{stage}" for stage in stages), "joint1-3", "joint4-4", "joint5-5",
    ]  # fmt: skip
    lines, total = plan_of(path)
    each = {"joint1-2": 40, "joint1-3": 132, "joint4-4": 115, "joint5-5": 143}
    samples = {"joint1-2": 40_000, "joint1-3": 20_000, "joint4-4": 10_000, "joint5-5": 10_000}
    for fit in plan:
        if fit.name in each:
            batch = 2 if fit.first > 3 else 4
            assert number(lines[fit.name], "GFLOP a sample") == pytest.approx(each[fit.name], rel=0.1)
            assert number(lines[fit.name], "steps") * batch == samples[fit.name]
        else:
            assert number(lines[fit.name], "PFLOP") < 0.1  # ten minutes or so
    assert number(total, "PFLOP") < 10


def test_sixth_block_goes_on_from_the_preset_of_five() -> None:
    folder = CONFIGS / "celeba_hq_512"
    five, six = (read_curriculum(folder / f"{file}.yaml")[0] for file in ("curriculum", "curriculum_1024"))
    assert six.initial == five.model_dir != six.model_dir
    changed = [key for key in five.network if five.network[key] != six.network[key]]
    assert changed == ["scale", "channels", "width"]
    for key in ("channels", "width"):
        assert six.network[key][:5] == five.network[key]
    lines, _ = plan_of(folder / "curriculum_1024.yaml")
    assert list(lines) == ["joint6-6"]
    assert "block 6  joint  side 1024  " in lines["joint6-6"]


def test_rows_of_table_2_differ_in_one_thing() -> None:
    folder = CONFIGS / "table2"
    rpf, one_block = (read(folder / f"{n}.yaml") for n in ("curriculum", "without_progressive"))
    assert one_block["network"] == rpf["network"] | {"progressive": False}
    assert one_block.keys() == rpf.keys()
    assert {key for key in rpf if rpf[key] != one_block[key]} == {"network", "model_dir", *ORDERED}
    overlays = [read(folder / f"{n}.yaml") for n in ("without_reference", "without_mask")]
    assert [overlay["data"]["init_args"] for overlay in overlays] == [
        {"reference": "lr"}, {"mask_reference": False},
    ]  # fmt: skip
    # one block has the steps of the others' two, and all else is the same
    for stage in ORDERED:
        two, one = (read(folder / curriculum[stage]) for curriculum in (rpf, one_block))
        assert one["trainer"].pop("limit_train_batches") == 2 * two["trainer"].pop("limit_train_batches")
        for content in (one, two):
            del content["model"]["init_args"]["model_dir"]
        assert one == two


def test_paper_presets_are_literal() -> None:
    for folder, lr_size, scale in (("celeba_hq_x64", 16, 64), ("celeba_hq_x32", 32, 32)):
        curriculum, plan = read_curriculum(CONFIGS / folder / "curriculum.yaml")
        assert curriculum.network == {"lr_size": lr_size, "scale": scale}  # all else by default: the paper's
        assert curriculum.finetune is None
        for fit in plan:
            content = read(fit.config)
            stage, data = content["model"]["init_args"], content["data"]["init_args"]
            assert (content["trainer"]["max_epochs"], data["batch_size"]) == (5, 1)
            assert float(stage["learning_rate"]) == 1e-4
            assert not {"decay", "flow_weight", "unmasked_weight", "accumulate", "critic"} & set(stage)
            assert not data.get("flip")
            weights = {key: value for key, value in stage.items() if key.endswith("_weight")}
            ones = dict.fromkeys(("adversarial_weight", "perceptual_weight", "identity_weight"), 1.0)
            papers = {"refinement": ones, "warping": {}, "synthesis": {"adversarial_weight": 0.1}}
            assert weights == papers[fit.stage]


# Everything runs, at reduced size


def reduced(path: Path, folder: Path, root: Path) -> list[str]:
    """Options that make any fit of any preset small: a tiny network, a few drawn faces."""
    curriculum = path.parent / "curriculum.yaml"
    network = read(curriculum)["network"]
    network |= {"lr_size": 16, "scale": 4, "channels": 4, "width": 1 / 64}
    data = read(path)["data"]["init_args"]
    options = {
        "trainer.accelerator": "cpu", "trainer.enable_progress_bar": "false",
        "trainer.log_every_n_steps": "1", "trainer.limit_train_batches": "1",
        "model.init_args.gradient_norms_every": "1",
        "model.init_args.model_dir": str(folder / "model"), "model.init_args.block": "2",
        "model.init_args.network": json.dumps(network), "data.init_args.batch_size": "2",
        "data.init_args.val_fraction": "0.34", "data.init_args.num_workers": "0",
    }  # fmt: skip
    options |= {"data.init_args.root": str(root)} if "root" in data else {"data.init_args.people": "6"}
    words = [word for key, value in options.items() for word in (f"--{key}", value)]
    return [*words, "--data.init_args.split="] if "split" in data else words  # the drawn folder has none


def kind(path: Path) -> tuple[Any, ...]:
    model, trainer = read(path)["model"], read(path)["trainer"]
    copies = read(path.parent / "curriculum.yaml")["network"].get("synthesis_copy")
    return model["class_path"], model["init_args"].get("input"), trainer.get("precision"), copies


@pytest.mark.parametrize("path", FITS, ids=name)
def test_every_fit_has_arguments_that_there_are_and_uses_gpus(path: Path) -> None:
    trainer = read_fit(["--config", str(path), "--model.init_args.model_dir", "here"])["trainer"]
    assert trainer["accelerator"] == "auto"
    assert (trainer["precision"] == "bf16-mixed") is (path.parent.name in PAPER)


# the others differ in numbers and switches
@pytest.mark.parametrize("path", {kind(path): path for path in FITS}.values(), ids=name)
def test_every_kind_of_fit_takes_a_step(
    path: Path, tmp_path: Path, prepared: Path, made_up_weights: None
) -> None:
    short = ["--trainer.max_epochs", "1", "--trainer.limit_val_batches", "1"]
    main(["fit", "--config", str(path), *reduced(path, tmp_path, prepared), *short])
    (run,) = (tmp_path / "model" / "runs").iterdir()
    assert (run / "checkpoints" / "last.ckpt").is_file()
    assert list((run / "logs").rglob("metrics.csv"))


FIT_COMMANDS = [words for words in documented.commands(*documented.DOCS) if words[0] == "fit"]


@pytest.mark.parametrize("words", FIT_COMMANDS, ids=lambda words: " ".join(words[2:5]))
def test_documented_fits_run(
    words: list[str], tmp_path: Path, prepared: Path, made_up_weights: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(CONFIGS.parent)
    block = words[words.index("--model.init_args.block") + 1]
    if "--model.init_args.first" not in words:
        block = min(block, "3")  # higher ones take long and find nothing else
    options = reduced(Path(words[words.index("--config") + 1]), tmp_path, prepared)
    place = options.index("--model.init_args.network")
    network = json.loads(options[place + 1]) | {"scale": 2 ** int(block)}
    if "--model.init_args.network" in words:
        options[place + 1] = json.dumps(network)
    else:  # on a model directory that is there
        del options[place : place + 2]
        RPFModel(**network).save_pretrained(tmp_path / "model")
    options[options.index("--model.init_args.block") + 1] = block
    main([*words, *options, "--trainer.max_epochs", "1", "--trainer.limit_val_batches", "1"])
    if not any("one_step" in word for word in words):
        (run,) = (tmp_path / "model" / "runs").iterdir()
        stage = words[2].split("/")[-1].removesuffix(".yaml")
        first = words[words.index("--model.init_args.first") + 1] if stage == "joint" else ""
        assert run.name == (f"joint{first}-{block}" if first else f"block{block}-{stage}")
        assert (run / "checkpoints" / "last.ckpt").is_file()


@pytest.mark.parametrize("path", OVERLAYS, ids=name)
def test_overlays_lie_over_any_fit(
    path: Path, tmp_path: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    fit = CONFIGS / "demo" / "synthesis.yaml"
    options = [*reduced(fit, tmp_path, prepared), "--trainer.max_epochs", "2"]
    main(["fit", "--config", str(fit), "--config", str(path), *options])
    assert (tmp_path / "model").exists() == (path.stem != "one_step")  # which writes nothing


def test_overfit_drives_the_loss_down(tmp_path: Path, prepared: Path) -> None:
    fit, overlay = CONFIGS / "demo" / "synthesis.yaml", CONFIGS / "debug" / "overfit.yaml"
    options = [
        "--trainer.max_epochs",
        "40",
        "--model.adversarial_weight",
        "0",
        *reduced(fit, tmp_path, prepared),
    ]
    main(["fit", "--config", str(fit), "--config", str(overlay), *options])
    file = next((tmp_path / "model" / "runs").rglob("metrics.csv"))
    losses = [float(row["train/loss"]) for row in csv.DictReader(file.open()) if row.get("train/loss")]
    assert len(losses) == 40
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("path", EVALUATIONS, ids=name)
def test_evaluations_run(
    path: Path, tmp_path: Path, prepared: Path, model_dir: Path, made_up_weights: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    content = read(path)
    init_args = content["data"]["init_args"]
    data = (
        ["--data.init_args.root", str(prepared)] if "root" in init_args else ["--data.init_args.people", "6"]
    )
    monkeypatch.chdir(tmp_path)
    model = RPFModel.from_pretrained(model_dir)
    for method in content.get("methods", []):
        if "=" in method:
            model.save_pretrained(method.partition("=")[2])
    main(
        ["evaluate", "--config", str(path), "--model_dir", str(model_dir), "--out", str(tmp_path / "out"),
         "--data.init_args.val_fraction", "0.34", "--split", "val", *data]
    )  # fmt: skip
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert len(results["methods"]) == len(content.get("methods", DEFAULT_METHODS))
    assert f"## Table {content.get('table', 1)}\n" in (tmp_path / "out" / "table.md").read_text()
