"""Trees of a draft model keep the policy's law under every verifier, proven by enumeration."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from exact.cases import DRAFT, POLICIES, PROMPT, TARGET, VOCABULARY, engine_of

from paceline import registry
from paceline.drafters.base import Drafter
from paceline.drafters.draft import DraftModel
from paceline.policies.base import Pipeline
from paceline.specs import parse
from paceline.testing import TabularModel, allowing, autoregressive, decoded, distance, random_table
from paceline.testing.laws import Decoded, Text
from paceline.testing.tabular import Table
from paceline.trees import Growth
from paceline.trees.siblings import Distinct, Exhaustive, Pick

ENGINE = engine_of()
SAMPLED = Pipeline((), greedy=False)
#: Tree, and the greatest number of its nodes.
TREES = {
    "fixed": ("fixed(paths='0 1 10')", 3),
    "sequoia": ("sequoia(acceptance='0.6 0.2 0.1', cost=0)", 3),
    "sequoia that learns": ("sequoia(cost=0)", 2),
    "sequoia that goes on": ("sequoia(acceptance='0.4 0.3 0.2', cost=0, uniform=true)", 3),
    "dyspec": ("dyspec", 2),
    "dyspec by level": ("dyspec(threshold=0.25)", 3),
    "rsd_c": ("rsd_c(branches='2 1')", 3),
    "rsd_s": ("rsd_s(width=2)", 3),
    "chains": ("chains(count=2)", 3),
    "specdec": ("specdec(threshold=0.5)", 3),
}


def draft(name: str, table: Table = DRAFT) -> Drafter:
    tree, budget = TREES[name]
    return DraftModel(TabularModel(table, VOCABULARY, name="draft"), tree=tree, budget=budget)


def run(name: str, verifier: str, length: int, policy: Pipeline = SAMPLED, table: Table = DRAFT) -> Decoded:
    judge = registry.build("verifier", verifier)
    return decoded(ENGINE, PROMPT, length, lambda: draft(name, table), judge, policy)


def wanted(length: int, policy: Pipeline = SAMPLED) -> dict[Text, float]:
    return autoregressive(ENGINE.model, policy, PROMPT, length)


def judged(name: str, verifier: str) -> bool:
    return bool((set(registry.build("verifier", verifier).judges) & draft(name).drafts) - {"fixed"})


@pytest.mark.parametrize(("verifier", "name"), [*(("recursive", name) for name in TREES), ("specinfer", "rsd_c")])
def test_the_law_is_kept_over_three_tokens(verifier: str, name: str) -> None:
    result = run(name, verifier, 3)
    assert distance(result.law, wanted(3)) < 1e-10
    assert result.accepted > 0.5


@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize("verifier", ["coupled", "specinfer", "sequoia"])
def test_the_law_is_kept_over_two_tokens(verifier: str, name: str) -> None:
    if not judged(name, verifier):
        pytest.skip("drafts by another law")
    assert distance(run(name, verifier, 2).law, wanted(2)) < 1e-10


@pytest.mark.parametrize("budget", [1, 3, 4])
@pytest.mark.parametrize("tree", ["dyspec", "dyspec(threshold=0.2)", "sequoia(cost=0)", "rsd_s(width=2)"])
def test_the_budget_does_not_touch_the_law(tree: str, budget: int) -> None:
    def make() -> Drafter:
        return DraftModel(TabularModel(DRAFT, VOCABULARY, name="draft"), tree=tree, budget=budget)

    found = decoded(ENGINE, PROMPT, 2, make, registry.build("verifier", "recursive"), SAMPLED)
    assert distance(found.law, wanted(2)) < 1e-10
    assert found.drafted > 0


@pytest.mark.parametrize("uniform", [1e-6, 0.3, 0.7, 1 - 1e-6])
def test_the_law_is_kept_whatever_the_values_of_the_beams(uniform: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given the numbers that decide which places are filled, the tokens follow the laws they report."""
    monkeypatch.setattr(Growth, "uniform", lambda growth, node, rank: uniform if (node + rank) % 2 else 1 - uniform)
    assert distance(run("rsd_s", "recursive", 3).law, wanted(3)) < 1e-10


@pytest.mark.parametrize(
    ("name", "policy", "length"),
    [
        ("dyspec by level", "top_k", 3),
        ("dyspec by level", "greedy", 3),
        ("rsd_s", "penalties", 3),
        ("rsd_s", "greedy", 3),
        ("sequoia", "uses_rows", 2),
    ],
)
def test_the_law_of_a_policy_is_kept(name: str, policy: str, length: int) -> None:
    pipeline = POLICIES[policy]()
    assert distance(run(name, "recursive", length, pipeline).law, wanted(length, pipeline)) < 1e-10


