"""Minimum length: the text may not end before so many tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from paceline.errors import BadRequest
from paceline.policies.base import Context, Policy, Stage
from paceline.policies.knobs import check_integer, on_device
from paceline.registry import Guarantee, method


@dataclass(frozen=True, slots=True, eq=False)
class Wait:
    """`left`: tokens still to generate before an end token may be; `stops`: `[k]` the end tokens."""

    left: int
    stops: torch.Tensor


@method(
    name="min_length",
    kind="policy",
    guarantee=Guarantee.DEFINES,
    summary="Ban end tokens until enough tokens were generated.",
    paper="Minimum length of generation (common practice)",
    year=2017,
    argument="min_new_tokens",
)
@dataclass(frozen=True)
class MinLength(Policy):
    """End tokens' scores in `[n, V]` become `-inf` while fewer than `tokens` tokens were generated.

    End tokens are the model's own (unless ignored) and the request's. Stop strings are not held back.

    Attributes:
        tokens: at least 0; 0, the default, changes nothing.

    Source: common practice in sequence generation, no one paper.
    """

    tokens: int = 0

    stage = Stage.MASK

    def __post_init__(self) -> None:
        check_integer("min_new_tokens", self.tokens, "an integer of at least 0 is allowed")

    @property
    def neutral(self) -> bool:
        return self.tokens == 0

    def start(self, context: Context) -> Wait:
        stops = sorted(token for token in context.stop_tokens if token < context.vocab_size)
        if len(stops) == context.vocab_size:
            raise BadRequest(f"min_new_tokens: {self.tokens} cannot be reached; every token is an end token")
        return Wait(self.tokens, on_device(stops, context))

    def advance(self, state: Wait, token: int, row: torch.Tensor | None = None) -> Wait:
        return Wait(state.left - 1, state.stops) if state.left else state

    def transform(self, scores: torch.Tensor, states: Sequence[Wait]) -> torch.Tensor:
        waiting = [row for row, state in enumerate(states) if state.left]
        if not waiting:
            return scores
        masked = scores.clone()
        rows = torch.tensor(waiting, device=scores.device)[:, None]
        masked[rows, states[0].stops] = -torch.inf  # the same in every state of a request
        return masked
