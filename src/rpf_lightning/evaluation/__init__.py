"""Evaluation: protocol, tables and pictures (paper IV-C and IV-D)."""

from rpf_lightning.evaluation.methods import Method
from rpf_lightning.evaluation.run import evaluate

__all__ = ["Method", "evaluate"]
