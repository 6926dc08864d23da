"""Trees of two levels with three siblings: the law of one step, by enumeration of every draft and every coin."""

from __future__ import annotations

import pytest

from exact import steps
from exact.cases import VERIFIERS
from exact.shapes import FIXED, SHAPES, TREES, Shape
from exact.steps import step
from paceline.testing import allowing, random_table
from paceline.testing.drafters import TabularTree


@pytest.mark.parametrize(
    ("verifier", "shape"),
    [(name, shape) for name, shapes in SHAPES.items() for shape in (*shapes, *(FIXED if name in TREES else ()))],
    ids=str,
)
def test_the_law_of_a_step_is_the_targets(verifier: str, shape: Shape) -> None:
    found = shape.judged_by(VERIFIERS[verifier])
    assert found.error < 1e-10
    assert found.accepted > 0.5
    assert found.replays > 5


def test_two_levels_of_three_siblings_are_proven_over_every_vocabulary() -> None:
    assert SHAPES.keys() == VERIFIERS.keys()
    assert {verifier for verifier in VERIFIERS if "tree" in VERIFIERS[verifier].shapes} == TREES.keys()
    for shapes in (*TREES.values(), FIXED):
        assert {s.vocabulary for s in shapes if s.branching == (3, 3) and s.support >= 3} == {3, 4, 5}


@pytest.mark.parametrize("verifier", sorted(TREES))
def test_what_is_not_looked_at_need_not_be_drawn(verifier: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole tree drawn at once gives the same law."""
    shape = Shape(3, (2, 1))
    lazy = shape.judged_by(VERIFIERS[verifier])
    monkeypatch.setattr(steps, "WALKERS", ())
    whole = shape.judged_by(VERIFIERS[verifier])
    assert whole.law == pytest.approx(lazy.law, abs=1e-12)
    assert whole.accepted == pytest.approx(lazy.accepted, abs=1e-12)
    assert whole.replays >= lazy.replays


@pytest.mark.parametrize("verifier", ["specinfer", "recursive", "sequoia", "optimal", "spectr", "block"])
class TestExtremes:
    """Targets and drafts with zeros, equal, apart, and nearly greedy."""

    def found(self, verifier: str, target: object, draft: object) -> tuple[float, float]:
        branching = (1, 1) if verifier == "block" else (2, 1)
        found = step(VERIFIERS[verifier], TabularTree(draft, branching), target, 3, 2)  # type: ignore[arg-type]
        return found.error, found.accepted

    def test_zeros(self, verifier: str) -> None:
        target, draft = random_table(3, seed=6, zeros=1), random_table(3, seed=7, zeros=1)
        assert self.found(verifier, target, draft)[0] < 1e-10

    def test_one_token_of_the_target_is_certain(self, verifier: str) -> None:
        assert self.found(verifier, random_table(3, seed=6, zeros=2), random_table(3, seed=7))[0] < 1e-10

    def test_a_draft_equal_to_the_target_is_always_accepted(self, verifier: str) -> None:
        target = random_table(3, seed=1)
        error, accepted = self.found(verifier, target, target)
        assert error < 1e-10
        # The best tokens of "top" are no draws of the target; one of the other two is accepted where they are not.
        assert accepted == pytest.approx(2, abs=1e-9) or (verifier == "optimal" and accepted > 1)

    def test_disjoint_supports(self, verifier: str) -> None:
        error, accepted = self.found(verifier, allowing(random_table(3), [0, 1]), allowing(random_table(3), [2]))
        assert error < 1e-10
        # One goes on with the tokens that the draft rules out.
        assert (accepted > 0) == (verifier == "sequoia")
