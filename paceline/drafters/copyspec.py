"""CopySpec: when the last gamma tokens stood somewhere before, copy what followed them; else let another drafter speak.

A rolling index maps every gamma-gram of the text (the whole conversation: prompt and output) to the place where it
ended *first*. If the last gamma tokens were seen before, the `copy` tokens after their first occurrence are the draft:

    place = first[x_{t-gamma+1} ... x_t] < t,    draft = x_{place} ... x_{place+copy-1}, up to the end of the text

The first occurrence is the original that later turns repeat. Otherwise the fallback drafter proposes (the paper's
speculative decoding with a draft model), or nothing is drafted. Grams are kept whole, not as hashes, so that a
collision cannot propose garbage. After a copy the fallback's own cache lacks the copied tokens; it takes them in, in
one pass, when it is asked next.

Copies are long and come from one place; `suffix` weighs all places and drafts a tree. A gamma beyond the text's length
never matches, which is the fallback alone.

Paper: Dumitru, Yoon, Yadav, Surdeanu, "CopySpec: Accelerating LLMs with Speculative Copy-and-Paste Without Compromising
Quality", 2025 (gamma 3 on summaries and code; the authors tune it by model).
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Any

from paceline.drafters.base import Outcome, SequenceDrafter
from paceline.drafters.fallback import WithFallback
from paceline.errors import BadRequest
from paceline.registry import Guarantee, method
from paceline.sequence import Sequence
from paceline.tree import TokenTree


class First:
    """A growing text and the first place of each of its n-grams.

    Args:
        n: tokens of a gram.
    """

    def __init__(self, n: int) -> None:
        self.n, self.text = n, list[int]()
        self._first: dict[tuple[int, ...], int] = {}

    def extend(self, tokens: Seq[int]) -> None:
        """Append tokens; the grams that end in them become known."""
        for token in tokens:
            self.text.append(token)
            if len(self.text) >= self.n:
                self._first.setdefault(tuple(self.text[-self.n :]), len(self.text))

    def place(self) -> int | None:
        """The index behind the first occurrence of the last n tokens, if they occurred before."""
        place = self._first.get(tuple(self.text[-self.n :]))
        return place if place is not None and place < len(self.text) else None


@dataclass(eq=False)
class Copy(SequenceDrafter):
    """The copying half: `copy` tokens after the first occurrence of the last `gamma`."""

    gamma: int
    copy: int

    def begin(self, sequence: Sequence) -> None:
        sequence.drafts = First(self.gamma)
        sequence.drafts.extend(sequence.tokens)

    def draft(self, sequence: Sequence, nodes: int, depth: int) -> TokenTree:
        index: First = sequence.drafts
        place = index.place()
        copied = [] if place is None else index.text[place : place + min(self.copy, nodes, depth)]
        return TokenTree.chain(sequence.tokens[-1], copied)

    def commit(self, outcomes: Seq[Outcome]) -> None:
        for outcome in outcomes:
            outcome.sequence.drafts.extend(outcome.tokens)


@method(
    name="copyspec",
    kind="drafter",
    guarantee=Guarantee.LOSSLESS,
    summary="Copies from the first place where the last tokens stood; elsewhere a fallback drafts.",
    paper="CopySpec: Accelerating LLMs with Speculative Copy-and-Paste Without Compromising Quality",
    year=2025,
)
@dataclass(eq=False)
class CopySpec(WithFallback):
    """Copying with a fallback.

    Attributes:
        gamma: last tokens that must have occurred before.
        copy: most tokens of a copy.
        fallback: the drafter that proposes where nothing is copied, as a spec or an instance; by default none.
    """

    gamma: int = 3
    copy: int = 10
    fallback: Any = None
    shape: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("gamma", "copy"):
            if (value := getattr(self, name)) < 1:
                raise BadRequest(f"copyspec({name}={value}): an integer of at least 1 is needed")
        self.back(Copy(self.gamma, self.copy), self.fallback)
