"""A small model of the same vocabulary drafts for the large one: a chain, or a tree of any shape.

Each step the draft model first takes in, in one pass, what it has not seen of the text, then runs once a drafted
token, or once a level of a tree. Its scores go through the sequence's own policies, whose state advances along the
draft, so a ban, a penalty or a temperature shapes the draft as it will shape the target's choice. How a token is
picked follows the verifier:

- greedy: the best token;
- coupled: the token that the seed's noise at its output position picks under the draft's law; the target is
  judged with the same noise, so similar laws pick the same token;
- otherwise: a draw of its own from the draft's law, which is handed over with the token.

A chain ends before `length` where the chance that all of it is accepted, estimated by the product of its tokens'
probabilities under the draft, falls below `confidence`: more would cost more than it brings. A drawn token is always
submitted and only tokens already drawn decide, so the output's law is not touched. A `tree` decides for itself where
it grows (see `paceline.trees`); the levels of all sequences' trees share their passes.

Papers: Leviathan, Kalman, Matias, "Fast Inference from Transformers via Speculative Decoding", 2023; coupled
draws: Daliri, Musco, Suresh, "Coupling without Communication and Drafter-Invariant Speculative Decoding", 2024.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from paceline import registry
from paceline.budgets import check_budgets
from paceline.caches import Row
from paceline.drafters.base import Outcome
from paceline.drafters.chain import CHAIN_LAWS, ChainModel, Run
from paceline.errors import BadRequest
from paceline.models.causal import CausalModel
from paceline.models.nodes import Nodes
from paceline.plan import agreed
from paceline.registry import Guarantee, method
from paceline.sequence import Sequence
from paceline.specs import Spec
from paceline.tree import TokenTree
from paceline.trees.base import Tree
from paceline.trees.growth import Growth


@dataclass(eq=False)
class Draft:
    """What the drafter keeps of a sequence.

    Attributes:
        row: of the draft model's cache: what was committed, and during a step the tree's expanded nodes.
        tree: the tree of the step at hand, and `slots` the place of its expanded nodes in the row's crown.
        first: `[V]` log-law of the text's next token under a tree's draft, on its device; `None`: none was drafted.
    """

    row: Row
    tree: TokenTree | None = None
    slots: dict[int, int] = field(default_factory=dict)
    first: torch.Tensor | None = None

    def held(self, tokens: Seq[int]) -> list[int]:
        """Crown nodes along accepted tokens, as far as they were expanded."""
        found: list[int] = []
        if self.tree is None:
            return found
        tree, node = self.tree, 0
        for token in tokens:
            below = [child for child in tree.children[node] if tree.tokens[child] == token and child in self.slots]
            if not below:
                break
            node = below[0]
            found.append(self.slots[node])
        return found


@method(
    name="draft",
    kind="drafter",
    guarantee=Guarantee.LOSSLESS,
    summary="A smaller model of the same vocabulary drafts a chain or a tree.",
    paper="Fast Inference from Transformers via Speculative Decoding",
    year=2023,
    needs={"second_model"},
)
@dataclass(eq=False)
class DraftModel(ChainModel):
    """Drafting with a second model.

    Attributes:
        model: a name, folder or Hub id as for `Engine.load`, or a loaded model, with the target's vocabulary.
        length: most tokens of a chain, or the greatest depth of a tree; by default as many as ride along with the
            target's pass.
        dtype: of a model given by name; the target's by default.
        fast: replace the model's forward pass by faster ones where that is possible.
        confidence: a chain ends where the chance that it holds falls below this; 0: at `length` tokens only. By
            default the higher, the larger the draft model is beside the target: a token must be worth its pass.
        tree: shape of a tree (`paceline methods --kind tree`), such as `dyspec(threshold=0.1)`; a chain by default.
        budget: most nodes of a tree; by default as many as ride along with the target's pass.
    """

    confidence: float | None = None
    tree: Any = None
    budget: int | None = None
    shape: str = field(init=False, repr=False, default="chain")
    drafts: frozenset[str] = field(init=False, repr=False, default=CHAIN_LAWS)
    catches_up = True
    _least: float = field(init=False, repr=False, default=0.0)
    _tree: Tree | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.confidence is not None and not 0 <= self.confidence <= 1:
            raise BadRequest(f"draft(confidence={self.confidence}): a number from 0 to 1 is needed")
        if self.budget is not None and self.budget < 1:
            raise BadRequest(f"draft(budget={self.budget}): an integer of at least 1 is needed")
        if self.tree is None:
            if self.budget is not None:
                raise BadRequest(f"draft(budget={self.budget}): a chain has none; give length=, or tree= with it")
            return
        if self.confidence is not None:
            raise BadRequest(f"draft(confidence={self.confidence}): it ends chains; a tree has knobs of its own")
        self._tree = registry.build("tree", str(self.tree) if isinstance(self.tree, Spec) else self.tree)
        self.shape, self.drafts = self._tree.shape, self._tree.laws

    def attach(self, target: CausalModel) -> None:
        check_budgets(self.name, self, target, "length", "budget")
        super().attach(target)
        self._least = self._worthwhile() if self.confidence is None else self.confidence
        if self._tree is not None:
            self._tree.attach(self._model, target)

    def begin(self, sequence: Sequence) -> None:
        sequence.drafts = Draft(self._cache.allocate())
        self.read(sequence, sequence.drafts.row)

    def propose(self, sequences: Seq[Sequence], budget: Seq[tuple[int, int]]) -> list[TokenTree]:
        for sequence in sequences:
            # A step that is tried again finds its own first draft in the cache.
            self._cache.crop(sequence.drafts.row, len(sequence.tokens) - 1)
        if self._tree is not None:
            return self._grow(self._tree, sequences, budget)
        runs = [self._run(sequence, *limits) for sequence, limits in zip(sequences, budget, strict=True)]
        self.write(runs, max(self._least, self.worth))
        return [run.tree() for run in runs]

    def commit(self, outcomes: Seq[Outcome]) -> None:
        for outcome in outcomes:
            draft, accepted = outcome.sequence.drafts, len(outcome.path) - 1
            before = len(outcome.sequence.tokens) - len(outcome.tokens)
            if draft.tree is None and draft.row.length <= before:  # it was not asked
                continue
            self._cache.keep(draft.row, draft.held(outcome.tokens[:accepted]))
            self._cache.crop(draft.row, before + accepted)
            if draft.tree is not None and self._tree is not None:
                self._tree.learn(outcome)
            draft.tree = None

    def end(self, sequence: Sequence) -> None:
        if sequence.drafts is not None:
            row, sequence.drafts = sequence.drafts.row, None
            self._cache.free(row)

    def _worthwhile(self) -> float:
        """The chance from which a drafted token is worth its pass, when a target's pass brings about two tokens."""
        return min(0.2, 2 * self.size_ratio) if self.size_ratio else 0.2

    # -- a chain ------------------------------------------------------------------------------------------

    def _run(self, sequence: Sequence, nodes: int, depth: int) -> Run:
        row = sequence.drafts.row
        limit = min(self.length or self._spare, nodes, depth, self.room(sequence))
        pending = self.readable(sequence.tokens[row.trunk :])
        return Run(sequence, row, limit, sequence.state, pending, law=agreed(self, sequence.verifier))

    # -- a tree -------------------------------------------------------------------------------------------

    def _grow(self, tree: Tree, sequences: Seq[Sequence], budget: Seq[tuple[int, int]]) -> list[TokenTree]:
        growths = [self._growth(tree, sequence, *limits) for sequence, limits in zip(sequences, budget, strict=True)]
        live = [growth for growth in growths if min(growth.nodes, growth.depth) > 0]
        rules = {id(growth): tree.grow(growth, growth.nodes, growth.depth) for growth in live}
        wanted = {id(growth): growth.open([0]) for growth in live}
        while live:
            self._expand(live, [wanted[id(growth)] for growth in live])
            wanted = {id(growth): next_level(growth, rules[id(growth)]) for growth in live}
            live = [growth for growth in live if wanted[id(growth)]]
        for growth in growths:
            growth.sequence.drafts.tree, growth.sequence.drafts.first = growth.tree(), growth.first
        return [growth.sequence.drafts.tree for growth in growths]

    def _growth(self, tree: Tree, sequence: Sequence, nodes: int, depth: int) -> Growth:
        sequence.drafts.slots = {}
        nodes = min(self.budget or self._spare, nodes, max(0, self.room(sequence)))
        depth = min(self.length or nodes, depth, nodes)
        law = "fixed" if sequence.pipeline.greedy else agreed(self, sequence.verifier)
        return Growth(sequence, law, nodes, depth, tree.branching(nodes) if nodes else 0)

    def _expand(self, growths: list[Growth], wanted: list[list[int]]) -> None:
        """Learn the laws of some nodes of every growth in one pass of the draft model, and one transfer."""
        rows = [growth.sequence.drafts.row for growth in growths]
        placed = [self._placed(growth, nodes) for growth, nodes in zip(growths, wanted, strict=True)]
        scores = self._model.expand(self._cache, rows, placed)
        logits = self.padded(scores.logits)
        asked = []
        for i, (growth, nodes) in enumerate(zip(growths, wanted, strict=True)):
            self._note(growth, nodes)
            asked.append(growth.ask(nodes, logits[scores.starts[i] : scores.starts[i + 1]]))
        host = torch.cat(asked).cpu().split([len(answer) for answer in asked])
        for growth, answer in zip(growths, host, strict=True):
            growth.take(answer)

    def _placed(self, growth: Growth, nodes: list[int]) -> Nodes:
        """Where the nodes go in the cache; the root, which comes alone, brings what was not read of the text."""
        draft: Draft = growth.sequence.drafts
        if nodes == [0]:
            text = self.readable(growth.sequence.tokens[draft.row.trunk :])
            return Nodes(np.array(text), np.arange(-1, len(text) - 1), len(text) - 1)
        tokens = self.readable([growth.tokens[node] for node in nodes])
        parents = [draft.slots.get(growth.parents[node], -1) for node in nodes]
        return Nodes(np.array(tokens), np.array(parents))

    def _note(self, growth: Growth, nodes: list[int]) -> None:
        """Remember the slots of the nodes that were just expanded; the root moves into the trunk."""
        draft: Draft = growth.sequence.drafts
        if nodes == [0]:
            self._cache.keep(draft.row, range(len(draft.row.parents)))
            return
        first = len(draft.row.parents) - len(nodes)
        draft.slots |= {node: first + i for i, node in enumerate(nodes)}


def next_level(growth: Growth, rule: Iterator[list[int]]) -> list[int]:
    """The next nodes whose laws a rule of growth wants and can have; none when it is done."""
    for nodes in rule:
        if wanted := growth.open(nodes):
            return wanted
    return []
