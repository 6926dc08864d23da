"""What a step of several texts takes, by its rows: as measured beforehand, corrected by what such steps took.

`PassCosts` are measured on one text in a few passes, so what a drafted row takes in a batch may be a third more or
less, and a step does more than its pass. A step of `n` texts and `r` rows is taken for `P(n) + c n + b (P(r) - P(n))`
seconds, where `P` is what was measured; `c`, a text's share of all else, and `b`, by how much drafted rows are dearer,
are fitted to the last steps by least squares. `b` returns to `DEARER` while nothing is drafted: else one step that
something held up would end drafting for good. Steps that all had as many rows tell nothing of either, and then one goes
without.
"""

from __future__ import annotations

import numpy as np

from paceline.drafters.expense import NEWS
from paceline.models.costs import PassCosts

#: `b` as long as nothing is known: rows of a batch are judged and attend too.
DEARER = 1.2
#: Weight of what was measured beforehand: of so many plain passes.
BELIEF = 0.01
#: How much rows must have differed to tell what they take, in steps with drafts beside many without, or the other way.
TELLING = 0.5
#: Times of what is expected that a step counts for at most, and least share of its pass that a step takes.
HELD_UP, LEAST = 3.0, 0.3


class BatchCosts:
    """Seconds of a step of several texts.

    Args:
        passes: what passes cost by their rows.

    Attributes:
        text: `c`, seconds.
        dearer: `b`.
    """

    def __init__(self, passes: PassCosts) -> None:
        self._passes, self.text, self.dearer = passes, 0.0, DEARER
        self._sums: tuple[float, ...] = (0.0,) * 6

    def plain(self, texts: int) -> float:
        """Of a step without drafts."""
        alone = self._passes(texts)
        return max(LEAST * alone, alone + self.text * texts)

    def drafted(self, texts: int, rows: int) -> float:
        """Of the rows beyond one a text."""
        return self.dearer * (self._passes(rows) - self._passes(texts))

    def each(self, texts: int, rows: np.ndarray) -> np.ndarray:
        """Of steps of so many texts, by the rows in an array."""
        return self.plain(texts) + self.dearer * (self._passes.each(rows) - self._passes(texts))

    @property
    def puzzling(self) -> bool:
        """Whether the last steps had too much the same drafts to tell what plain ones take."""
        steps, xx, xd, dd, _, _ = self._sums
        return bool(dd > 0 and dd - xd * xd / xx < TELLING * dd / steps)

    def add(self, texts: int, rows: int, seconds: float) -> None:
        """A step of so many texts and rows took so long."""
        alone = self._passes(texts)
        expected = self.plain(texts) + self.drafted(texts, rows)
        if any(self._sums):
            seconds = min(seconds, HELD_UP * expected)
        share, more = texts / alone, (self._passes(rows) - alone) / alone
        beyond = seconds / alone - 1
        seen = 1.0, share * share, share * more, more * more, share * beyond, more * beyond
        self._sums = tuple((1 - NEWS / 2) * old + new for old, new in zip(self._sums, seen, strict=True))
        _, xx, xd, dd, xy, dy = self._sums
        xx, dd, dy = xx + BELIEF * share * share, dd + BELIEF, dy + BELIEF * DEARER
        determinant = xx * dd - xd * xd
        self.text, self.dearer = (xy * dd - dy * xd) / determinant, max(0.0, (dy * xx - xy * xd) / determinant)
