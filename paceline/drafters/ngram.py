"""Prompt lookup: what followed the last few tokens earlier in this text will probably follow them again.

Of the earlier places where the last `max_ngram` tokens stand (else the last `max_ngram - 1`, ...), `pick` says
which one is copied:

- `agreeing`: the one whose common suffix with the text is longest, the latest among equals. A copy that reaches
  the end of the text goes on with its own tokens, so a loop of any period is drafted in full.
- `earliest`, as published, or `latest`: the first or the last one, and the `length` tokens behind it, up to the
  end of the text.

How far to copy is a question of odds. The chance `a(m)` that the next copied token is right grows with the
number `m` of tokens that agree before it: about 0.25 after one, 0.6 after three, 0.9 after twenty. A draft
that begins after `m` agreeing tokens and holds for `j` agrees in `m + j`, so that token `j` is reached and
right with probability `a(m) a(m + 1) ... a(m + j)`. The first `free` tokens, which ride along with the target's
pass, are drafted whatever their chance; beyond them the draft ends where it falls below `confidence`. `a`
starts at values measured on Python source and learns from what becomes of this sequence's drafts.

Cost: O(max_ngram + length) a step, whatever the length of the text; its n-grams are indexed once.

Paper: Saxena, "Prompt Lookup Decoding", 2023: `ngram(pick=earliest, max_ngram=3, length=10)`.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

from paceline.budgets import check_budgets
from paceline.drafters.base import Outcome, SequenceDrafter
from paceline.drafters.odds import Odds
from paceline.errors import BadRequest
from paceline.models.causal import CausalModel
from paceline.registry import Guarantee, method
from paceline.sequence import Sequence
from paceline.tree import TokenTree

#: Latest places of an n-gram that are compared, and tokens compared at each: bounds of a step's cost.
PLACES, REACH = 8, 32
#: Chance that a copied token is right, by the class of agreement.
ODDS = (0.25, 0.5, 0.6, 0.65, 0.75, 0.85, 0.92)

#: Which of an n-gram's places is copied, and from which chance on beyond what is free.
PICKS = {"agreeing": 0.2, "earliest": 0.0, "latest": 0.0}
#: Longest n-gram that may be looked up: each length is indexed on its own.
LONGEST = 256


class Grams:
    """The places of a growing text's n-grams of one length, found when they are asked for.

    An n-gram's place is the position behind it. The one that ends the text has none yet.
    """

    def __init__(self, n: int) -> None:
        self._n, self._end = n, 0
        self._latest: dict[tuple[int, ...], int] = {}
        self._earlier: dict[int, int] = {}

    def places(self, text: list[int], most: int) -> list[int]:
        """Up to `most` places of the n-gram that ends the text, latest first."""
        if len(text) < self._n:
            return []
        for at, gram in self._unread(text):
            if before := self._latest.get(gram):
                self._earlier[at] = before
            self._latest[gram] = at
        found: list[int] = []
        place = self._latest.get(tuple(text[-self._n :]), 0)
        while place and len(found) < most:
            found.append(place)
            place = self._earlier.get(place, 0)
        return found

    def _unread(self, text: list[int]) -> Iterable[tuple[int, tuple[int, ...]]]:
        """The n-grams behind which the text went on since it was read last, each with its place."""
        n, first, self._end = self._n, max(self._end, self._n), len(text)
        columns = (text[at : at + len(text) - first] for at in range(first - n, first))
        return enumerate(zip(*columns, strict=True), first)


class FirstGrams(Grams):
    """The same places, earliest first."""

    def __init__(self, n: int) -> None:
        super().__init__(n)
        self._first: dict[tuple[int, ...], list[int]] = {}

    def places(self, text: list[int], most: int) -> list[int]:
        if len(text) < self._n:
            return []
        for at, gram in self._unread(text):
            if len(places := self._first.setdefault(gram, [])) < PLACES:
                places.append(at)
        return self._first.get(tuple(text[-self._n :]), [])[:most]


class Index:
    """Where the n-grams of a growing text occur, for n from `low` to `high`; earliest places first, or latest."""

    def __init__(self, low: int, high: int, earliest: bool = False) -> None:
        self.text: list[int] = []
        self._grams = [(FirstGrams if earliest else Grams)(n) for n in range(high, low - 1, -1)]

    def extend(self, tokens: Seq[int]) -> None:
        """Append tokens."""
        self.text.extend(tokens)

    def places(self) -> list[int]:
        """Where the longest known n-gram that ends the text went on before: up to `PLACES`."""
        return next((found for grams in self._grams if (found := grams.places(self.text, PLACES))), [])

    def repeated(self) -> int:
        """The first place of the longest n-gram that ends the text, if that one is known; else 0."""
        return next(iter(self._grams[0].places(self.text, 1)), 0)

    def agreement(self, place: int) -> int:
        """How many tokens before `place` equal those at the end of the text, counted up to `REACH`."""
        text, end = self.text, len(self.text)
        same, most = 0, min(place, REACH)
        while same < most and text[place - 1 - same] == text[end - 1 - same]:
            same += 1
        return same


@dataclass
class Notes:
    """What the drafter knows of one sequence.

    Attributes:
        index: its text.
        odds: the chance that a copied token is right by the tokens that agree before it.
        agreed: agreeing tokens before the draft that is being judged.
        length: and its length, that of the first candidate.
    """

    index: Index
    odds: Odds = field(default_factory=lambda: Odds(ODDS))
    agreed: int = 0
    length: int = 0

    def learn(self, accepted: int) -> None:
        """Take in that the first `accepted` tokens of the draft were right."""
        for i in range(min(accepted + 1, self.length)):
            self.odds.learn(self.agreed + i, i < accepted)


@method(
    name="ngram",
    kind="drafter",
    guarantee=Guarantee.LOSSLESS,
    summary="Copies what followed the last tokens earlier in the prompt or the text.",
    paper="Prompt Lookup Decoding",
    year=2023,
)
@dataclass(eq=False)
class NGram(SequenceDrafter):
    """Prompt lookup.

    Attributes:
        max_ngram: longest n-gram that is looked up (`max_matching_ngram_size` elsewhere).
        min_ngram: shortest; 2 or more drafts nothing on the strength of a single token.
        length: most tokens of a draft.
        candidates: continuations drafted side by side; more than one makes a tree.
        confidence: beyond `free` tokens a draft ends where the chance that it holds falls below this; 0: at
            `length` tokens only. By default 0.2, or 0 where `pick` is not "agreeing".
        free: tokens drafted whatever their chance; by default as many as cost the target next to nothing.
        pick: which place of the n-gram is copied: "agreeing", "earliest" or "latest".
    """

    max_ngram: int = 4
    min_ngram: int = 1
    length: int = 16
    candidates: int = 1
    confidence: float | None = None
    free: int | None = None
    pick: str = "agreeing"
    shape: str = field(init=False, repr=False)
    catches_up = True
    _spare: int = field(init=False, repr=False, default=0)

    def __post_init__(self) -> None:
        for name in ("max_ngram", "min_ngram", "length", "candidates"):
            if (value := getattr(self, name)) < 1:
                raise BadRequest(f"ngram({name}={value}): an integer of at least 1 is needed")
        if self.max_ngram > LONGEST:
            raise BadRequest(f"ngram(max_ngram={self.max_ngram}): at most {LONGEST} is allowed")
        if self.min_ngram > self.max_ngram:
            raise BadRequest(f"ngram(min_ngram={self.min_ngram}): at most max_ngram={self.max_ngram} is allowed")
        if self.free is not None and self.free < 0:
            raise BadRequest(f"ngram(free={self.free}): an integer of at least 0 is needed")
        if self.pick not in PICKS:
            raise BadRequest(f"ngram(pick={self.pick!r}): one of {', '.join(map(repr, PICKS))} is needed")
        if self.confidence is not None and not 0 <= self.confidence <= 1:
            raise BadRequest(f"ngram(confidence={self.confidence}): a number from 0 to 1 is needed")
        self._least = PICKS[self.pick] if self.confidence is None else self.confidence
        self.shape = "chain" if self.candidates == 1 else "tree"

    def attach(self, target: CausalModel) -> None:
        check_budgets("ngram", self, target, "length")
        self._spare = target.spare

    def begin(self, sequence: Sequence) -> None:
        sequence.drafts = Notes(Index(self.min_ngram, self.max_ngram, self.pick == "earliest"))
        self._read(sequence).places()  # reads the prompt, which takes longer than what follows

    def glimpse(self, sequence: Sequence) -> float:
        index = self._read(sequence)
        place = index.repeated()
        return float(sequence.drafts.odds(index.agreement(place))) if place else 0.0

    def draft(self, sequence: Sequence, nodes: int, depth: int) -> TokenTree:
        notes: Notes = sequence.drafts
        self._read(sequence)
        notes.length = 0
        limit, free = min(nodes, depth, self.length), self._spare if self.free is None else self.free
        paths: list[list[int]] = []
        odds: list[list[float]] = []
        again: list[list[int]] = []  # what further places have in common with a path: it counts for that
        chance = 1.0  # that none of the candidates so far is right
        for agreed, place in self._ranked(notes.index) if limit else ():
            path, chances = self._copy(notes, agreed, place, limit, chance, free)
            shared = max((_shared(path, earlier) for earlier in paths), default=-1)
            if shared == len(path) or len(paths) == self.candidates:
                again.append(path[:shared])
                continue
            if not paths:
                notes.agreed, notes.length = agreed, len(path)
            paths.append(path)
            odds.append(chances)
            chance *= 1 - notes.odds(agreed)
            free = max(0, free - len(path))
            if self.candidates == 1:
                break
        odds += [[0.0] * len(path) for path in again]
        return TokenTree.merge(sequence.tokens[-1], paths + again, nodes, odds)

    def commit(self, outcomes: Seq[Outcome]) -> None:
        for outcome in outcomes:
            notes: Notes = outcome.sequence.drafts
            if not notes.length:
                continue
            # The first candidate is nodes 1, 2, ...; the path follows it while its entries count up.
            # A draft that was cut before it was judged says nothing about what was cut off.
            notes.length = min(notes.length, outcome.tree.drafted)
            notes.learn(sum(node == i for i, node in enumerate(outcome.path)) - 1)
            notes.length = 0

    def end(self, sequence: Sequence) -> None:
        sequence.drafts = None

    def _read(self, sequence: Sequence) -> Index:
        """The index of the whole text: all since it was asked last is taken in."""
        index: Index = sequence.drafts.index
        index.extend(sequence.tokens[len(index.text) :])
        return index

    def _ranked(self, index: Index) -> list[tuple[int, int]]:
        """(agreeing tokens, place), best first."""
        found = [(index.agreement(place), place) for place in index.places()]
        return sorted(found, reverse=True) if self.pick == "agreeing" else found

    def _copy(
        self, notes: Notes, agreed: int, place: int, limit: int, chance: float, free: int
    ) -> tuple[list[int], list[float]]:
        """What followed a place, `free` tokens and more while the chance that all are right is good; the chances."""
        text = notes.index.text
        path: list[int] = []
        chances: list[float] = []
        for i in range(limit if self.pick == "agreeing" else min(limit, len(text) - place)):
            chance *= notes.odds(agreed + i)
            if i >= free and chance < self._least:
                break
            at = place + i
            path.append(text[at] if at < len(text) else path[at - len(text)])
            chances.append(chance)
        return path, chances


def _shared(path: list[int], other: list[int]) -> int:
    """How many tokens two paths have in common."""
    differing = (i for i, (a, b) in enumerate(zip(path, other, strict=False)) if a != b)
    return next(differing, min(len(path), len(other)))
