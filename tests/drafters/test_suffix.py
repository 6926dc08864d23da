"""Suffix decoding: places, the tree that grows from them, what is remembered, and texts."""

from __future__ import annotations

import random
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from paceline.drafters.base import Outcome
from paceline.drafters.suffix import ODDS, ORDERS, OWN, REACH, History, Suffix
from paceline.errors import BadRequest
from paceline.tree import TokenTree
from tests.drafters.support import batch, engine_of, llama

ALL = {"confidence": 0.0, "factor": 99.0}


def begun(drafter: Suffix, tokens: list[int]) -> Any:
    sequence = SimpleNamespace(tokens=list(tokens), drafts=None, remaining=9, generated=0, prompt_length=len(tokens))
    drafter.begin(sequence)  # type: ignore[arg-type]
    return sequence


def draft(drafter: Suffix, tokens: list[int], nodes: int = 99, depth: int = 9) -> TokenTree:
    return drafter.draft(begun(drafter, tokens), nodes, depth)


def tell(drafter: Suffix, sequence: Any, tree: TokenTree, tokens: list[int]) -> None:
    sequence.tokens += tokens
    sequence.generated += len(tokens)
    drafter.commit([Outcome(sequence, tree, torch.empty(0), [0], tokens)])


def ended(drafter: Suffix, prompt: list[int], output: list[int]) -> None:
    sequence = begun(drafter, prompt)
    tell(drafter, sequence, TokenTree.empty(prompt[-1]), output)
    drafter.end(sequence)


def paths(tree: TokenTree) -> list[list[int]]:
    return [tree.tokens[tree.path(node)[1:]].tolist() for node in range(1, len(tree))]


# -- places ---------------------------------------------------------------------------------------------------


def test_places_and_agreement_equal_a_search() -> None:
    generator = random.Random(0)
    for _ in range(300):
        text = [generator.randrange(generator.choice([1, 2, 5])) for _ in range(generator.randint(1, 40))]
        history = History(64)
        history.extend(text)
        found = dict(history.places(text[-REACH:], 99))
        same = {p: next((i for i in range(p) if text[p - 1 - i] != text[-1 - i]), p) for p in range(1, len(text))}
        wanted = {p: min(m, REACH) for p, m in same.items() if m >= 1}
        assert found == wanted


def test_the_longest_and_latest_places_come_first_and_a_few_suffice() -> None:
    history = History(64)
    text = [1, 2, 3, 4, 10, 9, 3, 4, 11, 8, 3, 4, 12, 1, 2, 3, 4]
    history.extend(text)
    assert history.places(text, 3) == [(4, 4), (12, 2), (8, 2)]
    history = History(64)
    history.extend([1, 2] * 500)
    assert len(history.places([1, 2] * 16, 5)) == 5


def test_a_collision_is_no_place() -> None:
    history = History(256)
    history.extend(range(3000))  # more k-grams than slots
    assert history.places([5, 77, 1500], 9) == [(1501, 1)]
    assert history.places([-5, 4000], 9) == []
    assert ORDERS[-1] == 1


# -- the tree -------------------------------------------------------------------------------------------------


def test_the_worked_example() -> None:
    tree = draft(Suffix(**ALL), [1, 2, 3, 1, 2, 4, 1, 2, 3, 9, 1, 2], nodes=4, depth=2)
    assert paths(tree) == [[3], [4], [3, 9], [4, 1]]
    assert tree.odds is not None
    # Three places of agreement 2, the latest first: they weigh 1, 2/3 and 4/9, of which the second says 4.
    assert tree.odds[1] == pytest.approx(ODDS[1] * 13 / 19)
    assert tree.odds[2] == pytest.approx(ODDS[1] * 6 / 19)
    assert tree.odds[3] == pytest.approx(ODDS[1] * 13 / 19 * ODDS[2] * 9 / 13)
    assert tree.odds[4] == pytest.approx(ODDS[1] * 6 / 19 * ODDS[2])


def test_the_likeliest_path_alone_is_a_chain() -> None:
    tree = draft(Suffix(tree=False, **ALL), [1, 2, 3, 1, 2, 4, 1, 2, 3, 9, 1, 2], nodes=3)
    assert tree.is_chain
    assert tree.tokens.tolist() == [2, 3, 9, 1]
    assert (Suffix(tree=False).shape, Suffix().shape) == ("chain", "tree")


def test_longer_agreement_outvotes_several_shorter_ones() -> None:
    text = [5, 6, 7, 1, 20, 1, 30, 1, 30, 5, 6, 7, 1]
    assert draft(Suffix(**ALL), text, nodes=1).tokens[1] == 20


def test_a_loop_is_drafted_in_full() -> None:
    tree = draft(Suffix(tree=False, **ALL), [9, 1, 2, 3, 1, 2, 3], nodes=7)
    assert tree.tokens[1:].tolist() == [1, 2, 3, 1, 2, 3, 1]


