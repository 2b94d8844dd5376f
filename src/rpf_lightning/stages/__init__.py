"""LightningModules that train the three modules of a reconstruction block (paper IV-B)."""

from rpf_lightning.stages.base import RPFStage
from rpf_lightning.stages.refinement import RefinementStage
from rpf_lightning.stages.synthesis import SynthesisStage
from rpf_lightning.stages.warping import WarpingStage

__all__ = ["RPFStage", "RefinementStage", "SynthesisStage", "WarpingStage"]
