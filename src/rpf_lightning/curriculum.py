"""`rpf curriculum`: all fits of a model on one model directory, in the paper's order (IV-B) or in a listed one.

In the paper's, stage 1 trains every block's refinement; stage 2 trains warping and synthesis from the coarsest block
to the finest; the optional stage 3, not in the paper, fine-tunes a block's refinement on its own synthesized images
before the next block is trained on its output.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

from lightning import seed_everything
from lightning.pytorch.utilities import rank_zero_only

from rpf_lightning.curriculum_file import (
    JOINT,
    STAGES,
    Curriculum,
    Fit,
    choose,
    left_out,
    read_curriculum,
)
from rpf_lightning.environment import first_process
from rpf_lightning.errors import RefusedError
from rpf_lightning.files import locked, read_json, write_atomically
from rpf_lightning.fit_settings import Settings, data_hash, differences, options_of, settings_of
from rpf_lightning.model import RPFConfig, RPFModel
from rpf_lightning.model.storage import CONFIG_FILE, pretrained_names, weights_hash
from rpf_lightning.planning import plan_lines
from rpf_lightning.stages.model_dir import LOCK, open_model
from rpf_lightning.stages.sole_fit import sole_fit
from rpf_lightning.training import lightning_cli, read_fit

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
        path: A `curriculum.yaml`, or the name of a preset.
        overrides: Options for every fit, such as ``["--data.init_args.root", "photos"]`` or ``["--config",
            "configs/logger/wandb.yaml"]``.
        model_dir: Used in place of the file's.
        dry_run: Only print the plan, one line per fit, after all that would be refused; neither the data nor the model
            that `initial` names need be there.
        say: Takes the lines.
        only: Run only these fits, in the plan's order: ``"block2-warping"``, ``"joint1-2"``, ``"block2"`` (all fits
            that train it) or ``"warping"`` (of all blocks); several as a list or with commas.
        start: Begin at this fit, or at the first that this name fits, as in `only`.

    Returns:
        The model directory.

    Raises:
        FileNotFoundError: If the curriculum, or a file that it names, is missing.
        FileExistsError: If another process runs one of the fits on this directory.
        RefusedError: A ValueError, if finished or interrupted fits among those to run had other settings (the
            difference is shown), if a listed fit would be trained under later ones that are there already, if the
            model has other arguments or was started from another `initial`, if an option is unknown, if `only` or
            `start` names no fit, or if a file is broken.
    """
    say = rank_zero_only(say)  # with several processes each runs all of this
    with _refusing():
        curriculum, plan = read_curriculum(path)
        directory = Path(model_dir or curriculum.model_dir)
        chosen = choose(plan, only, start)
        state = _read_state(directory)
        arguments: dict[str, list[str]] = {}
        parsed: dict[str, dict[str, Any]] = {}
        for fit in chosen:
            arguments[fit.name] = _arguments(fit, directory, overrides or [])
            try:
                parsed[fit.name] = read_fit(arguments[fit.name])
            except ValueError as error:
                raise ValueError(f"{fit.name}, {fit.config} with the options given: {error}") from error
            _refuse_changes(fit, state, parsed[fit.name], directory)
            if curriculum.fits is not None:  # else a block's fits may run in any order, at one's own risk
                _refuse_repeat(fit, plan, state, directory)
    if missing := [fit.name for fit in left_out(plan, chosen, start) if fit.name not in state["finished"]]:
        say(f"not finished, their modules are taken as they are in {directory}: {', '.join(missing)}")
    if dry_run:
        with _refusing():
            _refuse_model(directory, curriculum)
        for line in plan_lines(curriculum.network, chosen, parsed, state["finished"]):
            say(line)
        return directory
    seed_everything(curriculum.seed, verbose=False)
    with _refusing():
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
        settings, last = settings_of(parsed[fit.name]), _last(directory, fit)
        trying = bool(parsed[fit.name]["trainer"]["fast_dev_run"])
        # the fit itself takes the lock again; told here, nothing is changed yet
        with nullcontext() if trying else _alone(directory, fit):
            _clean(directory)
            _note(directory, state, "started", fit.name, settings)
        words = ["fit", *arguments[fit.name], *(["--ckpt_path", str(last)] if last.is_file() else [])]
        say(f"{head}: rpf {' '.join(words)}")
        lightning_cli(words)
        if trying:
            _note(directory, state, "started", fit.name, None)
            continue  # a try, of which nothing was written
        done = {**settings, **data_hash(parsed[fit.name])}  # the fit may have prepared the data
        state["finished"][fit.name] = done
        _note(directory, state, "finished", fit.name, done)
    if all(fit.name in state["finished"] for fit in plan):
        # x^(n) of the last block: nothing is left that would read it
        rank_zero_only(shutil.rmtree)(directory / "cache", ignore_errors=True)
    return directory


@contextmanager
def _refusing() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise RefusedError(str(error)) from error


def _open(directory: Path, curriculum: Curriculum, state: State) -> None:
    """Make the model where there is none, and note where its weights come from; see `_refuse_model`."""
    with locked(directory / LOCK):  # of several processes that start at once, one makes it
        noted = _read_state(directory)
        if (directory / CONFIG_FILE).is_file():
            _refuse_start(directory, curriculum, noted)
        else:
            noted.pop("initial", None)  # of one that was killed before it wrote the model
            if curriculum.initial is not None:
                model = _initial_model(curriculum.initial, curriculum.network)
                sha256 = weights_hash(model.state_dict())
                noted["initial"] = {"name": curriculum.initial, "sha256": sha256}
                _write_state(directory, noted)  # first, or a kill would leave a model of unknown origin
                model.save_pretrained(directory)
    if "initial" in noted:
        state["initial"] = noted["initial"]
    open_model(directory, RPFConfig(**curriculum.network))


