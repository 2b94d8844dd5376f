"""Commands and names in the documentation exist."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from documented import CARD, DOCS, ROOT, commands
from rpf_lightning import RPFModel, command_options, training
from rpf_lightning.cli import main
from rpf_lightning.curriculum_file import JOINT, STAGES, read_curriculum
from rpf_lightning.fit_settings import options_of

PAGES = [
    ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "benchmarks" / "RESULTS.md", CARD, *DOCS
]  # fmt: skip


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}/{page.name}")
def test_links_and_named_files_exist(page):
    text = page.read_text()
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", text)
    named = re.findall(r"`((?:benchmarks|configs|docs|notebooks|tests)/[\w./-]+)`", text)
    named += re.findall(r"python (benchmarks/\w+\.py)", text)
    missing = [link for link in links if not (page.parent / link).exists()]
    missing += [name for name in named if not (ROOT / name).exists()]
    assert missing == []


class Parsed(Exception):
    """Options are known and well-formed."""


@pytest.mark.parametrize("words", commands(*DOCS, CARD), ids=lambda words: " ".join(words)[:60])
def test_commands_take_their_options(words, monkeypatch):
    """Nothing is run: neither photos nor models need be there."""

    def read(*args):
        raise Parsed(given(*args))

    def fit(args):
        training.read_fit(args[1:])
        raise Parsed(args, {})

    given = command_options.read
    monkeypatch.setattr(command_options, "read", read)
    monkeypatch.setattr(training, "lightning_cli", fit)
    with pytest.raises(Parsed) as parsed:
        main(words)
    if words[0] == "curriculum":  # what it takes for its fits, by one of each stage
        options, own = parsed.value.args[0]
        _, plan = read_curriculum(own["configs"][0])
        overlays = [word for overlay in own["configs"][1:] for word in ("--config", overlay)]
        for stage, fit in {fit.stage: fit for fit in plan}.items():
            more = options_of(stage, [*overlays, *options], (*STAGES, JOINT))
            place = ["--model.init_args.model_dir", "here"]
            training.read_fit(["--config", str(fit.config), *fit.options, *more, *place])


def test_export_page(model_dir, tmp_path, monkeypatch, capsys):
    """Its commands run, and what the graph leaves to the caller is named."""
    page = (ROOT / "docs" / "inference.md").read_text()
    commands = re.findall(r"^    rpf (export .*?)(?:\s+#.*)?$", page, flags=re.MULTILINE)
    assert len(commands) == 2
    monkeypatch.chdir(tmp_path)
    Path("runs/demo").mkdir(parents=True)
    RPFModel.from_pretrained(model_dir).save_pretrained("runs/demo/model")
    for command in commands:
        main(command.split())
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {"model.onnx", "model.pt2"}
    left = page[page.index("Not in the graph") :]
    for word in ("decoding", "aligning", "the mask", "checks of values", "batch size", "intermediates"):
        assert word in left


def test_readmes_values_are_those_of_the_model_card():
    def row(line):
        name, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        name = name.removeprefix("RPF, ").removesuffix(" \\*").removesuffix(" reference")
        return name, [cell.partition(" ")[0] for cell in cells]

    first = CARD.read_text().partition("| 16 -> 128 |")[2].partition("\n\n")[0].splitlines()[2:]
    card = {
        name: [cells[i] for i in (0, 2, 3, 4)] for name, cells in map(row, first)
    }  # no SSIM, no LR consistency
    table = (ROOT / "README.md").read_text().partition("| 389 pairs")[2].partition("\n\n")[0].splitlines()[2:]
    readme = dict(map(row, table))
    assert len(readme) == 4
    assert readme.items() <= card.items()


def test_readmes_first_example_runs_without_a_network_and_within_a_minute(tmp_path):
    code = (ROOT / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    no_network = (
        "import socket\n"
        "def connect(*_): raise SystemExit('it asked the network')\n"
        "socket.socket.connect = connect\n"
    )
    text = f"{no_network}{code}\nprint(*face.shape)"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RPF_", "HF_"))}
    done = subprocess.run(
        [sys.executable, "-c", text],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.strip() == "1 3 128 128", done.stderr
