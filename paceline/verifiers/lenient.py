"""Lenient speculative sampling: accept more than the target's law allows, by a stated factor.

As `rejection`, with q made smaller by a lenience l in (0, 1]: accept `x ~ q` with probability `min(1, p(x) / (l
q(x)))`, else draw from `norm(max(p - l q, 0))`. No token becomes more than 1/l times as likely as under p, at any
position, so the total variation distance to p is at most 1 - l; l = 1 is lossless. Under a greedy policy a drafted
token is accepted if `p(x) > l max p`, with p at temperature 1. (The paper gives the acceptance rules; the residual
is ours, chosen so that the bound 1/l holds.)

Paper: Leviathan, Kalman, Matias, "Fast Inference from Transformers via Speculative Decoding", 2023, appendix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from paceline.errors import BadRequest
from paceline.registry import Guarantee, method
from paceline.tree import TokenTree
from paceline.verifiers.base import Verdict, longest_prefix
from paceline.verifiers.siblings import Sibling, SiblingVerifier, sequential_rejection


@method(
    name="lenient",
    kind="verifier",
    guarantee=Guarantee.LOSSY,
    summary="Speculative sampling that lets a token become up to 1/lenience times as likely.",
    paper="Fast Inference from Transformers via Speculative Decoding",
    year=2023,
    needs={"chain"},
    knob="lenience",
)
@dataclass(frozen=True)
class Lenient(SiblingVerifier):
    """Rejection sampling of a chain against a smaller draft law.

    Attributes:
        lenience: factor on q, above 0 and at most 1; 1 is lossless.
    """

    lenience: float = 0.5

    judges = ("distinct", "replacement", "fixed")
    shapes = frozenset({"chain"})
    walks_greedily = False

    def __post_init__(self) -> None:
        if not 0 < self.lenience <= 1:
            raise BadRequest(f"lenient(lenience={self.lenience}): a number above 0 and at most 1 is needed")

    def choose(
        self, target: torch.Tensor, siblings: Sequence[Sibling], flip: Callable[[float, int], bool]
    ) -> tuple[int | None, torch.Tensor]:
        return sequential_rejection(target, [self.scaled(sibling, target) for sibling in siblings], flip)

    def scaled(self, sibling: Sibling, like: torch.Tensor) -> Sibling:
        """The sibling with lenience times its law, that of a point mass included."""
        law = sibling.law
        if law is None:
            law = torch.zeros_like(like)
            law[sibling.token] = 1.0
        return replace(sibling, law=self.lenience * law)

    def verify_greedy(self, tree: TokenTree, logp: torch.Tensor) -> Verdict:
        best = logp.max(-1)
        drafted = torch.from_numpy(tree.tokens[1:])
        own = logp[:-1].gather(-1, drafted[:, None])[:, 0]
        likely = own > best.values[:-1] + math.log(self.lenience)
        return longest_prefix(likely | (drafted == best.indices[:-1]), best.indices)
