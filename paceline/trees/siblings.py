"""How the children of one node are picked, one after the other, under each law (see `paceline.plan.LAWS`).

Whatever was seen before it, a drawn token follows exactly the law that is reported with it: `q` itself (with
replacement), `q` without the earlier siblings (distinct), the same and then a uniform law over what is not drawn yet
(exhaustive), `q` without the most likely tokens (top). That, and that every drawn token is kept, in draw order, is all
that a verifier needs to be exact.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

#: Draws a token from `[V]` weights; the integer tells the node's draws apart.
Draw = Callable[[torch.Tensor, int], int]
#: Probability below which nothing is left of a law but rounding.
NOTHING = 1e-9


@dataclass(frozen=True, slots=True)
class Pick:
    """A sibling.

    Attributes:
        token: its id.
        chance: its probability under the draft's law q.
        law: `[V]` float64 log-distribution that it was drawn from; `None`: it was not drawn.
    """

    token: int
    chance: float
    law: torch.Tensor | None = None


class Siblings(ABC):
    """The children of one node.

    Attributes:
        rest: probability under q of the tokens that are not among the children yet.
    """

    rest: float = 1.0

    @abstractmethod
    def next(self, of: int) -> Pick | None:
        """The next sibling, or `None` where the law is spent. `of`: how many there will be, where that is known."""

    @property
    def promise(self) -> float:
        """A guess of the chance that the next sibling is accepted if none before it was, times that of getting there.

        For a sibling that is still to be drawn, what is left of q; its own probability may not be looked at.
        """
        return self.rest


class Ranked(Siblings):
    """Tokens in a given order: the most likely ones, or those that the shared noise ranks first.

    Args:
        tokens, chances: the first tokens and their probabilities under q.
        likeliest: they are ranked by probability, so that the next one's is a fair guess of its acceptance.
    """

    def __init__(self, tokens: Sequence[int], chances: Sequence[float], likeliest: bool) -> None:
        ranked = dict(zip(tokens, chances, strict=True))
        # A token of probability 0 (or NaN) is none that the target could choose.
        self._left = [Pick(token, chance) for token, chance in ranked.items() if chance > 0][::-1]
        self._likeliest = likeliest

    def next(self, of: int) -> Pick | None:
        if not self._left:
            return None
        pick = self._left.pop()
        self.rest = max(0.0, self.rest - pick.chance)
        return pick

    @property
    def promise(self) -> float:
        if not self._left:
            return 0.0
        return self._left[-1].chance if self._likeliest else self.rest


class Drawn(Siblings):
    """Base of siblings that are drawn. `law`: `[V]` float64 probabilities on the host."""

    def __init__(self, law: torch.Tensor, draw: Draw) -> None:
        self._law, self._draw, self._count = law.nan_to_num(0.0), draw, 0

    def _from(self, weights: torch.Tensor) -> Pick | None:
        total = float(weights.sum())
        if total < NOTHING:
            return None
        token = self._draw(weights, self._count)
        self._count += 1
        return Pick(token, float(self._law[token]), (weights / total).log())


class Distinct(Drawn):
    """Without replacement: each from q without the earlier siblings."""

    def __init__(self, law: torch.Tensor, draw: Draw) -> None:
        super().__init__(law, draw)
        self._left = self._law

    def next(self, of: int) -> Pick | None:
        pick = self._from(self._left)
        if pick is None:
            self.rest = 0.0
            return None
        if self._left is self._law:
            self._left = self._law.clone()
        self._left[pick.token] = 0.0
        self.rest = max(0.0, self.rest - pick.chance)
        return pick


class Exhaustive(Distinct):
    """Without replacement, and where q has nothing left uniformly from the tokens that are not drawn yet."""

    def __init__(self, law: torch.Tensor, draw: Draw) -> None:
        super().__init__(law, draw)
        self._untried = torch.ones_like(law)

    def next(self, of: int) -> Pick | None:
        pick = super().next(of) or self._from(self._untried)
        if pick is not None:
            self._untried[pick.token] = 0.0
        return pick


class Repeated(Drawn):
    """With replacement: every sibling from q, the same token perhaps twice."""

    def __init__(self, law: torch.Tensor, draw: Draw) -> None:
        super().__init__(law, draw)
        self._seen: set[int] = set()

    def next(self, of: int) -> Pick | None:
        pick = self._from(self._law)
        if pick is not None and pick.token not in self._seen:
            self._seen.add(pick.token)
            self.rest = max(0.0, self.rest - pick.chance)
        return pick


class Top(Drawn):
    """The `of - 1` most likely tokens, then one drawn from what is left of q."""

    def next(self, of: int) -> Pick | None:
        if self._count == 0:
            likely = self._law.topk(min(of - 1, len(self._law)))
            chosen = zip(likely.indices.tolist(), likely.values.tolist(), strict=True)
            self._ranked = [Pick(token, chance) for token, chance in chosen if chance > 0]
        at, self._count = self._count, self._count + 1
        if at < len(self._ranked):
            self.rest = max(0.0, self.rest - self._ranked[at].chance)
            return self._ranked[at]
        if at > len(self._ranked):
            return None
        outside = self._law.clone()
        outside[[pick.token for pick in self._ranked]] = 0.0
        self.rest = 0.0
        return self._from(outside)


#: The class for each law of drawn tokens.
DRAWN: dict[str, type[Drawn]] = {
    "distinct": Distinct,
    "exhaustive": Exhaustive,
    "replacement": Repeated,
    "chains": Repeated,
    "top": Top,
}
