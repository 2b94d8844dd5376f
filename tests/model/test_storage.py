import json
import re
import socket
from dataclasses import asdict

import huggingface_hub
import naive_layers as naive
import pytest
import safetensors.torch
import torch

from rpf_lightning.model import RPFConfig, RPFModel
from rpf_lightning.model.storage import CONFIG_FILE, WEIGHTS_FILE, save, weights_hash

ARGUMENTS = {"lr_size": 4, "scale": 4, "channels": 2, "width": 1 / 256, "skip": "literal", "act": "relu"}


def model(**kwargs):
    return naive.stir(RPFModel(**{**ARGUMENTS, **kwargs}))


@pytest.fixture
def directory(tmp_path):
    model().save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def rewrite_weights(directory, change):
    state = safetensors.torch.load_file(directory / WEIGHTS_FILE)
    change(state)
    safetensors.torch.save_file(state, directory / WEIGHTS_FILE)


def assert_same_weights(state, expected):
    assert list(state) == list(expected)
    for name, tensor in expected.items():
        assert state[name].dtype == tensor.dtype
        assert torch.equal(state[name], tensor)


def test_round_trip(tmp_path):
    saved = model(validate=False, memory="low", residual=True, synthesis_residual=True)
    target = tmp_path / "new" / "directory"
    saved.save_pretrained(target)
    assert sorted(path.name for path in target.iterdir()) == [CONFIG_FILE, WEIGHTS_FILE]
    loaded = RPFModel.from_pretrained(str(target))
    assert not any(module.training for module in loaded.modules())
    assert loaded.config == saved.config
    assert json.loads((target / CONFIG_FILE).read_text()) == asdict(saved.config)
    assert (loaded.validate, loaded.memory) == (True, "auto")  # of one run, not of the model
    assert_same_weights(loaded.state_dict(), saved.state_dict())
    lr, reference = torch.rand(1, 3, 4, 4), torch.rand(1, 3, 16, 16)
    assert torch.equal(loaded(lr, reference), saved(lr, reference))


def test_run_time_switches(directory):
    loaded = RPFModel.from_pretrained(directory, validate=False, memory="low")
    assert loaded.config == model().config
    assert loaded.memory == "low"
    assert loaded(torch.rand(1, 3, 4, 4) * 2).shape == (1, 3, 16, 16)
    with pytest.raises(ValueError, match="lr: expected values"):
        RPFModel.from_pretrained(directory)(torch.rand(1, 3, 4, 4) + 1)
    with pytest.raises(ValueError, match=f"{re.escape(str(directory))}: .* memory: expected auto or low"):
        RPFModel.from_pretrained(directory, memory="tiny")


NAME = "blocks.1.refinement.to_rgb.weight"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda state: state.pop(NAME), f"missing {NAME}"),
        (lambda state: state.update({"blocks.9.extra": torch.zeros(1)}), "left over blocks.9.extra"),
        (
            lambda state: state.update({NAME: torch.zeros(3, 2, 5, 5)}),
            rf"{NAME} has the shape \[3, 2, 5, 5\], expected",
        ),
    ],
    ids=["missing", "extra", "reshaped"],
)
def test_weights_must_fit_exactly(directory, change, complaint):
    rewrite_weights(directory, change)
    with pytest.raises(ValueError, match=f"(?s){re.escape(str(directory))}.*{complaint}"):
        RPFModel.from_pretrained(directory)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files_load_as_fp32(directory, dtype):
    rewrite_weights(directory, lambda state: state.update({k: v.to(dtype) for k, v in state.items()}))
    expected = safetensors.torch.load_file(directory / WEIGHTS_FILE)
    state = RPFModel.from_pretrained(directory).state_dict()
    assert {tensor.dtype for tensor in expected.values()} == {dtype}
    assert_same_weights(dict(sorted(state.items())), {k: v.float() for k, v in sorted(expected.items())})


@pytest.mark.parametrize("file", [CONFIG_FILE, WEIGHTS_FILE])
def test_missing_file_is_named(directory, file):
    (directory / file).unlink()
    with pytest.raises(FileNotFoundError, match=f"{re.escape(str(directory))}.*{file}"):
        RPFModel.from_pretrained(directory)


