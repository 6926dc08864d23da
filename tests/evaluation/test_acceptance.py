"""Acceptance rates beside the optimal transport: by formula, by enumeration of the verifiers, by linear programme."""

from __future__ import annotations

import itertools

import pytest
import torch
from verifiers.support import P, Q, judged, pairs

from paceline import registry
from paceline.errors import BadRequest
from paceline.evaluation import acceptance as a
from paceline.evaluation.survey import Survey, markdown, survey


@pytest.mark.parametrize(
    ("name", "rate"),
    [("rejection", 0.7), ("specinfer", 0.76), ("spectr", 0.79136), ("recursive", 0.80857), ("optimal", 0.9)],
)
def test_the_example(name: str, rate: float) -> None:
    assert float(a.RATES[name](P[None], Q[None], 2)) == pytest.approx(rate, abs=1e-5)


def test_the_examples_bounds() -> None:
    assert float(a.bound(P[None], Q[None], 2)) == pytest.approx(0.86, abs=1e-9)
    assert float(a.bound(P[None], Q[None], 2, "distinct")) == pytest.approx(0.98571, abs=1e-5)
    assert a.transport(P, Q, 2, "top").rate == pytest.approx(0.9, abs=1e-9)


@pytest.mark.parametrize("law", ["replacement", "distinct"])
@pytest.mark.parametrize("vocabulary", [3, 4, 5])
def test_programme_subsets_and_prefixes_agree(vocabulary: int, law: str) -> None:
    for (p, q), k in itertools.product(pairs(2, vocabulary, seed=vocabulary), (1, 2, 3)):
        drafts = a.tuple_law(q, k, law)
        sets = [set(h) for size in range(vocabulary + 1) for h in itertools.combinations(range(vocabulary), size)]
        inside = [sum(weight for t, weight in drafts.items() if set(t) <= h) for h in sets]
        subsets = 1 + min(float(p[list(h)].sum()) - share for h, share in zip(sets, inside, strict=True))
        assert float(a.bound(p[None], q[None], k, law)) == pytest.approx(subsets, abs=1e-7)
        assert a.transport(p, q, k, law).rate == pytest.approx(subsets, abs=1e-7)


@pytest.mark.parametrize("name", ["rejection", "coupled", "specinfer", "recursive", "optimal"])
def test_the_rate_is_that_of_the_verifier(name: str) -> None:
    verifier = registry.build("verifier", name)
    k = 1 if name in ("rejection", "coupled") else 2
    for p, q in pairs(2, 3, seed=9):
        assert float(a.RATES[name](p[None], q[None], k)) == pytest.approx(
            judged(verifier, p, q, (k,)).accepted, abs=1e-9
        )


def test_no_verifier_beats_the_bound_of_its_drafts() -> None:
    p, q = (torch.stack(laws) for laws in zip(*pairs(20, 5, seed=10), strict=True))
    for name, law in a.BOUNDS.items():
        for k in (1,) if name == "rejection" else (1, 2, 3):
            rounding = 0.06 if name == "coupled" and k > 1 else 1e-7  # of a sampled rate
            assert (a.RATES[name](p, q, k) <= a.bound(p, q, k, law) + rounding).all()
    assert (a.bound(p, q, 2, "distinct") >= a.bound(p, q, 2) - 1e-7).all()


def test_every_lossless_verifier_has_a_bound() -> None:
    lossless = {m.name for m in registry.methods("verifier") if m.guarantee is registry.Guarantee.LOSSLESS}
    assert a.BOUNDS.keys() == a.RATES.keys() == lossless - a.SAME.keys()


