"""Sequoia's verifier: siblings without replacement, which need not run out.

Children are drawn without replacement and tried in draw order, as in `recursive`. The paper goes on where the draft's
law has no mass left: further siblings are drawn uniformly from the tokens not yet tried (recalled; the published code
stops there). Such a child reports that uniform law, and sequential rejection is exact for it as for any other. So the
walk is that of `recursive`; what this one adds is that it asks for such drafts, the law "exhaustive", where a drafter
can make them, as the tree `sequoia(uniform=true)` does. With any other it is `recursive`.

The acceptance vector that Sequoia's tree is planned from, `a_b` = chance that the b-th sibling is the accepted one, is
`paceline.evaluation.acceptance.acceptance_vector`.

Paper: Chen et al., "Sequoia: Scalable, Robust, and Hardware-aware Speculative Decoding", 2024.
"""

from __future__ import annotations

from dataclasses import dataclass

from paceline.registry import Guarantee, method
from paceline.verifiers.recursive import Recursive


@method(
    name="sequoia",
    kind="verifier",
    guarantee=Guarantee.LOSSLESS,
    summary="As recursive, and takes siblings drawn uniformly where the draft's law has no token left.",
    paper="Sequoia: Scalable, Robust, and Hardware-aware Speculative Decoding",
    year=2024,
)
@dataclass(frozen=True)
class Sequoia(Recursive):
    """Sampling and verification without replacement."""

    judges = ("exhaustive", "distinct", "fixed")
