"""Sequoia: the best static tree for the acceptance that was measured.

Let `a_b` be the chance that the b-th sibling is the accepted one, given that its parent is reached, the same at every
node. `T[m, l, b]`, the most tokens a tree of m nodes (the root counts), at most l levels and b children of the root
yields on average, follows by dynamic programming:

    T[1, l, 0] = 1,   T[m, l, b] = max over y of  T[y, l, b - 1] + a_b max_b' T[m - y, l - 1, b'],   1 <= y < m

A tree of m nodes with d levels below the root costs d passes of the draft and one of the target over m rows. Within the
step's budget the size and the depth are taken that bring most tokens a second:

    argmax over (m, d) of  max_b T[m, d + 1, b] / (d t_D((m - 1) / d) + t_T(m))

Both times are measured on the models and the machine at hand, by number of rows, when the models are attached. A pass
of the draft is taken for one over as many rows as a level has nodes on average (the paper: one time for any number).

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
from paceline.models.costs import PassCosts
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
        uniform: under the verifier `sequoia`, children that the draft's law has no token for are drawn uniformly from
            all tokens that are not children yet, as in the paper; its code, and the default, leave them out.
        cost: time of a draft pass in target passes, both the same whatever their rows; by default all are measured, and
            the shape may differ from run to run by what the machine was doing.
    """

    acceptance: str | None = None
    cost: float | None = None
    uniform: bool = False
    laws: frozenset[str] = field(init=False, repr=False, default=StaticTree.laws)
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
        if self.uniform:
            self.laws = self.laws | {"exhaustive"}
        self._hits, self._visits = np.zeros(len(ACCEPTANCE)), np.zeros(len(ACCEPTANCE))
        self._vector, self._times = self._given or ACCEPTANCE, StepTimes(FLAT, flat(self.cost or 0.0))
        self._plans: dict[tuple[object, ...], Plan] = {}

    def attach(self, draft: CausalModel, target: CausalModel) -> None:
        if self.cost is None:
            self._times, self._plans = StepTimes(target.costs, draft.costs), {}

    def branching(self, nodes: int) -> int:
        return min(nodes, len(self._vector))

    def plan(self, nodes: int, depth: int) -> Plan:
        key = (self._vector, nodes, depth)
        if key not in self._plans:
            self._plans[key] = best_plan(*key, self._times)
        return self._plans[key]

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
            self._vector, self._plans = self.measured, {}

    @property
    def measured(self) -> tuple[float, ...]:
        """The acceptance vector by what was seen so far."""
        rates = (np.array(ACCEPTANCE) * WEIGHT + self._hits) / (WEIGHT + self._visits)
        whole = np.minimum(np.cumsum(rates), 1.0)
        return tuple(np.diff(whole, prepend=0.0).round(3).tolist())


def flat(seconds: float) -> PassCosts:
    """A pass that takes the same time whatever its rows."""
    return PassCosts({1: seconds, 2: seconds})


FLAT = flat(1.0)


@dataclass(frozen=True)
class StepTimes:
    """What a step takes by the size and the depth of its tree.

    Attributes:
        target, draft: passes by their rows, in one unit.
    """

    target: PassCosts
    draft: PassCosts

    def __call__(self, drafted: np.ndarray, levels: np.ndarray) -> np.ndarray:
        """Of trees with so many drafted nodes on so many levels; the arrays are broadcast."""
        return levels * self.draft.each(drafted / levels) + self.target.each(drafted + 1)


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


def best_plan(acceptance: tuple[float, ...], nodes: int, depth: int, times: StepTimes) -> Plan:
    """The tree that brings most tokens a second, of at least one and at most `nodes` drafted nodes.

    Args:
        acceptance: chance of each sibling to be the accepted one.
        nodes, depth: most drafted nodes, and levels of them.
        times: of a step by the tree's size and depth.
    """
    depth = min(nodes, depth)
    table, split = expected_tokens(acceptance, nodes + 1, nodes + 1)
    rates = table[2:, 2 : depth + 2].max(-1) / times(np.arange(1, nodes + 1)[:, None], np.arange(1, depth + 1)[None])
    size, levels = (int(at) + 2 for at in np.unravel_index(rates.argmax(), rates.shape))
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
