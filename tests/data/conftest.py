"""A folder of drawn photos with every annotation, as people would have one, and its prepared form."""

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

PEOPLE, EACH, SIDE = 6, 3, 64
COLUMNS = ["file", *(f"{axis}{i}" for i in range(68) for axis in "xy")]


def write_csv(path: Path, rows: list[list[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


@pytest.fixture(scope="session")
def _drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from rpf_lightning.data.synthetic import render_photo

    root = tmp_path_factory.mktemp("drawn")
    (root / "images").mkdir()
    (root / "labels").mkdir()
    identities: list[list[Any]] = [["file", "identity"]]
    landmarks: list[list[Any]] = [COLUMNS]
    for person in range(PEOPLE):
        for shot in range(EACH):
            drawn = render_photo(person, shot, SIDE)
            name = f"{person}-{shot}.png"
            Image.fromarray(drawn.image).save(root / "images" / name)
            Image.fromarray(drawn.parsing).save(root / "labels" / name)
            identities.append([name, f"p{person}"])
            landmarks.append([name, *np.round(drawn.landmarks.ravel(), 3)])
    write_csv(root / "identities.csv", identities)
    write_csv(root / "landmarks.csv", landmarks)
    return root


@pytest.fixture
def folder(_drawn: Path, tmp_path: Path) -> Path:
    """`images/`, `labels/` (BiSeNet's order), `identities.csv`, `landmarks.csv`: 6 people, 3 photos each."""
    return Path(shutil.copytree(_drawn, tmp_path / "folder"))


@pytest.fixture
def prepare(folder: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """`prepare()` prepares `folder` into `prepared`; arguments are those of `prepare_faces` and `Options`."""
    from rpf_lightning.data.preparation import Options, prepare_faces

    def run(out: str = "prepared", **kwargs: Any) -> dict[str, Any]:
        names = Options.__dataclass_fields__
        given: dict[str, Any] = {
            "landmarks": str(folder / "landmarks.csv"),
            "labels": str(folder / "labels"),
            "label_scheme": "bisenet",
            "embeddings": False,
            "workers": 0,
            **{name: value for name, value in kwargs.items() if name in names},
        }
        rest = {name: value for name, value in kwargs.items() if name not in names}
        arguments: dict[str, Any] = {
            "identities": folder / "identities.csv",
            "say": lambda line: None,
            **rest,
        }
        return prepare_faces(folder / "images", tmp_path / out, options=Options(**given), **arguments)

    return run


@pytest.fixture
def prepared(prepare: Callable[..., dict[str, Any]], tmp_path: Path) -> Path:
    """`folder` prepared."""
    prepare()
    return tmp_path / "prepared"