@pytest.mark.parametrize(
    "table", [random_table(VOCABULARY, seed=3, zeros=1), TARGET, allowing(DRAFT, [1])], ids=["zeros", "target", "one"]
)
@pytest.mark.parametrize("name", ["dyspec by level", "rsd_c", "rsd_s"])
def test_the_law_is_kept_whatever_the_draft(name: str, table: Table) -> None:
    assert distance(run(name, "recursive", 3, table=table).law, wanted(3)) < 1e-10


@pytest.mark.parametrize("zeros", [1, 2])
def test_siblings_that_do_not_run_out_keep_the_law_and_are_worth_more(zeros: int) -> None:
    """Where the draft has one or two tokens and the tree three children, the further ones are drawn uniformly."""
    table = random_table(VOCABULARY, seed=3, zeros=zeros)
    found = {verifier: run("sequoia that goes on", verifier, 3, table=table) for verifier in ("sequoia", "recursive")}
    for result in found.values():
        assert distance(result.law, wanted(3)) < 1e-10
    assert found["sequoia"].drafted > found["recursive"].drafted + 0.5
    assert found["sequoia"].accepted > found["recursive"].accepted + 0.05


def test_the_proof_sees_a_uniform_draw_that_reports_another_law(monkeypatch: pytest.MonkeyPatch) -> None:
    def likeliest(self: Exhaustive, of: int) -> Any:
        pick = Distinct.next(self, of)
        if pick is None and (uniform := self._from(self._untried)) is not None:
            pick = Pick(int(self._untried.argmax()), 0.0, uniform.law)
        if pick is not None:
            self._untried[pick.token] = 0.0
        return pick

    monkeypatch.setattr(Exhaustive, "next", likeliest)
    table = random_table(VOCABULARY, seed=3, zeros=2)
    assert distance(run("sequoia that goes on", "sequoia", 3, table=table).law, wanted(3)) > 1e-3


def test_the_proof_sees_draws_that_are_not_independent(monkeypatch: pytest.MonkeyPatch) -> None:
    """One number for all siblings of a node: the second is a function of the first."""

    def shared(growth: Growth, node: int) -> Any:
        chance, step = growth.sequence.chance, growth.sequence.generated
        return lambda weights, rank: chance.categorical(weights, step + growth.depths[node], ("draft", step, node))

    monkeypatch.setattr(Growth, "_draw", shared)
    tables = [random_table(VOCABULARY, seed=seed) for seed in range(30, 36)]
    assert max(distance(run("rsd_c", "recursive", 2, table=table).law, wanted(2)) for table in tables) > 1e-3


def test_every_tree_is_proven() -> None:
    assert {parse(spec).name for spec, _ in TREES.values()} == {method.name for method in registry.methods("tree")}


def test_siblings_that_were_drawn_without_replacement_are_worth_more() -> None:
    """p = (.5, .3, .2), q = (.2, .5, .3), two siblings: 0.8086 are accepted; with replacement 0.76, one alone 0.70."""
    p, q = (torch.tensor(row, dtype=torch.float64).log() for row in ([0.5, 0.3, 0.2], [0.2, 0.5, 0.3]))
    engine = engine_of(lambda prefix: p)
    rates = {}
    for verifier, branches in (("recursive", 2), ("specinfer", 2), ("specinfer", 1)):
        judge = registry.build("verifier", verifier)

        def make(branches: int = branches) -> Drafter:
            model = TabularModel(lambda prefix: q, VOCABULARY, name="draft")
            return DraftModel(model, tree=f"rsd_c({branches})", budget=2)

        rates[verifier, branches] = decoded(engine, PROMPT, 2, make, judge, SAMPLED).accepted
    assert rates["recursive", 2] == pytest.approx(0.8086, abs=5e-5)
    assert rates["specinfer", 2] == pytest.approx(0.76)
    assert rates["specinfer", 1] == pytest.approx(0.70)


@pytest.mark.parametrize("seed", range(4))
def test_distinct_siblings_are_accepted_at_least_as_often_as_repeated_ones_on_average(seed: int) -> None:
    table = random_table(VOCABULARY, seed=20 + seed)
    rates = [run("rsd_c", verifier, 2, table=table).accepted for verifier in ("recursive", "specinfer")]
    assert rates[0] >= rates[1] - 1e-12
