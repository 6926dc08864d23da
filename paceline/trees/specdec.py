"""SpecDec++: a chain goes on while it is unlikely to hold a token that will be refused.

How long to draft is a Markov decision problem whose best policy is a threshold on the probability that a refused token
already exists. With `C` the product of the predicted acceptances of the tokens so far, the draft ends where
`1 - C > threshold`, but not before `least` tokens and not after `most`. The newest token is submitted, so the output's
law is not touched.

The paper predicts acceptance with a head trained on the draft's hidden states. This needs no training: the prediction
is the acceptance seen so far of tokens as probable as this one under the draft, in bins of the probability; a bin
starts at its own middle, which weighs as much as `WEIGHT` tokens. (Another predictor: override `predict`.)

Paper: Huang, Guo, Wang, "SpecDec++: Boosting Speculative Decoding via Adaptive Candidate Lengths", 2024. Its example
uses a threshold of 0.3 and lengths from 2 to 20; here they start at 1, since a chain need not draft at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from paceline.drafters.base import Outcome
from paceline.errors import BadRequest
from paceline.registry import Guarantee, method
from paceline.trees.base import Tree
from paceline.trees.growth import Growth

#: Bins of the draft's probability, and tokens that a bin's starting value is worth.
BINS, WEIGHT = 8, 8


@method(
    name="specdec",
    kind="tree",
    guarantee=Guarantee.LOSSLESS,
    summary="A chain that ends where it probably holds a refused token.",
    paper="SpecDec++: Boosting Speculative Decoding via Adaptive Candidate Lengths",
    year=2024,
)
@dataclass(eq=False)
class SpecDec(Tree):
    """A chain of adaptive length.

    Attributes:
        threshold: the draft ends where a refused token exists with more than this probability. 1: at `most` tokens;
            0: at `least`.
        least, most: bounds of the length; what the budget allows comes first.
    """

    threshold: float = 0.3
    least: int = 1
    most: int = 20
    shape: str = field(init=False, repr=False, default="chain")
    laws = frozenset({"shared", "distinct", "replacement", "chains", "top", "fixed"})

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise BadRequest(f"specdec(threshold={self.threshold}): a number from 0 to 1 is needed")
        if not 1 <= self.least <= self.most:
            raise BadRequest(f"specdec(least={self.least}, most={self.most}): 1 <= least <= most is needed")
        self._hits, self._seen = np.zeros(BINS), np.zeros(BINS)

    def branching(self, nodes: int) -> int:
        return 1

    def grow(self, growth: Growth, nodes: int, depth: int) -> Iterator[list[int]]:
        holds, last = 1.0, growth.draw(0)
        while last is not None:
            holds *= self.predict(growth, last)
            if growth.drafted >= self.most or (growth.drafted >= self.least and 1 - holds > self.threshold):
                return
            yield [last]
            last = growth.draw(last)

    def predict(self, growth: Growth, node: int) -> float:
        """The probability that a drafted token is accepted, given that those before it are."""
        at = _bin(growth.odds[node] / growth.odds[growth.parents[node]])
        return float((WEIGHT * (at + 0.5) / BINS + self._hits[at]) / (WEIGHT + self._seen[at]))

    def learn(self, outcome: Outcome) -> None:
        odds = outcome.tree.odds
        if odds is None:
            return
        accepted = len(outcome.path) - 1
        # The first refused token was judged too, unless the text was cut before it.
        judged = accepted + (len(outcome.tokens) == len(outcome.path) and accepted < outcome.tree.drafted)
        for node in range(1, judged + 1):
            at = _bin(odds[node] / odds[node - 1])
            self._seen[at] += 1
            self._hits[at] += node <= accepted


def _bin(chance: float) -> int:
    return min(BINS - 1, int(chance * BINS))
