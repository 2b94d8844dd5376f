"""What a fit's result depends on: its parsed configuration, flat, and what has changed in it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from rpf_lightning.data.preparation.prepared_folder import SUMMARY, read_summary
from rpf_lightning.training import read_fit

Settings = dict[str, Any]
DATA_HASH = "data.sha256"  # of a prepared folder, beside a fit's own settings
FREEZING = "FreezeEarlierBlocks"  # every stage brings it; files of old list it
# what may change between two starts: where the data lie, and what it runs on
MOVABLE = (
    *(f"data.init_args.{name}." for name in (
        "root", "prepared", "images", "mapping", "identities", "partition", "landmarks", "labels", "cache_dir",
        "num_workers",
    )),
    "model.init_args.model_dir.", "model.init_args.first.", "model.init_args.block.",  # the curriculum names them
    "trainer.accelerator.", "trainer.devices.", "trainer.num_nodes.", "trainer.strategy.", "trainer.logger.",
    "trainer.enable_", "ckpt_path.", "weights_only.",
)  # fmt: skip


def options_of(stage: str, overrides: Sequence[str], stages: Iterable[str]) -> list[str]:
    """The options of one stage's fits: first those of all, then its own.

    Args:
        stage: The stage.
        overrides: Options of a command line; a stage's own have its name in front, ``--warping.trainer...``.
        stages: Names of all stages.
    """
    common: list[str] = []
    own: list[str] = []
    target = common
    for word in overrides:
        if word.startswith("--") or word.partition("=")[0] == "-c":  # no value such as -1
            name, _, rest = word.removeprefix("--").partition(".")
            target = common
            if name in stages:
                target = own if name == stage else []
                word = f"--{rest}"
        target.append(word)
    return common + own


def settings_of(parsed: dict[str, Any]) -> Settings:
    """Everything that a fit's result depends on, flat: what `read_fit` gave, and the content hash of its data."""
    named = _with_public_paths(parsed)
    given = named["trainer"]["callbacks"] or []
    callbacks = given if isinstance(given, list) else [given]
    others = [callback for callback in callbacks if not callback["class_path"].endswith(f".{FREEZING}")]
    named["trainer"]["callbacks"] = others or None
    settings = {name: value for name, value in flatten(named).items() if not _movable(name)}
    return {**settings, **data_hash(parsed)}


def data_hash(parsed: dict[str, Any]) -> Settings:
    """The content hash of the prepared folder that a fit reads, if it is there."""
    data = parsed["data"].get("init_args", {})
    root = Path(data.get("prepared") or data.get("root") or "")
    return {DATA_HASH: read_summary(root)["sha256"]} if (root / SUMMARY).is_file() else {}


def differences(before: Settings, parsed: dict[str, Any]) -> list[str]:
    """One line for every setting that differs in what it means, but for what may differ.

    Args:
        before: Settings that were noted, by an older release perhaps: words of a command line, without defaults.
        parsed: What `read_fit` gives now.
    """
    now = settings_of(parsed)
    then = before if before == now else _read_again(before, parsed)
    names = sorted({*then, *now})
    if DATA_HASH not in then or DATA_HASH not in now:  # not prepared yet, or noted by an older release
        names = [name for name in names if name != DATA_HASH]
    # as text: `limit_train_batches: 1` is a batch, 1.0 all of them
    changed = [name for name in names if repr(then.get(name)) != repr(now.get(name))]
    return [f"{name}: {then.get(name)!r} then, {now.get(name)!r} now" for name in changed]


def flatten(value: Any, name: str = "") -> Settings:
    """Nested mappings as one, with dotted names."""
    if isinstance(value, dict) and value:
        nested = (flatten(inner, f"{name}.{key}" if name else str(key)) for key, inner in value.items())
        return {key: inner for part in nested for key, inner in part.items()}
    return {name: value} if name else {}


def word(value: Any) -> str:
    """A value as a command line has it."""
    return value if isinstance(value, str) else json.dumps(value)


def _movable(name: str) -> bool:
    return f"{name}.".startswith(MOVABLE)


def _read_again(before: Settings, parsed: dict[str, Any]) -> Settings:
    """Noted settings with today's names, types and defaults."""
    places = [
        (name, value) for name, value in flatten(parsed).items() if _movable(name) and value is not None
    ]
    given = [*before.items(), *(place for place in places if place[0].startswith(("model", "data")))]
    words = [f"--{name.lstrip('-')}={word(value)}" for name, value in given if name != DATA_HASH]
    try:
        then = settings_of(read_fit(words))
    except ValueError:  # of a class or an option that is no more: as they stand
        return before
    then.pop(DATA_HASH, None)  # it is that of today's data
    return {**then, DATA_HASH: before[DATA_HASH]} if DATA_HASH in before else then


def _with_public_paths(value: Any) -> Any:
    """A copy in which classes have the shortest of their import paths, whichever was given."""
    if isinstance(value, list):
        return [_with_public_paths(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    copy = {key: _with_public_paths(inner) for key, inner in value.items()}
    if isinstance(copy.get("class_path"), str):
        module, _, name = copy["class_path"].rpartition(".")
        member = getattr(import_module(module), name)
        packages = [module[:end] for end, letter in enumerate(f"{module}.") if letter == "."]
        shortest = next(p for p in packages if getattr(sys.modules[p], name, None) is member)
        copy["class_path"] = f"{shortest}.{name}"
    return copy
