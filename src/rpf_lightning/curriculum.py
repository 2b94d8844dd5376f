"""`rpf curriculum`: all fits of a model in the paper's order (IV-B), on one model directory.

Stage 1 trains every block's refinement; stage 2 trains warping and synthesis from the coarsest block to the
finest; the optional stage 3, not in the paper, fine-tunes a block's refinement on its own synthesized images
before the next block is trained on its output.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml
from lightning import seed_everything
from lightning.pytorch.utilities import rank_zero_only

from rpf_lightning.data.locking import locked
from rpf_lightning.data.preparation.tables import SUMMARY, read_summary
from rpf_lightning.model.storage import write_atomically
from rpf_lightning.planning import on_meta, plan_lines
from rpf_lightning.stages.model_dir import LOCK, open_model
from rpf_lightning.training import lightning_cli

STATE_FILE = "state.json"
DATA_HASH = "data.sha256"  # of a prepared folder, beside a fit's own settings
STAGES = ("refinement", "warping", "synthesis", "finetune")
# what may change between two starts: where the data lie, and what it runs on
MOVABLE = (
    "data.init_args.root",
    "data.init_args.prepared",
    "data.init_args.images",
    "data.init_args.mapping",
    "data.init_args.identities",
    "data.init_args.partition",
    "data.init_args.landmarks",
    "data.init_args.labels",
    "data.init_args.cache_dir",
    "data.init_args.num_workers",
    "model.init_args.model_dir",  # the curriculum names it
    "model.init_args.block",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.strategy",
    "trainer.logger",
    "trainer.enable_",
)

Settings = dict[str, Any]
State = dict[str, dict[str, Settings]]


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
    blocks = range(1, len(on_meta(curriculum.network).blocks) + 1)
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
    only: str | Sequence[str] | None = None,
    start: str | None = None,
) -> Path:
    """Run the fits that are not finished yet; the same call continues after a kill.

    Args:
        path: A `curriculum.yaml`.
        overrides: Options for every fit, such as ``["--data.init_args.root", "photos"]`` or ``["--config",
            "configs/logger/wandb.yaml"]``.
        model_dir: Used in place of the file's.
        dry_run: Only print the plan, one line per fit; needs no data.
        say: Takes the lines.
        only: Run only these fits, in the plan's order: ``"block2-warping"``, ``"block2"`` (all its fits) or
            ``"warping"`` (of all blocks); several as a list or with commas.
        start: Begin at this fit, or at the first that this name fits, as in `only`.

    Returns:
        The model directory.

    Raises:
        FileNotFoundError: If the curriculum, or a file that it names, is missing.
        ValueError: If finished or interrupted fits among those to run had other settings (the difference is
            shown), if `only` or `start` names no fit, or if a file is broken.
    """
    say = rank_zero_only(say)  # with several processes each runs all of this
    curriculum, plan = read_curriculum(path)
    directory = Path(model_dir or curriculum.model_dir)
    overrides = overrides or []
    chosen = _choose(plan, only, start)
    state = _read_state(directory)
    if missing := [fit.name for fit in _left_out(plan, chosen, start) if fit.name not in state["finished"]]:
        say(f"not finished, their modules are taken as they are in {directory}: {', '.join(missing)}")
    if dry_run:
        lines = plan_lines(curriculum.network, chosen, lambda fit: _options_of(fit.stage, overrides))
        for fit, line in zip(chosen, lines, strict=True):
            say(f"{line}  {'finished' if fit.name in state['finished'] else 'to do'}")
        return directory
    settings = {fit.name: _settings(fit, _options_of(fit.stage, overrides)) for fit in chosen}
    for fit in chosen:
        _refuse_changes(fit, state, settings[fit.name], directory)
    seed_everything(curriculum.seed, verbose=False)
    open_model(directory, curriculum.network)
    # decided once, and alike in all processes: another command may note fits meanwhile
    finished = set(state["finished"])
    for number, fit in enumerate(plan, start=1):
        if fit not in chosen:
            continue
        head = f"[{number}/{len(plan)}] block {fit.block}  {fit.stage}"
        if fit.name in finished:
            say(f"{head}: finished before")
            continue
        _clean(directory, fit)
        _note(directory, state, "started", fit.name, settings[fit.name])
        arguments = _arguments(fit, directory, _options_of(fit.stage, overrides))
        say(f"{head}: rpf {' '.join(arguments)}")
        cli = lightning_cli(arguments)
        if cli is not None and cli.trainer.fast_dev_run:  # type: ignore[attr-defined]
            _note(directory, state, "started", fit.name, None)
            continue  # a try, of which nothing was written
        # the fit may have prepared the data
        done = {**settings[fit.name], **_data_hash(settings[fit.name])}
        state["finished"][fit.name] = done
        _note(directory, state, "finished", fit.name, done)
    if all(fit.name in state["finished"] for fit in plan):
        _remove_cache(directory)
    return directory


def _choose(plan: list[Fit], only: str | Sequence[str] | None, start: str | None) -> list[Fit]:
    """The fits to run, in the plan's order."""
    chosen = plan
    if only is not None:
        words = [only] if isinstance(only, str) else only
        names = [name for word in words for name in word.split(",") if name]
        wanted = {fit.name for name in names for fit in _named(plan, name)}
        chosen = [fit for fit in plan if fit.name in wanted]
    if start is not None:
        first = plan.index(_named(plan, start)[0])
        chosen = [fit for fit in chosen if plan.index(fit) >= first]
    if not chosen:
        raise ValueError(f"no fit is left: only {only!r}, from {start!r}")
    return chosen


