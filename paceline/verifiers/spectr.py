"""K-SEQ (SpecTr): choose one of k independent draws, or the residual, close to the optimal transport.

A node has k independent draws `x_1 .. x_k` of one law q. With a division factor rho in [1, k]:

    beta = sum_x min(q(x), p(x) / rho),    a = 1 - (1 - beta)^k
    accept x_i with probability min(1, p(x_i) / (rho q(x_i))), for i = 1 .. k
    all refused: draw from norm(p - min(q, p / rho) a / beta)

The residual is a law exactly when `a <= rho beta`; the smallest such rho, where both are equal, is found by bisection.
The chance to accept is then a, at least `1 - (1 - 1/k)^k` of the best that any verifier can do. k = 1 is speculative
sampling.

Chains: keep the set of drafted chains that agree with the text so far, and choose at each level among their next
tokens. The residual's token, too, may be what one of them carries; the walk ends where none does. The chains are
whole and independent, so which of them agree says nothing of how they go on. Point masses beside the draws are tried
last, against the residual.

Paper: Sun et al., "SpecTr: Fast Speculative Decoding via Optimal Transport", 2023.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from paceline.chance import Chance
from paceline.registry import Guarantee, method
from paceline.tree import TokenTree
from paceline.verifiers.base import Verdict, Verifier
from paceline.verifiers.siblings import ROUNDING, Coins, Laws, Sibling, sequential_rejection

#: Halvings of [1, k]: rho to 1e-15.
HALVINGS = 50


@dataclass(frozen=True)
class Selection:
    """K-SEQ at one node.

    Attributes:
        rho: division factor.
        beta: chance that one draw is accepted.
        accepted: chance that one of k draws is.
        residual: `[V]` float64 law of the token to draw if none is.
    """

    rho: float
    beta: float
    accepted: float
    residual: torch.Tensor


def selection(target: torch.Tensor, draft: torch.Tensor, k: int, rho: float | None = None) -> Selection:
    """The terms of K-SEQ.

    Args:
        target, draft: `[V]` float64 laws p and q.
        k: number of draws.
        rho: division factor; by default the smallest one.

    Raises:
        ValueError: k below 1, or rho so small that the residual is no law.
    """
    if k < 1:
        raise ValueError(f"k-seq: k={k} is not allowed; at least one draw is needed")
    factor = division_factor(target, draft, k) if rho is None else rho
    common = draft.minimum(target / factor)
    beta = min(float(common.sum()), 1.0)
    accepted = 1 - (1 - beta) ** k
    if accepted > factor * beta + 1e-9:
        raise ValueError(f"k-seq: rho={factor:.6g} is too small for {k} draws; the residual would be negative")
    if beta < ROUNDING:
        return Selection(factor, beta, 0.0, target)
    left = (target - common * (accepted / beta)).clamp_min(0)
    mass = float(left.sum())
    return Selection(factor, beta, accepted, left / mass if mass >= ROUNDING else target)


def division_factor(target: torch.Tensor, draft: torch.Tensor, k: int) -> float:
    """The smallest rho in [1, k] with `1 - (1 - beta(rho))^k <= rho beta(rho)`, from above."""

    def excess(rho: float) -> float:
        beta = min(float(draft.minimum(target / rho).sum()), 1.0)
        return float(1 - (1 - beta) ** k - rho * beta)

    low, high = 1.0, float(k)
    if k == 1 or excess(low) <= 0:
        return low
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return high


@method(
    name="spectr",
    kind="verifier",
    guarantee=Guarantee.LOSSLESS,
    summary="K-SEQ: choose among k independently drawn chains, close to the optimal transport.",
    paper="SpecTr: Fast Speculative Decoding via Optimal Transport",
    year=2023,
)
@dataclass(frozen=True)
class SpecTr(Verifier):
    """Sequential selection among k chains.

    Raises:
        ValueError: draws at one node come from different laws.
    """

    judges = ("chains", "fixed")

    def verify(self, tree: TokenTree, logp: torch.Tensor, chance: Chance, position: int) -> Verdict:
        laws = Laws(tree, logp)
        alive, at = [0], position
        while True:
            siblings = laws.siblings(alive)
            token = self.next_token(laws.target(alive[0]), siblings, chance, at)
            agreeing = [sibling.node for sibling in siblings if sibling.token == token and sibling.node < len(tree)]
            if not agreeing:
                return Verdict(tree.path(alive[0]), token)
            alive, at = agreeing, at + 1

    def next_token(self, target: torch.Tensor, siblings: list[Sibling], chance: Chance, at: int) -> int:
        """The token at a position: an accepted draft, or a draw from what is left."""
        drawn = [sibling for sibling in siblings if sibling.law is not None]
        fixed = [sibling for sibling in siblings if sibling.law is None]
        flip, rest = Coins(chance, at), target
        if drawn:
            draft = common_law(drawn)
            terms = selection(target, draft, len(drawn))
            for i, sibling in enumerate(drawn):
                token = sibling.token
                if flip(float(target[token] / (terms.rho * draft[token])), i):
                    return token
            rest = terms.residual
        index, rest = sequential_rejection(rest, fixed, lambda p, i: flip(p, len(drawn) + i))
        return fixed[index].token if index is not None else chance.categorical(rest, at, "bonus")


def common_law(siblings: list[Sibling]) -> torch.Tensor:
    """The one law of all siblings. Raises `ValueError` if there are several."""
    first = siblings[0].law
    assert first is not None
    for sibling in siblings[1:]:
        if sibling.law is None or not torch.allclose(sibling.law, first, rtol=0, atol=1e-9):
            raise ValueError(f"k-seq: draft tokens {siblings[0].token} and {sibling.token} were drawn from two laws")
    return first
