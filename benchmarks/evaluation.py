"""What an evaluation costs beside the network alone, and whether its memory stays flat.

    python benchmarks/evaluation.py PREPARED --model celeba-hq-16to128

Time: 200 pairs through `rpf evaluate` (loading, the model, all metrics that need no further network), against the same
network on tensors that are there, in the same batches. Memory: the peak of a process that evaluates 200 pairs and of
one that evaluates 1,000: so many have to be in the folder's split all.
"""

from __future__ import annotations

import multiprocessing
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor

import measure
import torch

from rpf_lightning import ReferencePairsDataModule, RPFModel
from rpf_lightning.evaluation import evaluate

BATCH = 8


def evaluation(root: str, model: str, methods: list[str], pairs: int) -> tuple[float, float]:
    """Seconds that an evaluation takes, and the process' peak in MB.

    Raises:
        ValueError: If the folder has fewer pairs.
    """
    data = ReferencePairsDataModule(root, limit_val=pairs, lr_size=16, size=128, batch_size=BATCH)
    with tempfile.TemporaryDirectory() as out:
        start = time.perf_counter()
        results = evaluate(
            model_dir=model, data=data, out=out, batch_size=BATCH, grid_images=0, lpips=False, isc=False,
            methods=methods, split="all", contact_images=0,
        )  # fmt: skip
        spent = time.perf_counter() - start
    if (measured := results["protocol"]["pairs"]) != pairs:
        raise ValueError(f"{root}: expected at least {pairs} pairs, got {measured}")
    return spent, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def network_alone(model: str, pairs: int) -> float:
    """Seconds of the network on noise."""
    network = RPFModel.from_pretrained(model)
    lr, reference = torch.rand(BATCH, 3, 16, 16), torch.rand(BATCH, 3, 128, 128)
    with torch.inference_mode():
        network(lr, reference)
        start = time.perf_counter()
        for first in range(0, pairs, BATCH):
            size = min(BATCH, pairs - first)
            network(lr[:size], reference[:size])
    return time.perf_counter() - start


def main(args: list[str] | None = None) -> None:
    """Print Markdown."""
    parser = measure.parser(__doc__)
    parser.add_argument("--model", default="celeba-hq-16to128", help="16 -> 128")
    parser.add_argument("--pairs", type=int, default=200)
    options = parser.parse_args(args)

    def fresh(methods: list[str], pairs: int) -> tuple[float, float]:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            return process.submit(evaluation, options.prepared, options.model, methods, pairs).result()

    alone = network_alone(options.model, options.pairs)
    whole, _ = fresh(["model:RPF"], options.pairs)
    print(measure.heading())
    rows: list[list[object]] = [[f"network alone, {options.pairs} pairs", f"{alone:.1f}", "1"]]
    rows.append(["evaluation", f"{whole:.1f}", f"{whole / alone:.2f}"])
    print(measure.markdown(["16 -> 128", "s", "/ network"], rows))
    copies = ["bicubic", "reference"]
    rows = [[pairs, f"{fresh(copies, pairs)[1]:.0f}"] for pairs in (options.pairs, 5 * options.pairs)]
    print("", measure.markdown(["pairs (bicubic and reference)", "peak, MB"], rows), sep="\n")


if __name__ == "__main__":
    main()
