"""The `rpf` command: every subcommand calls a function that a notebook can call as well."""

from __future__ import annotations

import argparse
import sys

LIGHTNING = {
    "fit": "train one stage of one block (LightningCLI)",
    "validate": "validate one stage on the validation pairs (LightningCLI)",
    "test": "the same on the test pairs (LightningCLI)",
    "predict": "write a stage's outputs as PNG (LightningCLI); --csv LIST: a whole model on listed images",
}


def main(args: list[str] | None = None) -> None:
    """Run `rpf`.

    Args:
        args: The command line after `rpf`; None takes the process's.
    """
    args = sys.argv[1:] if args is None else args
    if args and args[0] == "predict" and any(word.split("=")[0] == "--csv" for word in args):
        from rpf_lightning.predicting import main as predict

        predict(args[1:])
        return
    if args and args[0] in LIGHTNING:
        from rpf_lightning.training import lightning_cli

        lightning_cli(args)
        return
    parser = argparse.ArgumentParser("rpf", description="Reference-based progressive face super-resolution.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, text in LIGHTNING.items():
        commands.add_parser(name, help=text)
    _add_curriculum(commands)
    commands.add_parser("prepare", help="turn photos into hashed reference pairs", add_help=False)
    commands.add_parser("enhance", help="sharpen a small face in a photo with a portrait", add_help=False)
    commands.add_parser("evaluate", help="compare models, baselines and folders of images", add_help=False)
    commands.add_parser("figure", help="draw one of the paper's figures as a PNG", add_help=False)
    commands.add_parser("export", help="write a model as ONNX or as a torch.export program", add_help=False)
    commands.add_parser("summary", help="print a model's parameters and operations", add_help=False)
    known, rest = parser.parse_known_args(args)
    if known.command in LIGHTNING:
        parser.error(f"expected {known.command} as the first word, got {args[0]}")
    COMMANDS[known.command](known, rest)


def _add_curriculum(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "curriculum",
        help="run all fits of a model in order; continues where it stopped",
        allow_abbrev=False,  # --model belongs to the fits
        epilog="Further options go to every fit, such as --data.init_args.root DIR or --trainer.max_epochs 1; "
        "--refinement.data.init_args.root DIR goes to the fits of that stage. "
        "NAME is a fit (block2-warping, joint1-2), a block (block2) or a stage (warping, joint); --dry-run lists them.",
    )
    parser.add_argument(
        "--config", required=True, action="append", metavar="FILE",
        help="a curriculum.yaml; when given again: an overlay for every fit, such as configs/logger/wandb.yaml",
    )  # fmt: skip
    parser.add_argument("--model_dir", "--model-dir", help="model directory, in place of the file's")
    parser.add_argument(
        "--only", nargs="+", action="extend", metavar="NAME", help="run only these fits, in the plan's order"
    )
    parser.add_argument("--from", dest="start", metavar="NAME", help="start at this fit")
    parser.add_argument(
        "--dry-run", action="store_true",
        help="print the plan, one line per fit: side, parameters, steps, file, operations",
    )  # fmt: skip


def _curriculum(known: argparse.Namespace, rest: list[str]) -> None:
    from rpf_lightning.curriculum import run_curriculum

    curriculum, *overlays = known.config
    options = [word for overlay in overlays for word in ("--config", overlay)] + rest
    run_curriculum(curriculum, options, known.model_dir, known.dry_run, only=known.only, start=known.start)


def _enhance(_: argparse.Namespace, rest: list[str]) -> None:
    from rpf_lightning.enhancing.command import main

    main(rest)


def _export(_: argparse.Namespace, rest: list[str]) -> None:
    from rpf_lightning.export import main

    main(rest)


def _figure(_: argparse.Namespace, rest: list[str]) -> None:
    from rpf_lightning.evaluation.figures import main

    main(rest)


def _prepare(_: argparse.Namespace, rest: list[str]) -> None:
    from rpf_lightning.data.preparation.commands import main

    main(rest)


def _summary(_: argparse.Namespace, rest: list[str]) -> None:
    from rpf_lightning.model.summary import main

    main(rest)


def _evaluate(_: argparse.Namespace, rest: list[str]) -> None:
    from rpf_lightning.evaluation.run import main

    main(rest)


COMMANDS = {
    "curriculum": _curriculum,
    "enhance": _enhance,
    "evaluate": _evaluate,
    "export": _export,
    "figure": _figure,
    "prepare": _prepare,
    "summary": _summary,
}
