"""DySpec: the tree grows where the draft itself expects to be right.

The draft's probability is taken for the chance of acceptance. A *slot* is a place for a node's next child; its value
is the chance that the node is reached and none of its children so far is accepted: `v(node) * (1 - sum of q of its
children)`. A child's value is the product of q along its path.

- Heap version (no `threshold`): the most valuable slot is filled until the budget is spent. One draft pass for every
  node that gets a child, so it suits drafts whose passes are almost free. Were acceptance what the draft says, no tree
  of that size would be better.
- Threshold version: level by level, a node gets further children while its slot is worth at least `threshold`, and the
  whole level is scored in one pass. About one over the budget is a sensible threshold.

Children are drawn without replacement, and nothing but what was already drawn decides about the next, so the law of
the output is not touched. When nothing is drawn (greedy), a slot's value is that of the token which would fill it.

Paper: Xiong et al., "DySpec: Faster Speculative Decoding with Dynamic Token Tree Structure", 2024.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass

from paceline.errors import BadRequest
from paceline.registry import Guarantee, method
from paceline.trees.base import Tree
from paceline.trees.growth import Growth


@method(
    name="dyspec",
    kind="tree",
    guarantee=Guarantee.LOSSLESS,
    summary="Grows where the draft's own probability is greatest.",
    paper="DySpec: Faster Speculative Decoding with Dynamic Token Tree Structure",
    year=2024,
)
@dataclass(eq=False)
class DySpec(Tree):
    """Best-first or thresholded growth.

    Attributes:
        threshold: least value of a slot that is filled, level by level; `None`: the heap version.
    """

    threshold: float | None = None
    laws = frozenset({"shared", "distinct", "replacement", "fixed"})

    def __post_init__(self) -> None:
        if self.threshold is not None and not 0 < self.threshold <= 1:
            raise BadRequest(f"dyspec(threshold={self.threshold}): a number above 0 and at most 1 is needed")

    def grow(self, growth: Growth, nodes: int, depth: int) -> Iterator[list[int]]:
        return self._by_value(growth) if self.threshold is None else self._by_level(growth, self.threshold)

    def _by_value(self, growth: Growth) -> Iterator[list[int]]:
        """The most valuable slot first. Heap entries: (-value, node, whether its law is known)."""
        slots: list[tuple[float, int, bool]] = [(-growth.promise(0), 0, True)]
        while slots and growth.drafted < growth.nodes:
            value, node, known = heapq.heappop(slots)
            if not known:
                yield [node]
                heapq.heappush(slots, (-growth.promise(node), node, True))
                continue
            child = growth.draw(node) if value < 0 else None
            if child is not None:
                heapq.heappush(slots, (-growth.promise(node), node, True))
                heapq.heappush(slots, (-growth.odds[child], child, False))

    def _by_level(self, growth: Growth, least: float) -> Iterator[list[int]]:
        level = [0]
        while level:
            below: list[int] = []
            for node in level:
                while growth.promise(node) >= least and (child := growth.draw(node)) is not None:
                    below.append(child)
            level = [node for node in below if growth.odds[node] >= least]
            if level:
                yield level
