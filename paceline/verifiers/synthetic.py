"""A set acceptance rate: what would this engine do if drafts were this good?

Each drafted token on the way down is accepted with probability `rate`, whatever the target says; the further token is
the one that `coupled` would choose there. A chain of n tokens then yields `(1 - rate^(n + 1)) / (1 - rate)` tokens a
pass on average. The text is mostly the draft's own, also against the policy's masks: this is for measuring the
engine's overhead apart from the quality of drafts, never for text. rate = 0 is plain decoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from paceline.chance import Chance
from paceline.errors import BadRequest
from paceline.registry import Guarantee, method
from paceline.tree import TokenTree
from paceline.verifiers.base import Verdict
from paceline.verifiers.coupled import Coupled


@method(
    name="synthetic",
    kind="verifier",
    guarantee=Guarantee.LOSSY,
    summary="Accept each drafted token with a set probability, to measure the engine apart from the drafts.",
    paper="Synthetic acceptance (common practice)",
    year=2023,
    knob="rate",
)
@dataclass(frozen=True)
class Synthetic(Coupled):
    """Acceptance by a seeded coin; of several children the first is tried.

    Attributes:
        rate: chance that a drafted token is accepted, from 0 to 1.
    """

    rate: float = 0.8

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 1:
            raise BadRequest(f"synthetic(rate={self.rate}): a number from 0 to 1 is needed")

    def walk(self, tree: TokenTree, chosen: Sequence[int], chance: Chance, position: int) -> Verdict:
        path = [0]
        while tree.children[path[-1]] and chance.bernoulli(self.rate, position + len(path) - 1, "synthetic"):
            path.append(tree.children[path[-1]][0])
        return Verdict(path, int(chosen[path[-1]]))
