"""The calibration error of SpecDec++'s prediction: by hand, and of predictors that must be right or wrong."""

from __future__ import annotations

import pytest
import torch

from paceline.api import Engine
from paceline.evaluation.calibration import Watched, expected_error, watch
from paceline.testing import TabularModel, random_table
from paceline.testing.tabular import Table


def test_the_error_by_hand() -> None:
    assert expected_error([0.95, 0.95, 0.05], [True, True, False]) == pytest.approx(0.05)
    # One bin: mean 0.25, one of four held. Two bins: 0.15 and 0.85 beside 1 and 0.
    assert expected_error([0.21, 0.29, 0.22, 0.28], [True, False, False, False]) == pytest.approx(0)
    assert expected_error([0.15, 0.85], [True, False]) == pytest.approx(0.85)
    assert expected_error([1.0], [True]) == 0


def watched(target: Table, draft: Table, tokens: int) -> Watched:
    engine = Engine(TabularModel(target, 4, context=400), drafter="none", verifier="rejection", nodes=6)
    small = TabularModel(draft, 4, context=400, name="draft")
    return watch(engine, small, [[1], [2]], 4, max_new_tokens=tokens, temperature=1.0, seed=1)


def test_chains_of_an_equal_draft_hold_and_that_is_learned() -> None:
    seen = watched(random_table(4), random_table(4), 300)
    assert all(seen.held)
    assert len(seen.held) == len(seen.holds) == len(seen.odds) > 400
    assert min(seen.holds[-4:]) > 0.7 > 0.2 > min(seen.holds[:4])
    assert expected_error(seen.holds, seen.held) < expected_error(seen.odds, seen.held) / 2


def test_a_draft_that_is_too_sure_of_itself_is_seen_through() -> None:
    def sure(prefix: tuple[int, ...]) -> torch.Tensor:
        return (4 * random_table(4)(prefix)).log_softmax(-1)

    seen = watched(random_table(4, seed=5), sure, 300)
    assert 0 < sum(seen.held) < len(seen.held)
    assert expected_error(seen.holds, seen.held) < 0.1 < expected_error(seen.odds, seen.held)


def test_what_was_not_judged_is_left_out() -> None:
    """A text of two tokens judges one drafted token at most."""
    seen = watched(random_table(4), random_table(4), 2)
    assert len(seen.held) <= 2
