"""Sequoia: the best static tree for the acceptance that was measured.

Let `a_b` be the chance that the b-th sibling is the accepted one, given that its parent is reached, the same at every
node. `T[m, l, b]`, the most tokens a tree of m nodes (the root counts), at most l levels and b children of the root
yields on average, follows by dynamic programming:

    T[1, l, 0] = 1,   T[m, l, b] = max over y of  T[y, l, b - 1] + a_b max_b' T[m - y, l - 1, b'],   1 <= y < m

A tree of d levels below the root costs d passes of the draft, each `c` of a target's pass, so the depth that brings
the greatest `max_b T / (1 + c d)` is taken within the step's budget.

The vector is given, or measured: of the visited nodes that had at least b children, how many went on with the b-th;
counts start from `ACCEPTANCE`, which weighs as much as `WEIGHT` visits. (The paper measures it beforehand.)

Paper: Chen et al., "Sequoia: Scalable, Robust, and Hardware-aware Speculative Decoding", 2024.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from paceline.drafters.base import Outcome
from paceline.errors import BadRequest
from paceline.registry import Guarantee, method
from paceline.trees.base import Plan, StaticTree
from paceline.trees.fixed import ACCEPTANCE
from paceline.trees.paths import parse_numbers

if TYPE_CHECKING:
    from paceline.models.causal import CausalModel

#: Visits that the starting values are worth, and visits after which the tree is planned anew.
WEIGHT, RENEW = 32, 64


@method(
    name="sequoia",
    kind="tree",
    guarantee=Guarantee.LOSSLESS,
    summary="The best static tree for a measured acceptance vector, by dynamic programming.",
    paper="Sequoia: Scalable, Robust, and Hardware-aware Speculative Decoding",
    year=2024,
)
@dataclass(eq=False)
class Sequoia(StaticTree):
    """An optimal static tree.

    Attributes:
        acceptance: chance of each sibling to be the accepted one, such as `"0.6 0.2 0.1"`; measured by default.
        cost: time of a draft pass in target passes; by default the ratio of the models' sizes.
    """

    acceptance: str | None = None
    cost: float | None = None
    _hits: np.ndarray = field(init=False, repr=False)
    _visits: np.ndarray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._given = None
        if self.acceptance is not None:
            where = f"sequoia(acceptance={self.acceptance!r})"
            self._given = parse_numbers(self.acceptance, where)
            if not (all(chance >= 0 for chance in self._given) and sum(self._given) <= 1 + 1e-9):
                raise BadRequest(f"{where}: probabilities of disjoint events are needed, 0 or more, at most 1 together")
        if self.cost is not None and not self.cost >= 0:
            raise BadRequest(f"sequoia(cost={self.cost}): a number of at least 0 is needed")
        self._hits, self._visits = np.zeros(len(ACCEPTANCE)), np.zeros(len(ACCEPTANCE))
        self._cost = self.cost or 0.0
        self._vector = self._given or ACCEPTANCE

    def attach(self, draft: CausalModel, target: CausalModel) -> None:
        if self.cost is None and target.nbytes:
            self._cost = draft.nbytes / target.nbytes

    def branching(self, nodes: int) -> int:
        return min(nodes, len(self._vector))

    def plan(self, nodes: int, depth: int) -> Plan:
        return best_plan(self._vector, nodes, depth, self._cost)

    def learn(self, outcome: Outcome) -> None:
        if self._given is not None:
            return
        children = outcome.tree.children
        # Where the text was cut, what the last node's children were worth was not seen.
        judged = outcome.path if len(outcome.tokens) == len(outcome.path) else outcome.path[:-1]
        before = self._visits[0] // RENEW
        for node, accepted in zip(judged, [*outcome.path[1:], None], strict=False):
            offered = children[node][: len(self._visits)]
            self._visits[: len(offered)] += 1
            if accepted in offered:
                self._hits[offered.index(accepted)] += 1
        if self._visits[0] // RENEW > before:
            self._vector = self.measured

    @property
    def measured(self) -> tuple[float, ...]:
        """The acceptance vector by what was seen so far."""
        rates = (np.array(ACCEPTANCE) * WEIGHT + self._hits) / (WEIGHT + self._visits)
        whole = np.minimum(np.cumsum(rates), 1.0)
        return tuple(np.diff(whole, prepend=0.0).round(3).tolist())


@lru_cache(maxsize=64)
def expected_tokens(acceptance: tuple[float, ...], nodes: int, levels: int) -> tuple[np.ndarray, np.ndarray]:
    """The dynamic programme.

    Args:
        acceptance: `a_b`, B of them.
        nodes: M, the largest tree, the root included.
        levels: L, the root's included.

    Returns:
        `T` `[M + 1, L + 1, B + 1]` float64, `-inf` where there is no such tree, and the `y` that reach it, int64.
    """
    chances = np.array(acceptance)
    table = np.full((nodes + 1, levels + 1, len(chances) + 1), -np.inf)
    split = np.zeros(table.shape, np.int64)
    table[1, 1:, 0] = 1.0
    for size in range(2, nodes + 1):
        for level in range(2, levels + 1):
            below = table[size - 1 : 0 : -1, level - 1].max(-1)  # of a last subtree that has size - y nodes
            gain = np.where(np.isfinite(below)[:, None], chances * np.maximum(below, 0.0)[:, None], -np.inf)
            options = table[1:size, level, :-1] + gain
            split[size, level, 1:] = options.argmax(0) + 1
            table[size, level, 1:] = options.max(0)
    return table, split


@lru_cache(maxsize=256)
def best_plan(acceptance: tuple[float, ...], nodes: int, depth: int, cost: float) -> Plan:
    """The best tree of at least one drafted node, at most `nodes`, and at most `depth` levels of them.

    Args:
        acceptance: chance of each sibling to be the accepted one.
        cost: of a draft pass in target passes.
    """
    table, split = expected_tokens(acceptance, nodes + 1, nodes + 1)
    worth = [float(table[:, level + 1].max()) / (1 + cost * level) for level in range(1, min(nodes, depth) + 1)]
    levels = int(np.argmax(worth)) + 2
    size = int(table[:, levels].max(-1).argmax())
    children: list[list[int]] = [[]]
    pending = [(0, size, levels)]
    while pending:
        node, size, level = pending.pop()
        for subtree in _subtrees(table, split, size, level):
            children[node].append(len(children))
            pending.append((len(children), subtree, level - 1))
            children.append([])
    return tuple(tuple(below) for below in children)


def _subtrees(table: np.ndarray, split: np.ndarray, size: int, level: int) -> list[int]:
    """Sizes of the subtrees under the root of the best tree of a size, the first sibling's first."""
    sizes: list[int] = []
    b = int(table[size, level].argmax())
    while b:
        left = int(split[size, level, b])
        sizes.append(size - left)
        size, b = left, b - 1
    return sizes[::-1]
