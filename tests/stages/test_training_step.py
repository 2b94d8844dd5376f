"""What a researcher has to be able to trust: frozen weights, exact resume, accumulation, precision, NaN."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from rpf_lightning.callbacks import LastCheckpoint
from rpf_lightning.data.batches import ReferenceBatch
from rpf_lightning.model import Critic, RPFModel
from rpf_lightning.model.layers import EqualizedConv2d
from rpf_lightning.stages import RPFStage
from rpf_lightning.stages.gradients import gradient_norms
from stage_fits import call, differing, faces, fresh, kill, make, run, shift

Fit = Callable[..., Any]
BatchOf = Callable[..., Any]
EARLIER = {"0.warping", "0.synthesis", "0.refinement"}


# Frozen


@pytest.mark.parametrize(
    ("kind", "used"),
    [
        ("synthesized", EARLIER | {"1.warping", "1.synthesis"}),
        ("x2", set()),
    ],
)
def test_no_optimizer_state_and_no_graph_for_what_is_frozen(
    model_dir: Path, fit: Fit, kind: str, used: set[str]
) -> None:
    stage = make(kind, model_dir)
    graphs: dict[str, bool] = {}

    def hook(name: str) -> Callable[..., None]:
        return lambda *_: graphs.update({name: torch.is_grad_enabled()})

    prefixes: list[Tensor] = []
    prefix = stage.prefix
    stage.prefix = lambda batch: prefixes.append(prefix(batch)[0]) or (prefixes[-1], None)
    for n, block in enumerate(stage.model.blocks):
        for name in ("warping", "synthesis", "refinement"):
            if getattr(block, name) is not stage.trained_module:
                getattr(block, name).register_forward_hook(hook(f"{n}.{name}"))
    trainer = fit(stage)
    own = set(stage.trained_module.parameters())
    assert set(trainer.optimizers[0].state) == own
    assert graphs == dict.fromkeys(used, False)
    assert len(prefixes) == (0 if kind == "x2" else 2)
    assert not any(x.requires_grad for x in prefixes)
    assert all(p.grad is None for p in stage.model.parameters() if p not in own)


@pytest.mark.usefixtures("made_up_weights")
def test_says_which_terms_are_on_and_the_licence_of_the_identity_term(
    model_dir: Path, fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    for module in ("base", "image_terms"):
        monkeypatch.setattr(f"rpf_lightning.stages.{module}.rank_zero_info", lines.append)
    fit(make("lr", model_dir, identity_weight=0.5))
    assert lines[0].startswith("block2-refinement: side 64, 0.")
    assert ", adversarial_weight 1, perceptual_weight 0, identity_weight 0.5" in lines[0]
    assert "identity: insightface's models are for non-commercial research only" in lines
    lines.clear()
    fit(make("lr", model_dir, perceptual_weight=0.1))
    assert ", perceptual_weight 0.1, identity_weight 0" in lines[0]
    assert not any("non-commercial" in line for line in lines)


def test_a_frozen_weight_that_changes_is_noticed(model_dir: Path, fit: Fit) -> None:
    @torch.no_grad()
    def meddle(trainer: Any, stage: Any, *_: Any) -> None:
        stage.model.blocks[0].refinement.to_rgb.bias += 1e-3

    before = (model_dir / "model.safetensors").read_bytes()
    with pytest.raises(RuntimeError, match="weights that are frozen changed during the fit"):
        fit(make("warping", model_dir), callbacks=[call(on_train_batch_end=meddle)])
    assert (model_dir / "model.safetensors").read_bytes() == before


# Exact resume


@pytest.mark.parametrize(("kind", "flip"), [("warping", False), ("synthesis", True), ("mix", False)])
def test_resuming_within_an_epoch_equals_not_stopping(
    model_dir: Path, tmp_path: Path, kind: str, flip: bool
) -> None:
    """2k steps == k + resume + k, bitwise: weights, both optimizers, random state, order; k is mid-epoch."""
    start = fresh(model_dir)

    def go(folder: str, every: int, *callbacks: Callback, **options: Any) -> tuple[RPFStage, Trainer]:
        stage = start(kind, learning_rate=1e-3, decay="cosine")
        torch.manual_seed(options.pop("seed", 1))
        kept = LastCheckpoint(tmp_path / folder, every)
        options |= {"callbacks": [kept, *callbacks], "enable_checkpointing": True}
        return stage, run(stage, faces(flip=flip), tmp_path, 3, **options)

    whole, first = go("a", 0)
    with pytest.raises(KeyError, match="killed"):
        go("b", 4, kill(11))
    last = tmp_path / "b" / "last.ckpt"
    assert torch.load(last, weights_only=True)["generator_steps"] == 10  # of 6 in an epoch: within the second
    resumed, second = go("b", 4, seed=99, ckpt_path=last)
    assert resumed.generator_steps == whole.generator_steps == 18
    assert not differing(whole.state_dict(), resumed.state_dict())
    for a, b in zip(first.optimizers, second.optimizers, strict=True):
        torch.testing.assert_close(a.state_dict(), b.state_dict(), rtol=0, atol=0)
    ends = [torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in ("a", "b")]
    assert torch.equal(ends[0]["random_states"][0]["torch"], ends[1]["random_states"][0]["torch"])


@pytest.mark.parametrize(
    ("options", "validations", "number"),
    [
        ({"val_check_interval": 3}, 8, 0),  # within an epoch
        ({"val_check_interval": 3}, 8, 1),  # at its end
        ({"val_check_interval": 1.0}, 4, 0),
        ({"check_val_every_n_epoch": 2}, 2, 1),  # nothing is left to train
    ],
)
def test_resuming_from_the_checkpoint_of_a_validation(
    model_dir: Path, tmp_path: Path, options: dict[str, Any], validations: int, number: int
) -> None:
    """Lightning saves some of them when all batches of the epoch are given and the epoch is not over."""
    start = fresh(model_dir)
    options = {"epochs": 4, "enable_checkpointing": True, "limit_val_batches": 1, **options}
    whole = start("warping", learning_rate=1e-3)
    saved = ModelCheckpoint(tmp_path / "a", filename="{step}", monitor="val/end_point_error", save_top_k=-1)
    run(whole, faces(), tmp_path, callbacks=[saved], **options)
    files = sorted((tmp_path / "a").glob("*.ckpt"), key=lambda file: file.stat().st_mtime_ns)
    assert len(files) == validations
    resumed = start("warping", learning_rate=1e-3)
    kept = LastCheckpoint(tmp_path / "b")
    run(resumed, faces(), tmp_path, ckpt_path=files[number], callbacks=[kept], **options)
    assert resumed.generator_steps == whole.generator_steps == 24
    assert not differing(whole.state_dict(), resumed.state_dict())


def test_given_learning_rates_win_over_a_checkpoints(model_dir: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"enable_checkpointing": True, "callbacks": [LastCheckpoint(tmp_path / "a")]}
    stage = make("synthesis", model_dir, learning_rate=1e-3, critic_learning_rate=1e-3)
    run(stage, faces(), tmp_path, **options)
    rates: list[list[float]] = []

    def look(trainer: Any, *_: Any) -> None:
        rates.append([o.param_groups[0]["lr"] for o in trainer.optimizers])

    stage = make("synthesis", model_dir, learning_rate=2e-4, critic_learning_rate=3e-5)
    run(
        stage,
        faces(),
        tmp_path,
        2,
        ckpt_path=tmp_path / "a" / "last.ckpt",
        callbacks=[call(on_train_batch_end=look)],
    )
    assert rates == [[2e-4, 3e-5]] * 6


def test_two_fits_at_once_on_one_directory_keep_each_others_modules(model_dir: Path, fit: Fit) -> None:
    first, second = make("x2", model_dir, 1), make("x2", model_dir, 2)  # both have read the directory
    fit(first)
    fit(second)
    written = RPFModel.from_pretrained(model_dir)
    assert not differing(first.trained_module.state_dict(), written.blocks[0].refinement.state_dict())
    assert not differing(second.trained_module.state_dict(), written.blocks[1].refinement.state_dict())


def test_a_module_that_changes_on_disk_meanwhile_is_said(model_dir: Path, fit: Fit) -> None:
    # it does not read the second
    names = ("blocks.1.warping.flow_head.bias", "blocks.1.refinement.to_rgb.bias")
    meddle = call(on_train_start=lambda *_: shift(model_dir, *names))
    stage = make("synthesis", model_dir)
    with pytest.warns(UserWarning, match=r"blocks\.1\.warping\.flow_head\.bias and others changed there"):
        fit(stage, callbacks=[meddle])
    written = RPFModel.from_pretrained(model_dir).blocks[1]
    assert not differing(stage.trained_module.state_dict(), written.synthesis.state_dict())
    assert not torch.equal(written.refinement.to_rgb.bias, stage.model.blocks[1].refinement.to_rgb.bias)


def test_a_configuration_of_another_release_is_no_other_network(model_dir: Path, fit: Fit) -> None:
    config = json.loads((model_dir / "config.json").read_text())
    older = {key: value for key, value in config.items() if key != "flow_from"}
    (model_dir / "config.json").write_text(json.dumps({**older, "validate": True, "memory": "low"}))
    stage = make("warping", model_dir)
    fit(stage)
    assert json.loads((model_dir / "config.json").read_text()) == config
    assert not differing(
        stage.trained_module.state_dict(), RPFModel.from_pretrained(model_dir).blocks[1].warping.state_dict()
    )


# Accumulation


def test_last_batches_of_an_epoch_step_too(model_dir: Path, fit: Fit, batch_of: BatchOf) -> None:
    pending: list[bool] = []
    look = call(on_train_batch_end=lambda trainer, stage, *_: pending.append(stage.mid_accumulation))
    stage = make("synthesis", model_dir, accumulate=2)
    trainer = fit(stage, batches=[batch_of(2, 0), batch_of(2, 1), batch_of(2, 0)], callbacks=[look])
    assert pending == [True, False, False]
    assert stage.generator_steps == 2
    assert [int(o.state[next(iter(o.state))]["step"]) for o in trainer.optimizers] == [2, 2]


def test_a_validation_within_an_accumulation_loses_no_gradient(model_dir: Path, tmp_path: Path) -> None:
    start, weights = fresh(model_dir), []
    for options in ({"limit_val_batches": 0}, {"limit_val_batches": 1, "val_check_interval": 1}):
        stage = start(learning_rate=1e-3, accumulate=2)
        run(stage, faces(), tmp_path, **options)
        weights.append(dict(stage.state_dict()))
    assert not differing(*weights)


def test_a_smaller_last_group_is_averaged_too(model_dir: Path, fit: Fit, batch_of: BatchOf) -> None:
    """Of the generator and of the critic; without a penalty, which is taken at random points."""
    start = fresh(model_dir)
    still = {"penalty_weight": 0.0, "learning_rate": 0.0, "critic_learning_rate": 0.0}

    def gradients(accumulate: int, *numbers: int) -> list[Tensor]:
        stage = start(accumulate=accumulate, **still)
        trainer = fit(stage, batches=[batch_of(2, number) for number in numbers])
        parameters = [p for o in trainer.optimizers for g in o.param_groups for p in g["params"]]
        assert len(trainer.optimizers) == 2
        return [p.grad.clone() for p in parameters]

    single = [gradients(1, number) for number in (0, 1)]
    for a, b, both in zip(*single, gradients(4, 0, 1), strict=True):
        torch.testing.assert_close(both, (a + b) / 2)


def test_decay_counts_steps_and_not_batches(model_dir: Path, fit: Fit, batch_of: BatchOf) -> None:
    rates: list[float] = []
    look = call(
        on_before_optimizer_step=lambda _, stage, optimizer: rates.append(optimizer.param_groups[0]["lr"])
    )
    stage = make("warping", model_dir, accumulate=2, decay="cosine", learning_rate=1e-3)
    fit(stage, epochs=4, callbacks=[look])  # 2 batches each
    assert rates == pytest.approx([1e-3 * (1 + math.cos(math.pi * n / 4)) / 2 for n in range(4)])


def test_a_stage_that_was_interrupted_starts_without_old_gradients(
    model_dir: Path, fit: Fit, batch_of: BatchOf
) -> None:
    def gradients(stage: RPFStage) -> list[Tensor]:
        fit(stage, batches=[batch_of(2, 1)])
        return [p.grad.clone() for p in stage.trained_module.parameters()]

    options = {"accumulate": 2, "adversarial_weight": 0.0, "learning_rate": 0.0}
    stage = make("synthesis", model_dir, **options)
    with pytest.raises(KeyError):
        fit(stage, batches=[batch_of(2, 0)] * 2, callbacks=[kill(0)])
    assert stage.mid_accumulation
    fresh = gradients(make("synthesis", model_dir, **options))
    assert all(torch.equal(a, b) for a, b in zip(gradients(stage), fresh, strict=True))


def test_a_stop_within_an_accumulation_is_saved(model_dir: Path, tmp_path: Path) -> None:
    def stop(trainer: Any, stage: Any, *_: Any) -> None:
        trainer.should_stop = trainer.should_stop or stage.mid_accumulation

    stage = make("synthesis", model_dir, accumulate=4, learning_rate=1e-3)
    callbacks = [call(on_train_batch_end=stop), LastCheckpoint(tmp_path / "a")]
    options: dict[str, Any] = {"enable_checkpointing": True, "callbacks": callbacks}
    run(stage, faces(), tmp_path, 2, **options)  # stops at the first batch
    assert stage.generator_steps == 0
    saved = torch.load(tmp_path / "a" / "last.ckpt", weights_only=True)
    again = make("synthesis", model_dir, accumulate=4, learning_rate=1e-3)
    run(again, faces(), tmp_path, 2, ckpt_path=tmp_path / "a" / "last.ckpt")
    assert saved["generator_steps"] == 0
    assert again.generator_steps == 2  # what waited was dropped: the next epoch's groups of 4 and 2


# Precision


@pytest.mark.parametrize("kind", ["synthesis", "x2"])
def test_losses_are_fp32_under_bf16(model_dir: Path, fit: Fit, kind: str) -> None:
    stage = make(kind, model_dir)
    seen: list[dict[str, Tensor]] = []
    terms = stage.training_terms
    stage.training_terms = lambda *args: seen.append(terms(*args)) or seen[-1]
    convolutions: list[torch.dtype] = []
    kinds = (torch.nn.Conv2d, EqualizedConv2d)
    first = next(m for m in stage.trained_module.modules() if isinstance(m, kinds))
    first.register_forward_hook(lambda m, a, out: convolutions.append(out.dtype))
    fit(stage, precision="bf16-mixed")
    assert set(convolutions) == {torch.bfloat16}  # autocast was on
    assert {value.dtype for values in seen for value in values.values()} == {torch.float32}
    assert all(bool(torch.isfinite(value)) for values in seen for value in values.values())
    assert {p.dtype for p in stage.parameters()} == {torch.float32}


def test_penalty_is_differentiated_in_fp32_under_bf16(model_dir: Path, fit: Fit, batch_of: BatchOf) -> None:
    """A fully connected layer's weight would get gradients on the grid of bf16."""
    stage = make("synthesis", model_dir)
    assert isinstance(stage.critic, Critic)
    forward = stage.critic.forward
    kept: list[Tensor] = []
    # only the penalty's own pass has a gradient at its input
    stage.critic.forward = lambda x: forward(x) * float(x.requires_grad)

    def look(trainer: Any, stage: Any, optimizer: Any) -> None:
        if optimizer is trainer.optimizers[1]:
            kept.append(stage.critic.hidden.weight.grad.clone())

    fit(stage, batches=[batch_of(2)], callbacks=[call(on_before_optimizer_step=look)], precision="bf16-mixed")
    assert kept[0].abs().max() > 0
    assert not torch.equal(kept[0], kept[0].bfloat16().float())


