"""Verifiers: walk a scored tree, return the accepted path and one further token.

Two altitudes. `MatchVerifier` needs only the token that the policy chooses at every node and walks the tree
while a child carries it. A general `Verifier` reads whole distributions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from paceline.chance import Chance
from paceline.tree import TokenTree


@dataclass(frozen=True, slots=True)
class Verdict:
    """Accepted node indices, root first, and the bonus token that follows the last of them."""

    path: list[int]
    bonus: int


class Verifier(ABC):
    """Base of all verifiers. Subclasses are frozen dataclasses: their fields are the knobs."""

    #: "coupled": drafters draw with the shared noise; "independent": they draw with their own and report the law.
    drawing: ClassVar[Literal["coupled", "independent"]] = "independent"
    #: Shapes of tree it can judge.
    shapes: ClassVar[frozenset[str]] = frozenset({"chain", "tree"})

    @abstractmethod
    def verify(self, tree: TokenTree, logp: torch.Tensor, chance: Chance, position: int) -> Verdict:
        """Judge one tree.

        Args:
            tree: N drafted tokens under a root, with the laws of sampled nodes.
            logp: `[N + 1, V]` float CPU tensor, the policy's normalised log-distribution at every node.
            chance: the sequence's randomness.
            position: output position of the root's successors (the token at depth d is at `position + d - 1`).
        """


class MatchVerifier(Verifier):
    """A verifier that accepts a child exactly when it carries the token chosen at its parent."""

    @abstractmethod
    def choose(self, scores: torch.Tensor, chances: Sequence[Chance], positions: Sequence[int]) -> torch.Tensor:
        """Tokens `[n]` chosen at n nodes of any number of sequences, on the device of `scores` (no sync).

        Args:
            scores: `[n, V]` unnormalised policy scores.
            chances: the randomness of each node's sequence.
            positions: output position of each node's successor.
        """

    def walk(self, tree: TokenTree, chosen: Sequence[int]) -> Verdict:
        """Follow the chosen tokens from the root while the tree has them."""
        node, path = 0, [0]
        while (child := next((c for c in tree.children[node] if tree.tokens[c] == chosen[node]), None)) is not None:
            node = child
            path.append(node)
        return Verdict(path, int(chosen[node]))

    def verify(self, tree: TokenTree, logp: torch.Tensor, chance: Chance, position: int) -> Verdict:
        positions = [position + int(d) for d in tree.depth]
        return self.walk(tree, self.choose(logp, [chance] * len(tree), positions).tolist())
