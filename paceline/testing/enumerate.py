"""Chance that is enumerated instead of drawn: a run is replayed over every outcome of its draws, with its weight.

The production code, not a model of it, is what runs. What a draw leaves known about the underlying randomness is
kept as exactly as the draw that made it, because a key may be asked again:

- `bernoulli` and `categorical` compare one uniform number of the key with thresholds: an interval is kept.
- `couple` adds the position's Gumbel noise `g` to log-probabilities and takes the best token. With the
  exponentials `E = exp(-g)`, `argmax(log p + g) = argmin(E / p)`, which does not change when E is scaled; E over its
  sum is uniform on the simplex. So a simplex is kept, cut into the smaller simplices on which the winner is constant:
  the borders `E_v p_w = E_w p_v` are planes, and a simplex with an edge that crosses a plane is two simplices with
  the crossing point in place of either end. A branch's weight is its share of the volume.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch

from paceline.chance import Chance, SeededChance

R = TypeVar("R", bound=Hashable)
#: Branches lighter than this are rounding.
_NOTHING = 1e-15


@dataclass(frozen=True, slots=True)
class Branch:
    """One outcome of a draw.

    Attributes:
        weight: its probability given everything drawn before.
        value: what the draw returns.
        known: what is known of the randomness behind it afterwards.
    """

    weight: float
    value: int
    known: Any


class Enumeration:
    """A depth-first walk over the tree of all outcomes, one leaf a replay."""

    def __init__(self) -> None:
        self._trail: list[tuple[Hashable, list[Branch], int]] = []
        self._known: dict[Hashable, Any] = {}
        self._at, self.weight = 0, 1.0

    def draw(self, key: Hashable, start: Any, branches: Callable[[Any], list[Branch]]) -> int:
        """The value of one draw on this replay.

        Args:
            key: names the randomness behind it.
            start: what is known of that randomness when it is first asked.
            branches: outcomes, given what is known.

        Raises:
            RuntimeError: the run asks for other draws than at the last replay with the same outcomes.
        """
        if self._at == len(self._trail):
            fresh = [b for b in branches(self._known.get(key, start)) if b.weight > _NOTHING]
            self._trail.append((key, fresh, 0))
        asked, options, index = self._trail[self._at]
        if asked != key:
            raise RuntimeError(f"draw {key} comes where the last replay drew {asked}; the run is not deterministic")
        self._at += 1
        self._known[key] = options[index].known
        self.weight *= options[index].weight
        return options[index].value

    def advance(self) -> bool:
        """Go to the next leaf; false when every leaf has been visited."""
        del self._trail[self._at :]
        while self._trail:
            key, options, index = self._trail.pop()
            if index + 1 < len(options):
                self._trail.append((key, options, index + 1))
                break
        else:
            return False
        self._known, self._at, self.weight = {}, 0, 1.0
        return True


class EnumeratedChance(Chance):
    """A sequence's randomness on one replay.

    Args:
        enumeration: the walk.
        stream: which of a request's samples this is; streams are independent.
    """

    def __init__(self, enumeration: Enumeration, stream: int = 0) -> None:
        self.enumeration, self.stream = enumeration, stream

    def sibling(self, stream: int) -> EnumeratedChance:
        """The randomness of another sample, enumerated jointly with this one."""
        return EnumeratedChance(self.enumeration, stream)

    def couple(self, scores: torch.Tensor, positions: Sequence[int]) -> torch.Tensor:
        # A row without any token, at a node that the policy rules out, gives token 0, as in production.
        scores = torch.where((scores == -torch.inf).all(-1, keepdim=True), torch.eye(1, scores.shape[-1]).log(), scores)
        laws = scores.detach().cpu().double().softmax(-1).numpy()
        corners = [np.eye(laws.shape[1])]
        tokens = [
            self.enumeration.draw(("couple", self.stream, position), corners, partial(_winners, law=law))
            for law, position in zip(laws, positions, strict=True)
        ]
        return torch.tensor(tokens, dtype=torch.int64, device=scores.device)

    def uniform(self, position: int, key: Hashable) -> float:
        """One number a key, the same at every replay: what it decides must not matter, so any value will do."""
        return SeededChance(0, self.stream).uniform(position, key)

    def bernoulli(self, p: float, position: int, key: Hashable) -> bool:
        cut = min(max(p, 0.0), 1.0)
        name = ("bernoulli", self.stream, position, key)
        return bool(self.enumeration.draw(name, (0.0, 1.0), lambda known: _parts(known, [(cut, 1), (1.0, 0)])))

    def categorical(self, p: torch.Tensor, position: int, key: Hashable) -> int:
        weights = p.detach().cpu().double().numpy()
        ends = np.cumsum(weights) / weights.sum()
        ends[-1] = 1.0
        name = ("categorical", self.stream, position, key)
        cuts = [(float(end), token) for token, end in enumerate(ends)]
        return self.enumeration.draw(name, (0.0, 1.0), lambda known: _parts(known, cuts))


def outcomes(run: Callable[[EnumeratedChance], R]) -> dict[R, float]:
    """The exact law of what `run` returns, over all outcomes of the chance that it is given.

    Args:
        run: must be deterministic but for its chance; called once an outcome.
    """
    enumeration = Enumeration()
    law: dict[R, float] = {}
    while True:
        result = run(EnumeratedChance(enumeration))
        law[result] = law.get(result, 0.0) + enumeration.weight
        if not enumeration.advance():
            return law


def _parts(known: tuple[float, float], cuts: list[tuple[float, int]]) -> list[Branch]:
    """Pieces of an interval between ascending cuts; `cuts` holds each piece's upper end and value."""
    low, high = known
    branches, below = [], 0.0
    for end, value in cuts:
        a, b = max(low, below), min(high, end)
        if b > a:
            branches.append(Branch((b - a) / (high - low), value, (a, b)))
        below = end
    return branches


