"""Evaluation: protocol, tables and pictures (paper IV-C and IV-D)."""

from rpf_lightning.evaluation.compare import evaluate
from rpf_lightning.evaluation.run import evaluate_model_dir

__all__ = ["evaluate", "evaluate_model_dir"]
