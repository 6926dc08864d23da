"""No draft: plain autoregressive decoding, one token a forward pass."""

from __future__ import annotations

from dataclasses import dataclass

from paceline.drafters.base import SequenceDrafter
from paceline.registry import Guarantee, method
from paceline.sequence import Sequence
from paceline.tree import TokenTree


@method(
    name="none",
    kind="drafter",
    guarantee=Guarantee.LOSSLESS,
    summary="Plain decoding: one token a forward pass.",
    paper="Autoregressive decoding",
    year=2014,
)
@dataclass(eq=False)
class NoDraft(SequenceDrafter):
    """Always the empty tree."""

    def draft(self, sequence: Sequence, nodes: int, depth: int) -> TokenTree:
        return TokenTree.empty(sequence.tokens[-1])
