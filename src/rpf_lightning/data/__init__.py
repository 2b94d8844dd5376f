"""Photos, pairs, thin-plate splines and LightningDataModules."""

from rpf_lightning.data.embedded import SyntheticFacesDataModule
from rpf_lightning.data.pairs import PairsDataModule, ReferencePairsDataModule
from rpf_lightning.data.records import Photo, ReferenceBatch

__all__ = [
    "PairsDataModule",
    "Photo",
    "ReferenceBatch",
    "ReferencePairsDataModule",
    "SyntheticFacesDataModule",
]
