"""A training step of every stage: a straightforward loop, ours without and with x^(n) kept on disk, and the floor.

    python benchmarks/training.py PREPARED               # a folder that `rpf prepare` has written; 16 -> 128
    python benchmarks/training.py PREPARED --blocks 3 --stages warping

The straightforward loop (`straightforward.py`) is what one writes first: it decodes and warps the photos at full size
and computes the frozen blocks in every step, modulates weights per sample, and calls critic and penalty as they come;
same network, batch, terms and optimizers. A step's time is from batch to batch, with the loading: the median after the
first epoch. The floor is the FLOP of our step, forward and backward, divided by the rate of a large matrix product.
AlexNet and ArcFace are off: both loops would call the same code. On a GPU, bf16 steps of the paper's network at sides
512 and 1024 follow: time, memory, and the share of the floor.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import measure
import numpy as np
import torch
import torch.nn.functional as F
from lightning import Callback, Trainer
from straightforward import StraightforwardRPF
from straightforward import _warp as backward_warp
from torch import Tensor, nn
from torch.optim import Adam
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader
from torch.utils.flop_counter import flop_registry

from rpf_lightning.callbacks import FreezeEarlierBlocks
from rpf_lightning.data import ReferencePairsDataModule
from rpf_lightning.data.batches import ReferenceBatch
from rpf_lightning.data.dataset import PairsDataset, collate
from rpf_lightning.losses import critic_loss, generator_loss, gradient_penalty
from rpf_lightning.model import Critic, RPFConfig, RPFModel
from rpf_lightning.stages import RefinementStage, RPFStage, SynthesisStage, WarpingStage

SMALL = RPFConfig(16, 8, channels=32, width=0.25, residual=True, synthesis_residual=True)
STAGES = ("refinement", "warping", "synthesis", "finetune")
QUIET: dict[str, Any] = {
    "devices": 1, "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
    "enable_model_summary": False, "num_sanity_val_steps": 0, "limit_val_batches": 0,
}  # fmt: skip


def make_stage(kind: str, folder: str, block: int, network: RPFConfig, **kwargs: Any) -> RPFStage:
    """A stage with a critic, where it has one, and without AlexNet and ArcFace."""
    given: dict[str, Any] = {"gradient_norms_every": 0, **kwargs}
    if kind == "warping":
        return WarpingStage(folder, block, network, **given)
    if kind == "synthesis":
        return SynthesisStage(folder, block, network, **given)
    source = "lr" if kind == "refinement" else "synthesized"
    return RefinementStage(
        folder, block, network, input=source, perceptual_weight=0, identity_weight=0, **given
    )


class Flop(TorchDispatchMode):
    """Counts FLOP, backward too. torch's own counter cannot be used around `torch.autograd.grad`."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in flop_registry:
            self.total += flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=result)
        return result


