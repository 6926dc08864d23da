"""Exact laws of short texts: what a policy says, and what a decoder with drafter and verifier emits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from paceline.api import Engine
from paceline.drafters.base import Drafter
from paceline.policies.base import Context, Pipeline
from paceline.testing.enumerate import EnumeratedChance, outcomes
from paceline.testing.running import finish, submit
from paceline.testing.tabular import TabularModel
from paceline.verifiers.base import Verifier

Text = tuple[int, ...]


def autoregressive(model: TabularModel, pipeline: Pipeline, prompt: list[int], length: int) -> dict[Text, float]:
    """The policy's own law of the first `length` tokens (fewer where the text ends), one token after the other.

    Raises:
        ValueError: the policy leaves no token at some prefix.
    """

    def walk(text: Text, state: Any, weight: float) -> Iterator[tuple[Text, float]]:
        if len(text) == length or (text and (text[-1] in model.end_tokens or pipeline.is_final(state))):
            yield text, weight
            return
        row = pipeline.transform(model.table((*prompt, *text))[None], [state])
        law = pipeline.distribution(row)[0].exp()
        if not bool(row.amax().isfinite()):
            raise ValueError(f"the policy leaves no token after {text}")
        for token in range(model.vocab_size):
            if law[token] > 0:
                after = pipeline.advance(state, token, row[0])
                yield from walk((*text, token), after, weight * float(law[token]))

    start = pipeline.start(Context(tuple(prompt), model.vocab_size, model.end_tokens, torch.device("cpu")))
    return dict(walk((), start, 1.0))


@dataclass(frozen=True)
class Decoded:
    """What a decoder emits, over every outcome of its chance.

    Attributes:
        law: probability of each text; with `n > 1` samples, of their texts one after the other with -1 between.
        drafted, accepted: expected numbers of draft tokens scored and kept.
        replays: how many outcomes there were.
    """

    law: dict[Text, float]
    drafted: float
    accepted: float
    replays: int


def decoded(
    engine: Engine,
    prompt: list[int],
    length: int,
    drafter: Callable[[], Drafter],
    verifier: Verifier,
    pipeline: Pipeline,
    n: int = 1,
) -> Decoded:
    """The exact law of the production decoder on a tabular model.

    Args:
        engine: around a `TabularModel`.
        prompt: token ids.
        length: tokens to generate.
        drafter: makes a fresh drafter for each replay, since a drafter may learn.
        verifier, pipeline: of the request.
        n: samples of the prompt.
    """
    replays = 0

    def run(chance: EnumeratedChance) -> tuple[Text, int, int]:
        nonlocal replays
        replays += 1
        sequences = submit(
            engine,
            prompt,
            drafter=drafter(),
            verifier=verifier,
            pipeline=pipeline,
            chance=chance.sibling,
            max_new_tokens=length,
            n=n,
        )
        finish(engine)
        text: list[int] = []
        for sequence in sequences:
            if sequence.error is not None:
                raise sequence.error
            text += [-1] * (sequence.index > 0) + sequence.tokens[len(prompt) :]
        return tuple(text), sum(s.stats.drafted for s in sequences), sum(s.stats.accepted for s in sequences)

    whole = outcomes(run)
    law: dict[Text, float] = {}
    for (text, _, _), weight in whole.items():
        law[text] = law.get(text, 0.0) + weight
    drafted_mean = sum(weight * drafted for (_, drafted, _), weight in whole.items())
    accepted_mean = sum(weight * accepted for (_, _, accepted), weight in whole.items())
    return Decoded(law, drafted_mean, accepted_mean, replays)


def distance(law: dict[Text, float], other: dict[Text, float]) -> float:
    """The largest difference of two laws at any text."""
    return max(abs(law.get(text, 0.0) - other.get(text, 0.0)) for text in law.keys() | other.keys())
