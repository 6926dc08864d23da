"""Locally typical sampling: keep tokens whose surprise is close to the expected surprise."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from paceline.policies.knobs import check_number
from paceline.policies.truncation import Truncation, shortest_prefix
from paceline.registry import Guarantee, method


@method(
    name="typical",
    kind="policy",
    guarantee=Guarantee.DEFINES,
    summary="Keep tokens whose surprise is closest to the entropy, up to a mass.",
    paper="Locally Typical Sampling",
    year=2022,
    argument="typical_p",
)
@dataclass(frozen=True)
class Typical(Truncation):
    """Keep the shortest prefix with probability of at least `mass`, nearest to the entropy first.

    With `q = softmax(l)` of scores `l` `[n, V]` and `H = -sum q ln q`, tokens are ordered by `|-ln q_v - H|`
    ascending (equal distances by token id). The token that reaches the mass is kept, and the most typical
    token always; the most *likely* token may be dropped, which is what sets this truncation apart.

    Attributes:
        mass: 0 < mass <= 1, usual 0.2-0.95. 1, the default, changes nothing.

    Paper: Meister et al., "Locally Typical Sampling", 2022.
    """

    mass: float = 1.0

    def __post_init__(self) -> None:
        check_number("typical_p", self.mass, "0 < typical_p <= 1", 0, 1, above=True)

    @property
    def neutral(self) -> bool:
        return self.mass == 1

    def keep(self, scores: torch.Tensor) -> torch.Tensor:
        logq = scores.log_softmax(-1)
        q = logq.exp()
        entropy = -(q * logq).nansum(-1, keepdim=True)  # 0 * -inf of a banned token counts as 0
        return shortest_prefix(-(logq + entropy).abs(), q, self.mass)
