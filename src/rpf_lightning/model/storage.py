"""A model directory on disk: `config.json` + `model.safetensors`, written atomically, read strictly."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from rpf_lightning.environment import OFFLINE_VARIABLE, offline
from rpf_lightning.files import write_atomically
from rpf_lightning.model.config import RPFConfig

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
PRETRAINED = Path(__file__).parents[1] / "pretrained"
"""Model directories that come with the package."""


def save(directory: Path, config: RPFConfig, state: Mapping[str, Tensor]) -> None:
    """Write a model directory, made if it is missing: the network's structure and its weights."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    write_atomically(directory / WEIGHTS_FILE, safetensors.torch.save(tensors, {"format": "pt"}))
    write_atomically(directory / CONFIG_FILE, (json.dumps(asdict(config), indent=2) + "\n").encode())


def load(name: str | Path) -> tuple[RPFConfig, dict[str, Tensor]]:
    """Read the configuration and the weights of a model directory, of a model of the package, or of a hub repository.

    Args:
        name: Tried in this order; the last needs a network, or to have been fetched before.

    Raises:
        FileNotFoundError: If there is neither a directory nor a hub repository of that name.
        ValueError: If the configuration is none, or the weights file is broken.
    """
    directory = Path(name)
    packaged = str(name) in pretrained_names()
    # a folder that only has the name of a packaged model, such as one of results, does not hide it
    if not directory.is_dir() or (packaged and not (directory / CONFIG_FILE).is_file()):
        directory = PRETRAINED / name if packaged else _from_hub(str(name))
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        if not (directory / file).is_file():
            raise FileNotFoundError(f"{directory} is no model directory: it has no {file}")
    config = read_config(directory / CONFIG_FILE)
    try:
        return config, safetensors.torch.load_file(directory / WEIGHTS_FILE)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{directory / WEIGHTS_FILE}: not a whole safetensors file: {error}") from error


def read_config(file: Path) -> RPFConfig:
    """Read a `config.json`.

    Raises:
        ValueError: If it is no JSON object, or has a name or a value that `RPFConfig` does not take.
    """
    try:
        saved = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
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


def _from_hub(name: str) -> Path:
    # imported here: the network itself needs torch and safetensors only
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    files = [CONFIG_FILE, WEIGHTS_FILE]
    packaged = ", ".join(pretrained_names())
    nothing = f"{name} is neither a model directory, nor a model of the package ({packaged})"
    try:
        if not offline():  # results go to stdout
            told = f"asking the Hugging Face hub for {name}, a download unless it was fetched before; terms and sizes: "
            print(f"{told}https://huggingface.co/{name}", file=sys.stderr)
        # offline too: what was fetched before is found
        directory = Path(snapshot_download(name, allow_patterns=files, local_files_only=offline()))
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
