"""Paceline as a contestant."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch import nn

from paceline import registry
from paceline.caches import TrieCache
from paceline.drafters.base import Drafter
from paceline.errors import PacelineError
from paceline.evaluation.samples import Contestant, Job, Prompts, Run
from paceline.evaluation.timing import synchronize
from paceline.models.causal import CausalModel
from paceline.requests import Request, Stats

if TYPE_CHECKING:
    from paceline.api import Engine

SIDE = "paceline"
PLAIN = "none"


class Method(Contestant):
    """A drafter (and verifier) of an engine.

    Args:
        engine: shared by all methods, so that there is one copy of the weights.
        spec: the drafter.
        verifier: judges its drafts.
        policies: arguments of `generate` that set policies.

    Raises:
        BadRequest, Unsupported: the drafter is unknown, or does not work with this model.
    """

    side = SIDE

    def __init__(self, engine: Engine, spec: str, verifier: str = "coupled", policies: dict[str, Any] | None = None):
        self.engine, self.name, self.verifier, self.policies = engine, spec, verifier, policies or {}
        self._new: Drafter = registry.build("drafter", spec)
        engine.explain(drafter=self._new, verifier=verifier)
        self.prepare()

    def prepare(self, fresh: bool = True) -> None:
        """A new drafter knows nothing of earlier prompts: else a prompt measured twice would know its own answer."""
        if fresh:
            # What it learns is copied from a new one; models are shared, for loading them disturbs what follows.
            self.part = copy.deepcopy(self._new, {id(heavy): heavy for heavy in _heavy(self._new)})

    def run(self, prompts: Prompts, job: Job) -> Run:
        requests = [self._request(list(prompt), job) for prompt in prompts]
        decoder, device = self.engine.decoder, self.engine.model.device
        started: set[int] = set()
        total, first, before = 0, 0.0, 0
        began = time.perf_counter()
        sequences = [s for request in requests for s in self.engine.submit(request)]
        while decoder.busy:
            for event in decoder.step():
                if event.error is not None:
                    raise event.error
                total += len(event.tokens)
                started.add(event.request_id)
            if not first and len(started) == len(requests):
                first, before = time.perf_counter() - began, total
        synchronize(device)
        spent = time.perf_counter() - began
        stats = Stats()
        for sequence in sequences:
            stats.add(sequence.stats)
        tokens = [s.tokens[s.prompt_length :] for s in sequences]
        return Run(tokens, spent, first, total - before, stats)

    def _request(self, prompt: list[int], job: Job) -> Request:
        return self.engine.request(
            prompt,
            drafter=self.part,
            verifier=self.verifier,
            max_new_tokens=job.max_new_tokens,
            temperature=job.temperature,
            seed=job.seed,
            ignore_eos=True,
            **self.policies,
        )


def methods(
    engine: Engine, specs: list[str], verifier: str, policies: dict[str, Any]
) -> tuple[list[Method], dict[str, str]]:
    """Plain decoding first, then each drafter that works here; and for the others the reason.

    Args:
        specs: drafters; `"all"` stands for every registered one with its default settings.
    """
    wanted = list(dict.fromkeys([PLAIN, *(name for spec in specs for name in _names(spec))]))
    found, skipped = [], {}
    for spec in wanted:
        try:
            found.append(Method(engine, spec, verifier, policies))
        except PacelineError as error:
            if spec not in _names("all"):
                raise
            skipped[spec] = str(error)
    return found, skipped


def _heavy(part: object) -> Iterator[object]:
    """Models and caches inside a drafter, and inside drafters that it combines."""
    if isinstance(part, CausalModel | TrieCache | nn.Module):
        yield part
    elif isinstance(part, list | tuple):
        for item in part:
            yield from _heavy(item)
    elif isinstance(part, Drafter):
        for item in vars(part).values():
            yield from _heavy(item)


def _names(spec: str) -> list[str]:
    return [m.name for m in registry.methods("drafter")] if spec == "all" else [spec]
