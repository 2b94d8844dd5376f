"""The RPF network and its critics: torch only, no Lightning."""

from rpf_lightning.model.config import RPFConfig
from rpf_lightning.model.critic import Critic, StyleGAN2Critic
from rpf_lightning.model.reconstruction_block import BlockOutput, ReconstructionBlock
from rpf_lightning.model.refinement import RefinementModule
from rpf_lightning.model.rpf import RPFModel
from rpf_lightning.model.synthesis import SynthesisModule
from rpf_lightning.model.warping import WarpingModule, backward_warp

__all__ = [
    "BlockOutput",
    "Critic",
    "RPFConfig",
    "RPFModel",
    "ReconstructionBlock",
    "RefinementModule",
    "StyleGAN2Critic",
    "SynthesisModule",
    "WarpingModule",
    "backward_warp",
]
