"""Top-p (nucleus): keep the smallest set of best tokens that holds a share p of the probability."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from paceline.policies.knobs import check_number
from paceline.policies.truncation import Truncation, shortest_prefix
from paceline.registry import Guarantee, method


@method(
    name="top_p",
    kind="policy",
    guarantee=Guarantee.DEFINES,
    summary="Keep the fewest best tokens whose probability reaches p (nucleus).",
    paper="The Curious Case of Neural Text Degeneration",
    year=2019,
    argument="top_p",
)
@dataclass(frozen=True)
class TopP(Truncation):
    """Keep the shortest prefix, in order of falling score, with probability of at least `p`.

    With `q = softmax(l)` of scores `l` `[n, V]`, token v is kept when the tokens before it hold less than p;
    so the token that reaches p is kept, and the best one always. Equal scores are ordered by token id.

    Attributes:
        p: 0 < p <= 1, usual 0.9-0.95. 1, the default, changes nothing.

    Paper: Holtzman et al., "The Curious Case of Neural Text Degeneration", 2019.
    """

    p: float = 1.0

    def __post_init__(self) -> None:
        check_number("top_p", self.p, "0 < top_p <= 1", 0, 1, above=True)

    @property
    def neutral(self) -> bool:
        return self.p == 1

    def keep(self, scores: torch.Tensor) -> torch.Tensor:
        return shortest_prefix(scores, scores.softmax(-1), self.p)
