import json
import shutil
from pathlib import Path
from typing import Any

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
from rpf_lightning.metrics import PSNR, PerImageMetric
from rpf_lightning.model import RPFModel
from rpf_lightning.model.resize import resize


def batch(side: int = 64, names: tuple[str, ...] = ("a.png", "b.jpg")) -> EvaluationBatch:
    generator = torch.Generator().manual_seed(0)

    def draw(channels: int, size: int) -> torch.Tensor:
        return torch.rand(len(names), channels, size, size, generator=generator)

    gt = draw(3, side)
    mask = (draw(1, side) > 0.5).float()
    lr = resize(gt, 16).clamp(0, 1)
    ids = list(names)
    return EvaluationBatch(lr, gt, mask, draw(3, side), draw(3, side), ids, ids, ids)


def test_variants_of_a_model_get_their_references_and_share_it(model_dir: Path) -> None:
    methods = build_methods(
        [
            f"{kind}:{kind}={model_dir}"
            for kind in ("model", "model-none", "model-swap", "model-unmasked", "model-gt")
        ]
        + ["refinement:chain", "synthesized:before"],
        model_dir=str(model_dir),
    )
    assert len({id(method.model) for method in methods}) == 1
    kinds = [method.kind for method in methods]
    given, model = batch(), RPFModel.from_pretrained(model_dir)
    given = given._replace(unmasked=given.gt.flip(-1))
    with torch.no_grad():
        x = given.lr
        for block in model.blocks:
            up = block.enlarge(x)
            x = block.refinement(up).clamp(0, 1)
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
        for other in outputs[:i]:
            assert (output - other).abs().max() > 1e-4
    assert [method.needs_other for method in methods] == [kind == "model-swap" for kind in kinds]
    assert [method.needs_unmasked for method in methods] == [kind == "model-unmasked" for kind in kinds]


