"""Prompt lookup: the index, how far it copies, and texts."""

from __future__ import annotations

import math
import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from paceline import Engine
from paceline.drafters.base import Outcome
from paceline.drafters.ngram import ODDS, PLACES, REACH, Index, NGram
from paceline.errors import BadRequest, Unsupported
from paceline.testing import TabularModel, random_table
from paceline.tree import TokenTree
from tests.drafters.support import PROMPTS, batch, engine_of, greedy, llama


def begun(drafter: NGram, tokens: list[int]) -> Any:
    sequence = SimpleNamespace(tokens=list(tokens), drafts=None)
    drafter.begin(sequence)  # type: ignore[arg-type]
    return sequence


def draft(drafter: NGram, tokens: list[int], nodes: int = 99, depth: int = 99) -> TokenTree:
    return drafter.draft(begun(drafter, tokens), nodes, depth)


def tell(drafter: NGram, sequence: Any, tree: TokenTree, path: list[int], tokens: list[int]) -> None:
    sequence.tokens += tokens
    drafter.commit([Outcome(sequence, tree, torch.empty(0), path, tokens)])


# -- the index ------------------------------------------------------------------------------------------------


def searched(text: list[int], low: int, high: int) -> list[int]:
    for n in range(high, low - 1, -1):
        found = [p for p in range(n, len(text)) if text[p - n : p] == text[len(text) - n :]]
        if found:
            return found[::-1][:PLACES]
    return []


def test_the_index_equals_a_search() -> None:
    generator = random.Random(0)
    for _ in range(1000):
        low = generator.randint(1, 3)
        high = generator.randint(low, 5)
        text = [generator.randrange(generator.choice([1, 2, 4])) for _ in range(generator.randint(1, 30))]
        index = Index(low, high)
        for end, token in enumerate(text, 1):
            index.extend([token])
            assert index.places() == searched(text[:end], low, high)


def test_agreement_counts_equal_tokens_before_a_place() -> None:
    index = Index(1, 2)
    index.extend([7, 1, 2, 3, 9, 1, 2, 3])
    assert index.agreement(4) == 3
    assert index.agreement(3) == 0
    index = Index(1, 1)
    index.extend([5] * (2 * REACH))
    assert index.agreement(2 * REACH - 1) == REACH


def test_a_step_looks_at_a_bounded_number_of_places() -> None:
    index = Index(1, 4)
    index.extend([1, 2] * 5000)
    assert len(index.places()) == PLACES


# -- the draft ------------------------------------------------------------------------------------------------


def test_the_worked_example() -> None:
    tree = draft(NGram(max_ngram=2, length=3, confidence=0), [5, 6, 7, 8, 5, 6])
    assert tree.tokens.tolist() == [6, 7, 8, 5]
    assert tree.is_chain


def test_the_longest_agreement_wins_then_the_latest_place() -> None:
    longest = [1, 2, 3, 10, 9, 2, 3, 11, 1, 2, 3]
    assert draft(NGram(max_ngram=2, length=1), longest).tokens.tolist() == [3, 10]
    latest = [4, 2, 3, 10, 9, 2, 3, 11, 1, 2, 3]
    assert draft(NGram(max_ngram=2, length=1), latest).tokens.tolist() == [3, 11]


def test_a_loop_is_drafted_in_full_length() -> None:
    assert draft(NGram(length=7, confidence=0), [1, 2, 3, 1, 2, 3]).tokens.tolist() == [3, 1, 2, 3, 1, 2, 3, 1]
    assert draft(NGram(length=4, confidence=0), [9, 8, 8]).tokens.tolist() == [8, 8, 8, 8, 8]


@pytest.mark.parametrize("pick", ["agreeing", "earliest"])
def test_a_glance_tells_of_the_longest_n_gram_alone(pick: str) -> None:
    drafter = NGram(max_ngram=3, pick=pick)
    sequence = begun(drafter, [1, 2])
    for text, found in (([1, 2], False), ([1, 2, 3, 4, 1, 2], False), ([1, 2, 3, 4, 1, 2, 3], True)):
        sequence.tokens = text
        assert drafter.glimpse(sequence) == (sequence.drafts.odds(3) if found else 0)
    drafter.draft(sequence, 4, 4)
    before = drafter.glimpse(sequence)
    sequence.drafts.learn(0)
    assert 0 < drafter.glimpse(sequence) < before, "drafts of this text that failed count"


# -- the published choice -------------------------------------------------------------------------------------


