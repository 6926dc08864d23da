"""SpecInfer's merge-based trees: two drafters guess side by side, and the target scores both guesses.

The first drafter has half of the nodes, the second what is left. Tokens that were not drawn, or that were picked with
the shared noise, become one trie. Drawn tokens keep one entry a draw, even where both drew the same: a verifier tries
each against the law of the drafter that drew it. The order of the two is fixed, and their draws are independent.

Paper: Miao et al., "SpecInfer: Accelerating Large Language Model Serving with Tree-based Speculative Inference and
Verification", 2024.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from paceline.chance import OtherChance
from paceline.drafters.base import Drafter
from paceline.drafters.draft import DraftModel
from paceline.drafters.ensemble import Budget, Ensemble, built
from paceline.drafters.rasd import fuse
from paceline.errors import BadRequest
from paceline.registry import Guarantee, method
from paceline.sequence import Sequence
from paceline.tree import Draws, TokenTree

#: Laws under which siblings of two drafters may stand in one list.
SIDE_BY_SIDE = frozenset({"shared", "replacement", "fixed"})


@method(
    name="merged",
    kind="drafter",
    guarantee=Guarantee.LOSSLESS,
    summary="Two drafters guess side by side in one tree.",
    paper="SpecInfer: Accelerating Large Language Model Serving with Tree-based Speculative Inference and Verification",
    year=2024,
)
@dataclass(eq=False)
class Merged(Ensemble):
    """Two drafters as one tree.

    Attributes:
        first, second: draft models, or drafters that copy, in the order in which their tokens are tried.
    """

    first: Any = "draft"
    second: Any = "ngram"
    shape: str = field(init=False, repr=False, default="tree")
    drafts: frozenset[str] = field(init=False, repr=False, default=SIDE_BY_SIDE)

    def __post_init__(self) -> None:
        self.members = (self._member("first", self.first), self._member("second", self.second))
        if self.members[0] is self.members[1]:
            raise BadRequest("merged: first and second are one drafter; give each its own")

    def propose(self, sequences: Seq[Sequence], budget: Seq[Budget]) -> list[TokenTree]:
        first = self.ask(0, sequences, [(nodes - nodes // 2, depth) for nodes, depth in budget])
        left = [(nodes - tree.drafted, depth) for tree, (nodes, depth) in zip(first, budget, strict=True)]
        chances = [sequence.chance for sequence in sequences]
        for sequence, chance in zip(sequences, chances, strict=True):
            sequence.chance = OtherChance(chance, "second")
        try:
            second = self.ask(1, sequences, left)
        finally:
            for sequence, chance in zip(sequences, chances, strict=True):
                sequence.chance = chance
        return [side_by_side(a, b) for a, b in zip(first, second, strict=True)]

    def _member(self, name: str, spec: Any) -> Drafter:
        drafter = built(spec)
        if drafter.drafts != {"fixed"} and not isinstance(drafter, DraftModel):
            raise BadRequest(f"merged({name}={spec}): a draft model is needed, or a drafter that copies, such as ngram")
        if isinstance(drafter, DraftModel):
            drafter.drafts = drafter.drafts & SIDE_BY_SIDE
            self.drafts = self.drafts & drafter.drafts
        return drafter


def side_by_side(first: TokenTree, second: TokenTree) -> TokenTree:
    """Both trees under one root; tokens of the second that were not drawn join equal ones of the first."""
    if second.draws is None:
        return fuse(first, second, range(1, len(second)), second.drafted)
    parents = np.where(second.parents[1:] > 0, second.parents[1:] + first.drafted, 0)
    odds = None if first.odds is None or second.odds is None else np.concatenate([first.odds, second.odds[1:]])
    probe = None if first.probe is None else np.pad(first.probe, (0, second.drafted))
    return TokenTree(
        np.concatenate([first.tokens, second.tokens[1:]]),
        np.concatenate([first.parents, parents]),
        _joined(first.draws, second.draws, len(first)),
        odds,
        probe=probe,
    )


def _joined(first: Draws | None, second: Draws, nodes: int) -> Draws:
    """The laws of both; `nodes`: of the first tree, its root included."""
    row = second.row[1:]
    if first is None:
        return Draws(second.logq, np.concatenate([np.full(nodes, -1), row]))
    shifted = np.where(row >= 0, row + len(first.logq), -1)
    return Draws(torch.cat([first.logq, second.logq]), np.concatenate([first.row, shifted]))
