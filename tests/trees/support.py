"""Trees grown outside an engine, from a table, with chosen numbers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from paceline.chance import Chance, SeededChance
from paceline.policies.base import Pipeline
from paceline.testing import random_table
from paceline.testing.tabular import Table
from paceline.tree import TokenTree
from paceline.trees import Growth, Tree


def grown(
    tree: Tree,
    table: Table,
    *,
    law: str = "distinct",
    nodes: int = 6,
    depth: int = 6,
    chance: Chance | None = None,
    ends: frozenset[int] = frozenset(),
) -> tuple[TokenTree, list[list[int]]]:
    """A tree under the empty prefix `(0,)`, and the levels of nodes that it asked for."""
    sequence: Any = SimpleNamespace(
        tokens=[0],
        generated=0,
        state=(),
        chance=chance or SeededChance(0),
        pipeline=Pipeline((), greedy=law == "fixed"),
        end_tokens=ends,
    )
    growth = Growth(sequence, law, nodes, depth, tree.branching(nodes))
    asked: list[list[int]] = []

    def learn(wanted: list[int]) -> None:
        texts = [tuple(growth.tokens[n] for n in path_of(growth.parents, node)) for node in wanted]
        growth.take(growth.ask(wanted, torch.stack([table(text) for text in texts])))

    learn(growth.open([0]))
    for wanted in tree.grow(growth, nodes, depth):
        if wanted := growth.open(wanted):
            asked.append(wanted)
            learn(wanted)
    return growth.tree(), asked


def path_of(parents: list[int], node: int) -> list[int]:
    above = path_of(parents, parents[node]) if node else []
    return [*above, node]


def table(vocabulary: int = 4, seed: int = 7, **options: Any) -> Table:
    return random_table(vocabulary, seed, **options)


def texts(tree: TokenTree) -> list[tuple[int, ...]]:
    """The token path of every drafted node."""
    return [tuple(int(tree.tokens[n]) for n in tree.path(node)[1:]) for node in range(1, len(tree))]
