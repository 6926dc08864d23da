"""RSD-S with the randomness of production: its beams follow the draft's law of paths, its output the target's.

Enumeration proves that the output is exact whatever the values of the beams are (`test_exact`). That the values make
the beams paths drawn without replacement, and that they are independent of the tokens, is seen in numbers alone.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from exact.steps import extensions

from paceline.chance import SeededChance
from paceline.testing import random_table
from paceline.testing.tabular import Table
from paceline.tree import TokenTree
from paceline.trees import Growth
from paceline.trees.rsd_s import StochasticBeams, truncated_gumbel
from paceline.verifiers.recursive import Recursive
from trees.support import grown, texts

DRAFT, VOCABULARY = random_table(3, seed=4, spread=1.2), 3
Path = tuple[int, ...]


def levels(root: list[float], below: list[float]) -> Table:
    """One law after the prompt, and one after any token."""
    first, later = torch.tensor(root).double().log(), torch.tensor(below).double().log()
    return lambda prefix: first if len(prefix) == 1 else later


#: A first token is always accepted, and what the draft likes best behind it hardly ever: the second beam decides.
SURE_THEN_WRONG = levels([0.8, 0.1, 0.1], [0.15, 0.15, 0.7]), levels([0.8, 0.1, 0.1], [0.46, 0.46, 0.08])


def beams(seed: int, draft: Table = DRAFT) -> tuple[TokenTree, SeededChance]:
    """Two beams, two levels."""
    chance = SeededChance(seed)
    return grown(StochasticBeams(2), draft, nodes=4, depth=2, chance=chance)[0], chance


def pairs_without_replacement() -> dict[frozenset[Path], float]:
    """Probability of every set of two paths, drawn one after the other from the draft's law of whole paths."""
    law = {path: float((DRAFT((0,))[path[0]] + DRAFT((0, path[0]))[path[1]]).exp()) for path in PATHS}
    return {frozenset((s, t)): law[s] * law[t] * (1 / (1 - law[s]) + 1 / (1 - law[t])) for s, t in PAIRS}


PATHS = list(itertools.product(range(VOCABULARY), repeat=2))
PAIRS = list(itertools.combinations(PATHS, 2))


def chi_square(count: int = 2000) -> tuple[float, int]:
    """Of the sets of paths at the last level, and its degrees of freedom; sets too rare to compare count as one."""
    seen = Counter(frozenset(text for text in texts(beams(seed)[0]) if len(text) == 2) for seed in range(count))
    wanted = {pair: count * p for pair, p in pairs_without_replacement().items()}
    common = [pair for pair, expected in wanted.items() if expected >= 8]
    cells = [(seen[pair], wanted[pair]) for pair in common]
    cells.append((count - sum(n for n, _ in cells), count - sum(expected for _, expected in cells)))
    return sum((n - expected) ** 2 / expected for n, expected in cells), len(cells) - 1


def deviation(draft: Table, target: Table, count: int = 2000) -> float:
    """The largest difference of the emitted law to the target's at any text of two tokens, in standard errors."""
    found: dict[Path, torch.Tensor] = {path: torch.zeros(count, dtype=torch.float64) for path in PATHS}
    for seed in range(count):
        tree, chance = beams(seed, draft)
        logp = torch.stack([target((0, *text)) for text in ((), *texts(tree))])
        verdict = Recursive().verify(tree, logp, chance, 0)
        text = (*(int(tree.tokens[node]) for node in verdict.path[1:]), verdict.bonus)[:2]
        for path, share in extensions(text, 2, target, VOCABULARY).items():
            found[path][seed] = share
    wanted = extensions((), 2, target, VOCABULARY)
    return max(float((found[p].mean() - wanted[p]).abs() / (found[p].std() / count**0.5)) for p in PATHS)


def without_the_path(tree: StochasticBeams, growth: Growth, node: int, rank: int, above: float) -> float:
    return value(growth.promise(node) / growth.odds[node], growth, node, rank, above)


def without_what_was_drawn(tree: StochasticBeams, growth: Growth, node: int, rank: int, above: float) -> float:
    return value(growth.odds[node] if growth.promise(node) > 0 else 0.0, growth, node, rank, above)


def without_the_parents_value(tree: StochasticBeams, growth: Growth, node: int, rank: int, above: float) -> float:
    uniform = growth.uniform(node, rank)
    return truncated_gumbel(math.log(max(growth.promise(node), 1e-300)), above if rank else math.inf, uniform)


def value(left: float, growth: Growth, node: int, rank: int, above: float) -> float:
    if left <= 0:
        return -math.inf
    return above if rank == 0 else truncated_gumbel(math.log(left), above, growth.uniform(node, rank))


def of_the_tokens(growth: Growth, node: int, rank: int) -> float:
    """The very number that picks the child's token."""
    step = growth.sequence.generated
    key = ("categorical", ("draft", step, node, rank))
    return float(growth.sequence.chance._generator(step + growth.depths[node], key).random())


def test_the_beams_are_paths_drawn_without_replacement() -> None:
    found, freedom = chi_square()
    assert freedom == 25
    assert found < 52.6  # one in a thousand


@pytest.mark.parametrize(
    ("draft", "target"), [(DRAFT, random_table(3, seed=11)), SURE_THEN_WRONG], ids=["random", "sure, then wrong"]
)
def test_the_emitted_law_is_the_targets(draft: Table, target: Table) -> None:
    assert deviation(draft, target) < 4


@pytest.mark.parametrize("wrong", [without_the_path, without_what_was_drawn, without_the_parents_value])
def test_wrong_values_are_seen(wrong: Callable[..., float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StochasticBeams, "_value", wrong)
    assert chi_square(1000)[0] > 60


def test_values_that_depend_on_the_tokens_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Growth, "uniform", of_the_tokens)
    assert chi_square(1000)[0] > 60
    assert deviation(*SURE_THEN_WRONG) > 4
