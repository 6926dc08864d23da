"""Which nodes of several texts' drafts to score together, when one pass serves them all.

Each text's nodes come best first (`Offer`). Where a pass computes nothing but nodes, the best nodes of all texts are
taken, whosever they are: a text that copies gets a long draft and one that says something new gets none. Where it is
padded to the widest tree, narrower trees cost as much, and all texts get as many nodes as they have up to one size.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from itertools import accumulate, pairwise

import numpy as np

from paceline.drafters.worth import Offer


class Portions:
    """What may be scored of several drafts. Choice 0 is the least: nothing but what was drawn, which stays whole.

    Args:
        offers: one a text.
        shares: for each, how much of what its draft is expected to bring counts.
        padded: whether a pass takes as many rows for every text as for the one with most nodes.
        others: texts of the pass that have no draft.

    Attributes:
        gains: `[C]` expected tokens of all texts in a step, by choice.
        rows: `[C]` rows of the pass, roots and padding included.
    """

    def __init__(self, offers: Seq[Offer], shares: Seq[float], padded: bool, others: int = 0) -> None:
        self._whole = [offer.tree.drafted if offer.tree.draws is not None else 0 for offer in offers]
        nodes, drawn = [], 0.0
        for text, (offer, share, whole) in enumerate(zip(offers, shares, self._whole, strict=True)):
            gains = offer.gains.tolist()
            if whole:
                drawn += share * (gains[-1] - 1)
            else:
                nodes += [(rank, text, share * (more - less)) for rank, (less, more) in enumerate(pairwise(gains))]
        # Nodes are taken one after the other, or those of a rank at once; of equals, those that come first.
        nodes.sort(key=(lambda node: node[0]) if padded else (lambda node: -node[2]))
        self._texts = [text for _, text, _ in nodes]
        self._taken = [*range(len(nodes) + 1)]
        if padded:
            self._taken = [0, *(i for i in self._taken[1:] if i == len(nodes) or nodes[i][0] != nodes[i - 1][0])]
        texts = len(offers) + others
        brought = [*accumulate((gain for _, _, gain in nodes), initial=texts + drawn)]
        self.gains = np.array([brought[taken] for taken in self._taken])
        if padded:
            self.rows = texts * (1 + np.maximum(np.arange(len(self._taken)), max(self._whole)))
        else:
            self.rows = texts + sum(self._whole) + np.array(self._taken)

    def sizes(self, choice: int) -> list[int]:
        """How many nodes of each draft a choice takes."""
        sizes = [*self._whole]
        for text in self._texts[: self._taken[choice]]:
            sizes[text] += 1
        return sizes
