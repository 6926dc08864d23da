"""Epsilon sampling: drop tokens below a fixed probability."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from paceline.policies.knobs import check_number
from paceline.policies.truncation import Truncation, best
from paceline.registry import Guarantee, method


@method(
    name="epsilon",
    kind="policy",
    guarantee=Guarantee.DEFINES,
    summary="Drop tokens below a fixed probability.",
    paper="Truncation Sampling as Language Model Desmoothing",
    year=2022,
    argument="epsilon_cutoff",
)
@dataclass(frozen=True)
class Epsilon(Truncation):
    """Keep `{v : q_v >= cutoff}` with `q = softmax(l)` of scores `l` `[n, V]`, and the best token always.

    Attributes:
        cutoff: 0 <= cutoff < 1, usual 3e-4 to 4e-3. 0, the default, changes nothing.

    Paper: Hewitt, Manning, Liang, "Truncation Sampling as Language Model Desmoothing", 2022.
    """

    cutoff: float = 0.0

    def __post_init__(self) -> None:
        check_number("epsilon_cutoff", self.cutoff, "0 <= epsilon_cutoff < 1", 0, 1, below=True)

    @property
    def neutral(self) -> bool:
        return self.cutoff == 0

    def keep(self, scores: torch.Tensor) -> torch.Tensor:
        return (scores.softmax(-1) >= self.cutoff) | best(scores)
