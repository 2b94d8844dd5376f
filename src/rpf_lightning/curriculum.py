"""`rpf curriculum`: all fits of a model on one model directory, in the paper's order (IV-B) or in a listed one.

In the paper's, stage 1 trains every block's refinement; stage 2 trains warping and synthesis from the coarsest block
to the finest; the optional stage 3, not in the paper, fine-tunes a block's refinement on its own synthesized images
before the next block is trained on its output.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NotRequired, TypedDict

from filelock import FileLock
from lightning import seed_everything
from lightning.pytorch.utilities import rank_zero_only

from rpf_lightning.curriculum_file import (
    JOINT,
    STAGES,
    Curriculum,
    Fit,
    choose,
    left_out,
    on_meta,
    read_curriculum,
)
from rpf_lightning.fit_settings import Settings, data_hash, differences, options_of, settings_of
from rpf_lightning.model import RPFModel
from rpf_lightning.model.storage import CONFIG_FILE, weights_hash, write_atomically
from rpf_lightning.planning import fit_costs
from rpf_lightning.stages.model_dir import LOCK, open_model
from rpf_lightning.training import lightning_cli

STATE_FILE = "state.json"


class State(TypedDict):
    """The contents of `state.json`.

    Attributes:
        finished: Settings of the fits that are finished, by name.
        started: Settings of those that were started and are not finished.
        initial: Name and SHA-256 of the weights that the model started from, if it did not start from nothing.
    """

    finished: dict[str, Settings]
    started: dict[str, Settings]
    initial: NotRequired[dict[str, str]]


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
        only: Run only these fits, in the plan's order: ``"block2-warping"``, ``"joint1-2"``, ``"block2"`` (all fits
            that train it) or ``"warping"`` (of all blocks); several as a list or with commas.
        start: Begin at this fit, or at the first that this name fits, as in `only`.

    Returns:
        The model directory.

    Raises:
        FileNotFoundError: If the curriculum, or a file that it names, is missing.
        ValueError: If finished or interrupted fits among those to run had other settings (the difference is
            shown), if a listed fit would be trained under later ones that are there already, if the model was started
            from another `initial`, if `only` or `start` names no fit, or if a file is broken.
    """
    say = rank_zero_only(say)  # with several processes each runs all of this
    curriculum, plan = read_curriculum(path)
    directory = Path(model_dir or curriculum.model_dir)
    chosen = choose(plan, only, start)
    options = {
        fit.name: [*fit.options, *options_of(fit.stage, overrides or [], (*STAGES, JOINT))] for fit in chosen
    }
    state = _read_state(directory)
    if missing := [fit.name for fit in left_out(plan, chosen, start) if fit.name not in state["finished"]]:
        say(f"not finished, their modules are taken as they are in {directory}: {', '.join(missing)}")
    if dry_run:
        _say_plan(curriculum, chosen, lambda fit: _arguments(fit, directory, options[fit.name]), state, say)
        return directory
    settings = {fit.name: settings_of(fit.config, options[fit.name]) for fit in chosen}
    for fit in chosen:
        _refuse_changes(fit, state, settings[fit.name], directory)
        if curriculum.fits is not None:  # else the fits of a block may run in any order, at one's own risk
            _refuse_repeat(fit, plan, state, directory)
    seed_everything(curriculum.seed, verbose=False)
    _open(directory, curriculum, state)
    # decided once, and alike in all processes: another command may note fits meanwhile
    finished = set(state["finished"])
    for number, fit in enumerate(plan, start=1):
        if fit not in chosen:
            continue
        head = f"[{number}/{len(plan)}] {fit.title}"
        if fit.name in finished:
            say(f"{head}: finished before")
            continue
        _clean(directory, fit)
        _note(directory, state, "started", fit.name, settings[fit.name])
        arguments = _arguments(fit, directory, options[fit.name])
        say(f"{head}: rpf {' '.join(arguments)}")
        cli = lightning_cli(arguments)
        if cli is not None and cli.trainer.fast_dev_run:  # type: ignore[attr-defined]
            _note(directory, state, "started", fit.name, None)
            continue  # a try, of which nothing was written
        # the fit may have prepared the data
        done = {**settings[fit.name], **data_hash(settings[fit.name])}
        state["finished"][fit.name] = done
        _note(directory, state, "finished", fit.name, done)
    if all(fit.name in state["finished"] for fit in plan):
        _remove_cache(directory)
    return directory


def _say_plan(
    curriculum: Curriculum,
    fits: list[Fit],
    arguments: Callable[[Fit], list[str]],
    state: State,
    say: Callable[[str], None],
) -> None:
    """Print a line for every fit, and what all of them take."""
    operations: list[float | None] = []
    for fit, cost in zip(fits, fit_costs(curriculum.network, fits, arguments), strict=True):
        say(f"{cost.line}  {'finished' if fit.name in state['finished'] else 'to do'}")
        operations.append(cost.flop)
    known = [flop for flop in operations if flop is not None]
    unknown = len(operations) - len(known)
    rest = f", and {unknown} fits whose number of samples is not known" if unknown else ""
    say(f"in all  {sum(known) / 1e15:.3g} PFLOP{rest}")


