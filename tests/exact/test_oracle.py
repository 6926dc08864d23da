"""The verifier of the optimal transport: exact, and accepted as often as the bound says, oftener than any other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from verifiers.support import judged, pairs

from exact.steps import step
from paceline.evaluation.acceptance import bound
from paceline.testing import random_table
from paceline.testing.drafters import TabularTree
from paceline.testing.oracle import TransportVerifier
from paceline.verifiers import Verifier
from paceline.verifiers.recursive import Recursive
from paceline.verifiers.siblings import Sibling
from paceline.verifiers.specinfer import SpecInfer
from paceline.verifiers.spectr import SpecTr

LAWS = ("replacement", "distinct")
OTHERS: dict[str, tuple[Verifier, ...]] = {"replacement": (SpecInfer(), SpecTr()), "distinct": (Recursive(),)}


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(
    ("vocabulary", "branching", "zeros"), [(3, (2, 2), 0), (3, (3, 2), 1), (4, (3,), 0), (4, (2, 1), 1), (5, (2,), 1)]
)
def test_it_is_exact(vocabulary: int, branching: tuple[int, ...], zeros: int, law: str) -> None:
    target, draft = random_table(vocabulary, seed=1), random_table(vocabulary, seed=2, zeros=zeros)
    found = step(TransportVerifier(law), TabularTree(draft, branching, law), target, vocabulary, len(branching))
    assert found.error < 1e-10
    assert found.accepted > 0.3


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("k", [1, 2, 3])
def test_it_is_the_optimum(k: int, law: str) -> None:
    for p, q in pairs(3, 4, seed=5):
        drafter = TabularTree(lambda prefix, q=q: q.log(), (k,), law)  # type: ignore[misc]
        found = step(TransportVerifier(law), drafter, lambda prefix, p=p: p.log(), 4, 1)  # type: ignore[misc]
        assert found.error < 1e-10
        assert found.accepted == pytest.approx(float(bound(p[None], q[None], k, law)), abs=1e-7)
        for other in OTHERS[law]:
            assert judged(other, p, q, (k,)).accepted <= found.accepted + 1e-9


class Wrong(TransportVerifier):
    """Draws from the whole target where no draft was chosen."""

    def choose(
        self, target: torch.Tensor, siblings: Sequence[Sibling], flip: Callable[[float, int], bool]
    ) -> tuple[int | None, torch.Tensor]:
        return super().choose(target, siblings, flip)[0], target


def test_the_proof_sees_a_token_that_is_not_drawn_from_the_rest() -> None:
    drafter = TabularTree(random_table(3, seed=2), (2,), "replacement")
    assert step(Wrong("replacement"), drafter, random_table(3, seed=1), 3, 1).error > 1e-3
