"""The chance that a guess is right by how many tokens agree before it, learned from one text's own drafts."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence as Seq

#: Classes of agreement: at most `AGREEING[i]` tokens; the last class: more.
AGREEING = (1, 2, 3, 4, 8, 16)


class Odds:
    """Shares of right guesses by class of agreement.

    Args:
        prior: the share assumed at first for each class, one more than `AGREEING` has entries.
        weight: how many observations the assumption is worth.
    """

    def __init__(self, prior: Seq[float], weight: float = 8.0) -> None:
        self.right = [weight * share for share in prior]
        self.tried = [weight] * len(prior)

    def __call__(self, agreed: int) -> float:
        """The chance that a guess that rests on `agreed` agreeing tokens is right."""
        group = bisect_left(AGREEING, agreed)
        return self.right[group] / self.tried[group]

    def learn(self, agreed: int, right: bool) -> None:
        """Take in what became of one guess."""
        group = bisect_left(AGREEING, agreed)
        self.tried[group] += 1
        self.right[group] += right