def test_flow_is_not_rounded_to_bf16(model_dir: Path, fit: Fit, batch_of: BatchOf) -> None:
    stage = make("warping", model_dir)
    seen, generate = [], stage.generate
    stage.generate = lambda batch: seen.append(generate(batch)) or seen[-1]
    with torch.no_grad():
        stage.current_block.warping.flow_head.weight.normal_(std=0.1)
    fit(stage, batches=[batch_of(2)], precision="bf16-mixed")
    flow = seen[0]["flow"].detach() / stage.current_block.warping.flow_scale
    assert not torch.equal(flow, flow.bfloat16().float())


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-true"])
def test_other_precisions_are_refused(model_dir: Path, precision: str) -> None:
    stage = make("synthesis", model_dir)
    stage._trainer = type("Trainer", (), {"precision": precision, "max_epochs": 1})()
    with pytest.raises(ValueError, match=rf"precision: expected 32-true or bf16-mixed, got {precision}"):
        stage.on_fit_start()


# NaN


def poison(number: int, value: float) -> Callback:
    """Makes one training batch's GT NaN or infinite."""

    def spoil(trainer: Any, stage: Any, batch: ReferenceBatch, batch_idx: int) -> None:
        if trainer.fit_loop.epoch_loop.total_batch_idx == number:
            batch.gt[0, 0, 5, 5] = value

    return call(on_train_batch_start=spoil)


