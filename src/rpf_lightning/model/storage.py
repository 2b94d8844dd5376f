"""A model directory on disk: `config.json` + `model.safetensors`, written atomically, read strictly."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from rpf_lightning.environment import OFFLINE_VARIABLE, offline
from rpf_lightning.errors import DamagedError
from rpf_lightning.files import write_atomically
from rpf_lightning.model.config import RPFConfig

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
MOST_BYTES = 100_000  # of a config.json, which has some hundred
CHECKSUM = (
    "sha256"  # the weights' hash in the file's metadata; the only entry, as several have no fixed order
)
PRETRAINED = Path(__file__).parents[1] / "pretrained"
"""Model directories that come with the package."""


def save(directory: Path, config: RPFConfig, state: Mapping[str, Tensor]) -> None:
    """Write a model directory, made if it is missing: the network's structure, its weights and their checksum."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    content = safetensors.torch.save(tensors, {CHECKSUM: weights_hash(tensors)})
    write_atomically(directory / WEIGHTS_FILE, content)
    write_atomically(directory / CONFIG_FILE, (json.dumps(asdict(config), indent=2) + "\n").encode())


@dataclass(frozen=True)
class Hub:
    """How files of the hub are fetched: arguments of huggingface_hub's `snapshot_download`."""

    revision: str | None = None
    token: str | bool | None = None
    cache_dir: str | Path | None = None
    local_files_only: bool = False
    force_download: bool = False


def load(name: str | Path) -> tuple[RPFConfig, dict[str, Tensor]]:
    """Read the configuration and the weights of what `directory_of` finds.

    Raises:
        FileNotFoundError: If there is neither a directory nor a hub repository of that name.
        ValueError: If the configuration is none, or the weights file is broken or not finite.
    """
    directory = directory_of(name)
    return read_config(directory / CONFIG_FILE), read_weights(directory)


def directory_of(name: str | Path, hub: Hub = Hub()) -> Path:
    """Find a model directory, a model of the package, or a hub repository.

    Args:
        name: Tried in this order; the last needs a network, or to have been fetched before.
        hub: How it is fetched.

    Raises:
        FileNotFoundError: If there is none, or a file of it is missing.
    """
    directory = Path(name)
    packaged = str(name) in pretrained_names()
    # a folder that only has the name of a packaged model, such as one of results, does not hide it
    if not directory.is_dir() or (packaged and not (directory / CONFIG_FILE).is_file()):
        directory = PRETRAINED / name if packaged else _from_hub(str(name), hub)
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        if not (directory / file).is_file():
            raise FileNotFoundError(f"{directory} is no model directory: it has no {file}")
    return directory


