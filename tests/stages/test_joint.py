"""Joint training of several blocks: what is trained, from which losses, on which samples."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer
from torch import Tensor

from rpf_lightning import JointStage
from rpf_lightning.callbacks import LastCheckpoint
from rpf_lightning.data import SyntheticFacesDataModule
from rpf_lightning.data.batches import ReferenceBatch
from rpf_lightning.data.dataset import collate
from rpf_lightning.losses import masked_l1
from rpf_lightning.model import RPFModel
from rpf_lightning.model.resize import resize, resize_mask
from rpf_lightning.stages import WarpingStage
from stage_fits import call, differing, faces, fresh, kill
from stage_fits import run as run_on

Fit = Callable[..., Any]
BatchOf = Callable[..., Any]
BARE = {"perceptual_weight": 0.0, "identity_weight": 0.0, "gradient_norms_every": 0}
MIXED = {
    "references": "all", "max_references": 3, "several_fraction": 0.5, "wrong_fraction": 0.2, "absent_fraction": 0.2,
    "self_fraction": 0.2, "colour_jitter": 0.1, "similarity_jitter": 0.05, "flip": True,
    "people": 6, "photos_each": 4, "batch_size": 4, "val_fraction": 0.34,
}  # fmt: skip


@pytest.fixture
def joint_dir(tmp_path: Path, network: dict[str, Any]) -> Path:
    """A model directory with a tiny network of three blocks with everything that is not in the paper."""
    torch.manual_seed(0)
    options = {"scale": 8, "synthesis_copy": True, "flow_from": "previous", "refinement_mean": False}
    model = RPFModel(**{**network, **options})
    with torch.no_grad():
        for block in model.blocks:
            block.warping.flow_head.weight.normal_(std=0.02)
            block.warping.flow_head.bias += torch.tensor([0.5, -0.5])
    model.save_pretrained(tmp_path / "joint")
    return tmp_path / "joint"


def make(directory: Path, first: int = 1, block: int = 2, **kwargs: Any) -> JointStage:
    return JointStage(str(directory), first, block, **{**BARE, "entry_fraction": 0.0, **kwargs})


def batch_at(side: int) -> ReferenceBatch:
    """Two pairs at a side of the network of three blocks."""
    data = SyntheticFacesDataModule(people=4, photos_each=2, lr_size=16, size=128, side=side)
    data.setup()
    made: ReferenceBatch = collate([data.train_dataset[0], data.train_dataset[2]])
    return made


def several(batch: ReferenceBatch) -> ReferenceBatch:
    """The batch's references twice, the second one of the second sample absent."""
    there = torch.tensor([[1.0, 1.0], [1.0, 0.0]])

    def twice(x: Tensor) -> Tensor:
        both = torch.stack((x, x.roll(1, 0)), 1)
        return both * there.view(2, 2, *(1,) * (both.ndim - 2))

    names = [(batch.reference_id[0], batch.reference_id[1]), (batch.reference_id[1], "")]
    fields = ("reference", "reference_mask", "reference_ok", "flow", "flow_known", "reference_landmarks")
    changed = {name: twice(getattr(batch, name)) for name in fields}
    return batch._replace(**changed, reference_id=names, warped_reference=None)


def run(stage: JointStage, folder: Path, epochs: int = 1, **kwargs: Any) -> Trainer:
    data = faces(**{**MIXED, **kwargs.pop("data", {})})
    kept = any(isinstance(callback, LastCheckpoint) for callback in kwargs.get("callbacks", []))
    return run_on(stage, data, folder, epochs, enable_checkpointing=kept, **kwargs)


def watch(stage: JointStage) -> list[dict[str, Tensor]]:
    """What a stage generates in its steps."""
    seen, generate = [], stage.generate
    stage.generate = lambda batch: seen.append(generate(batch)) or seen[-1]
    return seen


# What is trained


