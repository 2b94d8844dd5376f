import math

import naive_layers as naive
import pytest
import torch
import torch.nn.functional as F

from rpf_lightning.model.rpf import RPFModel

both_ways = pytest.mark.usefixtures("_both_ways")


@pytest.fixture(params=["modules", "strips"])
def _both_ways(request):
    """With gradients the modules run, without them strips of rows."""
    with torch.set_grad_enabled(request.param == "modules"):
        yield


def assert_same(result, expected):
    """Bitwise the same where both ran as modules; strips sum up in another order."""
    if torch.is_grad_enabled():
        assert torch.equal(result, expected)
    else:
        torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)


def small(lr_size=16, scale=4, **kwargs):
    """A model whose untrained output looks like an image, with every parameter moved from its start."""
    kwargs = {
        "channels": 4, "width": 1 / 64, "residual": True, "synthesis_residual": True, **kwargs,
    }  # fmt: skip
    return naive.stir(RPFModel(lr_size, scale, **kwargs), std=0.02).eval()


def face(side, batch=1, channels=3, **kwargs):
    return torch.rand(batch, channels, side, side, **kwargs)


def half_mask(side, batch=1):
    mask = torch.zeros(batch, 1, side, side)
    mask[..., side // 3 :, : side // 2] = 1
    return mask


def bicubic(image, side):
    return F.interpolate(image, size=(side, side), mode="bicubic", antialias=True)


@both_ways
@pytest.mark.parametrize(("lr_size", "scale"), [(4, 2), (8, 4), (16, 8)])
def test_forward_shape_and_range(lr_size, scale):
    model = small(lr_size, scale)
    output = model(face(lr_size, 2), face(lr_size * scale, 2))
    assert output.shape == (2, 3, lr_size * scale, lr_size * scale)
    assert output.dtype == torch.float32
    assert output.min() >= 0
    assert output.max() <= 1
    assert model.sides == tuple(lr_size * 2**n for n in range(1, int(math.log2(scale)) + 1))


@both_ways
@pytest.mark.parametrize("mean", [True, False])
def test_intermediates_are_the_records_of_the_blocks_run_by_hand(mean):
    model, lr, reference = small(16, 8, refinement_mean=mean), face(16, 2), face(128, 2)
    output, records = model(lr, reference, return_intermediates=True)
    x = lr
    level = {128: reference}
    for side in (64, 32):
        level[side] = bicubic(level[2 * side], side).clamp(0, 1)
    assert len(records) == 3
    for block, record, side in zip(model.blocks, records, (32, 64, 128), strict=True):
        assert record._fields == ("flow", "aligned", "synthesized", "output", "gate", "weights")
        assert record.gate is None
        assert record.weights is None
        flow, aligned = block.warping(x, level[side])
        synthesized = block.synthesis(x, aligned)
        refined = block.refinement((bicubic(x, side) + synthesized) / 2 if mean else synthesized)
        for result, expected in zip(record[:4], (flow, aligned, synthesized, refined), strict=True):
            assert result.shape == (2, 2 if result is record.flow else 3, side, side)
            torch.testing.assert_close(result, expected, atol=2e-4, rtol=1e-4)
        x = record.output.clamp(0, 1)
    assert torch.equal(output, x)
    assert torch.equal(output, model(lr, reference))


@both_ways
def test_blocks_get_clamped_images_and_records_are_not_clamped():
    model, lr, reference = small(), face(16), face(64)
    with torch.no_grad():
        model.blocks[0].refinement.to_rgb.bias.copy_(torch.tensor([3.0, -3.0, 0.0]))
        model.blocks[1].refinement.to_rgb.bias.copy_(torch.tensor([3.0, -3.0, 0.0]))
    output, (first, second) = model(lr, reference, return_intermediates=True)
    for record in (first, second):
        assert record.output[:, 0].min() > 1
        assert record.output[:, 1].max() < 0
    assert torch.equal(output, second.output.clamp(0, 1))
    expected = model.blocks[1](first.output.clamp(0, 1), reference)
    assert_same(second.output, expected.output)


@pytest.mark.parametrize("part", ["synthesized", "output"])
def test_records_outside_the_range_receive_gradient(part):
    model = small()
    head = model.blocks[-1].synthesis.to_rgb if part == "synthesized" else model.blocks[-1].refinement.to_rgb
    with torch.no_grad():
        head.bias.fill_(-3.0)
    _, records = model(face(16), face(64), return_intermediates=True)
    image = getattr(records[-1], part)
    assert (image < 0).all()
    image.sum().backward()
    assert torch.equal(head.bias.grad, torch.full((3,), 64.0 * 64))


@pytest.mark.parametrize("options", [{}, {"skip": "literal", "act": "relu"}, {"progressive": False}], ids=str)
def test_gradients(options):
    """All three modules of two blocks together, by finite differences of every input and parameter."""
    model = small(4, 4, channels=2, width=1 / 256, **options).double()
    names = [name for name, _ in model.named_parameters()]
    parameters = tuple(parameter.detach().requires_grad_() for parameter in model.parameters())
    lr, reference = (0.1 + 0.8 * face(side, dtype=torch.float64) for side in (4, 16))

    def forward(lr, reference, *values):
        given = dict(zip(names, values, strict=True))
        return torch.func.functional_call(model, given, (lr, reference, None, True))[1][-1].output

    with torch.no_grad():
        for block in model.blocks:
            block.warping.flow_head.bias.fill_(0.3)  # off the corners of the bilinear interpolation
    inputs = (lr.requires_grad_(), reference.requires_grad_())
    assert torch.autograd.gradcheck(forward, (*inputs, *parameters), fast_mode=True)


@both_ways
def test_larger_lr_enters_at_its_block():
    model, lr, reference = small(), face(32, 2), face(64, 2)
    output, records = model(lr, reference, return_intermediates=True)
    expected = model.blocks[1](lr, reference).output
    assert len(records) == 1
    assert_same(records[0].output, expected)
    assert torch.equal(output, records[0].output.clamp(0, 1))


@both_ways
@pytest.mark.parametrize("lr_side", [16, 32])
def test_without_a_reference_the_enlarged_lr_serves(lr_side):
    model, lr = small(), face(lr_side, 2).round()  # bicubic overshoots at such edges: the clamp counts
    enlarged = bicubic(lr, 64)
    assert enlarged.max() > 1.01
    assert torch.equal(model(lr), model(lr, enlarged.clamp(0, 1)))


def test_reference_pyramid_is_masked_then_halved():
    model, reference, mask = small(16, 8), face(128, 2).round(), half_mask(128, 2)
    levels = model.encode_reference(reference, mask)
    expected = reference * mask
    assert [level.shape[-1] for level in levels] == [32, 64, 128]
    for level in reversed(levels):
        torch.testing.assert_close(level, expected, atol=1e-6, rtol=0)
        expected = bicubic(level, level.shape[-1] // 2).clamp(0, 1)


@both_ways
@pytest.mark.parametrize("masked", [False, True])
def test_encoded_reference_gives_the_same_result(masked):
    model, lr, reference = small(), face(32, 2), face(64, 2)
    mask = half_mask(64, 2) if masked else None
    expected = model(lr, reference, mask)
    assert torch.equal(model(lr, list(model.encode_reference(reference, mask))), expected)


@both_ways
def test_mask_equals_a_masked_reference():
    model, lr, reference, mask = small(), face(16, 2), face(64, 2), half_mask(64, 2)
    result = model(lr, reference, mask)
    assert torch.equal(result, model(lr, reference * mask))
    assert (result - model(lr, reference)).abs().max() > 1e-3


@both_ways
@pytest.mark.parametrize("encoded", [False, True])
def test_one_reference_serves_a_batch(encoded):
    model, lr, reference, mask = small(), face(16, 3), face(64), half_mask(64)
    one = (model.encode_reference(reference, mask),) if encoded else (reference, mask)
    expected = model(lr, reference.repeat(3, 1, 1, 1), mask.repeat(3, 1, 1, 1))
    assert torch.equal(model(lr, *one), expected)


@both_ways
def test_deterministic():
    model, lr, reference = small().train(), face(16, 2), face(64, 2)
    assert torch.equal(model(lr, reference), model(lr, reference))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"skip": "literal", "residual": True, "synthesis_residual": True}], ids=str
)
@both_ways
def test_samples_of_a_batch_do_not_touch(options, fused):
    """Where outputs are in the range of images; one sample modulates the weights, three their activations."""
    model = naive.stir_all(RPFModel(16, 4, channels=8, width=1 / 32, **options))
    model = model.fuse() if fused else model
    lr, reference, mask = face(16, 3), face(64, 3), half_mask(64, 3)
    together = model(lr, reference, mask)
    for chunk in (slice(0, 1), slice(1, 3), slice(2, 3)):
        part = model(lr[chunk], reference[chunk], mask[chunk])
        torch.testing.assert_close(together[chunk], part, atol=1e-5, rtol=0)
    assert (together[0] - together[1]).abs().max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scale"), [(1 / 8, 8), (1.0, 4)])
