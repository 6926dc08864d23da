"""Paceline as a contestant."""

from __future__ import annotations

import copy
import time
import types
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from paceline import registry
from paceline.caches import TrieCache
from paceline.drafters.base import Drafter
from paceline.errors import BadRequest, PacelineError
from paceline.evaluation.memory import resident
from paceline.evaluation.samples import Contestant, Job, Prompts, Run
from paceline.evaluation.timing import synchronize
from paceline.models.causal import CausalModel
from paceline.plan import CAPABILITIES, Plan, method_of
from paceline.requests import Request, Stats

if TYPE_CHECKING:
    from paceline.api import Engine

SIDE = "paceline"
PLAIN = "none"
#: What a benchmark's requests do not bring along (see `paceline.plan.CAPABILITIES`).
ABSENT = frozenset({"prediction"})
#: What holds no model.
PLAIN_TYPES = (str, bytes, int, float, type(None), type, types.ModuleType, np.ndarray, torch.Tensor)


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
        before = resident(engine.model.device, collect=False)
        self._new: Drafter = registry.build("drafter", spec)
        engine.explain(drafter=self._new, verifier=verifier)
        self._shared = {id(heavy): heavy for heavy in _heavy(self._new, set())}
        self.held = max(0, resident(engine.model.device, collect=False) - before)
        self.prepare()

    def refusal(self, job: Job) -> str | None:
        try:
            self._plan(job)
        except PacelineError as error:
            return str(error)
        return None

    def about(self, job: Job) -> dict[str, str]:
        """What the drafter is, and what it guarantees together with the verifier."""
        found = method_of(self._new)
        guarantee = self._plan(job).guarantee.value
        return {"guarantee": guarantee, "summary": found.summary, "paper": found.paper, "year": str(found.year)}

    def prepare(self, fresh: bool = True) -> None:
        """A new drafter knows nothing of earlier prompts: else a prompt measured twice would know its own answer."""
        if fresh:
            # What it learns is copied from a new one; models are shared, for loading them disturbs what follows.
            self.part = copy.deepcopy(self._new, dict(self._shared))

    def run(self, prompts: Prompts, job: Job) -> Run:
        lengths = job.lengths(len(prompts))
        requests = [self._request(list(prompt), job, length) for prompt, length in zip(prompts, lengths, strict=True)]
        try:
            return self._run(requests)
        except BaseException:
            for request in requests:
                self.engine.decoder.cancel(request.id)
            raise

    def _run(self, requests: list[Request]) -> Run:
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

    def _plan(self, job: Job) -> Plan:
        options = {"temperature": job.temperature, **self.policies}
        return self.engine.explain(drafter=self.part, verifier=self.verifier, **options)

    def _request(self, prompt: list[int], job: Job, length: int) -> Request:
        return self.engine.request(
            prompt,
            drafter=self.part,
            verifier=self.verifier,
            max_new_tokens=length,
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
        specs: drafters; `"all"` stands for every registered one with its default settings, a spec after a minus sign
            is left out again.
    """
    found, skipped = [], {}
    registered = {m.name: m for m in registry.methods("drafter")}
    for spec in _chosen(specs):
        missing = registered[spec].needs & ABSENT if spec in registered and spec not in specs else ()
        if missing:
            skipped[spec] = f"needs {', '.join(CAPABILITIES[need] for need in missing)}"
            continue
        try:
            found.append(Method(engine, spec, verifier, policies))
        except Exception as error:
            if spec not in registered or spec == PLAIN:
                raise
            skipped[spec] = str(error) if isinstance(error, PacelineError) else f"{type(error).__name__}: {error}"
    return found, skipped


def seeded(verifier: str) -> bool:
    """Whether one seed gives one text under every drafter."""
    return bool(registry.build("verifier", verifier).judges[0] == "shared")


def _chosen(specs: list[str]) -> list[str]:
    wanted = dict.fromkeys([PLAIN, *(name for spec in specs if spec[:1] != "-" for name in _names(spec))])
    without = [spec[1:].strip() for spec in specs if spec[:1] == "-"]
    for spec in without:
        if spec not in wanted or spec == PLAIN:
            chosen = ", ".join(list(wanted)[1:])
            raise BadRequest(f"drafters: {spec!r} cannot be left out of {chosen or 'none; name some, or all'}")
    return [spec for spec in wanted if spec not in without]


def _heavy(part: object, seen: set[int]) -> Iterator[object]:
    """Models, caches and tokenizers inside a drafter: what its copies share."""
    if id(part) in seen or isinstance(part, PLAIN_TYPES):
        return
    seen.add(id(part))
    if isinstance(part, CausalModel | TrieCache | nn.Module | PreTrainedTokenizerBase):
        yield part
        return
    if isinstance(part, list | tuple | set | frozenset):
        inner: list[object] = list(part)
    elif isinstance(part, dict):
        inner = list(part.values())
    else:
        inner = [*getattr(part, "__dict__", {}).values(), getattr(part, "__self__", None)]
    for item in inner:
        yield from _heavy(item, seen)


def _names(spec: str) -> list[str]:
    return [m.name for m in registry.methods("drafter")] if spec == "all" else [spec]
