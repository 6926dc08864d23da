"""Trees of drawn tokens: the law of one step, by enumeration of every draft and every coin.

Two levels of three siblings over three tokens hold for all verifiers as well, but take minutes (`step` on (3, 3)); here
the shapes shrink with the vocabulary.
"""

from __future__ import annotations

import pytest

from exact.cases import VERIFIERS
from exact.steps import step
from paceline.testing import allowing, random_table
from paceline.testing.drafters import TabularTree

#: Verifier, vocabulary, children by depth.
SHAPES = [
    ("specinfer", 4, (3,)),
    ("specinfer", 2, (3, 2)),
    ("specinfer", 3, (2, 1)),
    ("recursive", 5, (3,)),
    ("recursive", 3, (2, 2)),
    ("recursive", 3, (3, 1)),
    ("sequoia", 4, (3,)),
    ("optimal", 5, (3,)),
    ("optimal", 4, (2, 2)),
    ("optimal", 3, (3, 3)),
    ("spectr", 4, (3,)),
    ("spectr", 3, (2, 1)),
    ("spectr", 2, (3, 1)),
    ("coupled", 4, (2,)),
    ("rejection", 3, (1, 1, 1)),
    ("block", 3, (1, 1, 1)),
    ("block", 2, (1, 1, 1, 1)),
]


@pytest.mark.parametrize(("verifier", "vocabulary", "branching"), SHAPES)
def test_the_law_of_a_step_is_the_targets(verifier: str, vocabulary: int, branching: tuple[int, ...]) -> None:
    drafter = TabularTree(random_table(vocabulary, seed=2), branching)
    found = step(VERIFIERS[verifier], drafter, random_table(vocabulary, seed=1), vocabulary, len(branching))
    assert found.error < 1e-9
    assert found.replays > 5


@pytest.mark.parametrize("verifier", ["specinfer", "recursive", "sequoia", "optimal", "spectr", "block"])
class TestExtremes:
    """Targets and drafts with zeros, equal, apart, and nearly greedy."""

    def found(self, verifier: str, target: object, draft: object) -> tuple[float, float]:
        branching = (1, 1) if verifier == "block" else (2, 1)
        found = step(VERIFIERS[verifier], TabularTree(draft, branching), target, 3, 2)  # type: ignore[arg-type]
        return found.error, found.accepted

    def test_zeros(self, verifier: str) -> None:
        target, draft = random_table(3, seed=6, zeros=1), random_table(3, seed=7, zeros=1)
        assert self.found(verifier, target, draft)[0] < 1e-9

    def test_one_token_of_the_target_is_certain(self, verifier: str) -> None:
        assert self.found(verifier, random_table(3, seed=6, zeros=2), random_table(3, seed=7))[0] < 1e-9

    def test_a_draft_equal_to_the_target_is_always_accepted(self, verifier: str) -> None:
        target = random_table(3, seed=1)
        error, accepted = self.found(verifier, target, target)
        assert error < 1e-9
        # The best tokens of "top" are no draws of the target; one of the other two is accepted where they are not.
        assert accepted == pytest.approx(2, abs=1e-9) or (verifier == "optimal" and accepted > 1)

    def test_disjoint_supports(self, verifier: str) -> None:
        error, accepted = self.found(verifier, allowing(random_table(3), [0, 1]), allowing(random_table(3), [2]))
        assert error < 1e-9
        assert accepted == 0
