"""What `pip install` brings, used from a folder that is not the repository's."""

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder into which the built wheel was installed."""
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--no-index"]
    build = [*PIP, "wheel", *options, "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(build, check=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*PIP, "install", *options, "--target", str(folder / "site"), str(wheel)], check=True)
    return folder / "site"


def run(installed: Path, elsewhere: Path, *words: str) -> str:
    """What a Python prints that finds the installed package first, in a folder without the repository."""
    environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *words]
    done = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_package_and_its_presets_come_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    file = run(installed, tmp_path, "-c", "import rpf_lightning; print(rpf_lightning.__file__)")
    assert Path(file.strip()).is_relative_to(installed)
    there = installed / "rpf_lightning" / "configs"
    presets = {
        path.relative_to(ROOT / "configs"): path.read_bytes() for path in ROOT.glob("configs/**/*.yaml")
    }
    assert presets
    assert presets == {path.relative_to(there): path.read_bytes() for path in there.rglob("*.yaml")}


def test_one_step_of_the_demo(installed: Path, tmp_path: Path) -> None:
    words = ["--config", "demo/curriculum.yaml", "--config", "debug/one_step.yaml", "--model_dir", "model"]
    run(installed, tmp_path, "-m", "rpf_lightning", "curriculum", *words, "--only", "block1-refinement")
    assert (tmp_path / "model" / "model.safetensors").is_file()


def test_the_source_distribution_has_the_presets(tmp_path: Path) -> None:
    """A wheel that is built from it is the same."""
    code = f"from hatchling.build import build_sdist; build_sdist({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        assert any(name.endswith("/configs/demo/curriculum.yaml") for name in file.getnames())
