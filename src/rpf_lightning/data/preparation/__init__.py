"""From folders of photos to hashed reference pairs (`rpf prepare`)."""

from rpf_lightning.data.preparation.annotating import StoppedError
from rpf_lightning.data.preparation.options import Options
from rpf_lightning.data.preparation.pipeline import (
    DiskFullError,
    NothingUsableError,
    check_celeba_hq,
    prepare_celeba_hq,
    prepare_faces,
)
from rpf_lightning.data.preparation.prepared_folder import verify

__all__ = [
    "DiskFullError",
    "NothingUsableError",
    "Options",
    "StoppedError",
    "check_celeba_hq",
    "prepare_celeba_hq",
    "prepare_faces",
    "verify",
]
