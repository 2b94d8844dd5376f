"""A stage, and a loss for a stage, of somebody else: each one file of at most 40 lines, three members at most."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from rpf_lightning.model import RPFModel
from rpf_lightning.training import lightning_cli
from small_fits import FACES
from stage_fits import differing

STAGE = '''
from rpf_lightning.losses import masked_l1
from rpf_lightning.stages import BlockStage, Role


class FlowStage(BlockStage):
    """Trains the warping module on the GT's face, and on nothing else."""

    role = Role("flow", trains=("warping",))

    def generate(self, batch):
        _, alignment = self.align(batch)
        return {"output": alignment.image, "flow": alignment.flow}

    def terms(self, batch, outputs):
        return {"face": masked_l1(outputs["output"], batch.gt, batch.gt_mask)}
'''
LOSS = '''
from typing import Any

import torch

from rpf_lightning.stages import SynthesisStage


class SharpSynthesis(SynthesisStage):
    """With an L1 between the differences of neighbouring pixels.

    Args:
        args: See `SynthesisStage`.
        edge_weight: Weight of the term.
        kwargs: See `SynthesisStage`.
    """

    def __init__(self, *args: Any, edge_weight: float = 0.2, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.edge_weight = edge_weight

    def terms(self, batch, outputs):
        edges = (torch.diff(outputs["output"] - batch.gt)).abs().mean()
        return {**super().terms(batch, outputs), "edges": self.edge_weight * edges}
'''


@pytest.fixture
def _added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both in modules outside the package."""
    for name, text in (("own_stage", STAGE), ("own_loss", LOSS)):
        assert len(text.splitlines()) <= 40
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))


def fit(tmp_path: Path, class_path: str, trainer: dict[str, Any], **init_args: Any) -> Any:
    content = {
        "trainer": {"accelerator": "cpu", "max_epochs": 1, "limit_val_batches": 1, **trainer},
        "model": {"class_path": class_path, "init_args": init_args},
        "data": FACES,
    }
    (tmp_path / "fit.yaml").write_text(yaml.safe_dump(content))
    return lightning_cli(["fit", "--config", str(tmp_path / "fit.yaml")])


@pytest.mark.usefixtures("_added")
def test_a_stage(model_dir: Path, tmp_path: Path) -> None:
    from own_stage import FlowStage

    assert [n for n in vars(FlowStage) if not n.startswith("_")] == ["role", "generate", "terms"]
    before = RPFModel.from_pretrained(model_dir).state_dict()
    cli = fit(tmp_path, "own_stage.FlowStage", {"fast_dev_run": True}, model_dir=str(model_dir), block=2)
    assert {"train/face", "val/face", "val/psnr"} <= cli.trainer.callback_metrics.keys()
    fit(tmp_path, "own_stage.FlowStage", {"limit_train_batches": 2}, model_dir=str(model_dir), block=2)
    after = RPFModel.from_pretrained(model_dir).state_dict()
    assert {name.rsplit(".", 2)[0][:16] for name in differing(before, after)} == {"blocks.1.warping"}
    assert (model_dir / "runs" / "block2-flow" / "checkpoints" / "last.ckpt").is_file()


@pytest.mark.usefixtures("_added")
def test_a_loss(model_dir: Path, tmp_path: Path) -> None:
    options = {"model_dir": str(model_dir), "block": 2, "edge_weight": 0.5}
    cli = fit(tmp_path, "own_loss.SharpSynthesis", {"fast_dev_run": True}, **options)
    terms = ("reconstruction", "adversarial", "edges")
    metrics = cli.trainer.callback_metrics
    total = sum(metrics[f"train/{name}"].item() for name in terms)
    assert metrics["train/loss"].item() == pytest.approx(total, rel=1e-5)
    assert metrics["train/edges"] > 0
    assert metrics["val/edges"] > 0
    assert cli.model.hparams["edge_weight"] == 0.5


@pytest.mark.parametrize(
    ("stage", "argument"),
    [
        ("WarpingStage", "adversarial_weight"), ("JointStage", "cache_prefix"), ("SynthesisStage", "first"),
    ],
)  # fmt: skip
def test_arguments_that_mean_nothing_for_a_stage_are_unknown(
    model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], stage: str, argument: str
) -> None:
    with pytest.raises(SystemExit):
        fit(tmp_path, f"rpf_lightning.stages.{stage}", {}, model_dir=str(model_dir), **{argument: 1})
    assert argument in capsys.readouterr().err
