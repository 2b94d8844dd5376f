"""What several folders of tests share: a tiny network, batches of synthetic faces, made-up third-party weights."""

import csv
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from small_fits import QUIET

TINY = {
    "lr_size": 16,
    "scale": 4,
    "channels": 4,
    "width": 1 / 64,
    "residual": True,
    "synthesis_residual": True,
}
ALEXNET_SHAPES = {
    "0": (64, 3, 11, 11),
    "3": (192, 64, 5, 5),
    "6": (384, 192, 3, 3),
    "8": (256, 384, 3, 3),
    "10": (256, 256, 3, 3),
}


@pytest.fixture(autouse=True, scope="session")
def no_downloads(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test downloads weights or sees a developer's own; of the session, so that no fixture does either."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RPF_WEIGHTS_DIR", raising=False)
        patch.setenv("RPF_OFFLINE", "1")
        patch.setenv("RPF_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real photos, metadata and weights; without it the test is skipped and says so."""
    if not os.environ.get("RPF_SHARED"):
        pytest.skip("RPF_SHARED is not set: no real photos, metadata and weights")
    return Path(os.environ["RPF_SHARED"])


@pytest.fixture
def real_weights(shared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of real weights, where the package looks for them."""
    monkeypatch.setenv("RPF_WEIGHTS_DIR", str(shared / "weights"))
    return shared / "weights"


@pytest.fixture
def network() -> dict[str, Any]:
    """Arguments of a network of two blocks, sides 32 and 64."""
    return dict(TINY)


@pytest.fixture
def disk_full_after_1000_bytes() -> Any:
    """The operating system refuses to let any file grow beyond 1000 bytes, in the middle of a write."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    class Limit:
        def __enter__(self) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))

        def __exit__(self, *_: object) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return Limit()


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    """A model directory with a tiny network whose untrained modules already do something."""
    from rpf_lightning.model import RPFModel

    torch.manual_seed(0)
    model = RPFModel(**TINY)
    with torch.no_grad():
        for block in model.blocks:
            block.warping.flow_head.bias += torch.tensor([0.5, -0.5])  # not the identity warp
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@cache
def _batches(block: int) -> Any:
    from rpf_lightning.data import SyntheticFacesDataModule
    from rpf_lightning.data.dataset import collate

    side = 16 * 2**block
    data = SyntheticFacesDataModule(
        people=6, photos_each=2, lr_size=16, size=64, side=side, warped_reference=True
    )
    data.setup()
    return [collate([data.train_dataset[i], data.train_dataset[i + 1]]) for i in (0, 2)]


@pytest.fixture
def batch_of() -> Callable[..., Any]:
    """`batch_of(block, number)` -> one of two batches of two pairs at the block's level."""

    def get(block: int, number: int = 0) -> Any:
        batch = _batches(block)[number]
        return batch._replace(**{k: v.clone() for k, v in batch._asdict().items() if isinstance(v, Tensor)})

    return get


@pytest.fixture
def fit(tmp_path: Path, batch_of: Callable[..., Any]) -> Callable[..., Any]:
    """`fit(stage)` trains on two batches in a fixed order and returns the trainer."""
    from lightning import Callback, Trainer
    from torch.utils.data import DataLoader

    def run(
        stage: Any,
        epochs: int = 1,
        callbacks: Sequence[Callback] = (),
        ckpt_path: Path | None = None,
        batches: Sequence[Any] | None = None,
        validate: bool = False,
        **kwargs: Any,
    ) -> Trainer:
        given = [batch_of(stage.block, 0), batch_of(stage.block, 1)] if batches is None else list(batches)
        trainer = Trainer(
            max_epochs=epochs, callbacks=list(callbacks), default_root_dir=tmp_path, **{**QUIET, **kwargs}
        )
        loader = DataLoader(given, batch_size=None)
        trainer.fit(stage, loader, loader if validate else None, ckpt_path=ckpt_path)
        return trainer

    return run


@pytest.fixture
def alexnet_state() -> dict[str, Tensor]:
    """Random convolutions with the names and shapes of torchvision's AlexNet."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for number, shape in ALEXNET_SHAPES.items():
        fan_in = shape[1] * shape[2] * shape[3]
        weight = torch.randn(shape, generator=generator) * (2 / fan_in) ** 0.5
        state[f"features.{number}.weight"] = weight
        state[f"features.{number}.bias"] = torch.randn(shape[0], generator=generator) * 0.1
    return state


@pytest.fixture
def make_pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """`make_pack(name, normalise)` writes a tiny recognition network as an insightface pack.

    With `normalise` the graph itself subtracts 127.5 and divides by 127.5; the weights are the same. The
    folder becomes `RPF_WEIGHTS_DIR`.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = tmp_path / "weights"
    weights.mkdir(exist_ok=True)
    monkeypatch.setenv("RPF_WEIGHTS_DIR", str(weights))

    def make(name: str = "tiny", normalise: bool = False, side: int = 112, file: str = "x.onnx") -> Path:
        rng = np.random.default_rng(0)
        grid = (side + 2 - 7) // 8 + 1
        constants = {
            "conv": rng.normal(size=(4, 3, 7, 7)) * 0.2,
            "scale": rng.uniform(0.5, 1.5, 4),
            "shift": rng.normal(size=4),
            "mean": rng.normal(size=4) * 0.1,
            "var": rng.uniform(0.5, 1.5, 4),
            "gemm": rng.normal(size=(4 * grid * grid, 16)) * 0.05,
            "bias": rng.normal(size=16),
            "half": np.array(127.5),
            "inverse": np.array(1 / 127.5),
        }
        nodes = []
        if normalise:
            nodes += [
                helper.make_node("Sub", ["input", "half"], ["centred"]),
                helper.make_node("Mul", ["centred", "inverse"], ["scaled"]),
            ]
        nodes += [
            helper.make_node(
                "Conv",
                ["scaled" if normalise else "input", "conv"],
                ["a"],
                kernel_shape=[7, 7],
                strides=[8, 8],
                pads=[1, 1, 1, 1],
            ),
            helper.make_node("BatchNormalization", ["a", "scale", "shift", "mean", "var"], ["b"]),
            helper.make_node("Relu", ["b"], ["c"]),
            helper.make_node("Flatten", ["c"], ["d"]),
            helper.make_node("Gemm", ["d", "gemm", "bias"], ["features"]),
        ]
        if not normalise:
            del constants["half"], constants["inverse"]
        graph = helper.make_graph(
            nodes,
            "tiny",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, side, side])],
            [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", 16])],
            [numpy_helper.from_array(value.astype(np.float32), key) for key, value in constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        onnx.checker.check_model(model)
        path = weights / "insightface" / "models" / name / file
        path.parent.mkdir(parents=True, exist_ok=True)
        onnx.save(model, path)
        return path

    return make


@pytest.fixture
def made_up_weights(alexnet_state: dict[str, Tensor], make_pack: Callable[..., Path]) -> None:
    """AlexNet's and an insightface pack's."""
    torch.save(alexnet_state, make_pack().parents[3] / "alexnet_features.pth")


# A folder of drawn photos with every annotation, as people would have one, and its prepared form.

PEOPLE, EACH, SIDE = 6, 3, 64
COLUMNS = ["file", *(f"{axis}{i}" for i in range(68) for axis in "xy")]


def write_csv(path: Path, rows: list[list[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


@pytest.fixture(scope="session")
def _drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from rpf_lightning.drawn_faces.photo import render_photo

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
    return preparing(folder, tmp_path)


def preparing(folder: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    from rpf_lightning.data.preparation import Options, prepare_faces

    def run(out: str = "prepared", **kwargs: Any) -> dict[str, Any]:
        names = Options.__dataclass_fields__
        given: dict[str, Any] = {
            "landmarks": str(folder / "landmarks.csv"),
            "labels": str(folder / "labels"),
            "label_scheme": "bisenet",
            "embeddings": False,
            "num_workers": 0,
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


@pytest.fixture(scope="session")
def _prepared(_drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("prepared")
    shutil.copytree(_drawn, root / "folder")
    preparing(root / "folder", root)()
    return root


@pytest.fixture
def prepared(folder: Path, _prepared: Path, tmp_path: Path) -> Path:
    """`folder` prepared."""
    there = Path(shutil.copytree(_prepared / "prepared", tmp_path / "prepared"))
    summary = there / "prepare.json"
    summary.write_text(summary.read_text().replace(str(_prepared), str(tmp_path)))
    return there