def looked_up(text: list[int], low: int, high: int, length: int, latest: bool) -> list[int]:
    """As published: the longest n first, its first (or last) earlier place, the tokens behind it up to the end."""
    for n in range(high, low - 1, -1):
        starts = [i for i in range(len(text) - n) if text[i : i + n] == text[len(text) - n :]]
        for i in starts[::-1] if latest else starts:
            if chain := text[i + n : i + n + length]:
                return chain
    return []


@pytest.mark.parametrize("pick", ["earliest", "latest"])
def test_the_published_choice_equals_a_search(pick: str) -> None:
    generator = random.Random(1)
    for _ in range(1000):
        high, length = generator.randint(1, 5), generator.randint(1, 12)
        low = generator.randint(1, high)
        text = [generator.randrange(generator.choice([2, 4, 9])) for _ in range(generator.randint(1, 40))]
        drafter = NGram(pick=pick, max_ngram=high, min_ngram=low, length=length)
        drafter.attach(TabularModel(random_table(9), 9))
        sequence = begun(drafter, text[: len(text) // 2 + 1])
        sequence.tokens = text
        chain = drafter.draft(sequence, 99, 99)
        assert chain.is_chain
        assert chain.tokens[1:].tolist() == looked_up(text, low, high, length, pick == "latest")


def test_the_published_examples() -> None:
    for pick in ("earliest", "latest", "agreeing"):
        found = draft(NGram(pick=pick, max_ngram=2, length=3, confidence=0), [5, 6, 7, 8, 5, 6])
        assert found.tokens.tolist() == [6, 7, 8, 5]
    text = [1, 2, 30, 9, 1, 2, 40, 8, 1, 2]
    assert draft(NGram(pick="earliest", length=1), text).tokens.tolist() == [2, 30]
    assert draft(NGram(pick="latest", length=1), text).tokens.tolist() == [2, 40]
    sides = draft(NGram(pick="earliest", length=1, candidates=2), text)
    assert sides.tokens.tolist() == [2, 30, 40]


@pytest.mark.parametrize("pick", ["earliest", "latest", "agreeing"])
def test_an_exact_repetition_takes_few_passes_by_any_choice(pick: str) -> None:
    source, length = list(range(1, 31)), 10

    def table(prefix: tuple[int, ...]) -> torch.Tensor:
        return torch.nn.functional.one_hot(torch.tensor(prefix[-len(source)]), 32).double().log()

    engine = Engine(TabularModel(table, 32, context=256), drafter=NGram(pick=pick, max_ngram=3, length=length))
    result = engine.generate(source * 2, max_new_tokens=30)
    assert result.tokens == source
    assert result.stats.forward_passes <= math.ceil(30 / (length + 1)) + 2


def test_nothing_known_drafts_nothing() -> None:
    assert draft(NGram(), [1]).drafted == 0
    assert draft(NGram(), [1, 2, 3]).drafted == 0
    assert draft(NGram(min_ngram=2), [1, 2, 3, 1]).drafted == 0


@pytest.mark.parametrize(("nodes", "depth", "expected"), [(0, 9, 0), (9, 0, 0), (3, 9, 3), (9, 2, 2), (9, 9, 9)])
def test_the_budget_is_kept(nodes: int, depth: int, expected: int) -> None:
    for candidates in (1, 3):
        tree = draft(
            NGram(confidence=0, candidates=candidates), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 1, 2, 3], nodes, depth
        )
        assert tree.drafted == expected


def test_weak_agreement_copies_less() -> None:
    text = list(range(1, 20))
    lengths = [draft(NGram(confidence=0.1), text + text[4 - agreed : 4]).drafted for agreed in (1, 2, 3, 4)]
    assert lengths == sorted(lengths)
    assert lengths[0] < lengths[-1]
    assert draft(NGram(confidence=ODDS[0] + 0.01), [*text, 4]).drafted == 0
    assert draft(NGram(confidence=ODDS[0]), [*text, 4]).drafted == 1
    assert draft(NGram(confidence=0, length=5), [*text, 4]).drafted == 5


def test_what_rides_along_is_drafted_whatever_its_chance() -> None:
    model = TabularModel(random_table(32), 32)
    text = [*range(1, 20), 4]
    for confidence, length in ((1.0, model.spare), (0.0, 16)):
        drafter = NGram(confidence=confidence)
        drafter.attach(model)
        assert draft(drafter, text).drafted == length
    assert draft(NGram(confidence=1.0, free=3), text).drafted == 3
    drafter = NGram(confidence=1.0, candidates=2)
    drafter.attach(model)
    tree = draft(drafter, [1, 2, 3, 9, 1, 2, 4, 8, 1, 2], depth=3)
    assert tree.drafted == model.spare
    assert len(tree.children[0]) == 2


def test_the_odds_follow_this_sequence() -> None:
    text = list(range(1, 20))
    for right in (True, False):
        drafter = NGram(confidence=0.1)
        sequence = begun(drafter, [*text, 4])
        before = sequence.drafts.odds(1)
        tree = drafter.draft(sequence, 9, 9)
        assert tree.drafted
        path = list(range(len(tree))) if right else [0]
        tell(drafter, sequence, tree, path, [int(tree.tokens[i]) for i in path[1:]] + [0])
        assert (sequence.drafts.odds(1) > before) is right
        assert (sequence.drafts.odds(2) == ODDS[1]) is not right, "what was not reached teaches nothing"


def test_candidates_branch_where_earlier_texts_differ() -> None:
    text = [1, 2, 30, 31, 9, 1, 2, 40, 41, 8, 1, 2]
    assert draft(NGram(length=2, confidence=0), text).tokens.tolist() == [2, 40, 41]
    tree = draft(NGram(length=2, confidence=0, candidates=2), text)
    assert tree.tokens.tolist() == [2, 40, 41, 30, 31]
    assert tree.parents.tolist() == [-1, 0, 1, 0, 3]
    twice = [1, 2, 30, 9, 1, 2, 30, 8, 1, 2]
    assert draft(NGram(length=1, confidence=0, candidates=3), twice).tokens.tolist() == [2, 30]


def test_only_the_first_candidate_teaches() -> None:
    drafter = NGram(length=1, confidence=0, candidates=2)
    sequence = begun(drafter, [1, 2, 30, 31, 9, 1, 2, 40, 41, 8, 1, 2])
    tree = drafter.draft(sequence, 9, 9)
    before = sequence.drafts.odds(2)
    tell(drafter, sequence, tree, [0, 2], [30, 5])
    assert sequence.drafts.odds(2) < before


def test_more_candidates_make_it_a_tree() -> None:
    assert NGram().shape == "chain"
    assert NGram(candidates=2).shape == "tree"
    engine = engine_of(llama())
    engine.explain(drafter="ngram", verifier="rejection")
    with pytest.raises(Unsupported):
        engine.explain(drafter="ngram(candidates=2)", verifier="rejection")


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"max_ngram": 0}, "max_ngram=0"),
        ({"max_ngram": 10**9}, "at most 256 is allowed"),
        ({"min_ngram": 0}, "min_ngram=0"),
        ({"length": 0}, "length=0"),
        ({"candidates": 0}, "candidates=0"),
        ({"min_ngram": 5}, "max_ngram=4"),
        ({"free": -1}, "free=-1"),
        ({"confidence": 1.5}, "from 0 to 1"),
        ({"pick": "first"}, "one of 'agreeing', 'earliest', 'latest'"),
    ],
)
def test_knobs_are_checked(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        NGram(**knobs)
    assert NGram(min_ngram=4).max_ngram == 4, "one length alone is allowed"


# -- texts ----------------------------------------------------------------------------------------------------


def test_a_copied_text_takes_few_passes() -> None:
    """A model that repeats the prompt: a pass emits a whole draft and one token."""
    source, length = list(range(1, 21)), 8

    def table(prefix: tuple[int, ...]) -> torch.Tensor:
        return torch.nn.functional.one_hot(torch.tensor(prefix[-len(source)]), 24).double().log()

    engine = Engine(TabularModel(table, 24, context=256), drafter=NGram(length=length), nodes=length)
    result = engine.generate(source * 2, max_new_tokens=100)
    assert result.tokens == source * 5
    assert result.stats.forward_passes <= math.ceil(100 / (length + 1)) + 2


@pytest.mark.parametrize(
    "spec", ["ngram", "ngram(candidates=3)", "ngram(pick=earliest, candidates=2)", "ngram(confidence=0, min_ngram=2)"]
)
def test_text_equals_transformers(spec: str) -> None:
    engine = engine_of(llama())
    for prompt, text in zip(PROMPTS, greedy(50), strict=True):
        assert engine.generate(prompt, max_new_tokens=50, drafter=spec).tokens == text
    assert sum(result.stats.accepted for result in batch(spec, 50, engine)) > 20
