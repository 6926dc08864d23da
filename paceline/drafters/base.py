"""Drafters: propose tokens that the target will probably choose.

Five verbs, and three more for special needs (`peek`, `glimpse`, `late`). The engine calls `begin` when a sequence is
admitted, then every step `propose`, the forward pass, `observe` (what the target said at every node), `commit` (what
was kept), and at last `end`. A drafter's per-sequence state lives in `sequence.drafts`, never in the drafter, which may
serve many sequences. What a drafter learns across requests (a table, a datastore) may live in it.

Most drafters implement `draft(sequence, nodes, depth)` alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from paceline.tree import TokenTree

if TYPE_CHECKING:
    from paceline.caches import TrieCache
    from paceline.models.causal import CausalModel
    from paceline.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one step did to one sequence.

    Attributes:
        sequence: the record, its `tokens` already extended.
        tree: what was drafted.
        logits: `[len(tree), V]` float32 raw target logits at every node (on the model's device).
        path: accepted node indices, root first; `len(path) - 1` drafted tokens were accepted.
        tokens: emitted tokens, after trimming: the accepted ones and the bonus token.
        scores: `[len(tree), V]` the policy's scores at every node, each with the history of its own path.
        hidden: `{layer: [len(tree), d]}` the target's states at every node that enter the layers its drafter taps.
        peeked: on the host, flat float64: what the drafter's `peek` asked for.
    """

    sequence: Sequence
    tree: TokenTree
    logits: torch.Tensor
    path: list[int]
    tokens: list[int]
    scores: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    hidden: dict[int, torch.Tensor] = field(default_factory=dict)
    peeked: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.float64))


class Drafter(ABC):
    """Base of all drafters. Subclasses are dataclasses: their init fields are the knobs."""

    #: Shapes of tree it may draft: "chain" or "tree" (see `paceline.plan`).
    shape: str = "chain"
    #: Laws that its tokens can follow (see `paceline.plan.LAWS`); `paceline.plan.agreed` says which one is wanted.
    drafts: frozenset[str] = frozenset({"fixed"})
    #: Drafters that it consists of, if any; each follows a law of its own choosing.
    members: tuple[Drafter, ...] = ()
    #: Layers whose states it wants with every outcome (0: embeddings; L: after the last norm); may be set by `attach`.
    taps: tuple[int, ...] = ()

    #: Whether a step in which it was not asked needs no `commit`: `propose` takes in what was committed meanwhile.
    catches_up: bool = False
    #: Bytes of its own weights by those of the target's; 0: it has none, or nobody knows.
    size_ratio: float = 0.0

    #: Prompt tokens that a model of its own reads in a pass.
    prefill_chunk: int = 512

    #: A hint of whoever asks: chance of being accepted below which a drafted token will not be scored.
    worth: float = 0.0

    #: A hint of whoever asks: texts that wait and will share the next step with those at hand.
    joining: int = 0

    #: A weak reference to the target that it was attached to last; kept by the engine.
    attached: Any = None

    @property
    def second(self) -> Seq[tuple[CausalModel, TrieCache]]:
        """Models of its own that read the text, each with the cache of its texts; by default those of its members."""
        return [pair for member in self.members for pair in member.second]

    @property
    def overlaps(self) -> bool:
        """Whether one of these runs while the target does."""
        return any(member.overlaps for member in self.members)

    def attach(self, target: CausalModel) -> None:
        """Called once with the target, before any sequence. Raises `BadRequest` or `Unsupported` on a mismatch."""

    def begin(self, sequence: Sequence) -> None:
        """A sequence starts; `sequence.tokens` holds the prompt."""

    @abstractmethod
    def propose(self, sequences: Seq[Sequence], budget: Seq[tuple[int, int]]) -> list[TokenTree]:
        """One tree a sequence, rooted at its last token.

        Args:
            sequences: those that chose this drafter.
            budget: for each, the most drafted nodes and the greatest depth that can be used.
        """

    def glimpse(self, sequence: Sequence) -> float:
        """The chance that a draft's first token would be accepted, where that takes next to no time to tell; else 0."""
        return 0.0

    def peek(
        self, sequence: Sequence, tree: TokenTree, logits: torch.Tensor, scores: torch.Tensor
    ) -> torch.Tensor | None:
        """Numbers that it will want on the host, computed on the device before anything of the step is known there.

        They leave with the step's one transfer and come back as `Outcome.peeked`; asking later means to wait again.

        Args:
            sequence: one of its own.
            tree: what is being scored.
            logits: `[len(tree), V]` float32 raw target logits, on the model's device.
            scores: `[len(tree), V]` the policy's scores.
        """
        return None

    def late(self, sequence: Sequence, tree: TokenTree) -> TokenTree:
        """The tree with what was drawn behind it while it was being scored (`TokenTree.late`).

        Asked after the pass, and only where a verifier reads the laws of drawn tokens.
        """
        return tree

    def observe(self, outcomes: Seq[Outcome]) -> None:
        """The target's logits at every scored node, accepted or not."""

    def commit(self, outcomes: Seq[Outcome]) -> None:
        """Which nodes were kept and which tokens were emitted."""

    def end(self, sequence: Sequence) -> None:
        """The sequence is finished, failed or cancelled; release what belongs to it."""


class SequenceDrafter(Drafter):
    """A drafter that looks at one sequence at a time."""

    @abstractmethod
    def draft(self, sequence: Sequence, nodes: int, depth: int) -> TokenTree:
        """A tree of at most `nodes` drafted nodes and depth `depth` under the sequence's last token."""

    def propose(self, sequences: Seq[Sequence], budget: Seq[tuple[int, int]]) -> list[TokenTree]:
        return [self.draft(s, nodes, depth) for s, (nodes, depth) in zip(sequences, budget, strict=True)]
