"""Skipping sub-blocks: any set is lossless, and the search finds better ones."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from paceline.drafters.contexts import Contexts
from paceline.drafters.swift import EVERY, WIDTHS, Found, Search, Swift
from paceline.errors import BadRequest, Unsupported
from paceline.models.views import Skip
from paceline.tree import TokenTree
from tests.drafters.support import PROMPTS, results, start
from tests.views.support import LAYERS, PASSES, engine_of, greedy, tapering


def kept(drafter: Swift) -> list[Found]:
    """What is known of each context, the one used last at the end."""
    return [context.found for context in drafter._contexts._kept]


def fixed(drafter: Swift, skipped: Skip) -> None:
    """Every text drafts with this set."""
    drafter.view = lambda sequence: skipped  # type: ignore[method-assign]


@pytest.mark.parametrize("path", PASSES)
def test_text_is_kept_under_any_set(path: str) -> None:
    generator = np.random.default_rng(3)
    drafter = Swift(confidence=0.0, length=4, tries=0)
    engine = engine_of(path, drafter, max_rows=3)
    for _ in range(2):
        attention, mlp = (frozenset(np.flatnonzero(generator.random(LAYERS) < 0.4).tolist()) for _ in range(2))
        fixed(drafter, Skip(attention, mlp))
        assert [result.tokens for result in results(engine, PROMPTS, max_new_tokens=16)] == greedy(16)


@pytest.mark.parametrize("path", PASSES)
def test_text_is_kept_while_sets_change(path: str) -> None:
    drafter = Swift(window=4, confidence=0.1, max_score=1.0)
    engine = engine_of(path, drafter, max_rows=3)
    found = results(engine, PROMPTS, max_new_tokens=24)
    assert [result.tokens for result in found] == greedy(24)
    assert len(kept(drafter)) > 1
    assert sum(found.search.tried for found in kept(drafter)) > 10
    assert 0 < sum(r.stats.accepted for r in found) < sum(r.stats.drafted for r in found)


# -- siblings -------------------------------------------------------------------------------------------------


def drafted(drafter: Swift, verifier: str = "coupled", **options: Any) -> tuple[TokenTree, TokenTree]:
    """The chain and the tree that stand for the same text; the whole model drafts, so that odds are the target's."""
    trees = []
    for siblings in (False, True):
        drafter = replace(drafter, siblings=siblings)
        engine = engine_of("module", drafter, verifier=verifier, nodes=40)
        fixed(drafter, Skip())
        sequence = start(engine, PROMPTS[2], max_new_tokens=40, ignore_eos=True, **options)
        engine.decoder.step()
        engine.decoder.step()
        with torch.inference_mode():
            trees.append(drafter.propose([sequence], [(40, 40)])[0])
    return trees[0], trees[1]


@pytest.mark.parametrize(
    ("verifier", "options", "column"),
    [
        ("coupled", {}, 1),
        ("coupled", {"temperature": 0.7, "seed": 1}, 2),
        ("recursive", {"temperature": 0.7, "seed": 1}, 2),
    ],
)
def test_every_depth_has_its_candidates(verifier: str, options: dict[str, Any], column: int) -> None:
    chain, tree = drafted(Swift(length=4, confidence=0.0, tries=0), verifier, **options)
    assert chain.is_chain
    spine = [0, *tree.chain_below(0)]
    assert len(spine) == 5
    if verifier == "coupled":
        assert tree.tokens[spine].tolist() == chain.tokens.tolist()
    for above, node in pairwise(spine):
        sure = tree.odds[node] / tree.odds[above]
        assert len(tree.children[above]) == next(row[column] for row in WIDTHS if sure > row[0])
        assert len({*tree.tokens[tree.children[above]].tolist()}) == len(tree.children[above])
    assert (tree.draws is None) == (verifier == "coupled")


def test_the_chain_comes_first_then_what_promises_most() -> None:
    _, whole = drafted(Swift(length=4, confidence=0.0, tries=0))
    spine = whole.chain_below(0)
    assert spine == [1, 2, 3, 4]
    odds = whole.odds[5:].tolist()
    assert odds == sorted(odds, reverse=True)


@pytest.mark.parametrize("path", PASSES)
def test_text_with_siblings_is_kept(path: str) -> None:
    engine = engine_of(path, Swift(window=4, confidence=0.3, siblings=True), max_rows=3, nodes=9)
    found = results(engine, PROMPTS, max_new_tokens=24)
    assert [result.tokens for result in found] == greedy(24)
    chain = results(engine, PROMPTS, max_new_tokens=24, drafter=Swift(window=4, confidence=0.3))
    assert sum(r.stats.forward_passes for r in found) < sum(r.stats.forward_passes for r in chain)
    options: dict[str, Any] = {"max_new_tokens": 20, "temperature": 0.8, "seed": 3, "repetition_penalty": 1.2}
    plain = [result.tokens for result in results(engine, PROMPTS, drafter="none", **options)]
    assert [result.tokens for result in results(engine, PROMPTS, **options)] == plain


