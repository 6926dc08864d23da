"""What a step takes beside its pass, and when asking for drafts costs more than they bring.

Passes of large models dwarf both. Those of a model of a few million weights take a millisecond, and then a tenth of one
spent on choosing a draft is a tenth of the speed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from paceline.drafters.worth import Form

#: Weight of what was seen last.
NEWS = 0.1
#: Share of a plain step that asking for drafts may take where they bring nothing.
SHARE = 0.01
#: Most steps without asking, at first and later on, and how many go by between two glances at whether to go on so.
SHORTEST, LONGEST, GLANCE = 2, 16, 4
#: How many times what asking takes drafts must bring: what they bring is known roughly.
WORTH = 2.0
#: Mean square of what depths differ by, below which they tell little of what each token takes.
ALIKE = 0.2
#: Calls until a drafter's time is known.
WARM = 3
#: Tokens that are taken to have come as expected before anything is known.
CALM = 8.0
#: Steps that a text's drafts are given until it is known what they bring, and plain steps that each is taken to save.
PATIENCE, HOPE = 4.0, 0.5


def moved(known: float | None, seen: float) -> float:
    """A mean that follows what is seen; one step that something else held up hardly moves it."""
    return seen if known is None else known + NEWS * (min(seen, 3 * known + 1e-5) - known)


class Mean:
    """Seconds that something takes. The first times are longer than any other: of these the shortest counts."""

    def __init__(self) -> None:
        self.count, self.seconds = 0, 0.0

    def add(self, seconds: float) -> None:
        self.count += 1
        early = self.count <= WARM
        self.seconds = min(seconds, self.seconds or seconds) if early else moved(self.seconds, seconds)

    @property
    def known(self) -> bool:
        """Whether it was seen often enough."""
        return self.count >= WARM


class Pace:
    """What asking a drafter takes: of a text alone, and of several by how deep the drafts are."""

    def __init__(self) -> None:
        self._alone, self._level, self._deep = Mean(), Mean(), Slope()

    def add(self, seconds: float, texts: int, depth: int) -> None:
        """A call for so many texts drafted so deep and took so long."""
        if texts == 1:
            self._alone.add(seconds)
            self._deep.add(depth, seconds)
        else:
            self._level.add(seconds / (1 + depth))

    @property
    def count(self) -> int:
        """How often it was asked."""
        return self._alone.count + self._level.count

    @property
    def known(self) -> bool:
        """Whether it was asked often enough to tell."""
        return self.count >= WARM

    def __call__(self, texts: int = 1, depth: int = 1) -> float:
        """Seconds of a call for so many texts that drafts so deep; of one text, as deep as it goes."""
        if self._level.count and (texts > 1 or not self._alone.count):
            return self._level.seconds * (1 + depth)
        return self._alone.seconds

    def alone(self, depth: np.ndarray) -> np.ndarray:
        """Seconds of calls for one text by how deep they draft; 0 where none was asked alone."""
        return self._deep(depth) if self._deep.count else np.zeros_like(depth)


class Slope:
    """Seconds by depth: a straight line through what was seen lately, and through nothing where depths were alike.

    The first times are longer than any other: of these the one counts that was shortest by depth.
    """

    def __init__(self) -> None:
        self.count = 0
        self._sums: tuple[float, ...] = (0.0,) * 5

    def add(self, depth: float, seconds: float) -> None:
        """A call drafted so deep and took so long."""
        self.count += 1
        _, x, y, _, _ = self._sums
        if self.count == 1 or (self.count <= WARM and seconds * x < y * max(depth, 1)):
            self._sums = 1.0, depth, seconds, depth * depth, depth * seconds
        elif self.count > WARM:
            start, rise = self._line()
            counted = min(seconds, 3 * (start + rise * depth) + 1e-5)
            seen, keep = (1.0, depth, counted, depth * depth, depth * counted), 1 - NEWS / 2
            self._sums = tuple(keep * old + new for old, new in zip(self._sums, seen, strict=True))

    def __call__(self, depth: np.ndarray) -> np.ndarray:
        """Seconds of calls that draft so deep."""
        start, rise = self._line()
        return start + rise * depth

    def _line(self) -> tuple[float, float]:
        """Seconds at depth 0, and by how much they rise with each."""
        weight, *sums = self._sums
        x, y, xx, xy = (each / weight for each in sums)
        through = y / max(x, 1.0)
        rise = min(max((xy - x * y + ALIKE * through) / (xx - x * x + ALIKE), 0.0), through)
        return y - rise * x, rise


class Beside:
    """Seconds of a step of one text beside its pass, judging and keeping, by drafted tokens."""

    def __init__(self) -> None:
        self._plain: float | None = None
        self._drafted: float | None = None

    def __call__(self, nodes: float | np.ndarray) -> float | np.ndarray:
        """Of a step with so many drafted tokens."""
        return (self._plain or 0.0) + (self._drafted or 0.0) * nodes

    def add(self, nodes: int, seconds: float) -> None:
        """It took so long with so many of them."""
        if not nodes:
            self._plain = moved(self._plain, seconds)
        elif self._plain is not None:
            self._drafted = moved(self._drafted, max(0.0, seconds - self._plain) / nodes)


class Luck:
    """How much of what drafts were expected to bring they brought.

    Of several drafts the one is taken that looks best, and what looks best was judged too well more often than not.
    What happened longer ago counts less, so that after a run of bad luck drafts are tried again.
    """

    def __init__(self) -> None:
        self._expected, self._brought = 0.0, 0.0

    def add(self, expected: float, brought: float) -> None:
        """A step whose drafts were expected to bring some tokens brought so many."""
        fade = 1 - NEWS / 2
        self._expected, self._brought = fade * self._expected + expected, fade * self._brought + brought

    @property
    def share(self) -> float:
        """Of an expectation, what will come."""
        return min(1.25, (CALM + self._brought) / (CALM + self._expected))


@dataclass
class Rest:
    """When one text's drafts are not asked for.

    While drafts bring less than `WORTH` times the time that asking for them takes, more and more steps go without, so
    that in the end asking takes `SHARE` of the time; a draft that holds ends it, or a glance that finds one likely to.

    Attributes:
        brought: plain steps that the drafts of the steps in which was asked saved, less what it took to score them and,
            in a batch, to draft them.
        left: steps without asking that are to come.
        most: how many may come next: twice as many as the last time, for what a text is like at first says little.
        now: the step at hand is one.
        among: texts that shared its passes when that was found. Beside half as many a drafted token takes less time, so
            it is found out anew.
        room: by how much drafts can make its steps faster at most. What they are hoped to bring before anything is
            known, and what asking may take, is in proportion.
    """

    brought: Form = field(default_factory=lambda: Form(PATIENCE, HOPE * PATIENCE))
    left: int = 0
    most: int = SHORTEST
    now: bool = False
    among: int = 0
    room: float = 1.0

    def begins(self, texts: int = 1, room: float = 1.0, in_vain: bool = False) -> bool:
        """A step of so many texts begins; whether it goes without, as it does where asking would be in vain."""
        if not in_vain:
            self.room = room
            if 2 * texts <= self.among:
                self.brought, self.left, self.most = Form(PATIENCE, HOPE * room * PATIENCE), 0, SHORTEST
                self.among = texts
            elif texts > self.among:
                self.among = texts
                if texts > 1:
                    self.expect(HOPE * room)
        self.now = in_vain or self.left > 0
        self.left -= self.left > 0
        return self.now

    def expect(self, most: float) -> None:
        """Drafts are not likely to save more plain steps than this."""
        self.brought.tokens = min(self.brought.tokens, most * self.brought.steps)

    @property
    def glances(self) -> bool:
        """Whether this is a step of a rest in which to see whether a draft would be accepted."""
        return self.left > 0 and self.left % GLANCE == 0

    @property
    def hope(self) -> float:
        """Plain steps that a draft is expected to save."""
        return self.brought.tokens / self.brought.steps

    def stirs(self, saved: float, asking: float, plain: float) -> bool:
        """Whether to ask all the same, where a draft is likely to save so many plain steps."""
        if saved * plain >= WORTH * asking:
            self.wakes()
        return not self.now

    def wakes(self) -> None:
        """Ask in this step all the same."""
        self.now, self.left = False, 0

    def asked(self, saved: float, asking: float, plain: float, paid: float = 0.0) -> None:
        """A step in which was asked.

        Args:
            saved: plain steps that its draft saved, less what scoring it took.
            asking: seconds that asking takes.
            plain: seconds of a plain step.
            paid: seconds that it took beside, for what was foretold to save more than that.
        """
        saved -= paid / plain
        self.brought.add(saved, 0)
        if self.hope * plain >= WORTH * asking:
            self.left, self.most = 0, SHORTEST
        elif saved > 0.5:
            self.left = 0
        else:
            self.left = min(self.most, int((asking + paid) / max(SHARE * self.room * plain, 1e-9)))
            self.most = min(LONGEST, 2 * self.most)
