"""Repetition penalty: make tokens that occurred less likely, by a factor on their raw score."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from paceline.policies.history import CountPenalty
from paceline.policies.knobs import GREATEST, check_number
from paceline.registry import Guarantee, method


@method(
    name="repetition",
    kind="policy",
    guarantee=Guarantee.DEFINES,
    summary="Scale down the score of tokens of the prompt or the output.",
    paper="CTRL: A Conditional Transformer Language Model for Controllable Generation",
    year=2019,
    argument="repetition_penalty",
)
@dataclass(frozen=True)
class Repetition(CountPenalty):
    """For each token v in prompt or output, `l_v <- l_v / penalty` if `l_v > 0`, else `l_v * penalty`.

    Scores `l` are `[n, V]` raw logits: the rule depends on their sign, so it runs before temperature and
    truncations, and gives another law on log-probabilities.

    Attributes:
        penalty: positive, usual 1.0-1.2; below 1 it encourages repetition. 1, the default, changes nothing.

    Paper: Keskar et al., "CTRL: A Conditional Transformer Language Model for Controllable Generation", 2019.
    """

    penalty: float = 1.0

    counts_prompt = True

    def __post_init__(self) -> None:
        allowed = f"a number above 0, from {1 / GREATEST:g} to {GREATEST:g}, is allowed"
        check_number("repetition_penalty", self.penalty, allowed, 1 / GREATEST, GREATEST)

    @property
    def neutral(self) -> bool:
        return self.penalty == 1

    def change(self, scores: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        return torch.where(scores < 0, scores * self.penalty, scores / self.penalty)
