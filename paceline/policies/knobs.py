"""Checks of policies' arguments: each refusal names the argument, the value and what is allowed."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from paceline.errors import BadRequest
from paceline.policies.base import Context
from paceline.requests import is_integer

#: Beyond this, and below its inverse, a product or a quotient with a score would overflow in float32.
GREATEST = 1e30


def check_number(
    name: str,
    value: object,
    allowed: str,
    low: float,
    high: float,
    *,
    above: bool = False,
    below: bool = False,
) -> None:
    """Refuse anything but a number in `[low, high]`; `above` and `below` exclude the bounds."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        raise BadRequest(f"{name}: {value!r} is not a number; {allowed}")
    if not low <= value <= high or (above and value == low) or (below and value == high):
        raise BadRequest(f"{name}: {value} is out of range; {allowed}")


def check_integer(name: str, value: object, allowed: str, low: int = 0) -> None:
    """Refuse anything but an integer of at least `low`."""
    if not is_integer(value):
        raise BadRequest(f"{name}: {value!r} is not an integer; {allowed}")
    if value < low:  # type: ignore[operator]
        raise BadRequest(f"{name}: {value} is out of range; {allowed}")


def token_ids(name: str, values: object) -> tuple[int, ...]:
    """Distinct ids in ascending order, of a collection of them or of a string such as `"5 9"`, as specs have it."""
    if isinstance(values, str):
        values = [int(word) if word.isdecimal() else word for word in values.split()]
    if not isinstance(values, Iterable) or isinstance(values, bytes):
        raise BadRequest(f"{name}: {values!r} is not allowed; a list of token ids is needed")
    ids = list(values)
    for token in ids:
        check_integer(name, token, "token ids are integers of at least 0")
    return tuple(sorted({int(token) for token in ids}))


def check_vocabulary(name: str, ids: Iterable[int], context: Context) -> None:
    """Refuse ids beyond the vocabulary, which is first known when a request starts."""
    for token in ids:
        if token >= context.vocab_size:
            raise BadRequest(f"{name}: token id {token} is outside the vocabulary; 0 <= id < {context.vocab_size}")


def on_device(ids: Iterable[int], context: Context) -> torch.Tensor:
    """`[k]` int64 ids where the request's scores live."""
    return torch.tensor(list(ids), dtype=torch.int64, device=context.device)
