"""No-repeat n-gram: no n tokens in a row may occur twice."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from paceline.policies.base import Context, Policy, Stage
from paceline.policies.history import BOUND, History
from paceline.policies.knobs import check_integer
from paceline.registry import Guarantee, method


@dataclass(frozen=True, slots=True, eq=False)
class Grams:
    """The n-grams of a prefix: `followers` of each n-1 tokens, and `last`, the prefix's last n-1 tokens."""

    size: int
    followers: dict[tuple[int, ...], frozenset[int]]
    last: tuple[int, ...]

    def plus(self, tokens: Iterable[int]) -> Grams:
        """The n-grams of a longer prefix, in an index of its own."""
        run = (*self.last, *tokens)
        followers = dict(self.followers)
        for gram in _windows(run, self.size):
            followers[gram[:-1]] = followers.get(gram[:-1], frozenset()) | {gram[-1]}
        return Grams(self.size, followers, _end(run, self.size))


@method(
    name="no_repeat",
    kind="policy",
    guarantee=Guarantee.DEFINES,
    summary="Ban tokens that would repeat an n-gram of the prompt or the output.",
    paper="A Deep Reinforced Model for Abstractive Summarization",
    year=2017,
    argument="no_repeat_ngram_size",
)
@dataclass(frozen=True)
class NoRepeat(Policy):
    """Ban v (score `-inf` in `[n, V]`) where (last `size` - 1 tokens, v) occurred in prompt or output.

    With size 1 no token of prompt or output may occur again. A tiny vocabulary can run out of tokens; the row
    then has no finite score, a dead end.

    Attributes:
        size: n, usual 2-4. 0, the default, switches it off.

    Paper: Paulus, Xiong, Socher, "A Deep Reinforced Model for Abstractive Summarization", 2017.
    """

    size: int = 0

    stage = Stage.MASK

    def __post_init__(self) -> None:
        check_integer("no_repeat_ngram_size", self.size, "an integer of at least 1, or 0 to switch it off, is allowed")

    @property
    def neutral(self) -> bool:
        return self.size == 0

    def start(self, context: Context) -> History[Grams]:
        return History(Grams(self.size, {}, ()).plus(context.prompt))

    def advance(self, state: History[Grams], token: int, row: torch.Tensor | None = None) -> History[Grams]:
        return state.then(token)

    def settle(self, state: History[Grams]) -> History[Grams]:
        return state if state.length <= BOUND else History(state.base.plus(state.tail()))

    def transform(self, scores: torch.Tensor, states: Sequence[History[Grams]]) -> torch.Tensor:
        size = scores.shape[-1]  # a prompt may hold ids beyond the scores
        pairs = [(row, token) for row, state in enumerate(states) for token in _banned(state) if token < size]
        if not pairs:
            return scores
        rows, tokens = torch.tensor(pairs, device=scores.device).unbind(1)
        masked = scores.clone()
        masked[rows, tokens] = -torch.inf
        return masked


def _banned(state: History[Grams]) -> set[int]:
    """Tokens that would repeat an n-gram after this history."""
    base = state.base
    run = (*base.last, *state.tail())
    context = _end(run, base.size)
    recent = {gram[-1] for gram in _windows(run, base.size) if gram[:-1] == context}
    return recent | base.followers.get(context, frozenset())


def _windows(run: tuple[int, ...], size: int) -> list[tuple[int, ...]]:
    return [run[i : i + size] for i in range(len(run) - size + 1)] if size else []


def _end(run: tuple[int, ...], size: int) -> tuple[int, ...]:
    """The last size - 1 tokens."""
    return run[max(0, len(run) - size + 1) :]
