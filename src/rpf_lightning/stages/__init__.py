"""LightningModules that train the three modules of a reconstruction block (paper IV-B), or several blocks jointly."""

from rpf_lightning.stages.base import RPFStage
from rpf_lightning.stages.block import BlockStage
from rpf_lightning.stages.image_terms import ImageTerms
from rpf_lightning.stages.joint_stage import JointStage
from rpf_lightning.stages.refinement_stage import RefinementStage
from rpf_lightning.stages.roles import Role
from rpf_lightning.stages.synthesis_stage import SynthesisStage
from rpf_lightning.stages.warping_stage import WarpingStage

__all__ = [
    "BlockStage",
    "ImageTerms",
    "JointStage",
    "RPFStage",
    "RefinementStage",
    "Role",
    "SynthesisStage",
    "WarpingStage",
]
