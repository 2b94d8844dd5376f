"""Photos, pairs, thin-plate splines and LightningDataModules."""

from rpf_lightning.data.batches import FaceBatch, Photo, ReferenceBatch
from rpf_lightning.data.degradation import Degradation
from rpf_lightning.data.drawn_datamodule import SyntheticFacesDataModule
from rpf_lightning.data.pairs_datamodule import PairsDataModule
from rpf_lightning.data.prepared_datamodules import (
    CelebAHQDataModule,
    FFHQDataModule,
    ReferencePairsDataModule,
)

__all__ = [
    "CelebAHQDataModule",
    "Degradation",
    "FFHQDataModule",
    "FaceBatch",
    "PairsDataModule",
    "Photo",
    "ReferenceBatch",
    "ReferencePairsDataModule",
    "SyntheticFacesDataModule",
]
