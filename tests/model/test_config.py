import json
from dataclasses import FrozenInstanceError, asdict

import pytest

from rpf_lightning.model import RPFConfig, RPFModel

SMALL = {"channels": 2, "width": 1 / 256}


def test_a_model_takes_a_configuration_or_its_arguments():
    config = RPFConfig(8, 4, **SMALL)
    for model in (RPFModel(config), RPFModel(8, 4, **SMALL), RPFModel(config, validate=False, memory="low")):
        assert model.config == config
        assert (model.lr_size, model.size, model.sides) == (8, 32, (16, 32))
    assert RPFModel(config, scale=2).config == RPFConfig(8, 2, **SMALL)
    for given in ({"depth": 3}, {"lr_size": 8}):
        with pytest.raises(TypeError, match="argument"):
            RPFModel(8, 4, **given)
    with pytest.raises(TypeError, match="argument"):
        RPFModel(config, 4)


def test_it_is_the_same_after_json_and_cannot_be_changed():
    config = RPFConfig(16, 4, channels=[4, 2], width=[0.5, 0.25], flow_from="previous")
    assert RPFConfig.of(json.loads(json.dumps(asdict(config)))) == config
    assert RPFConfig.of({**asdict(config), "validate": False, "memory": "low"}) == config
    with pytest.raises(FrozenInstanceError):
        config.scale = 8


def test_facts_of_every_block():
    config = RPFConfig(16, 8, channels=[8, 4, 2], width=0.5)
    assert (config.size, config.sides, config.entry_sides) == (128, (32, 64, 128), (16, 32, 64))
    assert (config.block_channels, config.block_widths) == ((8, 4, 2), (0.5, 0.5, 0.5))
    one = RPFConfig(16, 8, progressive=False)
    assert (one.sides, one.entry_sides, one.block_channels) == ((128,), (16,), (64,))


def test_differences():
    assert RPFConfig().differences(RPFConfig()) == {}
    assert RPFConfig(8, 4).differences(RPFConfig(8, 2, act="relu")) == {
        "scale": (4, 2), "act": ("leaky_relu", "relu"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr_size": 12}, "lr_size: expected a power of two of at least 4, got 12"),
        ({"lr_size": 2}, "lr_size: expected a power of two of at least 4, got 2"),
        ({"scale": 6}, "scale: expected a power of two of at least 2, got 6"),
        ({"skip": "none"}, "skip: expected same_resolution or literal, got 'none'"),
        ({"init": "zero"}, "init: expected kaiming or torch, got 'zero'"),
        ({"flow_from": "next"}, "flow_from: expected previous, got 'next'"),
        ({"synthesis_copy": True}, "synthesis_copy: .* needs synthesis_residual=True"),
        ({"reference_temperature": 0}, "reference_temperature: expected a positive number, got 0"),
        ({"channels": 0}, "channels: expected positive whole numbers up to 4096, got 0"),
        ({"width": float("nan")}, "width: expected positive numbers up to 8, got nan"),
        (
            {"width": [1.0, 0.5]},
            r"width: expected one number or a list of 6, one per block, got \[1.0, 0.5\]",
        ),
    ],
)
def test_bad_values(arguments, message):
    with pytest.raises(ValueError, match=message):
        RPFConfig(**arguments)
