"""Flover's promises: requests join and leave a running batch at any step, and none notices.

Paper: Yao et al., "Flover: A Temporal Fusion Framework for Efficient Autoregressive Model Parallel Inference", 2023.
What queues, fails or is cancelled beside others is in `test_isolation`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import pytest

from paceline import Engine
from paceline.errors import BadRequest
from paceline.requests import Event
from paceline.sequence import Sequence as Record
from tests.drafters.support import VOCABULARY, engine_of, llama

DRAFTERS = ("none", "ngram(confidence=0, length=3)", "recycling", "jacobi(block=3)")


@dataclass
class Job:
    """A request, the step before which it arrives, and what became of it.

    Attributes:
        joined: the step that brought its first token.
    """

    arrival: int
    prompt: list[int]
    options: dict[str, Any]
    record: Record | None = None
    joined: int | None = None

    @property
    def text(self) -> list[int]:
        assert self.record is not None
        return self.record.tokens[len(self.prompt) :]


@dataclass
class Log:
    """What was seen while jobs were served: the events of every step, and the most rows in use."""

    steps: list[list[Event]] = field(default_factory=list)
    most: int = 0


def jobs(seed: int, drafters: Sequence[str], count: int = 11) -> list[Job]:
    """Arrivals, prompts, lengths, temperatures, seeds and drafters at random."""
    rng = np.random.default_rng(seed)
    return [
        Job(
            int(rng.integers(15)),
            rng.integers(1, VOCABULARY, size=rng.integers(1, 12)).tolist(),
            {
                "max_new_tokens": int(rng.integers(1, 14)),
                "ignore_eos": True,
                "temperature": float(rng.choice([0.0, 0.8])),
                "seed": int(rng.integers(100)),
                "drafter": str(rng.choice(drafters)),
            },
        )
        for _ in range(count)
    ]


@cache
def engine(rows: int) -> Engine:
    return engine_of(llama(), max_rows=rows)


def served(engine: Engine, some: list[Job]) -> Log:
    """Serve every job from its arrival on; after each step the live rows are the first ones, each where it says."""
    log, cache = Log(), engine.decoder.cache
    while engine.decoder.busy or any(job.record is None for job in some):
        for job in some:
            if job.arrival == len(log.steps):
                (job.record,) = engine.submit(engine.request(job.prompt, **job.options))
        events = engine.decoder.step()
        for job in some:
            if job.joined is None and job.record is not None and job.record.generated:
                job.joined = len(log.steps)
        log.steps.append(events)
        log.most = max(log.most, len(cache.live))
        assert [row.index for row in cache.live] == list(range(len(cache.live)))
        assert {record.row for record in engine.decoder.running} == set(cache.live)
    return log


@cache
def solo(seed: int) -> list[list[int]]:
    """The texts of `jobs`, each alone, one token a pass."""
    own = engine(1)
    return [own.generate(j.prompt, **j.options | {"drafter": "none"}).tokens for j in jobs(seed, DRAFTERS)]


@pytest.mark.parametrize("rows", [3, 16])
@pytest.mark.parametrize("seed", [0, 1])
def test_every_request_gets_its_solo_text(seed: int, rows: int) -> None:
    some = jobs(seed, DRAFTERS)
    log = served(engine(rows), some)
    assert log.most <= rows
    assert [job.text for job in some] == solo(seed)
    taken = [{event.accepted for event in events if event.tokens} for events in log.steps]
    assert any(len(accepted) > 1 for accepted in taken), "rows of one pass accept different numbers of tokens"


@pytest.mark.parametrize("rows", [2, 16])
def test_the_last_request_to_end_sets_the_number_of_steps(rows: int) -> None:
    some = jobs(2, ["none"])
    steps = len(served(engine(rows), some).steps)
    lengths = [job.options["max_new_tokens"] for job in some]
    joined = [job.joined for job in some if job.joined is not None]
    assert steps == max(join + length for join, length in zip(joined, lengths, strict=True))
    assert steps < sum(lengths)
    if rows > len(some):
        assert joined == [job.arrival for job in some], "none waits for another"


def test_the_last_row_takes_the_place_of_one_that_ends() -> None:
    own = engine(4)
    first, second, third = (
        own.submit(own.request([5 + i, 6], max_new_tokens=length, ignore_eos=True))[0]
        for i, length in enumerate((2, 6, 6))
    )
    own.decoder.step()
    rows = [second.row, third.row]
    assert [row.index for row in rows if row is not None] == [1, 2]
    own.decoder.step()
    assert first.finish_reason == "length"
    assert [row.index for row in rows if row is not None] == [1, 0]
    (fourth,) = own.submit(own.request([9], max_new_tokens=3, ignore_eos=True))
    own.decoder.cancel(second.request.id)
    own.decoder.step()
    assert own.decoder.cache.live == [third.row, fourth.row]
    while own.decoder.busy:
        own.decoder.step()
    for record in (third, fourth):
        options = {"max_new_tokens": record.request.sampling.max_new_tokens, "ignore_eos": True}
        assert own.generate(record.request.prompt, **options).tokens == record.tokens[record.prompt_length :]


def test_a_request_that_is_being_served_is_not_taken_twice() -> None:
    own = engine(2)
    request = own.request([5, 6], max_new_tokens=4, ignore_eos=True, n=3)
    records = own.submit(request)
    for _ in range(2):  # while samples of it wait, and while they run
        with pytest.raises(BadRequest, match=f"request: {request.id} is being served"):
            own.submit(request)
        own.decoder.step()
    while own.decoder.busy:
        own.decoder.step()
    assert [record.finish_reason for record in records] == ["length"] * 3
