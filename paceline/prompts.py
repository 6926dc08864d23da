"""What users give as prompts, as checked token ids."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from paceline.errors import BadRequest
from paceline.requests import is_integer


def listed(prompt: Any) -> tuple[list[Any], bool]:
    """Prompts, each a string or a list of ids, and whether just one was given.

    Args:
        prompt: a string, a sequence, array or tensor of ids, or a list of these.

    Raises:
        BadRequest: it is none of these, or empty.
    """
    prompt = _plain(prompt)
    if isinstance(prompt, str):
        return [prompt], True
    if isinstance(prompt, Sequence) and not isinstance(prompt, bytes | bytearray):
        if not prompt:
            raise BadRequest("prompt: an empty list is not allowed; give token ids, or a list of prompts")
        if all(is_integer(p) for p in prompt):
            return [list(prompt)], True
        prompts = [_plain(p) for p in prompt]
        if all(isinstance(p, str | list | tuple) for p in prompts):
            return prompts, False
    raise BadRequest(f"prompt: {prompt!r:.80} is neither a string, a list of token ids, nor a list of those")


def _plain(given: Any) -> Any:
    """Arrays and tensors as lists."""
    return given.tolist() if hasattr(given, "tolist") and getattr(given, "ndim", False) else given


def encoded(given: Any, tokenizer: Any, name: str = "prompt", **options: Any) -> list[Any]:
    """Ids of a string, or a list of what should be ids as it is.

    Args:
        given: the string or the ids.
        tokenizer: of the model; None: it has none.
        name: the argument, for messages.
        options: of the tokenizer's call.

    Raises:
        BadRequest: it is neither, there is no tokenizer, or the string is no Unicode text.
    """
    given = _plain(given)
    if not isinstance(given, str):
        if not isinstance(given, Sequence) or isinstance(given, bytes | bytearray):
            raise BadRequest(f"{name}: {given!r:.80} is neither a string nor a list of token ids")
        return list(given)
    if tokenizer is None:
        raise BadRequest(f"{name}: a string needs a tokenizer and this model has none; give ids or tokenizer=")
    try:
        given.encode()
    except UnicodeEncodeError as error:
        wrong = given[error.start]
        raise BadRequest(
            f"{name}: character {error.start} is {wrong!r}, half of a surrogate pair, which is no text; leave it out"
        ) from None
    return list(tokenizer(given, **options)["input_ids"])


def checked(name: str, tokens: Sequence[Any], vocab_size: int) -> list[int]:
    """Token ids as Python's integers. Raises `BadRequest` for what is none in the vocabulary."""
    wrong = [token for token in tokens if not is_integer(token) or not 0 <= token < vocab_size]
    if wrong:
        raise BadRequest(f"{name}: token id {wrong[0]!r} is not allowed; ids from 0 to {vocab_size - 1} are")
    return [operator.index(token) for token in tokens]
