"""Every file in configs/: it parses, what it names exists, and it holds no path of one machine."""

import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import pytest
import torch
import yaml
from lightning import Callback, LightningDataModule, Trainer

from rpf_lightning.curriculum import read_curriculum
from rpf_lightning.model import RPFModel
from rpf_lightning.stages import RefinementStage, RPFStage, SynthesisStage, WarpingStage

CONFIGS = Path(__file__).parent.parent / "configs"
FILES = sorted(path for pattern in ("*.yaml", "*.yml") for path in CONFIGS.rglob(pattern))
CURRICULA = sorted(CONFIGS.rglob("curriculum.yaml"))
STAGES = {
    "refinement": RefinementStage,
    "warping": WarpingStage,
    "synthesis": SynthesisStage,
    "finetune": RefinementStage,
}


def name(path: Path) -> str:
    return path.relative_to(CONFIGS).as_posix()


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from strings(key)
            yield from strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner)
    elif isinstance(value, str):
        yield value


def classes(value: Any) -> Iterator[dict[str, Any]]:
    """Every `{class_path, init_args}` in a configuration."""
    if isinstance(value, dict):
        if "class_path" in value:
            yield value
        for inner in value.values():
            yield from classes(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from classes(inner)


def load(class_path: str) -> type:
    module, _, member = class_path.rpartition(".")
    return getattr(import_module(module), member)


def test_there_are_presets() -> None:
    assert CONFIGS / "demo" / "curriculum.yaml" in CURRICULA


@pytest.mark.parametrize("path", FILES, ids=name)
def test_file_is_a_mapping_without_repeated_keys(path: Path) -> None:
    content = yaml.safe_load(path.read_text())
    assert isinstance(content, dict)

    class Strict(yaml.SafeLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            keys = [self.construct_object(key, deep) for key, _ in node.value]
            assert len(keys) == len(set(keys)), (
                f"a key is given twice: {keys}"
            )  # YAML keeps the last silently
            return super().construct_mapping(node, deep)

    assert yaml.load(path.read_text(), Strict) == content


@pytest.mark.parametrize("path", FILES, ids=name)
def test_no_path_of_one_machine(path: Path) -> None:
    text = path.read_text()
    assert "../shared" not in text
    assert not re.search(r"(?:^|[\s'\"=:])(?:/(?:home|work|mnt|data|tmp|root|Users|usr|opt)\b|~/)", text)
    for value in strings(yaml.safe_load(text)):
        absolute = PurePosixPath(value).is_absolute() or PureWindowsPath(value).is_absolute()
        assert not absolute, value


@pytest.mark.parametrize("path", FILES, ids=name)
def test_classes_exist_and_take_their_arguments(path: Path) -> None:
    for entry in classes(yaml.safe_load(path.read_text())):
        member = load(entry["class_path"])
        parameters = inspect.signature(member).parameters
        if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
            continue
        assert set(entry.get("init_args") or {}) <= parameters.keys(), entry["class_path"]


@pytest.mark.parametrize("path", CURRICULA, ids=name)
def test_curriculum_names_its_stage_files(path: Path) -> None:
    curriculum, plan = read_curriculum(path)
    blocks = len({fit.block for fit in plan})
    per_block = 4 if curriculum.finetune else 3
    assert len(plan) == per_block * blocks
    assert {fit.stage for fit in plan} == set(STAGES) - (set() if curriculum.finetune else {"finetune"})


@pytest.mark.parametrize("path", CURRICULA, ids=name)
def test_network_builds(path: Path) -> None:
    network = yaml.safe_load(path.read_text())["network"]
    with torch.device("meta"):
        model = RPFModel(**network)
    assert {key: model.config[key] for key in network} == network
    assert all(p.is_meta for p in model.parameters())


@pytest.mark.parametrize("path", CURRICULA, ids=name)
def test_stage_files_train_what_their_name_says(path: Path) -> None:
    for fit in {fit.stage: fit for fit in read_curriculum(path)[1]}.values():
        content = yaml.safe_load(fit.config.read_text())
        stage = load(content["model"]["class_path"])
        assert issubclass(stage, RPFStage)
        assert stage is STAGES[fit.stage]
        assert (content["model"]["init_args"].get("input") == "synthesized") is (fit.stage == "finetune")
        assert set(content.get("trainer") or {}) <= inspect.signature(Trainer).parameters.keys()
        for callback in (content.get("trainer") or {}).get("callbacks") or []:
            assert issubclass(load(callback["class_path"]), Callback)
        if "data" in content:
            assert issubclass(load(content["data"]["class_path"]), LightningDataModule)


@pytest.mark.parametrize("path", CURRICULA, ids=name)
def test_files_of_a_preset_share_one_model_directory(path: Path) -> None:
    curriculum, plan = read_curriculum(path)
    for fit in plan:
        content = yaml.safe_load(fit.config.read_text())
        assert content["model"]["init_args"].get("model_dir", curriculum.model_dir) == curriculum.model_dir