def _winners(cell: list[np.ndarray], law: np.ndarray) -> list[Branch]:
    """Parts of a cell, a list of simplices (`[V, V]`, a vertex a row), by the token that wins there."""
    parts: dict[int, list[np.ndarray]] = {}
    whole = sum(_volume(simplex) for simplex in cell)
    support = np.flatnonzero(law > 0)
    pairs = list(itertools.combinations(range(len(support)), 2))
    stack = list(cell)
    while stack:
        simplex = stack.pop()
        if _volume(simplex) <= _NOTHING * whole:
            continue
        race = simplex[:, support] / law[support]
        ahead = race[:, :, None] - race[:, None, :]
        # A vertex made by a cut lies on its plane up to rounding.
        ahead[np.abs(ahead) <= 1e-12 * np.maximum(race[:, :, None], race[:, None, :])] = 0.0
        winner = (ahead <= 0).all(axis=(0, 2))
        if winner.any():
            parts.setdefault(int(support[winner.argmax()]), []).append(simplex)
            continue
        crossed = (ahead > 0).any(0) & (ahead < 0).any(0)
        # Only borders between tokens that win somewhere matter: those that no other token beats everywhere.
        beaten = ((ahead >= 0).all(0) & (ahead > 0).any(0)).any(1)
        v, w = next((v, w) for v, w in pairs if crossed[v, w] and not beaten[v] and not beaten[w])
        distance = ahead[:, v, w]
        a, b = int(distance.argmax()), int(distance.argmin())
        gap = distance[a] - distance[b]
        point = (distance[a] / gap) * simplex[b] + (-distance[b] / gap) * simplex[a]
        for end in (a, b):
            part = simplex.copy()
            part[end] = point
            stack.append(part)
    return [
        Branch(sum(_volume(simplex) for simplex in part) / whole, token, part) for token, part in sorted(parts.items())
    ]


def _volume(simplex: np.ndarray) -> float:
    return float(abs(np.linalg.det(simplex)))
