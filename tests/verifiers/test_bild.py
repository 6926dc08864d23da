"""BiLD: rollbacks, and the large model's own text at threshold 0."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from drafters.support import PROMPTS, engine_of, generated, llama

from paceline.drafters.draft import DraftModel
from paceline.errors import BadRequest, Unsupported
from paceline.models.causal import CausalModel
from paceline.tree import TokenTree
from paceline.verifiers.bild import BiLD

LOGP = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.8, 0.1, 0.1], [0.1, 0.1, 0.8]]).log()


def test_the_first_distant_token_is_replaced() -> None:
    tree = TokenTree.chain(0, [1, 1, 2])
    assert BiLD(1.5).verify_greedy(tree, LOGP).path == [0, 1, 2]
    assert BiLD(1.5).verify_greedy(tree, LOGP).bonus == 0
    assert BiLD(1.0).verify_greedy(tree, LOGP).path == [0]
    assert BiLD(math.inf).verify_greedy(tree, LOGP) == BiLD(3.0).verify_greedy(tree, LOGP)
    assert BiLD(3.0).verify_greedy(tree, LOGP).path == [0, 1, 2, 3]


def test_a_distant_token_that_is_the_best_does_not_end_the_search() -> None:
    tree = TokenTree.chain(0, [0, 1, 2])
    assert BiLD(0.0).verify_greedy(tree, LOGP).path == [0, 1, 2]


def test_what_the_policy_rules_out_is_never_kept() -> None:
    logp = torch.tensor([[0.5, 0.5, 0.0]]).log().expand(2, -1)
    assert BiLD(math.inf).verify_greedy(TokenTree.chain(0, [2]), logp).path == [0]


def test_texts_run_from_the_large_models_to_the_small_ones() -> None:
    large, small = llama(0), llama(5)
    engine = engine_of(large)
    draft = DraftModel(CausalModel(small), length=4, confidence=0.0)
    passes = []
    for rollback in (0.0, 2.0, 4.0, 1e9):
        results = [engine.generate(p, drafter=draft, verifier=BiLD(rollback), max_new_tokens=20) for p in PROMPTS]
        passes.append(sum(result.stats.forward_passes for result in results))
        if rollback == 0:
            assert [result.tokens for result in results] == [generated(large, p, 20) for p in PROMPTS]
    assert passes == sorted(passes, reverse=True)
    assert passes[-1] < passes[0]


def test_equal_models_never_roll_back() -> None:
    engine = engine_of(llama(0))
    draft = DraftModel(CausalModel(llama(0)), length=4, confidence=0.0)
    stats = engine.generate(PROMPTS[0], drafter=draft, verifier=BiLD(0.0), max_new_tokens=20).stats
    assert stats.accepted == stats.drafted


def test_sampling_is_refused_before_any_model_runs() -> None:
    engine = engine_of(llama(0))
    with pytest.raises(Unsupported, match="'bild' judges greedy decoding only"):
        engine.generate(PROMPTS[0], verifier="bild", temperature=0.8)


@pytest.mark.parametrize("rollback", [-1.0, math.nan])
def test_bad_thresholds_are_named(rollback: Any) -> None:
    with pytest.raises(BadRequest, match="rollback="):
        BiLD(rollback)
