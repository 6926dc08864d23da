"""What steps take beside their passes, and texts whose drafts are not worth asking for."""

from __future__ import annotations

import numpy as np
import pytest

from paceline.drafters.expense import (
    HOPE,
    LONGEST,
    PATIENCE,
    SHARE,
    SHORTEST,
    WARM,
    WORTH,
    Beside,
    Luck,
    Mean,
    Pace,
    Rest,
    Slope,
    moved,
)
from paceline.drafters.worth import Form


def test_judging_is_learnt_by_drafted_token() -> None:
    beside = Beside()
    beside.add(4, 9.0)  # nothing to compare it with yet
    assert beside(4) == 0
    for _ in range(200):
        beside.add(0, 0.2)
        beside.add(4, 1.0)
    assert np.allclose(beside(np.arange(3)), [0.2, 0.4, 0.6])


def test_what_drafts_brought_corrects_what_they_are_expected_to() -> None:
    luck = Luck()
    assert luck.share == 1
    luck.add(1.0, 0.0)
    assert luck.share == pytest.approx(8 / 9)  # one draft that failed says little
    for _ in range(200):
        luck.add(4.0, 2.0)
    assert luck.share == pytest.approx(0.5, abs=0.05)
    for _ in range(200):
        luck.add(0.0, 0.0)
    assert luck.share == pytest.approx(1.0, abs=0.01)  # forgotten
    for _ in range(200):
        luck.add(1.0, 3.0)
    assert luck.share == 1.25


def test_one_step_that_was_held_up_hardly_counts() -> None:
    assert moved(None, 5.0) == 5.0
    assert moved(1.0, 1000.0) < 1.3
    assert moved(1.0, 0.0) == pytest.approx(0.9)


def test_drafts_that_bring_nothing_take_a_hundredth_of_the_time() -> None:
    rest, asked = Rest(), []
    for step in range(2000):
        if not rest.begins():
            asked.append(step)
            rest.asked(0, 0.08, 1.0)
    assert asked[:8] == list(range(8))  # it is given time
    assert np.diff(asked[-20:]) == pytest.approx(1 + 0.08 / SHARE)
    rest.asked(0, 50.0, 1.0)
    assert rest.left == LONGEST


@pytest.mark.parametrize("room", [1.0, 0.5, 0.1, 0.0])
def test_where_drafts_can_bring_little_little_is_spent_on_asking(room: float) -> None:
    rest, asked = Rest(), []
    for step in range(2000):
        if not rest.begins(8, room):
            asked.append(step)
            rest.asked(0, 0.04, 1.0)
    given = next(i for i, step in enumerate(asked) if step != i)
    assert given <= max(1, PATIENCE * room * HOPE / (WORTH * 0.04))
    assert np.diff(asked[-20:]) == pytest.approx(1 + min(LONGEST, 0.04 / SHARE / max(room, 1e-9)))


def test_drafts_that_hold_are_asked_for_however_little_they_can_bring() -> None:
    rest = Rest()
    assert not any(rest.begins(8, 0.1) or rest.asked(0.2, 0.04, 1.0) for _ in range(100))


def test_what_others_taught_is_hoped_for_no_more_than_there_is_room() -> None:
    rest = Rest(Form(PATIENCE, 2 * PATIENCE))
    rest.begins(1)
    assert rest.brought.tokens == 2 * PATIENCE
    rest.begins(8, 0.1)
    assert rest.brought.tokens == pytest.approx(0.1 * HOPE * PATIENCE)


def test_a_draft_that_holds_ends_the_rest() -> None:
    rest = Rest()
    for _ in range(200):
        if not rest.begins():
            rest.asked(0, 0.08, 1.0)
    while rest.begins():
        pass
    rest.asked(3, 0.08, 1.0)
    assert not rest.begins()


def test_a_lucky_draft_does_not_shorten_the_next_rest() -> None:
    rest = Rest()
    while rest.most < LONGEST:
        if not rest.begins():
            rest.asked(0, 0.5, 1.0)
    rest.asked(0.6, 0.5, 1.0)
    assert not rest.begins()
    rest.asked(0, 0.5, 1.0)
    assert rest.left == LONGEST


def test_what_drafts_save_must_be_more_than_drafting_them_takes() -> None:
    for paid, rests in ((0.1, False), (0.4, True)):
        rest = Rest()
        for _ in range(100):
            if not rest.begins():
                rest.asked(0.3, 0.01, 1.0, paid)
        assert (rest.left > 0 or rest.most > SHORTEST) is rests