def _named(plan: list[Fit], name: str) -> list[Fit]:
    found = [fit for fit in plan if name in (fit.name, f"block{fit.block}", fit.stage)]
    if not found:
        blocks, stages = (
            list(dict.fromkeys(x)) for x in zip(*((f.block, f.stage) for f in plan), strict=True)
        )
        several = ", ".join([*(f"block{n}" for n in blocks), *stages])
        raise ValueError(
            f"{name!r} names no fit. There are {', '.join(fit.name for fit in plan)}; several at once: {several}"
        )
    return found


def _left_out(plan: list[Fit], chosen: list[Fit], start: str | None) -> list[Fit]:
    """The fits that are not run now, but whose modules those that are run read; and all before `start`."""
    before = [] if start is None else plan[: plan.index(_named(plan, start)[0])]
    needed = [early for fit in chosen for early in plan[: plan.index(fit)] if _reads(fit, early)]
    return [fit for fit in plan if fit not in chosen and fit in (*before, *needed)]


def _reads(fit: Fit, early: Fit) -> bool:
    """Whether a fit computes with what an earlier one has trained."""
    if fit.stage == "refinement":
        return False  # stage 1 trains every block by itself
    if early.block < fit.block:
        return True
    return early.block == fit.block and (early.stage != "refinement" or fit.stage == "finetune")


def _is_option(word: str) -> bool:
    """Whether a word of the command line names an option, and is no value such as -1."""
    return word.startswith("--") or word.partition("=")[0] == "-c"


def _options_of(stage: str, overrides: list[str]) -> list[str]:
    """The options of one stage's fits: first those of all, then its own."""
    common: list[str] = []
    own: list[str] = []
    target: list[str] = common
    for word in overrides:
        if _is_option(word):
            named, _, rest = word.removeprefix("--").partition(".")
            target = common
            if named in STAGES:
                target = own if named == stage else []
                word = f"--{rest}"
        target.append(word)
    return common + own


def _arguments(fit: Fit, directory: Path, overrides: list[str]) -> list[str]:
    args = ["fit", "--config", str(fit.config), *overrides]
    args += ["--model.init_args.model_dir", str(directory), "--model.init_args.block", str(fit.block)]
    last = _last(directory, fit)
    return [*args, "--ckpt_path", str(last)] if last.is_file() else args


def _last(directory: Path, fit: Fit) -> Path:
    """The checkpoint that an interrupted fit continues from."""
    return directory / "runs" / fit.name / "checkpoints" / "last.ckpt"


def _read_state(directory: Path) -> State:
    """Settings of the finished fits and of those that were started and not finished."""
    path = directory / STATE_FILE
    if not path.is_file():
        return {"finished": {}, "started": {}}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        state = {
            "finished": content["finished"],
            "started": content.get("started", {}),
        }  # older files lack it
        whole = all(isinstance(settings, dict) for fits in state.values() for settings in fits.values())
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(_broken(path)) from error
    if not whole:
        raise ValueError(_broken(path))
    return state


def _broken(path: Path) -> str:
    return (
        f'{path}: expected what `rpf curriculum` writes, {{"finished": {{name: settings}}, "started": ...}}. It is '
        "written whole or not at all, so it was changed by something else; put a whole one back"
    )


