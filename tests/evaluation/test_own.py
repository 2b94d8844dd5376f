"""A method and a metric from outside of the package: one file each could be this short."""

import sys

import pytest
import torch
from evaluations import run
from torch import Tensor

from rpf_lightning.data import ReferencePairsDataModule
from rpf_lightning.evaluation import Method, evaluate
from rpf_lightning.evaluation.evaluation_batch import EvaluationBatch
from rpf_lightning.metrics import PerImageMetric

METHOD = '''
from torch import Tensor
from rpf_lightning.evaluation import Method
from rpf_lightning.model.resize import resize

class Brighter(Method):
    """The enlarged LR, brighter."""

    def __init__(self, name, amount="0"):
        super().__init__(name)
        self.amount = float(amount)

    def __call__(self, batch) -> Tensor:
        return resize(batch.lr, batch.gt.shape[-1]) + self.amount
'''


class Brightness(PerImageMetric):
    """Difference of the mean brightness, in percent."""

    label, unit, digits, higher_is_better = "brightness|[mean]", "%", 1, False

    def per_image(self, output: Tensor, gt: Tensor) -> Tensor:
        return 100 * (output.mean((1, 2, 3)) - gt.mean((1, 2, 3))).abs()


class Grey(Method):
    """Knows nothing."""

    def __call__(self, batch: EvaluationBatch) -> Tensor:
        return torch.full_like(batch.gt, 0.5)


def test_a_method_of_ones_own_on_the_command_line(prepared, tmp_path, monkeypatch):
    (tmp_path / "my_methods.py").write_text(METHOD)
    monkeypatch.syspath_prepend(tmp_path)
    words = ["--method", "my_methods.Brighter:same", "--method", "my_methods.Brighter:brighter=0.2"]
    results = run(prepared, tmp_path / "out", *words, "--contact-images", "1")
    psnr = {name: means["psnr"] for name, means in results["methods"].items()}
    assert psnr["same"] == pytest.approx(psnr["bicubic"])
    assert psnr["brighter"] < psnr["same"]
    assert results["protocol"]["methods"]["brighter"] == {"kind": "Brighter"}
    del sys.modules["my_methods"]


def test_a_method_and_a_metric_of_ones_own_in_python(prepared, tmp_path, capsys):
    data = ReferencePairsDataModule(str(prepared), val_fraction=0.5, lr_size=16, size=64)
    given = {"data": data, "out": str(tmp_path), "contact_images": 0}
    results = evaluate(**given, methods=["bicubic", Grey("grey")], metrics={"brightness": Brightness()})
    expected = [100 * abs(0.5 - sample.gt.mean().item()) for sample in data.val_dataset()]
    assert results["methods"]["grey"]["brightness"] == pytest.approx(sum(expected) / len(expected), rel=1e-4)
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert r"| brightness\|[mean] (%) ↓ |" in table
    assert "brightness|[mean] (%) ↓" in capsys.readouterr().out
    assert f"**{results['methods']['bicubic']['brightness']:.1f}**" in table
    with pytest.raises(ValueError, match="metrics: psnr is measured already"):
        evaluate(**given, methods=["bicubic"], metrics={"psnr": Brightness()})


@pytest.mark.parametrize(
    ("spec", "message"),
    [("nowhere.Method", "No module named"), ("torch.nope", "nope"), ("pathlib.Path:x", "a subclass of")],
)
def test_what_is_no_method(spec, message, prepared, tmp_path):
    data = ReferencePairsDataModule(str(prepared), lr_size=16, size=64)
    with pytest.raises(ValueError, match=rf"method '{spec}': .*{message}"):
        evaluate(data=data, out=str(tmp_path), methods=[spec])
