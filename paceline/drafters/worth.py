"""What a draft is worth: how far to trust its guesses, what drafts brought so far, which of its nodes to score.

Every drafted node comes with the drafter's guess of the chance that it is accepted. `Trust` corrects such guesses by
what became of them in the text at hand; `Offer` orders a draft's nodes by them; `Form` sums up what steps brought.

Drafts have a few nodes each, and beside a small model's step every call into an array library is felt: what is done for
each draft walks through lists.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np

from paceline.tree import TokenTree

#: Steps after which an observation weighs half.
HALF_LIFE = 24.0
#: Upper ends of the classes of guesses, what the last class stands for, and how many observations a guess weighs.
CLASSES = [0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.97]
CENTRES = [*((low + high) / 2 for low, high in pairwise([0.0, *CLASSES])), 0.985]
WEIGHT = 8.0

#: Drafts that are remembered of one text and of all, and how many of their nodes.
LATELY, EVER, NODES = 8, 64, 32

#: The order and the gains of a draft without nodes.
_NO_NODES, _BONUS = np.zeros(0, np.int64), np.ones(1)


def _class(odds: Seq[float], parents: Seq[int], node: int) -> int:
    """Of a node's guess: the chance that it is accepted given that its parent is."""
    return bisect_left(CLASSES, min(odds[node] / max(odds[parents[node]], 1e-12), 1.0))


def _odds(tree: TokenTree) -> list[float]:
    """`[N + 1]` the drafter's guesses."""
    odds: list[float] = (tree.odds if tree.odds is not None else 0.5**tree.depth).tolist()
    return odds


class Seen(NamedTuple):
    """What became of the nodes of a draft whose parents were accepted: `[n]` classes of guesses, which were right."""

    classes: list[int]
    right: list[bool]

    @classmethod
    def of(cls, tree: TokenTree, path: Seq[int]) -> Seen:
        """Of a tree all of whose nodes were judged `path` was accepted."""
        if tree.drafted == 0:
            return cls([], [])
        odds, parents, on = _odds(tree), tree.parents.tolist(), set(path)
        judged = [node for node in range(1, len(parents)) if parents[node] in on]
        return cls([_class(odds, parents, node) for node in judged], [node in on for node in judged])


class Trust:
    """How often a drafter's guesses came true, by class of guess.

    A guess is the chance that a node is accepted given that its parent is.

    Args:
        half_life: drafts of a class after which an observation weighs half.
    """

    def __init__(self, half_life: float = HALF_LIFE) -> None:
        self.right, self.tried = [WEIGHT * centre for centre in CENTRES], [WEIGHT] * len(CENTRES)
        self._fade = 0.5 ** (1 / half_life)

    def hint(self) -> Trust:
        """What another text starts from: the same shares, with as little weight as a guess has."""
        other = Trust()
        other.right = [WEIGHT * right / tried for right, tried in zip(self.right, self.tried, strict=True)]
        return other

    def corrected(self, tree: TokenTree) -> list[float]:
        """`[N + 1]` chance that each node is accepted."""
        odds, parents, chances = _odds(tree), tree.parents.tolist(), [1.0]
        for node in range(1, len(parents)):
            of = _class(odds, parents, node)
            chances.append(chances[parents[node]] * self.right[of] / self.tried[of])
        return chances

    def learn(self, seen: Seen) -> None:
        """Take in what became of a draft's nodes."""
        for of in set(seen.classes):
            self.tried[of] *= self._fade
            self.right[of] *= self._fade
        for of, right in zip(seen.classes, seen.right, strict=True):
            self.tried[of] += 1
            self.right[of] += right


@dataclass
class Form:
    """What steps brought in which a drafter was asked, as discounted sums."""

    steps: float = 0.0
    tokens: float = 0.0
    nodes: float = 0.0

    def add(self, tokens: float, nodes: float) -> None:
        fade = 0.5 ** (1 / HALF_LIFE)
        self.steps, self.tokens, self.nodes = (
            fade * self.steps + 1,
            fade * self.tokens + tokens,
            fade * self.nodes + nodes,
        )

    def hint(self, weight: float = 1.0) -> Form:
        """The same means with little weight: where another text starts."""
        share = min(1.0, weight / self.steps) if self.steps else 0.0
        return Form(share * self.steps, share * self.tokens, share * self.nodes)


