"""Where a text ends: one function, one order.

Every emitted run, one token or ten, is trimmed here and nowhere else. Its tokens are taken in one by one; at each
the tests run in this order: grammar end, stop string, end token, length. What lies behind the first that holds
never reaches the cache, the log-probabilities, the drafter or the statistics, so a run gives the same result as
its tokens one at a time.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

from paceline.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Ending:
    """How much of a run stays, and why the text ends there (`reason` is `None` while it goes on)."""

    tokens: int
    reason: str | None = None
    cause: str | int | None = None


def trim(sequence: Sequence, run: Seq[int], states: Seq[tuple[Any, ...]], room: int) -> Ending:
    """Take a run into the sequence's text and find where it ends.

    Args:
        sequence: its detokenizer takes in the tokens that stay, and is cut at a stop string.
        run: accepted tokens and the bonus token.
        states: the pipeline's state after each token of the run.
        room: tokens that may still be emitted before the model's context is full.
    """
    stops = sequence.request.sampling.stop
    text = sequence.detokenizer
    left = min(sequence.remaining, room)
    for i, (token, state) in enumerate(zip(run, states, strict=True)):
        added = len(text.push(token))
        if sequence.pipeline.is_final(state):
            text.flush()
            return Ending(i + 1, "stop", "grammar")
        if stops and added and (found := text.find(stops, added)) is not None:
            text.cut(found[0])
            return Ending(i + 1, "stop", found[1])
        if token in sequence.end_tokens:
            text.flush()
            return Ending(i + 1, "stop", token)
        if i + 1 >= left:
            text.flush()
            return Ending(i + 1, "length")
    return Ending(len(run))
