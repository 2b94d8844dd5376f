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


def test_curriculum_takes_one_curriculum_and_any_number_of_overlays(monkeypatch):
    calls = []
    monkeypatch.setattr(
        "rpf_lightning.curriculum.run_curriculum", lambda *args, **kwargs: calls.append((args, kwargs))
    )
    main([
        "curriculum", "--trainer.max_epochs", "1", "--config", "c.yaml", "--only", "a", "b,c", "--config=o.yaml",
        "--from", "d", "--only", "e", "--data.root=x", "--dry-run", "--config", "p.yaml",
    ])  # fmt: skip
    options = ["--config", "o.yaml", "--config", "p.yaml", "--trainer.max_epochs", "1", "--data.root=x"]
    assert calls == [(("c.yaml", options, None, True), {"only": ["a", "b,c", "e"], "start": "d"})]
