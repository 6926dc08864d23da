"""Jacobi decoding: the target solves for several tokens at once and so drafts for itself.

The next `n` tokens are the solution of `y_i = choose(p(. | text, y_1 .. y_{i-1}))`, i = 1..n. One pass over the last
token and a guess `y_1 .. y_{n-1}` computes all right-hand sides, which are the next guess; the solution is reached when
nothing changes, after at most n passes. The guess is a chain under the root, so the verifier commits every leading
token that is right at once, and the window moves on behind it:

    guess     root y1 y2 y3 y4        y1 is right, y2 is not
    pass       y1 z2 z3 z4 z5         y1 and z2 are committed
    guess     z2  z3 z4 z5 fresh      the rest of what the pass said, and fresh guesses to fill the window

`choose` is what makes the solution the text that plain decoding writes: greedily the best token; under a verifier that
draws with the seed's noise, the token that this noise picks at that position, so that sampled text has a fixed point
too. Under other verifiers the best token, which they accept most often. Every node is judged with the policy's state
along its own guess. A window of one token is plain decoding.

A model that was not trained for it says little that is right behind a wrong token: expect gains where the text repeats
itself or the model was tuned to consistency.

Paper: Santilli et al., "Accelerating Transformer Inference for Translation via Parallel Decoding", 2023 (which commits
a whole block at its fixed point).
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import torch

from paceline.budgets import check_budgets
from paceline.drafters.base import Drafter, Outcome
from paceline.errors import BadRequest
from paceline.models.causal import CausalModel
from paceline.registry import Guarantee, method
from paceline.sequence import Sequence
from paceline.tree import TokenTree

#: Where fresh guesses come from.
INITS = ("text", "random", "repeat")
#: One guessed token, or the law `[V]` (log-probabilities, on the host) that it is to be drawn from.
Guess = int | torch.Tensor


class Iterated(Drafter):
    """Base of drafters whose next guesses are what the target said at the guesses of the last pass."""

    drafts = frozenset({"shared", "fixed"})

    def begin(self, sequence: Sequence) -> None:
        sequence.drafts = []

    def peek(self, sequence: Sequence, tree: TokenTree, logits: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """What the host must know of the guess that follows each node, `[N + 1]` or `[N + 1, ...]` on the device."""
        if sequence.pipeline.greedy or "shared" not in sequence.verifier.judges:
            return scores.argmax(-1)
        return sequence.chance.couple(scores, [sequence.generated + int(depth) for depth in tree.depth])

    def observe(self, outcomes: Seq[Outcome]) -> None:
        for outcome in outcomes:
            said = outcome.peeked.view(len(outcome.tree), -1)
            outcome.sequence.drafts = self.guesses(said[self.behind(outcome)])

    def behind(self, outcome: Outcome) -> list[int]:
        """The nodes under the last accepted one, always the first child: each says what may come one token later.

        Those whose answers were emitted unverified are left out.
        """
        return outcome.tree.chain_below(outcome.path[-1])[len(outcome.tokens) - len(outcome.path) :]

    def guesses(self, said: torch.Tensor) -> list[Guess]:
        """The guesses that some rows of `peek`, `[n, ...]` float64 and now on the host, stand for."""
        return [int(token) for token in said[:, 0].tolist()]


@method(
    name="jacobi",
    kind="drafter",
    guarantee=Guarantee.LOSSLESS,
    summary="The target guesses several tokens at once and corrects all of them in every pass.",
    paper="Accelerating Transformer Inference for Translation via Parallel Decoding",
    year=2023,
)
@dataclass(eq=False)
class Jacobi(Iterated):
    """Jacobi decoding with early commit.

    Attributes:
        block: tokens solved for at once, n; a pass scores n - 1 guesses. By default as many as ride along with it.
        init: fresh guesses: `"text"` (tokens of the text so far, at random places), `"random"` (any tokens) or
            `"repeat"` (the token to the left).
    """

    block: int | None = None
    init: str = "text"

    def __post_init__(self) -> None:
        name = type(self).__name__.lower()
        if self.block is not None and self.block < 1:
            raise BadRequest(f"{name}(block={self.block}): an integer of at least 1 is needed")
        if self.init not in INITS:
            raise BadRequest(f"{name}(init={self.init!r}): one of {', '.join(map(repr, INITS))} is needed")
        self._spare, self._vocabulary = 1, 1

    def attach(self, target: CausalModel) -> None:
        check_budgets(type(self).__name__.lower(), self, target, "block")
        self._spare, self._vocabulary = target.spare, target.vocab_size

    def propose(self, sequences: Seq[Sequence], budget: Seq[tuple[int, int]]) -> list[TokenTree]:
        return [
            self._chain(sequence, sequence.drafts, min(self._window, nodes, depth))
            for sequence, (nodes, depth) in zip(sequences, budget, strict=True)
        ]

    @property
    def _window(self) -> int:
        """Most guesses of a pass."""
        return self._spare if self.block is None else self.block - 1

    def _chain(self, sequence: Sequence, guesses: Seq[Guess], count: int) -> TokenTree:
        known = [guess for guess in guesses[:count] if isinstance(guess, int)]
        return TokenTree.chain(sequence.tokens[-1], self._fill(sequence.tokens, known, count))

    def _fill(self, text: list[int], known: list[int], count: int) -> list[int]:
        """`known` and fresh guesses behind it, `count` in all; a function of the text alone."""
        missing = count - len(known)
        if missing <= 0:
            return known
        if self.init == "repeat":
            return known + [known[-1] if known else text[-1]] * missing
        generator = np.random.default_rng(len(text))
        if self.init == "random":
            return known + generator.integers(self._vocabulary, size=missing).tolist()
        return known + [text[place] for place in generator.integers(len(text), size=missing).tolist()]
