"""Banned tokens: ids that may never be generated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from paceline.errors import BadRequest
from paceline.policies.base import Context, Policy, Stage
from paceline.policies.knobs import check_vocabulary, on_device, token_ids
from paceline.registry import Guarantee, method


@method(
    name="banned",
    kind="policy",
    guarantee=Guarantee.DEFINES,
    summary="Token ids that may never be generated.",
    paper="Token suppression (common practice)",
    year=2017,
    argument="banned_tokens",
)
@dataclass(frozen=True)
class Banned(Policy):
    """Scores of `tokens` become `-inf` in `[n, V]`.

    Attributes:
        tokens: ids, kept in ascending order. Empty, the default, changes nothing. A banned end token cannot
            end the text.

    Source: common practice, no one paper; `suppress_tokens` of Hugging Face generation.
    """

    tokens: Sequence[int] = ()

    stage = Stage.MASK

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", token_ids("banned_tokens", self.tokens))

    @property
    def neutral(self) -> bool:
        return not self.tokens

    def start(self, context: Context) -> torch.Tensor:
        check_vocabulary("banned_tokens", self.tokens, context)
        if len(self.tokens) == context.vocab_size:
            raise BadRequest(f"banned_tokens: all {context.vocab_size} tokens are banned; leave at least one")
        return on_device(self.tokens, context)

    def transform(self, scores: torch.Tensor, states: Sequence[torch.Tensor]) -> torch.Tensor:
        return scores.index_fill(-1, states[0], -torch.inf)  # the same ids in every state of this policy