class Clock(Callback):
    """When each batch begins."""

    def __init__(self) -> None:
        self.starts: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Note the time."""
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize()
        self.starts.append(time.perf_counter())

    def step(self, after: int) -> float:
        """Median time from batch to batch in seconds, after the first ones."""
        return statistics.median(np.diff(self.starts[after:]))


def ours(kind: str, block: int, data: dict[str, Any], epochs: int, keep: bool) -> tuple[float, int]:
    """Seconds per step, and FLOP of a step that finds x^(n)."""
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        stage = make_stage(kind, folder, block, SMALL, cache_prefix=keep)
        clock, module = Clock(), ReferencePairsDataModule(**data)
        trainer = Trainer(
            max_epochs=epochs, accelerator="cpu", callbacks=[FreezeEarlierBlocks(), clock], **QUIET
        )
        step, count = stage.training_step, Flop()

        def counted(batch: ReferenceBatch, batch_idx: int) -> None:
            if trainer.is_last_batch and trainer.current_epoch == epochs - 1:  # its time is not taken
                with count:
                    return step(batch, batch_idx)
            return step(batch, batch_idx)

        stage.training_step = counted  # type: ignore[method-assign]
        trainer.fit(stage, module)
    return clock.step(data["limit_train"] // data["batch_size"]), count.total


class StraightforwardCritic(Critic):
    """The same critic with torch's leaky ReLU."""

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, 1)."""
        x = image
        for conv in self.convolutions:
            x = F.leaky_relu(conv(x), 0.2)
        return self.score(F.leaky_relu(self.hidden(x.flatten(1)), 0.2))


class StraightforwardStep:
    """One optimizer step of a stage, as one writes it first.

    Args:
        kind: Stage.
        block: n.
    """

    def __init__(self, kind: str, block: int) -> None:
        torch.manual_seed(0)
        self.kind, self.block = kind, block
        self.model = RPFModel(SMALL)
        self.network = StraightforwardRPF(self.model)
        self.blocks: list[Any] = list(self.model.blocks)
        self.current = self.blocks[block - 1]
        self.trained: nn.Module = getattr(
            self.current, kind if kind in ("warping", "synthesis") else "refinement"
        )
        self.generator = Adam(self.trained.parameters(), 1e-4)
        self.critic = None if kind == "warping" else StraightforwardCritic(self.model.sides[block - 1])
        if self.critic is not None:
            self.critic_optimizer = Adam(self.critic.parameters(), 1e-4, betas=(0.0, 0.9))

    def __call__(self, batch: ReferenceBatch) -> None:
        """Step."""
        output = self.generate(batch)
        target, mask = batch.gt, 1.0
        if self.kind == "warping":
            target = batch.warped_reference
        if self.kind == "synthesis":
            mask = batch.gt_mask
        loss = ((output - target).abs() * mask).mean()
        if self.critic is not None:
            real, fake = target * mask, output * mask
            score = critic_loss(self.critic(real), self.critic(fake.detach()))
            penalty = gradient_penalty(self.critic, real, fake)
            self.critic_optimizer.zero_grad()
            (score + 10 * penalty).backward()
            self.critic_optimizer.step()
            loss = loss + 0.1 * generator_loss(self.critic(fake))
        self.generator.zero_grad()
        loss.backward()
        self.generator.step()

    def generate(self, batch: ReferenceBatch) -> Tensor:
        """Everything up to the trained module, without gradients, and the module."""
        network, block, side = self.network, self.current, self.model.sides[self.block - 1]
        with torch.no_grad():
            x, pyramid = batch.lr, [batch.reference]
            if self.kind != "refinement":
                for lower in reversed(self.model.sides[: self.block - 1]):
                    pyramid.insert(0, bicubic(pyramid[0], lower).clamp(0, 1))
                for earlier, level in zip(self.blocks, pyramid[:-1], strict=False):
                    x = network.reconstruct(earlier, x, level).clamp(0, 1)
            enlarged = bicubic(x, side)
        if self.kind == "refinement":
            return network.refine(block.refinement, enlarged)
        with torch.set_grad_enabled(self.kind == "warping"):
            aligned = backward_warp(batch.reference, network.flow(block.warping, x, batch.reference))
        if self.kind == "warping":
            return aligned
        with torch.set_grad_enabled(self.kind == "synthesis"):
            synthesized = network.synthesize(block.synthesis, x, aligned, enlarged)
        if self.kind == "synthesis":
            return synthesized
        return network.refine(block.refinement, (enlarged + synthesized) / 2)


def bicubic(image: Tensor, side: int) -> Tensor:
    """Resize as torch does."""
    return F.interpolate(image, size=(side, side), mode="bicubic", antialias=True)


def straightforward(kind: str, block: int, data: dict[str, Any], steps: int) -> float:
    """Seconds per step."""
    module = ReferencePairsDataModule(data["root"], limit_train=data["limit_train"], cache_side=0)
    size, side = SMALL.size, 16 * 2**block
    pairs = module.split_pairs().train
    dataset = PairsDataset(
        module.prepared(), pairs, lr_size=16, size=size, side=side, warped=kind == "warping"
    )
    loader = DataLoader(dataset, data["batch_size"], shuffle=True, drop_last=True, collate_fn=collate)
    step, starts = StraightforwardStep(kind, block), []

    def forever() -> Iterator[ReferenceBatch]:
        while True:
            yield from loader

    for number, batch in enumerate(forever()):
        starts.append(time.perf_counter())
        if number == steps:
            break
        step(batch)
    return statistics.median(np.diff(starts[1:]))


def cpu(root: str, blocks: list[int], kinds: list[str], batch: int, steps: int) -> None:
    """Print the table."""
    ceiling = measure.ceiling()
    data = {"root": root, "batch_size": batch, "limit_train": 4 * batch, "limit_val": 8}
    rows: list[list[object]] = []
    for block in blocks:
        for kind in kinds:
            plain = straightforward(kind, block, data, steps)
            epochs = 1 + -(-steps // 4)
            again, flop = ours(kind, block, data, epochs, keep=False)
            kept = again
            if kind != "refinement" and block > 1:  # or there is no x^(n), or it is the LR
                kept, flop = ours(kind, block, data, epochs, keep=True)
            times = [f"{1e3 * spent:.0f}" for spent in (plain, again, kept, flop / ceiling)]
            name = f"block {block} (side {16 * 2**block}) {kind}"
            rows.append([name, *times, f"{batch / kept:.1f}", f"{plain / kept:.1f}"])
            print(f"  {rows[-1]}", flush=True)
    head = [
        f"step of {batch}", "straightforward, ms", "ours, x^(n) computed, ms", "ours, x^(n) kept, ms", "floor, ms",
        "samples/s", "straightforward / ours",
    ]  # fmt: skip
    print("", *penalty(batch, 16 * 2 ** blocks[-1]), sep="\n")
    print("", f"Ceiling {ceiling / 1e9:.0f} GFLOP/s (matrix product of side 4096).", "", sep="\n")
    print(measure.markdown(head, rows))


def penalty(batch: int, side: int) -> list[str]:
    """The gradient penalty, forward and backward, with torch's leaky ReLU and with the critic's own."""
    torch.manual_seed(0)
    critic, plain = (
        kind(side).to(memory_format=torch.channels_last) for kind in (Critic, StraightforwardCritic)
    )
    plain.load_state_dict(critic.state_dict())
    real, fake = torch.rand(2, batch, 3, side, side)
    rows, gradients = [], []
    for name, judge in (("torch's leaky ReLU", plain), ("constant slopes (ours)", critic)):

        def step(judge: Critic = judge) -> None:
            torch.manual_seed(1)
            judge.zero_grad()
            gradient_penalty(judge, real, fake).backward()

        step()
        with Flop() as flop:
            step()
        spent = min(measure.seconds(step) for _ in range(5))
        gradients.append([conv.weight.grad for conv in judge.convolutions])
        rows.append([name, f"{1e3 * spent:.0f}", f"{flop.total / 1e9:.2f}"])
    apart = max(float((a - b).abs().max()) for a, b in zip(*gradients, strict=True))
    return [
        measure.markdown([f"penalty of {batch} images, side {side}", "ms", "GFLOP"], rows), "",
        f"Largest difference of the weights' gradients: {apart:.1e}.",
    ]  # fmt: skip


def random_batch(batch: int, lr_size: int, side: int, device: str) -> ReferenceBatch:
    """Noise in the shape of a batch."""
    image = torch.rand(batch, 3, side, side, device=device)
    mask = torch.ones(batch, 1, side, side, device=device)
    points = torch.rand(batch, 68, 2, device=device)
    return ReferenceBatch(
        lr=torch.rand(batch, 3, lr_size, lr_size, device=device), gt=image, reference=image.flip(-1), gt_mask=mask,
        reference_mask=mask, reference_ok=mask, warped_reference=image.flip(-2),
        flow=torch.zeros(batch, 2, side, side, device=device), flow_known=torch.ones(batch, device=device),
        gt_landmarks=points, reference_landmarks=points, id=["noise"] * batch, reference_id=["noise"] * batch,
        place=list(range(batch)),
    )  # fmt: skip


def gpu(network: RPFConfig, blocks: list[int], batch: int, device: str = "cuda") -> list[list[object]]:
    """Rows of bf16 steps: time, samples per second, peak memory, share of the FLOP floor."""
    ceiling = measure.ceiling(device, torch.bfloat16, 8192 if device == "cuda" else 512)
    rows: list[list[object]] = []
    for block in blocks:
        for kind in STAGES:
            with tempfile.TemporaryDirectory() as folder:
                stage = make_stage(kind, folder, block, network)
                # x^(n) as the cache gives it
                stage.prefix = lambda given, s=stage: (given.gt[..., ::2, ::2].contiguous(), None)  # type: ignore[method-assign]
                clock, flop = Clock(), Flop()
                trainer = Trainer(
                    max_epochs=1, accelerator="gpu" if device == "cuda" else "cpu", precision="bf16-mixed",
                    callbacks=[FreezeEarlierBlocks(), clock], **QUIET,
                )  # fmt: skip
                step = stage.training_step

                def counted(
                    given: ReferenceBatch, batch_idx: int, step: Any = step, flop: Any = flop
                ) -> None:
                    if batch_idx == 0:
                        with flop:
                            return step(given, batch_idx)
                    return step(given, batch_idx)

                stage.training_step = counted  # type: ignore[method-assign]
                given = random_batch(batch, stage.lr_size, stage.side, "cpu")
                if device == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                trainer.fit(stage, DataLoader([given] * 16, batch_size=None))
                spent = clock.step(5)
                memory = torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else float("nan")
                share = flop.total / ceiling / spent
                name = f"side {stage.side} {kind}"
                figures = (
                    f"{1e3 * spent:.1f}",
                    f"{batch / spent:.2f}",
                    f"{memory:.1f}",
                    f"{100 * share:.0f} %",
                )
                rows.append([name, batch, *figures])
    return rows


def main(args: list[str] | None = None) -> None:
    """Print Markdown."""
    parser = measure.parser(__doc__)
    parser.add_argument("--blocks", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--stages", choices=STAGES, nargs="+", default=list(STAGES))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=12, help="of each measurement")
    known = parser.parse_args(args)
    print(measure.heading())
    cpu(known.prepared, known.blocks, known.stages, known.batch, known.steps)
    if not torch.cuda.is_available():
        print("\nGPU: this machine has no CUDA device; the GPU part was not run.")
        return
    head = ["bf16 step, 16 -> 1024", "batch", "ms", "samples/s", "peak GB", "of the FLOP floor's rate"]
    print("", measure.markdown(head, gpu(RPFConfig(), [5, 6], 1)), sep="\n")


if __name__ == "__main__":
    main()