@rank_zero_only
def _note(directory: Path, state: State, kind: str, name: str, settings: Settings | None) -> None:
    """Write down that a fit was started or is finished; what another command noted meanwhile stays."""
    with locked(directory / LOCK):
        there = _read_state(directory) if (directory / STATE_FILE).is_file() else state
        there["started"].pop(name, None)
        if settings is not None:
            there[kind][name] = settings
        write_atomically(directory / STATE_FILE, (json.dumps(there, indent=2) + "\n").encode())


@rank_zero_only
def _clean(directory: Path, fit: Fit) -> None:
    """Remove what a kill in the middle of a write has left, but nothing of a fit that may run beside this one."""
    with locked(directory / LOCK):  # who writes into the directory itself holds it
        for pattern in (".*.*.tmp", f"runs/{fit.name}/checkpoints/.*.tmp"):
            for file in directory.glob(pattern):
                file.unlink(missing_ok=True)


@rank_zero_only
def _remove_cache(directory: Path) -> None:
    """Remove x^(n) of the last block: nothing is left that would read it."""
    shutil.rmtree(directory / "cache", ignore_errors=True)


def _settings(fit: Fit, overrides: list[str]) -> Settings:
    """Everything that a fit's result depends on, flat: its file, the overlays' contents, the options."""
    settings = _flatten(yaml.safe_load(fit.config.read_text()))
    name = ""
    for word in overrides:  # --name=value or --name value
        if _is_option(word):
            name, _, value = word.partition("=")
        else:
            value = word
        settings.pop(name, None)
        if name in ("--config", "-c") and Path(value).is_file():
            given = _flatten(yaml.safe_load(Path(value).read_text()))
        else:
            given = {name: value}
        settings = {**{k: v for k, v in settings.items() if k not in given}, **given}  # the last one acts
    return {**settings, **_data_hash(settings)}


def _data_hash(settings: Settings) -> Settings:
    """The content hash of the prepared folder that settings name, if it is there."""
    effective = _effective(settings)
    root = Path(str(effective.get("data.init_args.prepared") or effective.get("data.init_args.root", "")))
    return {DATA_HASH: read_summary(root)["sha256"]} if (root / SUMMARY).is_file() else {}


def _effective(settings: Settings) -> Settings:
    """Settings by the names that a file gives them; an option replaces its file's value."""
    effective = {}
    for name, value in settings.items():
        group, _, key = name.lstrip("-").partition(".")
        whole = key.split(".")[0] in ("", "class_path", "init_args", "dict_kwargs")
        if name.startswith("--") and group in ("model", "data") and not whole:
            key = f"init_args.{key}"  # LightningCLI's short form
        effective[f"{group}.{key}" if key else group] = value
    return effective


def _parsed(value: Any) -> Any:
    """What a file or the command line means by a text."""
    if not isinstance(value, str):
        return value
    try:
        # YAML 1.1 reads 1e-4 as text, LightningCLI as a number
        return float(value) if re.fullmatch(r"[-+]?[\d.]+[eE][-+]?\d+", value) else yaml.safe_load(value)
    except (ValueError, yaml.YAMLError):
        return value


def _flatten(value: Any, name: str = "") -> Settings:
    if isinstance(value, dict) and value:
        nested = (_flatten(inner, f"{name}.{key}" if name else str(key)) for key, inner in value.items())
        return {key: inner for part in nested for key, inner in part.items()}
    return {name: value} if name else {}


def _refuse_changes(fit: Fit, state: State, now: Settings, directory: Path) -> None:
    if fit.name in state["finished"]:
        before, what = state["finished"][fit.name], "was finished"
        remedy = "Use another --model_dir, or put the settings back"
    elif fit.name in state["started"] and _last(directory, fit).is_file():  # else it starts anew
        before, what = state["started"][fit.name], "was interrupted, and had been started"
        folder = directory / "runs" / fit.name
        remedy = f"Delete {folder} to train it from its beginning, or put the settings back"
    else:
        return
    then, now = ({k: _parsed(v) for k, v in _effective(given).items()} for given in (before, now))
    names = [name for name in sorted({*then, *now}) if not name.startswith(MOVABLE)]
    if DATA_HASH not in then or DATA_HASH not in now:  # not prepared yet, or noted by an older release
        names = [name for name in names if name != DATA_HASH]
    # as text: `limit_train_batches: 1` is a batch, 1.0 all of them
    changed = [name for name in names if repr(then.get(name)) != repr(now.get(name))]
    if changed:
        text = "\n".join(f"  {name}: {then.get(name)!r} then, {now.get(name)!r} now" for name in changed)
        raise ValueError(f"{fit.name} in {directory} {what} with other settings:\n{text}\n{remedy}")
