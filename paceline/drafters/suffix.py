"""Suffix decoding: a tree of what followed the longest known endings of this text, here and in past requests.

A *place* is a position, in this text or in the outputs of past requests, where the last `m` tokens of the text stand
too (`m`: its agreement). The token after a place is a guess of the next one, and places that go on alike support each
other. With agreement `m_i` and next token `v_i` of place i (0 is the latest) and M the largest agreement,

    p(v) = a(M) * sum_{i: v_i = v} w_i / sum_i w_i,        w_i = WEIGHT ** m_i * RECENT ** -i, times OWN in this text

`a(M)` is the chance that the next token is among the guesses at all; it starts from measured values and learns from
what becomes of this sequence's drafts. The same formula, over the places that agree so far, holds behind every drafted
token, so that `D(node) = D(parent) * p(token)` estimates the chance that the node is accepted. The tree grows best
first: always the node of highest D. The first `free` nodes ride along with the target's pass; beyond them a node must
have `D >= confidence`. A draft is at most `factor` times as deep as the agreement that it rests on. A copy that reaches
the end of the text goes on with its own tokens, so a loop of any period is drafted in full.

Places are found as in LZ77 compressors: for k in `ORDERS` a table of hashes of k-grams holds the latest place, and a
second one each place's predecessor with the same hash. Agreement is compared token by token, so a collision costs time
and nothing else. A step looks at up to `PLACES` places, whatever the length of the text. Past outputs lie in two halves
of `memory / 2` tokens; when the newer one is full the older is forgotten.

The paper grows a suffix tree over the same texts, scores a node by the product of relative counts on its path, and
takes the pattern length whose tree has the highest sum of scores; here all lengths vote at once, and the odds are
learned.

Paper: Oliaro, Jia, Campos, Qiao, "SuffixDecoding: A Model-Free Approach to Speeding Up Large Language Model Inference",
2024.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterable, KeysView
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from heapq import heappop, heappush

import numpy as np

from paceline.drafters.base import Outcome, SequenceDrafter
from paceline.drafters.odds import Odds
from paceline.errors import BadRequest
from paceline.models.causal import CausalModel
from paceline.registry import Guarantee, method
from paceline.sequence import Sequence
from paceline.tree import TokenTree

#: Lengths of the k-grams that are looked up, longest first; the most places looked at; the most tokens compared.
ORDERS, PLACES, REACH = (8, 4, 2, 1), 16, 32
#: How much more a place counts for each further token that agrees, than the one found after it, and for lying in the
#: text itself.
WEIGHT, RECENT, OWN = 2.0, 1.5, 8.0
#: Chance that the next token is among the guesses, by the class of agreement that the best of them rests on.
ODDS = (0.4, 0.55, 0.65, 0.72, 0.85, 0.92, 0.98)
#: Most tokens of past outputs that may be remembered: five gigabytes.
MOST = 10**8
#: Stands between past outputs; no token.
BREAK = -1


class History:
    """A growing text and the places of its k-grams.

    Args:
        capacity: tokens it is meant for; more are allowed, and slower to find.
    """

    def __init__(self, capacity: int) -> None:
        self.text = array("i")
        size = 1 << max(8, (capacity - 1).bit_length())
        self._mask = size - 1
        self._levels = [(k, array("i", [0]) * size, array("i")) for k in ORDERS]

    def extend(self, tokens: Iterable[int]) -> None:
        """Append tokens; the place behind each of them becomes known."""
        text, mask = self.text, self._mask
        for token in tokens:
            text.append(token)
            at = len(text)
            for k, latest, earlier in self._levels:
                slot = hash(tuple(text[at - k :])) & mask if at >= k else 0
                earlier.append(latest[slot])
                latest[slot] = at

    def places(self, tail: Seq[int], most: int) -> list[tuple[int, int]]:
        """Up to `most` places that go on, as (place, agreement): those of long k-grams first, the latest first.

        Args:
            tail: the last tokens of the text to be continued, at most `REACH`.
        """
        text, found = self.text, dict[int, int]()
        for k, latest, earlier in self._levels:
            if len(tail) < k:
                continue
            place = latest[hash(tuple(tail[-k:])) & self._mask]
            for _ in range(2 * most):  # chains hold collisions and places that are known already
                if not place or len(found) == most:
                    break
                if place not in found and place < len(text) and text[place] != BREAK:
                    agreed = self._agreement(tail, place)
                    if agreed >= k:
                        found[place] = agreed
                place = earlier[place - 1]
        return list(found.items())

    def _agreement(self, tail: Seq[int], place: int) -> int:
        text, same, most = self.text, 0, min(place, len(tail))
        while same < most and text[place - 1 - same] == tail[-1 - same]:
            same += 1
        return same


@dataclass
class Notes:
    """What the drafter knows of one sequence.

    Attributes:
        history: its text.
        odds: the chance that the next token is among the guesses.
        guesses: of the draft being judged: behind each drafted path, the best agreement and the guessed tokens.
    """

    history: History
    odds: Odds = field(default_factory=lambda: Odds(ODDS))
    guesses: dict[tuple[int, ...], tuple[int, KeysView[int]]] = field(default_factory=dict)

    def learn(self, tokens: Seq[int]) -> None:
        """Take in what came next, and whether it was among the guesses at every place of the draft it passed."""
        for i, token in enumerate(tokens):
            if (asked := self.guesses.get(tuple(tokens[:i]))) is None:
                break
            agreed, guessed = asked
            self.odds.learn(agreed, token in guessed)
        self.guesses = {}


@dataclass(slots=True)
class Source:
    """A place that guesses: what follows stands in `text` from `place` on, and `agreed` tokens before it agree."""

    text: array
    place: int
    agreed: int
    weight: float


class Growth:
    """A draft that grows best first.

    Args:
        notes: of the sequence.
        limits: most nodes, greatest depth, and depth as a multiple of agreement.
        tree: whether a node may have siblings.
    """

    def __init__(self, notes: Notes, limits: tuple[int, int, float], tree: bool) -> None:
        self.notes, self.own, self.tree = notes, notes.history.text, tree
        self.nodes, self.depth, self.factor = limits
        # (minus the chance, order of entry, parent, path, its sources): a heap pops the smallest.
        self.heap: list[tuple[float, int, int, tuple[int, ...], list[Source]]] = []
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self.odds: list[float] = []
        self._entries = itertools.count()

    def grow(self, sources: list[Source], free: int, confidence: float) -> None:
        """Take the best node again and again: `free` of them, and more while their chance is `confidence` or more."""
        self._open(0, 1.0, (), sources)
        while self.heap and len(self.tokens) < self.nodes:
            chance, _, parent, path, after = heappop(self.heap)
            if len(self.tokens) >= free and -chance < confidence:
                break
            self.tokens.append(path[-1])
            self.parents.append(parent)
            self.odds.append(-chance)
            if not self.tree:
                self.heap.clear()
            if len(path) < min(self.depth, self.factor * max(source.agreed for source in after)):
                self._open(len(self.tokens), -chance, path, after)

    def _open(self, node: int, chance: float, path: tuple[int, ...], sources: list[Source]) -> None:
        """Queue the guesses behind a node, whose path the sources have followed."""
        followers: dict[int, list[Source]] = {}
        weights: dict[int, float] = {}
        best = 0
        for source in sources:
            token = self._next(source, path)
            if token == BREAK:
                continue
            followers.setdefault(token, []).append(source)
            weights[token] = weights.get(token, 0.0) + source.weight
            best = max(best, source.agreed)
        if not followers:
            return
        self.notes.guesses[path] = best + len(path), followers.keys()
        chance *= self.notes.odds(best + len(path)) / sum(weights.values())
        for token, after in followers.items():
            entry = (-chance * weights[token], next(self._entries), node, (*path, token), after)
            heappush(self.heap, entry)

    def _next(self, source: Source, path: tuple[int, ...]) -> int:
        """The token that a source has behind the path; behind the end of the text itself comes the path."""
        text, at = source.text, source.place + len(path)
        if at < len(text):
            return text[at]
        return path[at - len(text)] if text is self.own else BREAK


@method(
    name="suffix",
    kind="drafter",
    guarantee=Guarantee.LOSSLESS,
    summary="Drafts a tree of what followed the longest known endings of the text, here and in past outputs.",
    paper="SuffixDecoding: A Model-Free Approach to Speeding Up Large Language Model Inference",
    year=2024,
)
@dataclass(eq=False)
class Suffix(SequenceDrafter):
    """Suffix decoding.

    Attributes:
        depth: most tokens of a path.
        factor: a path is at most this many times as long as the agreement that it rests on (`max_spec_factor`).
        confidence: beyond `free` nodes, the least chance of a node (`min_token_prob`); 0: as many as the budget allows.
        free: nodes drafted whatever their chance; by default as many as cost the target next to nothing.
        memory: tokens of past outputs that are remembered; 0: only the text itself is searched.
        tree: draft several paths; `false`: the likeliest path alone.
    """

    depth: int = 24
    factor: float = 8.0
    confidence: float = 0.3
    free: int | None = None
    memory: int = 200_000
    tree: bool = True
    shape: str = field(init=False, repr=False)
    _spare: int = field(init=False, repr=False, default=0)
    _context: int = field(init=False, repr=False, default=0)
    _past: list[History] = field(init=False, repr=False, default_factory=list)

    def __post_init__(self) -> None:
        for name, least in (("depth", 1), ("free", 0), ("memory", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise BadRequest(f"suffix({name}={value}): an integer of at least {least} is needed")
        if self.memory > MOST:
            raise BadRequest(f"suffix(memory={self.memory}): at most {MOST} tokens can be remembered")
        if not self.factor > 0:
            raise BadRequest(f"suffix(factor={self.factor}): a number above 0 is needed")
        if not 0 <= self.confidence <= 1:
            raise BadRequest(f"suffix(confidence={self.confidence}): a number from 0 to 1 is needed")
        self.shape = "tree" if self.tree else "chain"

    def attach(self, target: CausalModel) -> None:
        self._spare, self._context = target.spare, target.context

    def begin(self, sequence: Sequence) -> None:
        # Who wants all that fits asks for more tokens than any text can have.
        sequence.drafts = Notes(History(min(len(sequence.tokens) + sequence.remaining, self._context)))
        sequence.drafts.history.extend(sequence.tokens)

    def draft(self, sequence: Sequence, nodes: int, depth: int) -> TokenTree:
        notes: Notes = sequence.drafts
        notes.guesses = {}
        free = self._spare if self.free is None else self.free
        growth = Growth(notes, (nodes, min(depth, self.depth), self.factor), self.tree)
        if nodes and depth:
            growth.grow(self._sources(sequence), free, self.confidence)
        tokens, parents = [sequence.tokens[-1], *growth.tokens], [-1, *growth.parents]
        odds = np.array([1.0, *growth.odds])
        return TokenTree(np.array(tokens, np.int64), np.array(parents, np.int64), odds=odds)

    def commit(self, outcomes: Seq[Outcome]) -> None:
        for outcome in outcomes:
            notes: Notes = outcome.sequence.drafts
            notes.learn(outcome.tokens)
            notes.history.extend(outcome.tokens)

    def end(self, sequence: Sequence) -> None:
        if sequence.drafts is not None and self.memory and sequence.generated:
            self._remember(sequence.tokens[max(0, sequence.prompt_length - REACH) :])
        sequence.drafts = None

    def _remember(self, tokens: list[int]) -> None:
        """Add an output and the tokens that led to it to the newer half; a full half takes the older one's place."""
        half = max(1, self.memory // 2)
        if not self._past or len(self._past[0].text) + len(tokens) > half:
            self._past = [History(half), *self._past[:1]]
        self._past[0].extend([*tokens[-half:], BREAK])

    def _sources(self, sequence: Sequence) -> list[Source]:
        """The places that the text's ending has in the text itself and in past outputs."""
        tail = sequence.tokens[-REACH:]
        sources: list[Source] = []
        for history, factor in ((sequence.drafts.history, OWN), *((past, 1.0) for past in self._past)):
            for i, (place, agreed) in enumerate(history.places(tail, PLACES)):
                sources.append(Source(history.text, place, agreed, factor * WEIGHT**agreed * RECENT**-i))
        return sources
