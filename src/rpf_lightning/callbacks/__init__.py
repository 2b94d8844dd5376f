"""Lightning callbacks."""

from rpf_lightning.callbacks.checkpoints import LastCheckpoint
from rpf_lightning.callbacks.freezing import FreezeEarlierBlocks
from rpf_lightning.callbacks.panels import ImagePanels
from rpf_lightning.callbacks.predictions import PredictionWriter

__all__ = ["FreezeEarlierBlocks", "ImagePanels", "LastCheckpoint", "PredictionWriter"]
