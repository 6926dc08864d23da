"""Lookahead decoding: the pool, the window as a tree, harvesting, and texts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from paceline.drafters.base import Outcome
from paceline.drafters.lookahead import Lookahead, Pool
from paceline.errors import BadRequest
from paceline.models.loading import load_model
from paceline.tree import TokenTree
from tests.drafters.support import PROMPTS, VOCABULARY, batch, engine_of, greedy, llama


def begun(drafter: Lookahead, tokens: list[int], ends: tuple[int, ...] = ()) -> Any:
    sequence = SimpleNamespace(tokens=list(tokens), drafts=None, end_tokens=frozenset(ends))
    drafter.begin(sequence)  # type: ignore[arg-type]
    return sequence


def draft(drafter: Lookahead, sequence: Any, nodes: int = 99, depth: int = 99) -> TokenTree:
    return drafter.propose([sequence], [(nodes, depth)])[0]


def tell(drafter: Lookahead, sequence: Any, tree: TokenTree, best: list[int], tokens: list[int]) -> None:
    scores = torch.nn.functional.one_hot(torch.tensor(best), 100).float()
    peeked = drafter.peek(sequence, tree, scores, scores)
    sequence.tokens += tokens
    known = torch.empty(0) if peeked is None else peeked
    outcome = Outcome(sequence, tree, scores, [0], tokens, scores, peeked=known.double())
    drafter.observe([outcome])
    drafter.commit([outcome])


# -- the pool -------------------------------------------------------------------------------------------------


def test_the_pool_keeps_the_last_used() -> None:
    pool = Pool(2)
    for ngram in ([1, 2, 3], [1, 4, 5], [1, 2, 3], [1, 6, 7], [2, 0, 0]):
        pool.add(ngram)
    assert pool.after(1) == [(6, 7), (2, 3)]
    assert pool.after(9) == []
    empty = Pool(0)
    empty.add([1, 2])
    assert empty.after(1) == []


# -- the window -----------------------------------------------------------------------------------------------


def test_the_window_is_the_tree_of_the_paper() -> None:
    """Position of a cell: column + row. It sees the text, row 0 up to its column, and its own column upwards."""
    drafter = Lookahead(window=3, ngram=4, guesses=0, nodes=99)
    sequence = begun(drafter, [5])
    sequence.drafts.grid = np.array([[0, 11, 12], [20, 21, 22], [30, 31, 32]])
    tree = draft(drafter, sequence)
    node = {int(token): i for i, token in enumerate(tree.tokens)}
    for row in range(3):
        for column in range(3):
            token = 5 if row == column == 0 else (row + 1) * 10 + column
            seen = [5, *(11 + i for i in range(column)), *(r * 10 + 10 + column for r in range(1, row + 1))]
            assert tree.tokens[tree.path(node[token])].tolist() == seen
            assert tree.depth[node[token]] == row + column
    assert sequence.drafts.last == [node[30], node[31], node[32]]


def test_a_hand_filled_window_is_harvested() -> None:
    drafter = Lookahead(window=3, ngram=3, guesses=4, pool_from_prompt=False, nodes=99)
    sequence = begun(drafter, [5])
    state = sequence.drafts
    state.grid, state.age = np.array([[0, 11, 12], [20, 21, 22]]), 1
    tree = draft(drafter, sequence)
    best = [0] * len(tree)
    for node, token in zip(state.last, (30, 31, 32), strict=True):
        best[node] = token
    tell(drafter, sequence, tree, best, [40])
    assert {first: state.pool.after(first) for first in (5, 11, 12)} == {5: [(20, 30)], 11: [(21, 31)], 12: [(22, 32)]}
    assert state.grid[0, 1:].tolist() == [21, 22]
    assert state.grid[1].tolist() == [30, 31, 32]
    sequence.tokens.append(11)
    assert draft(drafter, sequence).tokens[:3].tolist() == [11, 21, 31]


def test_nothing_is_harvested_before_all_rows_are_iterates() -> None:
    drafter = Lookahead(window=2, ngram=4, guesses=4, pool_from_prompt=False, nodes=99)
    sequence = begun(drafter, [5, 6, 7])
    for step in range(3):
        tree = draft(drafter, sequence)
        tell(drafter, sequence, tree, [50 + step] * len(tree), [40 + step])
        assert bool(sequence.drafts.pool._known) == (step == 2)


def test_an_end_token_in_the_window_is_replaced() -> None:
    drafter = Lookahead(window=4, ngram=3, guesses=1, nodes=99)
    sequence = begun(drafter, [5, 6, 7], ends=(9,))
    tree = draft(drafter, sequence)
    tell(drafter, sequence, tree, [9] * len(tree), [8])
    assert set(sequence.drafts.grid[1].tolist()) <= {5, 6, 7, 8}


def test_ngrams_of_the_prompt_and_of_the_text_are_candidates() -> None:
    drafter = Lookahead(ngram=3, nodes=99)
    sequence = begun(drafter, [1, 2, 3, 4, 1])
    assert sequence.drafts.pool.after(1) == [(2, 3)]
    tree = draft(drafter, sequence)
    assert tree.tokens[:3].tolist() == [1, 2, 3]
    tell(drafter, sequence, tree, [0] * len(tree), [6, 7, 8])
    assert sequence.drafts.pool.after(1)[0] == (6, 7)
    assert sequence.drafts.pool.after(6) == [(7, 8)]


@pytest.mark.parametrize("nodes", [0, 1, 3, 8, 15, 40])
@pytest.mark.parametrize("depth", [0, 1, 2, 5, 30])
def test_a_budget_is_kept_and_shared(nodes: int, depth: int) -> None:
    drafter = Lookahead(window=4, ngram=4, guesses=3, nodes=99)
    sequence = begun(drafter, [1, 2, 3, 4, 1, 5, 6, 7, 1, 8, 9, 10, 1])
    tree = draft(drafter, sequence, nodes, depth)
    assert tree.drafted <= nodes
    assert tree.depth.max() <= depth
    if nodes >= 8 and depth >= 5:
        assert sequence.drafts.last, "the window moves on"
        assert tree.tokens[1:4].tolist() == [8, 9, 10]
    tell(drafter, sequence, tree, [0] * len(tree), [3])


def test_its_own_size_is_three_times_what_rides_along() -> None:
    model = load_model(llama(), fast=False)
    for nodes, most in ((None, 3 * model.spare), (6, 6)):
        drafter = Lookahead(nodes=nodes)
        drafter.attach(model)
        sequence = begun(drafter, [1, 2, 3, 4, 1, 5, 6, 7, 1])
        assert most - 4 <= draft(drafter, sequence).drafted <= most


def test_a_step_that_another_drafter_led_leaves_the_window_alone() -> None:
    drafter = Lookahead(window=2, ngram=3, nodes=99)
    sequence = begun(drafter, [1, 2, 3])
    draft(drafter, sequence)
    before = sequence.drafts.grid.copy()
    tell(drafter, sequence, TokenTree.chain(3, [4]), [5, 6], [7])
    assert (sequence.drafts.grid == before).all()


def test_candidates_and_root_do_not_see_the_window() -> None:
    model = load_model(llama(), fast=False)
    drafter, logits = Lookahead(window=4, ngram=3, guesses=2, nodes=99), []
    for seed in range(2):
        sequence = begun(drafter, [1, 2, 3, 4, 1])
        sequence.drafts.grid = np.random.default_rng(seed).integers(10, VOCABULARY, size=(2, 4))
        tree = draft(drafter, sequence)
        cache = model.new_cache(1)
        row = cache.allocate()
        model.prefill(cache, row, sequence.tokens[:-1])
        logits.append(model.score(cache, [row], [tree]).logits[:3])
    torch.testing.assert_close(*logits)


# -- the window as probes -------------------------------------------------------------------------------------


def test_cells_that_are_probes_are_no_part_of_a_candidate() -> None:
    drafter = Lookahead(window=3, ngram=3, guesses=2, nodes=99, accept_window=False)
    sequence = begun(drafter, [1, 2, 3, 4, 1])
    sequence.drafts.grid = np.array([[0, 2, 9], [2, 8, 7]])  # row 0 begins like the n-gram from the text
    tree = draft(drafter, sequence)
    assert tree.probe is not None
    reached = [node for node in range(1, len(tree)) if not tree.probe[tree.path(node)].any()]
    assert tree.tokens[reached].tolist() == [2, 3]
    assert tree.children == [[1], [2], *[[] for _ in range(len(tree) - 2)]]
    assert tree.tokens[sequence.drafts.last].tolist() == [2, 8, 7]
    assert [tree.tokens[tree.path(node)].tolist() for node in sequence.drafts.last] == [[1, 2], [1, 2, 8], [1, 2, 9, 7]]
    assert tree.probe[sequence.drafts.last].all(), "a cell that a candidate has too is scored on its own"
    cut = tree.limit(4, 9)
    assert cut.probe.tolist() == tree.probe[:5].tolist()


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_without_guesses_a_step_emits_one_token(temperature: float) -> None:
    """Whatever the window says; otherwise a cell that is right is accepted."""
    engine = engine_of(llama(), nodes=60)
    options: dict[str, Any] = {"max_new_tokens": 60, "ignore_eos": True, "temperature": temperature, "seed": 2}
    texts, passes = [engine.generate(PROMPTS[0], drafter="none", **options).tokens], []
    for accept in (False, True):
        drafter = Lookahead(window=5, ngram=4, guesses=0, nodes=60, accept_window=accept)
        found = engine.generate(PROMPTS[0], drafter=drafter, **options)
        assert found.stats.drafted > 100, "the window is scored"
        texts.append(found.tokens)
        passes.append(found.stats.forward_passes)
    assert texts[0] == texts[1] == texts[2]
    assert passes[0] == 60 > passes[1]


def test_guesses_are_accepted_beside_probes() -> None:
    engine = engine_of(llama(), nodes=60)
    found = engine.generate(
        PROMPTS[0], max_new_tokens=40, drafter="lookahead(window=3, ngram=4, accept_window=false, nodes=60)"
    )
    assert found.tokens == greedy(40)[0]
    assert found.stats.accepted > 0


# -- knobs and texts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "knobs", [{"window": 0}, {"window": 10**9}, {"ngram": 2}, {"ngram": 10**9}, {"guesses": -1}, {"nodes": 0}]
)
def test_knobs_are_checked(knobs: dict[str, int]) -> None:
    (name, value), *_ = knobs.items()
    with pytest.raises(BadRequest, match=rf"lookahead\({name}={value}\): an integer (of at least|from) "):
        Lookahead(**knobs)


@pytest.mark.parametrize("nodes", [2, 15, 60])
def test_text_equals_transformers(nodes: int) -> None:
    engine = engine_of(llama(), nodes=nodes)
    for spec in ("lookahead(nodes=60)", "lookahead(window=2, ngram=3, guesses=0)"):
        batch(spec, 40, engine)
    assert engine.generate(PROMPTS[0], max_new_tokens=40, drafter="lookahead").tokens == greedy(40)[0]


def test_it_saves_passes_where_the_text_repeats_itself() -> None:
    engine = engine_of(llama(), Lookahead(window=4, ngram=4, pool_from_prompt=False, nodes=40), nodes=40)
    result = engine.generate(PROMPTS[0], max_new_tokens=120, ignore_eos=True)
    assert result.stats.forward_passes < 80
