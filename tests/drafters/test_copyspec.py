"""CopySpec: the first occurrence, the fallback and its cache, and texts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paceline import Engine
from paceline.drafters.copyspec import Copy, CopySpec, First
from paceline.drafters.draft import DraftModel
from paceline.errors import BadRequest
from paceline.models.loading import load_model
from paceline.testing import TabularModel
from tests.drafters.support import batch, engine_of, llama, start


def copied(tokens: list[int], gamma: int = 3, copy: int = 10, nodes: int = 99, depth: int = 99) -> list[int]:
    drafter = Copy(gamma, copy)
    sequence = SimpleNamespace(tokens=tokens, drafts=None)
    drafter.begin(sequence)  # type: ignore[arg-type]
    return drafter.draft(sequence, nodes, depth).tokens[1:].tolist()  # type: ignore[arg-type]


def searched(text: list[int], n: int) -> int | None:
    found = [p for p in range(n, len(text)) if text[p - n : p] == text[len(text) - n :]]
    return found[0] if found else None


@given(st.lists(st.integers(0, 2), max_size=40), st.integers(1, 6))
def test_the_index_equals_a_search_after_every_token(text: list[int], n: int) -> None:
    index = First(n)
    for end, token in enumerate(text, 1):
        index.extend([token])
        assert index.place() == searched(text[:end], n)


@given(st.lists(st.integers(0, 4), max_size=40), st.integers(1, 4), st.integers(1, 5))
def test_collisions_propose_nothing_or_what_is_right(text: list[int], n: int, modulus: int) -> None:
    index = First(n, modulus)
    for end, token in enumerate(text, 1):
        index.extend([token])
        assert index.place() in (None, searched(text[:end], n))


def test_a_forced_collision() -> None:
    """All grams have one hash: the first of them is found, another one is not taken for it."""
    index = First(2, modulus=1)
    index.extend([1, 2, 3, 4])
    assert index.place() is None
    index.extend([1, 2])
    assert index.place() == 2
    index.extend([3, 4])
    assert index.place() is None


def test_a_token_takes_as_little_whatever_gamma_is() -> None:
    for n in (1, 1000):
        index = First(n)
        index.extend([*range(1500), *range(1500)])
        assert all(type(hashed) is int for hashed in index._first)
        assert len(index._first) <= 3001
        assert index.place() == 1500


def test_the_first_occurrence_is_copied_up_to_the_end_of_the_text() -> None:
    text = [1, 2, 3, 40, 41, 42, 1, 2, 3, 50, 1, 2, 3]
    assert copied(text) == [40, 41, 42, 1, 2, 3, 50, 1, 2, 3]
    assert copied(text, copy=4) == [40, 41, 42, 1]
    assert copied(text, nodes=2) == copied(text, depth=2) == [40, 41]
    assert copied([7, 7, 7, 7]) == [7]
    assert copied([1, 2, 3]) == copied([1, 2], gamma=9) == []


def test_the_fallback_speaks_where_nothing_is_copied() -> None:
    engine = engine_of(llama(), CopySpec(gamma=2, fallback="ngram(min_ngram=1, confidence=0)"))
    record = start(engine, [9, 4, 5, 6, 4], max_new_tokens=9)
    engine.decoder.step()
    assert record.stats.drafted > 0, "one token is enough for the fallback"
    assert CopySpec(fallback="recycling").shape == "tree"
    assert CopySpec().shape == "chain"


def test_the_fallback_catches_up_after_a_copy() -> None:
    """Whatever was copied, its cache is that of a fresh run over the same text."""
    module = llama(layers=1)
    model = load_model(module, fast=False)
    drafter = DraftModel(model, length=2, confidence=0.0, fast=False)
    engine = engine_of(llama(), CopySpec(gamma=2, fallback=drafter))
    record = start(engine, [9, 2, 9, 2, 9, 2, 30], max_new_tokens=60)
    copies = asked = 0
    while engine.decoder.busy:
        engine.decoder.step()
        if record.drafts is None:
            break
        row = drafter._cache.live[0]
        behind = len(record.tokens) - 1 - row.trunk
        copies, asked = copies + (behind > 1), asked + (behind <= 1)
        fresh = model.new_cache(1)
        model.prefill(fresh, fresh.allocate(), record.tokens[: row.trunk])
        for mine, other in zip(drafter._cache.layers, fresh.layers, strict=True):
            kept = mine.keys[row.index, :, : row.trunk], mine.values[row.index, :, : row.trunk]
            torch.testing.assert_close(kept, (other.keys[0, :, : row.trunk], other.values[0, :, : row.trunk]))
    assert copies > 0
    assert asked > 0


def test_later_turns_of_a_conversation_are_faster() -> None:
    """Each turn repeats the first answer with one edit."""
    answer = list(range(10, 40))
    turns = [answer, [*answer[:12], 50, *answer[13:]], [*answer[:20], 51, *answer[21:]]]
    script, rates = [1], []
    for turn in turns:
        script += [2, *turn]

    def table(prefix: tuple[int, ...]) -> torch.Tensor:
        following = script[len(prefix)] if len(prefix) < len(script) else 0
        return torch.nn.functional.one_hot(torch.tensor(following), 60).double().log()

    engine = Engine(TabularModel(table, 60, context=256), drafter="copyspec", nodes=10)
    for i in range(len(turns)):
        history = script[: 2 + 31 * i]
        result = engine.generate([*history], max_new_tokens=30)
        assert result.tokens == turns[i]
        rates.append(result.stats.tokens_per_pass)
    assert rates[0] == 1
    assert min(rates[1:]) > 3


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"gamma": 0}, "gamma=0"),
        ({"gamma": 10**9}, "from 1 to 1000"),
        ({"copy": 0}, "copy=0"),
        ({"fallback": "ngam"}, "ngram"),
    ],
)
def test_knobs_are_checked(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        CopySpec(**knobs)


@pytest.mark.parametrize("spec", ["copyspec", "copyspec(gamma=1, copy=4)", "copyspec(fallback=recycling)"])
def test_text_equals_transformers(spec: str) -> None:
    assert sum(result.stats.accepted for result in batch(spec, 50)) > 20