def test_siblings_make_it_a_tree() -> None:
    assert (Swift().shape, Swift(siblings=True).shape) == ("chain", "tree")
    engine = engine_of("module", "none")
    with pytest.raises(Unsupported, match="judges a chain, but drafter 'swift' as configured drafts a tree"):
        engine.explain(drafter="swift(siblings=true)", verifier="rejection")


# -- the search -----------------------------------------------------------------------------------------------


def test_nothing_skipped_agrees_with_greedy_text() -> None:
    drafter = Swift(window=6, tries=0)
    engine = engine_of("fused", drafter)
    sequence = start(engine, PROMPTS[2], max_new_tokens=20, ignore_eos=True)
    while sequence.generated < 8:
        engine.decoder.step()
    before = [layer.keys.clone() for layer in engine.decoder.cache.layers]
    assert drafter.agreement(sequence, Skip()) == 1.0
    everything = frozenset(range(LAYERS))
    assert drafter.agreement(sequence, Skip(everything, frozenset(range(1, LAYERS)))) < 1.0
    assert drafter.agreement(sequence, Skip()) == 1.0
    for layer, keys in zip(engine.decoder.cache.layers, before, strict=True):
        np.testing.assert_array_equal(layer.keys, keys)


def test_the_set_outlives_a_request_and_its_bench_does_not() -> None:
    drafter = Swift(window=4, max_score=1.0)
    engine = engine_of("module", "none")
    engine.generate(PROMPTS[0], max_new_tokens=20, ignore_eos=True, drafter=drafter)
    (found,) = kept(drafter)
    tried, best = found.search.tried, found.search.score
    assert tried > 0
    assert found.bench is None
    engine.generate(PROMPTS[0], max_new_tokens=20, ignore_eos=True, drafter=drafter)
    assert kept(drafter) == [found]
    assert found.search.tried > tried
    assert found.search.score >= best


def test_the_search_is_paid_for_in_drafting_time(monkeypatch: pytest.MonkeyPatch) -> None:
    drafter = Swift(window=4, max_score=1.0)

    def slow(sequence: object, view: Skip) -> float:
        time.sleep(0.02)
        return 0.5

    monkeypatch.setattr(drafter, "agreement", slow)
    stats = engine_of("fused", drafter).generate(PROMPTS[2], max_new_tokens=12, ignore_eos=True).stats
    assert stats.draft >= 0.02 * kept(drafter)[0].search.tried > 0


@pytest.mark.parametrize(("layers", "ratio", "count"), [(4, 0.45, 1), (5, 0.5, 3), (32, 0.45, 27), (12, 0.99, 19)])
def test_sets_have_exactly_so_many_skips_and_keep_both_ends(layers: int, ratio: float, count: int) -> None:
    search = Search(layers, ratio, 2.5)
    first = search.view(search.propose())
    assert first == Skip(frozenset(range(1, layers - 1, 2)), frozenset(range(1, layers - 1, 2)))
    search.report(search.best, 0.1)
    for i in range(60):
        skipped = search.propose()
        view = search.view(skipped)
        assert len(view.attention) + len(view.mlp) == skipped.sum() == count
        assert not {0, layers - 1} & (view.attention | view.mlp)
        before = search.score
        search.report(skipped, 0.3 + 0.01 * (i % 7))
        assert search.score >= before


def test_the_process_prefers_what_scored_well() -> None:
    """Scores fall by a fixed amount for each of some sub-blocks that are skipped."""
    search = Search(12, 0.4, 0.0)
    costs = np.where(np.arange(20) % 3 == 0, 0.1, 0.01)
    search.report(search.propose(), 0.3)
    chosen = {}
    while search.tried < 4 * EVERY:
        turn = search.tried % EVERY == 0
        skipped = search.propose()
        search.report(skipped, 1 - float(costs[skipped].sum()))
        chosen[search.tried] = (turn, search._scores[-1])
    random = [score for turn, score in chosen.values() if not turn]
    assert np.mean([score for turn, score in chosen.values() if turn]) > np.quantile(random, 0.8)
    mean, deviation = search.posterior(np.stack(search._sets[:5]))
    np.testing.assert_allclose(mean, search._scores[:5], atol=0.05)
    assert (deviation < 0.2 * np.std(search._scores)).all()


@pytest.mark.parametrize(
    ("knobs", "report", "ends"),
    [
        ({"max_score": 0.5}, [0.4, 0.6], 2),
        ({"patience": 3}, [0.4, 0.6, 0.6, 0.1, 0.2, 0.9], 5),
        ({"tries": 4, "max_score": 1.0}, [0.1] * 9, 4),
    ],
)
def test_when_the_search_ends(knobs: dict[str, Any], report: list[float], ends: int) -> None:
    drafter = Swift(**knobs)
    search, tried = Search(LAYERS, 0.45, 2.5), 0
    for score in report:
        if drafter.searching(search):
            search.report(search.propose(), score)
            tried += 1
    assert tried == ends


