"""CSpD: what it emits has the target's law, by Kolmogorov-Smirnov tests of up to 10^5 vectors with fixed seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from scipy import stats
from torch.distributions import (
    Categorical,
    Distribution,
    Independent,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    Uniform,
)

from paceline import Engine, registry
from paceline.chance import Chance, SeededChance
from paceline.errors import BadRequest, Unsupported
from paceline.testing import TabularModel, random_table
from paceline.tree import TokenTree
from paceline.verifiers.cspd import Chain, CSpD, Generated, coins, conditional_law, draw, speculate, trajectory

ROWS, FEWER = 100_000, 20_000
#: Least p-value of a law that is right, and most of one that is wrong.
RIGHT, WRONG = 0.01, 1e-6
CHANCE = SeededChance(3)


def number(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def gaussian(mean: float, sigma: float) -> Normal:
    return Normal(number(mean), number(sigma))


def mixture(*parts: tuple[float, float, float]) -> MixtureSameFamily:
    """Gaussians, each with its weight, mean and deviation."""
    weights, means, sigmas = torch.tensor(parts, dtype=torch.float64).T
    return MixtureSameFamily(Categorical(weights), Normal(means, sigmas))


#: Target and draft.
LAWS: dict[str, tuple[Distribution, Distribution]] = {
    "equal sigma": (gaussian(0.3, 1.2), gaussian(-1.1, 1.2)),
    "wide draft": (gaussian(1.0, 0.7), gaussian(0.0, 1.6)),
    "mixtures": (mixture((0.3, -2.0, 0.5), (0.7, 1.0, 0.8)), mixture((0.6, -1.5, 0.7), (0.4, 1.5, 0.6))),
}
P, Q = LAWS["equal sigma"]


def judged(verifier: CSpD, p: Distribution, q: Distribution, rows: int = ROWS) -> Chain:
    """Single vectors, one a row."""
    p, q = p.expand((rows,)), q.expand((rows,))
    return verifier.judge([draw(q, CHANCE, 0, "draft")], [q], [p, p], CHANCE, 0)


@cache
def outcome(name: str) -> Chain:
    return judged(CSpD(), *LAWS[name])


def fit(vectors: torch.Tensor, law: Distribution) -> float:
    """p-value of the Kolmogorov-Smirnov test."""
    return float(stats.kstest(vectors.flatten().numpy(), lambda x: law.cdf(torch.as_tensor(x)).numpy()).pvalue)


def uniform(quantiles: torch.Tensor) -> float:
    """The same, of quantiles under the right law."""
    return float(stats.kstest(quantiles.flatten().numpy(), "uniform").pvalue)


def overlap(p: Distribution, q: Distribution) -> float:
    """The integral of min(p, q)."""
    grid = torch.linspace(-12, 12, 100_001, dtype=torch.float64)
    return float(torch.trapezoid(p.log_prob(grid).minimum(q.log_prob(grid)).exp(), grid))


def has_mean(shares: torch.Tensor, rate: float) -> bool:
    """Whether zeros and ones have a mean within four standard errors of a rate."""
    return abs(float(shares.double().mean()) - rate) < 4 * math.sqrt(rate * (1 - rate) / len(shares))


# -- one vector -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAWS)
def test_what_is_emitted_has_the_targets_law(name: str) -> None:
    (p, q), found = LAWS[name], outcome(name)
    assert fit(found.vectors[0], p) > RIGHT
    assert fit(found.vectors[0], q) < WRONG
    assert not found.failed.any()


@pytest.mark.parametrize("name", LAWS)
def test_the_rate_is_the_overlap(name: str) -> None:
    assert has_mean(outcome(name).accepted, overlap(*LAWS[name]))


def test_the_rate_of_gaussians_of_equal_sigma() -> None:
    rate = float(2 * stats.norm.cdf(-abs(0.3 + 1.1) / (2 * 1.2)))
    assert overlap(P, Q) == pytest.approx(rate, abs=1e-6)
    assert has_mean(outcome("equal sigma").accepted, rate)


@pytest.mark.parametrize("name", LAWS)
def test_equal_laws_are_always_accepted(name: str) -> None:
    p, _ = LAWS[name]
    found = judged(CSpD(), p, p)
    assert (found.accepted == 1).all()
    assert fit(found.vectors[0], p) > RIGHT
    assert fit(found.vectors[1], p) > RIGHT, "the further vector"
    assert abs(stats.pearsonr(*found.vectors.numpy()).statistic) < 0.02


class EmitsTheTarget(CSpD):
    """In place of the residual."""

    def resample(self, target: Any, draft: Any, x: Any, rows: Any, chance: Any, at: int) -> Any:
        return torch.where(rows, draw(target, chance, at, "target"), x), torch.zeros_like(rows)


class RatioTurnedOver(CSpD):
    def acceptance(self, target: Distribution, draft: Distribution, x: torch.Tensor) -> torch.Tensor:
        return super().acceptance(draft, target, x)


class ResidualTurnedOver(CSpD):
    def resample(self, target: Any, draft: Any, *rest: Any) -> Any:
        return super().resample(draft, target, *rest)


class KeepsAll(CSpD):
    def acceptance(self, target: Distribution, draft: Distribution, x: torch.Tensor) -> torch.Tensor:
        return torch.ones_like(super().acceptance(target, draft, x))


@pytest.mark.parametrize("mutant", [EmitsTheTarget, RatioTurnedOver, ResidualTurnedOver, KeepsAll])
def test_a_mutant_is_caught(mutant: type[CSpD]) -> None:
    assert fit(judged(mutant(), P, Q, FEWER).vectors[0], P) < WRONG
    assert fit(judged(CSpD(), P, Q, FEWER).vectors[0], P) > RIGHT


@pytest.mark.parametrize("correction", [0.7, 1.4])
def test_another_correction_moves_the_law_within_the_bound(correction: float) -> None:
    """Distribution functions differ by no more than the total variation."""
    found = judged(CSpD(correction), P, Q, FEWER)
    moved = stats.kstest(found.vectors[0].numpy(), lambda x: P.cdf(torch.as_tensor(x)).numpy())
    assert moved.pvalue < WRONG
    assert moved.statistic < 1 - min(correction, 1 / correction)
    assert not found.failed.any()
    exact = outcome("equal sigma").accepted.double().mean()
    assert (found.accepted.double().mean() > exact) == (correction > 1)


def test_a_failed_resampling_is_a_draw_of_the_target_and_is_counted() -> None:
    rate, found = overlap(P, Q), judged(CSpD(tries=1), P, Q)
    assert not (found.failed & (found.accepted > 0)).any()
    assert has_mean(found.failed, (1 - rate) * rate)
    assert fit(found.vectors[0][found.failed], P) > RIGHT
    # A correction below 1 refuses drafts of the target itself, and leaves no residual.
    found = judged(CSpD(0.5, tries=3), P, P, FEWER)
    assert torch.equal(found.failed, found.accepted == 0)
    assert has_mean(found.failed, 0.5)
    assert fit(found.vectors[0], P) > RIGHT


def test_vectors_of_several_dimensions_and_laws_of_bounded_support() -> None:
    covariance = torch.tensor([[1.0, 0.6], [0.6, 1.5]], dtype=torch.float64)
    target = MultivariateNormal(torch.zeros(2).double(), covariance)
    draft = Independent(Normal(number(0.5).expand(2), number(1.4).expand(2)), 1)
    found = judged(CSpD(), target, draft, FEWER).vectors[0]
    assert found.shape == (FEWER, 2)
    whitened = torch.linalg.solve_triangular(target.scale_tril, found.T, upper=False)
    assert fit(whitened[0], gaussian(0, 1)) > RIGHT
    assert fit(whitened[1], gaussian(0, 1)) > RIGHT
    assert abs(stats.pearsonr(*whitened.numpy()).statistic) < 0.03
    bounded = Uniform(number(0), number(1), validate_args=False)
    emitted = judged(CSpD(), bounded, gaussian(0.5, 1.0), FEWER).vectors[0]
    assert uniform(emitted) > RIGHT


# -- chains ---------------------------------------------------------------------------------------------------


def behind(x: torch.Tensor, shift: float) -> Normal:
    """The law of a vector behind another."""
    return Normal(shift + 0.8 * x.sin(), 0.6 + 0.2 * x.cos())


def target_behind(x: torch.Tensor) -> Normal:
    return behind(x, 0.7)


def draft_behind(x: torch.Tensor) -> Normal:
    return behind(x, 0.0)


def two_vectors(verifier: CSpD, rows: int) -> tuple[torch.Tensor, torch.Tensor, Chain]:
    """The first two vectors of a chain, the second judged again where the first draft was refused, and the chain."""
    p, q = P.expand((rows,)), Q.expand((rows,))
    first = draw(q, CHANCE, 0, "draft")
    laws = [q, draft_behind(first)]
    second = draw(laws[1], CHANCE, 1, "draft")
    chain = verifier.judge(
        torch.stack([first, second]), laws, [p, target_behind(first), target_behind(second)], CHANCE, 0
    )
    start = chain.vectors[0]
    law, proposed = target_behind(start), draft_behind(start)
    again = verifier.judge([draw(proposed, CHANCE, 1, "draft")], [proposed], [law, law], CHANCE, 1)
    return start, torch.where(chain.accepted > 0, chain.vectors[1], again.vectors[0]), chain


def test_a_chain_has_the_targets_law() -> None:
    first, second, chain = two_vectors(CSpD(), ROWS)
    assert fit(first, P) > RIGHT
    assert uniform(target_behind(first).cdf(second)) > RIGHT
    ancestral = draw(target_behind(draw(P.expand((ROWS,)), CHANCE, 0, "test")), CHANCE, 1, "test")
    assert stats.ks_2samp(second.numpy(), ancestral.numpy()).pvalue > RIGHT
    whole = chain.accepted == 2
    assert 0.1 < whole.double().mean() < 0.5
    assert uniform(target_behind(chain.vectors[1]).cdf(chain.vectors[2])[whole]) > RIGHT


def test_a_mutated_chain_has_not() -> None:
    first, second, _ = two_vectors(EmitsTheTarget(), FEWER)
    assert fit(first, P) < WRONG
    assert uniform(target_behind(first).cdf(second)) < WRONG


def test_a_chain_ends_where_it_is_refused() -> None:
    near, far = gaussian(0, 1), gaussian(60, 1)
    drafts = torch.stack([draw(near, CHANCE, i, "draft") for i in range(3)])
    found = CSpD().judge(drafts, [near] * 3, [near, far, near, near], CHANCE, 0)
    assert (int(found.accepted), len(found.vectors)) == (1, 2)
    assert found.vectors[0] == drafts[0]
    assert abs(float(found.vectors[1]) - 60) < 6
    whole = CSpD().judge(drafts, [near] * 3, [near] * 4, CHANCE, 0)
    assert (int(whole.accepted), len(whole.vectors)) == (3, 4)
    assert len(CSpD().judge([], [], [near], CHANCE, 0).vectors) == 1


def target_laws(vectors: torch.Tensor, start: int) -> Sequence[Distribution]:
    return [target_behind(vectors[i - 1]) if i else P for i in range(start, len(vectors) + 1)]


def draft_law(vectors: torch.Tensor) -> Distribution:
    return draft_behind(vectors[-1]) if len(vectors) else Q


def generated(seed: int, verifier: CSpD = CSpD(), length: int = 4, **options: Any) -> Generated:
    return speculate(target_laws, draft_law, torch.empty(0).double(), length, SeededChance(seed), verifier, **options)


def quantiles(verifier: CSpD) -> torch.Tensor:
    """Of many generated vectors, under the target's laws."""
    found = []
    for seed in range(250):
        vectors = generated(seed, verifier, drafts=2, prefill=0.2).vectors
        found += [law.cdf(x) for law, x in zip(target_laws(vectors, 0), vectors, strict=False)]
    return torch.stack(found)


