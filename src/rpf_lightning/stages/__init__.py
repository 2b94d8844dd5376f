"""LightningModules that train the three modules of a reconstruction block (paper IV-B), or several blocks jointly."""

from rpf_lightning.stages.base import RPFStage
from rpf_lightning.stages.joint import JointStage
from rpf_lightning.stages.refinement import RefinementStage
from rpf_lightning.stages.synthesis import SynthesisStage
from rpf_lightning.stages.warping import WarpingStage

__all__ = ["JointStage", "RPFStage", "RefinementStage", "SynthesisStage", "WarpingStage"]