@pytest.fixture
def connections(monkeypatch):
    """Attempts to reach a network, all of which fail."""
    calls = []

    def connect(*args):
        calls.append(args)
        raise OSError("no network in tests")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", connect)
    return calls


def test_name_of_the_hub(directory, monkeypatch, capsys):
    asked = []

    def snapshot_download(name, **kwargs):
        asked.append((name, sorted(kwargs["allow_patterns"]), kwargs["local_files_only"]))
        return str(directory)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setenv("RPF_OFFLINE", "0")
    loaded = RPFModel.from_pretrained("owner/name")
    told = capsys.readouterr().err
    assert told.startswith("asking the Hugging Face hub for owner/name, a download unless")
    assert "https://huggingface.co/owner/name" in told
    monkeypatch.setenv("RPF_OFFLINE", "1")  # what was fetched before
    RPFModel.from_pretrained("owner/name")
    assert capsys.readouterr().err == ""
    assert asked == [("owner/name", [CONFIG_FILE, WEIGHTS_FILE], offline) for offline in (False, True)]
    assert_same_weights(loaded.state_dict(), RPFModel.from_pretrained(directory).state_dict())


def test_offline_the_hub_is_not_asked(monkeypatch, tmp_path, connections):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    for offline, reason in (
        ("0", "the hub gave none"),
        ("1", "RPF_OFFLINE is set, so the hub was not asked"),
    ):
        connections.clear()
        monkeypatch.setenv("RPF_OFFLINE", offline)
        with pytest.raises(FileNotFoundError, match=f"owner/name is neither.*celeba-hq-16to128\\).*{reason}"):
            RPFModel.from_pretrained("owner/name")
        assert bool(connections) is (offline == "0")
    with pytest.raises(FileNotFoundError, match=r"no/such/directory is neither.*nor a name on the hub"):
        RPFModel.from_pretrained("no/such/directory")


def test_a_repository_without_a_model_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    with pytest.raises(FileNotFoundError, match=f"owner/name: .*got no {CONFIG_FILE} and no {WEIGHTS_FILE}"):
        RPFModel.from_pretrained("owner/name")


def test_saving_that_fails_half_way_leaves_the_old_model(directory, disk_full_after_1000_bytes):
    expected = RPFModel.from_pretrained(directory).state_dict()
    other = model()
    with pytest.raises(OSError, match="large"), disk_full_after_1000_bytes:
        other.save_pretrained(directory)
    assert_same_weights(RPFModel.from_pretrained(directory).state_dict(), expected)
    assert len(list(directory.iterdir())) == 2


def test_saved_tensors_may_be_views(tmp_path):
    state = {"a": torch.arange(6.0).view(2, 3).T, "b": torch.arange(4.0)[::2]}
    save(tmp_path, RPFConfig(), state)
    assert_same_weights(safetensors.torch.load_file(tmp_path / WEIGHTS_FILE), state)


def some_state():
    return {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4)}


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.update({"c": state.pop("b")}),
        lambda state: state.update({"a": state["a"].view(3, 2)}),
        lambda state: state["a"].view(-1)[5].add_(1e-6),
        lambda state: state.update({"b": state["b"].double()}),
        lambda state: state.update({"a": state["b"], "b": state["a"]}),
    ],
    ids=["name", "shape", "value", "precision", "swapped"],
)
def test_hash_changes_with_the_weights(change):
    state = some_state()
    change(state)
    assert weights_hash(state) != weights_hash(some_state())


def test_hash_depends_on_nothing_else(directory):
    state = some_state()
    half = {name: tensor.bfloat16() for name, tensor in state.items()}
    assert weights_hash(half) == weights_hash({name: tensor.clone() for name, tensor in half.items()})
    reordered = {"b": state["b"].clone().requires_grad_(), "a": state["a"].T.contiguous().T}
    assert weights_hash(reordered) == weights_hash(state)
    loaded = RPFModel.from_pretrained(directory)
    assert weights_hash(loaded.state_dict()) == weights_hash(
        safetensors.torch.load_file(directory / WEIGHTS_FILE)
    )
