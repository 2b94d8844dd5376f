"""RPF: reference-based progressive face super-resolution (Kim et al., IEEE Access 2023).

from rpf_lightning import RPFModel

model = RPFModel.from_pretrained("runs/demo/model")
face = model(lr, reference, mask)
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rpf_lightning.callbacks import FreezeEarlierBlocks
    from rpf_lightning.data import (
        CelebAHQDataModule,
        FFHQDataModule,
        ReferencePairsDataModule,
        SyntheticFacesDataModule,
    )
    from rpf_lightning.model import RPFConfig, RPFModel
    from rpf_lightning.stages import JointStage, RefinementStage, SynthesisStage, WarpingStage

_HOME = {
    "RPFConfig": "model",
    "RPFModel": "model",
    "RefinementStage": "stages",
    "WarpingStage": "stages",
    "SynthesisStage": "stages",
    "JointStage": "stages",
    "FreezeEarlierBlocks": "callbacks",
    "CelebAHQDataModule": "data",
    "FFHQDataModule": "data",
    "ReferencePairsDataModule": "data",
    "SyntheticFacesDataModule": "data",
}
__all__ = [
    "CelebAHQDataModule",
    "FFHQDataModule",
    "FreezeEarlierBlocks",
    "JointStage",
    "RPFConfig",
    "RPFModel",
    "ReferencePairsDataModule",
    "RefinementStage",
    "SynthesisStage",
    "SyntheticFacesDataModule",
    "WarpingStage",
]
__version__ = version("rpf-lightning")


def __getattr__(name: str) -> object:
    # a notebook that only super-resolves does not wait for Lightning
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
