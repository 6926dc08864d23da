"""Which drafters that take time to ask: arms of a bandit, chosen before anybody knows what they would draft.

The index of an arm is its mean rate so far, in tokens a second, and how far above it the rate may lie, which falls
with `explore sqrt(log t / n)` after `n` of `t` steps: UCB1 on discounted means, so that a useless arm is tried O(log
t) times. It is asked where its index beats the best draft that is there. In a batch its last drafts, at what rows
cost now, must save `WORTH` times what it takes to ask and, where a text is new to it, to read that. An arm that nobody
tried yet is judged by how sure the target is of its own next token.

Paper: Auer, Cesa-Bianchi, Fischer, "Finite-time Analysis of the Multiarmed Bandit Problem", 2002.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Seq

from paceline.drafters.expense import WARM, WORTH, Pace
from paceline.drafters.notes import Notes
from paceline.drafters.prices import MARGIN, Prices
from paceline.drafters.purse import Purse
from paceline.drafters.worth import Offer
from paceline.sequence import Sequence

#: A drafter is free that takes less than this share of a plain pass, or less than so many seconds: to decide whether to
#: ask it takes about as long.
FREE, CHOOSING = 0.02, 1.5e-4
#: Share of a plain step that a drafter is taken to need before it was ever asked, and share of what is left of a text
#: that it may spend reading before anybody knows whether it is any good.
GUESS, TRIAL = 0.4, 0.01


class Bandit:
    """What asking each drafter takes, and whether to.

    Args:
        prices: of the target's steps.
        size_ratios: of each drafter (`Drafter.size_ratio`).
        explore: how far an arm's index lies above its mean.
        purse: what a batch's drafts may lose.

    Attributes:
        paces: what asking each takes.
    """

    def __init__(self, prices: Prices, size_ratios: Seq[float], explore: float, purse: Purse) -> None:
        self._prices, self._size_ratios, self._explore, self._purse = prices, size_ratios, explore, purse
        self.paces = [Pace() for _ in size_ratios]

    def free(self, member: int, times: float = 1) -> bool:
        """Whether a member takes next to no time, or at most so many times that."""
        pace = self.paces[member]
        return bool(pace.count) and pace() <= max(times * FREE * self._prices.passes(1), CHOOSING)

    def reach(self, notes: Notes, rows: int) -> int:
        """Tokens a member that takes time is asked for.

        In a batch, what is cut off again should not be drafted: as many as were scored of the last draft, or some more
        if all of it was.
        """
        if rows == 1:
            return notes.reach
        more = 0 if notes.cut else 1 + notes.sent // 2
        return min(notes.reach, max(1, notes.sent + more))

    def knows(self, member: int, sequence: Sequence, rows: int) -> bool:
        """Whether it is known what asking a member takes, and in a batch what it promises."""
        return self.paces[member].known and (rows == 1 or sequence.drafts.past.records[member].offers.count >= WARM)

    def hopeful(self, member: int, sequence: Sequence, offer: Offer, rows: int) -> bool:
        """Whether a member that takes time may beat the best draft so far."""
        pace, notes = self.paces[member], sequence.drafts
        if offer.tree.draws is not None:
            return False
        if rows == 1 and notes.knows_nothing_of(member):
            return self._tempting(member, sequence, offer)
        if rows > 1:
            return self._promising(member, sequence, offer, rows)
        return not pace.known or self._faster(member, notes, offer, pace(1, self.reach(notes, 1)))

    def _tempting(self, member: int, sequence: Sequence, offer: Offer) -> bool:
        """Whether to try a member of which nothing is known in a text alone: where the target is unsure, later.

        To begin with it reads the text, which must be worth it in what is left to write, or take next to no part of it.
        """
        notes: Notes = sequence.drafts
        reading = self._size_ratios[member] * self._prices.passes(len(sequence.tokens))
        seconds, token = (1 + GUESS) * self._prices.plain(1), 1 / self._prices.rate(offer)
        hope = 2 * self._explore * math.sqrt(math.log(1 + notes.steps))
        likely, possible = (token - seconds / (1 + notes.right + more) for more in (0.0, hope))
        left = sequence.remaining
        return left * likely > 2 * reading or (possible > 0 and reading < TRIAL * left * token)

    def _faster(self, member: int, notes: Notes, offer: Offer, spent: float) -> bool:
        """Whether a text alone may get more tokens a second from a member than from a draft that is there."""
        own, past = notes.records[member].form, notes.past.records[member].form.hint()
        known = own if own.steps else past
        brings, nodes = known.tokens / known.steps, known.nodes / known.steps
        # Up to as much as a draft may bring: one that failed at first would never be asked again otherwise.
        hope = self._explore * math.sqrt(math.log(1 + notes.steps) / known.steps)
        step = self._prices.passes(1 + round(nodes)) + float(self._prices.beside(nodes)) + spent
        rate = (brings + hope * (1 + nodes)) / step
        best = self._prices.best_length(notes.records[member], self.paces[member])
        if best is not None:  # it may pay at another length alone
            length, tokens, seconds = best
            rate = max(rate, (tokens + hope * (1 + length)) / seconds)
        return rate > self._prices.rate(offer)

    def _promising(self, member: int, sequence: Sequence, offer: Offer, rows: int) -> bool:
        """Whether drafts of a member for all texts of a batch may save as much more time than asking takes.

        Texts that the member has yet to read must be worth that in what is left to write; as long as nobody knows what
        it promises, no more is read than may be lost.
        """
        pace, notes = self.paces[member], sequence.drafts
        own, past = notes.records[member].offers, notes.past.records[member].offers
        plain, room = self._prices.plain(rows), self._prices.room(rows)
        reading = 0.0 if own.count else self._size_ratios[member] * self._prices.passes(len(sequence.tokens))
        if not pace.known or not past.count:
            return reading <= min(TRIAL * room * sequence.remaining, max(self._purse.left, 0.0)) * plain
        share, row = notes.past.luck.share / MARGIN, self._prices.row(rows)
        seen = own.count + notes.weight
        brings = (own.count * own.value(share, row) + notes.weight * past.value(share, row)) / seen
        brings += room * self._explore * math.sqrt(math.log(1 + notes.steps) / seen)
        spent = pace(rows, self.reach(notes, rows)) + rows * reading / max(1, sequence.remaining)
        return (brings - offer.surplus(share, row)) * plain > WORTH * spent
