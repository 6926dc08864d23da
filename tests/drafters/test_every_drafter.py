"""What every drafter has to keep, on a model of explicit laws in float64: texts, endings, cache and accounting."""

from __future__ import annotations

import math
import typing
from functools import cache
from typing import Any

import numpy as np
import pytest
from exact.cases import DRAFTERS, TARGET, VOCABULARY

from paceline import Engine, registry
from paceline.errors import BadRequest
from paceline.sequence import Sequence
from paceline.testing import TabularModel
from paceline.testing.running import submit

END, LONGEST = 2, 8


def engine() -> Engine:
    model = TabularModel(TARGET, VOCABULARY, end_tokens=[END], context=40)
    return Engine(model, drafter="none", nodes=6, max_rows=8)


@cache
def requests() -> list[tuple[list[int], dict[str, Any]]]:
    """Sixty random prompts, some greedy and some sampled, whose texts may end early or not."""
    generator = np.random.default_rng(5)
    found = []
    for i in range(60):
        prompt = generator.integers(VOCABULARY, size=generator.integers(1, 20)).tolist()
        most = int(generator.integers(1, LONGEST + 1))
        temperature = float(i % 6 == 0)
        found.append(
            (prompt, {"max_new_tokens": most, "ignore_eos": i % 2 == 1, "temperature": temperature, "seed": i})
        )
    return found


def texts(name: str) -> list[Sequence]:
    """All requests in one decoder of eight rows; after every step the cache holds what was committed."""
    target, drafter = engine(), DRAFTERS[name]()
    sequences = [submit(target, prompt, drafter=drafter, **options)[0] for prompt, options in requests()]
    while target.decoder.busy:
        target.decoder.step()
        keys = target.decoder.cache.layers[0].keys
        for sequence in target.decoder.running:
            assert sequence.row is not None
            assert (sequence.row.trunk, sequence.row.parents) == (len(sequence.tokens) - 1, [])
            assert keys[sequence.row.index, 0, : sequence.row.trunk, 0].tolist() == sequence.tokens[:-1]
    return sequences


@cache
def plain() -> list[list[int]]:
    return [sequence.tokens for sequence in texts("none")]


@pytest.mark.parametrize("name", DRAFTERS)
def test_texts_are_those_of_plain_decoding(name: str) -> None:
    found = texts(name)
    assert [sequence.error for sequence in found] == [None] * len(found)
    assert [sequence.tokens for sequence in found] == plain()
    for sequence, (_, options) in zip(found, requests(), strict=True):
        text, stats = sequence.tokens[sequence.prompt_length :], sequence.stats
        assert len(text) <= options["max_new_tokens"]
        assert END not in text[:-1] or options["ignore_eos"]
        # The last pass may end in a drafted token.
        assert stats.tokens - stats.accepted in (stats.forward_passes - 1, stats.forward_passes)
        assert stats.tokens == len(text)


@pytest.mark.parametrize("name", DRAFTERS)
def test_a_limit_beyond_the_context_fills_the_context(name: str) -> None:
    target = engine()
    [sequence] = submit(target, [0, 1], drafter=DRAFTERS[name](), max_new_tokens=10**12, ignore_eos=True)
    while target.decoder.busy:
        target.decoder.step()
    assert (sequence.error, sequence.finish_reason) == (None, "length")
    assert len(sequence.tokens) == 41  # the last token has no key


KNOBS = [
    (method, name)
    for method in (*registry.methods("drafter"), *registry.methods("view"))
    for name, hint in typing.get_type_hints(method.cls).items()
    if name in registry.fields(method) and float in (hint, *typing.get_args(hint))
]


@pytest.mark.parametrize(("method", "name"), KNOBS, ids=[f"{method.name}-{name}" for method, name in KNOBS])
def test_a_knob_that_is_no_number_is_refused(method: registry.Method, name: str) -> None:
    others = dict.fromkeys(registry.required(method), "x")
    with pytest.raises(BadRequest, match=rf"{name}=nan"):
        registry.construct(method, {**others, name: math.nan})
