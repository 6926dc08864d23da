"""When a batch's texts are asked for, and what that may lose."""

from __future__ import annotations

import pytest

from paceline.drafters.expense import WARM, WORTH
from paceline.drafters.purse import ALLOWED, CREDIT, MOST, PAUSE, Purse, copied


def paying(fixed: float, each: float, left: float) -> Purse:
    """A purse that knows what asking takes."""
    purse = Purse()
    for i in range(200):
        purse.asked(1 + i % 8, fixed + each * (1 + i % 8))
    purse.left = left
    return purse


def test_what_asking_takes_is_told_by_the_texts_it_is_for() -> None:
    purse = Purse()
    for _ in range(WARM - 1):
        purse.asked(8, 1.0)
    assert (purse.known, purse.seconds) == (False, 0.0)
    known = paying(0.3, 0.1, 0.0)
    assert known.known
    assert known.seconds == pytest.approx(0.1, rel=0.1)
    assert known._takes(4) == pytest.approx(0.7, rel=0.05)


def test_before_it_is_known_it_is_tried_until_the_credit_is_spent() -> None:
    purse = Purse()
    for _ in range(2):
        assert purse.opens(0.0, 8, 8, 1.0)
        purse.add(-CREDIT)
    assert not purse.opens(0.0, 8, 8, 1.0)


def test_trials_that_fail_lose_what_each_step_allows() -> None:
    purse, asked, steps = paying(0.1, 0.05, CREDIT), 0, 2000
    for _ in range(steps):
        tried = purse.opens(0.0, 8, 8, 1.0)
        asked += tried
        purse.add(-0.5 * tried)
    assert 0.5 * asked == pytest.approx(CREDIT + ALLOWED * steps, abs=0.5)


def test_a_trial_waits_until_all_texts_could_be_tried() -> None:
    purse = paying(0.1, 0.05, 0.3)
    assert not purse.opens(0.0, 1, 8, 1.0), "for one 0.15 were enough, for all 0.5 are needed"
    purse.left = 0.55
    assert purse.opens(0.0, 1, 8, 1.0)
    assert purse.opens(0.0, 1, 8, 2.0)
    assert not purse.opens(0.0, 1, 8, 0.5), "in steps half as long it is twice as much"


@pytest.mark.parametrize(("left", "hope", "asked"), [(0.0, 0.9, True), (0.0, 0.7, False), (-0.5, 0.9, False)])
def test_drafts_must_be_expected_to_save_twice_what_asking_takes_and_what_was_lost(
    left: float, hope: float, asked: bool
) -> None:
    purse = paying(0.2, 0.05, left)
    assert WORTH * purse._takes(4) == pytest.approx(0.8, rel=0.05)
    assert purse.opens(hope, 4, 8, 1.0) is asked
    assert purse.opens(hope + 0.5, 4, 8, 1.0)


def test_what_was_saved_long_ago_pays_for_little() -> None:
    purse = Purse()
    for _ in range(100):
        purse.add(3.0)
    assert purse.left == MOST


def test_a_pause_begins_with_the_step_at_hand() -> None:
    purse = Purse()
    assert not purse.pauses()
    purse.pause()
    assert not purse.paused, "what this step takes is learnt from"
    assert [purse.pauses() for _ in range(PAUSE)] == [True] * (PAUSE - 1) + [False]
    assert not purse.pauses()


@pytest.mark.parametrize(
    ("chance", "row", "most", "saved"),
    [(0.5, 0.0, 3, 0.875), (0.5, 0.2, 31, 0.35), (1.0, 0.5, 4, 2.0), (0.3, 0.3, 31, 0.0), (0.0, 0.0, 31, 0.0)],
)
def test_a_copy_ends_where_a_row_takes_more_than_it_brings(chance: float, row: float, most: int, saved: float) -> None:
    assert copied(chance, row, most) == pytest.approx(saved)
