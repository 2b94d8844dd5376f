"""Sharpens small faces in real photos with portraits of the same people (`rpf enhance`, docs/enhance.md)."""

from rpf_lightning.enhancing.aligned_faces import FaceNetworks, RefusedError
from rpf_lightning.enhancing.enhance import enhance_aligned, enhance_people, enhance_photo
from rpf_lightning.enhancing.found import FoundFace, FoundFaces, find_faces
from rpf_lightning.enhancing.outputs import write_enhanced
from rpf_lightning.enhancing.portraits import match_people, people_in, read_people, read_portrait
from rpf_lightning.enhancing.results import Enhanced, EnhancedFace

__all__ = [
    "Enhanced",
    "EnhancedFace",
    "FaceNetworks",
    "FoundFace",
    "FoundFaces",
    "RefusedError",
    "enhance_aligned",
    "enhance_people",
    "enhance_photo",
    "find_faces",
    "match_people",
    "people_in",
    "read_people",
    "read_portrait",
    "write_enhanced",
]
