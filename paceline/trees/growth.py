"""One sequence's draft tree in the making: what a tree's rule of growth sees and does.

The draft model's scores go through the sequence's own policies, whose state advances along every path. Which tokens a
node's children carry follows from the law that drafter and verifier agreed on (`paceline.trees.siblings`); the rule of
growth decides how many there are and where the next ones go. It may look at everything drawn so far, but a child that
it asked for stays: that keeps every tree lossless.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from paceline.sequence import Sequence
from paceline.tree import Draws, TokenTree
from paceline.trees.siblings import DRAWN, Ranked, Siblings


@dataclass(eq=False)
class Growth:
    """A growing tree. Node 0 is the root; children have larger numbers than their parents.

    Attributes:
        sequence: whose it is.
        law: what its tokens follow, a key of `paceline.plan.LAWS`.
        nodes, depth: most drafted nodes, and how deep they may lie.
        width: most children of a node.
        tokens, parents, depths: of every node.
        odds: product of the draft's probabilities along each node's path.
        states: the policy's state at every node whose law was asked for.
        first: `[V]` the draft's log-law after the root, on its device; `None`: unknown.
    """

    sequence: Sequence
    law: str
    nodes: int
    depth: int
    width: int
    tokens: list[int] = field(init=False)
    parents: list[int] = field(init=False, default_factory=lambda: [-1])
    depths: list[int] = field(init=False, default_factory=lambda: [0])
    odds: list[float] = field(init=False, default_factory=lambda: [1.0])
    states: dict[int, tuple[Any, ...]] = field(init=False)
    first: torch.Tensor | None = field(init=False, default=None)
    _scores: dict[int, torch.Tensor] = field(init=False, default_factory=dict)
    _siblings: dict[int, Siblings] = field(init=False, default_factory=dict)
    _laws: dict[int, torch.Tensor] = field(init=False, default_factory=dict)
    _asked: list[int] = field(init=False, default_factory=list)
    _spent: set[int] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        self.tokens, self.states = [self.sequence.tokens[-1]], {}

    # -- what a rule of growth uses -----------------------------------------------------------------------

    @property
    def drafted(self) -> int:
        return len(self.tokens) - 1

    def draw(self, node: int, of: int = 1) -> int | None:
        """Add the next child of a node.

        Args:
            node: one whose law is known: the root, or one that was yielded.
            of: how many children it will have, where that is known.

        Returns:
            The child's number, or `None`: the law is spent or unknown, or the tree is as large as it may be.
        """
        siblings = self._siblings.get(node)
        if siblings is None or self.drafted == self.nodes or self.depths[node] == self.depth:
            return None
        pick = siblings.next(of)
        if pick is None:
            self._spent.add(node)
            return None
        child = len(self.tokens)
        self.tokens.append(pick.token)
        self.parents.append(node)
        self.depths.append(self.depths[node] + 1)
        self.odds.append(self.odds[node] * pick.chance)
        if pick.law is not None:
            self._laws[child] = pick.law
        return child

    def spent(self, node: int) -> bool:
        """Whether a child was asked for that the node's law had no token for."""
        return node in self._spent

    def promise(self, node: int) -> float:
        """A guess of the chance that the node's next child is accepted; 0 where there can be none."""
        siblings = self._siblings.get(node)
        if siblings is None or self.depths[node] == self.depth:
            return 0.0
        return self.odds[node] * siblings.promise

    def uniform(self, node: int, rank: int) -> float:
        """A number from [0, 1) that is independent of all tokens."""
        position = self.sequence.generated + self.depths[node]
        return self.sequence.chance.uniform(position, ("growth", self.sequence.generated, node, rank))

    # -- what the drafter uses ----------------------------------------------------------------------------

    def open(self, nodes: Seq[int]) -> list[int]:
        """Those of the nodes whose law is worth a pass: text may follow them and there is room for it."""
        if self.drafted == self.nodes:
            return []
        return [node for node in nodes if self.depths[node] < self.depth and self._advance(node)]

    def ask(self, nodes: Seq[int], logits: torch.Tensor) -> torch.Tensor:
        """What the host must know to go on under some nodes.

        A policy that fails ends the draft there; it fails again, and is reported, when the target is judged.

        Args:
            nodes: from `open`.
            logits: `[len(nodes), V]` raw scores of the draft model.

        Returns:
            Flat float64, still on the device: first tokens and their log-probabilities, or whole log-laws.
        """
        rows = self._transform(nodes, logits)
        self._asked = list(rows)
        if not rows:
            return logits.new_empty(0, dtype=torch.float64)
        scores = torch.stack(list(rows.values()))
        if self.sequence.pipeline.uses_rows:
            self._scores |= rows
        logq = scores.log_softmax(-1)
        if self._asked == [0]:
            self.first = logq[0]
        if self.law in DRAWN:
            return logq.double().flatten()
        count = min(self.width, scores.shape[-1])
        if self.law == "fixed":
            tokens = scores.topk(count).indices
        else:
            positions = [self.sequence.generated + self.depths[node] for node in rows]
            tokens = self.sequence.chance.top(scores, positions, count)
        return torch.stack([tokens.double(), logq.gather(-1, tokens).double()], 1).flatten()

    def take(self, answer: torch.Tensor) -> None:
        """The answer to `ask`, now on the host: the nodes' laws are known."""
        if not self._asked:
            return
        for node, known in zip(self._asked, answer.view(len(self._asked), -1), strict=True):
            if self.law in DRAWN:
                self._siblings[node] = DRAWN[self.law](known.exp(), self._draw(node))
            else:
                tokens, logq = known.view(2, -1)
                self._siblings[node] = Ranked(tokens.long().tolist(), logq.exp().tolist(), self.law == "fixed")

    def tree(self) -> TokenTree:
        """The tree as it stands, every drawn token with its law."""
        draws = None
        if self._laws:
            row = np.full(len(self.tokens), -1)
            row[list(self._laws)] = np.arange(len(self._laws))
            draws = Draws(torch.stack(list(self._laws.values())), row)
        return TokenTree(np.array(self.tokens), np.array(self.parents), draws, np.array(self.odds))

    # -- internals ----------------------------------------------------------------------------------------

    def _advance(self, node: int) -> bool:
        """Bring the policy's state to a node; false where the text ends or the policy fails."""
        if node == 0:
            self.states[0] = self.sequence.state
            return True
        token, above, pipeline = self.tokens[node], self.parents[node], self.sequence.pipeline
        if token in self.sequence.end_tokens:
            return False
        try:
            self.states[node] = pipeline.advance(self.states[above], token, self._scores.get(above))
            return not pipeline.is_final(self.states[node])
        except Exception:
            return False

    def _transform(self, nodes: Seq[int], logits: torch.Tensor) -> dict[int, torch.Tensor]:
        """`{node: [V]}` policy scores of the nodes at which the policy does not fail."""
        try:
            scores = self.sequence.pipeline.transform(logits, [self.states[node] for node in nodes])
            return dict(zip(nodes, scores, strict=True))
        except Exception:
            if len(nodes) == 1:
                return {}
        rows: dict[int, torch.Tensor] = {}
        for i, node in enumerate(nodes):
            rows |= self._transform([node], logits[i : i + 1])
        return rows

    def _draw(self, node: int) -> Any:
        chance, step = self.sequence.chance, self.sequence.generated
        # The key names the step: where a position is drafted again, the draw is another one.
        return lambda weights, rank: chance.categorical(weights, step + self.depths[node], ("draft", step, node, rank))
