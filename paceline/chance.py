"""Randomness keyed by (seed, output position), never by call order.

Two kinds of draw. *Coupled* draws add Gumbel noise `g(position)` to a log-distribution and take the best
token: whoever draws at a position, drafter or verifier, row or batch, sees the same noise, hence the same
seed gives the same text under every drafter (Gumbel-max trick; Maddison et al., "A* Sampling", 2014).
*Independent* draws (`bernoulli`, `categorical`) serve rejection-style verifiers, each under its own key.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence

import numpy as np
import torch

#: Positions behind the last one asked for whose noise is still known.
REMEMBERED = 64


class Chance(ABC):
    """Source of all random decisions of one generated sequence."""

    @abstractmethod
    def couple(self, scores: torch.Tensor, positions: Sequence[int]) -> torch.Tensor:
        """Draw one token a row with the noise of the row's output position.

        Args:
            scores: `[n, V]` float, unnormalised log-probabilities (any device).
            positions: n output positions; equal positions share their noise.

        Returns:
            `[n]` int64 tokens on the device of `scores`. Row i is distributed as `softmax(scores[i])`.
        """

    def noise(self, position: int, size: int) -> torch.Tensor | None:
        """`[size]` float32 Gumbel noise with which `couple` draws at a position, where it draws in that way."""
        return None

    def top(self, scores: torch.Tensor, positions: Sequence[int], count: int) -> torch.Tensor:
        """The tokens that the noise of each row's position ranks first, the one that `couple` draws leading.

        They are `count` draws without replacement. Where a row has fewer tokens of positive probability, what follows
        them means nothing.

        Returns:
            `[n, count]` int64 tokens on the device of `scores`.
        """
        ranked = []
        for _ in range(count):
            ranked.append(self.couple(scores, positions))
            scores = scores.scatter(-1, ranked[-1][:, None], -torch.inf)
        return torch.stack(ranked, -1)

    def twin(self) -> Chance:
        """The same randomness for another thread."""
        return self

    @abstractmethod
    def uniform(self, position: int, key: Hashable) -> float:
        """A number from [0, 1) for decisions that may come out any way without touching the output's law."""

    @abstractmethod
    def bernoulli(self, p: float, position: int, key: Hashable) -> bool:
        """True with probability `p` (values outside [0, 1] act as the nearer bound)."""

    @abstractmethod
    def categorical(self, p: torch.Tensor, position: int, key: Hashable) -> int:
        """A token from `p`: `[V]` non-negative weights with a positive sum."""


def couple_each(scores: torch.Tensor, chances: Sequence[Chance], positions: Sequence[int]) -> torch.Tensor:
    """`[n]` tokens, row i drawn as `chances[i].couple` draws it at `positions[i]`, all at once where that can be."""
    noise = [chance.noise(at, scores.shape[-1]) for chance, at in zip(chances, positions, strict=True)]
    known = [row for row in noise if row is not None]
    if len(known) == len(noise):
        return (scores + torch.stack(known).to(scores.device, non_blocking=True)).argmax(-1)
    rows = scores.split(1)
    return torch.cat([c.couple(row, [at]) for c, row, at in zip(chances, rows, positions, strict=True)])


class OtherChance(Chance):
    """The same shared noise as a chance's, and independent draws that are independent of that chance's own.

    Args:
        chance: a sequence's randomness.
        name: tells it from others of the same chance.
    """

    def __init__(self, chance: Chance, name: Hashable) -> None:
        self.chance, self.name = chance, name

    def couple(self, scores: torch.Tensor, positions: Sequence[int]) -> torch.Tensor:
        return self.chance.couple(scores, positions)

    def noise(self, position: int, size: int) -> torch.Tensor | None:
        return self.chance.noise(position, size)

    def top(self, scores: torch.Tensor, positions: Sequence[int], count: int) -> torch.Tensor:
        return self.chance.top(scores, positions, count)

    def twin(self) -> OtherChance:
        return OtherChance(self.chance.twin(), self.name)

    def uniform(self, position: int, key: Hashable) -> float:
        return self.chance.uniform(position, (self.name, key))

    def bernoulli(self, p: float, position: int, key: Hashable) -> bool:
        return self.chance.bernoulli(p, position, (self.name, key))

    def categorical(self, p: torch.Tensor, position: int, key: Hashable) -> int:
        return self.chance.categorical(p, position, (self.name, key))


class SeededChance(Chance):
    """Counter-based (Philox) randomness: equal on every platform for equal seed, stream and position.

    All draws share a generator, so another thread needs a `twin`.

    Args:
        seed: the request's seed, any non-negative integer below 2**63.
        stream: which of the request's `n` samples this is.
    """

    def __init__(self, seed: int, stream: int = 0) -> None:
        self.seed, self.stream = seed, stream
        self._noise: dict[int, torch.Tensor] = {}
        self._bits = np.random.Philox(key=0)
        self._draws, self._state = np.random.Generator(self._bits), self._bits.state

    def _generator(self, position: int, key: Hashable) -> np.random.Generator:
        """The draws under a key, until the next call."""
        # `int`: a NumPy integer is written differently, and would be another key.
        named = repr((self.seed, self.stream, int(position), key)).encode()
        digest = hashlib.blake2b(named, digest_size=16).digest()
        # To set the state of a generator takes a tenth of what it takes to build one.
        self._state["state"]["key"] = np.frombuffer(digest, "<u8").astype(np.uint64)
        self._bits.state = self._state
        return self._draws

    def noise(self, position: int, size: int) -> torch.Tensor:
        """`[size]` float32 standard Gumbel noise of an output position."""
        row = self._noise.get(position)
        if row is None or len(row) != size:
            uniform = torch.from_numpy(self._generator(position, "gumbel").random(size))
            row = uniform.clamp_(1e-300, 1 - 1e-16).log_().neg_().log_().neg_().float()
            # Drafter and verifier ask for the same few positions ahead; older ones are never asked for again.
            for old in [known for known in self._noise if known < position - REMEMBERED]:
                del self._noise[old]
            self._noise[position] = row
        return row

    def couple(self, scores: torch.Tensor, positions: Sequence[int]) -> torch.Tensor:
        return self._perturbed(scores, positions).argmax(-1)

    def top(self, scores: torch.Tensor, positions: Sequence[int], count: int) -> torch.Tensor:
        return self._perturbed(scores, positions).topk(count).indices

    def _perturbed(self, scores: torch.Tensor, positions: Sequence[int]) -> torch.Tensor:
        noise = torch.stack([self.noise(position, scores.shape[-1]) for position in positions])
        return scores + noise.to(scores.device, non_blocking=True)

    def twin(self) -> SeededChance:
        return SeededChance(self.seed, self.stream)

    def uniform(self, position: int, key: Hashable) -> float:
        return float(self._generator(position, ("uniform", key)).random())

    def bernoulli(self, p: float, position: int, key: Hashable) -> bool:
        return bool(self._generator(position, ("bernoulli", key)).random() < p)

    def categorical(self, p: torch.Tensor, position: int, key: Hashable) -> int:
        weights = np.cumsum(p.double().cpu().numpy())
        point = self._generator(position, ("categorical", key)).random() * weights[-1]
        # Rounding may lift the point onto the total, where no token lies.
        return int(np.searchsorted(weights, min(point, np.nextafter(weights[-1], 0)), side="right"))
