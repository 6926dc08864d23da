"""Token trees: construction, limits, ancestors and laws against brute force."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paceline.tree import Draws, TokenTree, ancestor_matrix


@st.composite
def trees(draw: st.DrawFn, most: int = 10) -> TokenTree:
    """Any tree, twins among siblings included."""
    drafted = draw(st.integers(0, most))
    parents = [-1, *(draw(st.integers(0, node - 1)) for node in range(1, drafted + 1))]
    tokens = draw(st.lists(st.integers(0, 3), min_size=drafted + 1, max_size=drafted + 1))
    return TokenTree(np.array(tokens), np.array(parents))


def texts(tree: TokenTree) -> list[tuple[int, ...]]:
    """The tokens on the way to each node."""
    return [tuple(tree.tokens[tree.path(node)].tolist()) for node in range(len(tree))]


@given(trees())
def test_depth_children_and_ancestors_follow_from_the_parents(tree: TokenTree) -> None:
    for node in range(len(tree)):
        path = tree.path(node)
        assert path[0] == 0
        assert path[-1] == node
        assert tree.depth[node] == len(path) - 1
        assert set(np.flatnonzero(tree.ancestors[node])) == set(path)
        assert tree.children[node] == [child for child in range(len(tree)) if tree.parents[child] == node]
    assert tree.is_chain == all(len(children) <= 1 for children in tree.children)


@given(trees(), st.integers(0, 12), st.integers(0, 12))
def test_a_limited_tree_is_the_earliest_allowed_part(tree: TokenTree, nodes: int, depth: int) -> None:
    limited = tree.limit(nodes, depth)
    allowed = [node for node in range(len(tree)) if tree.depth[node] <= depth][: nodes + 1]
    assert texts(limited) == [texts(tree)[node] for node in allowed]
    assert limited.drafted <= nodes
    assert limited.depth.max() <= depth
    assert limited.limit(nodes, depth) is limited


@given(trees(), st.integers(0, 12))
def test_laws_stay_with_their_nodes_when_a_tree_is_limited(tree: TokenTree, nodes: int) -> None:
    logq = torch.arange(len(tree)).float()[:, None].expand(-1, 4)
    rows = np.arange(len(tree)) - 1
    rows[1::3] = -1
    limited = TokenTree(tree.tokens, tree.parents, Draws(logq, rows)).limit(nodes, 12)
    assert limited.draws is not None
    assert limited.draws.row.tolist() == rows[: len(limited)].tolist()


@given(st.lists(st.lists(st.integers(0, 2), max_size=4), max_size=5), st.one_of(st.none(), st.integers(0, 6)))
def test_merged_paths_share_prefixes_and_keep_their_order(paths: list[list[int]], limit: int | None) -> None:
    tree = TokenTree.merge(7, paths, limit)
    found = [text[1:] for text in texts(tree)[1:]]
    prefixes = list(dict.fromkeys(tuple(path[: i + 1]) for path in paths for i in range(len(path))))
    assert len(set(found)) == len(found)
    assert set(found) <= set(prefixes)
    if limit is None:
        assert found == prefixes
    else:
        assert tree.drafted == min(limit, len(prefixes))


@given(trees(), st.integers(0, 12))
def test_probes_are_nobodys_children_and_stay_so_when_a_tree_is_limited(tree: TokenTree, nodes: int) -> None:
    probe = np.arange(len(tree)) % 3 == 1
    marked = replace(tree, probe=probe)
    for node in range(len(tree)):
        assert marked.children[node] == [child for child in tree.children[node] if not probe[child]]
        assert not probe[marked.chain_below(node)].any()
    assert (marked.depth == tree.depth).all()
    assert marked.limit(nodes, 12).probe.tolist() == probe[: nodes + 1].tolist()


def test_merged_paths_are_counted() -> None:
    tree = TokenTree.merge(7, [[1, 2], [1, 3], [1, 2], [4], []], limit=3)
    assert tree.tokens.tolist() == [7, 1, 2, 3]
    assert tree.counts.tolist() == [5, 3, 2, 1]


@st.composite
def forests(draw: st.DrawFn) -> list[int]:
    return [draw(st.integers(-1, node - 1)) for node in range(draw(st.integers(1, 8)))]


@given(forests())
def test_ancestors_of_a_forest(parents: list[int]) -> None:
    matrix = ancestor_matrix(parents)
    for node in range(len(parents)):
        above, at = set(), node
        while at >= 0:
            above.add(at)
            at = parents[at]
        assert set(np.flatnonzero(matrix[node])) == above


def test_a_chain_may_carry_the_laws_it_was_drawn_from() -> None:
    logq = torch.randn(2, 4).log_softmax(-1)
    tree = TokenTree.chain(3, [1, 2], logq)
    assert tree.tokens.tolist() == [3, 1, 2]
    assert tree.is_chain
    assert tree.draws is not None
    assert tree.draws.row.tolist() == [-1, 0, 1]
    assert TokenTree.chain(3, [], logq).draws is None
    assert TokenTree.empty(3).drafted == 0


@pytest.mark.parametrize("parents", [[0], [-1, 1], [-1, 0, 2], [-1, -1], [-1, 0, 3, 2], [-1, 0, -2]])
def test_a_parent_that_does_not_come_first_is_refused(parents: list[int]) -> None:
    with pytest.raises(ValueError, match="parents"):
        TokenTree(np.zeros(len(parents), np.int64), np.array(parents))


def test_parents_and_tokens_must_match() -> None:
    with pytest.raises(ValueError, match="2 entries for 1 tokens"):
        TokenTree(np.zeros(1, np.int64), np.array([-1, 0]))
    with pytest.raises(ValueError, match="0 tokens"):
        TokenTree(np.zeros(0, np.int64), np.zeros(0, np.int64))
