"""Allowed tokens: the only ids that may be generated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from paceline.errors import BadRequest
from paceline.policies.base import Context, Policy, Stage
from paceline.policies.knobs import check_vocabulary, on_device, token_ids
from paceline.registry import Guarantee, method


@method(
    name="allowed",
    kind="policy",
    guarantee=Guarantee.DEFINES,
    summary="The only token ids that may be generated.",
    paper="Token restriction (common practice)",
    year=2017,
    argument="allowed_tokens",
)
@dataclass(frozen=True)
class Allowed(Policy):
    """Scores of all tokens but `tokens` become `-inf` in `[n, V]`.

    Attributes:
        tokens: ids, kept in ascending order, at least one. `None`, the default, changes nothing. End tokens
            are not added: list them when the text may end by one.

    Source: common practice, no one paper.
    """

    tokens: Sequence[int] | None = None

    stage = Stage.MASK

    def __post_init__(self) -> None:
        if self.tokens is None:
            return
        ids = token_ids("allowed_tokens", self.tokens)
        if not ids:
            raise BadRequest("allowed_tokens: an empty list allows no token; give at least one token id")
        object.__setattr__(self, "tokens", ids)

    @property
    def neutral(self) -> bool:
        return self.tokens is None

    def start(self, context: Context) -> torch.Tensor:
        ids = range(context.vocab_size) if self.tokens is None else self.tokens
        check_vocabulary("allowed_tokens", ids, context)
        return on_device(ids, context)

    def transform(self, scores: torch.Tensor, states: Sequence[torch.Tensor]) -> torch.Tensor:
        ids = states[0]  # the same in every state of this policy
        return torch.full_like(scores, -torch.inf).index_copy(-1, ids, scores.index_select(-1, ids))
