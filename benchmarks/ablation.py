"""What each change of our recipe (configs/small) gave: trains it at 16 -> 64 with one change taken back at a time.

    python benchmarks/ablation.py PREPARED --out runs/ablation --train [--rows NAME ...] [OPTION ...]
    python benchmarks/ablation.py PREPARED --out runs/ablation

`--train` trains, and goes on where it was stopped; several of these with different rows may run side by side. Without
it the rows that are there are evaluated on the validation people, each once, and a table is printed. What is not an
option of this script goes to every fit, such as `--trainer.precision bf16-mixed`; all rows have to be given the same.
Rows that leave stage 1 as it is share its fits: it is trained in a folder of its own, and they begin with a copy. A fit
sees equally many samples in every row: the row without stage 3 trains less, and smaller batches are more steps. Other
inputs of stage 1 differ from the recipe's in block 2 only. `refinement_mean: false` came into the recipe last: all rows
but its own are without. One seed each: no interval covers how another training would
have come out.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import measure
import yaml
from lightning import seed_everything

from rpf_lightning.curriculum import STATE_FILE, run_curriculum
from rpf_lightning.curriculum_file import STAGES, read_curriculum
from rpf_lightning.data import ReferencePairsDataModule
from rpf_lightning.evaluation import evaluate
from rpf_lightning.evaluation.statistics import gap
from rpf_lightning.files import locked, write_atomically
from rpf_lightning.model import RPFModel

OPTIONS_FILE = "options.json"
RECIPE = Path(__file__).parents[1] / "configs" / "small"
NETWORK: dict[str, Any] = {"scale": 4, "refinement_mean": True}
NOT_STAGE_1 = frozenset({"synthesis_residual", "refinement_mean", "init"})
"""Arguments of `RPFModel` that a refinement module is made and trained without."""
KINDS = {"own": "model", "other": "model-swap", "synthesized": "synthesized"}
METRICS = {"psnr": 2, "psnr_face": 2, "lpips": 3, "isc": 3}


@dataclass(frozen=True)
class Row:
    """One model: what differs from the recipe.

    Attributes:
        options: Of `rpf curriculum`.
        network: Arguments of `RPFModel`.
        without: A stage that is left out.
        batch_divisor: By what the batches are smaller; there are as many times more of them.
    """

    options: tuple[str, ...] = ()
    network: dict[str, Any] = field(default_factory=dict)
    without: str | None = None
    batch_divisor: int = 1

    @property
    def changes_stage_1(self) -> bool:
        """Whether the recipe's stage 1 cannot be used."""
        stage_1 = any(word.startswith("--refinement.") for word in self.options)
        return bool(self.network.keys() - NOT_STAGE_1) or stage_1 or self.batch_divisor > 1


def stages(option: str, value: object, *names: str) -> tuple[str, ...]:
    """An argument of some stages' modules."""
    return tuple(w for name in names for w in (f"--{name}.model.init_args.{option}", str(value)))


LOSSES = ("refinement", "synthesis", "finetune")
ROWS = {
    "recipe": Row(),
    "no stage 3": Row(without="finetune"),
    "no residual": Row(network={"residual": False}),
    "refinement on the synthesized image alone": Row(network={"refinement_mean": False}),
    "no synthesis_residual": Row(network={"synthesis_residual": False}),
    "no unmasked term": Row(stages("unmasked_weight", 0, "synthesis")),
    "no synthesis_residual, no unmasked term": Row(
        stages("unmasked_weight", 0, "synthesis"), network={"synthesis_residual": False}
    ),
    "stage 1 from x2": Row(stages("input", "x2", "refinement")),
    "stage 1 from mix": Row(stages("input", "mix", "refinement")),
    "weights 1, 1, 1 (paper)": Row(
        stages("perceptual_weight", 1, "refinement", "finetune")
        + stages("identity_weight", 1, "refinement", "finetune")
        + stages("adversarial_weight", 1, "refinement", "finetune")
        + stages("perceptual_weight", 0, "synthesis")
        + stages("identity_weight", 0, "synthesis")
        + stages("adversarial_weight", 0.1, "synthesis")
    ),
    "identity 0.03": Row(stages("identity_weight", 0.03, *LOSSES)),
    "no adversarial term": Row(stages("adversarial_weight", 0, *LOSSES)),
    "adversarial 0.1": Row(stages("adversarial_weight", 0.1, *LOSSES)),
    "no entry_fraction": Row(stages("entry_fraction", 0, "synthesis", "finetune")),
    "perceptual 3e-3, identity 0.1": Row(
        stages("perceptual_weight", 3e-3, *LOSSES) + stages("identity_weight", 0.1, *LOSSES)
    ),
    "no perceptual, identity in the synthesis": Row(
        stages("perceptual_weight", 0, "synthesis") + stages("identity_weight", 0, "synthesis")
    ),
    "no perceptual_jitter": Row(stages("perceptual_jitter", 1, *LOSSES)),
    "torch's initialisation": Row(network={"init": "torch"}),
    "no flow term": Row(stages("flow_weight", 0, "warping")),
    "batches a quarter as large": Row(batch_divisor=4),
    "learning rates / 10": Row(
        stages("learning_rate", 2e-4, "refinement")
        + stages("learning_rate", 1e-4, "warping", "synthesis", "finetune")
    ),
}