def test_the_blocks_of_the_fit_are_trained_and_written_and_no_others(joint_dir: Path, tmp_path: Path) -> None:
    first, block = 2, 3
    before = RPFModel.from_pretrained(joint_dir).state_dict()
    stage = make(joint_dir, first, block)
    assert stage.run_dir == joint_dir / "runs" / f"joint{first}-{block}"
    trainer = run(stage, tmp_path, callbacks=[LastCheckpoint(tmp_path / "kept")])
    kept = torch.load(tmp_path / "kept" / "last.ckpt", weights_only=True)["state_dict"]
    assert {".".join(name.split(".")[:3]) for name in kept} == {"model.blocks.1", "model.blocks.2"}
    after = RPFModel.from_pretrained(joint_dir).state_dict()
    own = tuple(f"blocks.{n - 1}." for n in range(first, block + 1))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name for name in changed if not name.startswith(own)} == set()
    wanted = {f"{prefix}{module}" for prefix in own for module in ("warping", "synthesis", "refinement")}
    assert {".".join(name.split(".")[:3]) for name in changed} == wanted
    trained = trainer.optimizers[0].param_groups[0]["params"]
    assert {id(p) for p in trained} == {
        id(p) for n in range(first, block + 1) for p in stage.model.blocks[n - 1].parameters()
    }
    assert trainer.optimizers[0].param_groups[0]["betas"] == (0.9, 0.99)


def test_the_loss_at_the_last_side_alone_trains_the_first_flow(joint_dir: Path, tmp_path: Path) -> None:
    before = RPFModel.from_pretrained(joint_dir).blocks[0].warping.state_dict()
    run(make(joint_dir, 1, 3, lower_weight=0.0, flow_weight=0.0, synthesized_weight=0.0), tmp_path)
    after = RPFModel.from_pretrained(joint_dir).blocks[0].warping.state_dict()
    assert all(not torch.equal(before[name], after[name]) for name in before)


def test_resuming_within_an_epoch_equals_not_stopping(joint_dir: Path, tmp_path: Path) -> None:
    """With random references, several of them, flips and entries."""
    start = fresh(joint_dir)

    def fit(name: str, *callbacks: Callback, ckpt_path: Path | None = None) -> JointStage:
        stage = start("joint", entry_fraction=0.5)
        kept = LastCheckpoint(tmp_path / name, every_n_batches=2)
        run(stage, tmp_path, 2, callbacks=[kept, *callbacks], ckpt_path=ckpt_path)
        return stage

    whole = fit("whole")
    with pytest.raises(KeyError, match="killed"):
        fit("begun", kill(7))
    last = tmp_path / "begun" / "last.ckpt"
    # within the second epoch of four batches
    assert 4 < torch.load(last, weights_only=True)["generator_steps"] < whole.generator_steps == 8
    rest = fit("begun", ckpt_path=last)
    assert rest.generator_steps == 8
    assert not differing(whole.state_dict(), rest.state_dict())


# The losses


def test_terms_at_the_last_side_and_half_as_much_below(joint_dir: Path, fit: Fit, batch_of: BatchOf) -> None:
    batch, stage = batch_of(2), make(joint_dir)
    seen = watch(stage)
    trainer = fit(stage, batches=[batch])
    out = seen[0]

    def by_hand(gt: Tensor, mask: Tensor, flow: Tensor, suffix: str = "") -> tuple[Tensor, Tensor, Tensor]:
        l1 = ((1 + mask) * (out[f"output{suffix}"] - gt).abs()).mean()
        synthesized = 0.5 * masked_l1(out[f"synthesized{suffix}"], gt, mask)
        error = 0.1 * (mask * (out[f"flow{suffix}"] - flow).abs()).mean() * 64 / gt.shape[-1]
        return l1, synthesized, error

    l1, synthesized, flow = by_hand(batch.gt, batch.gt_mask, batch.flow)
    lower = by_hand(
        resize(batch.gt, 32).clamp(0, 1), resize_mask(batch.gt_mask, 32), resize(batch.flow, 32) / 2, "_32"
    )
    logged = trainer.callback_metrics
    for name, value in {
        "reconstruction": l1, "synthesized": synthesized, "flow": flow, "below": 0.5 * sum(lower),
    }.items():  # fmt: skip
        torch.testing.assert_close(logged[f"train/{name}"], value.detach())
    torch.testing.assert_close(logged["train/loss"], (l1 + synthesized + flow + 0.5 * sum(lower)).detach())


