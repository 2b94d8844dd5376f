"""Evaluation: protocol, tables and pictures (paper IV-C and IV-D)."""

from rpf_lightning.evaluation.evaluating import evaluate
from rpf_lightning.evaluation.methods import Method

__all__ = ["Method", "evaluate"]
