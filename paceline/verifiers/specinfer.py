"""SpecInfer: siblings drawn with replacement, tried one after the other (multi-step speculative sampling).

The children of a node are independent draws `x_1 .. x_k` of one law q, twins included. With r = p at first, accept
`x_i` with probability `min(1, r(x_i) / q(x_i))`, else `r = norm(max(r - q, 0))`; where all are refused, draw from r.
The chance that one of them is accepted follows

    accepted += left * sum_x min(r, q);    left *= 1 - sum_x min(r, q)

Where several draft models draw the siblings, each child is tried against the law of its own model; the order of the
models must not depend on what they drew.

Paper: Miao et al., "SpecInfer: Accelerating Large Language Model Serving with Tree-based Speculative Inference and
Verification", 2024.
"""

from __future__ import annotations

from dataclasses import dataclass

from paceline.registry import Guarantee, method
from paceline.verifiers.siblings import SiblingVerifier


@method(
    name="specinfer",
    kind="verifier",
    guarantee=Guarantee.LOSSLESS,
    summary="Try siblings drawn with replacement one after the other, each against what the last one left.",
    paper="SpecInfer: Accelerating Large Language Model Serving with Tree-based Speculative Inference and Verification",
    year=2024,
)
@dataclass(frozen=True)
class SpecInfer(SiblingVerifier):
    """Multi-step speculative sampling on trees."""

    judges = ("replacement", "fixed")
