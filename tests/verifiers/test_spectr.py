"""K-SEQ: the division factor and its limits."""

from __future__ import annotations

import pytest
import torch

from paceline.evaluation import acceptance
from paceline.verifiers.spectr import SpecTr, division_factor, selection

from .support import P, Q, drawn, judged, pairs, verdict


def test_the_example() -> None:
    found = selection(P, Q, 2)
    assert found.rho == pytest.approx(1.45678, abs=1e-5)
    assert found.beta == pytest.approx(0.54322, abs=1e-5)
    assert found.accepted == pytest.approx(0.79136, abs=1e-5)


def test_one_draw_needs_no_division() -> None:
    for p, q in pairs(5, 4):
        assert division_factor(p, q, 1) == 1
        assert judged(SpecTr(), p, q).accepted == pytest.approx(float(p.minimum(q).sum()), abs=1e-12)


def test_equal_laws_need_no_division_and_disjoint_ones_accept_nothing() -> None:
    assert division_factor(P, P, 3) == 1
    apart = selection(torch.tensor([1.0, 0.0]).double(), torch.tensor([0.0, 1.0]).double(), 2)
    assert (apart.accepted, apart.residual.tolist()) == (0, [1, 0])


@pytest.mark.parametrize("k", [2, 3])
def test_the_residual_is_a_law_at_the_factor_and_none_below(k: int) -> None:
    for p, q in pairs(10, 4, seed=5):
        found = selection(p, q, k)
        left = p - q.minimum(p / found.rho) * found.accepted / found.beta
        assert float(left.min()) > -1e-9
        assert found.accepted >= (1 - (1 - 1 / k) ** k) * float(acceptance.bound(p[None], q[None], k)) - 1e-12
        selection(p, q, k, found.rho + 0.1)
        if found.rho > 1.01:
            with pytest.raises(ValueError, match="is too small"):
                selection(p, q, k, found.rho - 0.01)


def test_the_walk_accepts_at_least_as_often_as_the_draws() -> None:
    """A residual that falls on a drafted token goes on below it."""
    for p, q in pairs(3, 3, seed=6):
        assert judged(SpecTr(), p, q, (2,)).accepted >= selection(p, q, 2).accepted - 1e-12


def test_no_draws_and_draws_of_two_laws_are_refused() -> None:
    with pytest.raises(ValueError, match="k=0"):
        selection(P, Q, 0)
    with pytest.raises(ValueError, match="two laws"):
        verdict(SpecTr(), drawn([1, 0], torch.stack([P, Q]), [0, 1], [0, 0]), P)
