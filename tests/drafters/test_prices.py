"""What steps take, and which drafts are scored therefore."""

from __future__ import annotations

import numpy as np
import pytest

from paceline.drafters import batch_costs, prices
from paceline.drafters.prices import Prices
from paceline.drafters.worth import Offer
from paceline.models.costs import PassCosts
from paceline.tree import TokenTree

FLAT_TO_SIX = PassCosts({1: 1.0, 6: 1.0, 12: 1.6, 24: 2.8})


@pytest.fixture(autouse=True)
def as_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of a batch are taken for what passes say, so that figures are easily followed."""
    monkeypatch.setattr(batch_costs, "DEARER", 1.0)


def test_what_a_batch_takes_beyond_its_pass_makes_drafts_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    chooser = Prices(PassCosts({1: 1.0, 64: 64.0}))
    offers = [Offer.of(TokenTree.chain(0, [1, 2]), np.array([1.0, 0.9, 0.8]))] * 8
    assert chooser.sizes(offers, [1.0] * 8) == [0] * 8
    now = [0.0]
    monkeypatch.setattr(prices, "clock", lambda: now[0])
    for texts in (1, 8):
        chooser.begin([1] * texts)
        now[0] += 100.0
        assert chooser.end() == (texts > 1)
    assert not chooser.end(), "no step has begun since"
    assert (chooser.plain(8), chooser.plain(1)) == (pytest.approx(100.0, rel=0.05), 1.0)
    assert chooser.sizes(offers, [1.0] * 8) == [2] * 8
    assert chooser.sizes(offers[:1], [1.0]) == [0]


def test_of_two_drafts_the_worthier_is_preferred() -> None:
    """A row takes 0.1, of a batch of four 0.4 of the tokens that its texts bring meanwhile."""
    chooser = Prices(PassCosts({1: 1.0, 2: 1.1, 32: 4.1}))
    likely, long = (Offer.of(TokenTree.chain(0, range(1, n + 1)), np.array([1.0, *odds])) for n, odds in (
        (1, [0.9]), (4, [0.6, 0.5, 0.4, 0.3])
    ))  # fmt: skip
    assert chooser.prefers(long, likely, 1)
    assert chooser.row(4) == pytest.approx(0.4 / 1.3)
    assert chooser.prefers(likely, long, 4)
    none = Offer.none(0)
    assert chooser.prefers(likely, none, 4)
    assert not chooser.prefers(none, none, 4)


def test_the_size_of_a_draft_maximises_tokens_a_second() -> None:
    chooser = Prices(FLAT_TO_SIX)
    generator = np.random.default_rng(0)
    for _ in range(50):
        size = int(generator.integers(1, 15))
        parents = np.array([-1, *(int(generator.integers(i)) for i in range(1, size + 1))])
        odds = np.ones(size + 1)
        for node in range(1, size + 1):
            odds[node] = odds[parents[node]] * generator.random() ** 0.3
        offer = Offer.of(TokenTree(np.arange(size + 1), parents), odds)
        width = chooser.sizes([offer], [1.0])[0]
        best = max((1 + sum(sorted(odds[1:], reverse=True)[:n])) / FLAT_TO_SIX(n + 1) for n in range(size + 1))
        kept = offer.cut(width)
        found = (1 + sum(odds[list(kept.tokens[1:])])) / FLAT_TO_SIX(len(kept))
        assert found == pytest.approx(best)
        assert chooser.rate(offer) == pytest.approx(best)


def test_nothing_is_drafted_where_a_row_costs_more_than_it_brings() -> None:
    chooser = Prices(PassCosts({1: 1.0, 2: 1.6, 32: 1.0 + 31 * 0.6}))
    for chance, wanted in ((0.55, 0), (0.65, 1)):
        offer = Offer.of(TokenTree.chain(0, range(1, 9)), chance ** np.arange(9))
        assert (chooser.sizes([offer], [1.0])[0] > 0) == wanted


def test_a_batch_gets_smaller_drafts() -> None:
    chooser = Prices(FLAT_TO_SIX)
    offer = Offer.of(TokenTree.chain(0, range(1, 9)), 0.6 ** np.arange(9))
    sizes = [sum(chooser.sizes([offer] * rows, [1.0] * rows)) / rows for rows in (1, 2, 4, 8)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[-1]


@pytest.mark.parametrize(("padded", "wanted"), [(False, [6, 0, 0]), (True, [0, 0, 0])])
def test_in_a_batch_the_text_that_copies_gets_the_draft(padded: bool, wanted: list[int]) -> None:
    chooser = Prices(PassCosts({1: 1.0, 3: 1.0, 16: 3.0}), padded)
    copies, guesses = (Offer.of(TokenTree.chain(0, range(1, 7)), chance ** np.arange(7)) for chance in (0.98, 0.1))
    assert chooser.sizes([copies, guesses, guesses], [1.0] * 3) == wanted


def test_drafted_tokens_of_a_step_share_what_their_rows_take() -> None:
    chooser = Prices(FLAT_TO_SIX)
    for widths, node in (([1, 1], 0), ([5, 7], 0.06), ([7], 0.1 / 6)):
        chooser.begin(widths)
        assert chooser.node == pytest.approx(node)


def test_a_padded_pass_takes_as_many_rows_for_every_text() -> None:
    chooser = Prices(FLAT_TO_SIX, padded=True)
    chooser.begin([1, 1, 4])
    assert chooser.node == pytest.approx(0.6 / 3)


def test_a_token_is_worth_its_row_from_some_chance_on() -> None:
    """In a batch of eight a row takes 0.1 and a plain step 1.2, which brings eight tokens."""
    chooser = Prices(FLAT_TO_SIX)
    assert chooser.worth(1) == 0
    assert chooser.worth(8) == pytest.approx(prices.SLACK * 0.1 * 8 / 1.2)


def test_room_is_what_drafts_that_all_hold_would_bring() -> None:
    """Twice the tokens take 1.2 times as long for four texts, 1.6 times for six."""
    chooser = Prices(FLAT_TO_SIX)
    assert [chooser.room(texts) for texts in (1, 4, 6)] == [1.0, pytest.approx(2 / 1.2 - 1), pytest.approx(2 / 1.6 - 1)]
    steep = Prices(PassCosts({1: 1.0, 2: 2.0, 32: 40.0}))
    assert steep.room(8) == 0.0


def test_room_shrinks_where_rows_turn_out_dearer(monkeypatch: pytest.MonkeyPatch) -> None:
    now, chooser = [0.0], Prices(FLAT_TO_SIX)
    monkeypatch.setattr(prices, "clock", lambda: now[0])
    before = chooser.room(6)
    for widths in ([1] * 6, [2] * 6) * 4:
        chooser.begin(widths)
        now[0] += FLAT_TO_SIX(6) + 1.5 * (FLAT_TO_SIX(sum(widths)) - FLAT_TO_SIX(6))
        chooser.end()
    assert chooser.room(6) < 0.5 * before
