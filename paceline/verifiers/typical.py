"""Typical acceptance: keep every drafted token whose probability is not unusually low.

With p the target's law at a node and H its entropy in nats, a child x is acceptable if

    p(x) > min(epsilon, delta exp(-H))

that is, above a fixed floor where the target is sure, above a lower one where it is not. Of all paths of acceptable
children the longest is kept, among equally long ones the likeliest (sum of log p). The further token is drawn at its
end from the tokens above the same floor, so that every emitted token was above it; where none is, from p as it is.

The text does not follow p; no draft law is needed. With epsilon = 1 and delta at least the vocabulary's size the
floor is 1, nothing is accepted, and the text is that of plain decoding. Under a greedy policy the law is a point mass
and only its token is accepted.

Paper: Cai et al., "Medusa: Simple LLM Inference Acceleration Framework with Multiple Decoding Heads", 2024.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from paceline.chance import Chance
from paceline.errors import BadRequest
from paceline.registry import Guarantee, method
from paceline.tree import TokenTree
from paceline.verifiers.base import Verdict, Verifier


@method(
    name="typical",
    kind="verifier",
    guarantee=Guarantee.LOSSY,
    summary="Accept every drafted token whose probability is not unusually low where the target is that sure.",
    paper="Medusa: Simple LLM Inference Acceleration Framework with Multiple Decoding Heads",
    year=2024,
    knob="epsilon",
)
@dataclass(frozen=True)
class TypicalAcceptance(Verifier):
    """Acceptance above a floor that falls with the entropy.

    Attributes:
        epsilon: highest floor, above 0 and at most 1.
        delta: factor of `exp(-H)`, above 0.
    """

    epsilon: float = 0.09
    delta: float = 0.3

    judges = ("fixed", "top", "distinct", "replacement", "chains")

    def __post_init__(self) -> None:
        if not 0 < self.epsilon <= 1:
            raise BadRequest(f"typical(epsilon={self.epsilon}): a number above 0 and at most 1 is needed")
        if not self.delta > 0:
            raise BadRequest(f"typical(delta={self.delta}): a number above 0 is needed")

    def floor(self, p: torch.Tensor) -> torch.Tensor:
        """`[n]` least probability of an acceptable token, for `[n, V]` laws."""
        return (self.delta * torch.special.entr(p).sum(-1).neg().exp()).clamp(max=self.epsilon)

    def verify(self, tree: TokenTree, logp: torch.Tensor, chance: Chance, position: int) -> Verdict:
        p = logp.double().exp()
        floor = self.floor(p)
        parents = torch.from_numpy(tree.parents[1:])
        chances = p[parents, torch.from_numpy(tree.tokens[1:])]
        last = best_path(tree, (chances > floor[parents]).numpy(), chances.log().numpy())
        path = tree.path(last)
        law = torch.where(p[last] > floor[last], p[last], 0)
        bonus = law if float(law.sum()) > 0 else p[last]
        return Verdict(path, chance.categorical(bonus, position + len(path) - 1, "bonus"))


def best_path(tree: TokenTree, acceptable: np.ndarray, scores: np.ndarray) -> int:
    """The last node of the longest path of acceptable nodes, the best-scored among equally long ones.

    Args:
        tree: N drafted tokens under a root.
        acceptable, scores: `[N]` bool and float, of the drafted nodes.
    """
    reached, total = {0: 0}, {0: 0.0}
    for parent, children in enumerate(tree.children):
        for node in children if parent in reached else ():
            if acceptable[node - 1]:
                reached[node], total[node] = reached[parent] + 1, total[parent] + float(scores[node - 1])
    return max(reached, key=lambda node: (reached[node], total[node], -node))
