"""The three stages on a tiny network: what trains, what is written, what a checkpoint holds, what raises."""

import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader
from torchmetrics import Metric

from rpf_lightning.metrics import ReferenceISC, psnr
from rpf_lightning.model import Critic, RPFConfig, RPFModel, StyleGAN2Critic
from rpf_lightning.model.resize import resize
from rpf_lightning.stages import RefinementStage, RPFStage, SynthesisStage, WarpingStage
from small_fits import QUIET
from stage_fits import OFF, call, differing, make, shift, snapshot

Fit = Callable[..., Any]
BatchOf = Callable[..., Any]
KINDS = ["warping", "synthesis", "x2", "synthesized"]
MODULE = {"warping": "warping", "synthesis": "synthesis"}


def last_checkpoint(folder: Path) -> ModelCheckpoint:
    return ModelCheckpoint(folder, save_last=True)


# What trains


@pytest.mark.parametrize("kind", KINDS)
def test_fit_changes_the_trained_module_and_nothing_else(model_dir: Path, fit: Fit, kind: str) -> None:
    stage = make(kind, model_dir, learning_rate=1e-3)
    before = snapshot(stage.model)
    fit(stage)
    changed = differing(before, snapshot(stage.model))
    own = f"blocks.1.{MODULE.get(kind, 'refinement')}."
    assert changed
    assert all(key.startswith(own) for key in changed)
    weights = [key for key in before if key.startswith(own) and re.search(r"conv\d?\.weight$", key)]
    assert set(weights) & changed  # deep inside, not a bias of the last layer only
    written = snapshot(RPFModel.from_pretrained(model_dir))
    assert differing(written, snapshot(stage.model)) == set()


@pytest.mark.parametrize("kind", ["warping", "synthesis", "synthesized"])
def test_loss_falls_on_one_batch(model_dir: Path, fit: Fit, batch_of: BatchOf, kind: str) -> None:
    stage = make(kind, model_dir, learning_rate=1e-2, **({} if kind == "warping" else OFF))
    if kind not in MODULE:  # with `residual` the module starts near its best: a wrong colour gives it work
        with torch.no_grad():
            stage.trained_module.to_rgb.bias += 0.2
    losses: list[float] = []
    look = call(on_train_batch_end=lambda t, *_: losses.append(t.callback_metrics["train/loss"].item()))
    torch.manual_seed(0)
    trainer = fit(stage, epochs=25, callbacks=[look], batches=[batch_of(2)])
    assert sum(losses[-3:]) < (0.93 if kind in MODULE else 0.5) * sum(losses[:3])
    if kind != "warping":  # no critic without its term
        assert (stage.critic, len(trainer.optimizers), trainer.global_step) == (None, 1, 25)
        assert "train/adversarial" not in trainer.callback_metrics


# The terms


def test_perceptual_and_identity_terms_are_weighted(
    model_dir: Path, fit: Fit, batch_of: BatchOf, made_up_weights: None
) -> None:
    stage = make("lr", model_dir, adversarial_weight=0.0, perceptual_weight=0.5, identity_weight=0.25)
    before = {**snapshot(stage.perceptual), **snapshot(stage.identity)}
    batch = batch_of(2)
    with torch.no_grad():
        output = stage.generate(batch)["output"]
        perceptual = 0.5 * stage.perceptual(output, batch.gt).item()
        identity = 0.25 * stage.identity(output, batch.gt).item()
        l1 = (output - batch.gt).abs().mean().item()
    metrics = fit(stage, batches=[batch]).callback_metrics
    assert metrics["train/perceptual"].item() == pytest.approx(perceptual, rel=1e-4)
    assert metrics["train/identity"].item() == pytest.approx(identity, rel=1e-4)
    assert metrics["train/loss"].item() == pytest.approx(perceptual + identity + l1, rel=1e-4)
    assert min(perceptual, identity) > 1e-3
    assert differing(before, {**snapshot(stage.perceptual), **snapshot(stage.identity)}) == set()


