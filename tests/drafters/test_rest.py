"""REST: the trie of what was found, its budget, whose tokens it may hold, and texts."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from paceline.datastore import build, fingerprint
from paceline.drafters.base import Outcome
from paceline.drafters.rest import ODDS, Prefixes, Rest
from paceline.errors import BadRequest
from paceline.tree import TokenTree
from tests.drafters.support import PROMPTS, VOCABULARY, batch, engine_of, greedy, llama

END = 9


def store(folder: Path, texts: list[list[int]], vocabulary: int = VOCABULARY, **options: Any) -> str:
    build(folder / "store", texts, vocabulary, force=True, **options)
    return str(folder / "store")


def draft(drafter: Rest, tokens: list[int], nodes: int = 99, depth: int = 99) -> TokenTree:
    sequence: Any = SimpleNamespace(tokens=tokens, drafts=None)
    drafter.begin(sequence)
    return drafter.draft(sequence, nodes, depth)


def paths(tree: TokenTree) -> list[list[int]]:
    return [tree.tokens[tree.path(node)[1:]].tolist() for node in range(1, len(tree))]


# -- the trie -------------------------------------------------------------------------------------------------


def test_prefixes_are_counted() -> None:
    rows = np.array([[1, 2, 3], [1, 2, END], [1, 4, 3], [5, END, END], [END, END, END]])
    trie = Prefixes.of(rows, END, 99)
    assert trie.tokens.tolist() == [1, 5, 2, 4, 3, 3]
    assert trie.parents.tolist() == [0, 0, 1, 1, 3, 4]
    assert trie.counts.tolist() == [3, 1, 2, 1, 1, 1]
    assert trie.depths.tolist() == [1, 1, 2, 2, 3, 3]
    assert len(Prefixes.of(rows[4:], END, 99).tokens) == 0


def test_the_commonest_prefixes_equal_a_count() -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        rows = generator.integers(0, 3, (generator.integers(1, 40), 4))
        rows[np.logical_or.accumulate(generator.random(rows.shape) < 0.1, axis=1)] = END
        lists = [row[: row.index(END)] if END in row else row for row in rows.tolist()]
        prefixes = [tuple(row[:n]) for row in lists for n in range(1, len(row) + 1)]
        wanted = sorted((prefixes.count(p) for p in set(prefixes)), reverse=True)
        for most in (1, 3, 200):
            trie = Prefixes.of(rows, END, most)
            assert sorted(trie.counts.tolist(), reverse=True)[:most] == wanted[:most]


def test_the_worked_example(tmp_path: Path) -> None:
    """The longest known ending wins, and the commonest of what follows it comes first."""
    texts = [[1, 2, 3, 4], [1, 2, 3, 5], [1, 2, 3, 4, 6], [2, 3, 7], [2, 3, 7], [2, 3, 7]]
    drafter = Rest(store(tmp_path, texts), confidence=0.0)
    assert paths(draft(drafter, [1, 2, 3])) == [[4], [5], [4, 6]]
    assert paths(draft(drafter, [9, 2, 3])) == [[7], [4], [5], [4, 6]]
    tree = draft(drafter, [9, 2, 3])
    assert tree.odds is not None
    assert tree.odds[:3] == pytest.approx([1, ODDS[1] * 3 / 6, ODDS[1] * 2 / 6])
    assert draft(drafter, [8, 8]).drafted == draft(drafter, [3]).drafted == 0
    assert paths(draft(Rest(store(tmp_path, texts), shortest=1, confidence=0.0), [9, 6])) == []


@pytest.mark.parametrize("nodes", [0, 1, 2, 7, 30, 99])
@pytest.mark.parametrize("depth", [0, 1, 3, 20])
def test_the_budget_is_kept_and_parents_are_in_the_tree(tmp_path: Path, nodes: int, depth: int) -> None:
    generator = np.random.default_rng(0)
    drafter = Rest(store(tmp_path, generator.integers(0, 4, (20, 60)).tolist()), nodes=40, confidence=0.0)
    tree = draft(drafter, [0, 1], nodes, depth)
    assert tree.drafted <= min(nodes, 40)
    assert tree.depth.max() <= min(depth, 10)
    assert tree.drafted == min(nodes, 40) or depth < 3
    if tree.drafted:
        smaller = draft(drafter, [0, 1], nodes - 1, depth)
        assert {*map(tuple, paths(smaller))} <= {*map(tuple, paths(tree))}


def test_beyond_what_rides_along_a_node_must_be_likely(tmp_path: Path) -> None:
    folder = store(tmp_path, [[1, 2, i] for i in range(3, 9)])
    assert draft(Rest(folder, free=2, confidence=1.0), [1, 2]).drafted == 2
    assert draft(Rest(folder, free=0, confidence=ODDS[1] / 6), [1, 2]).drafted == 6
    assert draft(Rest(folder, free=0, confidence=ODDS[1] / 5), [1, 2]).drafted == 0


def test_the_odds_follow_this_sequence(tmp_path: Path) -> None:
    drafter = Rest(store(tmp_path, [[1, 2, 3]]))
    for following, better in ((3, True), (4, False)):
        sequence: Any = SimpleNamespace(tokens=[1, 2], drafts=None)
        drafter.begin(sequence)
        tree = drafter.draft(sequence, 5, 5)
        drafter.commit([Outcome(sequence, tree, torch.empty(0), [0], [following])])
        assert (sequence.drafts.odds(2) > ODDS[1]) is better


# -- whose tokens ---------------------------------------------------------------------------------------------


class Words:
    """A tokenizer as far as fingerprints go."""

    def __init__(self, first: str) -> None:
        self.first = first

    def get_vocab(self) -> dict[str, int]:
        return {self.first + str(i): i for i in range(VOCABULARY)}


def test_another_tokenizers_datastore_is_refused(tmp_path: Path) -> None:
    folder = store(tmp_path, [[1, 2, 3]], fingerprint=fingerprint(Words("a")), model="theirs")
    target: Any = SimpleNamespace(tokenizer=Words("a"), vocab_size=VOCABULARY, name="target", spare=5)
    Rest(folder).attach(target)
    target.tokenizer = Words("b")
    with pytest.raises(BadRequest, match=r"another tokenizer \(theirs"):
        Rest(folder).attach(target)
    target.tokenizer, target.module, target.vocab_size = None, None, 3
    with pytest.raises(BadRequest, match="ids up to 47, target has 3"):
        Rest(folder).attach(target)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"nodes": 0}, "nodes=0"),
        ({"shortest": 0}, "shortest=0"),
        ({"longest": 17}, "1 to 16"),
        ({"longest": 2, "shortest": 3}, "longest=2"),
        ({"hits": 0}, "hits=0"),
        ({"length": 49}, "1 to 48"),
        ({"confidence": 2.0}, "from 0 to 1"),
        ({"datastore": "/nowhere"}, "/nowhere"),
    ],
)
def test_knobs_are_checked(tmp_path: Path, knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        Rest(**{"datastore": store(tmp_path, [[1]])} | knobs)


# -- texts ----------------------------------------------------------------------------------------------------


def test_text_equals_transformers_and_more_of_the_text_never_hurts(tmp_path: Path) -> None:
    engine = engine_of(llama())
    noise = [np.random.default_rng(i).integers(0, VOCABULARY, 50).tolist() for i in range(20)]
    whole = [prompt + text for prompt, text in zip(PROMPTS, greedy(50), strict=True)]
    passes = []
    for texts in (noise, [*noise, *whole[:2]], [*noise, *whole]):
        spec = f"rest({store(tmp_path, texts)!r}, shortest=1, confidence=0)"
        engine._parts.clear()
        passes.append(sum(result.stats.forward_passes for result in batch(spec, 50, engine)))
    assert all(more <= fewer for fewer, more in itertools.pairwise(passes))
    assert passes[-1] < 0.5 * passes[0]
