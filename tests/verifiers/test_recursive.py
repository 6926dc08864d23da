"""Recursive rejection and Sequoia: distinct siblings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from exact.steps import step

from paceline.drafters.base import SequenceDrafter
from paceline.evaluation import acceptance
from paceline.tree import TokenTree
from paceline.verifiers import Verifier
from paceline.verifiers.recursive import Recursive
from paceline.verifiers.rejection import Rejection
from paceline.verifiers.sequoia import Sequoia

from .support import P, Q, always, drawn, judged, pairs, verdict

BOTH = pytest.mark.parametrize("verifier", [Recursive(), Sequoia()], ids=["recursive", "sequoia"])


@BOTH
def test_two_siblings_of_the_example(verifier: Verifier) -> None:
    assert judged(verifier, P, Q, (2,)).accepted == pytest.approx(0.80857142857, abs=1e-10)


@pytest.mark.parametrize("k", [2, 3])
def test_the_rate_is_the_acceptance_vectors(k: int) -> None:
    for p, q in pairs(3, 4):
        vector = acceptance.acceptance_vector(p[None], q[None], k)[0]
        assert judged(Recursive(), p, q, (k,)).accepted == pytest.approx(float(vector.sum()), abs=1e-12)
        assert float(vector[0]) == pytest.approx(float(p.minimum(q).sum()), abs=1e-12)


def test_one_sibling_is_speculative_sampling() -> None:
    for p, q in pairs(3, 3, seed=2):
        assert judged(Recursive(), p, q, (1, 1)).law == pytest.approx(judged(Rejection(), p, q, (1, 1)).law)


def test_distinct_siblings_are_accepted_more_often_on_average() -> None:
    p, q = (torch.stack(laws) for laws in zip(*pairs(200, 5), strict=True))
    assert acceptance.recursive(p, q, 3).mean() > acceptance.specinfer(p, q, 3).mean() + 0.01


@BOTH
def test_a_law_that_still_holds_an_earlier_sibling_is_refused(verifier: Verifier) -> None:
    tree = drawn([1, 0], Q[None], [0, 0], [0, 0])
    refused = [seed for seed in range(20) if _raises(verifier, tree, seed)]
    assert len(refused) == 20


def _raises(verifier: Verifier, tree: TokenTree, seed: int) -> bool:
    with pytest.raises(ValueError, match="still holds one of"):
        verdict(verifier, tree, P, seed)
    return True


@dataclass(eq=False)
class RunsOut(SequenceDrafter):
    """A draft sure of token 2, whose second sibling is drawn uniformly from the others."""

    def draft(self, sequence: Any, nodes: int, depth: int) -> TokenTree:
        laws = torch.tensor([[0.0, 0.0, 1.0], [0.5, 0.5, 0.0]]).double()
        second = sequence.chance.categorical(laws[1], 0, "draft")
        return drawn([2, second], laws, [0, 1], [0, 0])


def test_beyond_the_drafts_support_siblings_may_be_uniform() -> None:
    for p, _ in pairs(3, 3, seed=3):
        found = step(Sequoia(), RunsOut(), always(p), 3, 1)
        assert found.error < 1e-10
        assert found.accepted > float(p[2])
