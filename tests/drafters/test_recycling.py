"""Token Recycling: the template, the table, and texts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from paceline.drafters.base import Outcome
from paceline.drafters.recycling import Recycling, Template
from paceline.errors import BadRequest
from paceline.testing import TabularModel, random_table
from paceline.tree import TokenTree
from tests.drafters.support import PROMPTS, VOCABULARY, batch, engine_of, greedy, llama, results


def made(vocabulary: int, rows: dict[int, list[int]], **knobs: Any) -> Recycling:
    drafter = Recycling(**{"nodes": 99} | knobs)
    drafter.attach(TabularModel(random_table(vocabulary), vocabulary))
    for token, successors in rows.items():
        drafter.table[token, : len(successors)] = successors
    return drafter


def draft(drafter: Recycling, root: int, nodes: int = 99, depth: int = 99) -> TokenTree:
    return drafter.propose([SimpleNamespace(tokens=[root])], [(nodes, depth)])[0]  # type: ignore[list-item]


def outcome(drafter: Recycling, tree: TokenTree, logits: torch.Tensor) -> Outcome:
    peeked = drafter.peek(None, tree, logits, logits).flatten().double()  # type: ignore[arg-type]
    return Outcome(None, tree, logits, [0], [1], peeked=peeked)  # type: ignore[arg-type]


# -- the template ---------------------------------------------------------------------------------------------


def test_the_published_tree() -> None:
    template = Template(Recycling()._paths())
    assert np.bincount(template.depths).tolist() == [1, 8, 21, 25, 15, 8, 3]
    assert len(template.order) == 80


def test_the_worked_example() -> None:
    drafter = made(8, {1: [2, 3], 2: [4, 5], 3: [6, 7]}, top=2, template="0 1 00 10")
    tree = draft(drafter, 1)
    assert tree.tokens.tolist() == [1, 2, 3, 4, 6]
    assert tree.parents.tolist() == [-1, 0, 0, 1, 2]


@pytest.mark.parametrize("nodes", [0, 1, 2, 7, 15, 31, 80])
@pytest.mark.parametrize("depth", [0, 1, 3, 9])
def test_a_budget_takes_the_worthiest_nodes(nodes: int, depth: int) -> None:
    drafter = made(8, {token: list(range(8)) for token in range(8)})
    tree = draft(drafter, 3, nodes, depth)
    shallow = sum(count for d, count in enumerate([8, 21, 25, 15, 8, 3], 1) if d <= depth)
    assert tree.drafted == min(nodes, shallow)
    assert tree.depth.max() <= depth
    full = draft(drafter, 3, nodes + 1, depth)
    pairs = [{tuple(t.tokens[t.path(node)]) for node in range(len(t))} for t in (tree, full)]
    assert pairs[0] <= pairs[1], "a larger budget only adds nodes"


def test_its_own_size_is_what_rides_along() -> None:
    rows = {token: list(range(8)) for token in range(8)}
    assert draft(made(8, rows, nodes=None), 3).drafted == TabularModel(random_table(8), 8).spare
    assert draft(made(8, rows, nodes=12), 3).drafted == 12
    with pytest.raises(BadRequest, match="nodes=0"):
        Recycling(nodes=0)


def test_seven_nodes_go_deep_where_the_best_successors_are() -> None:
    drafter = made(8, {token: list(range(8)) for token in range(8)})
    depths = np.bincount(draft(drafter, 3, 7).depth)
    assert len(depths) >= 4
    assert depths[1] >= 2


def test_unknown_tokens_leave_their_place_to_known_ones() -> None:
    drafter = made(8, {})
    assert draft(drafter, 1).drafted == 0
    drafter = made(8, {1: [2, 3], 3: [4, 5]}, top=2)
    assert draft(drafter, 1, nodes=3).tokens.tolist() == [1, 2, 3, 4]
    assert draft(drafter, 2).drafted == 0


def test_a_template_without_branches_is_a_chain() -> None:
    drafter = Recycling(template="0 00 000")
    assert drafter.shape == "chain"
    assert Recycling().shape == "tree"
    module = llama()
    engine = engine_of(module, drafter)
    texts = {
        tuple(engine.generate(PROMPTS[0], max_new_tokens=30, drafter=d, verifier="rejection").tokens)
        for d in ("none", drafter)
    }
    assert len(texts) == 1


# -- the table ------------------------------------------------------------------------------------------------


def test_every_scored_node_rewrites_its_row() -> None:
    drafter = made(6, {}, top=3)
    logits = torch.tensor([[0.0, 5, 4, 3, 2, 1], [9.0, 8, 7, 0, 0, 1]])
    drafter.observe([outcome(drafter, TokenTree.chain(4, [2]), logits)])
    assert drafter.table[4].tolist() == [1, 2, 3]
    assert drafter.table[2].tolist() == [0, 1, 2]
    assert (drafter.table[[0, 1, 3, 5, 6]] == -1).all()


def test_the_last_of_equal_tokens_wins() -> None:
    drafter = made(6, {}, top=1)
    one_hot = torch.eye(6)
    tree = TokenTree(np.array([4, 2, 2, 4]), np.array([-1, 0, 0, 2]))
    drafter.observe(
        [outcome(drafter, tree, one_hot[[0, 1, 2, 3]]), outcome(drafter, TokenTree.chain(2, []), one_hot[[5]])]
    )
    assert drafter.table[4].tolist() == [3]
    assert drafter.table[2].tolist() == [5]


def test_fewer_tokens_than_successors() -> None:
    drafter = made(3, {}, top=5)
    drafter.observe([outcome(drafter, TokenTree.empty(1), torch.tensor([[1.0, 3, 2]]))])
    assert drafter.table[1].tolist() == [1, 2, 0, -1, -1]
    assert draft(drafter, 1).tokens.tolist()[:4] == [1, 1, 2, 0]


def test_the_table_ranks_raw_logits() -> None:
    """A banned token stays in the table, though the policy never lets it be chosen."""
    module = llama()
    engine = engine_of(module)
    best = engine.generate([5], max_new_tokens=1).tokens[0]
    drafter = Recycling()
    banned = engine.generate([5], max_new_tokens=1, drafter=drafter, banned_tokens=(best,)).tokens[0]
    assert banned != best
    assert drafter.table[5, 0] == best


# -- knobs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"top": 0}, "top=0"),
        ({"top": 11}, "from 1 to 10"),
        ({"template": ""}, "at least one"),
        ({"template": "0 x"}, "'x' is no rank path"),
        ({"template": "0 10"}, "lacks its parent '1'"),
        ({"template": "0 3", "top": 3}, "'3' has a rank above"),
    ],
)
def test_knobs_are_checked(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        Recycling(**knobs)


def test_one_vocabulary_a_drafter() -> None:
    drafter = made(8, {})
    drafter.attach(TabularModel(random_table(8), 8))
    with pytest.raises(BadRequest, match="vocabulary of 8, this model's has 9"):
        drafter.attach(TabularModel(random_table(9), 9))


# -- texts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nodes", [1, 7, 80])
def test_text_equals_transformers(nodes: int) -> None:
    engine = engine_of(llama(), nodes=nodes)
    for prompt, text in zip(PROMPTS, greedy(40), strict=True):
        assert engine.generate(prompt, max_new_tokens=40, drafter="recycling").tokens == text
    assert sum(result.stats.accepted for result in batch("recycling", 40, engine)) > 20


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_second_request_never_needs_more_passes(temperature: float) -> None:
    engine = engine_of(llama())
    for prompt in PROMPTS:
        drafter = Recycling()
        settings = {"max_new_tokens": 40, "temperature": temperature, "seed": 3, "drafter": drafter}
        first, second = (engine.generate(prompt, **settings) for _ in range(2))
        assert second.tokens == first.tokens
        assert second.stats.forward_passes <= first.stats.forward_passes


def test_interleaved_requests_share_the_table_and_stay_exact() -> None:
    """Batched with itself and others, a request's text is the text it has alone."""
    engine = engine_of(llama(), "recycling", max_rows=3)
    prompts = [*PROMPTS, PROMPTS[0]]
    for temperature in (0.0, 0.9):
        alone = [engine.generate(p, max_new_tokens=30, drafter="none", temperature=temperature) for p in prompts]
        mixed = results(engine, prompts, max_new_tokens=30, temperature=temperature)
        assert [result.tokens for result in mixed] == [result.tokens for result in alone]
    drafter = engine._drafter
    assert drafter.table.shape == (VOCABULARY + 1, 8)
    assert (drafter.table[-1] == -1).all()
