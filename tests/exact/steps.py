"""The law of one verified step, without an engine around it: trees too large to enumerate over whole texts.

Four things make it cheap and leave it exact. A node's children are drawn when the verifier first looks at them: what
nobody looked at sums out. On the deepest level, below which nothing hangs, so do the independent draws behind the
accepted one. Only the first tokens are compared, as many as the tree has levels and one more. And the one behind the
deepest level is not drawn but counted with its law: nothing can come after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch

from paceline.drafters.base import SequenceDrafter
from paceline.plan import agreed
from paceline.testing import EnumeratedChance, distance, outcomes
from paceline.testing.drafters import SiblingDraw, TabularTree
from paceline.testing.laws import Text
from paceline.testing.tabular import Table
from paceline.verifiers import MatchVerifier, Verdict, Verifier, siblings
from paceline.verifiers.siblings import Laws, Sibling, SiblingVerifier
from paceline.verifiers.spectr import SpecTr

#: Verifiers that look at the children of the nodes on their way and at no others.
WALKERS = (MatchVerifier, SiblingVerifier, SpecTr)
#: Stands for a token that is counted with its law.
OPEN = -1


@dataclass(frozen=True)
class Step:
    """What one step emits.

    Attributes:
        error: largest difference to the target's law, every emitted text extended by the target to equal length.
        accepted: expected number of accepted tokens.
        replays: how many outcomes there were.
        law: probability of every text of the full length.
    """

    error: float
    accepted: float
    replays: int
    law: dict[Text, float]


def step(verifier: Verifier, drafter: SequenceDrafter, target: Table, vocabulary: int, depth: int) -> Step:
    """One step after the text (0,), over every outcome of drafting and judging."""
    replays = 0

    def run(enumerated: EnumeratedChance) -> tuple[Text, int, tuple[float, ...]]:
        nonlocal replays
        replays += 1
        chance = OpenEnd(enumerated, depth)
        verdict, tree = judged(verifier, drafter, target, vocabulary, depth, chance)
        assert [int(tree.parents[node]) for node in verdict.path[1:]] == verdict.path[:-1]
        text = (*(int(tree.tokens[node]) for node in verdict.path[1:]), verdict.bonus)
        return text, len(verdict.path) - 1, chance.last if verdict.bonus == OPEN else ()

    law: dict[Text, float] = {}
    accepted = 0.0
    for (text, kept, last), weight in outcomes(run).items():
        accepted += weight * kept
        ends = {text: 1.0} if text[-1] != OPEN else {(*text[:-1], token): p for token, p in enumerate(last)}
        for end, share in ends.items():
            for whole, chance in extensions(end, depth + 1, target, vocabulary).items():
                law[whole] = law.get(whole, 0.0) + weight * share * chance
    return Step(distance(law, extensions((), depth + 1, target, vocabulary)), accepted, replays, law)


def judged(
    verifier: Verifier, drafter: SequenceDrafter, target: Table, vocabulary: int, depth: int, chance: EnumeratedChance
) -> tuple[Verdict, Any]:
    """One verdict, and the tree as far as it was drawn."""
    sequence: Any = SimpleNamespace(tokens=[0], generated=0, chance=chance, verifier=verifier)
    if not (isinstance(verifier, WALKERS) and isinstance(drafter, TabularTree)):
        tree = drafter.draft(sequence, 99, depth)
        prefixes = [tuple(int(tree.tokens[node]) for node in tree.path(i)) for i in range(len(tree))]
        return verifier.verify(tree, torch.stack([target(prefix) for prefix in prefixes]), chance, 0), tree
    lazy: Any = LazyTree(drafter, drafter.law or agreed(drafter, verifier), chance, vocabulary)
    rows: Any = Computed(lambda node: target(lazy.prefix(node)), vocabulary)
    if not isinstance(verifier, MatchVerifier):
        with mock.patch.object(siblings, "Laws", LazyLaws):
            return verifier.verify(lazy, rows, chance, 0), lazy
    at = Computed(lambda node: len(lazy.path(node)) - 1)
    chosen: Any = Computed(lambda node: int(verifier.choose(rows[node][None], chance, [at[node]])))
    return verifier.walk(lazy, chosen, chance, 0), lazy


class OpenEnd(EnumeratedChance):
    """Enumerated chance, but for the token behind the deepest level, whose law is kept.

    Args:
        chance: the walk over all outcomes.
        depth: levels of the tree.
    """

    def __init__(self, chance: EnumeratedChance, depth: int) -> None:
        super().__init__(chance.enumeration, chance.stream)
        self.depth, self.last = depth, ()

    def categorical(self, p: torch.Tensor, position: int, key: Any) -> int:
        if position < self.depth:
            return super().categorical(p, position, key)
        self.last: tuple[float, ...] = tuple((p / p.sum()).tolist())
        return OPEN


@dataclass
class Computed:
    """An array of which an entry is computed when it is asked for.

    Attributes:
        entry: the value at an index.
        width: of an entry that is a row.
    """

    entry: Callable[[int], Any]
    width: int = 0

    def __getitem__(self, index: int) -> Any:
        return self.entry(index)

    def __len__(self) -> int:
        return 1 << 30

    @property
    def shape(self) -> tuple[int, int]:
        return len(self), self.width

    def cpu(self) -> Computed:
        return self


class LazyTree:
    """What a verifier uses of a `TokenTree`; children are drawn when they are first looked at.

    Args:
        drafter: its table and shape.
        kind: what the tokens follow (see `paceline.plan.LAWS`).
        chance: where the draws come from.
        vocabulary: V.
    """

    late = None

    def __init__(self, drafter: TabularTree, kind: str, chance: EnumeratedChance, vocabulary: int) -> None:
        self.drafter, self.kind, self.chance = drafter, kind, chance
        self.tokens, self.parents, self.laws = [0], [-1], list[torch.Tensor | None]([None])
        self.children = Computed(cache(self._children))
        row = Computed(lambda node: -1 if self.laws[node] is None else node)
        self.draws = SimpleNamespace(row=row, logq=Computed(lambda node: self.laws[node], vocabulary))

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def drafted(self) -> int:
        return len(self) - 1

    def path(self, node: int) -> list[int]:
        return [0] if node == 0 else [*self.path(self.parents[node]), node]

    def prefix(self, node: int) -> Text:
        return tuple(self.tokens[n] for n in self.path(node))

    def depth(self, node: int) -> int:
        return len(self.path(node)) - 1

    def _children(self, node: int) -> list[int]:
        depth, first = self.depth(node), len(self)
        if depth == len(self.drafter.branching):
            return []
        count = 1 if self.kind == "chains" and depth else self.drafter.branching[depth]
        draw = SiblingDraw(self.chance, depth, (0, node))
        for token, law in draw.children(self.kind, self.drafter.table(self.prefix(node)), count):
            self._add(node, token, law)
        return list(range(first, len(self)))

    def independent(self, node: int) -> Iterator[int]:
        """The children of a node under the law "replacement", each drawn when it is asked for."""
        draw, logq = SiblingDraw(self.chance, self.depth(node), (0, node)), self.drafter.table(self.prefix(node))
        for rank in range(self.drafter.branching[self.depth(node)]):
            self._add(node, draw.token(logq, rank), logq)
            yield len(self) - 1

    def _add(self, node: int, token: int, law: torch.Tensor | None) -> None:
        self.tokens.append(token)
        self.parents.append(node)
        self.laws.append(law)


class LazyLaws(Laws):
    """The laws of a lazy tree, whose deepest siblings are drawn one after the other where they are independent."""

    tree: Any

    def siblings(self, nodes: Sequence[int]) -> Any:
        if self.tree.kind != "replacement" or self.tree.depth(nodes[0]) != len(self.tree.drafter.branching) - 1:
            return super().siblings(nodes)
        children = (child for node in nodes for child in self.tree.independent(node))
        return Deepest(
            Sibling(child, self.tree.parents[child], self.tree.tokens[child], self.draft(child)) for child in children
        )


class Deepest:
    """Siblings as they are asked for; nothing is known of those behind the last one, and none has children."""

    def __init__(self, siblings: Iterator[Sibling]) -> None:
        self.known: list[Sibling] = []
        self._ahead = siblings

    def __iter__(self) -> Iterator[Sibling]:
        for sibling in self._ahead:
            self.known.append(sibling)
            yield sibling

    def __getitem__(self, index: Any) -> Any:
        return self.known[index]


def extensions(text: Text, length: int, target: Table, vocabulary: int) -> dict[Text, float]:
    """The target's law of the texts of a length that begin with `text`."""
    laws = {text: 1.0}
    for _ in range(length - len(text)):
        laws = {
            (*known, token): weight * float(p)
            for known, weight in laws.items()
            for token, p in enumerate(target((0, *known)).exp())
        }
    return laws
