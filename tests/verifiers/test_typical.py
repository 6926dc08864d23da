"""Typical acceptance: floors, the longest path, and what it does to the law."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from paceline.chance import SeededChance
from paceline.errors import BadRequest
from paceline.tree import TokenTree
from paceline.verifiers.typical import TypicalAcceptance, best_path

from .support import P, Q, judged, verdict

FLAT = torch.full((4,), 0.25).double()


def test_the_floor_of_a_flat_law() -> None:
    assert TypicalAcceptance().floor(FLAT[None]).tolist() == pytest.approx([0.075])
    found = verdict(TypicalAcceptance(), TokenTree.chain(0, [3, 0, 1]), FLAT)
    assert found.path == [0, 1, 2, 3]


def test_a_sure_law_accepts_its_token_alone() -> None:
    sure = torch.tensor([0.0, 1.0, 0.0]).double()
    tree = TokenTree(np.array([0, 0, 1, 2]), np.array([-1, 0, 0, 0]))
    assert verdict(TypicalAcceptance(), tree, sure).path == [0, 2]


def test_a_floor_of_one_is_plain_sampling() -> None:
    found = judged(TypicalAcceptance(epsilon=1, delta=4), P, Q, (2, 1))
    assert found.accepted == 0
    assert found.error < 1e-10


def test_the_emitted_tokens_are_above_the_floor_and_the_law_moves() -> None:
    p = torch.tensor([0.9, 0.08, 0.02]).double()
    found = judged(TypicalAcceptance(), p, Q, (1,))
    floor = float(TypicalAcceptance().floor(p[None]))
    law = [sum(weight for text, weight in found.law.items() if text[0] == token) for token in range(3)]
    assert all(weight == 0 for token, weight in enumerate(law) if p[token] <= floor)
    shift = 0.5 * sum(abs(weight - float(p[token])) for token, weight in enumerate(law))
    assert 0.01 < shift < 0.2


def test_the_longest_path_wins_then_the_likeliest() -> None:
    tree = TokenTree(np.array([0, 1, 2, 3, 4, 5]), np.array([-1, 0, 0, 1, 2, 2]))
    everything = np.ones(5, bool)
    assert best_path(tree, everything, np.log([0.5, 0.1, 0.1, 0.9, 0.2])) == 4
    assert best_path(tree, np.array([False, True, True, True, True]), np.log([0.5, 0.1, 0.1, 0.2, 0.9])) == 5
    assert best_path(tree, ~everything, np.zeros(5)) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [({"epsilon": 0.0}, "epsilon=0.0"), ({"epsilon": 1.5}, "epsilon=1.5"), ({"delta": 0.0}, "delta=0.0")],
)
def test_bad_knobs_are_named(options: dict[str, float], message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        TypicalAcceptance(**options)


def test_an_empty_tree_yields_one_token() -> None:
    found = TypicalAcceptance().verify(TokenTree.empty(0), P[None].log(), SeededChance(1), 0)
    assert found.path == [0]
