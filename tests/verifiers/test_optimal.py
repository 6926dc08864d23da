"""Greedy multi-draft: its rate is the optimum of its drafts."""

from __future__ import annotations

import pytest
import torch

from paceline.evaluation import acceptance
from paceline.verifiers.optimal import Optimal

from .support import P, Q, judged, pairs


def test_the_example() -> None:
    assert judged(Optimal(), P, Q, (2,)).accepted == pytest.approx(0.90, abs=1e-12)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_rate_is_the_linear_programmes(k: int) -> None:
    for p, q in pairs(4, 4, seed=7):
        best = acceptance.transport(p, q, k, "top").rate
        assert judged(Optimal(), p, q, (k,)).accepted == pytest.approx(best, abs=1e-7)
        assert float(acceptance.optimal(p[None], q[None], k)) == pytest.approx(best, abs=1e-7)


def test_nothing_is_drawn_where_the_best_tokens_have_all_the_mass() -> None:
    sure = torch.tensor([0.0, 1.0, 0.0]).double()
    assert judged(Optimal(), P, sure, (2,)).error < 1e-10
