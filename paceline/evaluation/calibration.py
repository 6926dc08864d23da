"""How well SpecDec++'s prediction that a chain still holds agrees with what became of it.

Chains of full length are drafted, so that nothing depends on the prediction. After every token C is predicted, the
chance that all tokens so far are accepted. With the predictions in bins, the expected calibration error is the distance
of a bin's mean prediction to the share that held, on average over all predictions:

    ECE = sum over bins of (n_b / n) |mean C - share that held|

Every prediction is made before the predictor learns from its outcome, so all texts are held out.

Papers: Huang, Guo, Wang, "SpecDec++: Boosting Speculative Decoding via Adaptive Candidate Lengths", 2024; Naeini,
Cooper, Hauskrecht, "Obtaining Well Calibrated Probabilities Using Bayesian Binning", 2015.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from paceline.api import Engine
from paceline.drafters.base import Outcome
from paceline.drafters.draft import DraftModel
from paceline.trees import Growth
from paceline.trees.specdec import SpecDec

#: Bins of equal width.
BINS = 10


@dataclass(eq=False)
class Watched(SpecDec):
    """SpecDec++ that writes down its predictions and what happened; one text at a time.

    Attributes:
        holds: predicted chance that the chain holds up to a token.
        odds: the same if the draft's own probabilities were taken for acceptance.
        held: whether it held.
    """

    threshold: float = 1.0
    holds: list[float] = field(init=False, repr=False, default_factory=list)
    odds: list[float] = field(init=False, repr=False, default_factory=list)
    held: list[bool] = field(init=False, repr=False, default_factory=list)
    _chain: list[float] = field(init=False, repr=False, default_factory=list)

    def predict(self, growth: Growth, node: int) -> float:
        chance = super().predict(growth, node)
        if node == 1:
            self._chain = []
        self._chain.append(chance)
        return chance

    def learn(self, outcome: Outcome) -> None:
        accepted, drafted = len(outcome.path) - 1, outcome.tree.drafted
        # Where the text was cut, what the further tokens were worth was not seen.
        judged = drafted if len(outcome.tokens) == len(outcome.path) else accepted
        if outcome.tree.odds is not None:
            self.holds += np.cumprod(self._chain[:judged]).tolist()
            self.odds += outcome.tree.odds[1 : judged + 1].tolist()
            self.held += [node <= accepted for node in range(1, judged + 1)]
        super().learn(outcome)


def watch(target: Any, draft: Any, prompts: Sequence[Any], length: int, **options: Any) -> Watched:
    """Predictions while texts are generated, one after the other, by one predictor that learns.

    Args:
        target: a model, or its name, as for `Engine.load`.
        draft: the draft model, or its name.
        prompts: texts or token ids.
        length: tokens of a chain.
        options: of `Engine.generate`.
    """
    tree = Watched(most=length)
    drafter = DraftModel(draft, tree=tree, budget=length, length=length)
    engine = target if isinstance(target, Engine) else Engine.load(target)
    for prompt in prompts:
        engine.generate(prompt, drafter=drafter, **options)
    return tree


def expected_error(predicted: Sequence[float], happened: Sequence[bool]) -> float:
    """The expected calibration error of some predictions, at least one."""
    chances, truth = np.array(predicted), np.array(happened, float)
    bins = np.minimum(BINS - 1, (chances * BINS).astype(int))
    distances = [(chances - truth)[bins == at].sum() for at in range(BINS)]
    return float(np.abs(distances).sum() / len(chances))
