"""Sharpens a small face in a real photo with a portrait of the same person (`rpf enhance`, docs/enhance.md)."""

from rpf_lightning.enhancing.aligned_faces import FaceNetworks, RefusedError
from rpf_lightning.enhancing.enhance import Enhanced, enhance_aligned, enhance_photo
from rpf_lightning.enhancing.outputs import write_enhanced

__all__ = ["Enhanced", "FaceNetworks", "RefusedError", "enhance_aligned", "enhance_photo", "write_enhanced"]
