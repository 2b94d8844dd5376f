"""What the options of a fit mean: which of them go to it, what they add up to, and what has changed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from rpf_lightning.data.preparation.tables import SUMMARY, read_summary

Settings = dict[str, Any]
DATA_HASH = "data.sha256"  # of a prepared folder, beside a fit's own settings
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
    "model.init_args.model_dir",  # the curriculum names it, and the blocks
    "model.init_args.first",
    "model.init_args.block",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.strategy",
    "trainer.logger",
    "trainer.enable_",
)


def options_of(stage: str, overrides: Sequence[str], stages: Iterable[str]) -> list[str]:
    """The options of one stage's fits: first those of all, then its own.

    Args:
        stage: The stage.
        overrides: Options of a command line; a stage's own have its name in front, ``--warping.trainer...``.
        stages: Names of all stages.
    """
    common: list[str] = []
    own: list[str] = []
    target: list[str] = common
    for word in overrides:
        if _is_option(word):
            name, _, rest = word.removeprefix("--").partition(".")
            target = common
            if name in stages:
                target = own if name == stage else []
                word = f"--{rest}"
        target.append(word)
    return common + own


def settings_of(config: Path, options: Sequence[str]) -> Settings:
    """Everything that a fit's result depends on, flat: its file, the overlays' contents, the options."""
    settings = flatten(yaml.safe_load(config.read_text()))
    name = ""
    for word in options:  # --name=value or --name value
        if _is_option(word):
            name, _, value = word.partition("=")
        else:
            value = word
        settings.pop(name, None)
        if name in ("--config", "-c") and Path(value).is_file():
            given = flatten(yaml.safe_load(Path(value).read_text()))
        else:
            given = {name: value}
        settings = {**{k: v for k, v in settings.items() if k not in given}, **given}  # the last one acts
    return {**settings, **data_hash(settings)}


def data_hash(settings: Settings) -> Settings:
    """The content hash of the prepared folder that settings name, if it is there."""
    effective = _effective(settings)
    root = Path(str(effective.get("data.init_args.prepared") or effective.get("data.init_args.root", "")))
    return {DATA_HASH: read_summary(root)["sha256"]} if (root / SUMMARY).is_file() else {}


def differences(before: Settings, now: Settings) -> list[str]:
    """One line for every setting that differs in what it means, but for what may differ."""
    then, now = ({k: _parsed(v) for k, v in _effective(given).items()} for given in (before, now))
    names = [name for name in sorted({*then, *now}) if not name.startswith(MOVABLE)]
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


def _is_option(word: str) -> bool:
    """Whether a word of the command line names an option, and is no value such as -1."""
    return word.startswith("--") or word.partition("=")[0] == "-c"


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
