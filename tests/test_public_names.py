"""The names that users import, and what importing them must not drag in."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import rpf_lightning

NAMES = [
    "CelebAHQDataModule",
    "FFHQDataModule",
    "FreezeEarlierBlocks",
    "JointStage",
    "RPFConfig",
    "RPFModel",
    "ReferencePairsDataModule",
    "RefinementStage",
    "SynthesisStage",
    "SyntheticFacesDataModule",
    "WarpingStage",
]
HEAVY = ("insightface", "face_alignment", "facexlib", "wandb")


def test_snapshot() -> None:
    assert sorted(rpf_lightning.__all__) == NAMES
    assert set(NAMES) <= set(dir(rpf_lightning))


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_a_class_of_this_package(name: str) -> None:
    member = getattr(rpf_lightning, name)
    assert isinstance(member, type)
    assert member.__name__ == name
    assert member.__module__.startswith("rpf_lightning.")


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="Nonsense"):
        rpf_lightning.Nonsense  # noqa: B018


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import rpf_lightning", (*HEAVY, "lightning", "torch")),
        ("from rpf_lightning import RPFModel", (*HEAVY, "lightning")),
        ("from rpf_lightning import RPFModel, RefinementStage, SyntheticFacesDataModule", HEAVY),
        ("import rpf_lightning.cli", (*HEAVY, "lightning", "torch")),
    ],
)
def test_imports_nothing_heavy(statement: str, absent: tuple[str, ...]) -> None:
    code = f"{statement}\nimport sys\nprint([name for name in {absent!r} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_a_module_name_stands_for_one_module() -> None:
    package = Path(rpf_lightning.__file__).parent
    names = [file.stem for file in package.rglob("*.py") if not file.stem.startswith("__")]
    assert [name for name, count in Counter(names).items() if count > 1] == []