def _open(directory: Path, curriculum: Curriculum, state: State) -> None:
    """Make the model where there is none, and refuse another one.

    Raises:
        ValueError: If the directory holds a model of other arguments, or one that was not started from the curriculum's
            `initial`; if that has arguments that the curriculum does not name.
    """
    with FileLock(directory / LOCK):  # of several processes that start at once, one makes it
        noted = _read_state(directory)
        if not (directory / CONFIG_FILE).is_file():
            noted.pop("initial", None)  # of one that was killed before it wrote the model
            if curriculum.initial is not None:
                model = RPFModel.from_pretrained(curriculum.initial, **curriculum.network)
                wanted = on_meta(curriculum.network).config
                if other := {k: v for k, v in model.config.items() if v != wanted.get(k)}:
                    raise ValueError(
                        f"initial: {curriculum.initial} has arguments that network lacks ({other}); name them there"
                    )
                sha256 = weights_hash(model.state_dict())
                noted["initial"] = {"name": curriculum.initial, "sha256": sha256}
                _write_state(directory, noted)  # first, or a kill would leave a model of unknown origin
                model.save_pretrained(directory)
        elif (name := noted.get("initial", {}).get("name")) != curriculum.initial:
            raise ValueError(
                f"{directory} holds a model that was started from {name or 'nothing'}, and the curriculum's initial is "
                f"{curriculum.initial or 'not given'}. Use another --model_dir, or put initial back"
            )
    if "initial" in noted:
        state["initial"] = noted["initial"]
    open_model(directory, curriculum.network)


def _arguments(fit: Fit, directory: Path, overrides: list[str]) -> list[str]:
    args = ["fit", "--config", str(fit.config), *overrides]
    args += ["--model.init_args.model_dir", str(directory)]
    if fit.stage == JOINT:
        args += ["--model.init_args.first", str(fit.first)]
    args += ["--model.init_args.block", str(fit.block)]
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
        # older files lack the second
        state: State = {"finished": content["finished"], "started": content.get("started", {})}
        if "initial" in content:
            state["initial"] = content["initial"]
        fits = [*state["finished"].values(), *state["started"].values(), state.get("initial", {})]
        whole = all(isinstance(settings, dict) for settings in fits)
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
def _note(
    directory: Path, state: State, kind: Literal["finished", "started"], name: str, settings: Settings | None
) -> None:
    """Write down that a fit was started or is finished; what another command noted meanwhile stays."""
    with FileLock(directory / LOCK):
        there = _read_state(directory) if (directory / STATE_FILE).is_file() else state
        there["started"].pop(name, None)
        if settings is not None:
            there[kind][name] = settings
        _write_state(directory, there)


def _write_state(directory: Path, state: State) -> None:
    write_atomically(directory / STATE_FILE, (json.dumps(state, indent=2) + "\n").encode())


@rank_zero_only
def _clean(directory: Path, fit: Fit) -> None:
    """Remove what a kill in the middle of a write has left, but nothing of a fit that may run beside this one."""
    with FileLock(directory / LOCK):  # who writes into the directory itself holds it
        for pattern in (".*.*.tmp", f"runs/{fit.name}/checkpoints/.*.tmp"):
            for file in directory.glob(pattern):
                file.unlink(missing_ok=True)


@rank_zero_only
def _remove_cache(directory: Path) -> None:
    """Remove x^(n) of the last block: nothing is left that would read it."""
    shutil.rmtree(directory / "cache", ignore_errors=True)


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
    if changed := differences(before, now):
        text = "\n".join(f"  {line}" for line in changed)
        raise ValueError(f"{fit.name} in {directory} {what} with other settings:\n{text}\n{remedy}")


def _refuse_repeat(fit: Fit, plan: list[Fit], state: State, directory: Path) -> None:
    """Refuse to train what later fits were trained on."""
    if fit.name in state["finished"]:
        return
    later = [
        other.name
        for other in plan[plan.index(fit) + 1 :]
        if other.rests_on(fit)
        and (
            other.name in state["finished"]
            or (other.name in state["started"] and _last(directory, other).is_file())
        )
    ]
    if later:
        raise ValueError(
            f"{fit.name} is not finished in {directory}, but what rests on it is finished or has begun there: "
            f"{', '.join(later)}. Training {fit.name} now would change it under them. To train them all anew, delete "
            f"their folders in {directory / 'runs'} and their entries in {directory / STATE_FILE}; or use another "
            "--model_dir"
        )
