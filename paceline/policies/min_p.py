"""Min-p: keep tokens that are not much less likely than the best one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from paceline.policies.knobs import check_number
from paceline.policies.truncation import Truncation
from paceline.registry import Guarantee, method


@method(
    name="min_p",
    kind="policy",
    guarantee=Guarantee.DEFINES,
    summary="Keep tokens at least a share as likely as the best one.",
    paper="Turning Up the Heat: Min-p Sampling for Creative and Coherent LLM Outputs",
    year=2024,
    argument="min_p",
)
@dataclass(frozen=True)
class MinP(Truncation):
    """Keep `{v : q_v >= p * max q}` with `q = softmax(l)` of scores `l` `[n, V]`: `l_v >= max(l) + ln p`.

    The cut follows the model's confidence: strict where one token stands out, generous where many are alike.

    Attributes:
        p: 0 <= p <= 1, usual 0.05-0.1. 0, the default, changes nothing; 1 keeps the best alone.

    Paper: Nguyen et al., "Turning Up the Heat: Min-p Sampling for Creative and Coherent LLM Outputs", 2024.
    """

    p: float = 0.0

    def __post_init__(self) -> None:
        check_number("min_p", self.p, "0 <= min_p <= 1", 0, 1)

    @property
    def neutral(self) -> bool:
        return self.p == 0

    def keep(self, scores: torch.Tensor) -> torch.Tensor:
        return scores >= scores.amax(-1, keepdim=True) + math.log(self.p)
