"""Several whole chains side by side: the draft of K-SEQ and of other verifiers that compare chains.

The root has `width` children and every other node one. Under the law "chains" each chain is drawn from q on its own,
from the root on, and two that agree are not merged. The budget is shared evenly.

Paper: Sun et al., "SpecTr: Fast Speculative Decoding via Optimal Transport", 2023.
"""

from __future__ import annotations

from dataclasses import dataclass

from paceline.errors import BadRequest
from paceline.registry import Guarantee, method
from paceline.trees.base import Plan, StaticTree, planned


@method(
    name="chains",
    kind="tree",
    guarantee=Guarantee.LOSSLESS,
    summary="Several independent chains side by side.",
    paper="SpecTr: Fast Speculative Decoding via Optimal Transport",
    year=2023,
)
@dataclass(eq=False)
class Chains(StaticTree):
    """Chains from the root.

    Attributes:
        count: how many.
        length: most tokens of each; by default what the budget allows.
    """

    count: int = 2
    length: int | None = None
    laws = frozenset({"shared", "distinct", "replacement", "chains", "fixed"})

    def __post_init__(self) -> None:
        if self.count < 1:
            raise BadRequest(f"chains(count={self.count}): an integer of at least 1 is needed")
        if self.length is not None and self.length < 1:
            raise BadRequest(f"chains(length={self.length}): an integer of at least 1 is needed")
        self.shape = "tree" if self.count > 1 else "chain"

    def plan(self, nodes: int, depth: int) -> Plan:
        length = min(depth, self.length or depth, -(-nodes // self.count))
        paths = (((rank,) + (0,) * level) for level in range(length) for rank in range(min(self.count, nodes)))
        return planned(tuple(paths), nodes, depth)
