"""Speculative sampling: accept a drafted token with probability min(1, p/q), else draw from the residual.

Draft `x_1..x_n` with `x_i ~ q_i`; the target gives `p_1..p_{n+1}`. In order, accept `x_i` with probability
`min(1, p_i(x_i) / q_i(x_i))`; at the first refusal emit `y ~ norm(max(p_i - q_i, 0))`; if none is refused emit
`y ~ p_{n+1}`. A deterministic draft is a point mass. The emitted text has exactly the target's law;
`E[accepted at i] = sum_x min(p_i, q_i)`.

Papers: Leviathan, Kalman, Matias, "Fast Inference from Transformers via Speculative Decoding", 2023; Chen et
al., "Accelerating Large Language Model Decoding with Speculative Sampling", 2023.
"""

from __future__ import annotations

from dataclasses import dataclass

from paceline.registry import Guarantee, method
from paceline.verifiers.siblings import SiblingVerifier


@method(
    name="rejection",
    kind="verifier",
    guarantee=Guarantee.LOSSLESS,
    summary="Standard speculative sampling of a chain: accept with min(1, p/q), else sample the residual.",
    paper="Fast Inference from Transformers via Speculative Decoding",
    year=2023,
    needs={"chain"},
)
@dataclass(frozen=True)
class Rejection(SiblingVerifier):
    """Rejection sampling along a chain: `sequential_rejection` with one sibling."""

    judges = ("distinct", "replacement", "fixed")
    shapes = frozenset({"chain"})
