"""What the policies' tests share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from paceline.policies import Context, Pipeline, Policy, State
from paceline.policies.allowed import Allowed
from paceline.policies.banned import Banned
from paceline.policies.epsilon import Epsilon
from paceline.policies.eta import Eta
from paceline.policies.frequency import Frequency
from paceline.policies.logit_bias import LogitBias
from paceline.policies.min_length import MinLength
from paceline.policies.min_p import MinP
from paceline.policies.no_repeat import NoRepeat
from paceline.policies.presence import Presence
from paceline.policies.repetition import Repetition
from paceline.policies.temperature import Temperature
from paceline.policies.top_k import TopK
from paceline.policies.top_p import TopP
from paceline.policies.typical import Typical
from paceline.tree import TokenTree

V = 12
PROMPT = (3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5)
CONTEXT = Context(PROMPT, V, frozenset({0}))

#: Every policy at a setting that changes something, and where it changes nothing.
ACTIVE: list[Policy] = [
    Temperature(0.7),
    TopK(4),
    TopP(0.8),
    MinP(0.2),
    Typical(0.6),
    Epsilon(0.05),
    Eta(0.1),
    Repetition(1.3),
    Frequency(0.6),
    Presence(-0.9),
    NoRepeat(2),
    LogitBias({2: 1.5, "7": -3}),
    MinLength(6),
    Banned([1, 8]),
    Allowed([0, 2, 3, 5, 7, 11]),
]
NEUTRAL: list[Policy] = [type(policy)() for policy in ACTIVE]


def name(policy: Policy) -> str:
    return type(policy).__name__


def scores(n: int, seed: int, size: int = V, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(n, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype) * 2


def after(policy: Policy, tokens: Sequence[int], context: Context = CONTEXT, settle: bool = False) -> State:
    """The state after generated tokens."""
    state = policy.start(context)
    for token in tokens:
        state = policy.advance(state, token)
        if settle:
            state = policy.settle(state)
    return state


def one(policy: Policy, row: Sequence[float], tokens: Sequence[int] = (), prompt: Sequence[int] = ()) -> torch.Tensor:
    """One transformed row."""
    state = after(policy, tokens, Context(tuple(prompt), len(row)))
    return policy.transform(torch.tensor([row]), [state])[0]


def kept(policy: Policy, p: Sequence[float]) -> list[int]:
    """Tokens that stay possible under probabilities p."""
    return one(policy, torch.tensor(p).log().tolist()).isfinite().nonzero().flatten().tolist()


def random_tree(seed: int, nodes: int = 12, size: int = V) -> TokenTree:
    generator = np.random.default_rng(seed)
    parents = [-1, *(int(generator.integers(0, node)) for node in range(1, nodes + 1))]
    return TokenTree(generator.integers(0, size, nodes + 1), np.array(parents))


def chain_row(pipeline: Pipeline, raw: torch.Tensor, tokens: Sequence[int], context: Context = CONTEXT) -> torch.Tensor:
    """The row after generated tokens, taken in one at a time from the prompt on."""
    state = pipeline.start(context)
    for token in tokens:
        state = pipeline.settle(pipeline.advance(state, token))
    return pipeline.transform(raw[None], [state])[0]
