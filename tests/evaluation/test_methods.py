"""What makes an image from a pair: methods by their texts, and folders of results."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from rpf_lightning.baselines.gcfsr import GCFSR
from rpf_lightning.evaluation.building import build_methods
from rpf_lightning.evaluation.evaluation_batch import EvaluationBatch, Fault
from rpf_lightning.evaluation.folder import Folder
from rpf_lightning.evaluation.methods import RefinementChain
from rpf_lightning.evaluation.statistics import summarise
from rpf_lightning.metrics import PSNR
from rpf_lightning.model import RPFModel
from rpf_lightning.model.resize import resize

VARIANTS = ("model", "model-none", "model-swap", "model-unmasked", "model-gt", "refinement", "synthesized")


def batch(side=64, names=("a.png", "b.jpg")):
    generator = torch.Generator().manual_seed(0)

    def draw(channels):
        return torch.rand(len(names), channels, side, side, generator=generator)

    gt, mask, ids = draw(3), (draw(1) > 0.5).float(), list(names)
    return EvaluationBatch(resize(gt, 16).clamp(0, 1), gt, mask, draw(3), draw(3), ids, ids, ids, draw(3))


def test_variants_of_a_model_get_their_references_and_share_it(model_dir):
    methods = build_methods([f"{kind}:{kind}" for kind in VARIANTS], model_dir=str(model_dir))
    assert len({id(method.model) for method in methods}) == 1
    assert [method.kind for method in methods] == list(VARIANTS)
    given, model = batch(), RPFModel.from_pretrained(model_dir)
    with torch.no_grad():
        x = given.lr
        for block in model.blocks:
            x = block.refinement(block.enlarge(x)).clamp(0, 1)
        expected = [
            model(given.lr, given.reference),
            model(given.lr),
            model(given.lr, given.other),
            model(given.lr, given.unmasked),
            model(given.lr, given.gt, given.mask),
            x,
            model(given.lr, given.reference, return_intermediates=True)[1][-1].synthesized.clamp(0, 1),
        ]
        outputs = [method(given) for method in methods]
    for output, wanted in zip(outputs, expected, strict=True):
        torch.testing.assert_close(output, wanted, atol=1e-4, rtol=0)
    for i, output in enumerate(outputs):
        assert all((output - other).abs().max() > 1e-4 for other in outputs[:i])
    assert [method.kind for method in methods if method.needs_other] == ["model-swap"]
    assert [method.kind for method in methods if method.needs_unmasked] == ["model-unmasked"]


def test_bicubic_reference_and_gcfsr(tmp_path, monkeypatch):
    torch.manual_seed(0)
    network, given = GCFSR(32, width=1 / 64).eval(), batch(32)
    torch.save({"params_ema": network.state_dict()}, tmp_path / "g.pth")
    bicubic, copied = build_methods(["bicubic", "reference:copied"])
    assert (bicubic.name, copied.name) == ("bicubic", "copied")
    assert torch.equal(bicubic(given), resize(given.lr, 32).clamp(0, 1))
    assert torch.equal(copied(given), given.reference)
    with pytest.raises(ValueError, match=r"g\.pth: does not fit GCFSR"):  # of reduced width
        build_methods([f"gcfsr:GCFSR={tmp_path / 'g.pth'}"])
    asked = []
    monkeypatch.setattr(
        GCFSR, "from_checkpoint", lambda path, **given: asked.append((path, given)) or network
    )
    (published,) = build_methods(["gcfsr:GCFSR=some/g.pth"])
    published.prepare(None, 16, 32)
    assert torch.equal(published(given), network.super_resolve(given.lr))
    readings = {"blend": "before_activation", "normalize": True}
    assert published.describe() == {"kind": "gcfsr", "source": "g.pth", **readings}
    with pytest.raises(ValueError, match="GCFSR: gives faces of side 32"):
        published.prepare(None, 16, 64)
    (other,) = build_methods(["gcfsr:GCFSR=a,b/g.pth,normalize=false,blend=after_activation"])
    others = {"blend": "after_activation", "normalize": False}
    assert asked == [("some/g.pth", readings), ("a,b/g.pth", others)]
    assert others.items() <= other.describe().items()


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        (["bicubik"], "method 'bicubik': expected kind"),
        (["folder:PULSE"], "expected folder:NAME=DIR"),
        (["gcfsr"], "expected gcfsr:NAME=FILE"),
        (["gcfsr:GCFSR=g.pth,blend=never"], "expected blend=before_activation or after_activation"),
        (["model:RPF"], "expected model:NAME=DIR"),
        (["model:"], "expected kind"),
        (["bicubic:b=x"], "takes no argument"),
        (["reference-unmasked:b=x"], "reference-unmasked takes no argument"),
        (["bicubic", "reference:bicubic"], "bicubic is given twice"),
    ],
)
def test_texts_that_are_no_method(specs, message):
    with pytest.raises(ValueError, match=message):
        build_methods(specs)


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def test_a_folder_gives_its_images_and_names_every_fault(tmp_path):
    rng = np.random.default_rng(0)
    good = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    grey = rng.integers(0, 256, (32, 32), dtype=np.uint8)
    names = ("good.jpg", "sub/deep.jpg", "grey.jpg", "small.jpg", "broken.jpg", "gone.jpg")
    save(tmp_path / "good.png", good)
    save(tmp_path / "sub" / "deep.png", good[::-1])
    save(tmp_path / "grey.png", grey)
    save(tmp_path / "small.png", good[:16, :24])
    save(tmp_path / "extra.png", good)
    (tmp_path / "broken.png").write_bytes((tmp_path / "good.png").read_bytes()[:500])
    (tmp_path / "log.txt").write_text("no image")
    folder = Folder("PULSE", tmp_path)
    folder.prepare(names, 16, 32)
    output = folder(batch(32, names))
    pixels = (output * 255).round().byte().permute(0, 2, 3, 1).numpy()
    for found, wanted in zip(pixels, (good, good[::-1], np.repeat(grey[..., None], 3, 2)), strict=False):
        assert np.array_equal(found, wanted)
    assert folder.faults() == [Fault("extra", "extra.png")]
    faults = {name: folder.fault(name) for name in names}
    broken = faults.pop("broken.jpg")
    assert faults == {
        "good.jpg": None, "sub/deep.jpg": None, "grey.jpg": Fault("grey", "grey.png"),
        "small.jpg": Fault("wrong size", "small.png: 24 x 16 instead of 32 x 32"),
        "gone.jpg": Fault("missing", "gone.jpg"),
    }  # fmt: skip
    assert broken.kind == "corrupt"
    assert "broken.png" in broken.text
    assert [fault.kind for fault in (broken, *faults.values()) if fault and not fault.fatal] == ["grey"]
    save(tmp_path / "broken.png", good)
    assert torch.equal(folder(batch(32, ("broken.jpg",))), output[:1])
    assert folder.fault("broken.jpg") is None  # it was repaired


def test_folders_that_cannot_be_right(tmp_path):
    with pytest.raises(NotADirectoryError, match=r"PULSE: .*nothing: no such folder"):
        Folder("PULSE", tmp_path / "nothing")
    save(tmp_path / "x.png", np.zeros((4, 4, 3), np.uint8))
    folder = Folder("PULSE", tmp_path)
    with pytest.raises(ValueError, match=r"none of the 2 images, such as a\.png; it holds x\.png"):
        folder.prepare(["a.png", "b.png"], 2, 4)
    with pytest.raises(ValueError, match=r"one image would stand for two photos, x\.png and x\.jpg"):
        folder.prepare(["x.png", "x.jpg"], 2, 4)
    before = folder.describe()
    save(tmp_path / "x.png", np.ones((4, 4, 3), np.uint8))
    assert Folder("PULSE", tmp_path).describe() != before
    save(tmp_path / "x.jpg", np.ones((4, 4, 3), np.uint8))
    with pytest.raises(ValueError, match="two images of one name"):
        Folder("PULSE", tmp_path)


def test_a_model_of_another_side_is_refused(model_dir):
    (method,) = build_methods([f"model:RPF={model_dir}"])
    for sides in ((16, 64), (32, 64), (16, 32)):  # whole, from the second block on, after the first one
        method.prepare(None, *sides)
    for sides, message in (
        ((16, 128), "gives faces of side 32, 64, but 128 was asked for"),
        ((8, 64), "takes an LR of side 16, 32, but lr_size is 8"),
        ((32, 32), "takes an LR of side 16, but lr_size is 32"),
    ):
        with pytest.raises(ValueError, match=f"RPF: {message}"):
            method.prepare(None, *sides)


@pytest.mark.parametrize("kind", ["model", "model-swap", "model-gt", "synthesized", "refinement"])
def test_methods_stop_at_the_side_of_the_faces(kind, model_dir, tmp_path):
    """As a model does that has no further blocks, and none of those runs."""
    whole = RPFModel.from_pretrained(model_dir)
    shorter = RPFModel(whole.config, scale=2)
    shorter.blocks[0].load_state_dict(whole.blocks[0].state_dict())
    shorter.save_pretrained(tmp_path / "shorter")
    method, expected = build_methods([f"{kind}:RPF={model_dir}", f"{kind}:shorter={tmp_path / 'shorter'}"])

    def refuse(*_):
        raise AssertionError("the second block runs")

    for part in method.model.blocks[1].modules():
        part.register_forward_hook(refuse)
    method.prepare(None, 16, 32)
    with torch.no_grad():
        output = method(batch(32))
        assert output.shape == (2, 3, 32, 32)
        torch.testing.assert_close(output, expected(batch(32)), atol=1e-5, rtol=0)
        with pytest.raises(AssertionError, match="second block"):
            method(batch(64))


def test_the_chain_clamps_between_its_blocks(model_dir):
    """A refinement that triples the contrast: what leaves [0, 1] must not reach the next block."""

    class Triple(nn.Module):
        def forward(self, x, **_):
            return 3 * x - 1

    model, given = RPFModel.from_pretrained(model_dir), batch()
    x = given.lr
    for block in model.blocks:
        block.refinement = Triple()
        x = (3 * block.enlarge(x) - 1).clamp(0, 1)
    assert torch.equal(RefinementChain("chain", model)(given), x)
    assert x.unique()[[0, -1]].tolist() == [0, 1]


def test_own_minus_other_is_taken_within_one_model(model_dir, tmp_path):
    second = tmp_path / "second"
    RPFModel.from_pretrained(model_dir).save_pretrained(second)
    methods = build_methods([
        "bicubic", f"model-swap:a_other={model_dir}", f"model:b={second}", f"model:a={model_dir}",
        f"model-swap:b_other={second}", f"model-none:a_none={model_dir}",
    ])  # fmt: skip
    row = {
        "id": "x", "reference_id": "r", "other_id": "o", "faults": {},
        "metrics": {m.name: {"psnr": float(n), "isc_reference": 0.0} for n, m in enumerate(methods)},
    }  # fmt: skip
    gaps = summarise(methods, {"psnr": PSNR(), "isc_reference": PSNR()}, [row], {})["gaps"]
    swaps = [gap for gap in gaps if gap["kind"] == "own_minus_other"]
    assert [(gap["method"], gap["minus"]) for gap in swaps] == [("b", "b_other"), ("a", "a_other")]
    assert [gap["metrics"]["psnr"]["mean"] for gap in swaps] == [2 - 4, 3 - 1]
    assert all("isc_reference" not in gap["metrics"] for gap in swaps)  # of two different references
    assert [gap["method"] for gap in gaps if gap["kind"] == "to_first"] == [m.name for m in methods[1:]]
