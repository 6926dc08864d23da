"""Drafts on a retrieved context: what is read, texts, and the draft's cache."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from paceline import Engine
from paceline.drafters.draft import DraftModel
from paceline.drafters.rapid import Rapid, tfidf
from paceline.errors import BadRequest
from paceline.testing import TabularModel, random_table
from tests.drafters.support import PROMPTS, VOCABULARY, engine_of, generated, llama, results, start
from tests.views.support import tapering

SMALL: dict[str, Any] = {"chunk": 6, "query": 5, "retrieved": 12, "confidence": 0.0}
#: Eight chunks of six; the third holds what the query asks about.
LONG = [*range(1, 13), 40, 41, 42, 43, 44, 45, *range(13, 40), 1, 2, 3, 9, 41, 42, 43, 44]
LENGTHY = [LONG, LONG[5:] + [7] * 9, PROMPTS[0]]


def test_the_chunk_that_the_query_is_about_is_read() -> None:
    short = Rapid(**SMALL, floor=0.3).shortened(LONG)
    assert short == [*LONG[12:18], *LONG[-5:]]
    assert Rapid(**SMALL, floor=-1.0).shortened(LONG)[-11:] == short
    assert len(Rapid(**SMALL, floor=-1.0).shortened(LONG)) == 12 + 5
    # Nothing reaches the floor: the best one stays.
    assert Rapid(**SMALL, floor=1.0).shortened(LONG) == short


def test_chunks_keep_their_order_and_short_prompts_their_whole() -> None:
    prompt = [1, 2, 3, 4, 5, 6] * 4
    for length in range(1, 18):
        assert Rapid(**SMALL).shortened(prompt[:length]) == prompt[:length]
    assert Rapid(**SMALL).shortened(LONG[:17]) == LONG[:17]
    # Of another embedding: the later a chunk, the more it is like the query.
    drafter = Rapid(**SMALL, embed=lambda texts: np.array([[1.0, len(texts) - i] for i in range(len(texts))]))
    last = (len(LONG) - 5 - 1) // 6 * 6
    assert drafter.shortened(LONG) == LONG[last - 6 :]


def test_rare_terms_weigh_more() -> None:
    vectors = tfidf([[1, 2], [1, 3], [1, 2]])
    assert vectors.shape == (3, 5)
    assert (vectors >= 0).all()
    assert vectors[1, 3] > vectors[0, 1] > vectors[0, 0] == 1.0


@pytest.mark.parametrize("knobs", [{}, {"embed": "table", "floor": -1.0}, {"length": 2}])
def test_text_equals_transformers(knobs: dict[str, Any]) -> None:
    engine = engine_of(tapering(), Rapid(**{**SMALL, **knobs}), max_rows=3)
    expected = [generated(tapering(), prompt, 20) for prompt in LENGTHY]
    for _ in range(2):
        assert [result.tokens for result in results(engine, LENGTHY, max_new_tokens=20)] == expected
    assert engine._drafter._cache.live == []


def test_a_prompt_that_is_read_whole_is_drafted_as_by_the_draft_model() -> None:
    engine = engine_of(tapering(), "none", max_rows=3)
    draft = llama(layers=2)
    for options in ({}, {"temperature": 0.9, "verifier": "rejection"}):
        settings: dict[str, Any] = {"max_new_tokens": 15, "ignore_eos": True, **options}
        own = results(engine, PROMPTS, drafter=Rapid(draft, confidence=0.0), **settings)
        plain = results(engine, PROMPTS, drafter=DraftModel(draft, confidence=0.0), **settings)
        assert [r.tokens for r in own] == [r.tokens for r in plain]
        assert [r.stats.accepted_at for r in own] == [r.stats.accepted_at for r in plain]


def test_its_cache_holds_the_short_context_and_the_text() -> None:
    drafter = Rapid(**SMALL)
    engine = engine_of(tapering(), drafter)
    sequence = start(engine, LONG, max_new_tokens=20, ignore_eos=True)
    while sequence.generated < 12:
        engine.decoder.step()
        text = drafter.shortened(LONG) + sequence.tokens[len(LONG) :]
        row, fresh = sequence.drafts.row, engine.model.new_cache(1)
        assert len(text) - 6 <= row.trunk < len(text)
        engine.model.prefill(fresh, fresh.allocate(), text[: row.trunk])
        for ours, theirs in zip(drafter._cache.layers, fresh.layers, strict=True):
            torch.testing.assert_close(
                ours.keys[row.index, :, : row.trunk], theirs.keys[0, :, : row.trunk], rtol=1e-4, atol=1e-5
            )


def test_a_draft_of_a_shorter_context_drafts_for_a_longer_prompt() -> None:
    model = TabularModel(random_table(VOCABULARY, 1), VOCABULARY, context=90)
    draft = TabularModel(random_table(VOCABULARY, 2), VOCABULARY, context=30)
    engine = Engine(model, drafter="none")
    settings: dict[str, Any] = {"max_new_tokens": 25, "temperature": 1.0, "seed": 1}
    plain = engine.generate(LONG, **settings)
    short = engine.generate(LONG, drafter=Rapid(draft, **SMALL), **settings)
    assert short.tokens == plain.tokens
    assert short.stats.drafted > 10
    assert engine.generate(LONG, drafter=DraftModel(draft, confidence=0.0), **settings).stats.drafted == 0


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"chunk": 0}, "chunk=0"),
        ({"query": 0}, "query=0"),
        ({"retrieved": 100}, "retrieved=100.*one chunk of 128"),
        ({"floor": 2.0}, "floor=2.0"),
        ({"embed": "bge"}, "embed='bge'"),
        ({"tree": "sequoia"}, "tree=sequoia"),
        ({"length": 0}, "rapid.length=0"),
    ],
)
def test_knobs_are_checked(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        Rapid(**knobs)


@pytest.mark.parametrize("wrong", [np.zeros(9), np.zeros((3, 4)), np.full((9, 2), np.nan)])
def test_an_embedding_of_another_shape_is_refused(wrong: np.ndarray) -> None:
    with pytest.raises(BadRequest, match=r"rapid\(embed=...\): it gave an array of shape .* for 9 texts"):
        Rapid(**SMALL, embed=lambda texts: wrong).shortened(LONG)


def test_another_vocabulary_is_refused() -> None:
    with pytest.raises(BadRequest, match="has 50 tokens"):
        engine_of(tapering(), Rapid(llama(vocabulary=50)))
