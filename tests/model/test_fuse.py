"""`RPFModel.fuse`: constants folded into the weights, the same outputs, no way back into a checkpoint."""

from __future__ import annotations

import copy
from pathlib import Path

import naive_layers as naive
import pytest
import torch
from torch import nn

from rpf_lightning import RPFModel
from rpf_lightning.model import strips
from rpf_lightning.model.layers import Activate, EqualizedConv2d, EqualizedLinear, ModulatedConv2d

READINGS = [{}, {"skip": "literal", "act": "relu", "residual": True}, {"progressive": False}]


def build(**reading: object) -> RPFModel:
    torch.manual_seed(0)
    return naive.stir_all(RPFModel(16, 4, channels=8, width=1 / 32, **reading)).double()


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("reading", READINGS, ids=str)
def test_fused_equals_unfused(
    monkeypatch: pytest.MonkeyPatch, reading: dict[str, object], batch: int
) -> None:
    model = build(**reading)
    fused = copy.deepcopy(model).fuse()
    lr, reference = torch.rand(batch, 3, 16, 16).double(), torch.rand(batch, 3, 64, 64).double()
    expected, blocks = model(lr, reference, return_intermediates=True)
    assert ((expected > 0) & (expected < 1)).float().mean() > 0.5
    monkeypatch.setattr(strips, "STRIP_BYTES", 60_000)
    for grad in (True, False):  # the modules' own forward, and in strips
        with torch.set_grad_enabled(grad):
            output, records = fused(lr.requires_grad_(grad), reference, return_intermediates=True)
            assert output.requires_grad == grad
            torch.testing.assert_close(output, expected, rtol=0, atol=1e-9)
            for record, block in zip(records, blocks, strict=True):
                torch.testing.assert_close(record, block, rtol=1e-9, atol=1e-9)


def test_fuse_works_in_place_and_only_once() -> None:
    model = build()
    assert model.fuse() is model
    weights = [parameter.clone() for parameter in model.parameters()]
    model.fuse()
    for parameter, weight in zip(model.parameters(), weights, strict=True):
        assert torch.equal(parameter, weight)
        assert not parameter.requires_grad
    assert not model.training


def test_a_fused_model_needs_no_gradient() -> None:
    """Whatever the mode in which it was fused and runs: no graph is kept, and it runs in strips."""
    model = build().fuse()
    assert not any(buffer.requires_grad for buffer in model.buffers())
    lr, reference = torch.rand(1, 3, 16, 16).double(), torch.rand(1, 3, 64, 64).double()
    assert torch.is_grad_enabled()
    output, records = model(lr, reference, return_intermediates=True)
    assert not any(image.requires_grad for record in records for image in (output, *record[:4]))
    with torch.no_grad():
        assert torch.equal(output, model(lr, reference))
    twin = copy.deepcopy(model)
    assert torch.equal(output, twin(lr, reference))
    with pytest.raises(RuntimeError, match="fused"):
        twin.state_dict()


def test_every_constant_is_folded() -> None:
    model = build().fuse()
    for module in model.modules():
        if isinstance(module, EqualizedConv2d | EqualizedLinear | ModulatedConv2d):
            assert module.scale == 1
        if isinstance(module, Activate):
            assert module.gain == 1
        if isinstance(module, nn.Conv2d) and module.in_channels > 3:
            assert module.weight.is_contiguous(memory_format=torch.channels_last)


def test_a_fused_model_meets_no_checkpoint(tmp_path: Path) -> None:
    model = build()
    state = copy.deepcopy(model.state_dict())
    model.fuse()
    with pytest.raises(RuntimeError, match="fused"):
        model.state_dict()
    other = {name: weight + 1 for name, weight in state.items()}
    with pytest.raises(RuntimeError, match="fused"):
        model.load_state_dict(other)
    with pytest.raises(RuntimeError, match="fused"):
        model.blocks[0].load_state_dict(model.blocks[1].warping.state_dict(prefix="warping."))
    for name, weight in model.blocks[0].warping.named_parameters():  # nothing was loaded by halves
        assert torch.equal(weight, state[f"blocks.0.warping.{name}"]), name
    with pytest.raises(RuntimeError, match="fused"):
        model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_neither_do_its_parts() -> None:
    """Checkpoints of one module exist as well."""
    model = build()
    refinement = model.blocks[0].refinement
    state = copy.deepcopy(refinement.state_dict())
    refinement.fuse()
    for refused in (
        refinement.state_dict,
        model.blocks[0].state_dict,
        model.state_dict,
        lambda: refinement.load_state_dict(state),
    ):
        with pytest.raises(RuntimeError, match="fused"):
            refused()


def test_a_loaded_model_can_be_fused(tmp_path: Path) -> None:
    model = build().float()
    model.save_pretrained(tmp_path)
    lr = torch.rand(1, 3, 16, 16)
    fused = RPFModel.from_pretrained(tmp_path, memory="low").fuse()
    with torch.no_grad():
        torch.testing.assert_close(fused(lr), model(lr), rtol=0, atol=1e-5)
