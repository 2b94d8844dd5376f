"""What a `curriculum.yaml` says: its fits in order, their names, and which of them rest on which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from rpf_lightning import presets
from rpf_lightning.fit_settings import flatten, word
from rpf_lightning.model import RPFConfig, RPFModel
from rpf_lightning.stages.roles import ROLES

STAGES = ("refinement", "warping", "synthesis", "finetune")
JOINT = "joint"
KINDS = {"model_dir": str, "network": dict, "seed": int, "initial": str | None}


@dataclass(frozen=True)
class Curriculum:
    """The contents of a `curriculum.yaml`: either `fits`, or one file per stage for the paper's order.

    Attributes:
        model_dir: The model directory that every fit reads and writes.
        network: Arguments of `RPFConfig`.
        refinement: Configuration of stage 1, a file beside this one.
        warping: Configuration of the warping fits.
        synthesis: Configuration of the synthesis fits.
        finetune: Configuration of stage 3; None leaves it out.
        seed: Seed of the model's initial weights; fits take theirs from their own files.
        fits: The fits in order, each a mapping: `stage`; `block`, or `first` and `last` of a joint fit; `file` beside
            this one; `options` for this fit alone, a list of words or a mapping of names without ``--``.
        initial: Where the weights of a new model directory come from, as `RPFModel.from_pretrained` takes it; what
            `network` adds to that model starts anew. None: all do.
    """

    model_dir: str
    network: dict[str, Any]
    refinement: str | None = None
    warping: str | None = None
    synthesis: str | None = None
    finetune: str | None = None
    seed: int = 0
    fits: list[dict[str, Any]] | None = None
    initial: str | None = None


@dataclass(frozen=True)
class Fit:
    """One fit of a curriculum.

    Attributes:
        first: The first block that it trains, counted from 1.
        block: The last one; the same but in a joint fit.
        stage: Of `STAGES`, or ``"joint"``.
        config: Its LightningCLI configuration.
        options: Options that the curriculum adds to it.
    """

    first: int
    block: int
    stage: str
    config: Path
    options: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Key in the state file and name of the run folder."""
        return ROLES[self.stage].fit_name(self.first, self.block)

    @property
    def title(self) -> str:
        """Beginning of its lines."""
        blocks = f"block {self.block}" if self.first == self.block else f"blocks {self.first}-{self.block}"
        return f"{blocks}  {self.stage}"

    @property
    def blocks(self) -> range:
        """The blocks that it trains."""
        return range(self.first, self.block + 1)

    @property
    def trained(self) -> set[tuple[int, str]]:
        """The modules that it trains, by block and name."""
        return ROLES[self.stage].trained(self.first, self.block)

    @property
    def frozen(self) -> set[tuple[int, str]]:
        """The modules that it computes with and does not train, by block and name."""
        return ROLES[self.stage].frozen(self.first, self.block)

    def rests_on(self, early: Fit) -> bool:
        """Whether it computes with, or goes on from, what an earlier fit has trained."""
        return bool((self.trained | self.frozen) & early.trained)


def read_curriculum(path: str | Path) -> tuple[Curriculum, list[Fit]]:
    """Read a curriculum, a file or a preset, and list its fits in order.

    Raises:
        FileNotFoundError: If it, or a file that it names, is missing.
        ValueError: If a key is missing or unknown, if it has both or neither of `fits` and the stages' files, or if a
            fit is listed that the network cannot have.
    """
    path = presets.resolve(path)
    content = presets.read(path)
    known = {field.name for field in fields(Curriculum)}
    listed = "fits" in content
    required = {"model_dir", "network", *(["fits"] if listed else STAGES[:3])}
    if set(content) - known or required - set(content):
        raise ValueError(
            f"{path}: expected the keys {sorted(required)} and at most {sorted(known)}, got {sorted(content)}"
        )
    if listed and (files := [stage for stage in STAGES if stage in content]):
        raise ValueError(
            f"{path}: expected either fits, which names every fit's file, or the files of the stages; got fits and "
            f"{', '.join(files)}"
        )
    for name, kind in KINDS.items():
        if name in content and not isinstance(content[name], kind):
            expected = getattr(kind, "__name__", kind)
            raise ValueError(f"{path}: {name}: expected {expected}, got {content[name]!r}")
    curriculum = Curriculum(**content)
    try:
        count = len(on_meta(curriculum.network).blocks)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: network: {error}") from error
    plan = _listed(path, curriculum.fits if listed else _in_the_papers_order(curriculum, count), count)
    for fit in plan:
        if not fit.config.is_file():
            raise FileNotFoundError(f"{path}: {fit.stage} names {fit.config}, which is not there")
    return curriculum, plan


