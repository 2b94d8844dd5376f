"""Other methods of Table 1, written for this package: torch only, apart from `model/`."""

from rpf_lightning.baselines.gcfsr import GCFSR

__all__ = ["GCFSR"]
