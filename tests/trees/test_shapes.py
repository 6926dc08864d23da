"""Where each tree grows: the papers' worked values, brute force, budgets and bad knobs."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from paceline import Engine, registry
from paceline.chance import SeededChance
from paceline.drafters.base import Outcome
from paceline.drafters.draft import DraftModel
from paceline.errors import BadRequest
from paceline.models.costs import PassCosts
from paceline.testing import TabularModel
from paceline.testing.tabular import Table
from paceline.tree import TokenTree
from paceline.trees.base import Plan
from paceline.trees.chains import Chains
from paceline.trees.dyspec import DySpec
from paceline.trees.fixed import FixedTree
from paceline.trees.rsd_c import ConstantBranching
from paceline.trees.rsd_s import StochasticBeams, truncated_gumbel
from paceline.trees.sequoia import ACCEPTANCE, FLAT, WEIGHT, Sequoia, StepTimes, best_plan, expected_tokens, flat
from paceline.trees.specdec import SpecDec
from trees.support import grown, table, texts

LAWS = ("distinct", "replacement", "shared", "top", "fixed")


def built(spec: str) -> Any:
    return registry.build("tree", spec)


# -- every tree -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(
    "spec", ["fixed", "sequoia", "dyspec", "dyspec(threshold=0.05)", "rsd_c", "rsd_s", "chains(3)", "specdec"]
)
def test_budgets_laws_and_order(spec: str, law: str) -> None:
    tree = built(spec)
    if law not in tree.laws:
        pytest.skip("another law")
    for nodes, depth in ((1, 1), (2, 5), (7, 2), (9, 9)):
        found, asked = grown(tree, table(), law=law, nodes=nodes, depth=depth)
        assert 1 <= found.drafted <= nodes
        assert found.depth.max() <= depth
        assert len(asked) <= (nodes if spec == "dyspec" else depth - 1)
        drawn = 0 if found.draws is None else int((found.draws.row >= 0).sum())
        if law in ("shared", "fixed"):
            assert drawn == 0
        elif law != "top":
            assert drawn == found.drafted
        for node, children in enumerate(found.children):
            tokens = [int(found.tokens[child]) for child in children]
            if law != "replacement":
                assert len(set(tokens)) == len(tokens)
            prefix = tuple(int(found.tokens[n]) for n in found.path(node))
            q = table()(prefix).exp()
            for child, token in zip(children, tokens, strict=True):
                assert found.odds[child] == pytest.approx(found.odds[node] * float(q[token]))


def test_distinct_siblings_report_the_law_that_is_left() -> None:
    found, _ = grown(built("rsd_c(branches='3')"), table(), nodes=3)
    q, before = table()((0,)).exp(), []
    for node in range(1, 4):
        left = q.clone()
        left[before] = 0
        assert found.draws is not None
        torch.testing.assert_close(found.draws.logq[found.draws.row[node]].exp(), left / left.sum())
        before.append(int(found.tokens[node]))


def test_the_top_law_draws_the_last_sibling_outside_the_likely_ones() -> None:
    q = table(5)((0,)).exp()
    for seed in range(20):
        found, _ = grown(built("rsd_c(branches='3')"), table(5), law="top", nodes=3, chance=SeededChance(seed))
        assert found.tokens[1:3].tolist() == q.topk(2).indices.tolist()
        assert found.draws is not None
        assert found.draws.row.tolist() == [-1, -1, -1, 0]
        outside = q.clone()
        outside[found.tokens[1:3]] = 0
        torch.testing.assert_close(found.draws.logq[0].exp(), outside / outside.sum())


def test_a_law_without_enough_tokens_gives_fewer_children() -> None:
    for law in LAWS[:1] + LAWS[2:]:
        found, _ = grown(built("rsd_c(branches='4')"), table(4, zeros=2), law=law)
        assert found.drafted == 2


def test_nodes_with_fewer_children_than_planned_are_counted() -> None:
    tree = built("rsd_c(branches='3 1')")
    grown(tree, table(4, zeros=2), law="distinct", nodes=6)
    assert tree.clipped == 1
    for law, zeros, nodes in (("distinct", 0, 6), ("replacement", 2, 6), ("distinct", 2, 2)):
        tree = built("rsd_c(branches='3 1')")
        grown(tree, table(4, zeros=zeros), law=law, nodes=nodes)
        assert tree.clipped == 0


def test_nothing_follows_the_end_of_a_text() -> None:
    found, asked = grown(built("rsd_c(branches='4 1')"), table(), nodes=8, ends=frozenset({2}))
    end = found.tokens.tolist().index(2, 1)
    assert not found.children[end]
    assert end not in asked[0]
    assert found.drafted == 7


def test_shared_siblings_are_ranked_by_the_noise_at_their_position() -> None:
    chance = SeededChance(3)
    found, _ = grown(built("rsd_c(branches='2 2')"), table(6), law="shared", nodes=6, chance=SeededChance(3))
    for node, children in enumerate(found.children):
        if children:
            prefix = tuple(int(found.tokens[n]) for n in found.path(node))
            row = table(6)(prefix)[None]
            ranked = chance.top(row, [len(prefix) - 1], 2)[0].tolist()
            assert found.tokens[children].tolist() == ranked
            assert ranked[0] == int(chance.couple(row, [len(prefix) - 1]))


def test_the_order_of_draws_without_replacement_is_that_of_perturbed_probabilities() -> None:
    """Both ways to draw two of four tokens have the law q(x) q(y) / (1 - q(x)) (chi-square)."""
    q, count = table()((0,)).exp(), 700
    expected = {(x, y): float(q[x] * q[y] / (1 - q[x])) for x, y in itertools.permutations(range(4), 2)}
    for law in ("distinct", "shared"):
        seen: Counter[tuple[int, ...]] = Counter()
        for seed in range(count):
            found, _ = grown(built("rsd_c(branches='2')"), table(), law=law, nodes=2, chance=SeededChance(seed))
            seen[tuple(found.tokens[1:].tolist())] += 1
        chi2 = sum((seen[pair] - count * p) ** 2 / (count * p) for pair, p in expected.items())
        assert chi2 < 31.3  # 11 degrees of freedom, one in a thousand


# -- fixed ----------------------------------------------------------------------------------------------------


def test_the_published_tree() -> None:
    tree = FixedTree()
    plan = tree.plan(25, 5)
    assert len(plan) == 26
    assert [len(plan[0]), len(plan[1])] == [4, 3]
    assert tree.plan(3, 5) == ((1,), (2,), (3,), ())
    assert len(tree.plan(25, 2)) == 1 + 4 + 8


def test_more_children_than_nodes_are_a_node_each() -> None:
    for tree in (Chains(count=10**12), ConstantBranching(f"{10**12}")):
        assert tree.plan(3, 5) == ((1, 2, 3), (), (), ())


@pytest.mark.parametrize(
    ("paths", "message"),
    [("", "at least one rank path"), ("a", "'a' is no rank path"), ("00", "lacks its parent '0'"), ("1", "elder")],
)
def test_bad_paths_are_named(paths: str, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        FixedTree(paths)


# -- sequoia --------------------------------------------------------------------------------------------------


def test_expected_tokens_are_the_papers() -> None:
    values, _ = expected_tokens((0.6, 0.2, 0.1), 7, 8)
    best = [float(values[m].max()) for m in range(1, 8)]
    assert best == pytest.approx([1, 1.6, 1.96, 2.176, 2.376, 2.5056, 2.6256])
    chain, _ = expected_tokens((0.6,), 7, 8)
    assert float(chain[7].max()) == pytest.approx(2.43, abs=5e-3)


def shapes(nodes: int) -> set[tuple[Any, ...]]:
    """All ordered trees with a number of nodes, as nested tuples."""
    if nodes == 1:
        return {()}
    found: set[tuple[Any, ...]] = set()
    for first in range(1, nodes):
        for head, tail in itertools.product(shapes(first), shapes(nodes - first)):
            found.add((head, *tail))
    return found


def worth(shape: tuple[Any, ...], acceptance: tuple[float, ...]) -> float:
    if len(shape) > len(acceptance):
        return 0.0
    return 1 + sum(a * worth(child, acceptance) for a, child in zip(acceptance, shape, strict=False))


@pytest.mark.parametrize("acceptance", [(0.6, 0.2, 0.1), (0.3, 0.3, 0.3), (0.9,)])
def test_no_tree_is_better(acceptance: tuple[float, ...]) -> None:
    values, _ = expected_tokens(acceptance, 6, 6)
    for nodes in range(1, 7):
        brute = max(worth(shape, acceptance) for shape in shapes(nodes))
        assert float(values[nodes].max()) == pytest.approx(brute)
        if nodes > 1:
            plan = best_plan(acceptance, nodes - 1, 6, StepTimes(FLAT, flat(0.0)))
            assert worth(nested(plan, 0), acceptance) == pytest.approx(brute)


def nested(plan: Any, node: int) -> tuple[Any, ...]:
    return tuple(nested(plan, child) for child in plan[node])


def deepest(plan: Plan) -> int:
    depth = [0] * len(plan)
    for node, children in enumerate(plan):
        for child in children:
            depth[child] = depth[node] + 1
    return max(depth)


def test_dear_passes_make_the_tree_shallow() -> None:
    costs = (0.0, 0.05, 0.2, 1.0)
    depths = [deepest(best_plan((0.6, 0.2, 0.1), 12, 12, StepTimes(FLAT, flat(cost)))) for cost in costs]
    assert depths == sorted(depths, reverse=True)
    assert depths[0] > depths[-1] >= 1


#: Passes by their rows: free up to 32, a bend after four, and as dear as the rows.
FREE, BENT, STEEP = flat(1.0), PassCosts({1: 1.0, 4: 1.1, 32: 4.0}), PassCosts({1: 1.0, 32: 32.0})
STEEP_DRAFT = PassCosts({1: 0.1, 8: 0.8})


def test_dear_rows_make_the_tree_small() -> None:
    times = [StepTimes(target, flat(0.0)) for target in (FREE, BENT, STEEP)]
    assert [len(best_plan((0.6, 0.2, 0.1), 12, 12, of)) - 1 for of in times] == [12, 3, 1]


def test_a_draft_whose_rows_are_dear_makes_the_tree_narrow() -> None:
    wide, narrow = (best_plan((0.6, 0.2, 0.1), 12, 12, StepTimes(FREE, draft)) for draft in (flat(0.1), STEEP_DRAFT))
    assert len(narrow) < len(wide) == 13


@pytest.mark.parametrize("draft", [flat(0.0), flat(0.3), STEEP_DRAFT])
@pytest.mark.parametrize("target", [FREE, BENT, STEEP, PassCosts({1: 1.0, 3: 1.0, 4: 2.0, 7: 2.1})])
@pytest.mark.parametrize("acceptance", [(0.6, 0.2, 0.1), (0.35, 0.3, 0.3), (0.9,)])
def test_no_size_and_depth_bring_more_tokens_a_second(
    acceptance: tuple[float, ...], target: PassCosts, draft: PassCosts
) -> None:
    def rate(shape: tuple[Any, ...]) -> float:
        drafted, levels = size_of(shape) - 1, depth_of(shape)
        return worth(shape, acceptance) / (levels * draft(drafted / levels) + target(drafted + 1))

    for budget, depth in ((6, 6), (5, 2), (1, 1)):
        every = [shape for nodes in range(2, budget + 2) for shape in shapes(nodes) if depth_of(shape) <= depth]
        found = nested(best_plan(acceptance, budget, depth, StepTimes(target, draft)), 0)
        assert depth_of(found) <= depth
        assert rate(found) == pytest.approx(max(map(rate, every)))


def size_of(shape: tuple[Any, ...]) -> int:
    return 1 + sum(map(size_of, shape))


def depth_of(shape: tuple[Any, ...]) -> int:
    return max((1 + depth_of(child) for child in shape), default=0)


def test_times_are_those_of_the_models_unless_they_are_given() -> None:
    target: Any = SimpleNamespace(costs=STEEP)
    draft: Any = SimpleNamespace(costs=flat(0.1))
    tree = built("sequoia")
    assert len(tree.plan(12, 12)) == 13
    tree.attach(draft, target)
    assert tree.plan(12, 12) == best_plan(ACCEPTANCE, 12, 12, StepTimes(STEEP, flat(0.1))) == ((1,), ())
    given = built("sequoia(cost=0.1)")
    given.attach(draft, target)
    assert given.plan(12, 12) == best_plan(ACCEPTANCE, 12, 12, StepTimes(FLAT, flat(0.1)))


def test_the_acceptance_vector_is_measured() -> None:
    tree = Sequoia()
    found = TokenTree(np.array([0, 1, 2, 3]), np.array([-1, 0, 0, 0]))
    outcome = {"sequence": None, "tree": found, "logits": torch.empty(0)}
    for _ in range(300):
        tree.learn(Outcome(**outcome, path=[0, 2], tokens=[2, 5]))  # type: ignore[arg-type]
    tree.learn(Outcome(**outcome, path=[0], tokens=[]))  # type: ignore[arg-type]
    wanted = (ACCEPTANCE[1] * WEIGHT + 300) / (WEIGHT + 300)
    assert tree.measured[1] == pytest.approx(wanted, abs=1e-3)
    assert len(tree.plan(3, 3)[0]) >= 2
    given = Sequoia(acceptance="0.6 0.2")
    given.learn(Outcome(**outcome, path=[0, 2], tokens=[2, 5]))  # type: ignore[arg-type]
    assert given.plan(4, 4) == best_plan((0.6, 0.2), 4, 4, StepTimes(FLAT, flat(0.0)))


@pytest.mark.parametrize("acceptance", ["0.6 -0.1", "0.8 0.3", "much", "nan"])
def test_a_bad_acceptance_vector_is_refused(acceptance: str) -> None:
    with pytest.raises(BadRequest, match=r"sequoia\(acceptance"):
        Sequoia(acceptance=acceptance)


# -- dyspec ---------------------------------------------------------------------------------------------------


def closed(table: Table, nodes: int, vocabulary: int) -> float:
    """The greatest sum of path probabilities of a tree with some number of nodes, by brute force over paths."""
    paths = [p for n in range(1, nodes + 1) for p in itertools.product(range(vocabulary), repeat=n)]
    chance = {(): 1.0}
    for path in paths:
        chance[path] = chance[path[:-1]] * float(table((0, *path[:-1])).exp()[path[-1]])
    best = 0.0
    for chosen in itertools.combinations(paths, nodes):
        if all(len(path) == 1 or path[:-1] in chosen for path in chosen):
            best = max(best, sum(chance[path] for path in chosen))
    return best


@pytest.mark.parametrize("seed", range(3))
def test_the_heap_grows_the_best_tree_when_acceptance_is_the_drafts_probability(seed: int) -> None:
    law = table(3, seed)
    found, _ = grown(DySpec(), law, law="fixed", nodes=3)
    assert found.odds is not None
    assert float(found.odds[1:].sum()) == pytest.approx(closed(law, 3, 3))


def test_it_branches_where_the_draft_is_unsure_and_runs_deep_where_it_is_sure() -> None:
    sure, unsure = torch.tensor([0.97, 0.01, 0.01, 0.01]).log(), torch.tensor([0.3, 0.3, 0.2, 0.2]).log()

    def bimodal(prefix: tuple[int, ...]) -> torch.Tensor:
        return (unsure if len(prefix) == 1 else sure).double()

    for tree in (DySpec(), DySpec(threshold=0.1)):
        found, _ = grown(tree, bimodal, nodes=12, depth=12, chance=SeededChance(1))
        counts = [len(children) for children in found.children]
        assert counts[0] >= 3
        assert found.depth.max() >= 3
        assert max(counts[1:]) <= 2
        even, _ = grown(built("rsd_c(branches='2 2 2')"), bimodal, nodes=12, depth=12, chance=SeededChance(1))
        assert found.odds is not None
        assert even.odds is not None
        assert found.odds.sum() >= even.odds.sum() * found.drafted / 12


def test_more_is_accepted_of_it_than_of_a_fixed_tree_of_as_many_nodes() -> None:
    """A draft that is now sure and now not, drawn from; the target is near it."""
    sure, unsure = torch.tensor([0.94, 0.02, 0.02, 0.02]).log(), torch.tensor([0.3, 0.3, 0.2, 0.2]).log()

    def bimodal(prefix: tuple[int, ...]) -> torch.Tensor:
        return (unsure if sum(prefix) % 3 == 0 else sure).double()

    def near(prefix: tuple[int, ...]) -> torch.Tensor:
        return (bimodal(prefix) + 0.3 * table()(prefix)).log_softmax(-1)

    engine = Engine(TabularModel(near, 4, context=400), drafter="none", verifier="recursive", nodes=14)
    tokens = {}
    for tree in ("dyspec", "dyspec(threshold=0.06)", "rsd_c(branches='2 2 2')"):
        drafter = DraftModel(TabularModel(bimodal, 4, context=400, name="draft"), tree=tree, budget=14)
        options = {"max_new_tokens": 150, "temperature": 1.0, "drafter": drafter}
        found = [engine.generate([1, seed], seed=seed, **options) for seed in (0, 1)]
        tokens[tree] = sum(result.stats.tokens_per_pass for result in found)
    assert tokens["dyspec"] > tokens["rsd_c(branches='2 2 2')"]
    assert tokens["dyspec(threshold=0.06)"] > tokens["rsd_c(branches='2 2 2')"]


def test_a_threshold_bounds_every_slot_and_takes_one_pass_a_level() -> None:
    found, asked = grown(DySpec(threshold=0.15), table(5), nodes=40, depth=9)
    for node, children in enumerate(found.children):
        left = found.odds[node]
        for child in children:
            assert left >= 0.15
            left -= found.odds[child]
    levels = [sorted({int(found.depth[node]) for node in level}) for level in asked]
    assert levels == [[depth + 1] for depth in range(len(asked))]


# -- rsd ------------------------------------------------------------------------------------------------------


def test_beams_keep_their_width_and_hold_distinct_texts() -> None:
    for seed in range(10):
        found, asked = grown(StochasticBeams(3), table(), nodes=12, depth=4, chance=SeededChance(seed))
        assert [len(level) for level in asked] == [3, 3, 3]
        assert len(set(texts(found))) == found.drafted == 12


def test_one_beam_and_one_branch_are_the_plain_chain() -> None:
    for spec in ("rsd_s(width=1)", "rsd_c(branches='1 1 1 1 1 1')"):
        tree = built(spec)
        assert tree.shape == "chain"
        assert grown(tree, table())[0].is_chain


def test_greedy_beams_are_beam_search() -> None:
    found, _ = grown(StochasticBeams(2), table(), law="fixed", nodes=8, depth=3)
    beam = {(): 0.0}
    for depth in range(1, 4):
        below = {
            (*path, token): score + float(table()((0, *path))[token])
            for path, score in beam.items()
            for token in range(4)
        }
        beam = dict(sorted(below.items(), key=lambda item: -item[1])[:2])
        assert {text for text in texts(found) if len(text) == depth} == set(beam)


def test_the_second_value_is_a_gumbel_variable_below_the_first() -> None:
    """Quantiles of `P(G <= x | G <= bound) = exp(exp(mu - bound) - exp(mu - x))`."""
    for location, bound, quantile in itertools.product((-3.0, 0.0, 2.0), (-4.0, 0.5), (1e-9, 0.1, 0.5, 0.99)):
        value = truncated_gumbel(location, bound, quantile)
        assert value <= bound
        assert math.exp(math.exp(location - bound) - math.exp(location - value)) == pytest.approx(quantile, rel=1e-6)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("rsd_c(branches='2 0')", "at least 1"),
        ("rsd_c(branches='2 1.5')", "integers"),
        ("rsd_c(branches='2 inf')", "integers"),
        ("rsd_c(branches=x)", "numbers separated"),
        ("rsd_s(width=0)", "width=0"),
        ("dyspec(threshold=0)", "threshold=0"),
        ("dyspec(threshold=1.5)", "threshold=1.5"),
        ("chains(count=0)", "count=0"),
        ("chains(length=0)", "length=0"),
        ("specdec(threshold=1.5)", "threshold=1.5"),
        ("specdec(least=3, most=2)", "least=3, most=2"),
        ("sequoia(cost=-1)", "cost=-1"),
    ],
)
def test_bad_knobs_are_named(spec: str, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        built(spec)


# -- specdec --------------------------------------------------------------------------------------------------


def test_the_threshold_bounds_the_length() -> None:
    lengths = [grown(SpecDec(h, least=2, most=9), table(), nodes=30, depth=30)[0].drafted for h in (0, 0.6, 0.95, 1)]
    assert lengths == sorted(lengths)
    assert lengths[0] == 2
    assert lengths[-1] == 9


def test_it_ends_with_the_first_token_that_makes_a_refusal_likely() -> None:
    tree = SpecDec(0.7)
    found, _ = grown(tree, table(), nodes=30, depth=30, chance=SeededChance(5))
    bins = [int(8 * found.odds[n] / found.odds[n - 1]) for n in range(1, len(found))]
    holds = np.cumprod([(at + 0.5) / 8 for at in bins])
    assert (1 - holds[:-1] <= 0.7).all()
    assert 1 - holds[-1] > 0.7


def test_the_prediction_learns_from_outcomes() -> None:
    tree = SpecDec()
    found = TokenTree(np.array([0, 1, 2]), np.array([-1, 0, 1]), odds=np.array([1.0, 0.9, 0.81]))
    for _ in range(200):
        tree.learn(Outcome(None, found, torch.empty(0), [0, 1], [1, 3]))  # type: ignore[arg-type]
    longer, _ = grown(SpecDec(0.4), lambda prefix: torch.tensor([0.9, 0.1]).log().double(), nodes=9, depth=9)
    tree.threshold = 0.4
    shorter, _ = grown(tree, lambda prefix: torch.tensor([0.9, 0.1]).log().double(), nodes=9, depth=9)
    assert shorter.drafted < longer.drafted
