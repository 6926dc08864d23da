"""Frequency penalty: lower a token's score by how often it was generated."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from paceline.policies.history import CountPenalty
from paceline.policies.knobs import check_number
from paceline.registry import Guarantee, method


@method(
    name="frequency",
    kind="policy",
    guarantee=Guarantee.DEFINES,
    summary="Lower a token's score by its count in the output.",
    paper="OpenAI API reference: frequency and presence penalties",
    year=2020,
    argument="frequency_penalty",
)
@dataclass(frozen=True)
class Frequency(CountPenalty):
    """`l_v <- l_v - penalty * c_v`, with `c_v` the count of v among the generated tokens.

    Scores `l` are `[n, V]` raw logits. The prompt does not count.

    Attributes:
        penalty: -2 <= penalty <= 2; negative values encourage repetition. 0, the default, changes nothing.

    Source: the `frequency_penalty` of the OpenAI API, 2020.
    """

    penalty: float = 0.0

    def __post_init__(self) -> None:
        check_number("frequency_penalty", self.penalty, "-2 <= frequency_penalty <= 2", -2, 2)

    @property
    def neutral(self) -> bool:
        return self.penalty == 0

    def change(self, scores: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        return scores - self.penalty * counts
