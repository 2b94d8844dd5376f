"""The `rpf` command: LightningCLI for single fits, and functions whose signatures are the command line.

What a function of `COMMANDS` takes before its `*` stands without a name; everything else is an option of the
parameter's name, type and default, explained by its docstring. Modules are imported only when they are asked for.
"""

from __future__ import annotations

import os
import re
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from io import TextIOWrapper
from typing import NamedTuple, NoReturn, TextIO

from rpf_lightning.errors import DamagedError, RefusedError, disk_trouble
from rpf_lightning.stopping import stoppable

BROKEN_PIPE = 141  # 128 + SIGPIPE, what shells report of a program that it ends


class Command(NamedTuple):
    """A function that is a command.

    Attributes:
        place: `module.function` below `rpf_lightning`.
        help: What it does, in a line.
        errors: What it raises for the user: a message without a traceback.
        config: Whether `--config` takes YAML files with its options.
        takes_more: Whether it takes options of others as words.
        goes_on: How to go on after a stop, in a line.
    """

    place: str
    help: str
    errors: tuple[type[Exception], ...] = (OSError, ValueError, RuntimeError)
    config: bool = False
    takes_more: bool = False
    goes_on: str = ""


SAME = "the same command continues"
# what a fit raises else keeps its traceback
FIT_ERRORS = (RefusedError, DamagedError, FileNotFoundError, FileExistsError)
LIGHTNING = {
    "fit": "train one stage of one block (LightningCLI)",
    "validate": "validate one stage on the validation pairs (LightningCLI)",
    "test": "the same on the test pairs (LightningCLI)",
    "predict": "write a stage's outputs as PNG (LightningCLI)",
}
COMMANDS = {
    "curriculum": Command(
        "commands.curriculum",
        "run all fits of a model in order; goes on where it stopped",
        FIT_ERRORS,
        takes_more=True,
        goes_on=SAME,
    ),
    "presets": Command("presets.list_presets", "list the configurations that come with the package"),
    "prepare celeba-hq": Command(
        "commands.prepare_celeba_hq", "turn the raw CelebA-HQ release into reference pairs", goes_on=SAME
    ),
    "prepare faces": Command(
        "commands.prepare_faces", "turn any folder of photos into reference pairs", goes_on=SAME
    ),
    "prepare verify": Command(
        "commands.prepare_verify", "check a prepared folder and its photos against their hashes"
    ),
    "enhance": Command("commands.enhance", "sharpen a small face in a photo with a portrait", goes_on=SAME),
    "evaluate": Command(
        "evaluation.evaluating.evaluate",
        "compare models, baselines and folders of images",
        (OSError, ValueError),
        config=True,
        goes_on=SAME,
    ),
    "figure": Command("commands.figure", "draw one of the paper's figures as a PNG", (OSError, ValueError)),
    "export": Command(
        "commands.export",
        "write a model as ONNX or as a torch.export program",
        (OSError, ValueError, RuntimeError, ImportError),
    ),
    "summary": Command("model.summary.summary", "print a network's parameters and operations"),
}
# options of version 0.1 -> what is there instead
REPLACED = {
    "--csv": "rpf enhance --aligned --csv LIST --model_dir DIR --out FOLDER",
    "--isc_pack": "--pack",
    "--landmarks": "--landmark_model",
    "--lr_side": "--lr_size",
    "--model": "--model_dir",
    "--workers": "--num_workers",
}


def main(args: list[str] | None = None) -> None:
    """Run `rpf`.

    Args:
        args: The command line after `rpf`; None takes the process's.

    Raises:
        SystemExit: After a message on stderr, if an argument is wrong or the command cannot do it; quietly with 141,
            as of other programs, if who reads the output stops reading, as `head` does.
    """
    try:
        try:
            _main(args)
        finally:
            print(end="", flush=True)  # not at the interpreter's end, which would write about it
    except BrokenPipeError:
        if not (left := [stream for stream in (sys.stdout, sys.stderr) if _reader_left(stream)]):
            raise  # of another pipe, such as one to a process that loads images
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in left:
            os.dup2(nowhere, stream.fileno())
        sys.exit(BROKEN_PIPE)


def _reader_left(stream: TextIO) -> bool:
    """Whether a stream is a pipe that no one reads any more; False where the system does not tell."""
    if not hasattr(select, "poll") or not isinstance(stream, TextIOWrapper):
        return False
    poll = select.poll()
    poll.register(stream.fileno(), 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _main(args: list[str] | None) -> None:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a console may lack letters of a file's name
            stream.reconfigure(errors="backslashreplace")
    # in names of options - and _ are the same
    words = [
        re.sub("^--[^=]+", lambda name: "--" + name[0][2:].replace("-", "_"), word)
        for word in (sys.argv[1:] if args is None else args)
    ]
    name = next((name for name in (" ".join(words[:2]), *words[:1]) if name in COMMANDS), None)
    if name is not None:
        with stoppable(f"rpf {name}", COMMANDS[name].goes_on):
            _run(name, words[1 + name.count(" ") :])
    elif words and words[0] in LIGHTNING:
        if words[0] == "predict" and any(word.partition("=")[0] == "--csv" for word in words):
            _fail("rpf predict", f"--csv is {REPLACED['--csv']} now")
        prog, goes_on = f"rpf {words[0]}", f"with --ckpt_path last {SAME}" if words[0] == "fit" else ""
        with stoppable(prog, goes_on), _told(prog, FIT_ERRORS):
            from rpf_lightning.training import lightning_cli

            lightning_cli(words)
    elif words == ["--version"]:
        from rpf_lightning import __version__

        print(f"rpf {__version__}")
    else:
        _list(words)


def _run(name: str, words: list[str]) -> None:
    from rpf_lightning.command_options import parser_of, read

    command = COMMANDS[name]
    module, _, function = command.place.rpartition(".")
    call = getattr(import_module(f"rpf_lightning.{module}"), function)
    parser = parser_of(call, f"rpf {name}", command.help, command.config)
    more, given = read(parser, words, command.takes_more, REPLACED)
    with _told(f"rpf {name}", command.errors):
        call(*more, **given)


@contextmanager
def _told(prog: str, errors: tuple[type[Exception], ...]) -> Iterator[None]:
    """Tell these errors, and those of the disk, in a line."""
    try:
        yield
    except BrokenPipeError:
        raise  # of `main`
    except Exception as error:
        text = disk_trouble(error) or (str(error) if isinstance(error, errors) else None)
        if text is None:
            raise
        _fail(prog, text)


def _list(words: list[str]) -> None:
    """Print the commands, or those of `rpf prepare`; say what is wrong where it was not asked for."""
    group = "prepare " if words[:1] == ["prepare"] else ""
    rest = words[1:] if group else words
    names = {**LIGHTNING, **{name: command.help for name, command in COMMANDS.items()}}
    lines = [
        f"    {name.removeprefix(group):<18} {text}" for name, text in names.items() if name.startswith(group)
    ]
    if rest[:1] in (["--help"], ["-h"]):
        options = [] if group else ["", "    --version          print the version"]
        head = [f"usage: rpf {group}COMMAND ...", ""]
        print("\n".join([*head, *lines, *options, "", "rpf COMMAND --help has its options."]))
        return
    expected = ", ".join(name.removeprefix(group) for name in names if name.startswith(group))
    got = rest[0] if rest else "none"
    _fail(f"rpf {group}".strip(), f"expected a command first, got {got}: one of {expected}")


def _fail(prog: str, message: str) -> NoReturn:
    print(f"{prog}: error: {message}", file=sys.stderr)
    sys.exit(2)
