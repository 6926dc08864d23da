"""Which nodes of several texts' drafts to score together, when one pass serves them all.

Each text's nodes come best first (`Offer`). Where a pass computes nothing but nodes, the best nodes of all texts are
taken, whosever they are: a text that copies gets a long draft and one that says something new gets none. Where it is
padded to the widest tree, narrower trees cost as much, and all texts get as many nodes as they have up to one size.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

import numpy as np

from paceline.drafters.worth import Offer


class Portions:
    """What may be scored of several drafts. Choice 0 is the least: nothing but what was drawn, which stays whole.

    Args:
        offers: one a text.
        shares: for each, how much of what its draft is expected to bring counts.
        padded: whether a pass takes as many rows for every text as for the one with most nodes.

    Attributes:
        gains: `[C]` expected tokens of all texts in a step, by choice.
        rows: `[C]` rows of the pass, roots and padding included.
    """

    def __init__(self, offers: Seq[Offer], shares: Seq[float], padded: bool) -> None:
        self._whole = np.array([offer.tree.drafted if offer.tree.draws is not None else 0 for offer in offers])
        free = [
            np.zeros(0) if whole else share * np.diff(offer.gains)
            for offer, share, whole in zip(offers, shares, self._whole, strict=True)
        ]
        each, text = np.concatenate(free), np.repeat(np.arange(len(free)), [len(gains) for gains in free])
        rank = np.concatenate([np.arange(len(gains)) for gains in free])
        # Nodes are taken one after the other, or those of a rank at once; of equals, those that come first.
        order = np.argsort(rank if padded else -each, kind="stable")
        self._text, each, rank = text[order], each[order], rank[order]
        ends = np.flatnonzero(np.diff(rank, append=-1)) + 1 if padded else np.arange(1, len(order) + 1)
        self._taken = np.concatenate([[0], ends])
        drawn = [share * (o.gains[-1] - 1) for o, share, n in zip(offers, shares, self._whole, strict=True) if n]
        base = len(offers) + sum(drawn)
        self.gains = base + np.concatenate([[0.0], np.cumsum(each)])[self._taken]
        if padded:
            self.rows = len(offers) * (1 + np.maximum(np.arange(len(self._taken)), self._whole.max()))
        else:
            self.rows = len(offers) + self._whole.sum() + self._taken

    def sizes(self, choice: int) -> list[int]:
        """How many nodes of each draft a choice takes."""
        free = np.bincount(self._text[: self._taken[choice]], minlength=len(self._whole))
        return [int(size) for size in self._whole + free]
