"""How a function becomes a command: its signature and its docstring are the options and their help."""

from __future__ import annotations

import json
from argparse import SUPPRESS, Action
from collections.abc import Callable, Sequence
from inspect import Parameter, signature
from typing import Any, get_args, get_type_hints

from jsonargparse import ArgumentParser, DefaultHelpFormatter

from rpf_lightning.presets import ConfigFile


class OptionLines(DefaultHelpFormatter):
    """Help with a line per option: what it does, and its default where that says something."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32)

    def _get_help_string(self, action: Action) -> str:
        text = action.help or ""
        if action.required:
            return f"{text} (required)"
        silent = isinstance(action.default, bool) or action.default in (None, "", SUPPRESS)
        told = not silent and bool(action.option_strings)
        return f"{text} (default: %(default)s)" if told else text

    def _format_action_invocation(self, action: Action) -> str:
        option = action.option_strings[0] if action.option_strings else ""
        if _is(action, bool):
            return f"--no_{option[2:]}" if action.default is True else option
        if _is(action, list[str]):
            return f"{option.removesuffix('s')} {action.dest.removesuffix('s').upper()}"
        if "+" in "".join(action.option_strings):
            return f"{option} {self._format_args(action, self._get_default_metavar_for_optional(action))}"
        return super()._format_action_invocation(action)


def parser_of(function: Callable[..., Any], prog: str, description: str, config: bool) -> ArgumentParser:
    """Make the parser of a function: parameters before the `*` have no option, the others are options.

    A name that ends in `_`, as a keyword of Python needs it, is an option without that.

    Args:
        function: With types and a docstring in Google style.
        prog: What it is called by.
        description: One line.
        config: Whether `--config` names YAML files with its options.
    """
    parser = ArgumentParser(prog=prog, description=description, formatter_class=OptionLines)
    if config:
        parser.add_argument("--config", action=ConfigFile, help="a YAML file with options of this command")
    places = [p for p in signature(function).parameters.values() if p.kind is Parameter.POSITIONAL_OR_KEYWORD]
    optional = [place.name for place in places if place.default is not Parameter.empty]
    if optional:  # jsonargparse would make options of them; it has read their help
        options = ArgumentParser()
        options.add_function_arguments(function, as_group=False)
        texts = {action.dest: action.help for action in options._actions}
        for name in optional:
            hint = get_type_hints(function)[name]
            several = list[str] in get_args(hint)
            kind = str if several else hint
            parser.add_argument(name, nargs="*" if several else "?", type=kind, help=texts[name])
    parser.add_function_arguments(function, as_group=False, as_positional=True, skip=set(optional))
    for action in parser._actions:
        if action.dest.endswith("_"):
            action.option_strings = [f"--{action.dest[:-1]}"]
            action.metavar = action.dest[:-1].upper()
            parser._option_string_actions[action.option_strings[0]] = action
    shown = [f"[{place.name}]" if place.name in optional else place.name for place in places]
    parser.usage = " ".join([prog, *shown, "[options]"])
    return parser


def read(
    parser: ArgumentParser, words: Sequence[str], takes_more: bool, replaced: dict[str, str]
) -> tuple[list[str], dict[str, Any]]:
    """Parse the words of a command.

    Args:
        parser: What `parser_of` gave.
        words: The command line after its name; in names of options `-` is `_`.
        takes_more: Whether options that it does not know are no error.
        replaced: Options that there were -> what is there now, for the message.

    Returns:
        What it does not know, with its values, and the arguments that were given, without defaults.

    Raises:
        SystemExit: After a message on stderr, if an argument is wrong.
    """
    plain, more = _plain(parser, words)
    if more and not takes_more:
        option = more[0].partition("=")[0]
        now = f"; it is {replaced[option]} now" if option in replaced else ""
        parser.error(f"unrecognized arguments: {' '.join(more)}{now}")
    given = parser.instantiate(parser.parse_args(plain, defaults=False)).as_dict()
    given.pop("config", None)
    return more, given


def _is(action: Action | None, kind: object) -> bool:
    hint = getattr(action, "_typehint", None)
    return kind in (hint, *get_args(hint))


def _plain(parser: ArgumentParser, words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Bring switches and lists into jsonargparse's form, and set aside what the parser does not know.

    `--x` is `--x=true` and `--no_x` is `--x=false`; `--names a b` and `--name a --name b` add to a list of texts.
    """
    known: dict[str, Action] = parser._option_string_actions
    plain: list[str] = []
    places: list[str] = []
    more: list[str] = []
    rest = list(words)

    def values(most: int | None = None) -> list[str]:
        count = next((i for i, word in enumerate(rest) if word.startswith("--")), len(rest))
        taken, rest[:] = rest[:count][:most], rest[min(count, most or count) :]
        return taken

    while rest:
        word = rest.pop(0)
        option, sign, value = word.partition("=")
        if not word.startswith("--"):
            places.append(word)
        elif _is(known.get(option), bool):
            if not sign and rest and rest[0] in ("true", "false", "null"):
                value = rest.pop(0)
            plain.append(f"{option}={value or 'true'}")
        elif _is(known.get(f"--{option[5:]}"), bool) and option.startswith("--no_") and not sign:
            plain.append(f"--{option[5:]}=false")
        elif _is(known.get(option), list[str]) or _is(known.get(f"{option}s"), list[str]):
            one = option not in known
            texts = [value] if sign else values(1 if one else None)
            plain += [f"{option}{'s' * one}+={json.dumps([text])}" for text in texts] or [option + "s" * one]
        elif option.removesuffix("+") in known or option.partition(".")[0] in known:
            plain.append("=".join([word, *([] if sign else values(1))]))
        else:
            more += [word, *values()]
    return [*plain, *places], more  # argparse takes the words of one list only side by side