def test_the_flow_term_falls_to_nothing_and_knows_own_references_only(
    joint_dir: Path, fit: Fit, batch_of: BatchOf
) -> None:
    batch = several(batch_of(2))
    values = []

    def flow_of(batches: list[ReferenceBatch]) -> None:
        watch = call(on_train_batch_end=lambda t, *_: values.append(t.callback_metrics["train/flow"].item()))
        fit(make(joint_dir, learning_rate=0.0), callbacks=[watch], batches=batches)

    flow_of([batch] * 4)
    torch.testing.assert_close(torch.tensor(values) / values[0], torch.tensor([1.0, 0.75, 0.5, 0.25]))
    unknown = batch._replace(flow_known=torch.zeros_like(batch.flow_known))
    other = batch._replace(
        flow=batch.flow + torch.tensor([[0.0, 7.0], [0.0, 7.0]])[..., None, None, None],
        flow_known=batch.flow_known * torch.tensor([[1.0, 0.0], [1.0, 0.0]]),
    )
    same = batch._replace(flow_known=other.flow_known)
    values.clear()
    for changed in (unknown, other, same):
        flow_of([changed])
    assert values[0] == 0
    assert values[1] == values[2] > 0


def test_identity_counts_from_64_pixels_on(joint_dir: Path, fit: Fit, made_up_weights: None) -> None:
    stage = make(joint_dir, 1, 3, perceptual_weight=1e-3, identity_weight=0.05)
    assert stage.identity is not None
    assert stage.perceptual is not None
    sides: dict[str, list[int]] = {"identity": [], "perceptual": []}
    for name, network in (("identity", stage.identity), ("perceptual", stage.perceptual)):
        network.register_forward_pre_hook(lambda _, given, name=name: sides[name].append(given[0].shape[-1]))
    trainer = fit(stage, batches=[batch_at(128)])
    assert sides == {"identity": [64, 128], "perceptual": [32, 64, 128]}
    assert stage.identity.norm == "cosine"
    assert {"train/identity", "train/perceptual"} <= trainer.callback_metrics.keys()


# Samples that enter later, and several references


def test_samples_enter_at_the_blocks_of_the_fit_with_a_sharp_input_and_no_flow(
    joint_dir: Path, fit: Fit
) -> None:
    stage = make(joint_dir, 2, 3, entry_fraction=1.0)
    seen = watch(stage)
    given: dict[int, list[tuple[Tensor, Tensor]]] = {2: [], 3: []}
    for n in (2, 3):
        stage.model.blocks[n - 1].register_forward_pre_hook(
            lambda _, args, n=n: given[n].append(
                (args[0].detach().clone(), torch.zeros(len(args[0]), 2, 1, 1) if args[2] is None else args[2])
            )
        )
    fit(stage, batches=[batch := batch_at(128)] * 12)
    sharp = {n: resize(batch.gt, 16 * 2 ** (n - 1)).clamp(0, 1) for n in (2, 3)}
    entered = {2: 0, 3: 0}
    for outputs in seen:
        assert outputs["output"].shape == (2, 3, 128, 128)
        rows = outputs.get("rows_64", torch.zeros(0, dtype=torch.long))
        entered[2] += len(rows)
        entered[3] += 2 - len(rows)
    assert min(entered.values()) > 3
    for x, flow in given[2]:
        assert all(any(torch.equal(row, other) for other in sharp[2]) for row in x)
        assert not flow.any()
    mixed = 0
    for x, flow in given[3]:
        is_sharp = [any(torch.equal(row, other) for other in sharp[3]) for row in x]
        for row, own in zip(flow, is_sharp, strict=True):
            assert bool(row.any()) != own  # who came through block 2 brings its flow
        mixed += len(set(is_sharp)) == 2
    assert mixed
    with torch.no_grad():  # in the order of the batch, whoever entered where
        for outputs in seen:
            assert (outputs["output"] - batch.gt).abs().mean((1, 2, 3)).max() < 0.5


