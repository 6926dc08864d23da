"""Which nodes of several drafts share a pass."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from paceline.drafters.portions import Portions
from paceline.drafters.worth import Offer
from paceline.tree import TokenTree


def drafts(seed: int) -> list[Offer]:
    """Random trees of up to five nodes, some empty."""
    generator, offers = np.random.default_rng(seed), []
    for _ in range(4):
        size = int(generator.integers(6))
        parents = np.array([-1, *(int(generator.integers(i)) for i in range(1, size + 1))])
        odds = np.ones(size + 1)
        for node in range(1, size + 1):
            odds[node] = odds[parents[node]] * generator.random()
        offers.append(Offer.of(TokenTree(np.arange(size + 1), parents), odds))
    return offers


@pytest.mark.parametrize("seed", range(20))
def test_no_other_portions_of_so_many_rows_bring_more(seed: int) -> None:
    offers, shares = drafts(seed), [1.0, 0.5, 0.7, 1.0]
    every = list(product(*(range(len(offer.gains)) for offer in offers)))
    parts = [1 + share * (offer.gains - 1) for offer, share in zip(offers, shares, strict=True)]
    brought = {sizes: sum(part[n] for part, n in zip(parts, sizes, strict=True)) for sizes in every}
    for padded, rows in ((False, lambda sizes: 4 + sum(sizes)), (True, lambda sizes: 4 * (1 + max(sizes)))):
        portions = Portions(offers, shares, padded)
        assert portions.rows.tolist() == sorted({rows(sizes) for sizes in every})
        for choice, count in enumerate(portions.rows):
            sizes = tuple(portions.sizes(choice))
            assert rows(sizes) == count
            assert brought[sizes] == pytest.approx(portions.gains[choice])
            assert portions.gains[choice] == pytest.approx(max(brought[s] for s in every if rows(s) <= count))


@pytest.mark.parametrize(("padded", "rows"), [(False, [6, 7, 8]), (True, [12, 12, 12])])
def test_what_was_drawn_stays_whole(padded: bool, rows: list[int]) -> None:
    drawn = TokenTree.chain(0, [1, 2, 3], torch.zeros(3, 8).log_softmax(-1))
    odds = np.array([1, 0.5, 0.25, 0.125])
    offers = [Offer.of(drawn, odds), Offer.of(TokenTree.chain(0, [1, 2]), odds[:3]), Offer.none(7)]
    portions = Portions(offers, [0.8, 1.0, 1.0], padded)
    assert portions.sizes(0) == [3, 0, 0]
    assert portions.sizes(2) == [3, 2, 0]
    assert portions.gains == pytest.approx([3.7, 4.2, 4.45])
    assert portions.rows.tolist() == rows


@pytest.mark.parametrize("padded", [False, True])
def test_nothing_to_draft_leaves_one_choice(padded: bool) -> None:
    portions = Portions([Offer.none(1), Offer.none(2)], [1.0, 1.0], padded)
    assert (portions.gains.tolist(), portions.rows.tolist(), portions.sizes(0)) == ([2.0], [2], [0, 0])


@pytest.mark.parametrize("padded", [False, True])
def test_texts_without_a_draft_count_as_those_whose_draft_is_empty(padded: bool) -> None:
    (offer, *_) = (offer for offer in drafts(3) if offer.tree.drafted)
    listed = Portions([offer, Offer.none(1), Offer.none(2)], [0.9, 1.0, 1.0], padded)
    counted = Portions([offer], [0.9], padded, others=2)
    assert counted.gains == pytest.approx(listed.gains)
    assert counted.rows.tolist() == listed.rows.tolist()
    assert [counted.sizes(i) for i in range(len(counted.rows))] == [
        listed.sizes(i)[:1] for i in range(len(listed.rows))
    ]