def test_bicubic_reference_and_gcfsr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = GCFSR(32, width=1 / 64).eval()
    torch.save({"params_ema": network.state_dict()}, tmp_path / "g.pth")
    given = batch(32)
    bicubic, copied = build_methods(["bicubic", "reference:copied"])
    assert (bicubic.name, copied.name) == ("bicubic", "copied")
    assert torch.equal(bicubic(given), resize(given.lr, 32).clamp(0, 1))
    assert torch.equal(copied(given), given.reference)
    with pytest.raises(ValueError, match=r"g\.pth: does not fit GCFSR"):  # of reduced width
        build_methods([f"gcfsr:GCFSR={tmp_path / 'g.pth'}"])
    monkeypatch.setattr(GCFSR, "from_checkpoint", lambda path, **readings: network)
    (published,) = build_methods(["gcfsr:GCFSR=some/g.pth"])
    published.prepare(None, 16, 32)
    assert torch.equal(published(given), network.super_resolve(given.lr))
    assert published.describe() == {
        "kind": "gcfsr", "source": "g.pth", "blend": "before_activation", "normalize": True,
    }  # fmt: skip
    with pytest.raises(ValueError, match="GCFSR: gives faces of side 32"):
        published.prepare(None, 16, 64)


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        (["bicubik"], "method 'bicubik': expected kind"),
        (["folder:PULSE"], "expected folder:NAME=DIR"),
        (["gcfsr"], "expected gcfsr:NAME=FILE"),
        (["model:RPF"], "expected model:NAME=DIR"),
        (["model:"], "expected kind"),
        (["bicubic:b=x"], "takes no argument"),
        (["reference-unmasked:b=x"], "reference-unmasked takes no argument"),
        (["bicubic", "reference:bicubic"], "bicubic is given twice"),
    ],
)
def test_texts_that_are_no_method(specs: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_methods(specs)


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def test_a_folder_gives_its_images_and_names_every_fault(tmp_path: Path) -> None:
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
    assert np.array_equal(pixels[0], good)
    assert np.array_equal(pixels[1], good[::-1])
    assert np.array_equal(pixels[2], np.repeat(grey[..., None], 3, 2))
    assert folder.faults() == [Fault("extra", "extra.png")]
    faults = {name: folder.fault(name) for name in names}
    assert faults["good.jpg"] is faults["sub/deep.jpg"] is None
    assert faults["grey.jpg"] == Fault("grey", "grey.png")
    assert not faults["grey.jpg"].fatal
    assert faults["small.jpg"] == Fault("wrong size", "small.png: 24 x 16 instead of 32 x 32")
    assert faults["gone.jpg"] == Fault("missing", "gone.jpg")
    assert faults["broken.jpg"].kind == "corrupt"
    assert "broken.png" in faults["broken.jpg"].text
    assert all(faults[name].fatal for name in ("small.jpg", "gone.jpg", "broken.jpg"))
    save(tmp_path / "broken.png", good)
    assert torch.equal(folder(batch(32, ("broken.jpg",))), output[:1])
    assert folder.fault("broken.jpg") is None  # it was repaired


def test_folders_that_cannot_be_right(tmp_path: Path) -> None:
    with pytest.raises(NotADirectoryError, match=r"PULSE: .*nothing: no such folder"):
        Folder("PULSE", tmp_path / "nothing")
    save(tmp_path / "x.png", np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(ValueError, match=r"none of the 2 images, such as a\.png; it holds x\.png"):
        Folder("PULSE", tmp_path).prepare(["a.png", "b.png"], 2, 4)
    before = json.dumps(Folder("PULSE", tmp_path).describe())
    save(tmp_path / "x.png", np.ones((4, 4, 3), np.uint8))
    assert json.dumps(Folder("PULSE", tmp_path).describe()) != before
    shutil.copy(tmp_path / "x.png", tmp_path / "x.jpg")
    with pytest.raises(ValueError, match="two images of one name"):
        Folder("PULSE", tmp_path)


def test_a_model_of_another_side_is_refused(model_dir: Path) -> None:
    (method,) = build_methods([f"model:RPF={model_dir}"])
    method.prepare(None, 16, 64)
    method.prepare(None, 32, 64)  # it enters at the second block
    method.prepare(None, 16, 32)  # it stops after the first one
    with pytest.raises(ValueError, match="RPF: gives faces of side 32, 64, but 128 was asked for"):
        method.prepare(None, 16, 128)
    with pytest.raises(ValueError, match="RPF: takes an LR of side 16, 32, but lr_size is 8"):
        method.prepare(None, 8, 64)
    with pytest.raises(ValueError, match="RPF: takes an LR of side 16, but lr_size is 32"):
        method.prepare(None, 32, 32)


@pytest.mark.parametrize("kind", ["model", "model-swap", "model-gt", "synthesized", "refinement"])
def test_methods_stop_at_the_side_of_the_faces(kind: str, model_dir: Path, tmp_path: Path) -> None:
    """As a model does that has no further blocks, and none of those runs."""
    whole = RPFModel.from_pretrained(model_dir)
    shorter = RPFModel(whole.config, scale=2)
    shorter.blocks[0].load_state_dict(whole.blocks[0].state_dict())
    shorter.save_pretrained(tmp_path / "shorter")
    method, expected = build_methods([f"{kind}:RPF={model_dir}", f"{kind}:shorter={tmp_path / 'shorter'}"])

    def refuse(*_: object) -> None:
        raise AssertionError("the second block runs")

    for part in method.model.blocks[1].modules():  # type: ignore[attr-defined]
        part.register_forward_hook(refuse)
    method.prepare(None, 16, 32)
    with torch.no_grad():
        output = method(batch(32))
        assert output.shape == (2, 3, 32, 32)
        torch.testing.assert_close(output, expected(batch(32)), atol=1e-5, rtol=0)
        with pytest.raises(AssertionError, match="second block"):
            method(batch(64))


def test_the_chain_clamps_between_its_blocks(model_dir: Path) -> None:
    """A refinement that triples the contrast: what leaves [0, 1] must not reach the next block."""

    class Triple(nn.Module):
        def forward(self, x: torch.Tensor, **_: Any) -> torch.Tensor:
            return 3 * x - 1

    model = RPFModel.from_pretrained(model_dir)
    for block in model.blocks:
        block.refinement = Triple()
    given = batch()
    x = given.lr
    for block in model.blocks:
        x = (3 * block.enlarge(x) - 1).clamp(0, 1)
    assert torch.equal(RefinementChain("chain", model)(given), x)
    assert (x == 0).any()
    assert (x == 1).any()


def test_own_minus_other_is_taken_within_one_model(model_dir: Path, tmp_path: Path) -> None:
    RPFModel.from_pretrained(model_dir).save_pretrained(tmp_path / "second")
    specs = [
        "bicubic", f"model-swap:a_other={model_dir}", f"model:b={tmp_path / 'second'}", f"model:a={model_dir}",
        f"model-swap:b_other={tmp_path / 'second'}", f"model-none:a_none={model_dir}",
    ]  # fmt: skip
    methods = build_methods(specs)
    row = {
        "id": "x", "reference_id": "r", "other_id": "o", "faults": {},
        "metrics": {m.name: {"psnr": float(n), "isc_reference": 0.0} for n, m in enumerate(methods)},
    }  # fmt: skip
    metrics: dict[str, PerImageMetric] = {"psnr": PSNR(), "isc_reference": PSNR()}
    gaps = summarise(methods, metrics, [row], {})["gaps"]
    swaps = {
        (gap["method"], gap["minus"]): gap["metrics"] for gap in gaps if gap["kind"] == "own_minus_other"
    }
    assert list(swaps) == [("b", "b_other"), ("a", "a_other")]
    assert swaps["a", "a_other"]["psnr"]["mean"] == 3 - 1
    assert swaps["b", "b_other"]["psnr"]["mean"] == 2 - 4
    assert all("isc_reference" not in metrics for metrics in swaps.values())  # of two different references
    assert [gap["method"] for gap in gaps if gap["kind"] == "to_first"] == [m.name for m in methods[1:]]


def test_an_image_stands_for_one_photo_only(tmp_path: Path) -> None:
    save(tmp_path / "a.png", np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(ValueError, match=r"one image would stand for two photos, a\.png and a\.jpg"):
        Folder("PULSE", tmp_path).prepare(["a.png", "a.jpg"], 2, 4)


@pytest.mark.parametrize(
    ("argument", "path", "readings"),
    [
        ("a,b/g.pth", "a,b/g.pth", {"blend": "before_activation", "normalize": True}),
        ("g.pth,blend=after_activation", "g.pth", {"blend": "after_activation", "normalize": True}),
        (
            "g.pth,normalize=false,blend=after_activation",
            "g.pth",
            {"blend": "after_activation", "normalize": False},
        ),
    ],
)
def test_gcfsr_can_be_read_in_other_ways(
    argument: str, path: str, readings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def load(path: str, **readings: Any) -> GCFSR:
        asked.append((path, readings))
        return GCFSR(32, width=1 / 64)

    monkeypatch.setattr(GCFSR, "from_checkpoint", load)
    (method,) = build_methods([f"gcfsr:GCFSR={argument}"])
    assert asked == [(path, readings)]
    assert readings.items() <= method.describe().items()
    with pytest.raises(ValueError, match="expected blend=before_activation or after_activation"):
        build_methods(["gcfsr:GCFSR=g.pth,blend=never"])
