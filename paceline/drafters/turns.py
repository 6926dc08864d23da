"""Two drafters take turns: the cheap one leads where it has much to say, the other one elsewhere.

Copying from the text costs nothing and runs far where the text repeats itself, as in editing; a small model guesses
well everywhere, but a few tokens at a time. Each step the first drafter proposes; if it drafts fewer than `least`
tokens, the second one's proposal is taken instead. Both follow the text and learn from every outcome; the one that was
passed over is told how far its own proposal would have held.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Any

from paceline.drafters.ensemble import Budget, Ensemble, built
from paceline.errors import BadRequest
from paceline.registry import Guarantee, method
from paceline.sequence import Sequence
from paceline.tree import TokenTree


@method(
    name="turns",
    kind="drafter",
    guarantee=Guarantee.LOSSLESS,
    summary="One drafter leads where it drafts enough, another elsewhere.",
    paper="Drafters tried in turn (common practice)",
    year=2025,
)
@dataclass(eq=False)
class Turns(Ensemble):
    """Two drafters as one.

    Attributes:
        first: the drafter that is asked first, as a spec or an instance; a cheap one.
        second: the drafter that proposes where the first has too little.
        least: drafted tokens from which the first leads.
    """

    first: Any = "ngram(min_ngram=3)"
    second: Any = "draft"
    least: int = 4
    shape: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.least < 1:
            raise BadRequest(f"turns(least={self.least}): an integer of at least 1 is needed")
        self.members = (built(self.first), built(self.second))
        self.shape = "tree" if any(member.shape == "tree" for member in self.members) else "chain"

    def propose(self, sequences: Seq[Sequence], budget: Seq[Budget]) -> list[TokenTree]:
        limits = dict(zip(sequences, budget, strict=True))
        chosen = dict(zip(sequences, self.ask(0, sequences, budget), strict=True))
        # Tokens that were drawn must be judged: how many there are depends on which they are, so to pass them over
        # because they are few would favour texts whose drafts are long.
        free = [s for s in sequences if chosen[s].draws is None]
        short = [s for s in free if chosen[s].drafted < min(self.least, *limits[s])]
        # Where the second has nothing either, a short draft is better than none.
        second = zip(short, self.ask(1, short, [limits[s] for s in short]), strict=True)
        chosen |= {s: tree for s, tree in second if tree.drafted}
        return [chosen[s] for s in sequences]
