"""Two drafters take turns: the cheap one leads where it has much to say, the other one elsewhere.

Copying from the text costs nothing and runs far where the text repeats itself, as in editing; a small model guesses
well everywhere, but a few tokens at a time. Each step the first drafter proposes; if it drafts fewer than `least`
tokens, the second one's proposal is taken instead. Both follow the text and learn from every outcome; the one that was
passed over is told how far its own proposal would have held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from paceline import registry
from paceline.drafters.base import Drafter, Outcome
from paceline.errors import BadRequest
from paceline.models.causal import CausalModel
from paceline.registry import Guarantee, method
from paceline.sequence import Sequence
from paceline.specs import Spec
from paceline.tree import TokenTree

Budget = tuple[int, int]


@dataclass
class Pair:
    """One sequence's states of the two, and what each proposed in the step at hand."""

    states: list[Any] = field(default_factory=lambda: [None, None])
    trees: list[TokenTree | None] = field(default_factory=lambda: [None, None])


@method(
    name="turns",
    kind="drafter",
    guarantee=Guarantee.LOSSLESS,
    summary="One drafter leads where it drafts enough, another elsewhere.",
    paper="Drafters tried in turn (common practice)",
    year=2025,
)
@dataclass(eq=False)
class Turns(Drafter):
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
        self._both: tuple[Drafter, Drafter] = (_built(self.first), _built(self.second))
        self.shape = "tree" if any(d.shape == "tree" for d in self._both) else "chain"

    def attach(self, target: CausalModel) -> None:
        for drafter in self._both:
            drafter.attach(target)

    def begin(self, sequence: Sequence) -> None:
        sequence.drafts = Pair()
        self._each([sequence], lambda drafter: drafter.begin(sequence))

    def propose(self, sequences: Seq[Sequence], budget: Seq[Budget]) -> list[TokenTree]:
        limits = dict(zip(sequences, budget, strict=True))
        chosen = self._ask(0, list(sequences), limits)
        # Tokens that were drawn must be judged: how many there are depends on which they are, so to pass them over
        # because they are few would favour texts whose drafts are long.
        free = [s for s in sequences if chosen[s].draws is None]
        short = [s for s in free if chosen[s].drafted < min(self.least, *limits[s])]
        # Where the second has nothing either, a short draft is better than none.
        chosen |= {s: tree for s, tree in self._ask(1, short, limits).items() if tree.drafted}
        return [chosen[s] for s in sequences]

    def observe(self, outcomes: Seq[Outcome]) -> None:
        self._each([o.sequence for o in outcomes], lambda drafter: drafter.observe(outcomes))

    def commit(self, outcomes: Seq[Outcome]) -> None:
        sequences = [outcome.sequence for outcome in outcomes]
        for turn, drafter in enumerate(self._both):
            seen = [_as_seen(outcome, outcome.sequence.drafts.trees[turn]) for outcome in outcomes]
            with self._turn(turn, sequences):
                drafter.commit(seen)
        for sequence in sequences:
            sequence.drafts.trees = [None, None]

    def end(self, sequence: Sequence) -> None:
        if sequence.drafts is not None:
            self._each([sequence], lambda drafter: drafter.end(sequence))
            sequence.drafts = None

    def _ask(self, turn: int, sequences: list[Sequence], limits: dict[Sequence, Budget]) -> dict[Sequence, TokenTree]:
        if not sequences:
            return {}
        with self._turn(turn, sequences):
            trees = self._both[turn].propose(sequences, [limits[s] for s in sequences])
        for sequence, tree in zip(sequences, trees, strict=True):
            sequence.drafts.trees[turn] = tree
        return dict(zip(sequences, trees, strict=True))

    def _each(self, sequences: Seq[Sequence], call: Callable[[Drafter], None]) -> None:
        for turn, drafter in enumerate(self._both):
            with self._turn(turn, sequences):
                call(drafter)

    @contextmanager
    def _turn(self, turn: int, sequences: Seq[Sequence]) -> Iterator[None]:
        """Show one of the two its own state of each sequence, and no other's."""
        pairs = [s.drafts for s in sequences]
        for sequence, pair in zip(sequences, pairs, strict=True):
            sequence.drafts = pair.states[turn]
        try:
            yield
        finally:
            for sequence, pair in zip(sequences, pairs, strict=True):
                pair.states[turn], sequence.drafts = sequence.drafts, pair


def _as_seen(outcome: Outcome, own: TokenTree | None) -> Outcome:
    """The outcome from the side of a drafter whose own tree may not have been the one that was scored."""
    if outcome.tree is own:
        return outcome
    tree = own or TokenTree.empty(outcome.tree.root)
    node, path = 0, [0]
    for token in outcome.tokens:
        child = next((c for c in tree.children[node] if tree.tokens[c] == token), None)
        if child is None:
            break
        node = child
        path.append(node)
    return replace(outcome, tree=tree, path=path)


def _built(spec: Any) -> Drafter:
    drafter = registry.build("drafter", spec if not isinstance(spec, Spec) else str(spec))
    assert isinstance(drafter, Drafter)
    return drafter
