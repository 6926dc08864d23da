"""Token Recycling: the runner-up tokens of every pass, usually thrown away, are the next drafts.

A table `M` remembers for each token `v` the `top` best successors that the target named when it last scored
`v`, anywhere in any text. The draft is a static tree of rank paths under the root: the child with rank `r` of
a node `u` carries `M[token(u)][r]`. After the pass every scored node, accepted or not, rewrites its token's
row; where a token occurs twice, the last node in tree order wins. The table ranks raw logits, whatever the
policy; it is `V x top` 32-bit integers and is kept across requests.

The published tree has 80 nodes, more than a CPU scores for free. So its nodes are taken in order of their
worth, the product of `WORTH[rank]` along the path, until the step's budget is full; a node of whose token
nothing is known yet leaves its place to the next.

Paper: Luo et al., "Turning Trash into Treasure: Accelerating Inference of Large Language Models with Token
Recycling", 2024 (whose table starts as zeros, and whose draft is always the whole tree).
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from itertools import pairwise
from math import prod

import numpy as np
import torch

from paceline.budgets import check_budgets
from paceline.drafters.base import Drafter, Outcome
from paceline.errors import BadRequest
from paceline.models.causal import CausalModel
from paceline.registry import Guarantee, method
from paceline.sequence import Sequence
from paceline.tree import TokenTree
from paceline.trees.paths import parse_paths

#: The published tree, as the number of children of each rank path (their ranks count from 0).
# fmt: off
PUBLISHED = {
    "": 8, "0": 8, "1": 4, "2": 3, "3": 2, "4": 1, "5": 1, "6": 1, "7": 1,
    "00": 8, "01": 3, "02": 2, "03": 1, "04": 1, "05": 1, "06": 1, "07": 1,
    "10": 2, "11": 1, "20": 1, "30": 1, "40": 1, "50": 1,
    "000": 5, "001": 2, "002": 1, "003": 1, "004": 1, "010": 1, "020": 1, "100": 1, "200": 1, "300": 1,
    "0000": 3, "0001": 1, "0002": 1, "0010": 1, "0100": 1, "1000": 1,
    "00000": 2, "00010": 1,
}
# fmt: on
#: Measured chance that the successor of a rank is the one chosen; it orders the nodes.
WORTH = (0.5, 0.09, 0.045, 0.035, 0.025, 0.02, 0.015, 0.01, 0.01, 0.01)


class Template:
    """A static tree of rank paths, breadth first.

    Attributes:
        parents, ranks, depths: of each node; node 0 is the root (parent -1, rank unused).
        levels: the nodes of depth 1, 2, ..., as slices.
        worth: product of `WORTH` along each node's path.
        order: drafted nodes, the worthiest first; parents come before children.
        branches: whether it is more than a chain.
    """

    def __init__(self, paths: Seq[str]) -> None:
        nodes = ["", *sorted(set(paths), key=lambda path: (len(path), path))]
        number = {path: i for i, path in enumerate(nodes)}
        self.parents = np.array([-1, *(number[path[:-1]] for path in nodes[1:])])
        self.ranks = np.array([0, *(int(path[-1]) for path in nodes[1:])])
        self.depths = np.array([len(path) for path in nodes])
        bounds = np.searchsorted(self.depths, np.arange(1, self.depths[-1] + 2)).tolist()
        self.levels = [slice(a, b) for a, b in pairwise(bounds)]
        self.worth = worth = np.array([prod(WORTH[int(rank)] for rank in path) for path in nodes])
        self.branches = any(level.stop - level.start > 1 for level in self.levels)
        self.order = np.array(sorted(range(1, len(nodes)), key=lambda node: -worth[node]), np.int64)

    def fill(self, roots: Seq[int], table: np.ndarray) -> np.ndarray:
        """`[len(roots), N + 1]` tokens, -1 where nothing is known."""
        tokens = np.full((len(roots), len(self.parents)), -1)
        tokens[:, 0] = roots
        for level in self.levels:
            tokens[:, level] = table[tokens[:, self.parents[level]], self.ranks[level]]
        return tokens

    def tree(self, tokens: np.ndarray, nodes: int, depth: int) -> TokenTree:
        """The `nodes` worthiest known nodes of a filled template `[N + 1]` down to a depth, breadth first."""
        usable = (tokens >= 0) & (self.depths <= depth)
        known = self.order[usable[self.order]][:nodes]
        kept = np.concatenate([[0], np.sort(known)])
        renumber = np.full(len(tokens), -1)
        renumber[kept] = np.arange(len(kept))
        parents = np.where(kept > 0, renumber[self.parents[kept]], -1)
        return TokenTree(tokens[kept], parents, odds=self.worth[kept])


@method(
    name="recycling",
    kind="drafter",
    guarantee=Guarantee.LOSSLESS,
    summary="Drafts a tree from a table of each token's best successors, kept from earlier passes.",
    paper="Turning Trash into Treasure: Accelerating Inference of LLMs with Token Recycling",
    year=2024,
)
@dataclass(eq=False)
class Recycling(Drafter):
    """Token Recycling.

    Attributes:
        top: successors remembered for each token, 1 to 10.
        template: rank paths of the tree, such as `"0 1 00 10"`, a digit a level; the published tree by default.
        nodes: most drafted tokens, the template's worthiest; by default as many as ride along with the target's pass.
    """

    top: int = 8
    template: str | None = None
    nodes: int | None = None
    shape: str = field(init=False, repr=False)
    table: np.ndarray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not 1 <= self.top <= 10:
            raise BadRequest(f"recycling(top={self.top}): an integer from 1 to 10 is needed")
        if self.nodes is not None and self.nodes < 1:
            raise BadRequest(f"recycling(nodes={self.nodes}): an integer of at least 1 is needed")
        self._template, self._spare = Template(self._paths()), 1
        self.shape = "tree" if self._template.branches else "chain"
        self.table = np.empty((0, self.top), np.int32)

    def attach(self, target: CausalModel) -> None:
        check_budgets("recycling", self, target, "nodes")
        # The last row stands for the unknown token -1, whose successors are unknown too.
        rows = target.vocab_size + 1
        if len(self.table) not in (0, rows):
            raise BadRequest(
                f"recycling: its table is for a vocabulary of {len(self.table) - 1}, this model's has "
                f"{target.vocab_size}; give each model a drafter of its own"
            )
        self._spare = target.spare
        if not len(self.table):
            self.table = np.full((rows, self.top), -1, np.int32)

    def propose(self, sequences: Seq[Sequence], budget: Seq[tuple[int, int]]) -> list[TokenTree]:
        filled = self._template.fill([sequence.tokens[-1] for sequence in sequences], self.table)
        most = self.nodes or self._spare
        return [
            self._template.tree(tokens, min(nodes, most), depth)
            for tokens, (nodes, depth) in zip(filled, budget, strict=True)
        ]

    def peek(self, sequence: Sequence, tree: TokenTree, logits: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return logits.topk(min(self.top, logits.shape[-1])).indices

    def observe(self, outcomes: Seq[Outcome]) -> None:
        for outcome in outcomes:
            best = outcome.peeked.view(len(outcome.tree), -1).numpy()
            # Where a token is assigned twice NumPy keeps the last value, as the paper wants.
            self.table[outcome.tree.tokens, : best.shape[1]] = best

    def _paths(self) -> list[str]:
        if self.template is None:
            published = (f"{path}{rank}" for path, children in PUBLISHED.items() for rank in range(children))
            return [path for path in published if all(int(rank) < self.top for rank in path)]
        return parse_paths(self.template, f"recycling(template={self.template!r})", self.top)
