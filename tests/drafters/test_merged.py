"""Two drafters in one tree: every draw keeps its entry and its law, and the output keeps the policy's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from exact.cases import DRAFT, POLICIES, PROMPT, VOCABULARY
from exact.cases import engine_of as tabular

from paceline import registry
from paceline.drafters.draft import DraftModel
from paceline.drafters.merged import Merged, side_by_side
from paceline.errors import BadRequest
from paceline.testing import TabularModel, autoregressive, decoded, distance, random_table
from paceline.tree import Draws, TokenTree
from tests.drafters.support import PROMPTS, engine_of, llama, results

OTHER = random_table(VOCABULARY, seed=9)


def draft(table: Any, **knobs: Any) -> DraftModel:
    return DraftModel(TabularModel(table, VOCABULARY, name="draft"), **{"length": 1, "confidence": 0.0, **knobs})


def drawn(tokens: list[int], parents: list[int]) -> TokenTree:
    rows = np.arange(-1, len(tokens) - 1)
    return TokenTree(np.array(tokens), np.array(parents), Draws(torch.rand(len(tokens) - 1, 5), rows))


def test_drawn_twins_stay_two_entries_with_laws_of_their_own() -> None:
    first, second = drawn([0, 1, 2], [-1, 0, 1]), drawn([0, 1, 3, 4], [-1, 0, 1, 0])
    joined = side_by_side(first, second)
    assert joined.tokens.tolist() == [0, 1, 2, 1, 3, 4]
    assert joined.parents.tolist() == [-1, 0, 1, 0, 3, 0]
    assert joined.draws is not None
    assert first.draws is not None
    assert second.draws is not None
    assert joined.draws.row.tolist() == [-1, 0, 1, 2, 3, 4]
    assert torch.equal(joined.draws.logq, torch.cat([first.draws.logq, second.draws.logq]))
    copies = side_by_side(first, TokenTree.merge(0, [[1, 2, 4]]))
    assert copies.tokens.tolist() == [0, 1, 2, 4]
    assert copies.draws is not None
    assert copies.draws.row.tolist() == [-1, 0, 1, -1]
    after = side_by_side(TokenTree.chain(0, [1]), second)
    assert after.draws is not None
    assert after.draws.row.tolist() == [-1, -1, 0, 1, 2]


@pytest.mark.parametrize("verifier", ["specinfer", "recursive", "coupled"])
@pytest.mark.parametrize("second", ["model", "copies", "tree"])
def test_the_law_is_kept(second: str, verifier: str) -> None:
    engine, sampled = tabular(), POLICIES["none"]()
    length = 2 if second == "tree" else 3

    def make() -> Merged:
        others: dict[str, Any] = {
            "model": lambda: draft(OTHER),
            "copies": lambda: "ngram",
            "tree": lambda: draft(OTHER, length=None, confidence=None, tree="rsd_c(2)", budget=2),
        }
        return Merged(draft(DRAFT), others[second]())

    result = decoded(engine, PROMPT, length, make, registry.build("verifier", verifier), sampled)
    assert distance(result.law, autoregressive(engine.model, sampled, PROMPT, length)) < 1e-10
    assert result.accepted > 0.4


def test_two_models_draw_independently() -> None:
    """Of the same law: 1 - sum of (1 - ...) as for two siblings of one model, not as for one drawn twice."""
    p, q = (torch.tensor(row, dtype=torch.float64).log() for row in ([0.5, 0.3, 0.2], [0.2, 0.5, 0.3]))
    engine = tabular(lambda prefix: p)
    make = lambda: Merged(draft(lambda prefix: q), draft(lambda prefix: q))  # noqa: E731
    result = decoded(engine, PROMPT, 2, make, registry.build("verifier", "specinfer"), POLICIES["none"]())
    assert result.accepted == pytest.approx(0.76)


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.9, "seed": 4}])
def test_text_is_unchanged_and_both_are_of_use(settings: dict[str, Any]) -> None:
    target = llama(seed=0, layers=2)
    options = {"max_new_tokens": 24, "ignore_eos": True, **settings}
    plain = results(engine_of(target), PROMPTS, **options)
    drafter = Merged(DraftModel(llama(seed=5, layers=1), tree="rsd_s(width=2)", budget=4), "ngram(candidates=2)")
    found = results(engine_of(target, drafter, nodes=10), PROMPTS, **options)
    assert [r.tokens for r in found] == [r.tokens for r in plain]
    assert sum(r.stats.accepted for r in found) > 0
    assert drafter.members[0]._cache.live == []  # type: ignore[attr-defined]


def test_mistakes_are_named() -> None:
    with pytest.raises(BadRequest, match=r"merged\(second=early_exit"):
        Merged("ngram", "early_exit")
    one = draft(DRAFT)
    with pytest.raises(BadRequest, match="one drafter"):
        Merged(one, one)
