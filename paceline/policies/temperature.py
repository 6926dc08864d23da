"""Temperature: `softmax(scores / t)`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from paceline.policies.base import Policy, Stage, State
from paceline.registry import Guarantee, method
from paceline.requests import check_temperature


@method(
    name="temperature",
    kind="policy",
    guarantee=Guarantee.DEFINES,
    summary="Sharpen (below 1) or flatten (above 1) the distribution; 0 is greedy.",
    paper="A Learning Algorithm for Boltzmann Machines",
    year=1985,
    argument="temperature",
)
@dataclass(frozen=True)
class Temperature(Policy):
    """Divide scores by `value`.

    At 0 the pipeline becomes greedy (the limit), and neither this division nor a truncation takes part.
    Raises `BadRequest` for a negative value, and for one that scores cannot be divided by.
    """

    value: float = 1.0

    stage = Stage.TEMPERATURE

    def __post_init__(self) -> None:
        check_temperature(self.value)

    @property
    def neutral(self) -> bool:
        return self.value == 1.0

    def transform(self, scores: torch.Tensor, states: Sequence[State]) -> torch.Tensor:
        return scores / self.value
