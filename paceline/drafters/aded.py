"""ADED: a table of tri-grams that adapts to the text, explored by Monte Carlo tree search.

The table maps two tokens to their successors with weights, `T[a, b] -> {c: w}`. It starts empty, or with the relative
frequencies of a datastore's tri-grams, and every tri-gram of the text adds `step` to its weight, up to `cap` (weights
are not renormalised). It belongs to the drafter and so adapts to all its texts.

A draft is found by `iterations` rounds of search from the last two tokens. A round

1. descends to the child that maximises

       Q/n + (c1 + ln((N + c2 + 1) / c2)) * w * sqrt(N) / (1 + n),

   N and n the visits of parent and child, Q the child's summed rewards, w the edge's weight; unvisited ones first;
2. expands a leaf with all its successors and enters the last one;
3. draws successors in proportion to their weights, up to `length` tokens from the root;
4. adds the reward `1 + sum of the path's weights` to the Q of every node it passed.

The `kept` most visited nodes, each extended by its heaviest successor, are the draft tree, cut to the node budget. The
share of the root's visits that passed a node serves as the chance that it is accepted.

`adapt="new-tokens"` counts every token once, when it is committed. `adapt="tail"` counts the tri-grams within the last
`tail` tokens anew at every step, as the published code does, which weighs a token by how slowly the text grew past it.
Where the papers leave it open: `length` bounds the whole path, search and draw together; a pair keeps its `successors`
heaviest entries also while it adapts; the table keeps the `contexts` pairs seen last.

Paper: Liu, Zhang, Bao et al., "Adaptive Draft-Verification for Efficient Large Language Model Decoding", 2024.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

from paceline.budgets import check_budgets
from paceline.datastore import Datastore
from paceline.datastore.trigrams import successors as counted
from paceline.drafters.base import Outcome, SequenceDrafter
from paceline.drafters.rest import check_tokens
from paceline.errors import BadRequest
from paceline.models.causal import CausalModel
from paceline.registry import Guarantee, method
from paceline.sequence import Sequence
from paceline.tree import TokenTree

Weights = dict[int, float]


class Table:
    """Successors of pairs of tokens, with weights.

    Args:
        known: what is known at first.
        contexts: most pairs; those not seen for longest go first.
        successors: most entries of a pair.
    """

    def __init__(self, known: dict[tuple[int, int], Weights], contexts: int, successors: int) -> None:
        self._after, self.contexts, self.successors = known, contexts, successors

    def __len__(self) -> int:
        return len(self._after)

    def after(self, pair: tuple[int, int]) -> Weights:
        """The successors of a pair."""
        return self._after.get(pair, {})

    def adapt(self, tokens: Seq[int], step: float, cap: float) -> None:
        """Add `step` to every tri-gram of some tokens."""
        for a, b, c in zip(tokens, tokens[1:], tokens[2:], strict=False):
            weights = self._after.pop((a, b), {})
            weights[c] = min(cap, weights.get(c, 0.0) + step)
            if len(weights) > self.successors:
                del weights[min((token for token in weights if token != c), key=weights.__getitem__)]
            self._after[a, b] = weights
            if len(self._after) > self.contexts:
                del self._after[next(iter(self._after))]


class Node:
    """A token of the search tree and what became of the rounds that passed it."""

    __slots__ = ("children", "depth", "pair", "parent", "reward", "visits", "weight")

    def __init__(self, parent: Node | None, pair: tuple[int, int], weight: float) -> None:
        self.parent, self.pair, self.weight = parent, pair, weight
        self.depth: int = parent.depth + 1 if parent else 0
        self.children: list[Node] | None = None
        self.visits, self.reward = 0, 0.0

    def descendants(self) -> Iterator[Node]:
        """All visited nodes below."""
        for child in self.children or ():
            if child.visits:
                yield child
                yield from child.descendants()


@dataclass(frozen=True)
class Search:
    """Monte Carlo tree search over a table; see the module.

    Attributes:
        table: what follows what.
        c1, c2: constants of the selection score.
        length: most tokens of a path.
    """

    table: Table
    c1: float
    c2: float
    length: int

    def run(self, pair: tuple[int, int], iterations: int, seed: int) -> Node:
        """The root of the tree after some rounds from a pair of tokens."""
        generator, root = random.Random(seed), Node(None, pair, 0.0)
        for _ in range(iterations):
            node, total = root, 0.0
            while node.children:
                node = self._select(node)
                total += node.weight
            if node.depth < self.length and node.children is None and self._expand(node):
                assert node.children
                node = node.children[-1]
                total += node.weight
            self._credit(node, 1.0 + total + self._draw(node, generator))
        return root

    def score(self, child: Node, visits: int) -> float:
        """How promising a visited child is, by its parent's visits."""
        explore = self.c1 + math.log((visits + self.c2 + 1) / self.c2)
        return child.reward / child.visits + explore * child.weight * math.sqrt(visits) / (1 + child.visits)

    def _select(self, node: Node) -> Node:
        assert node.children
        best, highest = node.children[0], -math.inf
        for child in node.children:
            if not child.visits:
                return child
            if (score := self.score(child, node.visits)) > highest:
                best, highest = child, score
        return best

    def _expand(self, node: Node) -> bool:
        """Give a leaf its children; whether there are any."""
        after = self.table.after(node.pair)
        node.children = [Node(node, (node.pair[1], token), weight) for token, weight in after.items()]
        return bool(node.children)

    def _draw(self, node: Node, generator: random.Random) -> float:
        """Summed weights of successors drawn from a node on."""
        pair, total = node.pair, 0.0
        for _ in range(self.length - node.depth):
            after = self.table.after(pair)
            if not after:
                break
            token = generator.choices(list(after), list(after.values()))[0]
            pair, total = (pair[1], token), total + after[token]
        return total

    @staticmethod
    def _credit(node: Node | None, reward: float) -> None:
        while node is not None:
            node.visits += 1
            node.reward += reward
            node = node.parent


