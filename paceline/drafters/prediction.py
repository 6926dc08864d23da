"""Predicted output: the client says what it expects, and the drafter follows it.

Whoever edits a file, fills a form or translates a template knows most of the answer beforehand. Given as
`engine.generate(prompt, prediction="...")`, the expected text is the draft; where the output differs, the drafter finds
its place again (see `paceline.drafters.following`), and meanwhile `fallback` drafts. A wrong prediction costs a little
time and never changes the text.

A request with a prediction gets this drafter in front of the one it would have had. By name it can also stand in other
drafters' specs; a request without a prediction is then drafted for by `fallback` alone.

Sources: the field `prediction` of OpenAI's chat completions ("Predicted Outputs", 2024); the way back after a
difference: Ge et al., "Lossless Acceleration for Seq2seq Generation with Aggressive Decoding", 2022, where copying
resumes at unique places only.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Any

from paceline.drafters.fallback import WithFallback
from paceline.drafters.following import Follow
from paceline.registry import Guarantee, method
from paceline.sequence import Sequence


@dataclass(eq=False)
class FollowPrediction(Follow):
    """Follows the request's prediction."""

    def source(self, sequence: Sequence) -> Seq[int]:
        tokens = sequence.request.sampling.prediction or ()
        assert not isinstance(tokens, str), "the engine turns predictions into token ids"
        return tokens


@method(
    name="prediction",
    kind="drafter",
    guarantee=Guarantee.LOSSLESS,
    summary="Follows the output that the client expects (`prediction=`), and finds back after a difference.",
    paper="OpenAI API reference: predicted outputs",
    year=2024,
    needs={"prediction"},
)
@dataclass(eq=False)
class Prediction(WithFallback):
    """A client's expected text as the draft.

    Attributes:
        fallback: the drafter that speaks where the prediction does not, as a spec or an instance; by default none.
        ngram: most output tokens that are looked for in the prediction after a difference.
        resume: "nearest" or "unique" (see `paceline.drafters.following.RESUME`).
        confidence: beyond what rides along, a draft ends where its chance to hold falls below this.
    """

    fallback: Any = None
    ngram: int = 3
    resume: str = "nearest"
    confidence: float = 0.3
    shape: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        own = FollowPrediction(self.ngram, self.resume, self.confidence)
        own.check("prediction")
        self.back(own, self.fallback)