def test_outputs_are_in_the_order_of_the_batch(joint_dir: Path, fit: Fit, batch_of: BatchOf) -> None:
    torch.manual_seed(1)
    stage = make(joint_dir, 1, 2, entry_fraction=0.5, learning_rate=0.0)
    seen = watch(stage)
    fit(stage, batches=[batch := batch_of(2)] * 10)
    level = stage.model.pyramid(stage.references(batch), 2)
    with torch.no_grad():
        x, flow = stage.model.after(batch.lr, level[:1])
        through = stage.model.blocks[1](x, level[1], flow).output
        enters = stage.model.blocks[1](
            resize(batch.gt, 32).clamp(0, 1), level[1], torch.zeros_like(flow)
        ).output
    ways = set()
    for outputs in seen:
        rows = outputs.get("rows_32", torch.zeros(0, dtype=torch.long)).tolist()
        for place in range(2):
            expected = through[place] if place in rows else enters[place]
            torch.testing.assert_close(outputs["output"][place].detach(), expected, rtol=0, atol=1e-5)
        ways.add(tuple(rows))
    assert (1,) in ways or (1, 0) in ways  # not only in this order


def test_no_one_enters_later_in_validation(joint_dir: Path, fit: Fit, batch_of: BatchOf) -> None:
    stage = make(joint_dir, entry_fraction=1.0)
    trainer = fit(stage, batches=[batch_of(2)], validate=True)
    logged = trainer.callback_metrics
    assert {"val/psnr", "val/psnr_face", "val/below", "val/gate", "val/gate_32"} <= logged.keys()


def test_several_references_and_the_weights_entropy(joint_dir: Path, fit: Fit, batch_of: BatchOf) -> None:
    trainer = fit(make(joint_dir), batches=[several(batch_of(2))])
    entropy = trainer.callback_metrics["train/weights_entropy"].item()
    assert 0 < entropy <= math.log(2) + 1e-6
    assert 0 < trainer.callback_metrics["train/gate"].item() < 1
    trainer = fit(make(joint_dir), batches=[batch_of(2)])
    assert "train/weights_entropy" not in trainer.callback_metrics


def test_other_stages_refuse_several_references(joint_dir: Path, fit: Fit, batch_of: BatchOf) -> None:
    stage = WarpingStage(str(joint_dir), 2)
    with pytest.raises(
        ValueError, match=r"WarpingStage \(warping\) takes one reference per sample, got 2: .*max_references"
    ):
        fit(stage, batches=[several(batch_of(2))])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"first": 3, "block": 2}, "first: expected 1 .. 2, the fit's last block, got 3"),
        ({"first": 0}, "first: expected 1 .. 2"),
        ({"block": 4}, "block: expected 1 .. 3, got 4"),
        ({"block": 0}, "block: expected 1 .. 3, got 0"),
        ({"accumulate": 0}, "accumulate: expected a positive number of batches, got 0"),
        ({"gradient_clip": -1.0}, "gradient_clip: expected a norm"),
        ({"entry_fraction": 2.0}, "entry_fraction: expected a share"),
    ],
)
def test_bad_arguments(joint_dir: Path, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(joint_dir, **kwargs)


def test_a_model_of_the_paper_can_be_trained_jointly(model_dir: Path, tmp_path: Path) -> None:
    before = RPFModel.from_pretrained(model_dir).state_dict()
    run(make(model_dir, 1, 2), tmp_path, data={"max_references": 1, "several_fraction": 0.0})
    after = RPFModel.from_pretrained(model_dir).state_dict()
    assert all(not torch.equal(value, after[name]) for name, value in before.items())
