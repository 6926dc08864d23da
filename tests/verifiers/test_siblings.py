"""Sequential rejection: rounding, zeros, and laws that are none."""

from __future__ import annotations

import pytest
import torch

from paceline.tree import TokenTree
from paceline.verifiers.rejection import Rejection
from paceline.verifiers.siblings import Sibling, sequential_rejection
from paceline.verifiers.specinfer import SpecInfer

from .support import P, Q, drawn, judged, verdict


def refuse(probability: float, index: int) -> bool:
    return False


def test_a_refusal_by_rounding_accepts() -> None:
    index, _ = sequential_rejection(P, [Sibling(1, 0, 2, P + 1e-14)], refuse)
    assert index == 0


def test_a_token_that_the_target_rules_out_is_never_accepted() -> None:
    target, law = torch.tensor([0.0, 1.0]).double(), torch.tensor([1e-13, 1 - 1e-13]).double()
    index, rest = sequential_rejection(target, [Sibling(1, 0, 0, law)], refuse)
    assert index is None
    assert rest.tolist() == [0, 1]


def test_refused_point_masses_leave_the_rest() -> None:
    index, rest = sequential_rejection(P, [Sibling(1, 0, 0), Sibling(2, 0, 0), Sibling(3, 0, 2)], refuse)
    assert index is None
    assert rest.tolist() == pytest.approx([0, 1, 0])


def test_below_an_accepted_token_the_children_of_its_later_twins_are_candidates() -> None:
    sure = torch.tensor([[0.0, 1.0, 0.0]]).double()
    law = torch.cat([sure, torch.eye(3).double()])
    tree = drawn([1, 1, 0, 2], law, [0, 0, 1, 3], [0, 0, 1, 2])
    target = torch.stack([sure[0], torch.eye(3)[2].double(), torch.eye(3)[2].double(), Q, P])
    found = SpecInfer().verify(tree, target.log(), Anything(), 0)
    assert found.path == [0, 2, 4]
    assert found.bonus == 0


class Anything:
    """Chance that accepts what is possible and draws the likeliest."""

    def bernoulli(self, p: float, position: int, key: object) -> bool:
        return p > 0

    def categorical(self, p: torch.Tensor, position: int, key: object) -> int:
        return int(p.argmax())


@pytest.mark.parametrize(
    ("laws", "row", "message"),
    [
        (Q[None] * 1.01, 0, "sums to 1.01"),
        (torch.tensor([[0.0, 0.5, 0.5]]).double(), 0, "probability 0"),
        (torch.ones(1, 4).double() / 4, 0, "over 4 tokens, but the target has 3"),
        (Q[None], 1, "was drawn, but its law, number 1, is missing"),
    ],
)
def test_what_is_no_law_is_named(laws: torch.Tensor, row: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        verdict(Rejection(), drawn([0], laws, [row], [0]), P)


def test_one_draw_is_accepted_with_the_overlap() -> None:
    assert judged(Rejection(), P, Q).accepted == pytest.approx(0.7, abs=1e-12)


def test_an_empty_tree_is_plain_sampling() -> None:
    counts = torch.zeros(3)
    for seed in range(2000):
        counts[verdict(Rejection(), TokenTree.empty(0), P, seed).bonus] += 1
    assert (counts / 2000).tolist() == pytest.approx(P.tolist(), abs=0.04)
