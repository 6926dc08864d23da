"""Top-k: keep the k best tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from paceline.policies.knobs import check_integer
from paceline.policies.truncation import Truncation
from paceline.registry import Guarantee, method


@method(
    name="top_k",
    kind="policy",
    guarantee=Guarantee.DEFINES,
    summary="Keep the k best tokens.",
    paper="Hierarchical Neural Story Generation",
    year=2018,
    argument="top_k",
)
@dataclass(frozen=True)
class TopK(Truncation):
    """Keep `{v : l_v >= k-th largest score}` of scores `l` `[n, V]`.

    Tokens equal to the k-th stay, so more than k may remain; a k above the vocabulary keeps everything.

    Attributes:
        k: usual 40-50. 0, the default, switches it off.

    Paper: Fan, Lewis, Dauphin, "Hierarchical Neural Story Generation", 2018.
    """

    k: int = 0

    def __post_init__(self) -> None:
        check_integer("top_k", self.k, "an integer of at least 1, or 0 to switch it off, is allowed")

    @property
    def neutral(self) -> bool:
        return self.k == 0

    def keep(self, scores: torch.Tensor) -> torch.Tensor:
        return scores >= scores.topk(min(self.k, scores.shape[-1])).values[:, -1:]
