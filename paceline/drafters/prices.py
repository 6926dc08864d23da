"""What steps of one text or of a batch take, and hence which drafts to score."""

from __future__ import annotations

import time
from collections.abc import Sequence as Seq

import numpy as np

from paceline.drafters.batch_costs import BatchCosts
from paceline.drafters.expense import WARM, Beside, Pace
from paceline.drafters.portions import Portions
from paceline.drafters.worth import Offer, Record
from paceline.models.costs import PassCosts

clock = time.perf_counter
#: How many times what it costs a drafted token must be expected to bring in a batch, where both are known roughly.
MARGIN = 1.15
#: How far a drafter may be wrong who thinks that a token is hardly worth its row.
SLACK = 0.6

#: Share of a plain step that tokens may take which are asked for on trial.
ASIDE = 0.05


class Prices:
    """Seconds of steps, and rates: tokens a second.

    Args:
        passes: what passes cost by their rows.
        padded: whether a pass over a batch takes as many rows for every text as for the one with most nodes.

    Attributes:
        beside: what steps of a text alone take beside their passes.
        batch: what steps of several texts take.
        node: seconds that each drafted token of the last step took, in a batch as learnt from that step too.
    """

    def __init__(self, passes: PassCosts, padded: bool = False) -> None:
        self.passes, self.padded = passes, padded
        self.beside, self.batch, self.node = Beside(), BatchCosts(passes), 0.0
        self._sent: tuple[float, int, int, int] | None = None
        self._rows: dict[int, float] = {}
        self._rooms: dict[int, float] = {}

    def plain(self, texts: int) -> float:
        """Seconds of a step without drafts."""
        return self.batch.plain(texts) if texts > 1 else float(self.passes(1) + self.beside(0))

    def rates(self, gains: np.ndarray) -> np.ndarray:
        """Of drafts of 0, 1, ... tokens that bring `gains` tokens, for a text alone."""
        nodes = np.arange(len(gains))
        return np.asarray(gains / (self.passes.each(1 + nodes) + self.beside(nodes)))

    def rate(self, offer: Offer) -> float:
        """Of a draft of a text alone, at its best size."""
        return float(self.rates(offer.gains).max()) if offer.tree.drafted else 1 / self.plain(1)

    def best_length(self, record: Record, pace: Pace) -> tuple[int, float, float] | None:
        """The length at which a drafter's drafts bring a text alone most tokens a second.

        Args:
            record: how it did in that text.
            pace: what asking it takes.

        Returns:
            The length, the tokens that such a step brings, and its seconds; None: not known yet, or it had no drafts.
        """
        if record.best[0] != record.offers.count:  # it was asked since
            record.best = record.offers.count, self._best_length(record, pace)
        return record.best[1]

    def _best_length(self, record: Record, pace: Pace) -> tuple[int, float, float] | None:
        offers, form = record.offers, record.form
        if not offers.longest or offers.count < WARM or pace.count < WARM or not form.steps:
            return None
        gains, nodes = offers.by_length()
        # As much of what they promised comes true as did in the steps so far.
        promised = float(np.interp(form.nodes / form.steps, np.arange(len(gains)), gains)) - 1
        share = min(1.25, (form.tokens / form.steps - 1) / max(promised, 1e-6))
        gains = 1 + share * (gains - 1)
        seconds = self.passes.each(1 + nodes) + self.beside(nodes) + pace.alone(nodes)
        best = 1 + int((gains[1:] / seconds[1:]).argmax())
        return best, float(gains[best]), float(seconds[best])

    def sensible(self, record: Record, pace: Pace, most: int) -> int:
        """Tokens for which to ask a drafter for a text alone: what pays, and some to see whether more do.

        Its own stops, and what is cut off afterwards, know better than a mean; so cheap tokens are asked for freely.
        """
        best = self.best_length(record, pace)
        if best is None:
            return most
        first, second = pace.alone(np.array([1.0, 2.0]))
        cheap = int(min(most, ASIDE * self.plain(1) / max(float(second - first), 1e-9)))
        return best[0] + max(2 if best[0] >= record.offers.longest else 0, cheap)

    def prefers(self, offer: Offer, other: Offer, texts: int) -> bool:
        """Whether a draft is worth more than another, in a batch of so many texts."""
        if texts == 1:
            return self.rate(offer) > self.rate(other)
        row = self.row(texts)
        return offer.surplus(1.0, row) > other.surplus(1.0, row)

    def sizes(self, offers: Seq[Offer], shares: Seq[float], others: int = 0) -> list[int]:
        """How much of each draft to score, so that all texts together advance fastest.

        Args:
            offers: one a text.
            shares: in a batch, how much of what each is expected to bring comes true.
            others: texts of the pass that have no draft.
        """
        texts = len(offers) + others
        if not any(offer.tree.drafted for offer in offers):
            return [0] * len(offers)
        if texts == 1:
            return [int(self.rates(offers[0].gains).argmax())]
        portions = Portions(offers, [share / MARGIN for share in shares], self.padded, others)
        rates = portions.gains / self.batch.each(texts, portions.rows)
        return portions.sizes(0 if self.batch.puzzling else int(rates.argmax()))

    def row(self, texts: int) -> float:
        """What a drafted token's row takes, in tokens that plain decoding of so many texts would bring meanwhile."""
        if texts not in self._rows:  # all texts of a step ask for that
            self._rows[texts] = self.batch.drafted(texts, 2 * texts) / self.plain(texts)
        return self._rows[texts]

    def room(self, texts: int) -> float:
        """By how much drafts of up to a token a text make such steps faster if all hold; 1 for one text.

        Where that is little, little may be spent on finding out whether they do.
        """
        if texts == 1:
            return 1.0
        if texts not in self._rooms:
            rows = np.arange(texts, 2 * texts + 1)
            rates = rows / self.batch.each(texts, rows)
            self._rooms[texts] = float(rates.max() / rates[0]) - 1
        return self._rooms[texts]

    def worth(self, texts: int) -> float:
        """Chance, as a drafter guesses it, below which a token is surely not worth its row; 0 for a text alone."""
        return SLACK * self.row(texts) if texts > 1 else 0.0

    def begin(self, widths: Seq[int]) -> None:
        """A step sets out on a pass over so many rows of each text."""
        texts = len(widths)
        rows = texts * max(widths) if self.padded else sum(widths)
        self._sent = clock(), texts, rows, sum(widths) - texts
        self._share(*self._sent[1:])

    def end(self) -> bool:
        """The step is over; learns what one of a batch took. Whether it was one."""
        if self._sent is None:
            return False
        (began, texts, rows, drafted), self._sent = self._sent, None
        if texts > 1:
            self.batch.add(texts, rows, clock() - began)
            self._share(texts, rows, drafted)
            self._rows.clear()
            self._rooms.clear()
        return texts > 1

    def _share(self, texts: int, rows: int, drafted: int) -> None:
        more = self.batch.drafted(texts, rows) if texts > 1 else self.passes(rows) - self.passes(1)
        self.node = more / drafted if drafted else 0.0