# -- contexts -------------------------------------------------------------------------------------------------

ONE, OTHER = [[5, 6, 7, 8, 5, 6], [5, 6, 7, 8, 8, 9]], [[30, 31, 32, 33, 30], [30, 31, 34, 33]]


def test_two_kinds_of_text_keep_their_own_sets_and_a_third_finds_that_of_its_kind() -> None:
    drafter = Swift(window=4, max_score=1.0)
    engine = engine_of("fused", drafter, max_rows=2)
    results(engine, [ONE[0], OTHER[0]], max_new_tokens=16, ignore_eos=True)
    one, other = kept(drafter)
    tried = one.search.tried, other.search.tried
    assert abs(tried[0] - tried[1]) <= 1 < min(tried), "they take turns"
    engine.generate(ONE[1], max_new_tokens=16, ignore_eos=True)
    assert kept(drafter) == [other, one]
    assert one.search.tried > tried[0]
    assert other.search.tried == tried[1]


def test_texts_of_two_kinds_draft_side_by_side_each_with_its_own_set() -> None:
    drafter = Swift(confidence=0.0, length=3, tries=0)
    engine = engine_of("fused", drafter, max_rows=2)
    sequences = [start(engine, prompt, max_new_tokens=20, ignore_eos=True) for prompt in (ONE[0], OTHER[0])]
    engine.decoder.step()
    everything = frozenset(range(1, LAYERS - 1))
    own = [Skip(), Skip(everything, everything)]
    for sequence, skipped in zip(sequences, own, strict=True):
        sequence.drafts.skipped = skipped
    seen, score = [], drafter._model.score

    def watched(cache: object, rows: list[Any], trees: object, **options: Any) -> Any:
        seen.extend((row.index, options["view"]) for row in rows)
        return score(cache, rows, trees, **options)

    drafter._model.score = watched  # type: ignore[method-assign]
    with torch.inference_mode():
        trees = drafter.propose(sequences, [(9, 9)] * 2)
    drafter._model.score = score  # type: ignore[method-assign]
    assert set(seen) == {(s.row.index, skipped) for s, skipped in zip(sequences, own, strict=True)}
    assert [tree.drafted for tree in trees] == [3, 3]


def test_a_new_context_starts_from_the_set_of_the_one_most_like_it() -> None:
    drafter = Swift(likeness=1.0)
    engine = engine_of("module", drafter)
    better = np.array([False, False, False, True, False, True])
    for prompt in (ONE[0], OTHER[0]):
        start(engine, prompt, max_new_tokens=2)
        engine.decoder.step()
    one, other = kept(drafter)
    one.search.report(better, 0.9)
    start(engine, ONE[1], max_new_tokens=2)
    engine.decoder.step()
    third = kept(drafter)[-1]
    assert third.search.best.tolist() == better.tolist() != other.search.best.tolist()
    assert third.skipped == third.search.view(better)
    assert third.search.score == -1, "it is not known to be good there"


def test_contexts_are_bounded_and_the_one_unused_for_longest_goes() -> None:
    made = []
    contexts: Contexts[int] = Contexts(50, 2, 0.5, lambda nearest: made.append(nearest) or len(made))
    texts = ([1, 2, 3], [10, 11], [1, 2, 4], [20], [1, 2], [10, 11])
    assert [contexts.of(text) for text in texts] == [1, 2, 1, 3, 1, 4]
    assert len(contexts) == 2
    assert made[0] is None


def test_likeness_zero_is_one_set_for_all_and_one_a_set_a_text() -> None:
    for likeness, count in ((0.0, 1), (1.0, 4)):
        contexts: Contexts[object] = Contexts(50, 9, likeness, lambda nearest: object())
        assert len({id(contexts.of(text)) for text in ([1, 2], [10], [1, 2, 3], [20, 1])}) == count


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"skip": 0.0}, "skip=0.0"),
        ({"skip": 1.0}, "between 0 and 1"),
        ({"window": 0}, "window=0"),
        ({"tries": -1}, "tries=-1"),
        ({"patience": 0}, "patience=0"),
        ({"kappa": -1.0}, "kappa=-1.0"),
        ({"max_score": np.nan}, "max_score=nan"),
        ({"contexts": 0}, "contexts=0"),
        ({"likeness": 1.5}, "likeness=1.5"),
        ({"confidence": 2.0}, "confidence=2.0"),
        ({"length": 0}, "length=0"),
    ],
)
def test_knobs_are_checked(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        Swift(**knobs)


def test_a_model_of_three_layers_is_refused() -> None:
    from paceline import Engine

    with pytest.raises(Unsupported, match="has 3 layers, at least 4"):
        Engine.load(tapering(layers=3), drafter="swift", fast=False)
