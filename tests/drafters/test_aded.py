"""ADED: the table, the search, what is drafted, and texts."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from paceline import Engine
from paceline.datastore import Datastore, build
from paceline.datastore.trigrams import successors
from paceline.drafters.aded import ADED, Node, Search, Table
from paceline.drafters.base import Outcome
from paceline.errors import BadRequest
from paceline.testing import TabularModel
from paceline.tree import TokenTree
from tests.drafters.support import batch, engine_of, llama


def begun(drafter: ADED, tokens: list[int]) -> Any:
    sequence: Any = SimpleNamespace(tokens=list(tokens), drafts=None)
    drafter.begin(sequence)
    return sequence


def paths(tree: TokenTree) -> list[list[int]]:
    return [tree.tokens[tree.path(node)[1:]].tolist() for node in range(1, len(tree))]


# -- the table ------------------------------------------------------------------------------------------------


def test_weights_grow_by_steps_up_to_the_cap() -> None:
    table = Table({}, 99, 12)
    table.adapt([1, 2, 3, 1, 2, 3, 1, 2, 4], 0.5, 0.9)
    assert table.after((1, 2)) == {3: 0.9, 4: 0.5}
    assert table.after((2, 3)) == {1: 0.9}
    assert table.after((7, 7)) == {}


def test_pairs_and_successors_are_bounded() -> None:
    table = Table({(5, 6): {7: 2.0}}, 3, 2)
    for token in (10, 11, 12):
        table.adapt([1, 2, token], 0.1 * (token == 10) + 0.1, 3.0)
    assert table.after((1, 2)) == {10: 0.2, 12: 0.1}, "the lightest leaves, but not the newest"
    for pair in ((3, 4), (1, 2), (8, 9)):
        table.adapt([*pair, 0], 0.1, 3.0)
    assert len(table) == 3
    assert table.after((5, 6)) == {}, "the pair that was not seen for longest"
    assert table.after((1, 2)) != {}


def test_new_tokens_are_counted_once_or_the_tail_at_every_step() -> None:
    counted = {}
    for adapt in ("new-tokens", "tail"):
        drafter = ADED(adapt=adapt, step=1.0, cap=99.0, tail=4)
        sequence = begun(drafter, [1, 2, 3, 4, 5])
        for token in (6, 7):
            sequence.tokens.append(token)
            drafter.commit([Outcome(sequence, TokenTree.empty(0), torch.empty(0), [0], [token])])
        counted[adapt] = [drafter._table.after((a, a + 1)).get(a + 2, 0.0) for a in range(1, 6)]
    assert counted == {"new-tokens": [1, 1, 1, 1, 1], "tail": [0, 1, 2, 2, 1]}


def test_a_datastore_fills_the_table(tmp_path: Path) -> None:
    build(tmp_path / "store", [[1, 2, 3], [1, 2, 3], [1, 2, 4], [5, 1, 2], [4, 4]], 8)
    store = Datastore(tmp_path / "store")
    assert successors(store, 9, 9)[1, 2] == pytest.approx({3: 2 / 3, 4: 1 / 3})
    assert successors(store, 1, 1) == {(1, 2): pytest.approx({3: 2 / 3})}
    assert (2, 1) not in successors(store, 9, 9), "no tri-gram crosses documents"
    drafter = ADED(datastore=str(tmp_path / "store"))
    assert paths(drafter.draft(begun(drafter, [6, 1, 2]), 9, 9))[0] == [3]


def test_tri_grams_equal_a_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = np.random.default_rng(0).integers(0, 3, (5, 40)).tolist()
    build(tmp_path / "store", texts, 3)
    monkeypatch.setattr("paceline.datastore.trigrams.CHUNK", 7)
    wanted: dict[tuple[int, int], dict[int, int]] = {}
    for text in texts:
        for a, b, c in zip(text, text[1:], text[2:], strict=False):
            after = wanted.setdefault((a, b), {})
            after[c] = after.get(c, 0) + 1
    found = successors(Datastore(tmp_path / "store"), 99, 99)
    shares = {pair: {c: n / sum(after.values()) for c, n in after.items()} for pair, after in wanted.items()}
    assert found == {pair: pytest.approx(after) for pair, after in shares.items()}


# -- the search -----------------------------------------------------------------------------------------------


def test_a_selection_score_by_hand() -> None:
    child = Node(Node(None, (0, 1), 0.0), (1, 2), weight=0.5)
    child.visits, child.reward = 3, 6.0
    search = Search(Table({}, 9, 9), c1=32.0, c2=8.0, length=4)
    assert search.score(child, visits=16) == pytest.approx(6 / 3 + (32 + math.log(25 / 8)) * 0.5 * 4 / 4)


def test_rounds_are_credited_to_whole_paths() -> None:
    table = Table({(0, 1): {2: 0.5}, (1, 2): {3: 0.25}}, 9, 9)
    root = Search(table, 32.0, 8.0, 4).run((0, 1), 3, seed=0)
    assert (root.visits, root.reward) == (3, pytest.approx(3 * 1.75))
    (child,) = root.children or ()
    (grandchild,) = child.children or ()
    assert (child.visits, grandchild.visits) == (3, 2)
    assert Search(Table({}, 9, 9), 32.0, 8.0, 4).run((0, 1), 5, seed=0).visits == 5


def test_heavier_successors_are_visited_more_and_drafted_first() -> None:
    drafter = ADED(nodes=9)
    drafter._table = Table({(0, 1): {2: 0.1, 3: 2.0, 4: 0.5}, (1, 3): {5: 1.0}, (3, 5): {6: 1.0}}, 99, 12)
    sequence: Any = SimpleNamespace(tokens=[0, 1])
    tree = drafter.draft(sequence, 9, 9)
    assert paths(tree)[:3] == [[3], [3, 5], [3, 5, 6]]
    assert sorted(paths(tree)[3:]) == [[2], [4]]
    assert tree.odds is not None
    assert (tree.odds[tree.parents[1:]] >= tree.odds[1:]).all()
    assert drafter.draft(sequence, 9, 9).tokens.tolist() == tree.tokens.tolist(), "the search is reproducible"


def test_the_most_visited_are_kept_and_extended() -> None:
    drafter = ADED(nodes=99, kept=1, length=1)
    drafter._table = Table({(0, 1): {2: 1.0, 3: 2.0}, (1, 3): {4: 0.5, 5: 1.5}}, 99, 12)
    sequence: Any = SimpleNamespace(tokens=[0, 1])
    tree = drafter.draft(sequence, 99, 9)
    assert paths(tree) == [[3], [3, 5]]
    assert paths(drafter.draft(sequence, 99, 1)) == [[3]]


@pytest.mark.parametrize(("nodes", "depth"), [(0, 5), (5, 0), (1, 1), (3, 9), (40, 2), (99, 99)])
def test_the_budget_is_kept(nodes: int, depth: int) -> None:
    drafter = ADED(nodes=30)
    sequence = begun(drafter, np.random.default_rng(0).integers(0, 3, 90).tolist())
    tree = drafter.draft(sequence, nodes, depth)
    assert tree.drafted <= min(nodes, 30)
    assert tree.depth.max() <= min(depth, 5)
    assert ADED().draft(begun(ADED(), [1]), 9, 9).drafted == 0


# -- texts ----------------------------------------------------------------------------------------------------


def test_repeats_of_a_phrase_are_accepted_more_and_more() -> None:
    phrase = list(range(1, 21))

    def table(prefix: tuple[int, ...]) -> torch.Tensor:
        return torch.nn.functional.one_hot(torch.tensor(len(prefix) % 20 + 1), 24).double().log()

    engine = Engine(TabularModel(table, 24, context=256), drafter=ADED(contexts=30))
    accepted = []
    for _ in range(4):
        result = engine.generate([1, 2], max_new_tokens=18)
        assert result.tokens == phrase[2:]
        accepted.append(result.stats.accepted)
    assert accepted == sorted(accepted)
    assert accepted[-1] > accepted[0] == 0


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"c1": -1.0}, "c1=-1.0"),
        ({"c2": 0.0}, "c2=0.0"),
        ({"iterations": 0}, "iterations=0"),
        ({"nodes": 0}, "nodes=0"),
        ({"tail": 2}, "tail=2"),
        ({"step": 0.0}, "step=0.0"),
        ({"adapt": "never"}, "'new-tokens' or 'tail'"),
        ({"datastore": "/nowhere"}, "/nowhere"),
    ],
)
def test_knobs_are_checked(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        ADED(**knobs)


@pytest.mark.parametrize("spec", ["aded(iterations=40)", "aded(adapt=tail, iterations=20, length=2, nodes=9)"])
def test_text_equals_transformers(spec: str) -> None:
    engine = engine_of(llama())
    for _ in range(2):
        mixed = batch(spec, 50, engine)
    assert sum(result.stats.accepted for result in mixed) > 20
