"""The copy path, coarse-to-fine flow, several references, and sizes per block."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from rpf_lightning.model import RPFModel, backward_warp
from rpf_lightning.model.reference_slots import Slots, distance
from rpf_lightning.model.resize import minimum_pool, resize

SMALL = {
    "channels": 4,
    "width": 1 / 64,
    "residual": True,
    "synthesis_residual": True,
    "refinement_mean": False,
}
NEW = {**SMALL, "synthesis_copy": True, "flow_from": "previous"}


def model_of(scale=4, seed=0, **options):
    torch.manual_seed(seed)
    model = RPFModel(16, scale, **{**NEW, **options}).eval()
    with (
        torch.no_grad()
    ):  # as after training: flows that move, gates and features that differ from place to place
        for block in model.blocks:
            block.warping.flow_head.weight.normal_(std=0.1)
            block.warping.flow_head.bias += torch.tensor([1.5, -1.0])
            if hasattr(block.synthesis, "gate"):
                block.synthesis.gate.weight.normal_(std=0.3)
            block.synthesis.to_rgb.weight.mul_(20)
    return model


def faces(side, *batch, seed=1):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(*batch, 3, 16, 16, generator=generator).flatten(0, -4)
    return resize(coarse, side).clamp(0.05, 1).view(*batch, 3, side, side)


def disc(side, *batch):
    centre = (torch.arange(side) + 0.5) / side - 0.5
    return ((centre[:, None] ** 2 + centre**2) < 0.16).float().expand(*batch, 1, side, side).contiguous()


def same(a, b, tolerance=1e-5):
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


# the copy path


@pytest.mark.parametrize("progressive", [True, False])
def test_an_open_gate_rebuilds_the_pyramid_of_the_reference(progressive):
    model = RPFModel(16, 8, **NEW, progressive=progressive).eval()
    with torch.no_grad():
        for block in model.blocks:
            block.synthesis.to_rgb.weight.zero_()
            block.synthesis.gate.bias.fill_(100)
            block.refinement.to_rgb.weight.zero_()
    levels = model.encode_reference(faces(128, 2))  # no mask: the reference is whole
    x = resize(faces(128, 2), 64 if progressive else 16)
    lr = model.pyramid(torch.cat((faces(128, 2), torch.ones(2, 1, 128, 128)), 1), len(model.blocks))[0][:, :3]
    lr = resize(lr, 16).clamp(0, 1)
    with torch.no_grad():
        output, records = model(lr, levels, return_intermediates=True)
    for record, level in zip(records, levels, strict=True):
        assert level[:, 3].min() == 1
        same(record.synthesized, level[:, :3])
    same(output, faces(128, 2))
    assert (output - resize(x, 128)).abs().max() > 1e-3  # it was no enlargement


def test_a_closed_gate_copies_nothing_and_a_mask_ends_the_copy():
    model, lr, reference, mask = model_of(2), faces(16, 1), faces(32, 1), disc(32, 1)
    block = model.blocks[0]
    with torch.no_grad():
        block.warping.flow_head.weight.zero_()
        block.warping.flow_head.bias.zero_()
        _, (opened,) = model(lr, reference, mask, return_intermediates=True)
        block.synthesis.gate.weight.zero_()
        block.synthesis.gate.bias.fill_(-100)
        _, (closed,) = model(lr, reference, mask, return_intermediates=True)
    difference = (opened.synthesized - closed.synthesized).abs().amax((0, 1))
    ok = model.encode_reference(reference, mask)[0][0, 3]
    assert closed.gate.max() < 1e-6
    assert difference[ok == 0].max() < 1e-6
    assert difference[ok == 1].mean() > 1e-4
    assert 0 < (mask[0, 0] - ok).sum() < 0.4 * mask.sum()  # eroded


def test_the_edge_of_the_mask_is_not_copied():
    # a reference of one colour has no detail, wherever it is masked
    model, lr = model_of(2), torch.full((1, 3, 16, 16), 0.5)
    with torch.no_grad():
        model.blocks[0].synthesis.to_rgb.weight.zero_()
        _, (record,) = model(lr, torch.full((1, 3, 32, 32), 0.5), disc(32, 1), return_intermediates=True)
    same(record.synthesized, torch.full((1, 3, 32, 32), 0.5))


def test_ok_is_pooled_eroded_and_the_same_from_a_level_as_from_the_whole():
    model, reference, mask = model_of(4), faces(64, 1), disc(64, 1)
    mask[..., 20:22, 20:22] = 0
    levels = model.encode_reference(reference, mask)
    for level in levels:
        side = level.shape[-1]
        pooled = minimum_pool(mask, side)
        padded = F.pad(pooled, (1, 1, 1, 1), value=1.0)
        slices = [padded[..., i : i + side, j : j + side] for i, j in itertools.product(range(3), repeat=2)]
        assert torch.equal(level[:, 3:], torch.stack(slices).amin(0))
    lower = torch.cat((levels[0][:, :3], minimum_pool(mask, 32)), 1)
    assert torch.equal(model.pyramid(lower, 1)[0], levels[0])
    whole = model.encode_reference(reference)[1]
    assert whole[:, 3].min() == 1  # to the rim: outside counts as 1
    assert model.encode_reference(reference * mask)[0][:, 3:].equal(levels[0][:, 3:])  # from the zeros


def test_the_gate_starts_at_a_third_and_is_an_output():
    torch.manual_seed(0)
    model = RPFModel(16, 4, **NEW)
    _, records = model(faces(16, 2), faces(64, 2), disc(64, 2), return_intermediates=True)
    for record, side in zip(records, (32, 64), strict=True):
        assert record.gate.shape == record.weights.shape == (2, 1, side, side)
        same(record.gate, torch.full_like(record.gate, 0.2994), 1e-3)
        assert record.aligned.shape == (2, 3, side, side)


def test_every_parameter_learns():
    model = model_of(4)
    output, _ = model(faces(16, 2), faces(64, 2, 3), disc(64, 2, 3), return_intermediates=True)
    output.square().mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


# coarse to fine


def test_the_flow_corrects_the_flow_of_the_block_before():
    model = model_of(4)
    levels = model.encode_reference(faces(64, 1), disc(64, 1))
    x, before = model.prefix(faces(16, 1), torch.cat((faces(64, 1) * disc(64, 1), disc(64, 1)), 1), 2)
    coarse = resize(before, 64) * 2
    seen = []
    model.blocks[1].warping.reference_features.register_forward_pre_hook(
        lambda _, given: seen.append(given[0])
    )
    with torch.enable_grad():
        record = model.blocks[1](x, levels[1], before)
    own = model.blocks[1].warping.flow_head  # v, from the features that it saw
    features = []
    own.register_forward_pre_hook(lambda _, given: features.append(given[0]))
    model.blocks[1](x, levels[1], before)
    v = own(features[-1]) * model.blocks[1].warping.flow_scale
    same(seen[0], backward_warp(levels[1][:, :3], coarse) - 0.5)
    same(record.flow, v + backward_warp(coarse, v, "border"))
    same(
        record.aligned, backward_warp(levels[1][:, :3], record.flow)
    )  # one sampling, of the reference itself


def test_a_constant_flow_stays_constant_to_the_rim():
    model = model_of(4)
    with torch.no_grad():
        for block in model.blocks:
            block.warping.flow_head.weight.zero_()
            block.warping.flow_head.bias.zero_()
        model.blocks[0].warping.flow_head.bias += torch.tensor([4.0, -2.0])
        model.blocks[1].warping.flow_head.bias += torch.tensor([3.0, 3.0])
        _, records = model(faces(16, 1), faces(64, 1), return_intermediates=True)
    first = torch.tensor([2.0, -1.0])[:, None, None]  # the head counts in S/64 pixels
    same(records[0].flow[0], first.expand(2, 32, 32))
    same(records[1].flow[0], (2 * first + 3).expand(2, 64, 64), 1e-4)


def test_an_lr_that_enters_later_starts_from_no_flow():
    model = model_of(4)
    x, reference = faces(32, 1), faces(64, 1)
    _, (record,) = model(x, reference, return_intermediates=True)
    level = model.encode_reference(reference)[1]
    same(record.flow, model.blocks[1](x, level, torch.zeros(1, 2, 32, 32)).flow)


def test_a_block_s_error_reaches_the_flows_before_it():
    model = model_of(4)
    _, records = model(faces(16, 1), faces(64, 1), return_intermediates=True)
    records[1].flow.sum().backward()
    assert model.blocks[0].warping.flow_head.bias.grad.abs().min() > 0


# several references


def test_one_among_absent_ones_and_copies_equal_one():
    model, lr = model_of(4), faces(16, 2)
    one, mask = faces(64, 2), disc(64, 2)
    with torch.no_grad():
        expected, records = model(lr, one, mask, return_intermediates=True)
        single, _ = model(lr, one[:, None], mask[:, None], return_intermediates=True)
        copies, _ = model(lr, one[:, None].repeat(1, 3, 1, 1, 1), mask[:, None].repeat(1, 3, 1, 1, 1), True)
        absent = torch.stack((torch.zeros_like(one), one, faces(64, 2, seed=5)), 1)
        masks = torch.stack((mask, mask, torch.zeros_like(mask)), 1)
        packed, several = model(lr, absent, masks, return_intermediates=True)
    for output in (single, copies, packed):
        same(output, expected)
    for record, plain in zip(several, records, strict=True):
        side = plain.flow.shape[-1]
        assert record.flow.shape == (2, 3, 2, side, side)
        assert record.aligned.shape == (2, 3, 3, side, side)
        assert record.weights.shape == (2, 3, 1, side, side)
        same(record.weights, torch.tensor([0.0, 1.0, 0.0])[:, None, None, None].expand_as(record.weights))
        same(record.flow[:, 1], plain.flow)
        assert not record.flow[:, 0].any()


def test_no_reference_is_one_that_is_absent():
    """As trained with `absent_fraction`: nothing is warped or copied; the enlarged LR is no reference."""
    model, lr = model_of(4), faces(16, 2)
    with torch.no_grad():
        output, records = model(lr, return_intermediates=True)
        same(output, model(lr, torch.zeros_like(faces(64, 2))))
    assert not any(record.flow.any() or record.gate.any() for record in records)


def test_the_order_of_the_references_does_not_matter():
    model, lr = model_of(4), faces(16, 1)
    references, masks = faces(64, 1, 3), disc(64, 1, 3)
    masks[:, 1, :, 30:] = 0
    with torch.no_grad():
        first, a = model(lr, references, masks, return_intermediates=True)
        second, b = model(lr, references[:, [2, 0, 1]], masks[:, [2, 0, 1]], return_intermediates=True)
    same(first, second)
    for left, right in zip(a, b, strict=True):
        same(left.weights[:, [2, 0, 1]], right.weights)
        assert left.weights.std() > 0.01


def test_a_reference_that_does_not_show_a_place_takes_no_weight_from_one_that_does():
    # even where it is far nearer to the input elsewhere
    model, lr = model_of(2), faces(16, 1)
    near, far = resize(lr, 32).clamp(0.05, 1), torch.rand(1, 3, 32, 32).clamp(0.05)
    masks = torch.ones(1, 2, 1, 32, 32)
    masks[:, 0, :, :, 16:] = 0
    with torch.no_grad():
        block = model.blocks[0]
        block.warping.flow_head.weight.zero_()
        block.warping.flow_head.bias.zero_()
        block.synthesis.gate.weight.zero_()
        _, (record,) = model(lr, torch.stack((near, far), 1), masks, return_intermediates=True)
    near, far = record.weights[0, :, 0]
    assert near[:, :14].min() > 0.999  # the nearer one where both are seen
    assert far[:, 17:].min() > 0.999
    same(near + far, torch.ones(32, 32))


@pytest.mark.parametrize("several", [True, False])
def test_without_any_reference_nothing_is_copied(several):
    model, lr = model_of(4), faces(16, 2)
    reference, mask = faces(64, 2), disc(64, 2)
    if several:
        reference, mask = reference[:, None].repeat(1, 2, 1, 1, 1), mask[:, None].repeat(1, 2, 1, 1, 1)
    both, _ = model(lr, reference, mask, return_intermediates=True)
    mask[0] = 0
    output, records = model(lr, reference, mask, return_intermediates=True)
    assert not torch.allclose(output[0], both[0], atol=1e-3)
    same(output[1], both[1])
    for record in records:
        assert not record.gate[0].any()
        assert not record.flow[0].any()
        assert record.gate[1].min() > 0
    records[-1].output.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    alone = model(lr[:1], torch.zeros_like(reference[:1]))
    same(alone, output[:1])


def test_the_distance_is_blind_to_colour_and_to_what_is_masked():
    x, ok = faces(16, 2), disc(32, 2)
    tinted = x + torch.tensor([0.1, -0.2, 0.05])[:, None, None]
    outside = F.avg_pool2d(ok, 2) == 0
    same(distance(tinted.where(~outside, 0.0), x, ok), torch.zeros(2, 1, 1, 1))
    assert distance(faces(16, 2, seed=3), x, ok).min() > 0.05
    assert not distance(x + 1, x, torch.zeros(2, 1, 32, 32)).any()


def test_what_is_packed_away_is_not_computed():
    model, lr = model_of(2), faces(16, 3)
    references = faces(32, 3, 3)
    references[0, 1:] = 0
    references[1] = 0
    rows = []
    model.blocks[0].synthesis.blocks.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    model.train()(lr, references)
    assert rows == [1 + 1 + 3]


def test_slots_without_packing_give_the_same():
    model, lr = model_of(2), faces(16, 3)
    references = faces(32, 3, 3)
    references[0, 1:] = 0
    references[1] = 0
    level = model.encode_reference(references)[0]
    whole = Slots(level, packed=False)
    assert whole.rows is None
    assert len(whole.present) == 9
    packed = model.blocks[0].align(lr, level)
    aligned = torch.zeros(9, 4, 32, 32).index_copy(0, packed.slots.rows, packed.aligned)
    aligned[4:6] = aligned[3]  # absent ones of a sample without any have the enlarged input
    a = model.blocks[0].synthesis(lr, packed.aligned, packed.slots)
    b = model.blocks[0].synthesis(lr, aligned, whole)
    same(a.image, b.image)
    same(a.gate, b.gate)


@pytest.mark.parametrize(
    ("options", "given", "message"),
    [
        (
            {"synthesis_copy": False},
            lambda: (faces(64, 1, 2),),
            "several per sample need .*synthesis_copy=True, got 2",
        ),
        ({}, lambda: (torch.rand(1, 2, 3, 32, 32),), r"reference: expected RGB images .*\(1, 2, 3, 32, 32\)"),
        (
            {},
            lambda: ([faces(64, 1), faces(32, 1)],),
            "levels of side 32 or 64.* several photos, all of one side",
        ),
        (
            {},
            lambda: (faces(64, 1, 2), disc(64, 1)),
            r"mask: expected the shape \(1, 2, 1, 64, 64\), got \(1, 1, 64",
        ),
        ({}, lambda: (None, disc(64, 1, 2)), "mask was given without a reference"),
        ({}, lambda: (faces(64, 3, 2),), "reference: expected 1 or 2 images, got 3"),
    ],
)
def test_bad_references(options, given, message):
    with pytest.raises(ValueError, match=message):
        model_of(4, **options)(faces(16, 2), *given())


def test_a_model_without_the_copy_path_takes_an_axis_of_one():
    model, lr, reference = model_of(4, synthesis_copy=False), faces(16, 2), faces(64, 2)
    output, records = model(lr, reference[:, None], return_intermediates=True)
    same(output, model(lr, reference))
    assert records[0].flow.shape == (2, 1, 2, 32, 32)
    assert records[0].gate is records[0].weights is None


# sizes per block, and where to stop


def test_sizes_per_block():
    model = RPFModel(16, 8, channels=[8, 4, 2], width=[1 / 32, 1 / 64, 1 / 128])
    assert [block.synthesis.to_rgb.in_channels for block in model.blocks] == [8, 4, 2]
    assert [block.warping.reference_features.out_channels for block in model.blocks] == [8, 4, 2]
    assert [block.refinement.embedding[1].weight.shape[0] for block in model.blocks] == [16, 8, 4]
    assert model(faces(16, 1), faces(128, 1)).shape == (1, 3, 128, 128)
    assert model.config.channels == (8, 4, 2)


def test_the_reconstruction_stops_at_a_size():
    model, lr, reference = model_of(8), faces(16, 1), faces(128, 1)
    whole, records = model(lr, reference, return_intermediates=True)
    half, fewer = model(lr, reference, return_intermediates=True, size=64)
    assert len(fewer) == 2
    assert torch.equal(half, records[1].output.clamp(0, 1))
    assert torch.equal(model(lr, reference, size=128), whole)
    assert model(faces(64, 1), reference, size=128).shape[-1] == 128
    for size, message in (
        (16, "size: expected 32 or 64 or 128, got 16"),
        (100, "expected 32 or 64 or 128, got 100"),
    ):
        with pytest.raises(ValueError, match=message):
            model(lr, reference, size=size)
    with pytest.raises(ValueError, match="size: expected 128, got 64"):
        model(faces(64, 1), reference, size=64)


# starting from a smaller network


def test_new_heads_and_blocks_may_be_missing(tmp_path):
    torch.manual_seed(0)
    old = RPFModel(16, 4, **SMALL).eval()
    old.save_pretrained(tmp_path / "old")
    new = RPFModel.from_pretrained(tmp_path / "old", synthesis_copy=True, flow_from="previous", scale=8)
    assert len(new.blocks) == 3
    there = new.state_dict()
    assert all(torch.equal(value, there[name]) for name, value in old.state_dict().items())
    added = {name for name in there if name not in old.state_dict()}
    heads = {
        f"blocks.{n}.synthesis.{name}" for n in range(2) for name in ("gate.weight", "gate.bias", "log_beta")
    }
    assert {name for name in added if not name.startswith("blocks.2.")} == heads
    assert new.config.synthesis_copy
    new.save_pretrained(tmp_path / "new")
    assert len(RPFModel.from_pretrained(tmp_path / "new").state_dict()) == len(there)


def test_nothing_else_may_be_missing_or_change(tmp_path):
    model = RPFModel(16, 4, **NEW)
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="does not fit"):
        RPFModel.from_pretrained(tmp_path / "model", synthesis_copy=False)  # would drop the heads
    with pytest.raises(ValueError, match="does not fit"):
        RPFModel.from_pretrained(tmp_path / "model", channels=8)
    with pytest.raises(ValueError, match="does not fit"):
        RPFModel.from_pretrained(tmp_path / "model", scale=2)
    state = model.state_dict()
    del state["blocks.0.synthesis.gate.bias"]
    from rpf_lightning.model import storage

    storage.save(tmp_path / "broken", model.config, state)
    with pytest.raises(ValueError, match=r"gate\.bias"):
        RPFModel.from_pretrained(tmp_path / "broken")
    with pytest.raises(ValueError, match=r"gate\.bias"):
        RPFModel.from_pretrained(tmp_path / "broken", scale=8)


# with what inference needs


@pytest.mark.parametrize("count", [None, 3])
def test_a_fused_model_gives_the_same(count):
    model, lr = model_of(4), faces(16, 2)
    batch = (2,) if count is None else (2, count)
    reference, mask = faces(64, *batch), disc(64, *batch)
    if count:
        mask[1, 1:] = 0
    with torch.no_grad():
        expected = model(lr, reference, mask)
        same(model.fuse()(lr, reference, mask), expected, 1e-4)
        same(model(lr, model.encode_reference(reference, mask)), expected, 1e-4)
