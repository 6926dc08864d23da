"""What a pass costs by its rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from paceline.models import costs
from paceline.models.costs import PassCosts, _rising, measure
from paceline.testing import TabularModel, random_table
from paceline.tree import TokenTree


def test_costs_are_interpolated_and_go_on_with_the_last_slope() -> None:
    curve = PassCosts({1: 1.0, 4: 1.0, 8: 2.0, 16: 6.0})
    assert [curve(n) for n in (1, 2, 4, 6, 8, 12, 16, 18)] == pytest.approx([1, 1, 1, 1.5, 2, 4, 6, 7])
    assert curve.free_rows() == 4
    assert curve.free_rows(2.0) == 8
    assert curve.relative == {1: 1.0, 4: 1.0, 8: 2.0, 16: 6.0}


def test_more_rows_never_cost_less() -> None:
    assert _rising({1: 3.0, 2: 2.0, 4: 2.5, 8: 2.4}) == {1: 2.0, 2: 2.0, 4: 2.4, 8: 2.4}


@pytest.mark.parametrize("changes", [0.0, 8.0, 15.5, 30.0, 37.5])
def test_a_change_of_the_machines_speed_does_not_bend_the_curve(
    changes: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to 8 rows take a second, each further one an eighth, until everything takes half as long again."""
    model, now, wanted = TabularModel(random_table(3), 3, context=64), [0.0], {1: 1.0, 4: 1.0, 8: 1.0, 16: 2.0, 32: 4.0}
    score = model.score

    def timed(cache: Any, rows: Any, trees: list[TokenTree], *rest: Any) -> Any:
        now[0] += max(1.0, len(trees[0]) / 8) * (1.5 if now[0] >= changes else 1.0)
        return score(cache, rows, trees, *rest)

    monkeypatch.setattr(model, "score", timed)
    monkeypatch.setattr(costs, "clock", lambda: now[0])
    found = measure(model, rows=tuple(wanted), context=2)
    assert found.relative == pytest.approx(wanted)
    assert found(1) == pytest.approx(1.5 if changes < 20 else 1.0)


def test_measuring_leaves_out_what_the_context_cannot_hold() -> None:
    curve = measure(TabularModel(random_table(3), 3, context=12), rows=(1, 2, 8, 32), context=2, rounds=1)
    assert list(curve.seconds) == [1, 2, 8]
    assert all(seconds > 0 for seconds in curve.seconds.values())


def test_costs_of_many_rows_are_those_of_each() -> None:
    curve = PassCosts({1: 1.0, 4: 1.0, 8: 2.0, 16: 6.0})
    rows = np.array([1, 2, 4, 6, 8, 12, 16, 24])
    assert curve.each(rows).tolist() == pytest.approx([1.0, 1.0, 1.0, 1.5, 2.0, 4.0, 6.0, 10.0])
    assert [curve(int(count)) for count in rows] == curve.each(rows).tolist()
