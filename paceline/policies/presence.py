"""Presence penalty: lower the score of tokens that were generated before, however often."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from paceline.policies.history import CountPenalty
from paceline.policies.knobs import check_number
from paceline.registry import Guarantee, method


@method(
    name="presence",
    kind="policy",
    guarantee=Guarantee.DEFINES,
    summary="Lower the score of tokens that occur in the output.",
    paper="OpenAI API reference: frequency and presence penalties",
    year=2020,
    argument="presence_penalty",
)
@dataclass(frozen=True)
class Presence(CountPenalty):
    """`l_v <- l_v - penalty` for each token v among the generated ones.

    Scores `l` are `[n, V]` raw logits. The prompt does not count.

    Attributes:
        penalty: -2 <= penalty <= 2; negative values encourage repetition. 0, the default, changes nothing.

    Source: the `presence_penalty` of the OpenAI API, 2020.
    """

    penalty: float = 0.0

    def __post_init__(self) -> None:
        check_number("presence_penalty", self.penalty, "-2 <= presence_penalty <= 2", -2, 2)

    @property
    def neutral(self) -> bool:
        return self.penalty == 0

    def change(self, scores: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        return scores - self.penalty
