"""Block verification: never fewer tokens than one by one."""

from __future__ import annotations

import pytest
import torch

from paceline.verifiers.block import Block
from paceline.verifiers.rejection import Rejection

from .support import P, Q, drawn, judged, pairs, verdict


def test_the_papers_example() -> None:
    p, q = torch.tensor([1 / 3, 2 / 3]).double(), torch.tensor([2 / 3, 1 / 3]).double()
    p, q = p / p.sum(), q / q.sum()
    assert judged(Block(), p, q, (1, 1)).accepted == pytest.approx(11 / 9, abs=1e-6)
    assert judged(Rejection(), p, q, (1, 1)).accepted == pytest.approx(10 / 9, abs=1e-6)


@pytest.mark.parametrize("length", [2, 3])
def test_never_fewer_tokens_and_sometimes_more(length: int) -> None:
    gains = []
    for p, q in pairs(6, 2 if length == 3 else 3):
        block, single = (judged(verifier, p, q, (1,) * length) for verifier in (Block(), Rejection()))
        assert block.error < 1e-10
        gains.append(block.accepted - single.accepted)
    assert min(gains) > -1e-12
    assert max(gains) > 1e-3


def test_one_token_is_speculative_sampling() -> None:
    for p, q in pairs(3, 3, seed=4):
        block, single = judged(Block(), p, q), judged(Rejection(), p, q)
        assert block.law == pytest.approx(single.law, abs=1e-12)
        assert block.accepted == pytest.approx(single.accepted, abs=1e-12)


def test_a_tree_that_branches_is_refused() -> None:
    with pytest.raises(ValueError, match="the tree branches"):
        verdict(Block(), drawn([1, 0], Q[None], [0, 0], [0, 0]), P)
