"""Options of LightningCLI that the stages do not heed, and what is there in their place.

The stages optimize by hand, with two optimizers where there is a critic: what Lightning's automatic optimization does
with these options would be left out without a word, or fail in the middle of a fit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rpf_lightning.errors import RefusedError
from rpf_lightning.stages.base import refuse_length, refuse_precision

# name -> values that change nothing, and what to use
INSTEAD: dict[str, tuple[tuple[Any, ...], str]] = {
    "optimizer": (
        (None,),
        "stages step with Adam, at model.init_args.learning_rate and, the critic, critic_learning_rate; another "
        "optimizer is a stage of one's own with configure_optimizers",
    ),
    "lr_scheduler": ((None,), "expected model.init_args.decay: cosine, or none"),
    "weights_only": ((None, True), "checkpoints are always read as data only"),
    "trainer.gradient_clip_val": ((None, 0), "expected model.init_args.gradient_clip, the largest norm"),
    "trainer.gradient_clip_algorithm": ((None,), "expected model.init_args.gradient_clip, the largest norm"),
    "trainer.accumulate_grad_batches": ((None, 1), "expected model.init_args.accumulate"),
    "trainer.min_steps": ((None,), "expected trainer.min_epochs: it counts the critic's steps too"),
}
CALLBACKS = {
    "GradientAccumulationScheduler": "expected model.init_args.accumulate",
    "LearningRateFinder": "expected model.init_args.learning_rate",
    **dict.fromkeys(
        ("StochasticWeightAveraging", "WeightAveraging", "EMAWeightAveraging"),
        "expected rpf_lightning.callbacks.AveragedWeights",
    ),
}
PRECISIONS = {None: "32-true", "32": "32-true", "bf16": "bf16-mixed"}  # other names of what is heeded


def refuse_ignored(config: Mapping[str, Any], fits: bool = True) -> None:
    """Refuse a parsed configuration with options that would not act, or would fail when the fit has begun.

    Args:
        config: All arguments of the command in plain types, nested.
        fits: Whether it trains, so that the fit's length counts.

    Raises:
        RefusedError: Naming the option, and the argument that does it.
    """
    for name, (neutral, instead) in INSTEAD.items():
        group, _, key = name.rpartition(".")
        value = (config[group] if group else config).get(key)
        if value not in neutral:
            raise RefusedError(f"{name}: the stages do not heed it; {instead}")
    trainer = config["trainer"]
    given = trainer.get("callbacks") or []
    for callback in given if isinstance(given, list) else [given]:
        package, _, name = callback["class_path"].rpartition(".")
        if name in CALLBACKS and package.partition(".")[0] in ("lightning", "pytorch_lightning"):
            raise RefusedError(f"trainer.callbacks: {name}: the stages do not heed it; {CALLBACKS[name]}")
    precision = trainer.get("precision")
    try:
        refuse_precision(PRECISIONS.get(None if precision is None else str(precision), str(precision)))
        if fits:
            refuse_length(trainer["max_epochs"], trainer["max_steps"], bool(trainer["fast_dev_run"]))
    except ValueError as error:
        raise RefusedError(str(error)) from error
