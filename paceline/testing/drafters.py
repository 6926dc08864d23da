"""Drafters for tests: fixed, hostile, all-knowing, and drawn from a table."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import torch

from paceline.chance import Chance
from paceline.drafters.base import SequenceDrafter
from paceline.plan import LAWS, agreed
from paceline.sequence import Sequence
from paceline.testing.tabular import Table
from paceline.tree import Draws, TokenTree


@dataclass(eq=False)
class Fixed(SequenceDrafter):
    """The same tree at every step: `tokens[i]` under `parents[i]` (0: the root, i: the i-th token)."""

    tokens: tuple[int, ...]
    parents: tuple[int, ...] | None = None
    shape: str = "tree"

    def draft(self, sequence: Sequence, nodes: int, depth: int) -> TokenTree:
        if self.parents is None:
            return TokenTree.chain(sequence.tokens[-1], self.tokens)
        return TokenTree(np.array([sequence.tokens[-1], *self.tokens]), np.array([-1, *self.parents]))


@dataclass(eq=False)
class Hostile(SequenceDrafter):
    """An unrelated random tree at every step, a function of the text so far; ignores its budget.

    Args:
        vocabulary: V.
        nodes: most nodes of a tree.
        chain: draft chains only.
    """

    vocabulary: int
    nodes: int = 5
    chain: bool = False
    shape: str = "tree"

    def draft(self, sequence: Sequence, nodes: int, depth: int) -> TokenTree:
        generator = np.random.default_rng(sequence.tokens)
        count = int(generator.integers(self.nodes + 1))
        tokens = generator.integers(self.vocabulary, size=count)
        if self.chain:
            return TokenTree.chain(sequence.tokens[-1], tokens.tolist())
        parents = [int(generator.integers(i + 1)) for i in range(count)]
        return TokenTree(np.array([sequence.tokens[-1], *tokens]), np.array([-1, *parents]))


@dataclass(eq=False)
class Tabular(SequenceDrafter):
    """A chain drawn from a table, with the noise that the verifier shares or with its own and the law reported.

    Args:
        table: the draft law after every prefix.
        length: tokens a chain.
        law: how tokens are drawn (see `paceline.plan.LAWS`); by default as drafter and verifier agree.
    """

    table: Table
    length: int = 2
    law: str | None = None
    drafts = frozenset({"shared", "distinct", "replacement", "chains", "top"})

    def draft(self, sequence: Sequence, nodes: int, depth: int) -> TokenTree:
        kind = self.law or agreed(self, sequence.verifier)
        drafted: list[int] = []
        laws: list[torch.Tensor] = []
        for _ in range(min(self.length, nodes, depth)):
            law = self.table((*sequence.tokens, *drafted))
            position = sequence.generated + len(drafted)
            if kind == "shared":
                drafted.append(int(sequence.chance.couple(law[None], [position])))
            else:
                # The key names the step: where a position is drafted again, the draw is another one.
                drafted.append(sequence.chance.categorical(law.exp(), position, ("draft", sequence.generated)))
            laws.append(law)
        reported = torch.stack(laws) if laws and kind != "shared" else None
        return TokenTree.chain(sequence.tokens[-1], drafted, reported)


@dataclass(eq=False)
class TabularTree(SequenceDrafter):
    """A tree drawn from a table under the law that drafter and verifier agree on.

    Args:
        table: the draft law after every prefix.
        branching: children of a node, by depth. Chains are `branching[0]` many, `len(branching)` long.
        law: how tokens are drawn (see `paceline.plan.LAWS`); by default as drafter and verifier agree.
    """

    table: Table
    branching: tuple[int, ...] = (2, 2)
    law: str | None = None
    shape: str = "tree"
    drafts = frozenset(LAWS)

    def draft(self, sequence: Sequence, nodes: int, depth: int) -> TokenTree:
        kind = self.law or agreed(self, sequence.verifier)
        widths = self.branching[:depth]
        tokens, parents, laws = [sequence.tokens[-1]], [-1], list[torch.Tensor | None]([None])
        level = [(0, tuple(sequence.tokens))]
        for at, width in enumerate(widths):
            deeper: list[tuple[int, tuple[int, ...]]] = []
            for node, prefix in level:
                draw = SiblingDraw(sequence.chance, sequence.generated + at, (sequence.generated, node))
                count = 1 if kind == "chains" and at else width
                for token, law in draw.children(kind, self.table(prefix), count):
                    deeper.append((len(tokens), (*prefix, token)))
                    tokens.append(token)
                    parents.append(node)
                    laws.append(law)
            level = deeper
        return TokenTree(np.array(tokens), np.array(parents), _draws(laws))


@dataclass(frozen=True)
class SiblingDraw:
    """Draws the children of one node."""

    chance: Chance
    position: int
    key: tuple[int, int]

    def children(self, kind: str, logq: torch.Tensor, count: int) -> list[tuple[int, torch.Tensor | None]]:
        """Tokens and the laws they were drawn from; fewer than `count` where the law runs out."""
        if kind not in ("replacement", "chains"):
            count = min(count, len(logq) if kind == "exhaustive" else int(logq.isfinite().sum()))
        if kind == "fixed":
            return [(int(token), None) for token in logq.topk(count).indices]
        if kind == "top":
            best = logq.topk(count - 1).indices
            outside = logq.index_fill(0, best, -torch.inf).log_softmax(-1)
            return [(int(token), None) for token in best] + [(self.token(outside, 0), outside)]
        found: list[tuple[int, torch.Tensor | None]] = []
        for i in range(count):
            if kind == "shared":
                found.append((int(self.chance.couple(logq[None], [self.position])), None))
            else:
                found.append((self.token(logq, i), logq))
            if kind in ("shared", "distinct", "exhaustive"):
                logq = logq.index_fill(0, torch.tensor(found[-1][0]), -torch.inf)
                if kind == "exhaustive" and not bool(logq.isfinite().any()):
                    logq = torch.zeros_like(logq).index_fill(0, torch.tensor([token for token, _ in found]), -torch.inf)
                logq = logq.log_softmax(-1) if i + 1 < count else logq
        return found

    def token(self, logq: torch.Tensor, index: int) -> int:
        return self.chance.categorical(logq.exp(), self.position, ("draft", *self.key, index))


def _draws(laws: list[torch.Tensor | None]) -> Draws | None:
    drawn = [law for law in laws if law is not None]
    if not drawn:
        return None
    row = np.cumsum([law is not None for law in laws]) - 1
    return Draws(torch.stack(drawn), np.where([law is not None for law in laws], row, -1))


@dataclass(eq=False)
class Oracle(SequenceDrafter):
    """The true continuation between two wrong siblings at every depth, and its twin under the first of them.

    Args:
        texts: `{prompt: continuation}`, from an earlier plain run.
        vocabulary: V.
        depth: tokens of the continuation a tree.
        wrong: false drafts the continuation alone, a chain.
    """

    texts: Mapping[tuple[int, ...], Seq[int]]
    vocabulary: int
    depth: int = 3
    wrong: bool = True
    shape: str = "tree"

    def draft(self, sequence: Sequence, nodes: int, depth: int) -> TokenTree:
        prompt = tuple(sequence.tokens[: sequence.prompt_length])
        ahead = list(self.texts[prompt][sequence.generated :][: min(self.depth, depth)])
        root = sequence.tokens[-1]
        if not self.wrong:
            return TokenTree.chain(root, ahead[:nodes])
        tokens, parents, at = [root], [-1], 0
        for step, token in enumerate(ahead):
            if len(tokens) + 4 > nodes + 1:
                break
            false = [(token + 1 + step) % self.vocabulary, (token + 2 + step) % self.vocabulary]
            first = len(tokens)
            tokens += [false[0], token, false[1], token]
            parents += [at, at, at, first]
            at = first + 1
        return TokenTree(np.array(tokens), np.array(parents))
