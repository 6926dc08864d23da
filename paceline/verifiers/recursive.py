"""Recursive rejection sampling: siblings drawn without replacement, tried in draw order.

The children of a node are `x_1 ~ q_1 = q`, `x_2 ~ q_2`, ..., where `q_{i+1}` is `q_i` without `x_i`, renormalised.
With `p_1 = p`, accept `x_i` with probability `min(1, p_i(x_i) / q_i(x_i))`, else `p_{i+1} = norm(max(p_i - q_i, 0))`;
where all are refused, draw from what is left of p. No two siblings are equal, so each try is worth more than another
draw of q would be. One child a node is speculative sampling.

Paper: Jeon et al., "Recursive Speculative Decoding: Accelerating LLM Inference via Sampling Without Replacement", 2024.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from paceline.registry import Guarantee, method
from paceline.verifiers.siblings import Sibling, SiblingVerifier


@method(
    name="recursive",
    kind="verifier",
    guarantee=Guarantee.LOSSLESS,
    summary="Try siblings drawn without replacement in draw order, each against what the last one left.",
    paper="Recursive Speculative Decoding: Accelerating LLM Inference via Sampling Without Replacement",
    year=2024,
)
@dataclass(frozen=True)
class Recursive(SiblingVerifier):
    """Recursive rejection sampling on trees.

    Raises:
        ValueError: a child's law still holds an earlier drawn child of the same parent.
    """

    judges: ClassVar[tuple[str, ...]] = ("distinct", "fixed")

    def candidates(self, siblings: list[Sibling]) -> list[Sibling]:
        drawn = [sibling for sibling in siblings if sibling.law is not None]
        for i, later in enumerate(drawn):
            before = [earlier.token for earlier in drawn[:i] if earlier.parent == later.parent]
            if later.law is not None and before and float(later.law[before].sum()) > 0:
                raise ValueError(f"draft token {later.token} was drawn from a law that still holds one of {before}")
        return siblings