def test_generated_vectors_have_the_targets_law() -> None:
    assert uniform(quantiles(CSpD())) > RIGHT
    assert uniform(quantiles(KeepsAll())) < WRONG


def test_the_loop_counts_and_prefills() -> None:
    alone = generated(1, length=10, prefill=1.0)
    assert (alone.passes, alone.drafted, alone.vectors.shape) == (10, 0, (10,))
    found = generated(1, length=10, drafts=3)
    assert found.vectors.shape == (10,)
    assert found.passes + found.accepted == 10
    assert 0 < found.accepted < found.drafted
    assert found.failed == 0
    # ceil(0.15 * 10) vectors come from the target alone, by the same draws.
    assert torch.equal(found.vectors[:2], alone.vectors[:2])
    copied = speculate(target_laws, lambda v: target_laws(v, len(v))[0], found.vectors, 9, CHANCE, drafts=4, prefill=0)
    assert (copied.passes, copied.drafted, copied.accepted) == (2, 7, 7)
    assert generated(1, CSpD(tries=1), length=40).failed > 0


def test_the_seed_decides_and_the_global_generators_stay() -> None:
    state = torch.get_rng_state()
    first = generated(7)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert torch.equal(generated(7).vectors, first.vectors)
    assert not torch.equal(generated(8).vectors, first.vectors)


