"""The unit of work: drafted tokens under the last committed token."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch


@dataclass(frozen=True)
class Draws:
    """The laws that sampled draft tokens were drawn from.

    Tokens and their laws travel in one object, so the `q` a verifier reads is the one that was sampled.

    Attributes:
        logq: `[k, V]` float32, normalised log-distributions.
        row: `[N + 1]` int64; node `i` was drawn from `logq[row[i]]`, or is a point mass where `row[i] == -1`.
    """

    logq: torch.Tensor
    row: np.ndarray


@dataclass(frozen=True)
class TokenTree:
    """N drafted tokens under a root, parents before children.

    Node 0 is the root: the last committed token, whose key and value are not in the cache yet. The empty
    tree (root only) is plain autoregressive decoding; a chain is the tree in which `parents[i] == i - 1`.

    Attributes:
        tokens: `[N + 1]` int64, the root's token first.
        parents: `[N + 1]` int64, `-1` for the root, otherwise an index smaller than the node's own.
        draws: the laws of sampled nodes; `None` when every node is a point mass (deterministic draft).
        odds: `[N + 1]` float, the drafter's guess of the chance that a node is accepted, 1 at the root and never more
            than at the parent; `None` where it has none. Budgets are set by it, never what is accepted.
        late: what was drawn as the last node's successor while the tree was being scored: the token, no node yet, and
            its `[V]` log-law. A verifier that draws may try it before the bonus token.
        counts: `[N + 1]` int64, how many of the continuations that a retriever found begin like a node's path; `None`
            where nothing was counted.
        probe: `[N + 1]` bool, nodes that are scored for what the target says there and never accepted, nor what lies
            below them; `None`: there are none.
        passes: how many passes, this one included, what is drafted here has had, where passes correct one and the same
            draft; 0: it is a new one, or nobody counts.

    Raises:
        ValueError: if a parent does not precede its node.
    """

    tokens: np.ndarray
    parents: np.ndarray
    draws: Draws | None = None
    odds: np.ndarray | None = None
    late: tuple[int, torch.Tensor] | None = None
    counts: np.ndarray | None = None
    probe: np.ndarray | None = None
    passes: int = 0

    def __post_init__(self) -> None:
        n = len(self.tokens)
        if n == 0 or len(self.parents) != n:
            raise ValueError(f"parents: {len(self.parents)} entries for {n} tokens; one a token is needed, root first")
        parents = self.parents
        if parents[0] != -1 or (n > 1 and ((parents[1:] < 0) | (parents[1:] >= np.arange(1, n))).any()):
            raise ValueError(f"parents: {self.parents.tolist()}; node 0 must have parent -1, others an earlier node")

    @classmethod
    def empty(cls, root: int) -> TokenTree:
        """The tree of plain decoding: the root alone."""
        return cls(np.array([root], np.int64), np.array([-1], np.int64))

    @classmethod
    def chain(
        cls,
        root: int,
        tokens: Iterable[int],
        logq: torch.Tensor | None = None,
        odds: Iterable[float] | None = None,
    ) -> TokenTree:
        """A single path.

        Args:
            root: token of the root.
            tokens: N drafted ones.
            logq: `[N, V]`, the law each token was drawn from, if it was drawn.
            odds: the chance that the path is accepted as far as each of its tokens.
        """
        drafted = list(tokens)
        n = len(drafted)
        draws = None if logq is None or n == 0 else Draws(logq, np.arange(-1, n))
        guesses = None if odds is None else np.array([1.0, *odds])
        return cls(np.array([root, *drafted], np.int64), np.arange(-1, n), draws, guesses)

    @classmethod
    def merge(
        cls,
        root: int,
        paths: Iterable[Sequence[int]],
        limit: int | None = None,
        odds: Iterable[Sequence[float]] | None = None,
    ) -> TokenTree:
        """The trie of several continuations; shared prefixes become one node, and `counts` says of how many.

        Args:
            root: token of the root.
            paths: continuations.
            limit: most drafted nodes.
            odds: for each path the chance that it is accepted as far as each of its tokens; a shared node has the best.
        """
        tokens, parents, chances, counts = [root], [-1], [1.0], [0]
        child: dict[tuple[int, int], int] = {}
        known: Iterable[Sequence[float] | None] = itertools.repeat(None) if odds is None else odds
        for path, chance in zip(paths, known, strict=False):
            node = 0
            counts[0] += 1
            for i, token in enumerate(path):
                if (node, token) not in child:
                    if limit is not None and len(tokens) > limit:
                        break
                    child[node, token] = len(tokens)
                    tokens.append(token)
                    parents.append(node)
                    chances.append(0.0)
                    counts.append(0)
                node = child[node, token]
                counts[node] += 1
                if chance is not None:
                    chances[node] = max(chances[node], chance[i])
        guesses = None if odds is None else np.array(chances)
        seen = np.array(counts, np.int64)
        return cls(np.array(tokens, np.int64), np.array(parents, np.int64), odds=guesses, counts=seen)

    def __len__(self) -> int:
        """Positions to score: drafted nodes and the root."""
        return len(self.tokens)

    @property
    def root(self) -> int:
        return int(self.tokens[0])

    @property
    def drafted(self) -> int:
        """Number of drafted nodes, N."""
        return len(self.tokens) - 1

    @cached_property
    def is_chain(self) -> bool:
        return self.drafted == 0 or bool((self.parents == np.arange(-1, self.drafted)).all())

    @cached_property
    def depth(self) -> np.ndarray:
        """`[N + 1]` int64: distance from the root."""
        if self.is_chain:
            return np.arange(len(self.tokens))
        depth = np.zeros(len(self.tokens), np.int64)
        for node in range(1, len(depth)):
            depth[node] = depth[self.parents[node]] + 1
        return depth

    @cached_property
    def children(self) -> list[list[int]]:
        """Indices of the children of every node that may be accepted, in draft order, with multiplicity."""
        lists: list[list[int]] = [[] for _ in self.tokens]
        for node in range(1, len(self.tokens)):
            if self.probe is None or not self.probe[node]:
                lists[self.parents[node]].append(node)
        return lists

    @cached_property
    def ancestors(self) -> np.ndarray:
        """`[N + 1, N + 1]` bool: `ancestors[i, j]` where j is i or above i."""
        return ancestor_matrix(self.parents)

    def path(self, node: int) -> list[int]:
        """Node indices from the root (included) to `node` (included)."""
        nodes = [node]
        while (node := int(self.parents[node])) >= 0:
            nodes.append(node)
        return nodes[::-1]

    def chain_below(self, node: int) -> list[int]:
        """Node indices under `node` (left out), always the first child."""
        nodes: list[int] = []
        while self.children[node]:
            node = self.children[node][0]
            nodes.append(node)
        return nodes

    def limit(self, nodes: int, depth: int) -> TokenTree:
        """The tree without nodes deeper than `depth` and with at most `nodes` drafted nodes, earliest first."""
        if self.drafted <= nodes and (self.drafted <= depth or self.depth.max() <= depth):
            return self
        return self.select(np.flatnonzero(self.depth <= depth)[: nodes + 1])

    def select(self, keep: np.ndarray) -> TokenTree:
        """The tree of the nodes `keep`, ascending indices that begin with the root and hold every node's parent."""
        renumber = np.full(len(self.tokens) + 1, -1)
        renumber[keep] = np.arange(len(keep))
        draws = Draws(self.draws.logq, self.draws.row[keep]) if self.draws is not None else None
        odds, counts, probe = (None if of is None else of[keep] for of in (self.odds, self.counts, self.probe))
        parents = renumber[self.parents[keep]]
        return TokenTree(self.tokens[keep], parents, draws, odds, counts=counts, probe=probe, passes=self.passes)


def ancestor_matrix(parents: Sequence[int] | np.ndarray) -> np.ndarray:
    """`[n, n]` bool, row i marks i and the nodes above it. `parents[i] == -1` starts a new path."""
    n = len(parents)
    if all(int(parent) == i - 1 for i, parent in enumerate(parents)):
        return np.tri(n, dtype=bool)
    matrix = np.eye(n, dtype=bool)
    for node in range(n):
        if parents[node] >= 0:
            matrix[node] |= matrix[parents[node]]
    return matrix
