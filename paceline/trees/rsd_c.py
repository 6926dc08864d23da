"""RSD-C: every node of a level has the same number of children.

At depth d each node gets `b_d` children. Under the law "distinct" they are drawn from the draft's q without
replacement: x_1 ~ q, x_2 ~ q without x_1, and so on, which is what the top `b_d` of log q plus Gumbel noise are, in
that order. Under "replacement" the same shape is SpecInfer's expansion-based tree (its example: 1 1 3 1 1 1 1 1). All
branching factors 1: an ordinary chain. Where q has fewer tokens than `b_d`, there are fewer children; where the budget
ends, the tree does, level by level.

Papers: Jeon et al., "Recursive Speculative Decoding: Accelerating LLM Inference via Sampling Without Replacement",
2024; Miao et al., "SpecInfer: Accelerating Large Language Model Serving with Tree-based Speculative Inference and
Verification", 2024.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import product

from paceline.errors import BadRequest
from paceline.registry import Guarantee, method
from paceline.trees.base import Plan, StaticTree, planned
from paceline.trees.paths import parse_numbers


@method(
    name="rsd_c",
    kind="tree",
    guarantee=Guarantee.LOSSLESS,
    summary="A constant number of children a level, drawn without replacement.",
    paper="Recursive Speculative Decoding: Accelerating LLM Inference via Sampling Without Replacement",
    year=2024,
)
@dataclass(eq=False)
class ConstantBranching(StaticTree):
    """Branching factors by depth.

    Attributes:
        branches: such as `"2 2 1"`: two children of the root, two of each of them, one of each of those.
    """

    branches: str | int = "2 2 1"

    def __post_init__(self) -> None:
        numbers = parse_numbers(self.branches, f"rsd_c(branches={self.branches!r})")
        if not all(number >= 1 and number.is_integer() for number in numbers):
            raise BadRequest(f"rsd_c(branches={self.branches!r}): integers of at least 1 are needed")
        self._branches = tuple(int(number) for number in numbers)
        self.shape = "tree" if max(self._branches) > 1 else "chain"

    def plan(self, nodes: int, depth: int) -> Plan:
        return planned(_paths(self._branches[:depth], nodes), nodes, depth)


@lru_cache(maxsize=64)
def _paths(branches: tuple[int, ...], nodes: int) -> tuple[tuple[int, ...], ...]:
    """Rank paths level by level; the first `nodes` of a level have all that the budget needs."""
    paths: list[tuple[int, ...]] = []
    level: list[tuple[int, ...]] = [()]
    for width in branches:
        level = [(*path, rank) for path, rank in product(level, range(min(width, nodes)))][:nodes]
        paths += level
    return tuple(paths)
