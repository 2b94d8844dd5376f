"""How much memory a training step takes, counted on the meta device: no data, no weights, nothing allocated."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from copy import deepcopy
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rpf_lightning.losses import (
    critic_loss,
    generator_loss,
    gradient_penalty,
    logistic_critic_loss,
    logistic_generator_loss,
    masked_l1,
    r1_penalty,
)
from rpf_lightning.losses.perceptual import alexnet_layers, taps
from rpf_lightning.model import Critic, ReconstructionBlock, RPFModel, StyleGAN2Critic

FP32 = 4  # bytes
BF16 = 2
ADAM = 3 * FP32  # a trained value's gradient and its two moments
BATCH_CHANNELS = 13  # of side S in a ReferenceBatch: GT, reference, warped reference, flow, two masks


class MemoryEstimate(NamedTuple):
    """Bytes at the largest moment of a training step.

    Attributes:
        weights: The whole model, which every stage holds, in fp32; the critic and the loss networks.
        optimizer: Gradients and Adam's two moments of the trained module and of the critic.
        activations: All else that lives at the largest moment: batch, maps kept for the backward pass, its
            temporaries, the penalty's second graph; in bf16 also the casts of the weights.
    """

    weights: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """Bytes in all."""
        return sum(self)


def training_memory(
    network: dict[str, Any],
    block: int,
    stage: str,
    batch_size: int,
    adversarial: bool = True,
    perceptual: bool = False,
    critic: Literal["srntt", "stylegan2"] = "srntt",
    bf16: bool = False,
) -> MemoryEstimate:
    """Estimate the memory of a training step by running one on the meta device.

    The step is that of `RPFStage`: frozen modules as a whole without gradients (as on a GPU; a CPU runs
    earlier blocks in strips and needs less there), critic, generator. Every storage is followed from its
    birth to its end. A test holds it against the growth of resident memory in a step on a CPU whose allocator
    returns what was freed; by default it keeps some, and a whole fit takes more.

    Not counted: what Python, CUDA and the libraries themselves take, workspaces of convolutions, fragments, and
    ArcFace (the identity term), whose network is known only from its file: buffalo_l's has 0.17 GB of weights,
    and a small MobileFaceNet keeps 37 MB per image.

    Args:
        network: Arguments of `RPFModel`.
        block: n, counted from 1.
        stage: ``"refinement"``, ``"warping"``, ``"synthesis"`` or ``"finetune"``.
        batch_size: Samples in one step.
        adversarial: Whether there is a critic.
        perceptual: Whether AlexNet's term is on.
        critic: Which critic, see `RPFStage`.
        bf16: ``bf16-mixed`` in place of fp32; weights, optimizers and the penalty stay in fp32.

    Raises:
        ValueError: If the network has no such block, or `stage` is another.
    """
    with torch.device("meta"):
        model = RPFModel(**{**network, "validate": False})
    model.to("meta")  # the resizing matrices are built on the CPU under any device
    if not 1 <= block <= len(model.blocks):
        raise ValueError(f"block: expected 1 .. {len(model.blocks)}, got {block}")
    if stage not in ("refinement", "warping", "synthesis", "finetune"):
        raise ValueError(f"stage: expected refinement, warping, synthesis or finetune, got {stage!r}")
    side = model.sides[block - 1]
    trained = getattr(model.blocks[block - 1], "refinement" if stage == "finetune" else stage)
    model.requires_grad_(False)
    trained.requires_grad_(True)
    judge = _critic(critic, side, model.widths[block - 1]) if adversarial else None
    alexnet = alexnet_layers().to("meta").requires_grad_(False) if perceptual else None
    learning = [p for module in (trained, judge) if module is not None for p in module.parameters()]
    frozen = [p for p in model.parameters() if not p.requires_grad]
    if alexnet is not None:
        frozen += alexnet.parameters()
    weights = FP32 * (_values(learning) + _values(frozen))
    step = _Step(model, block, stage, judge, critic, alexnet, torch.bfloat16 if bf16 else torch.float32)
    activations = FP32 * BATCH_CHANNELS * batch_size * side**2 + step.peak(batch_size)
    if bf16:
        used = [p for module in step.cast_modules() for p in module.parameters()]
        activations += BF16 * _values(used)
    return MemoryEstimate(weights, ADAM * _values(learning), activations)


class _Step:
    """One training step on the meta device, in the order of `RPFStage.training_step`."""

    def __init__(
        self,
        model: RPFModel,
        block: int,
        stage: str,
        critic: nn.Module | None,
        critic_kind: str,
        alexnet: nn.Sequential | None,
        dtype: torch.dtype,
    ) -> None:
        self.number, self.stage, self.dtype = block, stage, dtype
        self.model = model.to(dtype)
        for each in self.model.blocks:
            cast(ReconstructionBlock, each).warping.flow_head.float()
        self.block = cast(ReconstructionBlock, model.blocks[block - 1])
        self.exact_critic = critic  # the penalty's, in fp32
        self.critic = critic if critic is None or dtype == torch.float32 else deepcopy(critic).to(dtype)
        self.logistic = critic_kind == "stylegan2"
        self.alexnet = alexnet
        for module in (self.model, self.critic, self.exact_critic):
            for p in [] if module is None else module.parameters():
                # gradients are there from the step before, and counted with the optimizer
                p.grad = torch.empty_like(p) if p.requires_grad else None
        for module in (self.model, self.critic) if dtype != torch.float32 else ():
            for layer in [] if module is None else module.modules():
                if hasattr(layer, "weight"):
                    layer.register_forward_pre_hook(_autocast)

    def cast_modules(self) -> list[nn.Module]:
        """The modules of which bf16-mixed keeps a copy in bf16 during a step: those with gradients."""
        trained = getattr(self.block, "refinement" if self.stage == "finetune" else self.stage)
        return [trained] if self.critic is None else [trained, self.critic]

    def peak(self, batch_size: int) -> int:
        """Run it; bytes at the largest moment, without the batch."""
        side = self.block.side
        lr = torch.empty(batch_size, 3, self.model.lr_size, self.model.lr_size, device="meta")
        image = torch.empty(batch_size, 3, side, side, device="meta")
        with _Storages() as storages, torch.enable_grad():
            output = self._generate(lr, image)
            if self.critic is not None:
                self._train_critic(image, output)
                self.critic.requires_grad_(False)
            loss = masked_l1(output, image)
            if self.alexnet is not None:
                loss = loss + self._perceptual(output, image)
            if self.critic is not None:
                score = self.critic(output)
                loss = loss + (logistic_generator_loss if self.logistic else generator_loss)(score)
            loss.backward()  # type: ignore[no-untyped-call]
        return storages.peak

    def _generate(self, lr: Tensor, image: Tensor) -> Tensor:
        if self.stage == "refinement":
            return self.block.refinement(image)
        level = image.new_empty(len(image), 4 if self.model.synthesis_copy else 3, *image.shape[2:])
        with torch.no_grad():
            x, flow = self.model.prefix(lr, level, self.number)
        if self.stage == "warping":
            return self.block.align(x, level, flow).image
        with torch.no_grad():
            alignment = self.block.align(x, level, flow)
        if self.stage == "synthesis":
            return self.block.synthesize(x, alignment).image
        with torch.no_grad():
            mean = (self.block.enlarge(x) + self.block.synthesize(x, alignment).image) / 2
        return self.block.refinement(mean)

    def _train_critic(self, image: Tensor, output: Tensor) -> None:
        assert self.critic is not None
        assert self.exact_critic is not None
        real, fake = self.critic(image), self.critic(output.detach())
        if self.logistic:
            loss = logistic_critic_loss(real, fake) + r1_penalty(self.exact_critic, image)
        else:
            loss = critic_loss(real, fake) + gradient_penalty(self.exact_critic, image, output)
        loss.backward()  # type: ignore[no-untyped-call]

    def _perceptual(self, output: Tensor, image: Tensor) -> Tensor:
        assert self.alexnet is not None
        with torch.no_grad():
            wanted = taps(self.alexnet, (image - 0.5) / 0.25)
        pairs = zip(taps(self.alexnet, (output - 0.5) / 0.25), wanted, strict=True)
        return torch.stack([(tap - goal).square().mean() for tap, goal in pairs]).sum()


class _Storages(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows every storage that operations make until nothing holds it any more."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        given = {_key(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, Tensor) and _key(x) not in given and _key(x) not in self.alive:
                storage = x.untyped_storage()
                self.alive[_key(x)] = storage.nbytes()
                self.now += storage.nbytes()
                weakref.finalize(storage, self._end, _key(x))
        self.peak = max(self.peak, self.now)
        return result

    def _end(self, key: int) -> None:
        self.now -= self.alive.pop(key)


def _autocast(layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Bring inputs to the weights' type, as autocast does, which the meta device lacks."""
    dtype = cast(Tensor, layer.weight).dtype
    return tuple(x.to(dtype) if isinstance(x, Tensor) else x for x in args)


def _key(x: Tensor) -> int:
    return x.untyped_storage()._cdata


def _critic(kind: str, side: int, width: float) -> nn.Module:
    with torch.device("meta"):
        module = StyleGAN2Critic(side, width) if kind == "stylegan2" else Critic(side)
    return module.to("meta")


def _values(parameters: Sequence[nn.Parameter]) -> int:
    return sum(p.numel() for p in parameters)