@pytest.mark.parametrize(
    ("missing", "hint"),
    [("perceptual_weight", "perceptual_weight: 0"), ("identity_weight", "identity_weight: 0")],
)
def test_term_without_weights_raises(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str, hint: str
) -> None:
    monkeypatch.setenv("RPF_WEIGHTS_DIR", str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError, match=hint):
        RefinementStage(str(model_dir), 1, **{**OFF, missing: 1.0})


def test_refinement_defaults_are_the_papers(model_dir: Path, made_up_weights: None) -> None:
    stage = RefinementStage(str(model_dir))
    weights = (stage.adversarial_weight, stage.perceptual_weight, stage.identity_weight)
    assert weights == (1, 1, 1)
    assert (stage.learning_rate, stage.penalty_weight, stage.input) == (1e-4, 10, "x2")
    assert isinstance(stage.critic, Critic)
    assert stage.penalty_norm == "rms"
    assert (stage.perceptual.jitter, stage.identity.norm) == (1, "l1")
    assert SynthesisStage(str(model_dir)).adversarial_weight == 0.1
    given = {**OFF, "perceptual_weight": 1.0, "perceptual_jitter": 4}
    assert SynthesisStage(str(model_dir), **given).perceptual.jitter == 4


@pytest.mark.parametrize("kind", ["warping", "synthesis", "x2"])
def test_loss_sees_the_unclamped_output(
    model_dir: Path, fit: Fit, batch_of: BatchOf, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pixels at -0.3 of a black GT: clamped they would give no loss and no gradient."""
    stage = make(kind, model_dir, **({} if kind == "warping" else OFF))
    batch = batch_of(2)
    black = torch.zeros_like(batch.gt)
    batch = batch._replace(gt=black, warped_reference=black, gt_mask=torch.ones_like(batch.gt_mask))
    generate = stage.generate

    def shifted(batch: Any) -> dict[str, Tensor]:
        outputs = generate(batch)
        down = (outputs["output"].detach().max() + 0.3).clamp_min(0)
        return {**outputs, "output": outputs["output"] - down}

    monkeypatch.setattr(stage, "generate", shifted)
    before = snapshot(stage.trained_module)
    metrics = fit(stage, batches=[batch]).callback_metrics
    assert metrics["train/loss"].item() > 0.29
    assert differing(before, snapshot(stage.trained_module))


# The critic


@pytest.mark.parametrize("kind", ["synthesis", "lr"])
def test_critic_is_trained_on_whole_images_and_that_of_the_synthesis_inside_the_gts_mask(
    model_dir: Path, fit: Fit, batch_of: BatchOf, kind: str
) -> None:
    """And scores the images of before the generator step, then with gradients for the generator only."""
    stage, seen, graphs, batch = make(kind, model_dir), [], [], batch_of(2)
    before = snapshot(stage.critic)

    def look(module: Critic, args: tuple[Tensor]) -> None:
        seen.append(args[0].detach().clone())
        graphs.append((args[0].grad_fn is not None, next(module.parameters()).requires_grad))

    stage.critic.register_forward_pre_hook(look)
    mask = batch.gt_mask.expand_as(batch.gt) if kind == "synthesis" else torch.ones_like(batch.gt)
    assert kind == "lr" or 0.05 < mask.mean() < 0.95
    with torch.no_grad():
        output = stage.generate(batch)["output"]
    fit(stage, batches=[batch])
    real, fake, points, generated = seen
    assert torch.equal(real, batch.gt * mask)
    assert torch.equal(fake, output * mask)
    assert torch.equal(generated, fake)
    assert graphs[:2] == [(False, True)] * 2
    assert graphs[2][1]
    assert graphs[3] == (True, False)
    assert not points[mask == 0].any()
    assert len(differing(before, snapshot(stage.critic))) > len(before) / 2


def test_critics_of_both_kinds(model_dir: Path) -> None:
    paper = make("lr", model_dir)
    other = make("lr", model_dir, critic="stylegan2", critic_learning_rate=2e-3)
    assert isinstance(paper.critic, Critic)
    assert isinstance(other.critic, StyleGAN2Critic)  # as wide as the refinement
    width = sum(p.numel() for p in StyleGAN2Critic(64, 1 / 64).parameters())
    assert sum(p.numel() for p in other.critic.parameters()) == width
    for stage, betas, rate in ((paper, (0.0, 0.9), 1e-4), (other, (0.0, 0.99), 2e-3)):
        generator, critic = (optimizer.param_groups[0] for optimizer in stage.configure_optimizers())
        assert (generator["betas"], generator["lr"]) == ((0.9, 0.999), 1e-4)
        assert (critic["betas"], critic["lr"]) == (betas, rate)


# Synthesis


def test_rec_mask_is_the_gts_or_the_references(model_dir: Path, batch_of: BatchOf) -> None:
    batch = batch_of(2)
    values = {}
    for choice, mask in (("gt", batch.gt_mask), ("reference", batch.reference_mask)):
        stage = make("synthesis", model_dir, rec_mask=choice)
        with torch.no_grad():
            outputs = stage.generate(batch)
            value = stage.terms(batch, outputs)["reconstruction"].item()
        expected = (mask * outputs["output"] - mask * batch.gt).abs().mean().item()
        assert value == pytest.approx(expected, rel=1e-5)
        values[choice] = value
    assert values["gt"] != pytest.approx(values["reference"], rel=1e-3)


def test_synthesis_sees_the_reference_as_the_warping_module_aligned_it(
    model_dir: Path, batch_of: BatchOf
) -> None:
    stage = make("synthesis", model_dir)
    batch = batch_of(2)
    with torch.no_grad():
        _, records = stage.model(batch.lr, stage.model.pyramid(batch.reference, 2), return_intermediates=True)
        output = stage.generate(batch)["output"]
    torch.testing.assert_close(output, records[1].synthesized)


# Warping


def test_warping_follows_eq_3_beside_no_warp_and_the_thin_plate_one(
    model_dir: Path, batch_of: BatchOf
) -> None:
    stage = make("warping", model_dir)
    batch = batch_of(2)
    with torch.no_grad():
        outputs = stage.generate(batch)
        terms = stage.terms(batch, outputs)
    expected = (outputs["output"] - batch.warped_reference).abs().mean()
    assert terms.keys() == {"warping"}
    assert terms["warping"].item() == pytest.approx(expected.item())
    outputs = {"output": batch.warped_reference, "flow": batch.flow}
    assert stage.diagnostics(batch, outputs) == {}  # in training
    values = stage.eval().diagnostics(batch, outputs)
    unwarped = (batch.reference - batch.warped_reference).abs().mean()
    torch.testing.assert_close(values["warping_unwarped"], unwarped)
    assert values["face_l1"] == values["face_l1_thin_plate"]
    face = ((batch.reference - batch.gt) * batch.gt_mask).abs().mean()
    torch.testing.assert_close(values["face_l1_unwarped"], face)


def test_flow_term_counts_in_64ths_of_the_side(model_dir: Path, batch_of: BatchOf) -> None:
    stage = make("warping", model_dir, 1, flow_weight=0.5)
    batch = batch_of(1)
    off_by_a_unit = batch.flow + stage.side / 64
    term = stage.terms(batch, {"output": batch.gt, "flow": off_by_a_unit})["flow"]
    assert term.item() == pytest.approx(0.5 * batch.gt_mask.mean().item(), rel=1e-4)


CRITIC = {
    "train/critic_estimate",
    "train/penalty",
    "train/critic_loss",
    "train/adversarial",
    "grad/adversarial_relative",
}
IMAGE = {"val/psnr", "val/psnr_face", "val/ssim", "val/lr_consistency", "val/reconstruction"}


@pytest.mark.parametrize(
    ("kind", "kwargs", "names"),
    [
        (
            "warping", {"flow_weight": 0.1},
            {"train/warping", "train/flow", "grad/warping", "grad/flow_relative", "val/warping", "val/flow",
             "val/end_point_error", "val/end_point_error_unwarped", "val/flow_correlation", "val/warping_unwarped",
             "val/face_l1", "val/face_l1_unwarped", "val/face_l1_thin_plate"},
        ),
        (
            "synthesis", {"unmasked_weight": 0.3},
            {"train/reconstruction", "train/unmasked", "grad/reconstruction", "grad/unmasked_relative", "val/unmasked",
             *CRITIC, *IMAGE},
        ),
        ("synthesized", {}, {"train/reconstruction", "grad/reconstruction", *CRITIC, *IMAGE}),
    ],
)  # fmt: skip
def test_names_of_what_is_logged_are_stable(
    model_dir: Path, fit: Fit, batch_of: BatchOf, kind: str, kwargs: dict[str, Any], names: set[str]
) -> None:
    """Dashboards are built on them; the loss is the sum of the terms."""
    stage = make(kind, model_dir, gradient_norms_every=1, **kwargs)
    metrics = fit(stage, batches=[batch_of(2)], validate=True).callback_metrics
    assert metrics.keys() == names | {"train/loss", "loss"}
    terms = [
        v.item()
        for k, v in metrics.items()
        if k.startswith("train/") and k != "train/loss" and "crit" not in k
    ]
    total = sum(terms) - metrics.get("train/penalty", torch.tensor(0.0)).item()
    assert metrics["train/loss"].item() == pytest.approx(total, rel=1e-5)


def test_metrics_are_means_over_images_and_in_no_checkpoint(
    model_dir: Path, tmp_path: Path, fit: Fit, batch_of: BatchOf
) -> None:
    stage = make("synthesis", model_dir, learning_rate=0.0)
    a, b = batch_of(2, 0), batch_of(2, 1)
    one = type(a)(
        *(value[:1] if isinstance(value, Tensor | list) else value for value in a)
    )  # uneven batches
    given = {"batches": [one, b], "validate": True}
    checkpoint = last_checkpoint(tmp_path)
    metrics = fit(stage, **given, callbacks=[checkpoint], enable_checkpointing=True).callback_metrics
    values = []
    with torch.no_grad():
        for batch in (one, b):
            values.append(psnr(stage.generate(batch)["output"], batch.gt))
    assert metrics["val/psnr"].item() == pytest.approx(torch.cat(values).mean().item(), abs=1e-4)
    assert {"val/ssim", "val/lr_consistency", "val/psnr_face"} <= metrics.keys()
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert not any("metrics" in key for key in state)


# Refinement


def fed(stage: RPFStage, batch: Any) -> Tensor:
    """What the trained refinement module is fed with."""
    seen: list[Tensor] = []
    handle = stage.trained_module.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        stage.generate(batch)
    handle.remove()
    return seen[0]


def test_inputs_of_the_refinement(model_dir: Path, batch_of: BatchOf) -> None:
    batch = batch_of(2)
    halved = resize(resize(batch.gt, 32).clamp(0, 1), 64)
    from_lr = resize(batch.lr, 64)
    assert (halved - from_lr).abs().max() > 0.01
    torch.testing.assert_close(fed(make("x2", model_dir), batch), halved)
    torch.testing.assert_close(fed(make("lr", model_dir), batch), from_lr)
    torch.manual_seed(0)
    mixed = [fed(make("mix", model_dir), batch) for _ in range(12)]
    kinds = {
        "x2" if torch.allclose(m, halved) else "lr" if torch.allclose(m, from_lr) else "?" for m in mixed
    }
    assert kinds == {"x2", "lr"}
    stage = make("synthesized", model_dir)
    with torch.no_grad():
        _, records = stage.model(batch.lr, stage.model.pyramid(batch.reference, 2), return_intermediates=True)
        expected = (resize(records[0].output.clamp(0, 1), 64) + records[1].synthesized) / 2
    torch.testing.assert_close(fed(stage, batch), expected, rtol=1e-4, atol=1e-5)
    first = batch_of(1)  # the first block takes the rounded LR
    for kind in ("x2", "lr", "mix"):
        torch.testing.assert_close(fed(make(kind, model_dir, 1), first), resize(first.lr, 32))


# The model directory


def test_model_is_not_written_by_fast_dev_run(model_dir: Path, fit: Fit) -> None:
    before = (model_dir / "model.safetensors").read_bytes()
    fit(make("warping", model_dir, learning_rate=1e-2), fast_dev_run=2)
    assert (model_dir / "model.safetensors").read_bytes() == before
    fit(make("warping", model_dir, learning_rate=1e-2))
    assert (model_dir / "model.safetensors").read_bytes() != before


def test_new_directory_gets_the_network(
    tmp_path: Path, network: dict[str, Any], fit: Fit, batch_of: BatchOf
) -> None:
    """Which is in no checkpoint: these are read as data only."""
    stage = WarpingStage(str(tmp_path / "new"), 1, RPFConfig(**network))
    assert (stage.lr_size, stage.size, stage.side) == (16, 64, 32)
    assert stage.run_dir == tmp_path / "new" / "runs" / "block1-warping"
    assert not (tmp_path / "new").exists()  # a Trainer may refuse it
    meanwhile = WarpingStage(
        str(tmp_path / "new"), 2, RPFConfig(**network)
    )  # another process: one model for both
    fit(stage, batches=[batch_of(1)]).save_checkpoint(tmp_path / "a.ckpt")
    again = WarpingStage(str(tmp_path / "new"), 2)
    assert again.side == 64
    assert differing(snapshot(stage.model), snapshot(again.model)) == set()
    assert "network" not in torch.load(tmp_path / "a.ckpt", weights_only=True)["hyper_parameters"]
    loaded = WarpingStage.load_from_checkpoint(tmp_path / "a.ckpt")
    assert differing(snapshot(stage.model), snapshot(loaded.model)) == set()
    fit(meanwhile, fast_dev_run=1)
    assert differing(snapshot(meanwhile.model), snapshot(again.model)) != set()
    fit(meanwhile, batches=[batch_of(2)])
    changed = differing(snapshot(meanwhile.model), snapshot(again.model))
    assert {name.split(".")[1] + name.split(".")[2] for name in changed} == {"1warping"}


def test_directory_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        WarpingStage(str(tmp_path / "none"))
    text = str(caught.value)
    assert str(tmp_path / "none") in text
    assert "rpf curriculum" in text
    assert "save_pretrained" in text
    assert not (tmp_path / "none").exists()


def test_other_network_than_the_directorys(model_dir: Path, network: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"channels: 4 there, 8 here") as caught:
        WarpingStage(str(model_dir), 1, RPFConfig(**{**network, "channels": 8}))
    assert "width" not in str(caught.value)


# Checkpoints and resuming


def test_checkpoint_holds_the_trained_module_and_the_critic(
    model_dir: Path, tmp_path: Path, fit: Fit, made_up_weights: None
) -> None:
    stage = make("lr", model_dir, perceptual_weight=0.01, identity_weight=0.01)
    fit(stage, callbacks=[last_checkpoint(tmp_path)], enable_checkpointing=True)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    module = {f"model.blocks.1.refinement.{key}" for key in stage.trained_module.state_dict()}
    critic = {f"critic.{key}" for key in stage.critic.state_dict()}
    assert checkpoint["state_dict"].keys() == module | critic
    assert checkpoint["frozen_hash"] == stage.frozen_hash()
    assert checkpoint["generator_steps"] == 2
    assert checkpoint["hyper_parameters"]["input"] == "lr"
    assert len(checkpoint["optimizer_states"]) == 2
    # and it goes back in, with the frozen networks that it does not hold
    again = make("lr", model_dir, perceptual_weight=0.01, identity_weight=0.01)
    fit(again, epochs=2, ckpt_path=tmp_path / "last.ckpt")
    assert again.generator_steps == 4


def test_checkpoints_of_other_models_and_fits_are_refused(model_dir: Path, tmp_path: Path, fit: Fit) -> None:
    fit(make("synthesis", model_dir), callbacks=[last_checkpoint(tmp_path)], enable_checkpointing=True)
    shift(model_dir, "blocks.0.refinement.to_rgb.bias")
    with pytest.raises(ValueError, match="frozen modules differ") as caught:
        fit(make("synthesis", model_dir), epochs=2, ckpt_path=tmp_path / "last.ckpt")
    assert str(model_dir) in str(caught.value)
    with pytest.raises(
        ValueError, match="expected a checkpoint of block2-warping, got one of block2-synthesis"
    ):
        fit(make("warping", model_dir), epochs=2, ckpt_path=tmp_path / "last.ckpt")
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    del content["fit"]
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="got one of something else"):
        fit(make("synthesis", model_dir), epochs=2, ckpt_path=tmp_path / "other.ckpt")


def test_hash_covers_what_a_stage_computes_with(model_dir: Path) -> None:
    names = [f"blocks.{n}.{name}" for n in range(2) for name in ("warping", "synthesis", "refinement")]
    read = {}
    for kind in ("warping", "synthesis", "synthesized", "x2"):
        read[kind] = []
        for name in names:
            stage = make(kind, model_dir, 2)
            before = stage.frozen_hash()
            with torch.no_grad():
                next(stage.model.get_submodule(name).parameters()).add_(1)
            if stage.frozen_hash() != before:
                read[kind].append(name)
    assert read == {"warping": names[:3], "synthesis": names[:4], "synthesized": names[:5], "x2": []}


# The fit's length


@pytest.mark.parametrize("options", [{"epochs": 3, "max_steps": 6}, {"epochs": -1}])
def test_length_is_given_in_epochs(model_dir: Path, fit: Fit, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"expected the fit's length in max_epochs"):
        fit(make("warping", model_dir, 1), **options)


def test_every_random_state_is_restored(model_dir: Path, tmp_path: Path, fit: Fit) -> None:
    fit(make("warping", model_dir), callbacks=[last_checkpoint(tmp_path)], enable_checkpointing=True)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    stage = make("warping", model_dir)
    drawn = []
    for _ in range(2):
        stage.on_load_checkpoint(dict(checkpoint))
        drawn.append((torch.rand(()).item(), random.random(), np.random.rand()))  # noqa: NPY002
    assert drawn[0] == drawn[1]
    assert drawn[0] != (torch.rand(()).item(), random.random(), np.random.rand())  # noqa: NPY002


@pytest.mark.parametrize("phase", ["validate", "test"])
def test_an_interrupted_validation_leaves_no_values(phase: str, model_dir: Path, batch_of: BatchOf) -> None:
    stage, trainer = make("lr", model_dir, **OFF), Trainer(**QUIET)
    run = getattr(trainer, phase)
    (expected,) = run(stage, DataLoader([batch_of(2)], batch_size=None), verbose=False)
    black = torch.zeros(1, 3, 64, 64)
    stage.measured.update(output=black, gt=black + 1, mask=black[:, :1] + 1, lr=torch.zeros(1, 3, 16, 16))
    (again,) = run(stage, DataLoader([batch_of(2)], batch_size=None), verbose=False)
    assert again == expected


def test_stages_may_measure_against_the_reference(
    model_dir: Path, batch_of: BatchOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of the metrics' vocabulary is given, also to those that a subclass adds."""

    class Measuring(SynthesisStage):
        def metrics(self) -> dict[str, Metric]:
            return {"isc_reference": ReferenceISC(lambda image: image.flatten(1))}

    stage, batch = Measuring(str(model_dir), 2, adversarial_weight=0), batch_of(2)
    (logged,) = Trainer(**QUIET).validate(stage, DataLoader([batch], batch_size=None), verbose=False)
    with torch.no_grad():
        output = stage.eval().generate(batch)["output"].clamp(0, 1)
    expected = torch.cosine_similarity(output.flatten(1), batch.reference.flatten(1)).mean().item()
    assert logged["val/isc_reference"] == pytest.approx(expected, abs=1e-5)
