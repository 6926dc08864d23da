"""CopySpec: when the last gamma tokens stood somewhere before, copy what followed them; else let another drafter speak.

A rolling index maps every gamma-gram of the text (the whole conversation: prompt and output) to the place where it
ended *first*. If the last gamma tokens were seen before, the `copy` tokens after their first occurrence are the draft:

    place = first[x_{t-gamma+1} ... x_t] < t,    draft = x_{place} ... x_{place+copy-1}, up to the end of the text

The first occurrence is the original that later turns repeat. Otherwise the fallback drafter proposes (the paper's
speculative decoding with a draft model), or nothing is drafted. After a copy the fallback's own cache lacks the copied
tokens; it takes them in, in one pass, when it is asked next.

The index knows a gram by its rolling hash `(x_{t-gamma+1} + 1) b^(gamma-1) + ... + (x_t + 1)  mod M`, so that a token
takes O(1) of time and memory, whatever gamma is. What is found is compared token by token before it is copied: a
collision can cost a draft, never propose garbage.

Copies are long and come from one place; `suffix` weighs all places and drafts a tree. A gamma beyond the text's length
never matches, which is the fallback alone.

Paper: Dumitru, Yoon, Yadav, Surdeanu, "CopySpec: Accelerating LLMs with Speculative Copy-and-Paste Without Compromising
Quality", 2025 (gamma 3 on summaries and code; the authors tune it by model).
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Any

from paceline.budgets import check_budgets
from paceline.drafters.base import Outcome, SequenceDrafter
from paceline.drafters.fallback import WithFallback
from paceline.errors import BadRequest
from paceline.models.causal import CausalModel
from paceline.registry import Guarantee, method
from paceline.sequence import Sequence
from paceline.tree import TokenTree

#: Of the rolling hash: a prime beyond what grams of a text can fill, and a base that spreads small ids over it.
MODULUS, BASE = 2**61 - 1, 1_000_000_007
#: Largest gamma: a gram so long is a copy in itself.
LONGEST = 1000


class First:
    """A growing text and the first place of each of its n-grams.

    Args:
        n: tokens of a gram.
        modulus: number of different hashes.
    """

    def __init__(self, n: int, modulus: int = MODULUS) -> None:
        self.n, self.text, self.modulus = n, list[int](), modulus
        self._hash, self._oldest = 0, pow(BASE, n, modulus)
        self._first: dict[int, int] = {}

    def extend(self, tokens: Seq[int]) -> None:
        """Append tokens; the grams that end in them become known."""
        text = self.text
        for token in tokens:
            rolled = self._hash * BASE + token + 1
            if len(text) >= self.n:
                rolled -= (text[-self.n] + 1) * self._oldest
            self._hash = rolled % self.modulus
            text.append(token)
            if len(text) >= self.n:
                self._first.setdefault(self._hash, len(text))

    def place(self) -> int | None:
        """The index behind the first occurrence of the last n tokens, if they occurred before."""
        text, place = self.text, self._first.get(self._hash)
        if place is None or place == len(text) or len(text) < self.n:
            return None
        return place if text[place - self.n : place] == text[-self.n :] else None


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
        gamma: last tokens that must have occurred before, 1 to 1000; beyond the text's length it never matches.
        copy: most tokens of a copy.
        fallback: the drafter that proposes where nothing is copied, as a spec or an instance; by default none.
    """

    gamma: int = 3
    copy: int = 10
    fallback: Any = None
    shape: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not 1 <= self.gamma <= LONGEST:
            raise BadRequest(f"copyspec(gamma={self.gamma}): an integer from 1 to {LONGEST} is needed")
        if self.copy < 1:
            raise BadRequest(f"copyspec(copy={self.copy}): an integer of at least 1 is needed")
        self.back(Copy(self.gamma, self.copy), self.fallback)

    def attach(self, target: CausalModel) -> None:
        check_budgets("copyspec", self, target, "copy")
        super().attach(target)
