"""CopySpec: the first occurrence, the fallback and its cache, and texts."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch

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


def test_the_index_equals_a_search() -> None:
    generator = random.Random(0)
    for _ in range(500):
        n = generator.randint(1, 4)
        text = [generator.randrange(generator.choice([1, 2, 4])) for _ in range(generator.randint(1, 30))]
        index = First(n)
        index.extend(text)
        found = [p for p in range(n, len(text)) if text[p - n : p] == text[len(text) - n :]]
        assert index.place() == (found[0] if found else None)


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
    [({"gamma": 0}, "gamma=0"), ({"copy": 0}, "copy=0"), ({"fallback": "ngam"}, "ngram")],
)
def test_knobs_are_checked(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        CopySpec(**knobs)


@pytest.mark.parametrize("spec", ["copyspec", "copyspec(gamma=1, copy=4)", "copyspec(fallback=recycling)"])
def test_text_equals_transformers(spec: str) -> None:
    assert sum(result.stats.accepted for result in batch(spec, 50)) > 20
