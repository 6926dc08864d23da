"""Drive the engine with parts that are not registered: test drafters, toy policies, enumerated chance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from paceline.api import Engine
from paceline.chance import Chance
from paceline.drafters.base import Drafter
from paceline.policies.base import Pipeline
from paceline.requests import Event, Request, Sampling
from paceline.sequence import Sequence
from paceline.verifiers.base import Verifier


def submit(
    engine: Engine,
    prompt: list[int],
    *,
    drafter: Drafter | None = None,
    verifier: Verifier | None = None,
    pipeline: Pipeline | None = None,
    chance: Callable[[int], Chance] | None = None,
    callback: Callable[[Event], None] | None = None,
    **sampling: Any,
) -> list[Sequence]:
    """Queue a request past the registry; what is `None` is the engine's own.

    Args:
        engine: its decoder gets the sequences.
        prompt: token ids.
        drafter, verifier, pipeline: any instances.
        chance: randomness of each sample of the request.
        callback: called with every event.
        sampling: fields of `Sampling`.
    """
    plain = engine.request(prompt, Sampling(**sampling))
    for part in (drafter, verifier):
        if part is not None:
            part.attach(engine.model)
    request = Request(
        plain.prompt, plain.sampling, drafter or plain.drafter, verifier or plain.verifier, callback, plain.id
    )
    sequences = engine.submit(request)
    for sequence in sequences:
        if pipeline is not None:
            sequence.pipeline = pipeline
        if chance is not None:
            sequence.chance = chance(sequence.index)
    return sequences


def finish(engine: Engine) -> list[Event]:
    """Step until nothing waits or runs; returns everything that happened."""
    events: list[Event] = []
    while engine.decoder.busy:
        events += engine.decoder.step()
    return events
