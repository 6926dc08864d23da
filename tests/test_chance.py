"""Draws of several texts at once are those of each alone."""

from __future__ import annotations

import torch

from paceline.chance import Chance, OtherChance, SeededChance, couple_each
from paceline.testing.enumerate import EnumeratedChance, outcomes

V = 50


def test_several_texts_draw_together_what_each_draws_alone() -> None:
    scores = torch.randn(6, V, generator=torch.Generator().manual_seed(0))
    chances: list[Chance] = [SeededChance(seed) for seed in range(5)]
    chances.append(OtherChance(SeededChance(9), "other"))
    positions = [3, 0, 7, 7, 2, 5]
    alone = [int(c.couple(row[None], [at])) for c, row, at in zip(chances, scores, positions, strict=True)]
    assert couple_each(scores, chances, positions).tolist() == alone
    assert len(set(alone)) > 1


def test_chances_without_noise_draw_one_by_one() -> None:
    p = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.6, 0.3]], dtype=torch.float64)

    def both(chance: EnumeratedChance) -> tuple[int, ...]:
        assert chance.noise(0, 3) is None
        return tuple(couple_each(p.log(), [chance, chance], [0, 1]).tolist())

    law = outcomes(both)
    assert abs(sum(law.values()) - 1) < 1e-12
    for (first, second), weight in law.items():
        assert abs(weight - float(p[0, first] * p[1, second])) < 1e-12