@pytest.mark.parametrize("name", [*a.BOUNDS, *a.SAME])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_no_walk_is_accepted_more_often_than_the_bound_allows(name: str, k: int) -> None:
    """By enumeration: what the verifiers do, K-SEQ's residual that falls on a drafted token included."""
    verifier = registry.build("verifier", name)
    if k > 1 and "tree" not in verifier.shapes:
        pytest.skip("one draft alone")
    same = a.SAME.get(name, name)
    law, rate = a.BOUNDS[same], a.RATES[same]
    for p, q in pairs(3, 4, seed=13):
        found = judged(verifier, p, q, (k,)).accepted
        best = a.transport(p, q, k, law).rate
        assert found <= best + 1e-9
        assert float(a.bound(p[None], q[None], k, law)) == pytest.approx(best, abs=1e-7)
        if name == "coupled" and k > 1:
            assert float(rate(p[None], q[None], k)) == pytest.approx(found, abs=0.06)  # sampled
        else:
            assert float(rate(p[None], q[None], k)) <= found + 1e-9


def test_shared_noise_with_more_siblings_is_estimated() -> None:
    p, q = (torch.stack(laws) for laws in zip(*pairs(4, 5, seed=11), strict=True))
    rates = [a.coupled(p, q, k, samples=4000) for k in (1, 2, 3)]
    assert (rates[0] < rates[1] + 0.03).all()
    assert (rates[1] <= rates[2]).all()
    estimate = sum((p.log() + g).argmax(-1) == (q.log() + g).argmax(-1) for g in _noise(4000, 5)) / 4000
    assert estimate.tolist() == pytest.approx(rates[0].tolist(), abs=0.03)


def _noise(count: int, size: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [-(-torch.rand(size, generator=generator).double().log()).log() for _ in range(count)]


def test_zeros_and_equal_laws() -> None:
    p = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]).double()
    q = torch.tensor([[0.0, 0.5, 0.5], [1.0, 0.0, 0.0]]).double()
    for name, rate in a.RATES.items():
        assert float(rate(p[1:], q[1:], 1)) == 0, name
        assert float(rate(p[:1], p[:1], 2)) == pytest.approx(1), name
    assert a.coupled(p, q).tolist() == pytest.approx([1 / 3, 0])


def test_many_cases_are_sampled_without_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    p, q = (torch.stack(laws) for laws in zip(*pairs(3, 30, seed=12), strict=True))
    exact = a.acceptance_vector(p, q, 2)
    monkeypatch.setattr(a, "ENUMERATED", 0)
    sampled = torch.stack([a.acceptance_vector(p, q, 2, samples=16, seed=seed) for seed in range(30)])
    assert float((sampled.mean(0) - exact).abs().max()) < 3e-3
    assert float(sampled.std(0).max()) > 0


def test_what_cannot_be_computed_is_refused() -> None:
    with pytest.raises(BadRequest, match="variables"):
        a.transport(torch.ones(40).double() / 40, torch.ones(40).double() / 40, 3)
    with pytest.raises(BadRequest, match="k=0"):
        a.bound(P[None], Q[None], 0)
    with pytest.raises(BadRequest, match="'replacement', 'distinct' or 'top'"):
        a.bound(P[None], Q[None], 1, "fixed")


def test_a_survey_says_how_far_every_verifier_is_below_its_own_bound() -> None:
    generator = torch.Generator().manual_seed(1)
    target, draft = (torch.randn(6, 12, generator=generator).double() for _ in range(2))
    found = {(rate.k, rate.name): rate for rate in survey(target, draft, [1.0], 3)}
    p, q = target.softmax(-1), draft.softmax(-1)
    for k in (1, 2, 3):
        for name in ("optimal", "rejection"):
            assert found[k, name].below == pytest.approx(0, abs=1e-12)
        distance = a.bound(p, q, k, "distinct") - a.recursive(p, q, k)
        assert found[k, "recursive"].below == pytest.approx(float(distance.mean()))
        assert found[k, "bound, with replacement"].below is None
        assert found[k, "spectr"].below <= found[k, "specinfer"].below + 1e-12  # type: ignore[operator]
    assert found[2, "recursive"].below > 1e-3  # type: ignore[operator]
    text = markdown(Survey("t", "d", {"code": 6}, list(found.values())))
    assert text.count("| `recursive`, `sequoia` |") == text.count("| `rejection`, `block` |") == 2
    assert text.count("bound, without replacement") == 1
