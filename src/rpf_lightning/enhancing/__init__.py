"""Sharpens a small face in a real photo with a portrait of the same person (`rpf enhance`, docs/enhance.md)."""

from rpf_lightning.enhancing.command import write_enhanced
from rpf_lightning.enhancing.faces import FaceNetworks, RefusedError
from rpf_lightning.enhancing.run import Enhanced, enhance_aligned, enhance_photo

__all__ = ["Enhanced", "FaceNetworks", "RefusedError", "enhance_aligned", "enhance_photo", "write_enhanced"]