def _initial_model(name: str, network: dict[str, Any]) -> RPFModel:
    """Read the weights to start from; raise a ValueError if the curriculum names not all of their arguments."""
    model = RPFModel.from_pretrained(name, **network)
    differing = model.config.differences(RPFConfig(**network))
    if other := {name: there for name, (there, _) in differing.items()}:
        raise ValueError(f"initial: {name} has arguments that network lacks ({other}); name them there")
    return model


def _refuse_start(directory: Path, curriculum: Curriculum, noted: State) -> None:
    if (name := noted.get("initial", {}).get("name")) != curriculum.initial:
        raise ValueError(
            f"{directory} holds a model that was started from {name or 'nothing'}, and the curriculum's initial is "
            f"{curriculum.initial or 'not given'}. Use another --model_dir, or put initial back"
        )


def _refuse_model(directory: Path, curriculum: Curriculum) -> None:
    """Refuse the models that `_open` would refuse, as far as they are here; make nothing."""
    initial = curriculum.initial
    if (directory / CONFIG_FILE).is_file():
        _refuse_start(directory, curriculum, _read_state(directory))
        open_model(directory, RPFConfig(**curriculum.network))
    elif initial is not None and (Path(initial).is_dir() or initial in pretrained_names()):
        _initial_model(initial, curriculum.network)


def _arguments(fit: Fit, directory: Path, overrides: Sequence[str]) -> list[str]:
    """What follows `rpf fit`, but for the checkpoint."""
    args = ["--config", str(fit.config), *fit.options, *options_of(fit.stage, overrides, (*STAGES, JOINT))]
    args += ["--model.init_args.model_dir", str(directory)]
    if fit.stage == JOINT:
        args += ["--model.init_args.first", str(fit.first)]
    return [*args, "--model.init_args.block", str(fit.block)]


def _last(directory: Path, fit: Fit) -> Path:
    """The checkpoint that an interrupted fit continues from."""
    return directory / "runs" / fit.name / "checkpoints" / "last.ckpt"


def _read_state(directory: Path) -> State:
    path = directory / STATE_FILE
    if not path.is_file():
        return {"finished": {}, "started": {}}
    try:
        state: State = read_json(path)
        state.setdefault("started", {})  # older files lack it
        fits = [*state["finished"].values(), *state["started"].values(), state.get("initial", {})]
        whole = all(isinstance(settings, dict) for settings in fits)
    except (ValueError, TypeError, KeyError, AttributeError):
        whole = False
    if not whole:
        raise ValueError(
            f'{path}: expected what `rpf curriculum` writes, {{"finished": {{name: settings}}, "started": ...}}. It is '
            "written whole or not at all, so it was changed by something else; put a whole one back"
        )
    return state


@rank_zero_only
def _note(
    directory: Path, state: State, kind: Literal["finished", "started"], name: str, settings: Settings | None
) -> None:
    """Write down that a fit was started or is finished, or None: neither; what others noted meanwhile stays."""
    with locked(directory / LOCK):
        there = _read_state(directory) if (directory / STATE_FILE).is_file() else state
        there["started"].pop(name, None)
        if settings is not None:
            there[kind][name] = settings
        _write_state(directory, there)


def _write_state(directory: Path, state: State) -> None:
    write_atomically(directory / STATE_FILE, (json.dumps(state, indent=2) + "\n").encode())


def _alone(directory: Path, fit: Fit) -> AbstractContextManager[None]:
    """See `sole_fit`; the first of several processes speaks for all."""
    return sole_fit(directory / "runs" / fit.name) if first_process() else nullcontext()


@rank_zero_only
def _clean(directory: Path) -> None:
    """Remove what a kill in the middle of a write has left in the directory itself."""
    with locked(directory / LOCK):  # who writes there holds it
        for file in directory.glob(".*.*.tmp"):
            file.unlink(missing_ok=True)


def _begun(fit: Fit, state: State, directory: Path) -> bool:
    return fit.name in state["started"] and _last(directory, fit).is_file()


def _refuse_changes(fit: Fit, state: State, parsed: dict[str, Any], directory: Path) -> None:
    if fit.name in state["finished"]:
        before, what = state["finished"][fit.name], "was finished"
        remedy = "Use another --model_dir, or put the settings back"
    elif _begun(fit, state, directory):  # else it starts anew
        before, what = state["started"][fit.name], "was interrupted, and had been started"
        folder = directory / "runs" / fit.name
        remedy = f"Delete {folder} to train it from its beginning, or put the settings back"
    else:
        return
    if changed := differences(before, parsed):
        text = "\n".join(f"  {line}" for line in changed)
        raise ValueError(f"{fit.name} in {directory} {what} with other settings:\n{text}\n{remedy}")


def _refuse_repeat(fit: Fit, plan: list[Fit], state: State, directory: Path) -> None:
    """Refuse to train what later fits were trained on."""
    if fit.name in state["finished"]:
        return
    resting = [other for other in plan[plan.index(fit) + 1 :] if other.rests_on(fit)]
    if later := [
        other.name for other in resting if other.name in state["finished"] or _begun(other, state, directory)
    ]:
        raise ValueError(
            f"{fit.name} is not finished in {directory}, but what rests on it is finished or has begun there: "
            f"{', '.join(later)}. Training {fit.name} now would change it under them. To train them all anew, delete "
            f"their folders in {directory / 'runs'} and their entries in {directory / STATE_FILE}; or use another "
            "--model_dir"
        )