def folder(out: Path, name: str) -> Path:
    """The row's model directory."""
    return out / "".join(c if c.isalnum() else "_" for c in name)


def batches(size: int, limit: int | None, divisor: int = 1) -> list[str]:
    """Options of the batches: of `size` samples, `limit` of them in an epoch (None: all)."""
    limited = [] if limit is None else ["--trainer.limit_train_batches", str(limit * divisor)]
    return ["--data.init_args.batch_size", str(size // divisor), *limited]


def train(
    out: Path, root: str, name: str, others: Sequence[str], batch_size: int = 32, limit: int | None = None
) -> None:
    """Train one row, or go on with it.

    Raises:
        ValueError: If other rows were trained with other options.
    """
    row, target = ROWS[name], folder(out, name)
    options = [*batches(batch_size, limit), *others]
    everywhere = ["--data.init_args.root", root, *batches(batch_size, limit, row.batch_divisor), *others]
    out.mkdir(parents=True, exist_ok=True)
    given = out / OPTIONS_FILE
    if not given.exists():
        write_atomically(given, json.dumps(list(options)).encode())
    if json.loads(given.read_text()) != list(options):
        raise ValueError(
            f"{given}: other rows were trained with {given.read_text()}, now {list(options)} were given"
        )
    recipe = yaml.safe_load((RECIPE / "curriculum.yaml").read_text())
    for stage in STAGES:
        recipe[stage] = str(RECIPE / recipe[stage])
    recipe["network"] |= NETWORK
    curriculum = recipe | {"network": recipe["network"] | row.network}
    if row.without:
        del curriculum[row.without]
    if not row.changes_stage_1 and not target.exists():
        part = target.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(stage_1(out, recipe, everywhere), part)
        if row.network:
            seed_everything(recipe.get("seed", 0), verbose=False)
            model = RPFModel(**curriculum["network"])
            for own, trained in zip(model.blocks, RPFModel.from_pretrained(part).blocks, strict=True):
                own.refinement.load_state_dict(trained.refinement.state_dict())
            model.save_pretrained(part)
        part.replace(target)
    target.mkdir(parents=True, exist_ok=True)
    run_curriculum(write(target, curriculum), [*everywhere, *row.options], str(target))


def stage_1(out: Path, curriculum: dict[str, Any], options: list[str]) -> Path:
    """The model directory with the recipe's stage 1, trained where it is missing; processes wait for each other."""
    target = out / "stage_1"
    target.mkdir(parents=True, exist_ok=True)
    with locked(out / ".stage_1.lock"):
        run_curriculum(write(target, curriculum), options, str(target), only="refinement")
    return target


def write(target: Path, curriculum: dict[str, Any]) -> Path:
    """Write a row's `curriculum.yaml`."""
    path = target / "curriculum.yaml"
    path.write_text(yaml.safe_dump(curriculum, sort_keys=False))
    return path


def is_trained(path: Path) -> bool:
    """Whether all fits of a row are finished."""
    if not (path / STATE_FILE).is_file():
        return False
    _, plan = read_curriculum(path / "curriculum.yaml")
    return {fit.name for fit in plan} <= json.loads((path / STATE_FILE).read_text())["finished"].keys()


def evaluated(out: Path, path: Path, data: ReferencePairsDataModule, split: str) -> dict[str, Any]:
    """Evaluate one row's model directory, once: results are taken from its folder while they are newer than it."""
    target = out / "evaluation" / split / path.name
    file = target / "results.json"
    if file.is_file() and file.stat().st_mtime > (path / "model.safetensors").stat().st_mtime:
        return dict(json.loads(file.read_text()))
    methods = ["bicubic", *(f"{kind}:{name}={path}" for name, kind in KINDS.items())]
    return evaluate(
        data=data, out=str(target), methods=methods, split=split, grid_images=0, contact_images=0, lpips=True, isc=True,
    )  # fmt: skip


def table(out: Path, root: str, split: str, names: Sequence[str]) -> str:
    """Evaluate those of the rows that are trained: Markdown."""
    rows = {name: folder(out, name) for name in names if is_trained(folder(out, name))}
    if not rows:
        return f"not trained: {', '.join(names)}"
    side = 16 * NETWORK["scale"]
    data = ReferencePairsDataModule(root, lr_size=16, size=side)
    results = {name: evaluated(out, path, data, split) for name, path in rows.items()}

    def difference(one: tuple[str, str], other: tuple[str, str], metric: str) -> str:
        """Of a row's method to another's, with its interval."""
        values = (
            [record["metrics"][method].get(metric) for record in results[row]["per_image"]]
            for row, method in (one, other)
        )
        found, digits = gap(*values), METRICS[metric]
        return f"{found['mean']:+.{digits}f} [{found['low']:+.{digits}f}, {found['high']:+.{digits}f}]"

    def cells(row: str, method: str) -> list[str]:
        means = results[row]["methods"][method]
        return [f"{means[metric]:.{digits}f}" for metric, digits in METRICS.items()]

    lines: list[list[object]] = [["bicubic", *cells(next(iter(rows)), "bicubic"), "", "", "", ""]]
    for name in rows:
        own = (name, "own")
        gaps = [difference(own, (name, method), "isc") for method in ("other", "synthesized")]
        compared = name != "recipe" and "recipe" in rows
        to_recipe = [difference(own, ("recipe", "own"), m) if compared else "" for m in ("psnr_face", "isc")]
        lines.append([name, *cells(*own), *gaps, *to_recipe])
    headings = [
        "row", "PSNR", "PSNR face", "LPIPS", "ISC", "ISC - another person's", "ISC - synthesized image's",
        "PSNR face - recipe", "ISC - recipe",
    ]  # fmt: skip
    left_out = ", ".join(name for name in names if name not in rows)
    missing = f"; not trained: {left_out}" if left_out else ""
    pairs = len(next(iter(results.values()))["per_image"])
    return f"{pairs} pairs of the split {split}, 16 -> {side}{missing}\n\n{measure.markdown(headings, lines)}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, or print Markdown."""
    parser = measure.parser(__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--split", default="val", help="the pairs to evaluate on")
    parser.add_argument("--train", action="store_true")
    parser.add_argument(
        "--batch-size", type=int, default=32, help="samples in a batch of a fit (divisible by 4)"
    )
    parser.add_argument("--batches", type=int, help="batches in an epoch of a fit; all unless given")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS), metavar="NAME")
    options, others = parser.parse_known_args(arguments)
    if others and not options.train:
        parser.error(f"{' '.join(others)}: options of fits go with --train")
    if refused := [
        word
        for word in others
        if re.search(r"data\.(?!(init_args\.)?num_workers\b)|limit_train_batches", word)
    ]:
        parser.error(
            f"{' '.join(refused)}: the evaluation would take other people, or other photos, than the training; batches"
            " are set by --batch-size and --batches"
        )
    if options.batch_size % 4:
        parser.error(
            f"--batch-size: {options.batch_size} given, expected a multiple of 4, as a row takes a quarter of it"
        )
    if options.train:
        for name in options.rows:
            print(f"== {name}", flush=True)
            train(options.out, options.prepared, name, others, options.batch_size, options.batches)
    else:
        print(measure.heading(), table(options.out, options.prepared, options.split, options.rows), sep="\n")


if __name__ == "__main__":
    main()
