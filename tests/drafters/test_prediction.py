"""Predicted outputs and input-guided decoding: the pointer, the way back after a difference, the request field."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from paceline import Engine
from paceline.drafters.aggressive import Aggressive
from paceline.drafters.following import Pointer
from paceline.drafters.prediction import Prediction
from paceline.errors import BadRequest, Unsupported
from paceline.requests import Sampling
from paceline.testing import TabularModel
from tests.drafters.support import PROMPTS, VOCABULARY, engine_of, llama, results

A, B, C, D, X, END, START = 1, 2, 3, 4, 9, 10, 11


def scripted(prompt: list[int], output: list[int], drafter: object, **options: Any) -> Engine:
    """An engine whose target says `output` after `prompt`, whatever is drafted."""
    script = prompt + output

    def table(prefix: tuple[int, ...]) -> torch.Tensor:
        following = script[len(prefix)] if len(prefix) < len(script) else END
        return torch.nn.functional.one_hot(torch.tensor(following), 100).double().log()

    return Engine(TabularModel(table, 100, end_tokens=[END], context=256), drafter=drafter, nodes=20, **options)


def passes(source: list[int], output: list[int], drafter: str = "aggressive(after=11)") -> int:
    prompt = [*source, START] if "before" in drafter else [START, *source]
    engine = scripted(prompt, [*output, END], drafter)
    result = engine.generate(prompt, max_new_tokens=50)
    assert result.tokens == [*output, END]
    return result.stats.forward_passes


# -- the pointer ----------------------------------------------------------------------------------------------


def expected(source: list[int], output: list[int], resume: str, ngram: int = 3) -> list[int]:
    pointer = Pointer(source, ngram, resume)
    pointer.advance(output)
    return pointer.expected(99)


def test_it_moves_along_while_the_output_agrees() -> None:
    for resume in ("unique", "nearest"):
        assert expected([A, B, C, D], [], resume) == [A, B, C, D]
        assert expected([A, B, C, D], [A, B], resume) == [C, D]
        assert expected([A, B], [A, B], resume) == expected([A, B], [A, B, C], resume) == []


def test_after_a_difference_it_waits_for_a_unique_place() -> None:
    assert expected([A, B, C, D], [A, X], "unique") == []
    assert expected([A, B, C, D], [A, X, C], "unique") == [D]
    twice = [A, B, C, D, X, B, C, A]
    assert expected(twice, [A, 7, C], "unique") == [], "C stands twice"
    assert expected(twice, [A, 7, X, B], "unique") == [C, A], "X is unique, and followed"
    assert expected([A, B, 5, C, B, 6], [7, C, B], "unique") == [6]
    assert expected([B, B, B, B], [7, B, B, B], "unique") == [], "several places at every length"


def test_nearest_takes_replacements_one_for_one() -> None:
    assert expected([A, B, C, D], [A, X], "nearest") == [C, D]
    assert expected([A, B, C, D], [A, X, C], "nearest") == [D]
    assert expected([A, B, C, D], [A, X, B], "nearest") == [C, D], "an insertion"
    assert expected([A, B, C, D, 5], [A, D], "nearest") == [5], "a deletion"


def test_nearest_chooses_among_several_places() -> None:
    block = [A, B, C, 20]
    source = list(itertools.chain.from_iterable([*block, i] for i in range(30, 40)))
    output = [*source[:27], X, X, C, 20]
    assert expected(source, output, "nearest")[0] == 35
    far = [A, *range(30, 60), D, 5]
    assert expected(far, [A, X, D], "nearest")[0] != 5, "one token alone does not lead far away"
    assert expected(far, [A, X, D, 5], "nearest") == []


# -- texts ----------------------------------------------------------------------------------------------------


def test_the_worked_example() -> None:
    assert passes([A, B, C, D], [A, X, C, D], "none") == 5
    assert passes([A, B, C, D], [A, X, C, D]) == 3
    assert passes([A, B, C, D], [A, B, C, D]) == 1
    assert passes([A, B, C, D], [A, B, C, D], "aggressive(before=11)") == 1
    assert passes([A, B, C, D], [A, X, C, D], "aggressive(before='11', resume=nearest)") == 2
    assert passes([A, B, C, D], [5, 6, 7]) == 4


def test_markers_choose_the_source() -> None:
    prompt = [50, 51, A, B, C, 52, A]
    engine = scripted(prompt, [A, B, C, END], Aggressive(after="50 51", before=52))
    assert engine.generate(prompt, max_new_tokens=9).stats.drafted == 3
    engine = scripted(prompt, [A, B, C, END], Aggressive(after="51 50", before=60))
    assert engine.generate(prompt, max_new_tokens=20).stats.drafted >= len(prompt), "no markers: the whole prompt"


def test_a_prediction_is_followed_whoever_drafts() -> None:
    prompt, output = [START], [*range(20, 60), END]
    for drafter in ("none", "ngram", "turns", "prediction(fallback=recycling)"):
        spec = "turns(ngram, recycling)" if drafter == "turns" else drafter
        engine = scripted(prompt, output, spec)
        assert engine.generate(prompt, max_new_tokens=60).stats.forward_passes > 20
        told = engine.generate(prompt, max_new_tokens=60, prediction=output[:-1])
        assert told.tokens == output
        assert told.stats.forward_passes <= 3
        wrong = engine.generate(prompt, max_new_tokens=60, prediction=[7] * 30)
        assert wrong.tokens == output


def test_an_edit_costs_a_pass_or_two() -> None:
    source = list(range(20, 70))
    output = [*source[:10], 90, *source[11:30], 91, 92, *source[30:40], *source[42:], END]
    engine = scripted([START], output, "none")
    result = engine.generate([START], max_new_tokens=80, prediction=source)
    assert result.tokens == output
    assert result.stats.forward_passes <= 9


def test_a_string_is_encoded_and_ids_are_checked() -> None:
    engine = Engine.load("pocket-code", drafter="none")
    text = "    return a + b\n\n\ndef sub(a, b):\n    return a - b\n"
    plain = engine.generate("def add(a, b):\n", max_new_tokens=24)
    told = engine.generate("def add(a, b):\n", max_new_tokens=24, prediction=plain.text)
    assert told.tokens == plain.tokens
    assert told.stats.forward_passes < plain.stats.forward_passes / 2
    assert engine.generate("def add(a, b):\n", max_new_tokens=24, prediction=text).tokens == plain.tokens
    for wrong, message in (([5, 99999], "prediction: token id 99999"), ([-1], "-1"), (7, "not a list"), ([0.5], "0.5")):
        with pytest.raises(BadRequest, match=message):
            engine.generate("def", prediction=wrong)
    with pytest.raises(BadRequest, match="prediction: a string needs a tokenizer"):
        engine_of(llama()).generate([1], prediction="text")
    with pytest.raises(Unsupported):
        engine.explain(prediction=text, drafter="recycling", verifier="rejection")


def test_requests_share_what_they_would_have_shared() -> None:
    engine = engine_of(llama(), "recycling")
    one, two = (engine.request([1], prediction=[i]) for i in (2, 3))
    assert one.drafter is two.drafter
    assert one.drafter.members[1] is engine._drafter
    assert engine.request([1]).drafter is engine._drafter
    named = engine.request([1], Sampling(prediction=(4,)), drafter="prediction")
    assert isinstance(named.drafter, Prediction)
    assert named.sampling.prediction == (4,)


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_text_is_that_of_plain_decoding(temperature: float) -> None:
    engine = engine_of(llama())
    settings = {"max_new_tokens": 20, "temperature": temperature, "seed": 3}
    plain = [r.tokens for r in results(engine, PROMPTS, **settings)]
    for drafter in ("ngram", "recycling", "aggressive", "aggressive(resume=nearest, fallback=ngram)"):
        for text in (plain[0], plain[0][::-1], [t for t in plain[1] for _ in range(2)], list(range(VOCABULARY))):
            told = results(engine, PROMPTS, **settings, drafter=drafter, prediction=text)
            assert [r.tokens for r in told] == plain


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Prediction(ngram=0), "ngram=0"),
        (lambda: Prediction(resume="later"), "'unique' or 'nearest'"),
        (lambda: Prediction(confidence=2.0), "from 0 to 1"),
        (lambda: Aggressive(after="x"), "after='x'"),
        (lambda: Aggressive(fallback="ngam"), "ngram"),
    ],
)
def test_knobs_are_checked(make: Any, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        make()
