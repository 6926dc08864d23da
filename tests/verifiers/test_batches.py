"""Every verifier in a batch of three requests that have nothing in common but the model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from drafters.support import PROMPTS, engine_of, llama, start

from paceline import registry
from paceline.drafters.draft import DraftModel
from paceline.testing.methods import VERIFIERS
from paceline.testing.running import finish

TARGET, NEAR = llama(seed=0, layers=2), llama(seed=0, layers=2)
with torch.no_grad():
    NEAR.lm_head.weight += 0.03 * torch.randn(NEAR.lm_head.weight.shape, generator=torch.Generator().manual_seed(1))
#: Each request's own policy, seed and length.
POLICIES: list[dict[str, Any]] = [
    {"temperature": 0.9, "top_p": 0.9, "seed": 1, "max_new_tokens": 17},
    {"temperature": 1.2, "repetition_penalty": 1.3, "banned_tokens": [4, 5], "seed": 2, "max_new_tokens": 12},
    {"temperature": 0.6, "top_k": 6, "no_repeat_ngram_size": 2, "seed": 3, "max_new_tokens": 21, "logprobs": 1},
]


@pytest.fixture(scope="module")
def engine() -> Any:
    return engine_of(TARGET, max_rows=3, nodes=7)


@pytest.mark.parametrize("spec", VERIFIERS)
def test_a_batch_gives_each_request_what_it_gets_alone(engine: Any, spec: str) -> None:
    """One is drafted for and one is not, under the same verifier; the third has a drafter and a verifier of its own."""
    verifier = registry.build("verifier", spec)
    tree = "rsd_c('2 2 1')" if "tree" in verifier.shapes else None
    draft = DraftModel(NEAR, tree=tree, **({} if tree else {"length": 4, "confidence": 0.0}), fast=False)
    other = spec if "fixed" in verifier.judges else "coupled"
    parts = [(draft, spec), ("none", other), ("ngram(length=3)", "coupled")]
    requests = [
        {"drafter": drafter, "verifier": judge, "ignore_eos": True, **policy}
        for (drafter, judge), policy in zip(parts, POLICIES, strict=True)
    ]
    if "sampled" not in verifier.choices:
        requests = [request | ({"temperature": 0.0} if request["verifier"] == spec else {}) for request in requests]
    alone = [engine.generate(prompt, **options) for prompt, options in zip(PROMPTS, requests, strict=False)]
    records = [start(engine, prompt, **options) for prompt, options in zip(PROMPTS, requests, strict=False)]
    finish(engine)
    together = [engine.result(record) for record in records]
    assert [result.tokens for result in together] == [result.tokens for result in alone]
    assert [len(result.tokens) for result in together] == [policy["max_new_tokens"] for policy in POLICIES]
    assert [result.stats.accepted for result in together] == [result.stats.accepted for result in alone]
    assert together[1].stats.drafted == 0
    assert together[0].stats.drafted > 0
    assert engine.decoder.cache.live == []
