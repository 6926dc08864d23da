"""BiLD's rollback: keep the small model's greedy tokens until the large one finds one too unlikely.

Greedy decoding. The draft is a chain `y_1 .. y_n` of a small model; one pass of the target gives its law p
(temperature 1) before each. With the distance `d_m = -log p(y_m)`:

    keep all tokens before the first m with d_m > rollback and y_m != argmax p, and put argmax p in its place;
    where there is none, keep all and add the argmax after them.

The published code does not look further once a distant token happens to be the argmax; here the search goes on, so that
rollback = 0 is exactly the target's greedy text. When the small model gives up its turn (the fallback threshold) is the
drafter's affair: `draft(confidence=..., length=...)`. Every emitted token has been checked, also at a text's end, where
the published code stops unchecked.

Paper: Kim et al., "Speculative Decoding with Big Little Decoder", 2023.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from paceline.errors import BadRequest
from paceline.registry import Guarantee, method
from paceline.tree import TokenTree
from paceline.verifiers.base import GreedyVerifier, Verdict, longest_prefix


@method(
    name="bild",
    kind="verifier",
    guarantee=Guarantee.LOSSY,
    summary="Greedy only: keep a small model's tokens until one is too unlikely under the target.",
    paper="Speculative Decoding with Big Little Decoder",
    year=2023,
    needs={"chain"},
    knob="rollback",
)
@dataclass(frozen=True)
class BiLD(GreedyVerifier):
    """Rollback at the first distant token.

    Attributes:
        rollback: largest distance, in nats, of a token that is kept; 0 is lossless, useful values are 2 to 5.
    """

    rollback: float = 5.0

    shapes = frozenset({"chain"})

    def __post_init__(self) -> None:
        if not self.rollback >= 0:
            raise BadRequest(f"bild(rollback={self.rollback}): a number of at least 0 (nats) is needed")

    def verify_greedy(self, tree: TokenTree, logp: torch.Tensor) -> Verdict:
        drafted = torch.from_numpy(tree.tokens[1:])
        best = logp.argmax(-1)
        distance = -logp[:-1].gather(-1, drafted[:, None])[:, 0]
        distant = (distance > self.rollback) | distance.isinf()  # what the policy rules out is never kept
        return longest_prefix(~distant | (drafted == best[:-1]), best)