def test_asking_that_takes_next_to_nothing_never_rests() -> None:
    rest = Rest()
    for _ in range(500):
        assert not rest.begins()
        rest.asked(0, 0.5 * SHARE, 1.0)


@pytest.mark.parametrize(("texts", "renewed"), [(8, False), (5, False), (4, True)])
def test_beside_half_as_many_texts_drafts_get_another_chance(texts: int, renewed: bool) -> None:
    rest = Rest()
    while rest.most < LONGEST:
        if not rest.begins(8):
            rest.asked(0, 0.5, 1.0)
    rest.asked(0, 0.5, 1.0)
    assert rest.begins(8)
    assert rest.begins(1, in_vain=True), "nobody is asked, so nothing is found out"
    assert rest.begins(texts) is not renewed
    assert (rest.most == SHORTEST) is renewed


def test_a_step_in_which_asking_would_be_in_vain_goes_without() -> None:
    rest = Rest()
    assert rest.begins(in_vain=True)
    assert rest.now
    assert not rest.begins()


def test_the_first_times_count_as_the_shortest_of_them() -> None:
    mean = Mean()
    assert (mean.seconds, mean.known) == (0.0, False)
    for seconds in (9.0, 2.0, 5.0):
        mean.add(seconds)
    assert mean.count == WARM
    assert (mean.seconds, mean.known) == (2.0, True)
    mean.add(3.0)
    assert mean.seconds == pytest.approx(2.1)


def test_a_batch_is_asked_by_depth_and_a_text_alone_as_a_whole() -> None:
    pace = Pace()
    assert pace() == pace(8, 3) == 0
    pace.add(4.0, texts=8, depth=3)
    assert pace() == pace(8, 1) == 2.0  # until it is known of a text alone
    assert pace(8, 3) == 4.0
    pace.add(0.5, texts=1, depth=9)
    assert not pace.known
    pace.add(0.7, texts=1, depth=2)
    assert pace.known
    assert (pace(), pace(1, 7), pace(4, 1)) == (0.5, 0.5, 2.0)


def test_the_first_times_by_depth_count_as_the_shortest_of_them() -> None:
    slope = Slope()
    for depth, seconds in ((1, 9.0), (2, 4.0), (4, 20.0)):
        slope.add(depth, seconds)
    assert slope(np.array([1, 3])).tolist() == pytest.approx([2.0, 6.0])


def test_what_a_call_takes_at_any_rate_is_told_from_what_a_token_takes() -> None:
    slope = Slope()
    for i in range(400):
        depth = 1 + i % 5
        slope.add(depth, 1.0 + 0.2 * depth)
    assert slope(np.array([1, 5])).tolist() == pytest.approx([1.2, 2.0], rel=0.06)
    before = float(slope(np.array(3)))
    slope.add(3, 1000.0)  # something else held it up
    assert float(slope(np.array(3))) < 1.3 * before


def test_rests_grow_from_short_ones() -> None:
    rest, rests, asked = Rest(), [], -1
    for step in range(120):
        if not rest.begins():
            rests.append(step - asked - 1)
            asked = step
            rest.asked(0, 1.0, 1.0)
    assert rests[1:6] == [SHORTEST, 2 * SHORTEST, 4 * SHORTEST, LONGEST, LONGEST]


def test_a_glance_that_finds_something_ends_a_rest() -> None:
    rest = Rest()
    for _ in range(40):
        rest.begins()
        rest.asked(0, 0.2, 1.0)
    glanced = []
    rest.left = LONGEST
    while rest.left:
        rest.begins()
        if rest.glances:
            glanced.append(rest.left)
            assert not rest.stirs(0.3, 0.2, 1.0), "it must save twice what asking takes"
    assert glanced == [12, 8, 4]
    rest.left = LONGEST
    assert rest.begins()
    assert rest.stirs(0.5, 0.2, 1.0)
    assert (rest.now, rest.left) == (False, 0)


def test_where_the_target_is_unsure_drafts_are_given_up_sooner() -> None:
    def given_up(most: float) -> int:
        rest = Rest()
        for step in range(100):
            if rest.begins():
                return step
            rest.expect(most)
            rest.asked(0, 0.1, 1.0)
        return 100

    assert given_up(0.1) == 1
    assert given_up(0.3) < given_up(1.0) == given_up(9.0)
