"""The prepared folder of the tests, prepared once: none of these tests changes the photos."""

import shutil
from pathlib import Path

import pytest

from rpf_lightning.data.preparation import Options, prepare_faces


@pytest.fixture(scope="session")
def _prepared(_drawn, tmp_path_factory):
    out = tmp_path_factory.mktemp("evaluation") / "prepared"
    options = Options(
        landmarks=str(_drawn / "landmarks.csv"), labels=str(_drawn / "labels"), label_scheme="bisenet",
        embeddings=False, num_workers=0,
    )  # fmt: skip
    identities = _drawn / "identities.csv"
    prepare_faces(_drawn / "images", out, identities=identities, say=lambda line: None, options=options)
    return out


@pytest.fixture
def prepared(_prepared, tmp_path):
    return Path(shutil.copytree(_prepared, tmp_path / "prepared"))
