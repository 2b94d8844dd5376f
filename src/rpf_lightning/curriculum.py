"""`rpf curriculum`: all fits of a model in the paper's order (IV-B), on one model directory.

Stage 1 trains every block's refinement; stage 2 trains warping and synthesis from the coarsest block to the
finest; the optional stage 3, not in the paper, fine-tunes a block's refinement on its own synthesized images
before the next block is trained on its output.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml
from lightning import seed_everything

from rpf_lightning.model import RPFModel
from rpf_lightning.model.storage import write_atomically
from rpf_lightning.stages.base import open_model
from rpf_lightning.training import lightning_cli

STATE_FILE = "state.json"
# what may change between two starts: where the data lie, and what it runs on
MOVABLE = (
    "--data.init_args.root",
    "--data.init_args.num_workers",
    "--trainer.accelerator",
    "--trainer.devices",
    "--trainer.strategy",
    "--trainer.logger",
    "--trainer.enable_",
)


@dataclass(frozen=True)
class Curriculum:
    """The contents of a `curriculum.yaml`.

    Attributes:
        model_dir: The model directory that every fit reads and writes.
        network: Arguments of `RPFModel`.
        refinement: Configuration of stage 1, a file beside this one.
        warping: Configuration of the warping fits.
        synthesis: Configuration of the synthesis fits.
        finetune: Configuration of stage 3; None leaves it out.
        seed: Seed of the model's initial weights; fits take theirs from their own files.
    """

    model_dir: str
    network: dict[str, Any]
    refinement: str
    warping: str
    synthesis: str
    finetune: str | None = None
    seed: int = 0


@dataclass(frozen=True)
class Fit:
    """One fit of a curriculum.

    Attributes:
        block: n, counted from 1.
        stage: ``"refinement"``, ``"warping"``, ``"synthesis"`` or ``"finetune"``.
        config: Its LightningCLI configuration.
    """

    block: int
    stage: str
    config: Path

    @property
    def name(self) -> str:
        """Key in the state file and name of the run folder."""
        return f"block{self.block}-{self.stage}"


def read_curriculum(path: str | Path) -> tuple[Curriculum, list[Fit]]:
    """Read a curriculum and list its fits in order.

    Raises:
        FileNotFoundError: If it, or a file that it names, is missing.
        ValueError: If a key is missing or unknown.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such curriculum")
    content = yaml.safe_load(path.read_text())
    known = {field.name for field in fields(Curriculum)}
    required = known - {"finetune", "seed"}
    if not isinstance(content, dict) or set(content) - known or required - set(content):
        got = sorted(content) if isinstance(content, dict) else type(content).__name__
        raise ValueError(
            f"{path}: expected the keys {sorted(required)} and at most {sorted(known)}, got {got}"
        )
    curriculum = Curriculum(**content)
    blocks = range(1, len(_on_meta(curriculum.network).blocks) + 1)
    stages = ["warping", "synthesis"] + (["finetune"] if curriculum.finetune else [])
    order = [(n, "refinement") for n in blocks] + [(n, stage) for n in blocks for stage in stages]
    plan = [Fit(n, stage, path.parent / getattr(curriculum, stage)) for n, stage in order]
    for fit in plan:
        if not fit.config.is_file():
            raise FileNotFoundError(f"{path}: {fit.stage} names {fit.config}, which is not there")
    return curriculum, plan


def run_curriculum(
    path: str | Path,
    overrides: list[str] | None = None,
    model_dir: str | None = None,
    dry_run: bool = False,
    say: Callable[[str], None] = print,
) -> Path:
    """Run the fits that are not finished yet; the same call continues after a kill.

    Args:
        path: A `curriculum.yaml`.
        overrides: Options for every fit, such as ``["--data.init_args.root", "photos"]``.
        model_dir: Used in place of the file's.
        dry_run: Only print the plan, one line per fit; needs no data.
        say: Takes the lines.

    Returns:
        The model directory.

    Raises:
        ValueError: If finished fits were made with other settings; the difference is shown.
    """
    curriculum, plan = read_curriculum(path)
    directory = Path(model_dir or curriculum.model_dir)
    overrides = overrides or []
    finished = _read_state(directory)
    if dry_run:
        model = _on_meta(curriculum.network)
        for fit in plan:
            module = getattr(
                model.blocks[fit.block - 1], "refinement" if fit.stage == "finetune" else fit.stage
            )
            size = sum(p.numel() for p in module.parameters())
            done = "finished" if fit.name in finished else "to do"
            side = model.sides[fit.block - 1]
            say(
                f"block {fit.block}  {fit.stage}  side {side}  {size / 1e6:.2f} M parameters  {fit.config}  {done}"
            )
        return directory
    for fit in plan:
        if fit.name in finished:
            _refuse_changes(fit, finished[fit.name], _settings(fit, overrides), directory)
    seed_everything(curriculum.seed, verbose=False)
    open_model(directory, curriculum.network)
    for number, fit in enumerate(plan, start=1):
        head = f"[{number}/{len(plan)}] block {fit.block}  {fit.stage}"
        if fit.name in finished:
            say(f"{head}: finished before")
            continue
        say(f"{head}: rpf {' '.join(_arguments(fit, directory, overrides))}")
        lightning_cli(_arguments(fit, directory, overrides))
        finished[fit.name] = _settings(fit, overrides)
        write_atomically(
            directory / STATE_FILE, (json.dumps({"finished": finished}, indent=2) + "\n").encode()
        )
    return directory


def _arguments(fit: Fit, directory: Path, overrides: list[str]) -> list[str]:
    args = ["fit", "--config", str(fit.config), *overrides]
    args += ["--model.init_args.model_dir", str(directory), "--model.init_args.block", str(fit.block)]
    last = directory / "runs" / fit.name / "checkpoints" / "last.ckpt"
    return [*args, "--ckpt_path", str(last)] if last.is_file() else args


def _read_state(directory: Path) -> dict[str, dict[str, Any]]:
    path = directory / STATE_FILE
    return json.loads(path.read_text())["finished"] if path.is_file() else {}


def _settings(fit: Fit, overrides: list[str]) -> dict[str, Any]:
    """Everything that a fit's result depends on, flat."""
    settings = _flatten(yaml.safe_load(fit.config.read_text()))
    given: dict[str, str] = {}
    name = ""
    for word in overrides:  # --name=value or --name value
        if word.startswith("--"):
            name, _, value = word.partition("=")
            given[name] = value
        else:
            given[name] = word
    kept = {key: value for key, value in given.items() if not key.startswith(MOVABLE)}
    return {**settings, **kept}


def _flatten(value: Any, name: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        nested = (_flatten(inner, f"{name}.{key}" if name else str(key)) for key, inner in value.items())
        return {key: inner for part in nested for key, inner in part.items()}
    return {name: value}


def _refuse_changes(fit: Fit, before: dict[str, Any], now: dict[str, Any], directory: Path) -> None:
    changed = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    if changed:
        text = "\n".join(f"  {key}: {before.get(key)!r} then, {now.get(key)!r} now" for key in changed)
        raise ValueError(
            f"{fit.name} in {directory} was finished with other settings:\n{text}\n"
            "Use another --model_dir, or put the settings back"
        )


def _on_meta(network: dict[str, Any]) -> RPFModel:
    import torch

    with torch.device("meta"):  # shapes only: nothing is allocated
        return RPFModel(**network)
