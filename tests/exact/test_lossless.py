"""Lossless is proven, not sampled: the exact law of the production decoder equals the policy's, to 1e-10."""

from __future__ import annotations

from functools import cache

import pytest

from exact.cases import (
    CHAINS,
    DRAFT,
    DRAFTERS,
    LENGTH,
    POLICIES,
    PROMPT,
    TARGET,
    VERIFIERS,
    VOCABULARY,
    Make,
    engine_of,
    pairs,
)
from paceline.drafters.draft import DraftModel
from paceline.drafters.ngram import NGram
from paceline.drafters.turns import Turns
from paceline.policies.base import Pipeline
from paceline.testing import TabularModel, allowing, autoregressive, decoded, distance, random_table
from paceline.testing.drafters import Fixed, Tabular
from paceline.testing.laws import Text
from paceline.verifiers import Verifier
from paceline.verifiers.coupled import Coupled
from paceline.verifiers.rejection import Rejection

SAMPLED = Pipeline((), greedy=False)
ENGINE = engine_of()
ENDING = engine_of(end_tokens=[2])
#: What is tried under every policy, and what under the plain law alone.
EVERYWHERE = ("fixed chain", "draft", "fixed tree with twins")
#: Verifiers with a rule of their own; the others share the walk of "rejection" and meet the policies in `test_matrix`.
RULES = ("coupled", "rejection", "block", "spectr")


@cache
def wanted(policy: str, ending: bool = False) -> dict[Text, float]:
    model = (ENDING if ending else ENGINE).model
    return autoregressive(model, POLICIES[policy](), PROMPT, LENGTH)


def error(make: Make, verifier: Verifier, policy: str) -> float:
    return distance(decoded(ENGINE, PROMPT, LENGTH, make, verifier, POLICIES[policy]()).law, wanted(policy))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("verifier", "name"), [pair for pair in pairs(EVERYWHERE) if pair[0] in RULES])
def test_the_law_of_every_policy_is_kept(verifier: str, name: str, policy: str) -> None:
    assert error(DRAFTERS[name], VERIFIERS[verifier], policy) < 1e-10


@pytest.mark.parametrize(
    ("verifier", "name"), [(v, name) for v, name in pairs(DRAFTERS) if v not in RULES or name not in EVERYWHERE]
)
def test_the_law_is_kept_under_every_drafter(verifier: str, name: str) -> None:
    assert error(DRAFTERS[name], VERIFIERS[verifier], "none") < 1e-10


def test_coupled_keeps_the_law_of_independent_draws_too() -> None:
    result = decoded(ENGINE, PROMPT, 2, lambda: Tabular(DRAFT, 1, "distinct"), Coupled(), SAMPLED)
    assert distance(result.law, autoregressive(ENGINE.model, SAMPLED, PROMPT, 2)) < 1e-10


@pytest.mark.parametrize("verifier", VERIFIERS)
@pytest.mark.parametrize("name", ["fixed chain", "drawn", "draft"])
def test_texts_that_end_early_have_the_right_law(name: str, verifier: str) -> None:
    result = decoded(ENDING, PROMPT, LENGTH, CHAINS[name], VERIFIERS[verifier], SAMPLED)
    assert distance(result.law, wanted("none", ending=True)) < 1e-10
    assert any(len(text) < LENGTH for text in result.law)


@pytest.mark.parametrize("verifier", VERIFIERS)
@pytest.mark.parametrize("vocabulary", [4, 5])
def test_larger_vocabularies(vocabulary: int, verifier: str) -> None:
    engine = engine_of(random_table(vocabulary, seed=4), vocabulary)
    draft = random_table(vocabulary, seed=5, zeros=1)
    result = decoded(engine, [0], 2, lambda: Tabular(draft, 1), VERIFIERS[verifier], SAMPLED)
    assert distance(result.law, autoregressive(engine.model, SAMPLED, [0], 2)) < 1e-10


@pytest.mark.parametrize("verifier", VERIFIERS)
def test_a_target_with_zeros_is_never_left(verifier: str) -> None:
    engine = engine_of(random_table(VOCABULARY, seed=6, zeros=1))
    result = decoded(engine, PROMPT, LENGTH, lambda: Tabular(DRAFT, 2), VERIFIERS[verifier], SAMPLED)
    assert distance(result.law, autoregressive(engine.model, SAMPLED, PROMPT, LENGTH)) < 1e-10


@pytest.mark.parametrize("verifier", VERIFIERS)
def test_a_draft_equal_to_the_target_is_always_accepted(verifier: str) -> None:
    result = decoded(ENGINE, PROMPT, LENGTH, lambda: Tabular(TARGET, 2), VERIFIERS[verifier], SAMPLED)
    assert result.accepted == pytest.approx(result.drafted, abs=1e-12)
    assert result.drafted == pytest.approx(2)


@pytest.mark.parametrize("verifier", VERIFIERS)
def test_disjoint_supports_never_agree_and_keep_the_law(verifier: str) -> None:
    engine = engine_of(allowing(TARGET, [0, 1]))
    other = allowing(DRAFT, [2])
    result = decoded(engine, PROMPT, LENGTH, lambda: Tabular(other, 2), VERIFIERS[verifier], SAMPLED)
    assert result.accepted == 0
    assert result.drafted > 0
    assert distance(result.law, autoregressive(engine.model, SAMPLED, PROMPT, LENGTH)) < 1e-10


def test_acceptance_is_the_one_in_the_papers() -> None:
    """One drafted token: sum_v min(p, q) under rejection, sum_v 1 / sum_w max(p_w/p_v, q_w/q_v) coupled."""
    p, q = (TabularModel(table, VOCABULARY).law(PROMPT) for table in (TARGET, DRAFT))
    coupled = sum(1 / float((p / p[v]).maximum(q / q[v]).sum()) for v in range(VOCABULARY))
    for verifier, rate in ((Rejection(), float(p.minimum(q).sum())), (Coupled(), coupled)):
        result = decoded(ENGINE, PROMPT, 2, lambda: Tabular(DRAFT, 1), verifier, SAMPLED)
        assert result.drafted == pytest.approx(1)
        assert result.accepted == pytest.approx(rate, abs=1e-12)


def test_a_fixed_token_is_accepted_with_its_probability_by_every_verifier() -> None:
    p = TabularModel(TARGET, VOCABULARY).law(PROMPT)
    for verifier in VERIFIERS.values():
        result = decoded(ENGINE, PROMPT, 2, lambda: Fixed((1,)), verifier, SAMPLED)
        assert result.accepted == pytest.approx(float(p[1]), abs=1e-12)


@pytest.mark.parametrize("verifier", VERIFIERS)
def test_the_samples_of_one_prompt_are_independent(verifier: str) -> None:
    result = decoded(ENGINE, PROMPT, 2, lambda: Tabular(DRAFT, 1), VERIFIERS[verifier], SAMPLED, n=2)
    one = autoregressive(ENGINE.model, SAMPLED, PROMPT, 2)
    product = {(*a, -1, *b): weight * other for a, weight in one.items() for b, other in one.items()}
    assert distance(result.law, product) < 1e-10


def test_a_drawn_token_is_submitted_or_the_law_is_lost() -> None:
    """Whether the first drafter's draft is used may not depend on the tokens it drew."""

    def make() -> Turns:
        first = DraftModel(TabularModel(DRAFT, VOCABULARY, name="draft"), length=2, confidence=0.6)
        return Turns(first, NGram(length=3, confidence=0.0), least=2)

    assert error(make, Rejection(), "none") < 1e-10