def test_fp32_agrees_with_float64_at_the_papers_widths(width, scale):
    """16 -> 64 and 128 as initialised, but for flows of a few pixels and outputs in the range of images."""
    model = RPFModel(16, scale, width=width).eval()
    coarse, mask = face(16), half_mask(16 * scale)
    reference = bicubic(face(16), 16 * scale).clamp(0, 1)
    with torch.no_grad():
        for block in model.blocks:
            block.warping.flow_head.weight.normal_(std=0.5)
            block.refinement.to_rgb.weight.mul_(0.2)
            block.refinement.to_rgb.bias.fill_(0.5)
        _, single = model(coarse, reference, mask, return_intermediates=True)
        model.double()
        _, double = model(coarse.double(), reference.double(), mask.double(), return_intermediates=True)
    for one, two in zip(single, double, strict=True):
        assert two.output.dtype == torch.float64
        assert 0.5 < two.flow.std() < 20
        assert 0.1 < two.output.std() < 1
        torch.testing.assert_close(one.output.double(), two.output, atol=1e-4, rtol=0)


@both_ways
def test_records_are_fp32_under_autocast():
    model, lr, reference = small(), face(16), face(64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, records = model(lr, reference, return_intermediates=True)
    expected = model(lr, reference)
    assert {image.dtype for record in records for image in record[:4]} == {torch.float32}
    assert output.dtype == torch.float32
    assert 1e-5 < (output - expected).abs().mean() < 3e-3


@both_ways
@pytest.mark.parametrize("block", [1, 2, 3])
def test_prefix_and_block_equal_the_full_forward(block):
    model, lr, reference = small(16, 8), face(16, 2), face(128, 2)
    levels = model.encode_reference(reference)
    _, records = model(lr, reference, return_intermediates=True)
    x, flow = model.prefix(lr, levels[block - 1], block)
    assert flow is None
    assert x.shape[-1] == 16 * 2 ** (block - 1)
    assert torch.equal(x, lr if block == 1 else records[block - 2].output.clamp(0, 1))
    for result, expected in zip(
        model.blocks[block - 1](x, levels[block - 1])[:4], records[block - 1][:4], strict=True
    ):
        assert_same(result, expected)


@both_ways
def test_without_progressive_reconstruction_one_block_does_it_all():
    model, lr, reference = small(8, 8, progressive=False), face(8, 2), face(64, 2)
    assert len(model.blocks) == 1
    assert model.sides == (64,)
    assert len(model.blocks[0].warping.lr_features.steps) == 3
    output = model(lr, reference)
    assert output.shape == (2, 3, 64, 64)
    assert_same(output, model.blocks[0](lr, reference).output.clamp(0, 1))
    assert torch.equal(output, model(lr, model.encode_reference(reference)))
    with pytest.raises(ValueError, match="lr: expected a side of 8 pixels, got 32"):
        model(face(32), reference)


LITERAL = {
    "default": {},
    "skip": {"skip": "literal"},
    "act": {"act": "relu"},
    "fuse": {"synthesis_fuse": False},
    "flow_unit": {"flow_unit": "pixels"},
    "init": {"init": "torch"},
    "residual": {"residual": True},
    "synthesis_residual": {"synthesis_residual": True},
    "not progressive": {"progressive": False},
    "refinement_mean": {"refinement_mean": False},
    "all": {
        "skip": "literal", "act": "relu", "synthesis_fuse": False, "flow_unit": "pixels", "init": "torch",
    },
}  # fmt: skip


@pytest.mark.parametrize("options", LITERAL.values(), ids=LITERAL)
def test_every_reading_reaches_every_block_and_uses_all_its_parameters(options):
    model = RPFModel(16, 4, channels=2, width=1 / 128, **options)
    output, records = model(face(16), face(64), half_mask(64), return_intermediates=True)
    assert all(image.isfinite().all() for record in (*records, [output]) for image in record[:4])
    records[-1].output.sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    for block in model.blocks:
        assert block.refinement.literal == (options.get("skip") == "literal")
        assert block.refinement.act.slope == (0.0 if options.get("act") == "relu" else 0.2)
        assert block.refinement.residual == options.get("residual", False)
        assert block.refinement_mean == options.get("refinement_mean", True)
        assert (block.synthesis.fuse is None) == (options.get("synthesis_fuse") is False)
        assert (block.synthesis.enlarge is not None) == options.get("synthesis_residual", False)
        assert block.warping.flow_scale == (1.0 if options.get("flow_unit") == "pixels" else block.side / 64)
        offsets = {block.warping.offset, block.synthesis.offset}
        assert offsets == {0.0 if options.get("init") == "torch" else -0.5}
        assert block.in_side == (block.side // 2 if options.get("progressive", True) else 16)


NAN = float("nan")
BAD_LR = {
    "not square": (torch.rand(1, 3, 16, 32), "lr: expected square RGB images"),
    "side": (face(8), "lr: expected a side of 16 or 32 pixels, got 8"),
    "channels": (face(16, channels=1), r"lr: expected square RGB images .*\(1, 1, 16, 16\)"),
    "nan": (face(16).where(face(16) < 0.9, NAN), r"lr: expected values in \[0, 1\] without NaN"),
    "0 to 255": (face(16) * 255, r"lr: expected values in \[0, 1\]"),
    "integers": (torch.ones(1, 3, 16, 16, dtype=torch.uint8), "lr: expected floating point values"),
    "half": (face(16).half(), "lr: expected torch.float32 as the model's weights, got torch.float16"),
    "empty": (face(16, 0), "lr: expected at least one image"),
}


@pytest.mark.parametrize(("lr", "message"), BAD_LR.values(), ids=BAD_LR)
def test_bad_lr(lr, message):
    with pytest.raises(ValueError, match=message):
        small()(lr, face(64))


BAD_REFERENCE = {
    "size": (face(32), r"reference: expected RGB images of the shape \(B, 3, 64, 64\), got \(1, 3, 32, 32\)"),
    "batch": (face(64, 2), "reference: expected 1 or 3 images, got 2"),
    "above 1": (face(64) + 0.5, r"reference: expected values in \[0, 1\]"),
    "integers": (torch.ones(1, 3, 64, 64, dtype=torch.uint8), "reference: expected floating point values"),
    "too few levels": ((face(64),), "reference: expected levels of side 32 or 64"),
    "batch of the levels": ((face(32, 2), face(64, 2)), "reference: expected 1 or 3 images, got 2"),
    "channels of a level": ((face(32), face(64, channels=1)), "reference: expected"),
    "nan in a level": ((face(32), face(64) * NAN), r"reference: expected values in \[0, 1\] without NaN"),
    "level of no dimension": ((torch.tensor(0.5), face(64)), r"reference: expected levels .* got \[\(\), "),
    "numbers": ([1, 2], "reference: expected levels of side 32 or 64, got .*int"),
    "batches of the levels": ((face(32), face(64, 2)), "reference: expected"),
}


@pytest.mark.parametrize(("reference", "message"), BAD_REFERENCE.values(), ids=BAD_REFERENCE)
def test_bad_reference(reference, message):
    with pytest.raises(ValueError, match=message):
        small()(face(16, 3), reference)


BAD_MASK = {
    "channels": (face(64), r"mask: expected the shape \(1, 1, 64, 64\), got \(1, 3, 64, 64\)"),
    "batch": (half_mask(64, 2), r"mask: expected the shape \(1, 1, 64, 64\)"),
    "0 or 255": (half_mask(64) * 255, r"mask: expected values in \[0, 1\]"),
}


@pytest.mark.parametrize(("mask", "message"), BAD_MASK.values(), ids=BAD_MASK)
def test_bad_mask(mask, message):
    with pytest.raises(ValueError, match=message):
        small()(face(16), face(64), mask)


def test_mask_needs_a_plain_reference():
    model = small()
    with pytest.raises(ValueError, match="mask was given without a reference"):
        model(face(16), None, half_mask(64))
    with pytest.raises(ValueError, match="mask was given with an encoded reference"):
        model(face(16), model.encode_reference(face(64)), half_mask(64))


def test_without_validation_values_pass_and_shapes_do_not():
    model = small(validate=False)
    assert model(face(16) * NAN, face(64)).isnan().all()
    assert model(face(16) * 2, face(64) - 1, half_mask(64) * 3).isfinite().all()
    for lr, message in (BAD_LR["side"], BAD_LR["channels"], BAD_LR["integers"]):
        with pytest.raises(ValueError, match=message):
            model(lr, face(64))