def watch_steps(stage: RPFStage) -> list[list[str]]:
    """The names of the batches that came to the training step."""
    seen, step = [], stage.training_step
    stage.training_step = lambda batch, batch_idx: seen.append(list(batch.id)) or step(batch, batch_idx)
    return seen


@pytest.mark.parametrize(("kind", "value"), [("synthesis", float("nan")), ("lr", float("inf"))])
def test_a_loss_that_is_not_finite_stops_the_run(
    model_dir: Path, tmp_path: Path, kind: str, value: float
) -> None:
    stage = make(kind, model_dir)
    before = (model_dir / "model.safetensors").read_bytes()
    seen = watch_steps(stage)
    checkpoint = LastCheckpoint(tmp_path / "checkpoints", every_n_batches=1)
    with pytest.raises(FloatingPointError, match=r"loss not finite: .*reconstruction"):
        run(stage, faces(), tmp_path, 2, callbacks=[checkpoint, poison(3, value)], enable_checkpointing=True)
    assert len(seen) == 4  # with a checkpoint at every batch at once; without one, a step later
    note = json.loads((stage.run_dir / "not_finite.json").read_text())
    assert note["id"] == seen[3]
    assert (note["step"], note["epoch"]) == (3, 0)
    assert len(note["reference_id"]) == 2
    assert note["values"]["reconstruction"] in ("nan", "inf")  # outside the mask 0 * inf is NaN
    kept = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert kept["generator_steps"] == 3
    assert all(bool(torch.isfinite(v).all()) for v in kept["state_dict"].values())
    assert (model_dir / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(("batch", "steps"), [(2, 4), (5, 6)], ids=["within a step", "the fit's last batch"])
def test_without_checkpoints_it_stops_a_step_later(
    model_dir: Path, tmp_path: Path, batch: int, steps: int
) -> None:
    stage = make("synthesis", model_dir)
    seen = watch_steps(stage)
    with pytest.raises(FloatingPointError, match=r"loss not finite: .*reconstruction"):
        run(stage, faces(), tmp_path, callbacks=[poison(batch, float("nan"))])
    assert len(seen) == steps
    assert json.loads((stage.run_dir / "not_finite.json").read_text())["step"] == batch


@pytest.mark.parametrize("hook", ["on_train_epoch_end", "on_train_end"])
def test_a_model_that_is_not_finite_is_neither_saved_nor_written(
    model_dir: Path, tmp_path: Path, fit: Fit, hook: str
) -> None:
    @torch.no_grad()
    def spoil(trainer: Any, pl_module: Any) -> None:
        next(pl_module.trained_module.parameters())[0] = float("nan")

    before = (model_dir / "model.safetensors").read_bytes()
    kept = [ModelCheckpoint(tmp_path / "kept")] if hook == "on_train_epoch_end" else []
    with pytest.raises(FloatingPointError, match="holds NaN or infinite weights"):
        fit(
            make("synthesis", model_dir),
            callbacks=[call(**{hook: spoil}), *kept],
            enable_checkpointing=bool(kept),
        )
    assert (model_dir / "model.safetensors").read_bytes() == before
    assert not list(tmp_path.glob("kept/*.ckpt"))


# Critics and gradient norms


def test_stylegan2_critic_trains_with_softplus_and_r1(model_dir: Path, fit: Fit, batch_of: BatchOf) -> None:
    stage = make("x2", model_dir, critic="stylegan2", penalty_weight=4.0, adversarial_weight=0.5)
    batch = batch_of(2)
    assert stage.critic is not None
    before = {k: v.clone() for k, v in stage.critic.state_dict().items()}
    with torch.no_grad():
        real = stage.critic(batch.gt)
        fake_image = stage.generate(batch)["output"]
        fake = stage.critic(fake_image)
    inputs = batch.gt.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(stage.critic(inputs).sum(), inputs)
    penalty = 2.0 * (gradient / 2).flatten(1).square().sum(1).mean()  # of images in [-1, 1]
    loss = torch.nn.functional.softplus(fake).mean() + torch.nn.functional.softplus(-real).mean()
    values = fit(stage, batches=[batch]).callback_metrics
    assert values["train/penalty"] == pytest.approx(penalty.item(), rel=1e-3)
    assert values["train/critic_loss"] == pytest.approx((loss + penalty).item(), rel=1e-3)
    assert values["train/critic_estimate"] == pytest.approx((real - fake).mean().item(), rel=1e-2, abs=1e-5)
    assert differing(before, stage.critic.state_dict())


def test_gradient_norms_are_those_at_the_output(model_dir: Path, fit: Fit, batch_of: BatchOf) -> None:
    stage = make("synthesis", model_dir, unmasked_weight=0.3, adversarial_weight=0.7, gradient_norms_every=2)
    logged: list[dict[str, float]] = []
    kept, generate = [], stage.generate
    stage.generate = lambda batch: kept.append(generate(batch)) or kept[-1]

    def look(trainer: Any, *_: Any) -> None:
        logged.append({k: v.item() for k, v in trainer.callback_metrics.items() if k.startswith("grad/")})

    fit(stage, batches=[batch := batch_of(2), batch], callbacks=[call(on_train_batch_end=look)])
    assert logged[0] == {}  # every second batch
    assert set(logged[1]) == {"grad/reconstruction", "grad/unmasked_relative", "grad/adversarial_relative"}
    output, gt = kept[1]["output"].detach(), batch.gt
    count = output.numel()
    inside = batch.gt_mask.expand_as(gt)
    masked = ((output != gt) * inside).sum().sqrt().item() / count
    whole = (output != gt).sum().sqrt().item() / count
    assert logged[1]["grad/reconstruction"] == pytest.approx(masked, rel=1e-4)
    assert logged[1]["grad/unmasked_relative"] == pytest.approx(0.3 * whole / masked, rel=1e-4)
    assert logged[1]["grad/adversarial_relative"] > 0


def test_gradient_norms_of_terms_that_do_not_look_or_pull() -> None:
    at, elsewhere = torch.rand(3, requires_grad=True), torch.rand(3, requires_grad=True)
    with pytest.raises(RuntimeError, match="not have been used"):
        gradient_norms({"reconstruction": elsewhere.sum(), "adversarial": at.sum()}, at)
    norms = gradient_norms({"reconstruction": (2 * at).sum(), "adversarial": elsewhere.sum()}, at)
    assert norms["reconstruction"].item() == pytest.approx(2 * 3**0.5)
    assert norms["adversarial_relative"] == 0
    # finite where the first does not pull, as in a warping fit whose reference is the enlarged LR
    for other, expected in ((at.sum() * 0, 0.0), (9 * at.sum(), torch.finfo(torch.float32).max)):
        norms = gradient_norms({"warping": at.sum() * 0, "flow": other}, at)
        assert (norms["warping"], norms["flow_relative"]) == (0, expected)


def test_gradient_norms_change_nothing(model_dir: Path, fit: Fit) -> None:
    start, weights = fresh(model_dir), []
    for every in (0, 1):
        stage = start(gradient_norms_every=every)
        fit(stage)
        weights.append(dict(stage.state_dict()))
    assert not differing(*weights)


# Pictures


@pytest.mark.parametrize(
    ("kind", "titles"),
    [
        ("warping", "LR bicubic flow aligned GT reference thin-plate mask"),
        ("synthesis", "LR bicubic flow aligned synthesized GT reference thin-plate mask"),
        ("x2", "LR bicubic output GT reference thin-plate mask"),
        ("synthesized", "LR bicubic flow aligned synthesized output GT reference thin-plate mask"),
    ],
)
def test_pictures(model_dir: Path, batch_of: BatchOf, kind: str, titles: str) -> None:
    batch = batch_of(2)
    pictures = make(kind, model_dir).pictures(batch)
    assert list(pictures) == titles.split()
    for image in pictures.values():
        assert image.shape == batch.gt.shape
        assert not image.requires_grad
        assert image.min() >= 0
        assert image.max() <= 1
    unwarped = make(kind, model_dir).pictures(batch._replace(warped_reference=None))
    assert list(unwarped) == titles.replace("thin-plate ", "").split()
    assert torch.equal(pictures["GT"], batch.gt)
    assert torch.equal(pictures["LR"][..., ::4, ::4], batch.lr)


@pytest.mark.parametrize("kind", ["warping", "synthesis", "x2", "joint"])
@pytest.mark.parametrize("clip", [0.0, 1e-5])
def test_the_gradient_is_clipped(
    model_dir: Path, fit: Fit, batch_of: BatchOf, kind: str, clip: float
) -> None:
    """That of what is trained, in the mean of its batches; not the critic's."""
    stage = make(kind, model_dir, gradient_clip=clip, accumulate=2)
    fit(stage, batches=[batch_of(2)] * 2)

    def norm(module: torch.nn.Module) -> torch.Tensor:
        return torch.stack([p.grad.norm() for p in module.parameters() if p.grad is not None]).norm()

    assert (norm(stage.trained_module) <= 1.001e-5) == bool(clip)
    if stage.critic is not None if kind in ("synthesis", "x2") else False:
        assert norm(stage.critic) > 1e-4
