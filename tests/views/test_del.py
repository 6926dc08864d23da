"""The exit that follows the text: the published values, convergence, and texts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from paceline import Engine
from paceline.drafters.del_exit import Del, Watch, tokens_per_layer
from paceline.errors import BadRequest
from paceline.models.loading import load_model
from tests.drafters.support import PROMPTS, results, start
from tests.views.support import PASSES, engine_of, greedy, tapering


def test_tokens_per_layer_of_the_worked_example() -> None:
    found = tokens_per_layer(np.array([0.8]), np.array([8]), 32, 6)[0]
    np.testing.assert_allclose(found[2:5], [0.05083, 0.05271, 0.05253], atol=5e-6)
    assert found.argmax() == 3
    assert found[0] == pytest.approx(1 / 32)


def test_a_layer_that_is_always_right_and_one_that_never_is() -> None:
    found = tokens_per_layer(np.array([1.0, 0.0]), np.array([4, 4]), 8, 5)
    np.testing.assert_allclose(found[0], np.arange(1, 7) / (np.arange(6) * 4 + 8))
    assert found[1].argmax() == 0


def test_the_whole_model_as_its_own_draft_gains_nothing() -> None:
    """The last layer says greedily what is chosen, so alpha_L = 1; all its lengths are equal, so it is no exit."""
    layers, most = 5, 6
    found = tokens_per_layer(np.array([1.0]), np.array([layers]), layers, most)[0]
    np.testing.assert_allclose(found, 1 / layers)
    drafter = Del(candidates=layers)
    engine = engine_of("module", drafter)
    assert drafter.taps == (1, 2, 3, 4)
    sequence = start(engine, PROMPTS[2], max_new_tokens=12, ignore_eos=True)
    seen: list[bool] = []
    observe = drafter.observe

    def watched(outcomes: Any) -> None:
        for outcome in outcomes:
            said = outcome.logits[outcome.path[: len(outcome.tokens)]].argmax(-1)
            seen.extend((said == torch.tensor(outcome.tokens)).tolist())
        observe(outcomes)

    drafter.observe = watched  # type: ignore[method-assign]
    while sequence.finish_reason is None:
        engine.decoder.step()
    assert seen == [True] * 12


@pytest.mark.parametrize("path", PASSES)
@pytest.mark.parametrize("knobs", [{}, {"threshold": False, "layer": 1, "memory": 1.0}, {"candidates": 2}])
def test_text_equals_transformers(path: str, knobs: dict[str, Any]) -> None:
    engine = engine_of(path, Del(**knobs), max_rows=3)
    assert [result.tokens for result in results(engine, PROMPTS, max_new_tokens=24)] == greedy(24)


def perfect_from(layer: int) -> Any:
    """A model whose layers behind the first `layer` add nothing, while every earlier one adds much."""
    module = tapering()
    with torch.no_grad():
        for number, block in enumerate(module.model.layers):
            for matrix in (block.self_attn.o_proj, block.mlp.down_proj):
                matrix.weight *= 0.0 if number >= layer else 2.0 ** (number + 1)
    return module


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_it_finds_the_layer_from_which_on_all_agree(layer: int) -> None:
    drafter = Del(layer=4, length=4)
    engine = Engine(load_model(perfect_from(layer), fast=False), drafter=drafter)
    sequence = start(engine, PROMPTS[2], max_new_tokens=40, ignore_eos=True)
    for _ in range(5):
        engine.decoder.step()
    watch: Watch = sequence.drafts
    assert drafter.taps[watch.layer] == layer
    assert watch.most == 4
    np.testing.assert_allclose(watch.matches[layer - 1 :] / watch.seen, 1.0)
    assert (watch.matches[: layer - 1] < watch.seen).all()


def test_matches_are_counted_against_what_was_chosen() -> None:
    """Against each layer's own exit, prefix by prefix."""
    drafter = Del(memory=1.0, threshold=False)
    engine = engine_of("fused", drafter)
    sequence = start(engine, PROMPTS[2], max_new_tokens=20, ignore_eos=True)
    while sequence.generated < 14:
        engine.decoder.step()
    plain = load_model(tapering(), fast=False)
    ids = torch.tensor([sequence.tokens])
    states = plain.module(ids, output_hidden_states=True).hidden_states
    text = torch.tensor(sequence.tokens[sequence.prompt_length :])
    at = slice(sequence.prompt_length - 1, len(sequence.tokens) - 1)
    expected = [int((plain.read_out(states[tap][0, at]).argmax(-1) == text).sum()) for tap in drafter.taps]
    assert sequence.drafts.seen == sequence.generated
    assert sequence.drafts.matches.tolist() == expected


def test_the_threshold_lies_between_accepted_and_refused() -> None:
    watch = Watch(np.zeros(2), 0, 3)
    assert watch.least == 0
    watch.sure = np.array([[0.6, 2.0], [2.7, 3.0]])
    assert watch.least == pytest.approx((0.3 + 0.9) / 2)


def test_a_draft_is_at_most_as_long_as_asked_and_as_the_context() -> None:
    for length, most in ((3, 3), (192, 192), (None, 5)):
        drafter = Del(length=length)
        engine = engine_of("module", drafter)
        sequence = start(engine, PROMPTS[0], max_new_tokens=20, ignore_eos=True)
        engine.decoder.step()
        drafter._count(sequence.drafts, np.full(len(drafter.taps), 10**6), 10**6)
        assert sequence.drafts.most == most


def test_it_stops_drafting_where_nothing_helps() -> None:
    drafter = Del(layer=1, length=4)
    engine = engine_of("module", drafter)
    sequence = start(engine, PROMPTS[0], max_new_tokens=20, ignore_eos=True)
    engine.decoder.step()
    drafter._count(sequence.drafts, np.zeros(len(drafter.taps)), 1000)
    drafted = sequence.stats.drafted
    engine.decoder.step()
    assert sequence.stats.drafted == drafted


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Del(memory=1.5), "memory=1.5"),
        (lambda: Del(candidates=0), "candidates=0"),
        (lambda: Del(length=0), "del.length=0"),
        (lambda: engine_of("module", Del(layer=5)), "del.layer=5.*1 to 4 can draft"),
        (lambda: engine_of("module", Del(length=10**9)), "del.length=1000000000.*192 tokens"),
    ],
)
def test_knobs_are_checked(make: Any, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        make()
