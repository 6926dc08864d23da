"""Greedy multi-draft: the draft's best k - 1 tokens and one draw outside them, accepted at the optimal rate.

Let T be the k - 1 most likely tokens of q and `q'` be q outside T, renormalised. The children are the tokens of T,
which are not drawn, and one `y ~ q'`. Accept y with probability `min(1, p(y) / q'(y))`; else draw from `norm(max(p -
q', 0))`, and where that token is in T, go on below it. The rate

    p(T) + sum_{x not in T} min(p(x), q'(x))

is the most that any lossless verifier can reach with these drafts. The drawn child is tried first: T is known before
the draw, so it may stand anywhere, and behind it costs nothing. Where q has no mass outside T nothing is drawn.

How far every verifier is from the optimum of its own drafts is computed in `paceline.evaluation.acceptance`.

Paper: Hu et al., "Towards Optimal Multi-draft Speculative Decoding", 2025.
"""

from __future__ import annotations

from dataclasses import dataclass

from paceline.registry import Guarantee, method
from paceline.verifiers.siblings import Sibling, SiblingVerifier


@method(
    name="optimal",
    kind="verifier",
    guarantee=Guarantee.LOSSLESS,
    summary="The draft's best tokens as they are and one draw outside them, at the optimal acceptance rate.",
    paper="Towards Optimal Multi-draft Speculative Decoding",
    year=2025,
)
@dataclass(frozen=True)
class Optimal(SiblingVerifier):
    """The optimal verifier of greedy multi-drafts."""

    judges = ("top", "fixed")

    def candidates(self, siblings: list[Sibling]) -> list[Sibling]:
        return sorted(siblings, key=lambda sibling: sibling.law is None)
