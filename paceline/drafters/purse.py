"""When the texts of a batch are asked for, and what their drafts may lose.

A step in which anybody is asked takes some time, however few texts it is for: of a small model's step a tenth. So the
texts of a batch wait for each other, and all that are due are asked for together, where either it is likely to pay, or
no more is lost by it than may be. Whoever waits is looked at now and then, since a text that has begun to repeat itself
is worth more than its past drafts tell.
"""

from __future__ import annotations

import numpy as np

from paceline.drafters.expense import WARM, WORTH, Slope

#: Plain steps that drafts may lose for every step, at first, and at most at a time.
ALLOWED, CREDIT, MOST = 0.01, 0.5, 1.0
#: Steps from one look at texts that wait to the next.
PAUSE = 8


class Purse:
    """What drafts of a batch's texts may lose, all in all, in plain steps.

    Every step adds `ALLOWED` and what its drafts saved, less what asking and scoring took.

    Attributes:
        left: what may still be lost; below 0: more was lost than might be.
    """

    def __init__(self) -> None:
        self.left, self._asking, self._pause = CREDIT, Slope(), 0

    @property
    def known(self) -> bool:
        """Whether it was asked often enough to tell what that takes."""
        return self._asking.count >= WARM

    @property
    def seconds(self) -> float:
        """What asking for one more text takes; 0 as long as that is not known."""
        return self._takes(1) - self._takes(0)

    def asked(self, texts: int, seconds: float) -> None:
        """Asking for so many texts of a batch took so long."""
        self._asking.add(texts, seconds)

    def add(self, saved: float) -> None:
        """A batch's step saved so many plain steps."""
        self.left = min(MOST, self.left + ALLOWED + saved)

    def opens(self, hope: float, due: int, texts: int, plain: float) -> bool:
        """Whether to ask for the texts that are due.

        Either what their drafts are expected to save is `WORTH` times what that takes, and makes up for what was lost;
        or what it takes to ask for all texts may be lost, so that those asked for by way of trial are many at a time.

        Args:
            hope: seconds that drafts are expected to save.
            due: texts that are.
            texts: of the batch.
            plain: seconds of a plain step.
        """
        likely = hope + min(self.left, 0.0) * plain >= WORTH * self._takes(due) > 0
        return likely or self.left * plain >= self._takes(texts)

    def pause(self) -> None:
        """Nobody is asked in this step, nor in the next ones."""
        self._pause = PAUSE

    def pauses(self) -> bool:
        """A step begins; whether it is one of a pause."""
        self._pause -= self._pause > 0
        return self.paused

    @property
    def paused(self) -> bool:
        """Whether the step at hand is one of a pause, and not the one that began it."""
        return 0 < self._pause < PAUSE

    def _takes(self, texts: int) -> float:
        return float(self._asking(np.array(float(texts)))) if self.known else 0.0


def copied(chance: float, row: float, most: int) -> float:
    """Tokens that a copy saves each of whose tokens is right with a chance if those before it are.

    Args:
        chance: of each.
        row: what scoring one takes, in tokens; the copy ends where that is more than it brings.
        most: tokens of a copy.
    """
    if chance <= row:
        return 0.0
    return float(np.maximum(chance ** np.arange(1, most + 1) - row, 0.0).sum())
