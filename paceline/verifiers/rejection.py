"""Speculative sampling: accept a drafted token with probability min(1, p/q), else draw from the residual.

Draft `x_1..x_n` with `x_i ~ q_i`; the target gives `p_1..p_{n+1}`. In order, accept `x_i` with probability
`min(1, p_i(x_i) / q_i(x_i))`; at the first refusal emit `y ~ norm(max(p_i - q_i, 0))`; if none is refused emit
`y ~ p_{n+1}`. A deterministic draft is a point mass. The emitted text has exactly the target's law;
`E[accepted at i] = sum_x min(p_i, q_i)`.

Papers: Leviathan, Kalman, Matias, "Fast Inference from Transformers via Speculative Decoding", 2023; Chen et
al., "Accelerating Large Language Model Decoding with Speculative Sampling", 2023.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from paceline.chance import Chance
from paceline.registry import Guarantee, method
from paceline.tree import TokenTree
from paceline.verifiers.base import Verdict, Verifier


@method(
    name="rejection",
    kind="verifier",
    guarantee=Guarantee.LOSSLESS,
    summary="Standard speculative sampling of a chain: accept with min(1, p/q), else sample the residual.",
    paper="Fast Inference from Transformers via Speculative Decoding",
    year=2023,
    needs={"chain"},
)
@dataclass(frozen=True)
class Rejection(Verifier):
    """Rejection sampling along a chain."""

    shapes = frozenset({"chain"})

    def verify(self, tree: TokenTree, logp: torch.Tensor, chance: Chance, position: int) -> Verdict:
        path = [0]
        for node in range(1, len(tree)):
            at = position + node - 1
            token = int(tree.tokens[node])
            p = logp[node - 1].double().exp()
            q = _draft_law(tree, node, len(p))
            if float(q[token]) <= 0:
                raise ValueError(f"draft token {token} at depth {node} has probability 0 under its own law")
            if chance.bernoulli(float(p[token] / q[token]), at, "accept"):
                path.append(node)
                continue
            residual = (p - q).clamp_min(0)
            if float(residual.sum()) < 1e-12:  # p and q are equal but for rounding: rounding refused the token
                path.append(node)
                continue
            return Verdict(path, chance.categorical(residual, at, "residual"))
        return Verdict(path, chance.categorical(logp[len(tree) - 1].double().exp(), position + len(tree) - 1, "bonus"))


def _draft_law(tree: TokenTree, node: int, vocab: int) -> torch.Tensor:
    """`[V]` float64 law that a node's token was drawn from."""
    if tree.draws is None or tree.draws.row[node] < 0:
        return torch.nn.functional.one_hot(torch.tensor(int(tree.tokens[node])), vocab).double()
    return tree.draws.logq[int(tree.draws.row[node])].double().exp()