def test_draws_of_other_positions_and_purposes_are_independent() -> None:
    law = gaussian(0, 1).expand((FEWER,))
    keys: list[tuple[Chance, int, str]] = [(CHANCE, 0, "draft"), (CHANCE, 1, "draft"), (CHANCE, 0, "target")]
    keys.append((SeededChance(CHANCE.seed, 1), 0, "draft"))
    table = torch.stack([draw(law, *key) for key in keys] + [coins((FEWER,), *key) for key in keys])
    assert float((table.corrcoef() - torch.eye(len(table))).abs().max()) < 0.04
    assert torch.equal(draw(law, *keys[0]), table[0])


# -- diffusion heads ------------------------------------------------------------------------------------------

Step = tuple[float, float, float]


def head(*steps: Step) -> Callable[[torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]]:
    """Step k takes a state z to a draw of N(a z + b, sigma^2), by its (a, b, sigma)."""

    def step(state: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        a, b, sigma = steps[k]
        return a * state + b, torch.full_like(state, sigma)

    return step


TARGET_HEAD = head((0.7, 0.3, 0.6), (0.9, -0.1, 0.5))
DRAFT_HEAD = head((0.7, 0.0, 0.6), (0.8, 0.0, 0.8))
#: The target's token, over all noise.
TOKEN = gaussian(0.9 * 0.3 - 0.1, math.sqrt(0.9**2 * (0.7**2 + 0.6**2) + 0.5**2))


def shared(verifier: CSpD) -> torch.Tensor:
    """Tokens judged given the noise that both heads share."""
    noise = trajectory(CHANCE, 0, 2, (ROWS, 1))
    p, q = (conditional_law(each, noise) for each in (TARGET_HEAD, DRAFT_HEAD))
    return verifier.judge([draw(q, CHANCE, 0, "draft")], [q], [p, p], CHANCE, 0).vectors[0]


def test_heads_with_shared_noise_emit_the_targets_token() -> None:
    assert fit(shared(CSpD()), TOKEN) > RIGHT


@pytest.mark.parametrize("correction", [0.8 / 0.5, 0.5 / 0.8])
def test_the_papers_correction_does_not(correction: float) -> None:
    assert fit(shared(CSpD(correction, tries=50)), TOKEN) < WRONG


def test_shared_noise_is_accepted_more_often() -> None:
    own, other = (trajectory(CHANCE, at, 2, (FEWER, 1)) for at in (0, 1))
    p = conditional_law(TARGET_HEAD, own)
    rates = []
    for noise in (own, other):
        q = conditional_law(DRAFT_HEAD, noise)
        found = CSpD().judge([draw(q, CHANCE, 0, "draft")], [q], [p, p], CHANCE, 0)
        rates.append(float(found.accepted.double().mean()))
    assert rates[0] > rates[1] + 0.1


# -- refusals -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"correction": 0}, "correction=0"),
        ({"correction": -1.5}, "correction=-1.5"),
        ({"correction": math.nan}, "correction=nan"),
        ({"correction": math.inf}, "correction=inf"),
        ({"tries": 0}, "tries=0"),
    ],
)
def test_knobs_out_of_range_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        CSpD(**options)


