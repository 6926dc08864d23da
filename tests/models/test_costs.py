"""What a pass costs by its rows."""

from __future__ import annotations

import numpy as np
import pytest

from paceline.models.costs import PassCosts, _rising, measure
from paceline.testing import TabularModel, random_table


def test_costs_are_interpolated_and_go_on_with_the_last_slope() -> None:
    costs = PassCosts({1: 1.0, 4: 1.0, 8: 2.0, 16: 6.0})
    assert [costs(n) for n in (1, 2, 4, 6, 8, 12, 16, 18)] == pytest.approx([1, 1, 1, 1.5, 2, 4, 6, 7])
    assert costs.free_rows() == 4
    assert costs.free_rows(2.0) == 8
    assert costs.relative == {1: 1.0, 4: 1.0, 8: 2.0, 16: 6.0}


def test_more_rows_never_cost_less() -> None:
    assert _rising({1: 3.0, 2: 2.0, 4: 2.5, 8: 2.4}) == {1: 2.0, 2: 2.0, 4: 2.4, 8: 2.4}


def test_measuring_leaves_out_what_the_context_cannot_hold() -> None:
    costs = measure(TabularModel(random_table(3), 3, context=12), rows=(1, 2, 8, 32), context=2, rounds=1)
    assert list(costs.seconds) == [1, 2, 8]
    assert all(seconds > 0 for seconds in costs.seconds.values())


def test_costs_of_many_rows_are_those_of_each() -> None:
    costs = PassCosts({1: 1.0, 4: 1.0, 8: 2.0, 16: 6.0})
    rows = np.array([1, 2, 4, 6, 8, 12, 16, 24])
    assert costs.each(rows).tolist() == pytest.approx([1.0, 1.0, 1.0, 1.5, 2.0, 4.0, 6.0, 10.0])
    assert [costs(int(count)) for count in rows] == costs.each(rows).tolist()
