"""`rpf` itself: which words it takes and what it says of others; the subcommands have tests of their own."""

import pytest

from rpf_lightning.cli import LIGHTNING, main
from rpf_lightning.model import RPFModel
from rpf_lightning.model.summary import table


@pytest.mark.parametrize("name", LIGHTNING)
def test_an_option_before_a_lightning_command_is_named(name, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["--verbose", name])
    assert f"rpf: error: expected {name} as the first word, got --verbose" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--model_dir", "--model-dir"])
def test_summary_of_a_model_directory(option, model_dir, capsys):
    main(["summary", option, str(model_dir)])
    assert capsys.readouterr().out == table(RPFModel.from_pretrained(model_dir)) + "\n"
