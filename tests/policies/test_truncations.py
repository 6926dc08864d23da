"""Truncations: worked examples, ties, extreme rows, and equality with transformers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation import logits_process as hf

from paceline.errors import BadRequest
from paceline.policies import Policy
from paceline.policies.epsilon import Epsilon
from paceline.policies.eta import Eta
from paceline.policies.min_p import MinP
from paceline.policies.top_k import TopK
from paceline.policies.top_p import TopP
from paceline.policies.truncation import CANDIDATES, shortest_prefix
from paceline.policies.typical import Typical

from .common import kept, one, scores

HALVES = (0.5, 0.25, 0.125, 0.125)
TRUNCATIONS = [TopK(3), TopP(0.75), MinP(0.3), Typical(0.5), Epsilon(0.2), Eta(0.2)]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (TopK(1), [0]),
        (TopK(2), [0, 1]),
        (TopK(3), [0, 1, 2, 3]),  # equal to the third best: stays
        (TopK(9), [0, 1, 2, 3]),
        (TopP(0.75), [0, 1]),
        (TopP(0.76), [0, 1, 2]),  # of the two equal tokens the lower id
        (TopP(0.9), [0, 1, 2, 3]),
        (TopP(1e-9), [0]),
        (MinP(0.3), [0, 1]),
        (MinP(0.5), [0, 1]),
        (MinP(1), [0]),
        (Typical(0.2), [1]),  # the most typical token alone, not the most likely
        (Typical(0.5), [0, 1]),
        (Typical(0.8), [0, 1, 2]),
        (Epsilon(0.2), [0, 1]),
        (Epsilon(0.25), [0, 1]),  # as likely as the cutoff: stays
        (Epsilon(0.9), [0]),
        (Eta(0.2), [0, 1]),  # the cut is sqrt(0.2) exp(-1.213) = 0.133
        (Eta(0.15), [0, 1, 2, 3]),  # 0.115
        (Eta(0.9), [0]),
    ],
    ids=str,
)
def test_worked_examples(policy: Policy, expected: list[int]) -> None:
    assert kept(policy, HALVES) == expected


def test_order_of_tokens_does_not_matter() -> None:
    assert kept(TopP(0.75), (0.125, 0.25, 0.125, 0.5)) == [1, 3]
    assert kept(Typical(0.5), (0.125, 0.25, 0.125, 0.5)) == [1, 3]
    assert kept(TopP(0.8), (0.125, 0.25, 0.125, 0.5)) == [0, 1, 3]


@pytest.mark.parametrize("policy", TRUNCATIONS, ids=str)
def test_equal_scores_keep_the_lowest_ids(policy: Policy) -> None:
    tokens = kept(policy, [0.125] * 8)
    assert tokens == list(range(len(tokens)))
    assert len(tokens) == {"TopP": 6, "Typical": 4}.get(type(policy).__name__, 8)


@pytest.mark.parametrize("policy", TRUNCATIONS, ids=str)
def test_a_lone_finite_score_stays(policy: Policy) -> None:
    row = one(policy, [-torch.inf, -torch.inf, 3.0, -torch.inf])
    assert row.tolist() == [-torch.inf, -torch.inf, 3.0, -torch.inf]


@pytest.mark.parametrize("policy", TRUNCATIONS, ids=str)
def test_a_row_without_finite_scores_stays_empty(policy: Policy) -> None:
    raw = torch.stack([torch.full((4,), -torch.inf), torch.tensor(HALVES).log()])
    rows = policy.transform(raw, [None, None])
    assert not rows[0].isfinite().any()
    assert torch.equal(rows[1], policy.transform(raw[1:], [None])[0])


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    size=st.sampled_from([3, 50, 2 * CANDIDATES[0]]),
    scale=st.sampled_from([0.1, 1.0, 5.0]),
    p=st.floats(0.02, 0.98),
)
def test_equal_to_transformers(seed: int, size: int, scale: float, p: float) -> None:
    raw = scores(4, seed, size) * scale
    raw[1, : size // 2] = -torch.inf
    pairs: list[tuple[Policy, hf.LogitsProcessor]] = [
        (TopK(1 + int(p * size)), hf.TopKLogitsWarper(1 + int(p * size))),
        (TopP(p), hf.TopPLogitsWarper(p)),
        (MinP(p), hf.MinPLogitsWarper(p)),
        (Typical(p), hf.TypicalLogitsWarper(p)),
        (Epsilon(p / 10), hf.EpsilonLogitsWarper(p / 10)),
        (Eta(p / 10), hf.EtaLogitsWarper(p / 10)),
    ]
    for policy, processor in pairs:
        torch.testing.assert_close(policy.transform(raw, [None] * 4), processor(None, raw), msg=str(policy))


@pytest.mark.parametrize("size", [CANDIDATES[0] + 1, CANDIDATES[1] + 1])
@pytest.mark.parametrize("mass", [0.001, 0.5, 0.999])
def test_few_candidates_suffice_exactly(size: int, mass: float) -> None:
    """Sorting a few leading candidates gives the set that sorting all does, with ties everywhere."""
    key = scores(6, 5, size).round(decimals=1)
    key[0] = 0
    p = scores(6, 6, size).mul(4).softmax(-1)
    order = key.sort(dim=-1, descending=True, stable=True).indices
    before = p.gather(-1, order).double().cumsum(-1) - p.gather(-1, order)
    expected = torch.zeros_like(key, dtype=torch.bool).scatter_(-1, order, before < mass)
    assert torch.equal(shortest_prefix(key, p, mass), expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TopK(-1), "top_k: -1 is out of range; an integer of at least 1, or 0 to switch it off"),
        (lambda: TopK(2.5), "top_k: 2.5 is not an integer"),
        (lambda: TopK(True), "top_k: True is not an integer"),
        (lambda: TopP(0), "top_p: 0 is out of range; 0 < top_p <= 1"),
        (lambda: TopP(1.01), "top_p: 1.01 is out of range; 0 < top_p <= 1"),
        (lambda: TopP("x"), "top_p: 'x' is not a number"),
        (lambda: TopP(float("nan")), "top_p: nan is not a number"),
        (lambda: MinP(-0.1), "min_p: -0.1 is out of range; 0 <= min_p <= 1"),
        (lambda: Typical(0), "typical_p: 0 is out of range; 0 < typical_p <= 1"),
        (lambda: Epsilon(1), "epsilon_cutoff: 1 is out of range; 0 <= epsilon_cutoff < 1"),
        (lambda: Eta(float("inf")), "eta_cutoff: inf is out of range"),
        (lambda: Eta(True), "eta_cutoff: True is not a number"),
    ],
)
def test_refused_arguments(make: object, message: str) -> None:
    with pytest.raises(BadRequest) as refusal:
        make()  # type: ignore[operator]
    assert message in str(refusal.value)