X, PLANE = number(0.0), Independent(Normal(torch.zeros(2).double(), torch.ones(2).double()), 1)


@pytest.mark.parametrize(
    ("drafts", "draft_laws", "laws", "words"),
    [
        ([X], [P], [P], "1 draft_laws and 1 target_laws for 1 drafts"),
        ([X], [], [P, P], "0 draft_laws and 2 target_laws for 1 drafts"),
        ([], [], [], "0 target_laws for 0 drafts"),
        ([X], [P], [PLANE, PLANE], "laws of batch and event shapes"),
        ([X], [P.expand((2,))], [P, P], "laws of batch and event shapes"),
        ([X.expand(3)], [P], [P, P], r"drafts of shape \(3,\)"),
    ],
)
def test_what_does_not_fit_is_refused(drafts: Any, draft_laws: Any, laws: Any, words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        CSpD().judge(drafts, draft_laws, laws, CHANCE, 0)


def test_densities_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="scale"):
        gaussian(0.0, -1.0)
    for sigma in (0.0, -1.0):
        flat = Normal(number(0.0), number(sigma), validate_args=False)
        for draft_laws, laws in (([P], [flat, P]), ([flat], [P, P])):
            with pytest.raises(ValueError, match="infinite or no number"):
                CSpD().judge([X], draft_laws, laws, CHANCE, 0)
    with pytest.raises(ValueError, match="density 0"):
        CSpD().judge([number(2.0)], [Uniform(number(0), number(1), validate_args=False)], [P, P], CHANCE, 0)


