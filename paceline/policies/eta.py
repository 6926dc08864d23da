"""Eta sampling: drop tokens below a probability that falls with the entropy."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from paceline.policies.knobs import check_number
from paceline.policies.truncation import Truncation, best
from paceline.registry import Guarantee, method


@method(
    name="eta",
    kind="policy",
    guarantee=Guarantee.DEFINES,
    summary="Drop tokens below a probability that adapts to the entropy.",
    paper="Truncation Sampling as Language Model Desmoothing",
    year=2022,
    argument="eta_cutoff",
)
@dataclass(frozen=True)
class Eta(Truncation):
    """Keep `{v : q_v >= min(e, sqrt(e) * exp(-H))}` with `q = softmax(l)`, and the best token always.

    H is the entropy of q in nats, scores `l` are `[n, V]`. Where the model is unsure (large H) the cut is
    lower.

    Attributes:
        cutoff: e, 0 <= e < 1, usual 3e-4 to 4e-3. 0, the default, changes nothing.

    Paper: Hewitt, Manning, Liang, "Truncation Sampling as Language Model Desmoothing", 2022.
    """

    cutoff: float = 0.0

    def __post_init__(self) -> None:
        check_number("eta_cutoff", self.cutoff, "0 <= eta_cutoff < 1", 0, 1, below=True)

    @property
    def neutral(self) -> bool:
        return self.cutoff == 0

    def keep(self, scores: torch.Tensor) -> torch.Tensor:
        logq = scores.log_softmax(-1)
        q = logq.exp()
        entropy = -(q * logq).nansum(-1, keepdim=True)  # 0 * -inf of a banned token counts as 0
        eta = (math.sqrt(self.cutoff) * (-entropy).exp()).clamp_max(self.cutoff)
        return (q >= eta) | best(scores)
