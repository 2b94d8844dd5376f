"""What each kind of fit trains and what it computes with: said here, and nowhere else."""

from __future__ import annotations

from typing import NamedTuple

from rpf_lightning.model.summary import MODULES

Modules = set[tuple[int, str]]
"""Modules of the network: number of the block, counted from 1, and name."""


class Role(NamedTuple):
    """What a fit trains, in each of its blocks.

    Attributes:
        name: Of the kind of fit; names the run folder.
        trains: The modules that it trains: of ``"warping"``, ``"synthesis"``, ``"refinement"``.
        reads: The block's other modules that it computes with.
        alone: Whether it computes without the blocks before, and so without references.
    """

    name: str
    trains: tuple[str, ...]
    reads: tuple[str, ...] = ()
    alone: bool = False

    def fit_name(self, first: int, last: int) -> str:
        """Name of a fit of blocks first to last, of its run folder and in `state.json`."""
        return f"{self.name}{first}-{last}" if self == JOINT else f"block{last}-{self.name}"

    def trained(self, first: int, last: int) -> Modules:
        """What a fit of these blocks trains."""
        return {(n, module) for n in range(first, last + 1) for module in self.trains}

    def frozen(self, first: int, last: int) -> Modules:
        """What it computes with and does not train."""
        before = set() if self.alone else {(n, module) for n in range(1, first) for module in MODULES}
        return before | {(n, module) for n in range(first, last + 1) for module in self.reads}


REFINEMENT = Role("refinement", ("refinement",), alone=True)  # stage 1 trains every block by itself
WARPING = Role("warping", ("warping",))
SYNTHESIS = Role("synthesis", ("synthesis",), reads=("warping",))
FINETUNE = Role("finetune", ("refinement",), reads=("warping", "synthesis"))
JOINT = Role("joint", MODULES)
ROLES = {role.name: role for role in (REFINEMENT, WARPING, SYNTHESIS, FINETUNE, JOINT)}
