"""Lexical units: placeholders as a lossless draft, and their answers emitted unverified."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from paceline import Engine
from paceline.drafters.lexical import LexicalUnits
from paceline.errors import BadRequest
from paceline.plan import plan
from paceline.policies.base import Pipeline
from paceline.registry import Guarantee
from paceline.testing import TabularModel, autoregressive, decoded, distance, random_table
from paceline.verifiers.coupled import Coupled
from paceline.verifiers.lexical import LexicalAcceptance
from tests.drafters.support import PROMPTS, batch, engine_of, llama, results, start

PAD, SIZE, PERIOD = 0, 30, 23
SAMPLED = Pipeline((), greedy=False)


def trained(fade: float = 0.9) -> TabularModel:
    """Writes 1, 2, .. 23, 1, ..; answers placeholders with what belongs there, less surely the more there are."""

    def table(prefix: tuple[int, ...]) -> torch.Tensor:
        pads = next(i for i, token in enumerate(reversed(prefix)) if token != PAD)
        sure = 0.99 * fade**pads
        law = torch.full((SIZE,), (1 - sure) / (SIZE - 1), dtype=torch.float64)
        law[(prefix[-1 - pads] + pads) % PERIOD + 1] = sure
        return law.log()

    return TabularModel(table, SIZE, context=300, name="trained")


def engine(nodes: int = 9, **options: Any) -> Engine:
    return Engine(trained(), drafter=LexicalUnits(pads=4, placeholder=PAD), nodes=nodes, **options)


# -- verified -------------------------------------------------------------------------------------------------


def test_the_answers_are_the_next_guesses() -> None:
    model = engine()
    sequence = start(model, [1, 2], max_new_tokens=30)
    model.decoder.step()
    for guesses in ([4, 5, 6, 7], [9, 10, 11, 12], [14, 15, 16, 17]):
        tree = model._drafter.propose([sequence], [(9, 29)])[0]
        assert tree.tokens.tolist() == [guesses[0] - 1, *guesses, PAD, PAD, PAD, PAD]
        model.decoder.step()


@pytest.mark.parametrize("verifier", ["coupled", "rejection"])
def test_verified_it_is_lossless_and_saves_passes(verifier: str) -> None:
    plain = engine().generate([1, 2], max_new_tokens=60, drafter="none")
    result = engine().generate([1, 2], max_new_tokens=60, verifier=verifier)
    assert result.tokens == plain.tokens
    assert result.stats.forward_passes < 20


def test_untrained_models_keep_their_text() -> None:
    for spec in ("lexical", "lexical(pads=1, placeholder=5)"):
        batch(spec, 30)


# -- unverified -----------------------------------------------------------------------------------------------


def test_fewer_passes_as_beta_falls() -> None:
    """One placeholder is answered with 0.891, two with 0.802, ..; there is room for guesses or for placeholders."""
    passes = []
    for beta in (1.1, 0.88, 0.79, 0.71, 0.64):
        judge = LexicalAcceptance(beta=beta, placeholder=PAD)
        result = engine(nodes=4).generate([1, 2], max_new_tokens=60, verifier=judge)
        assert result.tokens == [(2 + i) % PERIOD + 1 for i in range(60)]
        passes.append(result.stats.forward_passes)
    assert passes == sorted(passes, reverse=True)
    assert passes[-1] == 12 < passes[0] == 20


def test_above_one_it_is_the_coupled_verifier() -> None:
    table = random_table(3, seed=1)
    model = Engine(TabularModel(table, 3), drafter="none", nodes=6)
    judge = LexicalAcceptance(beta=1.5, placeholder=PAD)
    judge.attach(model.model)
    for verifier in (judge, Coupled()):
        found = decoded(model, [1, 2], 3, lambda: LexicalUnits(pads=2, placeholder=PAD), verifier, SAMPLED)
        assert distance(found.law, autoregressive(model.model, SAMPLED, [1, 2], 3)) < 1e-10
    settings = {"max_new_tokens": 30, "temperature": 0.8, "seed": 3}
    texts = [
        [r.tokens for r in results(engine_of(llama()), PROMPTS, drafter="lexical", verifier=verifier, **settings)]
        for verifier in ("coupled", "lexical(beta=2)")
    ]
    assert texts[0] == texts[1]


def test_sampled_answers_are_those_of_the_seed() -> None:
    """Where the answers are right, unverified text is the text of plain decoding with the same seed."""

    def table(prefix: tuple[int, ...]) -> torch.Tensor:
        generator = torch.Generator().manual_seed(len(prefix))
        return (2 * torch.randn(SIZE, generator=generator, dtype=torch.float64)).log_softmax(-1)

    model = Engine(TabularModel(table, SIZE, context=300), drafter=LexicalUnits(pads=3, placeholder=PAD), nodes=9)
    judge = LexicalAcceptance(beta=0.01, placeholder=PAD)
    settings = {"max_new_tokens": 40, "temperature": 1.0, "seed": 9}
    result = model.generate([1], verifier=judge, **settings)
    assert result.tokens == model.generate([1], drafter="none", **settings).tokens
    assert result.stats.forward_passes <= 15
    assert result.stats.accepted < 25


def test_an_uncertain_or_repeating_span_ends() -> None:
    judge = LexicalAcceptance(beta=0.6, placeholder=PAD)
    sure, unsure = torch.tensor([0.7, 0.3]).log(), torch.tensor([0.5, 0.5]).log()
    assert judge.trusts(sure, [1, 2, 3], 1)
    assert not judge.trusts(unsure, [1, 2, 3], 1)
    assert not judge.trusts(sure, [1, 3, 3], 1)
    assert judge.trusts(sure, [1, 2, 1, 2], 1)
    assert not judge.trusts(sure, [1, 2, 1, 2], 2)
    assert not judge.trusts(torch.tensor([torch.nan, torch.nan]), [1, 2], 1)


def test_policies_endings_and_logprobs_hold_for_unverified_tokens() -> None:
    judge = LexicalAcceptance(beta=0.5, placeholder=PAD)
    banned = engine().generate([1, 2], max_new_tokens=20, verifier=judge, banned_tokens=[7])
    assert 7 not in banned.tokens
    ended = engine().generate([1, 2], max_new_tokens=20, verifier=judge, stop_token_ids=[6])
    assert ended.tokens == [3, 4, 5, 6]
    assert len(engine().generate([1, 2], max_new_tokens=7, verifier=judge).tokens) == 7
    named = engine().generate([1, 2], max_new_tokens=9, verifier=judge, logprobs=1)
    assert [entry.token for entry in named.logprobs] == named.tokens
    assert min(entry.logprob for entry in named.logprobs) < -0.05, "as sure as the placeholders' answers were"


def test_a_batch_gives_the_texts_of_each_alone() -> None:
    model, judge = engine(max_rows=2), LexicalAcceptance(beta=0.75, placeholder=PAD)
    prompts = [[1], [9, 10], [22]]
    mixed = model.generate(prompts, max_new_tokens=25, verifier=judge, temperature=0.9, seed=4)
    alone = [model.generate(p, max_new_tokens=25, verifier=judge, temperature=0.9, seed=4) for p in prompts]
    assert [r.tokens for r in mixed] == [r.tokens for r in alone]
    assert [r.error for r in mixed] == [None] * 3


# -- mistakes -------------------------------------------------------------------------------------------------


def test_a_placeholder_is_needed() -> None:
    model = engine()
    with pytest.raises(BadRequest, match=r"lexical: trained has no padding token; name one with placeholder="):
        model.generate([1], drafter="lexical")
    with pytest.raises(BadRequest, match=r"lexical\(placeholder=30\): an id from 0 to 29 is needed"):
        model.generate([1], drafter="lexical(placeholder=30)")


@pytest.mark.parametrize(
    ("make", "message"),
    [(lambda: LexicalUnits(pads=0), "pads=0"), (lambda: LexicalAcceptance(beta=0.0), "beta=0.0")],
)
def test_knobs_are_checked(make: Any, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        make()


def test_the_plan_names_the_loss() -> None:
    judge = LexicalAcceptance(placeholder=PAD)
    found = plan(trained(), LexicalUnits(placeholder=PAD), judge, Pipeline())
    assert found.guarantee is Guarantee.LOSSY
    assert "beta" in str(found)
