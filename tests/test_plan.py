"""What a plan says, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest

from paceline import Engine
from paceline.drafters.turns import Turns
from paceline.errors import Unsupported
from paceline.plan import LAWS


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.load("pocket-code", drafter="none", max_rows=1)


def drafting(engine: Engine, drafter: str, verifier: str, **options: Any) -> list[str]:
    """The lines about drafters."""
    lines = list(engine.explain(drafter=drafter, verifier=verifier, **options).lines)
    first = next(i for i, line in enumerate(lines) if line.startswith("drafter"))
    return lines[first : next(i for i, line in enumerate(lines) if line.startswith("verifier"))]


@pytest.mark.parametrize(
    ("drafter", "verifier", "law"),
    [
        ("turns(ngram, draft)", "rejection", "distinct"),
        ("turns(ngram, draft)", "specinfer", "replacement"),
        ("auto(shape=chain)", "block", "distinct"),
        ("auto", "coupled", "shared"),
        ("copyspec(fallback=draft)", "rejection", "distinct"),
        ("prediction(fallback=turns(ngram, draft))", "rejection", "distinct"),
    ],
)
def test_every_member_says_what_it_draws(engine: Engine, drafter: str, verifier: str, law: str) -> None:
    sampled = drafting(engine, drafter, verifier, temperature=1.0)
    assert not any(words in sampled[0] for words in LAWS.values())
    assert any(line.endswith(f" of tokens that are {LAWS['fixed']}.") for line in sampled[1:])
    assert any("draft: " in line and line.endswith(f" of tokens that are {LAWS[law]}.") for line in sampled[1:])
    greedy = drafting(engine, drafter, "coupled")
    assert len(greedy) == len(sampled)
    assert all(line.endswith((f" of tokens that are {LAWS['fixed']}.", "a tree.", "a chain.")) for line in greedy)


def test_a_drafter_alone_says_it_in_its_own_line(engine: Engine) -> None:
    (line,) = drafting(engine, "draft", "rejection", temperature=1.0)
    assert line.endswith(f" of tokens that are {LAWS['distinct']}.")


def test_a_member_that_the_verifier_cannot_judge_is_refused_at_the_door(engine: Engine) -> None:
    turns = Turns("ngram", "draft")
    turns.members[1].drafts = frozenset({"chains"})
    engine.request("x", drafter=turns, verifier="spectr", temperature=1.0)
    with pytest.raises(Unsupported, match="drafter 'draft' drafts tokens that are whole chains"):
        engine.request("x", drafter=turns, verifier="specinfer", temperature=1.0)
