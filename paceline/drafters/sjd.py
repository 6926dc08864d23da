"""Speculative Jacobi decoding: what a pass says behind the first refused token is the law of the next draft.

A window of W drafted tokens `x_i`, each with the law `q_i` it was drawn from, stands under the root. A step

1. fills the window with initial tokens, each a point mass;
2. scores it in one pass, which gives `p_i(. | text, x_1 .. x_{i-1})` for all i and the position behind the window;
3. tests from the left: accept `x_i` with probability `min(1, p_i(x_i) / q_i(x_i))`, at the first refusal emit a token
   of `norm(max(p_i - q_i, 0))` (the verifier `rejection`, or any other that judges drawn chains);
4. stores `q_j := p_j` of this pass for every later entry j, and draws `x_j` afresh from it.

Exact, because given all that was drawn before, `x_j` really has the law `q_j`: the law is fixed by earlier passes and
the draw is a new one, with its own key, at each step. (To keep an old token under a new law would not be exact.)
Laws are kept and tokens drawn from them when the next draft is made, so that every drawn token is judged.

Under a verifier that draws with the seed's noise the tokens are picked with that noise, and greedily they are the best
ones: then this is Jacobi decoding.

Paper: Teng et al., "Accelerating Auto-regressive Text-to-Image Generation with Training-free Speculative Jacobi
Decoding", 2024. (Of its initial tokens, `random` and the left neighbour are offered; the neighbour above needs an
image's width, which a text does not have. The paper's window, 16, counts the root as `block` does.)
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import takewhile
from operator import itemgetter

import numpy as np
import torch

from paceline.drafters.jacobi import Guess, Jacobi
from paceline.registry import Guarantee, method
from paceline.sequence import Sequence
from paceline.tree import Draws, TokenTree


@method(
    name="sjd",
    kind="drafter",
    guarantee=Guarantee.LOSSLESS,
    summary="Jacobi decoding for sampling: each pass's laws draw the next pass's draft.",
    paper="Accelerating Auto-regressive Text-to-Image Generation with Training-free Speculative Jacobi Decoding",
    year=2024,
)
@dataclass(eq=False)
class SJD(Jacobi):
    """Speculative Jacobi decoding; the knobs are those of `Jacobi`."""

    init: str = "random"
    drafts = frozenset({"shared", "distinct", "replacement", "chains", "fixed"})

    def peek(self, sequence: Sequence, tree: TokenTree, logits: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if sequence.pipeline.greedy or not _draws(sequence):
            return super().peek(sequence, tree, logits, scores)
        return sequence.pipeline.distribution(scores.double())

    def guesses(self, said: torch.Tensor) -> list[Guess]:
        if said.shape[-1] == 1:
            return super().guesses(said)
        # A policy may leave no token behind a wrong one; there is no law then, and a fresh guess must do.
        usable = said.exp().sum(-1).isfinite().tolist()
        return [row for row, _ in takewhile(itemgetter(1), zip(said, usable, strict=True))]

    def _chain(self, sequence: Sequence, guesses: Seq[Guess], count: int) -> TokenTree:
        laws = [guess for guess in guesses[:count] if isinstance(guess, torch.Tensor)]
        if not laws:
            return super()._chain(sequence, guesses, count)
        # The key names the step: where a position is drafted again, the draw is another one.
        key = ("sjd", sequence.generated)
        drawn = [sequence.chance.categorical(law.exp(), sequence.generated + i, key) for i, law in enumerate(laws)]
        tokens = self._fill(sequence.tokens, drawn, count)
        row = np.full(len(tokens) + 1, -1)
        row[1 : len(laws) + 1] = np.arange(len(laws))
        chain = TokenTree.chain(sequence.tokens[-1], tokens)
        return TokenTree(chain.tokens, chain.parents, Draws(torch.stack(laws), row))


def _draws(sequence: Sequence) -> bool:
    """Whether tokens are drawn independently of the target's, with their law."""
    judges = sequence.verifier.judges
    return "shared" not in judges and not {"distinct", "replacement", "chains"}.isdisjoint(judges)