def on_meta(network: dict[str, Any]) -> RPFModel:
    """Build a network of shapes only."""
    with torch.device("meta"):
        return RPFModel(RPFConfig(**network))


def named(plan: list[Fit], name: str) -> list[Fit]:
    """The fits that a name means: one fit, all of a block, or all of a stage. A joint fit is each of its blocks'.

    Raises:
        ValueError: If it means none.
    """
    found = [fit for fit in plan if name in (fit.name, fit.stage, *(f"block{n}" for n in fit.blocks))]
    if not found:
        several = [f"block{n}" for n in sorted({n for fit in plan for n in fit.blocks})]
        several += dict.fromkeys(fit.stage for fit in plan)
        raise ValueError(
            f"{name!r} names no fit. There are {', '.join(fit.name for fit in plan)}; several at once: "
            f"{', '.join(several)}"
        )
    return found


def choose(plan: list[Fit], only: str | Sequence[str] | None, start: str | None) -> list[Fit]:
    """The fits to run, in the plan's order.

    Raises:
        ValueError: If a name means no fit, or if none is left.
    """
    chosen = plan if start is None else plan[plan.index(named(plan, start)[0]) :]
    if only is not None:
        names = ",".join([only] if isinstance(only, str) else only).split(",")
        wanted = [fit for name in names if name for fit in named(plan, name)]
        chosen = [fit for fit in chosen if fit in wanted]
    if not chosen:
        raise ValueError(f"no fit is left: only {only!r}, from {start!r}")
    return chosen


def left_out(plan: list[Fit], chosen: list[Fit], start: str | None) -> list[Fit]:
    """The fits that are not run now, but on which those that are run rest; and all before `start`."""
    before = [] if start is None else plan[: plan.index(named(plan, start)[0])]
    needed = [early for fit in chosen for early in plan[: plan.index(fit)] if fit.rests_on(early)]
    return [fit for fit in plan if fit not in chosen and fit in (*before, *needed)]


def _in_the_papers_order(curriculum: Curriculum, count: int) -> list[dict[str, Any]]:
    """Stage 1 of all blocks, then the other stages block by block."""
    stages = ["warping", "synthesis"] + (["finetune"] if curriculum.finetune else [])
    blocks = range(1, count + 1)
    order = [(n, "refinement") for n in blocks] + [(n, stage) for n in blocks for stage in stages]
    return [{"stage": stage, "block": n, "file": getattr(curriculum, stage)} for n, stage in order]


def _listed(path: Path, entries: Any, count: int) -> list[Fit]:
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{path}: fits: expected a list of fits, got {entries!r}")
    plan: list[Fit] = []
    for number, entry in enumerate(entries, start=1):
        where = f"{path}: fits, entry {number}"
        if not isinstance(entry, dict):
            raise ValueError(f"{where}: expected a mapping with stage, block and file, got {entry!r}")
        fit = _entry(where, entry, path.parent, count)
        if fit.name in [other.name for other in plan]:
            raise ValueError(f"{where}: {fit.name} is listed before; every fit is there once")
        plan.append(fit)
    return plan


def _entry(where: str, entry: dict[str, Any], folder: Path, count: int) -> Fit:
    stage, file = entry.get("stage"), entry.get("file")
    if stage not in (*STAGES, JOINT):
        raise ValueError(f"{where}: stage: expected one of {', '.join((*STAGES, JOINT))}, got {stage!r}")
    places = ("first", "last") if stage == JOINT else ("block",)
    required = {"stage", "file", *places}
    if required - set(entry) or set(entry) - required - {"options"}:
        raise ValueError(
            f"{where}: expected the keys {', '.join(('stage', *places, 'file'))} and perhaps options of a {stage} "
            f"fit, got {', '.join(map(str, entry))}"
        )
    first, block = entry[places[0]], entry[places[-1]]
    if not all(type(n) is int for n in (first, block)) or not 1 <= first <= block <= count:
        got = ", ".join(f"{place} {entry[place]!r}" for place in places)
        raise ValueError(f"{where}: expected blocks in order among 1 .. {count}, got {got}")
    if not isinstance(file, str):
        raise ValueError(f"{where}: file: expected a name, got {file!r}")
    return Fit(first, block, stage, folder / file, _options(where, entry.get("options")))


def _options(where: str, given: Any) -> tuple[str, ...]:
    """Words of a command line."""
    if given is None:
        return ()
    if isinstance(given, dict):
        return tuple(part for name, value in flatten(given).items() for part in (f"--{name}", word(value)))
    if isinstance(given, list) and not any(isinstance(part, dict | list) for part in given):
        return tuple(map(word, given))
    raise ValueError(f"{where}: options: expected a list of words or a mapping, got {given!r}")
