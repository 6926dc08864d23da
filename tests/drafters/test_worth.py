"""What drafts are remembered to have promised."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from paceline.drafters.worth import LATELY, NODES, Offer, Offers, surplus
from paceline.tree import TokenTree


def offer(*odds: float) -> Offer:
    return Offer.of(TokenTree.chain(0, range(1, len(odds) + 1)), np.array([1.0, *odds]))


def test_a_draft_is_worth_what_its_tokens_bring_beyond_their_rows() -> None:
    gains = offer(0.9, 0.5, 0.3).gains
    assert surplus(gains, 1.0, 0.4) == pytest.approx(0.5 + 0.1)
    assert surplus(gains, 0.5, 0.4) == pytest.approx(0.05)
    assert surplus(gains, 1.0, 1.0) == 0
    assert surplus(Offer.none(0).gains, 1.0, 0.1) == 0


def test_the_last_drafts_are_valued_at_any_price_of_a_row() -> None:
    offers = Offers()
    assert (offers.count, offers.value(1.0, 0.1)) == (0, 0.0)
    offers.add(offer(0.9, 0.5))
    offers.add(offer(0.2))
    assert offers.value(1.0, 0.4) == pytest.approx((0.6 + 0.0) / 2)
    assert offers.value(1.0, 0.1) == pytest.approx((1.2 + 0.1) / 2)
    for _ in range(LATELY):
        offers.add(offer(0.5))
    assert offers.value(1.0, 0.4) == pytest.approx(0.1)


def test_what_was_drawn_is_valued_whole() -> None:
    tree = replace(TokenTree.chain(0, [1, 2]), draws=torch.zeros(2, 3))
    drawn = Offer.of(tree, np.array([1.0, 0.9, 0.2]))
    offers = Offers()
    offers.add(drawn)
    assert offers.value(1.0, 0.4) == pytest.approx(0.9 + 0.2 - 0.8)


def test_of_a_long_draft_the_beginning_counts() -> None:
    offers = Offers()
    offers.add(offer(*[0.9] * (NODES + 5)))
    assert offers.value(1.0, 0.4) == pytest.approx(0.5 * NODES)


def test_drafts_are_told_apart_by_length() -> None:
    offers = Offers()
    assert (offers.longest, offers.by_length()[0].max()) == (0, 1.0)
    offers.add(offer(0.9, 0.5))
    offers.add(offer(0.3))
    gains, nodes = offers.by_length()
    assert gains[:4] == pytest.approx([1.0, 1.6, 1.85, 1.85])
    assert nodes[:4] == pytest.approx([0.0, 1.0, 1.5, 1.5])
    assert offers.longest == 2
