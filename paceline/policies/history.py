"""What policies that remember tokens share: a history that forks for free.

A history is a linked list of the tokens taken in since a *base*. The base is an index of everything before,
built once and never changed, so any number of forks may share it. Taking a token in costs one small object;
`settle` folds a long list into a fresh base.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

import torch

from paceline.policies.base import Context, Policy, Stage

#: Tokens after which `settle` folds: a base costs O(V), each token since it a little at every node.
BOUND = 32
B = TypeVar("B")


@dataclass(frozen=True, slots=True, eq=False)
class History(Generic[B]):
    """Tokens since `base`, newest here, older ones through `parent` (`None` at the base itself)."""

    base: B
    parent: History[B] | None = None
    token: int = -1
    length: int = 0

    def then(self, token: int) -> History[B]:
        """The history one token later; this one stays as it is."""
        return History(self.base, self, token, self.length + 1)

    def tail(self) -> list[int]:
        """Tokens since the base, oldest first."""
        tokens: list[int] = []
        node = self
        while node.parent is not None:
            tokens.append(node.token)
            node = node.parent
        return tokens[::-1]


@dataclass(frozen=True, slots=True, eq=False)
class Counts:
    """How often each token occurred, as a base of histories.

    Attributes:
        dense: `[V]` int64 counts.
        tokens: `[u]` the tokens that occurred.
        amounts: `[u]` their counts.
    """

    dense: torch.Tensor
    tokens: torch.Tensor
    amounts: torch.Tensor

    @classmethod
    def of(cls, dense: torch.Tensor) -> Counts:
        tokens = dense.nonzero().flatten()
        return cls(dense, tokens, dense[tokens])

    def plus(self, tokens: Iterable[int]) -> Counts:
        """Counts with further tokens. Ids beyond the vocabulary, which no score belongs to, are left out."""
        size = len(self.dense)
        ids = torch.tensor([t for t in tokens if t < size], dtype=torch.int64, device=self.dense.device)
        return Counts.of(self.dense + torch.bincount(ids, minlength=size))


def adjust(
    scores: torch.Tensor,
    states: Sequence[History[Counts]],
    change: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Change the scores of tokens that occurred.

    The tokens of a base are changed in all its rows at once, then those of each row's own tail with their
    full count.

    Args:
        scores: `[n, V]`, left as they are.
        states: n histories.
        change: new scores, of any shape, from scores and the tokens' counts (at least 1).
    """
    changed = scores.clone()
    for base in {id(state.base): state.base for state in states}.values():
        mine = [row for row, state in enumerate(states) if state.base is base]
        rows = torch.tensor(mine, device=scores.device)[:, None]
        changed[rows, base.tokens] = change(scores[rows, base.tokens], base.amounts.to(scores.dtype))
        tails = [(row, *item) for row in mine for item in Counter(states[row].tail()).items()]
        if tails:
            at, tokens, recent = torch.tensor(tails, device=scores.device).unbind(1)
            total = (base.dense[tokens] + recent).to(scores.dtype)
            changed[at, tokens] = change(scores[at, tokens], total)
    return changed


class CountPenalty(Policy):
    """A policy that changes the scores of tokens by how often they occurred."""

    stage = Stage.PENALTY
    #: Whether the prompt's tokens count, or generated ones alone.
    counts_prompt: ClassVar[bool] = False

    @abstractmethod
    def change(self, scores: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """New scores of tokens that occurred `counts` times, element by element; `counts` is at least 1."""

    def start(self, context: Context) -> History[Counts]:
        empty = Counts.of(torch.zeros(context.vocab_size, dtype=torch.int64, device=context.device))
        return History(empty.plus(context.prompt) if self.counts_prompt else empty)

    def advance(self, state: History[Counts], token: int, row: torch.Tensor | None = None) -> History[Counts]:
        return state.then(token)

    def settle(self, state: History[Counts]) -> History[Counts]:
        return state if state.length <= BOUND else History(state.base.plus(state.tail()))

    def transform(self, scores: torch.Tensor, states: Sequence[History[Counts]]) -> torch.Tensor:
        return adjust(scores, states, self.change)