def test_heads_that_are_none_are_refused() -> None:
    noise = trajectory(CHANCE, 0, 2, (4, 3))
    for sigma in (0.0, -0.5, math.nan, math.inf):
        with pytest.raises(BadRequest, match=f"sigma={sigma:.4g} at step 1"):
            conditional_law(head((1.0, 0.0, 1.0), (1.0, 0.0, sigma)), noise)
    with pytest.raises(BadRequest, match=r"mean \(4, 2\) and sigma \(4, 3\) at step 0 .* the state is \(4, 3\)"):
        conditional_law(lambda state, k: (state[:, :2], torch.ones_like(state)), noise)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"length": 0}, "length=0"),
        ({"drafts": 0}, "drafts=0"),
        ({"prefill": -0.1}, "prefill=-0.1"),
        ({"prefill": 1.1}, "prefill=1.1"),
    ],
)
def test_a_loop_out_of_range_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        generated(0, **options)


def test_a_prefix_of_another_shape_is_refused() -> None:
    for prefill in (0.0, 1.0):
        with pytest.raises(BadRequest, match=r"prefix: vectors of shape \(2,\) are not allowed"):
            speculate(lambda v, k: [P], lambda v: P, torch.zeros(1, 2).double(), 2, CHANCE, prefill=prefill)


def test_models_of_token_ids_are_refused_by_name() -> None:
    engine = Engine(TabularModel(random_table(3), 3), drafter="none")
    for drafter in ("none", "ngram", "recycling"):
        for temperature in (0, 1):
            with pytest.raises(Unsupported, match=f"'cspd' needs .* with a density, and {engine.model.name} emits"):
                engine.generate([0], drafter=drafter, verifier="cspd", temperature=temperature)
    with pytest.raises(Unsupported, match="judges vectors"):
        CSpD().verify(TokenTree.chain(0, [1]), torch.zeros(2, 3), CHANCE, 0)
    found = registry.find("verifier", "cspd")
    assert (found.knob, found.cls().correction) == ("correction", 1.0)
