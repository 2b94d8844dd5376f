"""Photos, pairs, thin-plate splines and LightningDataModules."""

from rpf_lightning.data.degradation import Degradation
from rpf_lightning.data.embedded import SyntheticFacesDataModule
from rpf_lightning.data.modules import CelebAHQDataModule, FFHQDataModule, ReferencePairsDataModule
from rpf_lightning.data.pairs import PairsDataModule
from rpf_lightning.data.records import FaceBatch, Photo, ReferenceBatch

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
