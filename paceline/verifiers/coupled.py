"""Coupled verification: the token at a position is the argmax of log-probability plus keyed Gumbel noise.

At output position t the target's token is `argmax(logp_t + g_t)`, `g_t` standard Gumbel noise keyed by
(seed, t). A drafted token is accepted when it *is* that token. Each position's noise is independent, so the
emitted text has exactly the policy's law; and because it does not depend on what was drafted, the same seed
gives the same text under every drafter, tree and batch. A drafter that samples uses the same noise, which
makes agreement likely: with draft law q and target law p, `P(agree) = sum_v 1 / sum_w max(p_w/p_v, q_w/q_v)`.

Paper: Daliri, Musco, Suresh, "Coupling without Communication and Drafter-Invariant Speculative Decoding", 2024.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from paceline.chance import Chance
from paceline.registry import Guarantee, method
from paceline.verifiers.base import MatchVerifier


@method(
    name="coupled",
    kind="verifier",
    guarantee=Guarantee.LOSSLESS,
    summary="Accept a draft token when it is the token the seed chooses; same text under every drafter.",
    paper="Coupling without Communication and Drafter-Invariant Speculative Decoding",
    year=2024,
)
@dataclass(frozen=True)
class Coupled(MatchVerifier):
    """Gumbel-coupled choice of one token a node."""

    def choose(self, scores: torch.Tensor, chance: Chance, positions: Sequence[int]) -> torch.Tensor:
        return chance.couple(scores, positions)
