"""The best lossless verifier of siblings, from the linear programme of its optimal transport: for tiny vocabularies.

Let `pi(t, y)` be the optimal joint law of the k drafts t and the token y (`paceline.evaluation.acceptance.transport`).
With the drafts t at hand, choose the y among them with probability `pi(t, y) / Q(t)`, where `Q(t)` is the chance of t;
otherwise draw from `norm(p - sum of pi(t, .) over the t that hold the token)`.

Paper: Hu et al., "Towards Optimal Multi-draft Speculative Decoding", 2025.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from paceline.evaluation.acceptance import Transport, transport
from paceline.verifiers.siblings import ROUNDING, Sibling, SiblingVerifier


@dataclass(frozen=True)
class TransportVerifier(SiblingVerifier):
    """The optimum for drafts with or without replacement.

    Attributes:
        law: `"replacement"` or `"distinct"`, what the drafts follow.
    """

    law: str = "replacement"

    judges = ("replacement", "distinct")

    def choose(
        self, target: torch.Tensor, siblings: Sequence[Sibling], flip: Callable[[float, int], bool]
    ) -> tuple[int | None, torch.Tensor]:
        drawn = list(siblings)
        if not drawn:
            return None, target
        first, tokens = drawn[0].law, [sibling.token for sibling in drawn]
        assert first is not None
        best = solved(tuple(target.tolist()), tuple(first.tolist()), len(drawn), self.law)
        chosen = best.chosen[tuple(tokens)]
        left = float(chosen.sum())
        for i, token in enumerate(tokens):
            if token not in tokens[:i]:
                if left > ROUNDING and flip(float(chosen[token]) / left, i):
                    return i, target
                left -= float(chosen[token])
        taken = torch.zeros_like(target)
        for drafts, joint in best.chosen.items():
            held = list(set(drafts))
            taken[held] += joint[held]
        rest = (target - taken).clamp_min(0)
        return None, rest if float(rest.sum()) >= ROUNDING else target


@lru_cache(maxsize=4096)
def solved(target: tuple[float, ...], draft: tuple[float, ...], k: int, law: str) -> Transport:
    """The optimal transport of two laws."""
    p, q = (torch.tensor(weights, dtype=torch.float64) for weights in (target, draft))
    return transport(p, q, k, law)
