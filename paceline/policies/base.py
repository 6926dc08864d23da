"""Policies: which next-token distribution do we want at this prefix?

A policy is a pure automaton over the prefix. `start` gives its state at the end of the prompt, `advance` the
state one token later, `transform` rewrites raw scores given the states. Purity means that the state exists at
every node of a draft tree, so each policy works under every drafter without loss.

Most policies are stateless and implement only `transform` on `[n, V]` scores. `Pipeline` composes policies in
a fixed order of stages and is what the engine calls.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, ClassVar

import torch

from paceline.errors import BadRequest
from paceline.tree import TokenTree

State = Any


class Stage(IntEnum):
    """Where a policy stands in the composition; equal stages run in the order given."""

    GUIDANCE = 0  # contrast over streams, on unscaled scores
    PENALTY = 1  # sign-dependent, must see raw scores
    MASK = 2  # hard bans, before truncation so that truncation counts legal tokens
    TEMPERATURE = 3
    TRUNCATION = 4


@dataclass(frozen=True)
class Context:
    """What a policy may know of its request at the start.

    Attributes:
        prompt: the prompt's token ids.
        vocab_size: V.
        stop_tokens: ids that end the text.
        device: where scores live.
    """

    prompt: tuple[int, ...]
    vocab_size: int
    stop_tokens: frozenset[int] = frozenset()
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


class Policy(ABC):
    """One rewriting of the next-token scores. Subclasses are frozen dataclasses: fields are the knobs."""

    stage: ClassVar[Stage]
    #: True where a child's state needs its parent's row: states are built top-down after the forward pass.
    uses_rows: ClassVar[bool] = False

    def start(self, context: Context) -> State:
        """State at the end of the prompt. Must never be changed in place by `advance` or `transform`."""
        return None

    def advance(self, state: State, token: int, row: torch.Tensor | None = None) -> State:
        """State after `token`. `row`: `[V]` the pipeline's scores at the parent, given when `uses_rows`."""
        return state

    def settle(self, state: State) -> State:
        """An equal state that is cheaper to go on from; called once per committed step."""
        return state

    def is_final(self, state: State) -> bool:
        """Whether the text is complete at this state (a grammar's end)."""
        return False

    @property
    def neutral(self) -> bool:
        """True where the setting changes nothing, so that the pipeline may leave the policy out."""
        return False

    @abstractmethod
    def transform(self, scores: torch.Tensor, states: Sequence[State]) -> torch.Tensor:
        """Rewritten scores.

        Args:
            scores: `[n, V]` float32 unnormalised log-probabilities, not to be changed in place.
            states: n states, one a row.

        Returns:
            `[n, V]`; `-inf` marks tokens that may not be chosen. At least one token of a row stays finite.
        """


@dataclass(frozen=True)
class Pipeline:
    """Policies of one request, in order, and greedy or sampled choice.

    Attributes:
        policies: non-neutral policies sorted by stage.
        greedy: temperature 0: the law is a point mass on the best score, ties to the lowest token id.
    """

    policies: tuple[Policy, ...] = ()
    greedy: bool = True

    @classmethod
    def of(cls, policies: Sequence[Policy], greedy: bool) -> Pipeline:
        """Pipeline of the given policies; temperature and truncations take no part in a greedy choice."""
        active = [p for p in policies if not p.neutral and not (greedy and p.stage >= Stage.TEMPERATURE)]
        return cls(tuple(sorted(active, key=lambda p: p.stage)), greedy)

    @property
    def uses_rows(self) -> bool:
        return any(p.uses_rows for p in self.policies)

    def start(self, context: Context) -> tuple[State, ...]:
        """States at the end of the prompt. Raises `BadRequest` if the masks together leave no first token."""
        states = tuple(p.start(context) for p in self.policies)
        masks = [(p, s) for p, s in zip(self.policies, states, strict=True) if p.stage is Stage.MASK]
        if masks:
            row = torch.zeros(1, context.vocab_size, device=context.device)
            for policy, state in masks:
                row = policy.transform(row, [state])
            if not bool(row.isfinite().any()):
                names = " and ".join(type(policy).__name__ for policy, _ in masks)
                raise BadRequest(f"policies: {names} leave no token that may come first; loosen one of them")
        return states

    def advance(self, state: tuple[State, ...], token: int, row: torch.Tensor | None = None) -> tuple[State, ...]:
        if not self.policies:
            return state
        return tuple(p.advance(s, token, row) for p, s in zip(self.policies, state, strict=True))

    def settle(self, state: tuple[State, ...]) -> tuple[State, ...]:
        return tuple(p.settle(s) for p, s in zip(self.policies, state, strict=True))

    def is_final(self, state: tuple[State, ...]) -> bool:
        return any(p.is_final(s) for p, s in zip(self.policies, state, strict=True))

    def transform(self, scores: torch.Tensor, states: Sequence[tuple[State, ...]]) -> torch.Tensor:
        """`[n, V]` scores of the policy at n prefixes; their softmax is its law (argmax when greedy)."""
        for i, policy in enumerate(self.policies):
            scores = policy.transform(scores, [state[i] for state in states])
        return scores

    def over(
        self, tree: TokenTree, scores: torch.Tensor, state: tuple[State, ...]
    ) -> tuple[torch.Tensor, list[tuple[State, ...]]]:
        """Policy scores and states at every node of a tree.

        Args:
            tree: N drafted tokens under a root.
            scores: `[N + 1, V]` raw scores.
            state: the state at the root (the root's token already taken in).

        Returns:
            `[N + 1, V]` policy scores and N + 1 states.
        """
        states = [state] * len(tree)
        if not self.policies:
            return scores, states
        if not self.uses_rows:
            for node in range(1, len(tree)):
                states[node] = self.advance(states[tree.parents[node]], int(tree.tokens[node]))
            return self.transform(scores, states), states
        rows = torch.empty_like(scores)
        for level in range(int(tree.depth.max()) + 1):
            nodes = [int(node) for node in (tree.depth == level).nonzero()[0]]
            for node in nodes if level else ():
                parent = int(tree.parents[node])
                states[node] = self.advance(states[parent], int(tree.tokens[node]), rows[parent])
            rows[nodes] = self.transform(scores[nodes], [states[node] for node in nodes])
        return rows, states

    def distribution(self, scores: torch.Tensor) -> torch.Tensor:
        """`[n, V]` normalised log-distributions of policy scores (a point mass a row when greedy)."""
        if not self.greedy:
            return scores.log_softmax(-1)
        logp = torch.full_like(scores, -torch.inf)
        return logp.scatter_(-1, scores.argmax(-1, keepdim=True), 0.0)
