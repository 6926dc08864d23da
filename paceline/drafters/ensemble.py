"""Several drafters that follow the same texts, each with a state of its own of every sequence."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch

from paceline import registry
from paceline.drafters.base import Drafter, Outcome
from paceline.models.causal import CausalModel
from paceline.sequence import Sequence
from paceline.specs import Spec
from paceline.tree import TokenTree

Budget = tuple[int, int]


@dataclass
class Shared:
    """One sequence's states of all drafters, what each proposed in the step at hand, and how much each peeks at.

    `seen`: the step's outcome, from the side of those who were asked for it.
    """

    states: list[Any]
    trees: list[TokenTree | None]
    seen: dict[int, Outcome] = field(default_factory=dict)
    sizes: list[int] = field(default_factory=list)


class Ensemble(Drafter):
    """Base of drafters that consist of others. Subclasses choose whom to `ask` in `propose`.

    Every member sees every outcome. One whose own draft was not the one that was scored is told how far its draft would
    have held. Subclasses set `members` before `attach`.
    """

    members: tuple[Drafter, ...] = ()

    def attach(self, target: CausalModel) -> None:
        for member in self.members:
            member.attach(target)
        self.taps = tuple(sorted({layer for member in self.members for layer in member.taps}))

    def begin(self, sequence: Sequence) -> None:
        sequence.drafts = self.shared()
        self._each([sequence], lambda member: member.begin(sequence))

    def shared(self) -> Shared:
        """A fresh record of a sequence."""
        return Shared([None] * len(self.members), [None] * len(self.members))

    @abstractmethod
    def propose(self, sequences: Seq[Sequence], budget: Seq[Budget]) -> list[TokenTree]: ...

    def glimpse(self, sequence: Sequence) -> float:
        best = 0.0
        for i in self._overriding("glimpse"):
            with _OwnStates(i, [sequence]):
                best = max(best, self.members[i].glimpse(sequence))
        return best

    def peek(
        self, sequence: Sequence, tree: TokenTree, logits: torch.Tensor, scores: torch.Tensor
    ) -> torch.Tensor | None:
        parts: list[torch.Tensor] = []
        sizes = [0] * len(self.members)
        for i in self._overriding("peek"):
            with _OwnStates(i, [sequence]):
                part = self.members[i].peek(sequence, tree, logits, scores)
            if part is not None:
                parts.append(part.flatten().double())
                sizes[i] = len(parts[-1])
        sequence.drafts.sizes = sizes
        return torch.cat(parts) if parts else None

    def late(self, sequence: Sequence, tree: TokenTree) -> TokenTree:
        """What a member drew behind its own tree, if that is the one that was scored, or both are empty."""
        for i, own in enumerate(sequence.drafts.trees):
            if own is tree or (own is not None and own.drafted == tree.drafted == 0):
                with _OwnStates(i, [sequence]):
                    found = self.members[i].late(sequence, tree)
                if found.late is not None:
                    return found
        return tree

    def observe(self, outcomes: Seq[Outcome]) -> None:
        watching = self._overriding("observe")
        if not watching:
            return
        sequences = [outcome.sequence for outcome in outcomes]
        parts = [outcome.peeked.split(outcome.sequence.drafts.sizes) for outcome in outcomes]
        for i in watching:
            own = [replace(outcome, peeked=part[i]) for outcome, part in zip(outcomes, parts, strict=True)]
            with _OwnStates(i, sequences):
                self.members[i].observe(own)

    def commit(self, outcomes: Seq[Outcome]) -> None:
        for i in self._overriding("commit"):
            told = [o for o in outcomes if o.sequence.drafts.trees[i] is not None or not self.members[i].catches_up]
            if told:
                seen = [self.seen(outcome, i) for outcome in told]
                with _OwnStates(i, [outcome.sequence for outcome in told]):
                    self.members[i].commit(seen)
        for outcome in outcomes:
            outcome.sequence.drafts.trees = [None] * len(self.members)
            outcome.sequence.drafts.seen = {}

    def seen(self, outcome: Outcome, member: int) -> Outcome:
        """The outcome of the step at hand from a member's side."""
        shared: Shared = outcome.sequence.drafts
        if member not in shared.seen:
            shared.seen[member] = as_seen(outcome, shared.trees[member])
        return shared.seen[member]

    def end(self, sequence: Sequence) -> None:
        if sequence.drafts is not None:
            self._each([sequence], lambda member: member.end(sequence))
            sequence.drafts = None

    def ask(self, member: int, sequences: Seq[Sequence], budget: Seq[Budget]) -> list[TokenTree]:
        """One member's drafts; at most once a step for each sequence."""
        if not sequences:
            return []
        with _OwnStates(member, sequences):
            trees = self.members[member].propose(sequences, budget)
        for sequence, tree in zip(sequences, trees, strict=True):
            sequence.drafts.trees[member] = tree
        return trees

    def _each(self, sequences: Seq[Sequence], call: Callable[[Drafter], None]) -> None:
        for i, member in enumerate(self.members):
            with _OwnStates(i, sequences):
                call(member)

    def _overriding(self, name: str) -> tuple[int, ...]:
        """The members that do something there: a small model's step is too short for calls in vain."""
        return _overriding(tuple(map(type, self.members)), name)


@cache
def _overriding(kinds: tuple[type[Drafter], ...], name: str) -> tuple[int, ...]:
    idle = getattr(Drafter, name)
    return tuple(i for i, kind in enumerate(kinds) if getattr(kind, name) is not idle)


class _OwnStates:
    """A stretch in which a member sees its own state of each sequence, and no other's."""

    def __init__(self, member: int, sequences: Seq[Sequence]) -> None:
        self.member, self.sequences = member, sequences
        self.records = [s.drafts for s in sequences]

    def __enter__(self) -> None:
        for sequence, record in zip(self.sequences, self.records, strict=True):
            sequence.drafts = record.states[self.member]

    def __exit__(self, *error: object) -> None:
        for sequence, record in zip(self.sequences, self.records, strict=True):
            record.states[self.member], sequence.drafts = sequence.drafts, record


def as_seen(outcome: Outcome, own: TokenTree | None) -> Outcome:
    """The outcome from the side of a drafter whose own tree may not have been the one that was scored."""
    if outcome.tree is own:
        return outcome
    if own is None or not own.drafted:
        if not outcome.tree.drafted:
            return outcome
        return replace(outcome, tree=own or TokenTree.empty(outcome.tree.root), path=[0])
    tree = own.limit(own.drafted, len(outcome.tokens))  # what lies deeper was not judged
    node, path = 0, [0]
    for token in outcome.tokens:
        child = next((c for c in tree.children[node] if tree.tokens[c] == token), None)
        if child is None:
            break
        node = child
        path.append(node)
    return replace(outcome, tree=tree, path=path)


def built(spec: Any) -> Drafter:
    """A drafter from a spec string, a parsed spec or an instance."""
    drafter = registry.build("drafter", spec if not isinstance(spec, Spec) else str(spec))
    assert isinstance(drafter, Drafter)
    return drafter
