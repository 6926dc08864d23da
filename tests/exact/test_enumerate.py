"""The enumeration itself: its weights are the probabilities of the production randomness, to rounding."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
import torch

from paceline.chance import Chance, SeededChance
from paceline.testing import EnumeratedChance, outcomes


def laws(vocabulary: int, count: int, zeros: int = 0) -> list[torch.Tensor]:
    generator = np.random.default_rng(vocabulary + 10 * zeros)
    rows = generator.dirichlet(np.ones(vocabulary), size=count)
    for row in rows:
        row[generator.permutation(vocabulary)[:zeros]] = 0.0
    return [torch.from_numpy(row / row.sum()) for row in rows]


def marginal(law: dict[tuple[int, ...], float], i: int, vocabulary: int) -> np.ndarray:
    return np.array([sum(w for result, w in law.items() if result[i] == v) for v in range(vocabulary)])


@pytest.mark.parametrize(("vocabulary", "zeros"), [(3, 0), (3, 1), (3, 2), (4, 0), (4, 2), (5, 0), (5, 2)])
def test_coupled_draws_at_one_position_have_the_right_marginals_and_agreement(vocabulary: int, zeros: int) -> None:
    p, q, r = laws(vocabulary, 3, zeros)

    def run(chance: EnumeratedChance) -> tuple[int, ...]:
        return tuple(int(chance.couple(row.log()[None], [7])) for row in (p, q, r))

    law = outcomes(run)
    for i, row in enumerate((p, q, r)):
        np.testing.assert_allclose(marginal(law, i, vocabulary), row.numpy(), atol=1e-12)
    # P(agree) = sum_v 1 / sum_w max(p_w / p_v, q_w / q_v): two laws under the same Gumbel noise.
    agree = sum(
        1 / sum(max(p[w] / p[v], q[w] / q[v]) for w in range(vocabulary))
        for v in range(vocabulary)
        if p[v] > 0 and q[v] > 0
    )
    assert sum(w for result, w in law.items() if result[0] == result[1]) == pytest.approx(float(agree), abs=1e-12)


def test_a_coupled_draw_asked_again_gives_the_same_token() -> None:
    (p,) = laws(4, 1)
    law = outcomes(lambda chance: tuple(chance.couple(p.log().repeat(2, 1), [0, 0]).tolist()))
    assert set(law) == {(v, v) for v in range(4)}


def test_positions_streams_and_keys_are_independent() -> None:
    p, q = laws(3, 2)

    def run(chance: EnumeratedChance) -> tuple[int, ...]:
        other = chance.sibling(1)
        coupled = (*chance.couple(torch.stack([p, q]).log(), [0, 1]).tolist(), int(other.couple(q.log()[None], [0])))
        return (*coupled, chance.categorical(q, 0, "a"), other.categorical(q, 0, "a"), chance.categorical(q, 0, "b"))

    rows = (p, q, q, q, q, q)
    expected = {
        result: float(np.prod([row[token] for row, token in zip(rows, result, strict=True)]))
        for result in itertools.product(range(3), repeat=6)
    }
    law = outcomes(run)
    assert max(abs(law.get(result, 0.0) - weight) for result, weight in expected.items()) < 1e-12


def test_one_key_is_one_number() -> None:
    """As in production: a draw under a key that was used before is not a fresh draw."""

    def run(chance: EnumeratedChance) -> tuple[int, int, bool, bool]:
        laws = torch.tensor([[0.25, 0.25, 0.5], [0.5, 0.25, 0.25]], dtype=torch.float64)
        tokens = [chance.categorical(law, 0, "x") for law in laws]
        return tokens[0], tokens[1], chance.bernoulli(0.3, 0, "x"), chance.bernoulli(0.6, 0, "x")

    law = outcomes(run)
    pairs = Counter[tuple[int, int]]()
    for (first, second, low, high), weight in law.items():
        pairs[first, second] += weight
        assert high or not low
    assert pairs == pytest.approx({(0, 0): 0.25, (1, 0): 0.25, (2, 1): 0.25, (2, 2): 0.25})
    assert sum(w for result, w in law.items() if result[2]) == pytest.approx(0.3)


@pytest.mark.parametrize(("p", "outcome"), [(-0.5, False), (0.0, False), (1.0, True), (2.0, True)])
def test_a_certain_outcome_is_not_forked(p: float, outcome: bool) -> None:
    assert outcomes(lambda chance: chance.bernoulli(p, 0, "x")) == {outcome: 1.0}


def test_a_run_that_depends_on_anything_else_is_refused() -> None:
    calls = itertools.count()

    def run(chance: EnumeratedChance) -> int:
        return chance.categorical(torch.tensor([0.5, 0.5]), next(calls), "x")

    with pytest.raises(RuntimeError, match="not deterministic"):
        outcomes(run)


def test_seeded_chance_draws_what_the_enumeration_says() -> None:
    """The joint law of draws of all kinds, repeated keys and shared noise included, against many seeds."""
    p, q, r = laws(3, 3)

    def run(chance: Chance) -> tuple[int, ...]:
        coupled = chance.couple(torch.stack([p, q, r]).log(), [0, 0, 1]).tolist()
        return (*coupled, chance.categorical(q, 0, "k"), chance.categorical(r, 0, "k"), chance.bernoulli(0.4, 0, "k"))

    law = outcomes(run)
    count = 3000
    seen = Counter(run(SeededChance(seed)) for seed in range(count))
    assert seen.keys() <= law.keys()
    for result, weight in law.items():
        assert abs(seen[result] - count * weight) < 5 * (count * weight * (1 - weight)) ** 0.5 + 1


def test_the_samples_of_a_request_are_independent_streams() -> None:
    (p,) = laws(3, 1)
    count = 2000
    chances = [[SeededChance(seed, stream) for stream in range(2)] for seed in range(count)]
    seen = Counter(tuple(int(chance.couple(p.log()[None], [0])) for chance in pair) for pair in chances)
    for result in itertools.product(range(3), repeat=2):
        weight = float(p[result[0]] * p[result[1]])
        assert abs(seen[result] - count * weight) < 5 * (count * weight) ** 0.5


def test_seeded_chance_does_not_depend_on_the_order_of_calls() -> None:
    rows = torch.stack(laws(5, 4)).log()
    forwards, backwards = SeededChance(3), SeededChance(3)
    ahead = [int(forwards.couple(rows[i : i + 1], [i])) for i in range(4)]
    back = [int(backwards.couple(rows[i : i + 1], [i])) for i in reversed(range(4))][::-1]
    assert ahead == back == SeededChance(3).couple(rows, [0, 1, 2, 3]).tolist()
    drawn = [SeededChance(3).categorical(rows[0].exp(), i, "k") for i in range(4)]
    assert drawn == [forwards.categorical(rows[0].exp(), i, "k") for i in range(4)]


def test_a_position_may_be_a_numpy_integer() -> None:
    row = torch.zeros(1, 5)
    for position in range(20):
        fresh, other = SeededChance(2), SeededChance(2)
        assert fresh.couple(row, [np.int64(position)]) == other.couple(row, [position])
        assert fresh.categorical(row[0] + 1, np.int64(position), "k") == other.categorical(row[0] + 1, position, "k")
