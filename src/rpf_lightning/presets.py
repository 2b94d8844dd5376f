"""The configurations that come with the package, and the `base:` line by which one builds on another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser, get_loader, set_loader

_INSTALLED, _CHECKOUT = Path(__file__).parent / "configs", Path(__file__).parents[2] / "configs"
FOLDER = _INSTALLED if _INSTALLED.is_dir() else _CHECKOUT
"""Where the presets are: within the package, or `configs/` of a source checkout."""

MOST_VALUES, DEEPEST = 100_000, 100


def resolve(path: str | Path) -> Path:
    """Find a configuration: a file here, or else a preset, ``small/warping.yaml`` or ``configs/small/warping.yaml``.

    Raises:
        FileNotFoundError: If it is neither.
    """
    path = Path(path)
    if path.is_file():
        return path
    preset = FOLDER.joinpath(*path.parts[path.parts[:1] == ("configs",) :])
    if preset.is_file():
        return preset
    raise FileNotFoundError(f"{path}: there is no such file, and no preset of that name; see `rpf presets`")


def read(path: str | Path) -> dict[str, Any]:
    """Read a configuration, on top of the file beside it that its `base:` names, which may have a base as well.

    Mappings are merged; lists and values replace those of the base.

    Args:
        path: As `resolve` takes it.

    Raises:
        FileNotFoundError: If it or its base is missing.
        ValueError: If one of them is no YAML mapping, or its own base.
    """
    return _read(resolve(path), ())


def list_presets() -> None:
    """Print every curriculum and every evaluation, with the first line of its comment."""
    files = [file for file in sorted(FOLDER.rglob("*.yaml")) if {"network", "out"} & read(file).keys()]
    names = [file.relative_to(FOLDER).as_posix() for file in files]
    for name, file in zip(names, files, strict=True):
        comment = file.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
        print(f"{name:{max(map(len, names))}}  {comment}")


def bounded(content: Any) -> Any:
    """Give parsed YAML back, if it is of a size that a configuration may have.

    A few lines of nested anchors can stand for more values than any memory holds: whoever copies them writes them out.

    Raises:
        ValueError: If it stands for more than `MOST_VALUES` values, or is nested more than `DEEPEST`.
    """
    count, rest = 0, [(content, 0)]
    while rest:
        value, depth = rest.pop()
        count += 1
        if count > MOST_VALUES or depth > DEEPEST:
            raise ValueError(
                f"expected a configuration of {MOST_VALUES:,} values and {DEEPEST} levels at most; nested anchors "
                "(&, *) may stand for more than they look"
            )
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        rest += [(one, depth + 1) for one in inner]
    return content


def _bounded_yaml(text: str) -> Any:
    try:
        return bounded(_load_yaml(text))
    except (ValueError, RecursionError) as error:
        raise yaml.YAMLError(str(error)) from error


# files that an option names by itself (`--trainer FILE`) are read by jsonargparse
_load_yaml = get_loader("yaml")
set_loader("yaml", _bounded_yaml, exceptions=(yaml.YAMLError,))


class ConfigFile(ActionConfigFile):
    """`--config FILE` of a jsonargparse parser, with presets and their bases."""

    def __call__(
        self, parser: ArgumentParser, cfg: Any, values: Any, option_string: str | None = None
    ) -> None:
        """Put what the file says into the parser's namespace."""
        try:
            content = yaml.safe_dump(read(values), sort_keys=False)
        except (OSError, ValueError) as error:
            parser.error(f"--config: {error}")
        super().__call__(parser, cfg, content, option_string)


def _read(file: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    try:
        content = bounded(yaml.safe_load(file.read_text(encoding="utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: expected YAML: {error}") from error
    except RecursionError as error:
        raise ValueError(f"{file}: nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file}: expected a mapping, got {type(content).__name__}")
    if "base" not in content:
        return content
    base = file.parent / str(content.pop("base"))
    if not base.is_file():
        raise FileNotFoundError(f"{file}: base: there is no {base}")
    if base.resolve() in (file.resolve(), *above):
        raise ValueError(f"{file}: base: {base} builds on this file")
    return _merged(_read(base, (*above, file.resolve())), content)


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = {**base, **over}
    for key in base.keys() & over.keys():
        if isinstance(base[key], dict) and isinstance(over[key], dict):
            merged[key] = _merged(base[key], over[key])
    return merged
