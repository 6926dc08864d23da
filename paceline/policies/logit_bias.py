"""Logit bias: add a number to chosen tokens' scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from paceline.errors import BadRequest
from paceline.policies.base import Context, Policy, Stage
from paceline.policies.knobs import GREATEST, check_number, check_vocabulary, on_device, token_ids
from paceline.registry import Guarantee, method


@method(
    name="logit_bias",
    kind="policy",
    guarantee=Guarantee.DEFINES,
    summary="Add a number to the scores of chosen tokens.",
    paper="OpenAI API reference: logit_bias",
    year=2020,
    argument="logit_bias",
)
@dataclass(frozen=True)
class LogitBias(Policy):
    """`l_v <- l_v + bias[v]` for raw scores `l` `[n, V]`.

    Attributes:
        bias: finite number of each token id, kept as `(id, number)` pairs in ascending order. Ids may be
            integers or numeric strings (JSON has no other keys). Empty, the default, changes nothing. To
            forbid a token use `banned_tokens`.

    Source: the `logit_bias` of the OpenAI API, 2020.
    """

    bias: Mapping[int | str, float] | tuple[tuple[int, float], ...] = ()

    stage = Stage.PENALTY

    def __post_init__(self) -> None:
        try:
            pairs = dict(self.bias)
        except (TypeError, ValueError):
            raise BadRequest(f"logit_bias: {self.bias!r} is not a mapping of token ids to numbers") from None
        known: dict[int, float] = {}
        for key, number in pairs.items():
            token = int(key) if isinstance(key, str) and key.strip().isdecimal() else key
            token_ids("logit_bias", [token])
            allowed = f"a number from {-GREATEST:g} to {GREATEST:g} is allowed"
            check_number(f"logit_bias[{key}]", number, allowed, -GREATEST, GREATEST)
            if token in known:
                raise BadRequest(f"logit_bias: token id {token} is given twice, as a number and as a string")
            known[int(token)] = float(number)
        object.__setattr__(self, "bias", tuple(sorted(known.items())))

    @property
    def neutral(self) -> bool:
        return not any(number for _, number in self._pairs)

    @property
    def _pairs(self) -> tuple[tuple[int, float], ...]:
        assert isinstance(self.bias, tuple)
        return self.bias

    def start(self, context: Context) -> tuple[torch.Tensor, torch.Tensor]:
        ids = [token for token, _ in self._pairs]
        check_vocabulary("logit_bias", ids, context)
        numbers = [number for _, number in self._pairs]
        return on_device(ids, context), torch.tensor(numbers, dtype=torch.float64, device=context.device)

    def transform(self, scores: torch.Tensor, states: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
        ids, numbers = states[0]  # the same in every state of this policy
        return scores.index_add(-1, ids, numbers.to(scores.dtype).expand(len(scores), -1))
