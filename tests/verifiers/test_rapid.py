"""RAPID's knowledge transfer: the published numbers, the moved target's law, and a needle that only the draft sees."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from exact.cases import DRAFT, PROMPT, TARGET, VOCABULARY, engine_of

from paceline import Engine
from paceline.drafters.draft import DraftModel
from paceline.drafters.rapid import Rapid
from paceline.errors import BadRequest, Unsupported
from paceline.plan import plan
from paceline.policies.base import Pipeline
from paceline.registry import Guarantee
from paceline.testing import TabularModel, autoregressive, decoded, distance
from paceline.testing.tabular import Table
from paceline.verifiers.rapid import KnowledgeTransfer
from paceline.verifiers.rejection import Rejection
from verifiers.support import judged

SAMPLED = Pipeline((), greedy=False)
P = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
Q = torch.tensor([0.2, 0.6, 0.2], dtype=torch.float64)
MOVED = torch.tensor([0.3798, 0.4152, 0.2051], dtype=torch.float64)


def first(verifier: KnowledgeTransfer, p: torch.Tensor = P, q: torch.Tensor = Q) -> list[float]:
    """The law of a step's first token."""
    law = [0.0] * len(p)
    for text, weight in judged(verifier, p, q).law.items():
        law[text[0]] += weight
    return law


def model(table: Table) -> TabularModel:
    return TabularModel(table, VOCABULARY, name="draft")


def draft(length: int = 2) -> DraftModel:
    return DraftModel(model(DRAFT), length=length, confidence=0.0)


def test_the_published_numbers() -> None:
    moved = KnowledgeTransfer(eta=1.0, mask=0.0)
    torch.testing.assert_close(moved.transferred(P, Q), MOVED, atol=5e-5, rtol=0)
    assert first(moved) == pytest.approx(MOVED.tolist(), abs=5e-5)
    paper = KnowledgeTransfer(eta=1.0, mask=0.0, mode="paper")
    assert first(paper) == pytest.approx([0.3848, 0.4152, 0.2000], abs=5e-5)


def test_only_what_the_draft_finds_likely_moves() -> None:
    moved = KnowledgeTransfer(eta=1.0, mask=0.5).transferred(P, Q)
    weights = torch.tensor([0.5, 0.3 * math.exp(0.3), 0.2], dtype=torch.float64)
    torch.testing.assert_close(moved, weights / weights.sum())
    banned = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64)
    assert float(KnowledgeTransfer(eta=50.0).transferred(banned, Q)[2]) == 0


def transferred(eta: float, mask: float) -> Table:
    rule = KnowledgeTransfer(eta, mask)
    return lambda prefix: rule.transferred(TARGET(prefix).exp(), DRAFT(prefix).exp()).log()


@pytest.mark.parametrize(
    ("make", "length", "eta", "mask"),
    [
        (lambda: draft(1), 2, 0.7, 0.0),
        (draft, 2, 3.0, 0.6),
        (lambda: Rapid(model(DRAFT), length=2, confidence=0.0), 2, 0.7, 0.0),
    ],
)
def test_as_a_policy_it_has_the_moved_targets_law(
    make: Callable[[], DraftModel], length: int, eta: float, mask: float
) -> None:
    """Every token of the text, its last one too."""
    got = decoded(engine_of(), PROMPT, length, make, KnowledgeTransfer(eta, mask), SAMPLED).law
    assert distance(got, autoregressive(model(transferred(eta, mask)), SAMPLED, PROMPT, length)) < 1e-10
    assert distance(got, autoregressive(model(TARGET), SAMPLED, PROMPT, length)) > 1e-2


@pytest.mark.parametrize("mode", ["policy", "paper"])
def test_without_transfer_it_is_lossless(mode: str) -> None:
    neutral = KnowledgeTransfer(0.0, mode=mode)
    got = decoded(engine_of(), PROMPT, 2, draft, neutral, SAMPLED).law
    assert distance(got, autoregressive(model(TARGET), SAMPLED, PROMPT, 2)) < 1e-10


def test_without_transfer_the_published_rule_is_rejection() -> None:
    texts = [
        engine_of().generate(PROMPT, max_new_tokens=40, temperature=0.9, seed=2, drafter=draft(), verifier=verifier)
        for verifier in (Rejection(), KnowledgeTransfer(0.0, mode="paper"))
    ]
    assert texts[0].tokens == texts[1].tokens


def test_the_published_rule_draws_what_follows_a_draft_that_holds_from_the_target() -> None:
    step = judged(KnowledgeTransfer(eta=1.0, mask=0.0, mode="paper"), P, P)
    assert step.error < 1e-12
    assert step.accepted == pytest.approx(1.0)


def needle(prefix: tuple[int, ...]) -> torch.Tensor:
    """Answers a question (4) with 5, the surer the less it has to read."""
    sure = 0.9 if len(prefix) < 20 else 0.3
    law = torch.full((6,), (1 - sure) / 5, dtype=torch.float64)
    law[5 if prefix[-1] == 4 else 0] = sure
    return law.log()


def test_a_draft_that_reads_the_needle_makes_the_answer_likelier() -> None:
    prompt = [*[0, 1, 2, 1] * 8, 4, 3, 5, 3, *[0, 1, 2, 1] * 4, 3, 4]
    engine = Engine(TabularModel(needle, 6, context=99), drafter="none")

    def answer(eta: float) -> float:
        def make() -> Rapid:
            return Rapid(chunk=4, query=2, retrieved=4, length=1, confidence=0.0)

        assert make().shortened(prompt) == [4, 3, 5, 3, 3, 4]
        law = decoded(engine, prompt, 1, make, KnowledgeTransfer(eta), SAMPLED).law
        return sum(weight for text, weight in law.items() if text == (5,))

    found = [answer(eta) for eta in (0.0, 0.1, 5.0)]
    assert found[0] == pytest.approx(0.3)
    assert found == sorted(found)
    assert found[-1] > 0.8


def test_the_plan_names_the_loss_and_what_cannot_be_judged() -> None:
    target = engine_of().model
    found = plan(target, draft(), KnowledgeTransfer(), SAMPLED)
    assert found.guarantee is Guarantee.LOSSY
    assert "eta" in found.lines[-1]
    with pytest.raises(Unsupported, match="'rapid' judges sampled decoding only"):
        plan(target, draft(), KnowledgeTransfer(), Pipeline((), greedy=True))
    with pytest.raises(Unsupported, match="drafter 'ngram' drafts tokens that are not drawn"):
        engine_of().generate(PROMPT, drafter="ngram", verifier="rapid", temperature=1.0)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"eta": -0.1}, r"rapid\(eta=-0.1\): a finite number of at least 0"),
        ({"eta": math.nan}, "eta=nan"),
        ({"eta": math.inf}, r"rapid\(eta=inf\): a finite number of at least 0"),
        ({"mask": 1.5}, "mask=1.5"),
        ({"mode": "both"}, "'policy' or 'paper'"),
    ],
)
def test_knobs_are_checked(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        KnowledgeTransfer(**knobs)
