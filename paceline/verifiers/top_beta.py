"""Top-beta acceptance: a drafted token need not be the best one, only one of the best and hardly less likely.

Greedy decoding. With p the target's law before a drafted token y (temperature 1), y is kept if

    y is among the beta most likely tokens,  and  log max p - log p(y) <= tau

and the first token that is not is replaced by the best one; a draft that holds is followed by the best one. The text
is the greedy one at beta = 1, and at tau = 0 but for exact ties. What is emitted is at most e^tau times less likely
than the best token at its place. Where a draft comes close to what the model would say itself, such as a first
version that is to be corrected (drafter `aggressive`), this keeps what is good enough.

Paper: Ge, Xia, Sun, Chen, Wei, "Lossless Acceleration for Seq2seq Generation with Aggressive Decoding", 2022: the
relaxed rule of its generalized decoding, with beta 5 and tau 3 in the released script.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from paceline.errors import BadRequest
from paceline.registry import Guarantee, method
from paceline.tree import TokenTree
from paceline.verifiers.base import GreedyVerifier, Verdict, longest_prefix


@method(
    name="top_beta",
    kind="verifier",
    guarantee=Guarantee.LOSSY,
    summary="Greedy only: keep drafted tokens among the best few whose log-probability is within tau of the best.",
    paper="Lossless Acceleration for Seq2seq Generation with Aggressive Decoding",
    year=2022,
    needs={"chain"},
    knob="tau",
)
@dataclass(frozen=True)
class TopBeta(GreedyVerifier):
    """Acceptance by rank and likelihood gap.

    Attributes:
        beta: how many of the best tokens are good enough, at least 1; 1 is lossless.
        tau: largest gap to the best token's log-probability, in nats, at least 0.
    """

    beta: int = 5
    tau: float = 3.0

    shapes = frozenset({"chain"})

    def __post_init__(self) -> None:
        if self.beta < 1:
            raise BadRequest(f"top_beta(beta={self.beta}): an integer of at least 1 is needed")
        if not self.tau >= 0:
            raise BadRequest(f"top_beta(tau={self.tau}): a number of at least 0 (nats) is needed")

    def verify_greedy(self, tree: TokenTree, logp: torch.Tensor) -> Verdict:
        drafted = torch.from_numpy(tree.tokens[1:])
        best = logp.max(-1)
        own = logp[:-1].gather(-1, drafted[:, None])
        # Of equally likely tokens the one that greedy decoding takes comes first.
        better = (logp[:-1] > own).sum(-1).clamp_min(1)
        close = best.values[:-1] - own[:, 0] <= self.tau  # infinite where the policy rules the token out
        kept = (drafted == best.indices[:-1]) | ((better < self.beta) & close & own[:, 0].isfinite())
        return longest_prefix(kept, best.indices)
