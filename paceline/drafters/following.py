"""Following a text that the output is expected to resemble: one pointer, lost at a difference and found again.

The pointer stands at the source token expected next. While the output agrees it moves along, and the source from there
on is the draft. At the first other token it is lost. It is found again where the last n output tokens stand in the
source, n = 1, 2, 3: at no place, look again after the next token; at exactly one place, go on behind it; at several,
try n + 1 (input-guided Aggressive Decoding). What if several remain, and what is drafted meanwhile, is `RESUME`'s
choice.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

import numpy as np

from paceline.drafters.base import Outcome, SequenceDrafter
from paceline.drafters.odds import Odds
from paceline.errors import BadRequest
from paceline.models.causal import CausalModel
from paceline.sequence import Sequence
from paceline.tree import TokenTree

#: What to do where the place is not clear.
#: "unique": go on only where the last tokens stand at exactly one place; nothing is drafted until then.
#: "nearest": where the most of the last tokens stand, nearest to where the source was left (one token alone counts up
#: to `NEAR` tokens away); until a place is found the differing tokens are taken to replace the source's one for one.
RESUME, NEAR = ("unique", "nearest"), 8
#: Chance that the next source token is right, by the class of agreement; a source that nothing contradicts yet is
#: trusted as if `TRUST` tokens had agreed.
ODDS = (0.6, 0.75, 0.8, 0.85, 0.9, 0.95, 0.98)
TRUST = 16


class Pointer:
    """Where in a source the output is.

    Args:
        source: the expected tokens.
        ngram: most output tokens that are looked for.
        resume: see `RESUME`.

    Attributes:
        at: index of the source token expected next.
        lost: output tokens since the source was left; 0 while it is followed.
        agreed: output tokens that agreed in a row.
    """

    def __init__(self, source: Seq[int], ngram: int, resume: str) -> None:
        self.source, self.ngram, self.resume = list(source), ngram, resume
        self.at, self.lost, self.agreed = 0, 0, TRUST
        self._recent: list[int] = []
        self._places: dict[tuple[int, ...], list[int]] = {}
        for end in range(1, len(self.source) + 1):
            for n in range(1, min(ngram, end) + 1):
                self._places.setdefault(tuple(self.source[end - n : end]), []).append(end)

    def expected(self, most: int) -> list[int]:
        """Up to `most` tokens of the source from the pointer on; none while it is lost and nothing is assumed."""
        if self.lost and self.resume == "unique":
            return []
        return self.source[self.at : self.at + most]

    def advance(self, tokens: Seq[int]) -> None:
        """Follow the output."""
        for token in tokens:
            self._recent = [*self._recent[1 - self.ngram :], token] if self.ngram > 1 else [token]
            agrees = self.at < len(self.source) and self.source[self.at] == token
            if agrees and (not self.lost or self.resume == "nearest"):
                self.at, self.lost, self.agreed = self.at + 1, 0, self.agreed + 1
            elif (found := self._find()) is not None:
                self.agreed, self.at = found
                self.lost = 0
            else:
                # Assumed to stand for one token of the source, as long as no place is found.
                self.at, self.lost, self.agreed = min(self.at + 1, len(self.source)), self.lost + 1, 0

    def _find(self) -> tuple[int, int] | None:
        """How many of the last tokens stand in the source, and the place behind them, if it is clear which."""
        clear: tuple[int, int] | None = None
        for n in range(1, len(self._recent) + 1):
            places = self._places.get(tuple(self._recent[-n:]), [])
            if self.resume == "unique" and len(places) == 1:
                return n, places[0]
            if not places:
                break
            place = min(places, key=lambda place: (abs(place - self.at), place))
            if n > 1 or abs(place - self.at) <= NEAR:
                clear = n, place
        return clear if self.resume == "nearest" else None


@dataclass
class Notes:
    """What is known of one sequence: its pointer, the source's reliability, and the draft being judged."""

    pointer: Pointer
    odds: Odds = field(default_factory=lambda: Odds(ODDS))
    draft: list[int] = field(default_factory=list)


@dataclass(eq=False)
class Follow(SequenceDrafter):
    """Base of drafters with a source. Subclasses say what it is.

    Attributes:
        ngram: most output tokens that are looked for in the source after a difference.
        resume: see `RESUME`.
        confidence: beyond what rides along, a draft ends where its chance to hold falls below this.
    """

    ngram: int = 3
    resume: str = "nearest"
    confidence: float = 0.3
    _spare: int = field(init=False, repr=False, default=0)

    def check(self, name: str) -> None:
        """Raise `BadRequest` for a bad knob of the method of that name."""
        if self.ngram < 1:
            raise BadRequest(f"{name}(ngram={self.ngram}): an integer of at least 1 is needed")
        if self.resume not in RESUME:
            raise BadRequest(f"{name}(resume={self.resume!r}): 'unique' or 'nearest' is needed")
        if not 0 <= self.confidence <= 1:
            raise BadRequest(f"{name}(confidence={self.confidence}): a number from 0 to 1 is needed")

    def source(self, sequence: Sequence) -> Seq[int]:
        """The tokens that the output of a sequence, whose prompt is known, is expected to resemble."""
        raise NotImplementedError

    def attach(self, target: CausalModel) -> None:
        self._spare = target.spare

    def begin(self, sequence: Sequence) -> None:
        sequence.drafts = Notes(Pointer(self.source(sequence), self.ngram, self.resume))
        sequence.drafts.pointer.advance(sequence.tokens[sequence.prompt_length :])

    def draft(self, sequence: Sequence, nodes: int, depth: int) -> TokenTree:
        notes: Notes = sequence.drafts
        pointer, chance, odds = notes.pointer, 1.0, [1.0]
        expected = pointer.expected(min(nodes, depth))
        for i in range(len(expected)):
            chance *= notes.odds(pointer.agreed + i)
            if i >= self._spare and chance < self.confidence:
                break
            odds.append(chance)
        notes.draft = expected[: len(odds) - 1]
        chain = [sequence.tokens[-1], *notes.draft]
        return TokenTree(np.array(chain, np.int64), np.arange(-1, len(chain) - 1), odds=np.array(odds))

    def commit(self, outcomes: Seq[Outcome]) -> None:
        for outcome in outcomes:
            notes: Notes = outcome.sequence.drafts
            for i, (guess, token) in enumerate(zip(notes.draft, outcome.tokens, strict=False)):
                notes.odds.learn(notes.pointer.agreed + i, guess == token)
                if guess != token:
                    break
            notes.draft = []
            notes.pointer.advance(outcome.tokens)