def test_nothing_known_drafts_nothing() -> None:
    assert draft(Suffix(), [1]).drafted == 0
    assert draft(Suffix(), [1, 2, 3]).drafted == 0


@pytest.mark.parametrize(("nodes", "depth"), [(0, 5), (5, 0), (1, 1), (3, 9), (9, 2), (40, 40)])
def test_the_budget_is_kept(nodes: int, depth: int) -> None:
    generator = random.Random(1)
    text = [generator.randrange(3) for _ in range(60)]
    tree = draft(Suffix(**ALL), text, nodes, depth)
    assert tree.drafted <= nodes
    assert tree.depth.max() <= depth
    assert tree.drafted == nodes or depth <= 2


def test_depth_follows_agreement() -> None:
    text = list(range(1, 30))
    for agreed in (1, 2, 3, 5):
        ending = text[5 - agreed : 5]
        assert draft(Suffix(confidence=0.0, factor=2.0), [*text, 99, *ending]).drafted == min(2 * agreed, 9)


def test_beyond_what_rides_along_a_node_must_be_likely() -> None:
    text = [*range(1, 20), 99, 4]
    assert draft(Suffix(confidence=1.0, free=3, factor=99), text).drafted == 3
    assert draft(Suffix(confidence=ODDS[0], free=0), text).drafted == 1
    assert draft(Suffix(confidence=ODDS[0] + 0.01, free=0), text).drafted == 0


def test_the_odds_follow_this_sequence() -> None:
    for right in (True, False):
        drafter = Suffix(**ALL)
        sequence = begun(drafter, [*range(1, 20), 99, 4])
        notes = sequence.drafts
        tell(drafter, sequence, drafter.draft(sequence, 9, 9), [5, 6, 50] if right else [50])
        assert (notes.odds(1) > ODDS[0]) is right
        assert (notes.odds(2) > ODDS[1]) is right, "what was not reached teaches nothing"


# -- past outputs ---------------------------------------------------------------------------------------------


def test_a_past_output_is_found_and_the_own_text_counts_more() -> None:
    drafter = Suffix(**ALL)
    ended(drafter, [7, 1, 2], [3, 4, 5])
    assert draft(drafter, [8, 1, 2], depth=3).tokens.tolist() == [2, 3, 4, 5]
    tree = draft(drafter, [1, 2, 9, 1, 2], nodes=2)
    assert tree.tokens.tolist()[:2] == [2, 9]
    assert tree.odds is not None
    assert tree.odds[1] == pytest.approx(ODDS[1] * OWN / (OWN + 1))


def test_outputs_do_not_run_into_each_other_and_prompts_are_left_out() -> None:
    drafter = Suffix(**ALL)
    ended(drafter, list(range(100, 200)), [1, 2])
    ended(drafter, [3], [4])
    assert draft(drafter, [1, 2]).drafted == 0
    assert draft(drafter, [110, 111]).drafted == 0
    assert draft(drafter, [199]).tokens.tolist() == [199, 1, 2]


def test_memory_is_bounded_and_the_oldest_is_forgotten() -> None:
    drafter = Suffix(memory=100, **ALL)
    for i in range(40):
        ended(drafter, [1000 + i], [2000 + i, 3000 + i, *range(8)])
        assert sum(len(history.text) for history in drafter._past) <= 100
    assert draft(drafter, [1000 + 39]).drafted > 0
    assert draft(drafter, [1000]).drafted == 0
    forgetful = Suffix(memory=0)
    ended(forgetful, [1], [2, 3])
    assert forgetful._past == []


def test_a_step_is_quick_at_ten_thousand_tokens() -> None:
    generator = random.Random(2)
    phrases = [[generator.randrange(2000) for _ in range(12)] for _ in range(60)]
    drafter = Suffix()
    drafter.attach(SimpleNamespace(spare=5, context=20_000))  # type: ignore[arg-type]
    sequence = begun(drafter, [token for _ in range(840) for token in generator.choice(phrases)])
    spent = []
    for _ in range(60):
        began = time.perf_counter()
        tree = drafter.draft(sequence, 15, 100)
        tell(drafter, sequence, tree, [*tree.tokens[1:4].tolist(), generator.randrange(2000)])
        spent.append(time.perf_counter() - began)
    assert sorted(spent)[30] < 0.5e-3


# -- knobs and texts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"depth": 0}, "depth=0"),
        ({"free": -1}, "free=-1"),
        ({"memory": -1}, "memory=-1"),
        ({"memory": 10**9}, "at most 100000000"),
        ({"factor": 0.0}, "above 0"),
        ({"confidence": 1.5}, "from 0 to 1"),
    ],
)
def test_knobs_are_checked(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        Suffix(**knobs)


@pytest.mark.parametrize("spec", ["suffix", "suffix(tree=false)", "suffix(confidence=0, factor=99)"])
def test_text_equals_transformers(spec: str) -> None:
    engine = engine_of(llama())
    first, again = (sum(r.stats.forward_passes for r in batch(spec, 50, engine)) for _ in range(2))
    assert again < 0.6 * first
