"""SpecDec++: where the chain ends may depend on what was drawn, and an informed end is worth its price."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from exact.cases import DRAFT, PROMPT, TARGET, VOCABULARY, engine_of

from paceline import registry
from paceline.chance import SeededChance
from paceline.drafters.draft import DraftModel
from paceline.policies.base import Pipeline
from paceline.sequence import Sequence
from paceline.testing import EnumeratedChance, TabularModel, autoregressive, decoded, distance, outcomes, random_table
from paceline.testing.tabular import Table
from paceline.tree import TokenTree
from paceline.trees.growth import Growth
from paceline.trees.specdec import SpecDec
from trees.support import grown, path_of

SAMPLED = Pipeline((), greedy=False)


@dataclass(eq=False)
class Informed(SpecDec):
    """Its prediction is the true chance of acceptance, min(1, p / q): a function of the token that was drawn."""

    target: Table = TARGET
    draft: Table = DRAFT

    def predict(self, growth: Growth, node: int) -> float:
        path = path_of(growth.parents, growth.parents[node])
        prefix = (*growth.sequence.tokens[:-1], *(growth.tokens[n] for n in path))
        return float((self.target(prefix) - self.draft(prefix))[growth.tokens[node]].exp().clamp(max=1))


@dataclass(eq=False)
class Withdraws(DraftModel):
    """Takes the newest token back where the chain was ended before its greatest length."""

    def propose(self, sequences: Seq[Sequence], budget: Seq[tuple[int, int]]) -> list[TokenTree]:
        trees = super().propose(sequences, budget)
        whole = [min(2, *limits) for limits in budget]
        return [tree.limit(tree.drafted - (tree.drafted < most), 9) for tree, most in zip(trees, whole, strict=True)]


def drafter(cls: type[DraftModel] = DraftModel) -> DraftModel:
    return cls(TabularModel(DRAFT, VOCABULARY, name="draft"), tree=Informed(0.3, most=2), budget=2)


def error(make: Any, verifier: str) -> float:
    engine = engine_of()
    result = decoded(engine, PROMPT, 3, make, registry.build("verifier", verifier), SAMPLED)
    return distance(result.law, autoregressive(engine.model, SAMPLED, PROMPT, 3))


@pytest.mark.parametrize("verifier", ["rejection", "block", "recursive", "specinfer"])
def test_an_end_that_depends_on_the_tokens_keeps_the_law(verifier: str) -> None:
    assert error(drafter, verifier) < 1e-10


def test_the_proof_sees_a_drawn_token_that_is_withdrawn() -> None:
    assert error(lambda: drafter(Withdraws), "rejection") > 1e-3


def test_the_end_depends_on_the_tokens() -> None:
    """Equal prefixes, other tokens, other lengths."""

    def length(chance: EnumeratedChance) -> tuple[int, int]:
        found, _ = grown(Informed(0.3, most=3), DRAFT, nodes=3, depth=3, chance=chance)
        return int(found.tokens[1]), found.drafted

    reached = outcomes(length).keys()
    assert len({first for first, _ in reached}) == VOCABULARY
    assert {length for _, length in reached} == {1, 2, 3}
    assert len({length for first, length in reached if first == 0}) < 3


@pytest.mark.parametrize("least", [1, 3])
def test_the_limits_of_the_threshold(least: int) -> None:
    """Towards 1 the chain has its greatest length, towards 0 its least, whatever is drawn."""
    wanted = {1.0: 9, 1 - 1e-12: 9, 1e-12: least, 0.0: least}
    for seed in range(5):
        for threshold, length in wanted.items():
            tree = SpecDec(threshold, least=least, most=9)
            found, _ = grown(tree, random_table(4, seed), nodes=20, depth=20, chance=SeededChance(seed))
            assert found.drafted == length


def clustered(draft: Table) -> Table:
    """A target that agrees with the draft for as long as the text began with one of the first two tokens."""
    noise = random_table(4, seed=3)

    def table(prefix: tuple[int, ...]) -> torch.Tensor:
        scale = 0.15 if len(prefix) > 1 and prefix[1] < 2 else 1.5
        return (draft(prefix) + scale * noise(prefix)).log_softmax(-1)

    return table


@pytest.mark.parametrize("draft_pass", [0.05, 0.1, 0.3])
def test_an_informed_end_costs_no_more_than_the_best_fixed_length(draft_pass: float) -> None:
    """Modelled time per token, in passes of the target: all draft passes and the target's over the expected tokens."""
    most, draft = 12, random_table(4, seed=2)
    target = clustered(draft)

    def chain(tree: SpecDec, seed: int) -> TokenTree:
        return grown(tree, draft, nodes=most, depth=most, chance=SeededChance(seed))[0]

    def chances(tree: TokenTree) -> np.ndarray:
        prefixes = [tuple(int(t) for t in tree.tokens[:n]) for n in range(1, len(tree))]
        ratios = [(target(s) - draft(s)).exp().clamp(max=1) for s in prefixes]
        return np.array([float(row[t]) for row, t in zip(ratios, tree.tokens[1:], strict=True)])

    whole = [chances(chain(SpecDec(1.0, most=most), seed)) for seed in range(40)]

    def cost(lengths: list[int]) -> float:
        gained = sum(1 + np.cumprod(held[:n]).sum() for held, n in zip(whole, lengths, strict=True))
        return float((sum(lengths) * draft_pass + len(whole)) / gained)

    def informed(threshold: float) -> list[int]:
        return [chain(Informed(threshold, 1, most, target=target, draft=draft), seed).drafted for seed in range(40)]

    fixed = min(cost([n] * len(whole)) for n in range(1, most + 1))
    assert min(cost(informed(h)) for h in (0.2, 0.4, 0.6, 0.8)) <= fixed
