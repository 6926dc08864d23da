"""CEED-VLA's iteration: Jacobi decoding of one block of tokens after the other.

A block of n tokens (a robot's next actions) begins as any guess y^0. A pass over all of it computes

    y^{k+1}_i = choose(p(. | text, y^k_1 .. y^k_{i-1})),  i = 1..n,

until nothing changes, after at most n passes. The next block begins only then, where `jacobi` moves its window on
behind every token that is right. Leading tokens that are right are committed, so a pass scores the rest of the block:

    guess     root y1 y2 y3 y4        y1 is right, y2 is not
    pass       y1 z2 z3 z4 z5         y1 and z2 are committed
    guess     z2  z3 z4               z5 is to be computed once more, and no token behind it
    pass       z3 w4 w5               ...

Lossless under any lossless verifier. The verifier `ceed` ends a block early and emits the iterate as it stands, which
is the decoding of the paper; `TokenTree.passes` tells it which pass of the block a draft is for.

The model is meant to be trained to say the last iterate behind any earlier one (consistency distillation), which is not
part of this. The released code that goes without has n = 36 and as many passes.

Paper: Song et al., "CEED-VLA: Consistency Vision-Language-Action Model with Early-Exit Decoding", 2025.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from typing import NamedTuple

from paceline.drafters.base import Outcome
from paceline.drafters.jacobi import Guess, Jacobi
from paceline.registry import Guarantee, method
from paceline.sequence import Sequence
from paceline.tree import TokenTree


class Iterate(NamedTuple):
    """Of the block at the end of a text, the tokens that are not committed, and the passes that it has had.

    There are none, and it had none, where a new block is to begin.
    """

    guesses: list[Guess]
    passes: int


@method(
    name="ceed",
    kind="drafter",
    guarantee=Guarantee.LOSSLESS,
    summary="Jacobi decoding of one block of tokens after the other.",
    paper="CEED-VLA: Consistency Vision-Language-Action Model with Early-Exit Decoding",
    year=2025,
)
@dataclass(eq=False)
class CEED(Jacobi):
    """Jacobi decoding by blocks; the knobs are those of `Jacobi`."""

    init: str = "random"

    def begin(self, sequence: Sequence) -> None:
        sequence.drafts = Iterate([], 0)

    def propose(self, sequences: Seq[Sequence], budget: Seq[tuple[int, int]]) -> list[TokenTree]:
        trees = []
        for sequence, limits in zip(sequences, budget, strict=True):
            guesses, passes = sequence.drafts
            # The last token of a block is said by the pass, with nothing to guess behind it.
            most = len(guesses) - 1 if guesses else self._window
            trees.append(replace(self._chain(sequence, guesses, min(most, *limits)), passes=passes + 1))
        return trees

    def observe(self, outcomes: Seq[Outcome]) -> None:
        super().observe(outcomes)
        for outcome in outcomes:
            guesses = outcome.sequence.drafts
            outcome.sequence.drafts = Iterate(guesses, outcome.tree.passes if guesses else 0)