def check_head(directory: Path, described: Mapping[str, Tensor]) -> None:
    """Compare names and shapes of a weights file with those of its network, before anything is allocated.

    Args:
        directory: Holds the file.
        described: The network's state on the meta device.

    Raises:
        ValueError: If they differ, or the file is broken.
    """
    file = directory / WEIGHTS_FILE
    try:
        with safetensors.safe_open(file, "pt") as opened:
            there = {key: tuple(opened.get_slice(key).get_shape()) for key in opened.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(f"{file}: not a whole safetensors file: {error}") from error
    wanted = {key: tuple(tensor.shape) for key, tensor in described.items()}
    wrong = [
        *(f"missing {key}" for key in wanted.keys() - there.keys()),
        *(f"left over {key}" for key in there.keys() - wanted.keys()),
        *(
            f"{key} has the shape {list(there[key])}, expected {list(shape)}"
            for key, shape in wanted.items()
            if there.get(key, shape) != shape
        ),
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(
            f"{file} does not fit the network of its {CONFIG_FILE} and of arguments that add to it: "
            f"{'; '.join(sorted(wrong)[:3])}{more}"
        )


def read_weights(directory: Path) -> dict[str, Tensor]:
    """Read a weights file, and compare it with its checksum (0.6 s a GB) if it has one: files of others have none.

    Raises:
        ValueError: If it is broken, or holds a tensor that is no weight: of whole numbers, or with NaN or infinity.
        DamagedError: A ValueError, if it does not hold the weights that were saved.
    """
    file = directory / WEIGHTS_FILE
    try:
        with safetensors.safe_open(file, "pt") as opened:
            recorded = (opened.metadata() or {}).get(CHECKSUM)
        state = safetensors.torch.load_file(file)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{file}: not a whole safetensors file: {error}") from error
    for key, tensor in state.items():
        if not tensor.is_floating_point():
            raise ValueError(f"{file}: expected floating point weights, {key} has {tensor.dtype}")
        if not tensor.float().isfinite().all():
            raise ValueError(f"{file}: {key} holds NaN or infinite values: no model was saved so")
    if recorded is not None and recorded != weights_hash(state):
        raise DamagedError(
            f"{file}: damaged, its weights are not those that were saved (their SHA-256 is another than the file "
            "states). Put a whole copy back"
        )
    return state


def read_config(file: Path) -> RPFConfig:
    """Read a `config.json`.

    Raises:
        ValueError: If it is no JSON object, or has a name or a value that `RPFConfig` does not take.
    """
    if file.stat().st_size > MOST_BYTES:
        raise ValueError(f"{file}: expected a few lines of JSON, got {file.stat().st_size:,} bytes")
    try:
        saved = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # also of numbers with thousands of digits
        raise ValueError(f"{file}: expected JSON: {error}") from error
    if not isinstance(saved, dict):
        raise ValueError(f"{file}: expected a JSON object of RPFModel's arguments")
    try:
        return RPFConfig.of(saved)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file}: does not fit RPFModel: {error}") from error


def pretrained_names() -> list[str]:
    """Names of the models that come with the package: `RPFModel.from_pretrained` finds them offline."""
    return sorted(path.parent.name for path in PRETRAINED.glob(f"*/{CONFIG_FILE}"))


def restore(model: nn.Module, state: Mapping[str, Tensor], name: str | Path, new: Iterable[str] = ()) -> None:
    """Load weights strictly; half-precision files become fp32.

    Args:
        model: Takes them.
        state: Weights by their names.
        name: Where they come from.
        new: Names of the model's weights that may be missing: they stay as they are.

    Raises:
        ValueError: If a weight is missing, left over, or of another shape.
    """
    own = model.state_dict()
    try:
        given = {key: tensor.float() for key, tensor in state.items()}
        model.load_state_dict({**{key: own[key] for key in new}, **given}, strict=True)
    except RuntimeError as error:
        raise ValueError(f"the weights of {name} do not fit its {CONFIG_FILE}: {error}") from error


def weights_hash(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes and bytes of weights, the same on every machine."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())  # bf16 too
    return digest.hexdigest()


def _from_hub(name: str, hub: Hub) -> Path:
    # imported here: the network itself needs torch and safetensors only
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    files = [CONFIG_FILE, WEIGHTS_FILE]
    packaged = ", ".join(pretrained_names())
    nothing = f"{name} is neither a model directory, nor a model of the package ({packaged})"
    how = {**asdict(hub), "local_files_only": hub.local_files_only or offline()}
    if offline():
        how["force_download"] = False
    try:
        if not offline():  # results go to stdout
            told = f"asking the Hugging Face hub for {name}, a download unless it was fetched before; terms and sizes: "
            print(f"{told}https://huggingface.co/{name}", file=sys.stderr)
        # offline too: what was fetched before is found
        directory = Path(snapshot_download(name, allow_patterns=files, **how))
    except HFValidationError as error:
        raise FileNotFoundError(f"{nothing}, nor a name on the hub") from error
    except Exception as error:
        reason = f"{OFFLINE_VARIABLE} is set, so the hub was not asked" if offline() else "the hub gave none"
        raise FileNotFoundError(f"{nothing}, and {reason}: {error}") from error
    missing = [file for file in files if not (directory / file).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{name}: expected {' and '.join(files)} of a repository of the hub, got no {' and no '.join(missing)}; "
            f"either it is no model of this package, or only a part of it was fetched to {directory}"
        )
    return directory
