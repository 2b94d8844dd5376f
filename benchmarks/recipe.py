"""What each part of the joint recipe (configs/celeba_hq_512) gives: blocks 1 and 2 together, with one part taken back.

    python benchmarks/recipe.py PREPARED --out runs/recipe --train [--rows NAME ...] [OPTION ...]
    python benchmarks/recipe.py PREPARED --out runs/recipe [--references 3 | --entry 32]

`--train` trains the rows, one after the other, and goes on where it was stopped; several of these with different rows
may run side by side. All rows but those "from nothing" start from the packaged 16 -> 128 model, and see equally many
samples: 1,200, which one core does in about a quarter of an hour. Without `--train` the finished rows are judged by
`gate.py` at 64 pixels, on the same pairs. What is not an option of this script goes to every fit. `--seed` gives
another seed, in folders of their own: a difference is worth no more than that between two seeds.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gate
import torch

from rpf_lightning import RPFModel
from rpf_lightning.model.storage import CONFIG_FILE
from rpf_lightning.training import lightning_cli

RECIPE = Path(__file__).parents[1] / "configs" / "celeba_hq_512" / "joint.yaml"
START = "celeba-hq-16to128"
NETWORK: dict[str, Any] = {"synthesis_copy": True, "flow_from": "previous"}
SAMPLES = 1200
NOTHING: dict[str, Any] = {"scale": 8, "width": 0.25, "residual": True, "synthesis_residual": True,
                           "refinement_mean": False}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One training: what differs from the recipe.

    Attributes:
        network: Arguments of `RPFModel`.
        options: Of `rpf fit`, by their names without `init_args`.
        start: A packaged model, or None: from nothing.
    """

    network: dict[str, Any] = field(default_factory=dict)
    options: dict[str, object] = field(default_factory=dict)
    start: str | None = START


ONE = {"data.max_references": 1, "data.several_fraction": 0}
NO_JITTER = {"data.colour_jitter": 0, "data.similarity_jitter": 0}
NO_STRANGERS = {"data.wrong_fraction": 0, "data.absent_fraction": 0, "data.self_fraction": 0}
ROWS = {
    "recipe": Row(),
    "no copy path": Row({"synthesis_copy": False}, ONE),
    "own flow in each block": Row({"flow_from": None}),
    "one reference": Row(options=ONE),
    "no later entries": Row(options={"model.entry_fraction": 0}),
    "L1 of raw features": Row(options={"model.identity_norm": "l1", "model.identity_weight": 0.1}),
    "nearest references": Row(options={**ONE, "data.references": "nearest"}),
    "no jitter": Row(options=NO_JITTER),
    "no wrong, absent and self-references": Row(options=NO_STRANGERS),
    "identity weight .05": Row(options={"model.identity_weight": 0.05}),
    "flow target: similarity": Row(options={"data.flow_target": "similarity"}),
    "flow target: thin-plate spline": Row(options={"data.flow_target": "tps"}),
    "no flow term": Row(options={"model.flow_weight": 0}),
    "from nothing": Row(NOTHING, start=None),
    "from nothing, half the width": Row({**NOTHING, "width": 0.125}, start=None),
}


def folder(out: Path, name: str, seed: int) -> Path:
    """Where a row's model directory is."""
    safe = "".join(letter if letter.isalnum() else "_" for letter in name)
    return out / (safe if not seed else f"{safe}-seed{seed}")


def train(known: argparse.Namespace, name: str, rest: Sequence[str]) -> None:
    """Train a row, or what is left of it; a finished one has its mark."""
    row, directory = ROWS[name], folder(known.out, name, known.seed)
    mark = directory / "finished"
    if mark.is_file():
        return
    if not (directory / CONFIG_FILE).is_file():
        torch.manual_seed(known.seed)
        network = {**NETWORK, **row.network}
        model = RPFModel(**network) if row.start is None else RPFModel.from_pretrained(row.start, **network)
        model.save_pretrained(directory)
    arguments = ["fit", "--config", str(RECIPE), "--seed_everything", str(known.seed)]
    arguments += ["--model.init_args.model_dir", str(directory), "--data.init_args.root", known.prepared]
    arguments += ["--data.init_args.seed", "0", "--data.init_args.num_workers", "0"]
    # a checkpoint after each of the three epochs
    arguments += ["--trainer.max_epochs", "3", "--trainer.limit_train_batches", str(known.samples // 12)]
    arguments += ["--trainer.limit_val_batches", "0"]
    for option, value in row.options.items():
        group, key = option.split(".")
        arguments += [f"--{group}.init_args.{key}", str(value)]
    last = directory / "runs" / "joint1-2" / "checkpoints" / "last.ckpt"
    lightning_cli([*arguments, *rest, *(["--ckpt_path", str(last)] if last.is_file() else [])])
    mark.touch()


def main(arguments: Sequence[str] | None = None) -> None:
    """Train rows, or print their table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("prepared")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="NAME")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--samples", type=int, default=SAMPLES)
    known, rest = parser.parse_known_args(arguments)
    if known.train:
        for name in known.rows:
            train(known, name, rest)
        return
    there = [folder(known.out, name, known.seed) for name in known.rows]
    finished = [str(path) for path in there if (path / "finished").is_file()]
    if not finished:
        parser.error(f"{known.out} holds no finished row; begin with --train")
    gate.main([known.prepared, "--models", START, *finished, *rest])


if __name__ == "__main__":
    main()
