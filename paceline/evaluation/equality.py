"""Do two methods give the same tokens, and if not, how close was the choice where they part?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Difference:
    """Where two token lists part.

    Attributes:
        prompt: which prompt.
        position: index of the first different token.
        ours, theirs: the tokens there (`None`: that list had ended).
        gap: distance of the two best logits there; a tiny gap means that rounding decided.
    """

    prompt: str
    position: int
    ours: int | None
    theirs: int | None
    gap: float | None = None


def first_difference(ours: Sequence[int], theirs: Sequence[int]) -> int | None:
    """Index of the first different token, `None` for equal lists."""
    if list(ours) == list(theirs):
        return None
    pairs = enumerate(zip(ours, theirs, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(ours), len(theirs)))


def difference(
    name: str, prompt: Sequence[int], ours: Sequence[int], theirs: Sequence[int], model: Any = None
) -> Difference | None:
    """The first difference of two continuations of a prompt, with the gap under `model` (a `CausalModel`)."""
    at = first_difference(ours, theirs)
    if at is None:
        return None
    known = [*prompt, *theirs[:at]]
    gap = top_gap(model, known) if model is not None and len(known) <= model.context else None
    return Difference(name, at, _get(ours, at), _get(theirs, at), gap)


@torch.inference_mode()
def top_gap(model: Any, tokens: Sequence[int]) -> float:
    """Distance of the two best logits after some tokens."""
    cache = model.new_cache(1)
    logits = model.prefill(cache, cache.allocate(), list(tokens), len(tokens), logits=True)[-1][-1]
    best, second = logits.topk(2).values.tolist()
    return float(best - second)


def repetition(tokens: Sequence[int], length: int = 8) -> float:
    """Share of the text's `length`-grams that occurred before in it: 0 for a text that never loops."""
    grams = [tuple(tokens[i : i + length]) for i in range(len(tokens) - length + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _get(tokens: Sequence[int], at: int) -> int | None:
    return tokens[at] if at < len(tokens) else None