@dataclass
class Offer:
    """A draft with the chance that each node is accepted.

    Attributes:
        order: drafted nodes, best first.
        gains: `[N + 1]` expected tokens of a step that scores the first n of them, n = 0, 1, ..., N.
    """

    tree: TokenTree
    order: np.ndarray
    gains: np.ndarray

    @classmethod
    def none(cls, root: int) -> Offer:
        """No draft."""
        return cls(TokenTree.empty(root), _NO_NODES, _BONUS)

    @classmethod
    def of(cls, tree: TokenTree, odds: Seq[float]) -> Offer:
        # A node never has better odds than its parent; among equals the stable sort keeps parents first.
        order = sorted(range(1, len(odds)), key=lambda node: -odds[node])
        gains = np.array([*accumulate((odds[node] for node in order), initial=1.0)])
        if tree.draws is not None:  # drawn tokens are judged, all of them
            gains[:-1] = 0
        return cls(tree, np.array(order), gains)

    def surplus(self, share: float, row: float) -> float:
        """Tokens that it brings beyond its rows, as `surplus` has it."""
        return float(surplus(self.gains, share, row)) if self.tree.drafted else 0.0

    def discounted(self, share: float) -> np.ndarray:
        """`gains`, where of what drafted tokens bring only a share counts."""
        return 1 + share * (self.gains - 1)

    def sure(self, chance: float) -> int:
        """How many of its nodes are accepted with at least this chance."""
        return int((np.diff(self.gains) >= chance).sum())

    def cut(self, nodes: int) -> TokenTree:
        """The draft of the best `nodes` nodes; a drawn one stays whole."""
        if nodes >= self.tree.drafted or self.tree.draws is not None:
            return self.tree
        return self.tree.select(np.concatenate([[0], np.sort(self.order[:nodes])]))


class Offers:
    """The last drafts of one drafter, as far as what they promised goes.

    What they are worth depends on what a row costs at the time: more in a batch than for a text alone.
    """

    def __init__(self, most: int = LATELY) -> None:
        self._known, self._nodes, self.count = np.ones((most, NODES + 1)), np.zeros(most), 0
        self._new: deque[np.ndarray] = deque(maxlen=most)  # of most drafters nobody ever wants to know
        self._valued: tuple[tuple[int, float, float], float] = (0, 0.0, 0.0), 0.0

    def add(self, offer: Offer) -> None:
        """Remember a draft in the place of the oldest."""
        self._new.append(offer.gains[: NODES + 1])
        self.count += 1

    def _gains(self) -> np.ndarray:
        """`[n, NODES + 1]` tokens that each draft promised by how much of it is scored."""
        while self._new:
            at, gains = (self.count - len(self._new)) % len(self._known), self._new.popleft()
            self._known[at, : len(gains)], self._known[at, len(gains) :] = gains, gains[-1]
            self._nodes[at] = len(gains) - 1
        return self._known[: self.count]

    def value(self, share: float, row: float) -> float:
        """Tokens that such a draft brings beyond its rows, each cut where that is most; 0 where nothing is known.

        Args:
            share: of what each node is expected to bring, what counts.
            row: what a row costs, in tokens.
        """
        about = self.count, share, row
        if self._valued[0] != about:  # a batch's texts all ask for that of the same drafts
            self._valued = about, float(surplus(self._gains(), share, row).mean()) if self.count else 0.0
        return self._valued[1]

    @property
    def longest(self) -> int:
        """Nodes of the longest one."""
        self._gains()
        return int(self._nodes[: self.count].max(initial=0))

    def by_length(self) -> tuple[np.ndarray, np.ndarray]:
        """`[NODES + 1]` each: tokens that a step brought on the mean had at most n been drafted, and nodes drafted."""
        if not self.count:
            return np.ones(NODES + 1), np.zeros(NODES + 1)
        gains = self._gains()
        nodes = np.minimum(self._nodes[: self.count, None], np.arange(NODES + 1))
        return gains.mean(0), nodes.mean(0)


def surplus(gains: np.ndarray, share: float, row: float) -> np.ndarray:
    """`[...]` tokens that drafts of gains `[..., N + 1]` bring beyond their rows, cut where that is most."""
    return np.asarray((share * (gains - 1) - row * np.arange(gains.shape[-1])).max(-1))


@dataclass
class Record:
    """How one drafter did, in one text or in many.

    Attributes:
        trust: how far its guesses held.
        form: what steps of a text alone brought in which it was asked.
        offers: its last drafts.
        best: `Prices.best_length`, and after how many drafts it was found.
    """

    trust: Trust = field(default_factory=Trust)
    form: Form = field(default_factory=Form)
    offers: Offers = field(default_factory=Offers)
    best: tuple[int, tuple[int, float, float] | None] = (-1, None)

    def hint(self) -> Record:
        """The same with little weight: where another text starts."""
        return Record(self.trust.hint(), self.form.hint())
