"""Trees: where a draft model's next guesses go, and how many there are.

A tree's `grow` is a generator that asks for children and yields the nodes under which it wants to go on; the draft
model scores those of all sequences in one pass before it is resumed. Most trees know their shape beforehand and
implement `plan` alone (`StaticTree`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING

from paceline.drafters.base import Outcome
from paceline.trees.growth import Growth

if TYPE_CHECKING:
    from paceline.models.causal import CausalModel

#: Children of every node of a static tree, by number; node 0 is the root, parents come before their children.
Plan = tuple[tuple[int, ...], ...]


class Tree(ABC):
    """Base of all trees. Subclasses are dataclasses: their init fields are the knobs."""

    #: "chain" where no node has two children (see `paceline.plan`).
    shape: str = "tree"
    #: Laws that its tokens can follow (see `paceline.plan.LAWS`).
    laws: frozenset[str] = frozenset({"shared", "distinct", "replacement", "top", "fixed"})

    def attach(self, draft: CausalModel, target: CausalModel) -> None:
        """Called with the models before any sequence."""

    def branching(self, nodes: int) -> int:
        """Most children of a node in a tree of at most `nodes` drafted nodes."""
        return nodes

    @abstractmethod
    def grow(self, growth: Growth, nodes: int, depth: int) -> Iterator[list[int]]:
        """Add nodes with `growth.draw`; yield those whose laws are wanted next. The root's law is known from the start.

        What may not be expanded (the text ends there, a policy fails, the budget is spent) has no law afterwards, and
        no children. A generator that is not resumed has said all it had to say.

        Args:
            growth: the tree so far.
            nodes: most drafted nodes, at least 1.
            depth: greatest depth, at least 1.
        """

    def learn(self, outcome: Outcome) -> None:
        """What became of a tree that was judged."""


class StaticTree(Tree):
    """A tree whose shape does not depend on what is drawn, but for children that a law has no tokens for."""

    #: Nodes so far that got fewer children than planned, since the draft's law had no more tokens.
    clipped: int = 0

    @abstractmethod
    def plan(self, nodes: int, depth: int) -> Plan:
        """The shape: at most `nodes` drafted nodes, none deeper than `depth`."""

    def branching(self, nodes: int) -> int:
        return max(len(children) for children in self.plan(nodes, nodes))

    def grow(self, growth: Growth, nodes: int, depth: int) -> Iterator[list[int]]:
        plan = self.plan(nodes, depth)
        grown, level = {0: 0}, [0]
        while level:
            below: list[int] = []
            for at in level:
                for child in plan[at]:
                    node = growth.draw(grown[at], of=len(plan[at]))
                    if node is None:
                        self.clipped += growth.spent(grown[at])
                        break
                    grown[child] = node
                    below.append(child)
            level = [child for child in below if plan[child]]
            if level:
                yield [grown[child] for child in level]


@lru_cache(maxsize=256)
def planned(paths: tuple[tuple[int, ...], ...], nodes: int, depth: int) -> Plan:
    """The first `nodes` of some rank paths, none longer than `depth`, as a plan.

    Args:
        paths: parents before children, siblings by rank.
    """
    number: dict[tuple[int, ...], int] = {(): 0}
    children: list[list[int]] = [[]]
    for path in paths:
        if len(number) <= nodes and len(path) <= depth and path[:-1] in number:
            number[path] = len(children)
            children[number[path[:-1]]].append(len(children))
            children.append([])
    return tuple(tuple(below) for below in children)
