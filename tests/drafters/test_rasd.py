"""A draft model's tree fused with retrieved continuations: what is kept, in which order, and that the law stays."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from exact.cases import DRAFT, PROMPT, VOCABULARY, engine_of

from paceline import Engine, registry
from paceline.drafters.base import Drafter, SequenceDrafter
from paceline.drafters.draft import DraftModel
from paceline.drafters.ngram import NGram
from paceline.drafters.rasd import RASD, fuse, prune
from paceline.errors import BadRequest
from paceline.policies.base import Pipeline
from paceline.registry import Guarantee, method
from paceline.sequence import Sequence
from paceline.testing import TabularModel, autoregressive, decoded, distance
from paceline.tree import Draws, TokenTree
from tests.drafters.support import PROMPTS, llama, results
from tests.drafters.support import engine_of as engine_with

SAMPLED = Pipeline((), greedy=False)


@dataclass(eq=False)
class Copier(SequenceDrafter):
    """Always the same paths."""

    paths: tuple[tuple[int, ...], ...] = ((1, 2),)
    shape: str = "tree"

    def draft(self, sequence: Sequence, nodes: int, depth: int) -> TokenTree:
        return TokenTree.merge(sequence.tokens[-1], [path[:depth] for path in self.paths], nodes)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    registry.load()
    monkeypatch.setattr(registry, "_methods", dict(registry._methods))
    entry: dict[str, Any] = {"guarantee": Guarantee.LOSSLESS, "summary": "For tests.", "paper": "none", "year": 2026}
    method(name="copier", kind="drafter", **entry)(Copier)


def tree_of(paths: Seq[Seq[int]], drawn: bool = False) -> TokenTree:
    tree = TokenTree.merge(0, paths)
    if drawn:
        row = np.arange(-1, tree.drafted)
        tree = replace(tree, draws=Draws(torch.zeros(tree.drafted, 10), row))
    return tree


def paths(tree: TokenTree) -> set[tuple[int, ...]]:
    return {tuple(int(tree.tokens[n]) for n in tree.path(node)[1:]) for node in range(1, len(tree))}


# -- pruning and fusion ---------------------------------------------------------------------------------------


def test_the_fused_tree_is_the_union_of_both() -> None:
    own, copies = tree_of([[1, 2], [3]], drawn=True), tree_of([[1, 2, 4, 5], [1, 6], [7]])
    fused = fuse(own, copies, prune(copies, None, 8), 99)
    assert paths(fused) == paths(own) | paths(copies)
    assert len(paths(fused)) == fused.drafted
    assert fused.tokens[: len(own)].tolist() == own.tokens.tolist()
    assert fused.parents[: len(own)].tolist() == own.parents.tolist()
    assert fused.draws is not None
    assert fused.draws.row.tolist() == [-1, 0, 1, 2, -1, -1, -1, -1]


def test_a_budget_bounds_the_new_nodes_and_keeps_them_connected() -> None:
    own, copies = tree_of([[1, 2]]), tree_of([[1, 2, 4, 5], [7, 8]])
    for most in range(5):
        fused = fuse(own, copies, prune(copies, None, 8), most)
        assert fused.drafted == 2 + min(most, 4)
    assert paths(fuse(own, copies, prune(copies, None, 8), 2)) == {(1,), (1, 2), (1, 2, 4), (1, 2, 4, 5)}


def test_unlikely_branches_are_pruned_and_likely_ones_with_many_continuations_come_first() -> None:
    copies = tree_of([[1, 4], [2, 4], [2, 5], [3, 6]])
    law = torch.tensor([0.02, 0.5, 0.4, 0.08]).log()
    order = prune(copies, law, 2)
    assert [int(copies.tokens[node]) for node in order] == [2, 4, 5, 1, 4]


def test_a_continuation_found_five_times_counts_five_times() -> None:
    often, seldom = [[1, 4]], [[2, 4], [2, 5], [2, 6]]
    law = torch.tensor([0.02, 0.4, 0.5, 0.08]).log()
    for times, first in ((1, 2), (3, 2), (5, 1)):
        order = prune(copies := tree_of([*seldom, *often * times]), law, 2)
        assert int(copies.tokens[order[0]]) == first, times
    uncounted = replace(tree_of([*seldom, *often * 5]), counts=None)
    assert int(uncounted.tokens[prune(uncounted, law, 2)[0]]) == 2


def test_retrievers_count_the_places_they_found() -> None:
    text = [1, 2, 30, 9, 1, 2, 30, 8, 1, 2, 30, 8, 1, 2, 40, 7, 1, 2]
    drafter = NGram(candidates=2, length=2, confidence=0)
    sequence: Any = SimpleNamespace(tokens=text, drafts=None)
    drafter.begin(sequence)
    tree = drafter.draft(sequence, 9, 9)
    assert tree.tokens.tolist() == [2, 40, 7, 30, 8]
    assert tree.counts is not None
    assert tree.counts.tolist() == [4, 1, 1, 3, 2]
    assert tree.limit(3, 9).counts.tolist() == [4, 1, 1, 3]


def test_probes_stay_probes_and_are_not_copied() -> None:
    probe = np.array([False, True, False])
    own = TokenTree(np.array([0, 1, 2]), np.array([-1, 0, 0]), probe=probe)
    fused = fuse(own, tree_of([[1, 5]]), [1, 2], 9)
    assert fused.tokens.tolist() == [0, 1, 2, 1, 5]
    assert fused.probe.tolist() == [False, True, False, False, False]
    assert fuse(tree_of([[3]]), own, [1, 2], 9).tokens.tolist() == [0, 3, 2]


def test_twins_are_followed_not_repeated() -> None:
    twins = TokenTree(np.array([0, 1, 1]), np.array([-1, 0, 0]))
    fused = fuse(twins, tree_of([[1, 5]]), [1, 2], 9)
    assert fused.tokens.tolist() == [0, 1, 1, 5]
    assert fused.parents[3] == 1


# -- the law --------------------------------------------------------------------------------------------------


def draft(tree: str, budget: int = 2) -> DraftModel:
    return DraftModel(TabularModel(DRAFT, VOCABULARY, name="draft"), tree=tree, budget=budget)


@dataclass(eq=False)
class Onlooker(RASD):
    """Copies a token that was not drawn, chosen by those that were, below the root and below its first child."""

    before: bool = False

    def propose(self, sequences: Seq[Sequence], budget: Seq[tuple[int, int]]) -> list[TokenTree]:
        self.ask(1, sequences, budget)
        grown = self.ask(0, sequences, [(2, depth) for _, depth in budget])
        fused = []
        for tree, (_, depth) in zip(grown, budget, strict=True):
            drawn = tree.tokens[tree.children[0]].tolist()
            left = [token for token in range(VOCABULARY) if token not in drawn][: 1 if sum(drawn) % 2 else 0]
            copies = tree_of([left[:depth], [*drawn[:1], 2][:depth]])
            fused.append(fuse(tree, copies, range(1, len(copies)), 9))
        return [self._turned(tree) for tree in fused] if self.before else fused

    def _turned(self, tree: TokenTree) -> TokenTree:
        """The copied tokens before the drawn ones: a mistake."""
        if tree.draws is None:
            return tree
        rows = tree.draws.row
        order = [0, *sorted(range(1, len(tree)), key=lambda n: (rows[n] >= 0, n))]
        number = {node: i for i, node in enumerate(order)} | {-1: -1}
        if any(number[int(tree.parents[node])] > number[node] for node in order[1:]):
            return tree
        parents = np.array([number[int(tree.parents[node])] for node in order])
        return TokenTree(tree.tokens[order], parents, Draws(tree.draws.logq, rows[order]))


def error(make: Any, verifier: str, length: int = 3) -> float:
    engine = engine_of()
    law = decoded(engine, PROMPT, length, make, registry.build("verifier", verifier), SAMPLED).law
    return distance(law, autoregressive(engine.model, SAMPLED, PROMPT, length))


@pytest.mark.parametrize("verifier", ["recursive", "specinfer", "spectr", "optimal"])
@pytest.mark.parametrize("tree", ["rsd_c(1)", "dyspec(threshold=0.3)"])
def test_the_law_is_kept(tree: str, verifier: str) -> None:
    assert error(lambda: RASD(draft(tree), "ngram(candidates=2)", nodes=2), verifier) < 1e-10


def test_the_law_is_kept_under_shared_noise() -> None:
    assert error(lambda: RASD(draft("rsd_c(1)"), "ngram(candidates=2)", nodes=1), "coupled", 2) < 1e-10


@pytest.mark.parametrize("verifier", ["recursive", "specinfer"])
def test_the_law_is_kept_when_copies_depend_on_what_was_drawn(verifier: str) -> None:
    assert error(lambda: Onlooker(draft("rsd_c(2)"), "copier", nodes=2), verifier) < 1e-10


def test_copies_chosen_by_what_was_drawn_may_not_come_before_it() -> None:
    assert error(lambda: Onlooker(draft("rsd_c(1)"), "copier", nodes=2, before=True), "recursive", 2) > 1e-3


# -- texts ----------------------------------------------------------------------------------------------------

TARGET = llama(seed=0, layers=2)


def accepted(drafter: Drafter | str, prompts: list[list[int]], **options: Any) -> tuple[int, list[list[int]]]:
    engine = engine_with(TARGET, drafter, nodes=16)
    found = results(engine, prompts, max_new_tokens=24, ignore_eos=True, **options)
    return sum(result.stats.accepted for result in found), [result.tokens for result in found]


@pytest.mark.parametrize("options", [{}, {"temperature": 0.8, "seed": 4}])
def test_text_is_unchanged(options: dict[str, Any]) -> None:
    make = DraftModel(llama(seed=5, layers=1), tree="dyspec(threshold=0.1)")
    fused, tokens = accepted(RASD(make, "ngram(candidates=3)"), PROMPTS, **options)
    assert tokens == accepted("none", PROMPTS, **options)[1]
    assert fused > 0


def test_an_empty_retrieval_is_the_draft_model_alone() -> None:
    def make() -> DraftModel:
        return DraftModel(llama(seed=5, layers=1), tree="rsd_s(width=3)", budget=9)

    options: dict[str, Any] = {"temperature": 0.8, "seed": 4, "verifier": "recursive"}
    fused = RASD(make(), Copier(paths=()))
    assert accepted(fused, PROMPTS, **options) == accepted(make(), PROMPTS, **options)


def test_copying_and_guessing_together_accept_more_than_either() -> None:
    """A text that is known, and a draft model that knows half of it."""
    text = accepted("none", [PROMPTS[0]])[1][0]
    prompt = [*PROMPTS[0], *text[:12], 3, *PROMPTS[0]]

    def make() -> DraftModel:
        return DraftModel(llama(seed=0, layers=2), tree="rsd_c('1 1 1')", budget=3)

    both = accepted(RASD(make(), "ngram(candidates=2)", nodes=9), [prompt])[0]
    assert both >= max(accepted("ngram(candidates=2)", [prompt])[0], accepted(make(), [prompt])[0])


# -- mistakes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"draft": "ngram"}, "a draft model with a tree"),
        ({"draft": "draft(length=3)"}, "a draft model with a tree"),
        ({"retrieve": "draft(length=3)"}, "it draws tokens"),
        ({"top": 0}, "top=0"),
        ({"nodes": -1}, "nodes=-1"),
    ],
)
def test_bad_knobs_are_named(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        RASD(**knobs)


@pytest.mark.parametrize(("path", "message"), [((VOCABULARY,), "of 3"), ((1,) * 9, "9 tokens ahead; 3 can")])
def test_overlong_or_unknown_copies_are_errors(path: tuple[int, ...], message: str) -> None:
    class Wild(Copier):
        def draft(self, sequence: Sequence, nodes: int, depth: int) -> TokenTree:
            return TokenTree.merge(sequence.tokens[-1], self.paths)

    engine = Engine(TabularModel(DRAFT, VOCABULARY), drafter="none")
    retrieve = Wild(paths=(path,))
    with pytest.raises(ValueError, match=message):
        engine.generate(PROMPT, drafter=RASD(draft("rsd_c(1)"), retrieve), max_new_tokens=4)