@method(
    name="aded",
    kind="drafter",
    guarantee=Guarantee.LOSSLESS,
    summary="Explores an adaptive table of tri-grams by Monte Carlo tree search.",
    paper="Adaptive Draft-Verification for Efficient Large Language Model Decoding",
    year=2024,
)
@dataclass(eq=False)
class ADED(SequenceDrafter):
    """Adaptive draft-verification.

    Attributes:
        datastore: a folder made by `paceline datastore build` whose tri-grams fill the table; by default it is empty.
        adapt: "new-tokens" or "tail" (see the module).
        nodes: most drafted tokens; by default as many as cost the target next to nothing.
        iterations, c1, c2, length, kept: of the search.
        step, cap, tail: of the adaptation.
        successors, contexts: most entries of a pair, and most pairs.
        seed: of the search.
    """

    datastore: str | None = None
    adapt: str = "new-tokens"
    nodes: int | None = None
    iterations: int = 150
    c1: float = 32.0
    c2: float = 8.0
    length: int = 4
    kept: int = 24
    step: float = 0.04
    cap: float = 3.0
    tail: int = 16
    successors: int = 12
    contexts: int = 100_000
    seed: int = 0
    shape = "tree"
    _store: Datastore | None = field(init=False, repr=False, default=None)
    _table: Table = field(init=False, repr=False)
    _spare: int = field(init=False, repr=False, default=1)

    def __post_init__(self) -> None:
        for name in ("nodes", "iterations", "length", "kept", "successors", "contexts"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise BadRequest(f"aded({name}={value}): an integer of at least 1 is needed")
        if self.tail < 3:
            raise BadRequest(f"aded(tail={self.tail}): an integer of at least 3, a tri-gram, is needed")
        if not self.c1 >= 0:
            raise BadRequest(f"aded(c1={self.c1}): a number of at least 0 is needed")
        for name in ("c2", "step", "cap"):
            if not getattr(self, name) > 0:
                raise BadRequest(f"aded({name}={getattr(self, name)}): a number above 0 is needed")
        if self.adapt not in ("new-tokens", "tail"):
            raise BadRequest(f"aded(adapt={self.adapt!r}): 'new-tokens' or 'tail' is needed")
        known: dict[tuple[int, int], Weights] = {}
        if self.datastore is not None:
            self._store = Datastore(self.datastore)
            known = counted(self._store, self.contexts, self.successors)
        self._table = Table(known, self.contexts, self.successors)

    def attach(self, target: CausalModel) -> None:
        check_budgets("aded", self, target, "nodes", "length")
        if self._store is not None:
            check_tokens(self._store, target)
        self._spare = target.spare

    def begin(self, sequence: Sequence) -> None:
        tokens = sequence.tokens if self.adapt == "new-tokens" else sequence.tokens[-self.tail :]
        self._table.adapt(tokens, self.step, self.cap)

    def draft(self, sequence: Sequence, nodes: int, depth: int) -> TokenTree:
        tokens = sequence.tokens
        limit = min(nodes, self.nodes or self._spare)
        if len(tokens) < 2 or not limit or not depth:
            return TokenTree.empty(tokens[-1])
        search = Search(self._table, self.c1, self.c2, min(self.length, depth))
        root = search.run((tokens[-2], tokens[-1]), self.iterations, self.seed * 1_000_003 + len(tokens))
        paths, odds = self._paths(root, depth)
        return TokenTree.merge(tokens[-1], paths, limit, odds)

    def commit(self, outcomes: Seq[Outcome]) -> None:
        for outcome in outcomes:
            new = len(outcome.tokens) + 2 if self.adapt == "new-tokens" else self.tail
            self._table.adapt(outcome.sequence.tokens[-new:], self.step, self.cap)

    def _paths(self, root: Node, depth: int) -> tuple[list[list[int]], list[list[float]]]:
        """Paths of the most visited nodes, then of the same extended by one token, with the chances along them."""
        # Parents have at least their children's visits, so they come first.
        best = sorted(root.descendants(), key=lambda node: (-node.visits, node.depth))[: self.kept]
        paths, odds = [], []
        for node in best:
            line = _line(node)
            paths.append([step.pair[1] for step in line])
            odds.append([step.visits / root.visits for step in line])
        for path, chances, node in list(zip(paths, odds, best, strict=True)):
            after = self._table.after(node.pair)
            if after and node.depth < depth:
                heaviest = max(after, key=after.__getitem__)
                paths.append([*path, heaviest])
                odds.append([*chances, chances[-1] * after[heaviest] / sum(after.values())])
        return paths, odds


def _line(node: Node) -> list[Node]:
    """The nodes from below the root down to a node."""
    line: list[Node] = []
    while node.parent is not None:
        line.append(node)
        node = node.parent
    return line[::-1]
