"""What steps of several texts take, learned from the last of them."""

from __future__ import annotations

import numpy as np
import pytest

from paceline.drafters import batch_costs
from paceline.drafters.batch_costs import LEAST, BatchCosts
from paceline.models.costs import PassCosts

#: A pass over a row takes 1, each further row 0.1; of four texts 1.3.
PASSES = PassCosts({1: 1.0, 2: 1.1, 32: 4.1})


@pytest.fixture(autouse=True)
def as_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of a batch are taken for what passes say, so that figures are easily followed."""
    monkeypatch.setattr(batch_costs, "DEARER", 1.0)


def test_nothing_but_passes_until_a_step_was_seen() -> None:
    costs = BatchCosts(PASSES)
    assert costs.plain(4) == pytest.approx(1.3)
    assert costs.drafted(4, 8) == pytest.approx(0.4)
    assert costs.each(4, np.array([4, 8, 12])).tolist() == pytest.approx([1.3, 1.7, 2.1])


def test_what_a_step_takes_beside_its_pass_is_its_texts_share() -> None:
    costs = BatchCosts(PASSES)
    costs.add(4, 4, 2.1)
    for _ in range(20):
        costs.add(4, 4, 2.1)
    assert costs.plain(4) == pytest.approx(2.1, rel=0.01)
    assert costs.plain(8) == pytest.approx(1.7 + 1.6, rel=0.01)
    assert costs.drafted(4, 8) == pytest.approx(0.4)


@pytest.mark.parametrize("times", [0.5, 1.0, 1.5, 2.5])
def test_how_much_dearer_drafted_rows_are_is_found_out(times: float) -> None:
    costs, generator = BatchCosts(PASSES), np.random.default_rng(0)
    for _ in range(60):
        rows = int(generator.integers(4, 14))
        costs.add(4, rows, (1.7 + times * 0.1 * (rows - 4)) * generator.uniform(0.95, 1.05))
    assert costs.plain(4) == pytest.approx(1.7, rel=0.05)
    assert costs.drafted(4, 8) == pytest.approx(times * 0.4, rel=0.15)


def test_where_steps_are_all_alike_rows_and_texts_share_the_blame() -> None:
    costs = BatchCosts(PASSES)
    for _ in range(60):
        costs.add(4, 8, 2 * 1.7)
    assert 1.3 < costs.dearer < 1.5
    assert costs.plain(4) > 2 * 1.3
    assert costs.each(4, np.array([8])) == pytest.approx(2 * 1.7, rel=0.01)


def test_one_slow_step_with_drafts_does_not_end_drafting() -> None:
    costs = BatchCosts(PASSES)
    for _ in range(10):
        costs.add(4, 4, 1.3)
    costs.add(4, 8, 100.0)
    held_up = costs.drafted(4, 8)
    assert 0.4 < held_up < 3 * 1.7
    for _ in range(200):
        costs.add(4, 4, 1.3)
    assert costs.plain(4) == pytest.approx(1.3, abs=0.01)
    assert costs.drafted(4, 8) == pytest.approx(0.4, rel=0.05)


def test_a_machine_that_became_faster_is_believed() -> None:
    costs = BatchCosts(PASSES)
    for _ in range(60):
        costs.add(4, 4, 1.0)
    assert costs.plain(4) == pytest.approx(1.0, rel=0.01)
    for _ in range(200):
        costs.add(4, 4, 1e-6)
    assert costs.plain(4) == pytest.approx(LEAST * 1.3)


def test_a_drafted_row_is_taken_for_dearer_until_it_was_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_costs, "DEARER", 1.2)
    costs = BatchCosts(PassCosts({1: 1.0, 8: 1.0, 16: 2.0}))
    assert costs.drafted(8, 16) == pytest.approx(1.2)
    for rows in (8, 16) * 20:
        costs.add(8, rows, 1.0 if rows == 8 else 2.0)
    assert costs.drafted(8, 16) == pytest.approx(1.0, abs=0.01)
    for _ in range(400):
        costs.add(8, 8, 1.0)
    assert costs.drafted(8, 16) == pytest.approx(1.2, abs=0.01)
