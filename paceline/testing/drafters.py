"""Drafters for tests: fixed, hostile, all-knowing, and drawn from a table."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import torch

from paceline.drafters.base import SequenceDrafter
from paceline.plan import agreed
from paceline.sequence import Sequence
from paceline.testing.tabular import Table
from paceline.tree import TokenTree


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
    drafts = frozenset({"shared", "distinct", "replacement", "chains"})

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
                drafted.append(sequence.chance.categorical(law.exp(), position, "draft"))
            laws.append(law)
        reported = torch.stack(laws) if laws and kind != "shared" else None
        return TokenTree.chain(sequence.tokens[-1], drafted, reported)


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
