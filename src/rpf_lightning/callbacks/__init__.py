"""Lightning callbacks."""

from rpf_lightning.callbacks.freezing import FreezeEarlierBlocks
from rpf_lightning.callbacks.predictions import PredictionWriter

__all__ = ["FreezeEarlierBlocks", "PredictionWriter"]
