"""Budgets that a model's context cannot hold are refused: cut without a word, they would not be what was asked for."""

from __future__ import annotations

from typing import Any

from paceline.errors import BadRequest

#: A budget that is never refused: published trees and defaults are smaller, and cut near the end of any text anyway.
ALWAYS = 100


def check_budget(what: str, tokens: int | None, model: Any) -> None:
    """Raises `BadRequest` if more tokens are to be drafted in a step than the model's context has.

    Args:
        what: argument and value, for the message.
        tokens: the budget; `None`: none was given.
        model: what scores the draft.
    """
    if tokens is not None and tokens > ALWAYS and tokens > model.context:
        raise BadRequest(
            f"{what}: too many to draft; the context of {model.name} is {model.context} tokens, at most as many fit"
        )


def check_budgets(name: str, part: object, model: Any, *knobs: str) -> None:
    """The same of some knobs of a method. Raises `BadRequest`."""
    for knob in knobs:
        tokens = getattr(part, knob)
        check_budget(f"{name}({knob}={tokens})", tokens, model)
