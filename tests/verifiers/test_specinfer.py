"""SpecInfer: the published recursion, and siblings of several draft models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from exact.steps import step

from paceline.drafters.base import SequenceDrafter
from paceline.evaluation import acceptance
from paceline.tree import TokenTree
from paceline.verifiers.specinfer import SpecInfer

from .support import P, Q, always, drawn, judged, pairs


def test_two_siblings_of_the_example() -> None:
    assert judged(SpecInfer(), P, Q, (2,)).accepted == pytest.approx(0.76, abs=1e-12)


@pytest.mark.parametrize("k", [2, 3])
def test_the_rate_follows_the_recursion(k: int) -> None:
    for p, q in pairs(3, 3):
        found = judged(SpecInfer(), p, q, (k,))
        assert found.accepted == pytest.approx(float(acceptance.specinfer(p[None], q[None], k)), abs=1e-12)
        assert found.error < 1e-10


@dataclass(eq=False)
class TwoModels(SequenceDrafter):
    """One child of each of two draft laws."""

    laws: torch.Tensor

    def draft(self, sequence: Any, nodes: int, depth: int) -> TokenTree:
        tokens = [sequence.chance.categorical(law, 0, ("draft", i)) for i, law in enumerate(self.laws)]
        return drawn(tokens, self.laws, [0, 1], [0, 0])


def test_siblings_of_two_draft_models() -> None:
    for p, q in pairs(3, 3, seed=1):
        assert step(SpecInfer(), TwoModels(torch.stack([q, Q])), always(p), 3, 1).error < 1e-10
