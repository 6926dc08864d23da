"""Lenience: lossless at 1, and no token more than 1/lenience times as likely."""

from __future__ import annotations

import pytest
import torch

from paceline.errors import BadRequest
from paceline.tree import TokenTree
from paceline.verifiers.lenient import Lenient
from paceline.verifiers.rejection import Rejection

from .support import judged, pairs


def test_one_is_rejection() -> None:
    for p, q in pairs(3, 3):
        assert judged(Lenient(1.0), p, q, (1, 1)).law == pytest.approx(judged(Rejection(), p, q, (1, 1)).law, abs=1e-12)


@pytest.mark.parametrize("lenience", [0.3, 0.7])
def test_the_bound_holds_and_more_is_accepted(lenience: float) -> None:
    for p, q in pairs(5, 3, seed=1):
        found = judged(Lenient(lenience), p, q)
        for token in range(3):
            law = sum(weight for text, weight in found.law.items() if text[0] == token)
            assert law <= float(p[token]) / lenience + 1e-9
        assert found.accepted >= float(p.minimum(q).sum()) - 1e-12


def test_greedily_a_token_may_be_a_share_of_the_best() -> None:
    logp = torch.tensor([[0.5, 0.3, 0.2]]).log().expand(3, -1)
    tree = TokenTree.chain(0, [1, 2])
    assert Lenient(0.5).verify_greedy(tree, logp).path == [0, 1]
    assert Lenient(0.3).verify_greedy(tree, logp).path == [0, 1, 2]
    assert Lenient(1.0).verify_greedy(tree, logp).path == [0]
    assert Lenient(1.0).verify_greedy(tree, torch.zeros(3, 3)).path == [0]


@pytest.mark.parametrize("lenience", [0.0, 1.5, -1.0])
def test_bad_lenience_is_named(lenience: float) -> None:
    with pytest.raises(BadRequest, match=f"lenience={lenience}"):
        Lenient(lenience)
