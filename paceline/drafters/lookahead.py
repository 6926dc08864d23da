"""Lookahead decoding: the target collects n-grams from a running Jacobi iteration and drafts those that fit.

A window of W columns and N - 1 rows holds the last N - 1 iterates of a Jacobi iteration; the cell in row r and column
i stands i + r tokens behind the last one (the root, which is row 0, column 0). One pass scores the window and up to G
n-grams from a pool of those that begin with the root's token:

    row 0    root a1 a2 a3       Column i attends to the text, to row 0 up to i, and to itself upwards. So the window
    row 1    b0   b1 b2 b3       is a tree: row 0 is a chain, and b_i hangs under a_i, c_i under b_i.
    row 2    c0   c1 c2 c3
    new row  z0   z1 z2 z3       z_i: the policy's best token after c_i.

Every column is now an n-gram of N tokens, `(a_i, b_i, c_i, z_i)`: it goes into the pool under its first token, where
the G last used stay. Then all rows move up, the new row comes last, row 0 loses its first column to the root. N-grams
drafted from the pool come first in the tree, equal paths are one node; a window cell that happens to be right is
accepted like any other drafted token. In the paper it is not: with `accept_window=false` cells are probes, nodes of
their own that are scored and never accepted, so that without guesses a step emits one token. At first the window holds
random tokens of the text, and its columns are collected once all rows are iterates (the paper fills row after row, to
the same effect). An end token in the window is replaced by a token of the text, so that the iteration goes on.

New rows are the best tokens of the policy, also where text is sampled: an n-gram is used again at other positions,
whose noise differs.

A step scores `(N - 1) W - 1 + G (N - 1)` tokens: 55 with W = 7, N = 5 and G = 7, as published for models of 7 billion
parameters. Where its budget holds fewer, half of it is the window's, in whole columns.

Paper: Fu et al., "Break the Sequential Dependency of LLM Inference Using Lookahead Decoding", 2024.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

import numpy as np
import torch

from paceline.budgets import check_budget, check_budgets
from paceline.drafters.base import Drafter, Outcome
from paceline.errors import BadRequest
from paceline.models.causal import CausalModel
from paceline.registry import Guarantee, method
from paceline.sequence import Sequence
from paceline.tree import TokenTree

#: Largest window, n-gram and number of guesses: far more than any pass has room for.
GREATEST = 1000


class Pool:
    """For every token the continuations that were seen last, at most `guesses` of them."""

    def __init__(self, guesses: int) -> None:
        self.guesses = guesses
        self._known: dict[int, dict[tuple[int, ...], None]] = {}

    def add(self, ngram: Seq[int]) -> None:
        """Remember an n-gram as the latest of its first token; the one unused for longest is forgotten."""
        if not self.guesses:
            return
        known, rest = self._known.setdefault(ngram[0], {}), tuple(ngram[1:])
        known.pop(rest, None)
        known[rest] = None
        if len(known) > self.guesses:
            del known[next(iter(known))]

    def after(self, token: int) -> list[tuple[int, ...]]:
        """Continuations of a token, the latest first."""
        return list(reversed(self._known.get(token, {})))


class Trie:
    """A tree in the making: equal paths are one node, or two, if one is to be accepted and the other a probe."""

    def __init__(self, root: int) -> None:
        self.tokens, self.parents, self.probes = [root], [-1], [False]
        self._child: dict[tuple[int, int, bool], int] = {}

    def add(self, parent: int, token: int, probe: bool = False) -> int:
        """The child of a node that carries a token."""
        key = parent, token, probe
        if key not in self._child:
            self._child[key] = len(self.tokens)
            self.tokens.append(token)
            self.parents.append(parent)
            self.probes.append(probe)
        return self._child[key]

    def tree(self) -> TokenTree:
        probe = np.array(self.probes) if any(self.probes) else None
        return TokenTree(np.array(self.tokens, np.int64), np.array(self.parents, np.int64), probe=probe)


@dataclass
class Window:
    """One text's iteration.

    Attributes:
        grid: `[N - 1, W]` int64 tokens; the root's place, row 0 column 0, is not used.
        pool: the n-grams collected.
        age: passes since the start, as far as it matters: from N - 2 on, all rows are iterates.
        tree: what was drafted last, and `last` its nodes of the last row, one a column that was drafted.
    """

    grid: np.ndarray
    pool: Pool
    age: int = 0
    tree: TokenTree | None = None
    last: list[int] = field(default_factory=list)


@method(
    name="lookahead",
    kind="drafter",
    guarantee=Guarantee.LOSSLESS,
    summary="N-grams from a Jacobi iteration that runs beside the text are drafted where they fit.",
    paper="Break the Sequential Dependency of LLM Inference Using Lookahead Decoding",
    year=2024,
)
@dataclass(eq=False)
class Lookahead(Drafter):
    """Lookahead decoding.

    Attributes:
        window: columns of the window, W.
        ngram: tokens of an n-gram, N: rows of the window and one.
        guesses: n-grams kept for a first token and drafted in a step, G.
        pool_from_prompt: collect the n-grams of the prompt and of the text too.
        nodes: most tokens scored in a step; by default three times as many as ride along with the target's pass, since
            a window needs room.
        accept_window: a window cell that is right is accepted; false, as in the paper: only guesses are.
    """

    window: int = 7
    ngram: int = 5
    guesses: int = 7
    pool_from_prompt: bool = True
    nodes: int | None = None
    accept_window: bool = True
    shape: str = field(init=False, repr=False, default="tree")

    def __post_init__(self) -> None:
        for name, least in (("window", 1), ("ngram", 3), ("guesses", 0)):
            value = getattr(self, name)
            if not least <= value <= GREATEST:
                raise BadRequest(f"lookahead({name}={value}): an integer from {least} to {GREATEST} is needed")
        if self.nodes is not None and self.nodes < 1:
            raise BadRequest(f"lookahead(nodes={self.nodes}): an integer of at least 1 is needed")
        self._most = self.nodes or 1

    def attach(self, target: CausalModel) -> None:
        check_budgets("lookahead", self, target, "nodes")
        cells = (self.ngram - 1) * self.window
        check_budget(f"lookahead(window={self.window}, ngram={self.ngram})", cells, target)
        self._most = self.nodes or 3 * target.spare

    def begin(self, sequence: Sequence) -> None:
        grid = _picked(sequence.tokens, (self.ngram - 1) * self.window).reshape(self.ngram - 1, self.window)
        sequence.drafts = Window(grid, Pool(self.guesses))
        self._collect_text(sequence, 0)

    def propose(self, sequences: Seq[Sequence], budget: Seq[tuple[int, int]]) -> list[TokenTree]:
        return [
            self._draft(sequence, sequence.drafts, min(nodes, self._most), depth)
            for sequence, (nodes, depth) in zip(sequences, budget, strict=True)
        ]

    def peek(
        self, sequence: Sequence, tree: TokenTree, logits: torch.Tensor, scores: torch.Tensor
    ) -> torch.Tensor | None:
        # A step that another drafter led says nothing of this window.
        return scores[sequence.drafts.last].argmax(-1) if tree is sequence.drafts.tree else None

    def observe(self, outcomes: Seq[Outcome]) -> None:
        for outcome in outcomes:
            if outcome.tree is outcome.sequence.drafts.tree:
                self._move(outcome.sequence, outcome.tree.root, outcome.peeked.long().numpy())

    def commit(self, outcomes: Seq[Outcome]) -> None:
        for outcome in outcomes:
            self._collect_text(outcome.sequence, len(outcome.sequence.tokens) - len(outcome.tokens))

    def _draft(self, sequence: Sequence, state: Window, nodes: int, depth: int) -> TokenTree:
        root, deep = sequence.tokens[-1], self.ngram - 1
        candidates = state.pool.after(root)
        room = max(nodes // 2, nodes - deep * len(candidates))
        # The last row of column i lies at depth i + N - 2.
        columns = max(0, min(self.window, (room + 1) // deep, depth - deep + 2))
        trie = Trie(root)
        self._add_candidates(trie, candidates, nodes - max(0, columns * deep - 1), depth)
        state.last = self._add_window(trie, state.grid[:, :columns])
        state.tree = trie.tree()
        return state.tree

    def _add_candidates(self, trie: Trie, candidates: Iterable[tuple[int, ...]], room: int, depth: int) -> None:
        for candidate in candidates:
            node = 0
            for token in candidate[:depth]:
                if len(trie.tokens) > room:
                    return
                node = trie.add(node, token)

    def _add_window(self, trie: Trie, grid: np.ndarray) -> list[int]:
        """Nodes of the last row."""
        chain, last, probe = 0, [], not self.accept_window
        for i, column in enumerate(grid.T.tolist()):
            chain = node = trie.add(chain, column[0], probe) if i else 0
            for token in column[1:]:
                node = trie.add(node, token, probe)
            last.append(node)
        return last

    def _move(self, sequence: Sequence, root: int, row: np.ndarray) -> None:
        """Collect the columns that the new row `[columns]` completes, and move the window on."""
        state, columns = sequence.drafts, len(row)
        if not columns:
            return
        grid = state.grid
        grid[0, 0] = root
        if state.age >= self.ngram - 2:
            for ngram in np.vstack([grid[:, :columns], row]).T.tolist():
                state.pool.add(ngram)
        state.age = min(state.age + 1, self.ngram - 2)
        ends = np.isin(row, list(sequence.end_tokens))
        grid[:-1] = grid[1:]
        grid[-1, :columns] = np.where(ends, _picked(sequence.tokens, columns), row)

    def _collect_text(self, sequence: Sequence, start: int) -> None:
        """The n-grams of the text that end behind index `start`."""
        if not self.pool_from_prompt:
            return
        text = sequence.tokens
        for end in range(max(start + 1, self.ngram), len(text) + 1):
            sequence.drafts.pool.add(text[end - self.ngram : end])


def _picked(text: Seq[int], count: int) -> np.ndarray:
    """`[count]` tokens of the text at random places, which only its length decides."""
    places = np.random.default_rng(len(text)).integers(len(text), size=count).tolist()
    return np.array([text[place] for place in places], np.int64)
