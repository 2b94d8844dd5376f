"""Lightning callbacks."""

from rpf_lightning.callbacks.averaging import AveragedWeights
from rpf_lightning.callbacks.checkpoints import LastCheckpoint
from rpf_lightning.callbacks.face_metrics import FaceMetrics
from rpf_lightning.callbacks.panels import ImagePanels
from rpf_lightning.callbacks.predictions import PredictionWriter
from rpf_lightning.stages.freezing import FreezeEarlierBlocks

__all__ = [
    "AveragedWeights",
    "FaceMetrics",
    "FreezeEarlierBlocks",
    "ImagePanels",
    "LastCheckpoint",
    "PredictionWriter",
]
