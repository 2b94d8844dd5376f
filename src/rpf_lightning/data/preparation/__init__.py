"""From folders of photos to hashed reference pairs (`rpf prepare`)."""

from rpf_lightning.data.preparation.annotations import StoppedError
from rpf_lightning.data.preparation.options import Options
from rpf_lightning.data.preparation.prepare import (
    DiskFullError,
    NothingUsableError,
    prepare_celeba_hq,
    prepare_faces,
)
from rpf_lightning.data.preparation.tables import verify

__all__ = [
    "DiskFullError",
    "NothingUsableError",
    "Options",
    "StoppedError",
    "prepare_celeba_hq",
    "prepare_faces",
    "verify",
]
