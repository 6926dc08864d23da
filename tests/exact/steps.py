"""The law of one verified step, without an engine around it: trees too large to enumerate over whole texts."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from paceline.drafters.base import SequenceDrafter
from paceline.testing import EnumeratedChance, distance, outcomes
from paceline.testing.laws import Text
from paceline.testing.tabular import Table
from paceline.verifiers import Verifier


@dataclass(frozen=True)
class Step:
    """What one step emits.

    Attributes:
        error: largest difference to the target's law, every emitted text extended by the target to equal length.
        accepted: expected number of accepted tokens.
        replays: how many outcomes there were.
        law: probability of every text of the full length.
    """

    error: float
    accepted: float
    replays: int
    law: dict[Text, float]


def step(verifier: Verifier, drafter: SequenceDrafter, target: Table, vocabulary: int, depth: int) -> Step:
    """One step after the text (0,), over every outcome of drafting and judging."""
    replays = 0

    def run(chance: EnumeratedChance) -> tuple[Text, int]:
        nonlocal replays
        replays += 1
        sequence: Any = SimpleNamespace(tokens=[0], generated=0, chance=chance, verifier=verifier)
        tree = drafter.draft(sequence, 99, depth)
        prefixes = [tuple(int(tree.tokens[node]) for node in tree.path(i)) for i in range(len(tree))]
        verdict = verifier.verify(tree, torch.stack([target(prefix) for prefix in prefixes]), chance, 0)
        text = (*prefixes[verdict.path[-1]][1:], verdict.bonus)
        assert [int(tree.parents[node]) for node in verdict.path[1:]] == verdict.path[:-1]
        return text, len(verdict.path) - 1

    law: dict[Text, float] = {}
    accepted = 0.0
    for (text, kept), weight in outcomes(run).items():
        accepted += weight * kept
        for whole, chance in extensions(text, depth + 1, target, vocabulary).items():
            law[whole] = law.get(whole, 0.0) + weight * chance
    return Step(distance(law, extensions((), depth + 1, target, vocabulary)), accepted, replays, law)


def extensions(text: Text, length: int, target: Table, vocabulary: int) -> dict[Text, float]:
    """The target's law of the texts of a length that begin with `text`."""
    laws = {text: 1.0}
    for _ in range(length - len(text)):
        laws = {
            (*known, token): weight * float(p)
            for known, weight in laws.items()
            for token, p in enumerate(target((0, *known)).exp())
        }
    return laws
