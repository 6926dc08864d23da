"""What a draft is worth: how far to trust its guesses, what drafts brought so far, which of its nodes to score.

Every drafted node comes with the drafter's guess of the chance that it is accepted. `Trust` corrects such guesses by
what became of them in the text at hand; `Offer` orders a draft's nodes by them; `Form` sums up what steps brought.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from paceline.tree import TokenTree

#: Steps after which an observation weighs half.
HALF_LIFE = 24.0
#: Upper ends of the classes of guesses, what the last class stands for, and how many observations a guess weighs.
CLASSES = np.array([0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.97])
CENTRES = np.concatenate([(np.concatenate([[0.0], CLASSES[:-1]]) + CLASSES) / 2, [0.985]])
WEIGHT = 8.0

#: Drafts that are remembered of one text and of all, and how many of their nodes.
LATELY, EVER, NODES = 8, 64, 32

#: The order and the gains of a draft without nodes.
_NO_NODES, _BONUS = np.zeros(0, np.int64), np.ones(1)


def _classes(tree: TokenTree) -> np.ndarray:
    """`[N + 1]`, of the guess of each node."""
    odds = tree.odds if tree.odds is not None else 0.5**tree.depth
    above = np.maximum(odds[tree.parents], 1e-12)
    return np.searchsorted(CLASSES, np.minimum(odds / above, 1.0))


class Seen(NamedTuple):
    """What became of the nodes of a draft whose parents were accepted: `[n]` classes of guesses, and which were right.

    `used`: the classes, each once.
    """

    classes: np.ndarray
    right: np.ndarray
    used: np.ndarray

    @classmethod
    def of(cls, tree: TokenTree, path: Seq[int]) -> Seen:
        """Of a tree all of whose nodes were judged `path` was accepted."""
        if tree.drafted == 0:
            return cls(_NO_NODES, _NO_NODES, _NO_NODES)
        on = np.zeros(len(tree), bool)
        on[list(path)] = True
        judged = np.flatnonzero(on[tree.parents] & (tree.parents >= 0))
        classes = _classes(tree)[judged]
        return cls(classes, on[judged], np.unique(classes))


class Trust:
    """How often a drafter's guesses came true, by class of guess.

    A guess is the chance that a node is accepted given that its parent is.

    Args:
        half_life: drafts of a class after which an observation weighs half.
    """

    def __init__(self, half_life: float = HALF_LIFE) -> None:
        self.right, self.tried = WEIGHT * CENTRES, np.full(len(CENTRES), WEIGHT)
        self._fade = 0.5 ** (1 / half_life)

    def hint(self) -> Trust:
        """What another text starts from: the same shares, with as little weight as a guess has."""
        other = Trust()
        other.right = WEIGHT * self.right / self.tried
        return other

    def corrected(self, tree: TokenTree) -> np.ndarray:
        """`[N + 1]` chance that each node is accepted."""
        odds = np.ones(len(tree))
        given = (self.right / self.tried)[_classes(tree)]
        for node in range(1, len(tree)):
            odds[node] = odds[tree.parents[node]] * given[node]
        return odds

    def learn(self, seen: Seen) -> None:
        """Take in what became of a draft's nodes."""
        if not len(seen.classes):
            return
        self.tried[seen.used] *= self._fade
        self.right[seen.used] *= self._fade
        np.add.at(self.tried, seen.classes, 1.0)
        np.add.at(self.right, seen.classes, seen.right)


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
    def of(cls, tree: TokenTree, odds: np.ndarray) -> Offer:
        # A node never has better odds than its parent; among equals the stable sort keeps parents first.
        order = 1 + np.argsort(-odds[1:], kind="stable")
        gains = np.concatenate([[1.0], 1.0 + np.cumsum(odds[order])])
        if tree.draws is not None:  # drawn tokens are judged, all of them
            gains[:-1] = 0
        return cls(tree, order, gains)

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
        self._gains, self._nodes, self.count = np.ones((most, NODES + 1)), np.zeros(most), 0
        self._valued: tuple[tuple[int, float, float], float] = (0, 0.0, 0.0), 0.0

    def add(self, offer: Offer) -> None:
        """Remember a draft in the place of the oldest."""
        at, gains = self.count % len(self._gains), offer.gains[: NODES + 1]
        self._gains[at, : len(gains)], self._gains[at, len(gains) :] = gains, gains[-1]
        self._nodes[at] = len(gains) - 1
        self.count += 1

    def value(self, share: float, row: float) -> float:
        """Tokens that such a draft brings beyond its rows, each cut where that is most; 0 where nothing is known.

        Args:
            share: of what each node is expected to bring, what counts.
            row: what a row costs, in tokens.
        """
        about = self.count, share, row
        if self._valued[0] != about:  # a batch's texts all ask for that of the same drafts
            known = self._gains[: self.count]
            self._valued = about, float(surplus(known, share, row).mean()) if self.count else 0.0
        return self._valued[1]

    @property
    def longest(self) -> int:
        """Nodes of the longest one."""
        return int(self._nodes[: self.count].max(initial=0))

    def by_length(self) -> tuple[np.ndarray, np.ndarray]:
        """`[NODES + 1]` each: tokens that a step brought on the mean had at most n been drafted, and nodes drafted."""
        if not self.count:
            return np.ones(NODES + 1), np.zeros(NODES + 1)
        nodes = np.minimum(self._nodes[: self.count, None], np.arange(NODES + 1))
        return self._gains[: self.count].mean(0), nodes.mean(0)


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
