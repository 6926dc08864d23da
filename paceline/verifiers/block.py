"""Block verification: a chain is judged as a whole, which keeps more of it than judging token by token.

Write `p_i`, `q_i` for the laws after i drafted tokens of a chain `x_1 .. x_n`. With `P_0 = 1`:

    P_i = min(1, P_{i-1} p_{i-1}(x_i) / q_{i-1}(x_i))
    S_i = sum_x max(P_i p_i(x) - q_i(x), 0)
    h_i = S_i / (S_i + 1 - P_i)  for i < n  (0/0 is 1),    h_n = P_n

Each i has an independent coin of probability `h_i`; `tau` is the largest i whose coin succeeds, 0 if none does. Keep
`x_1 .. x_tau`; then draw from `p_n` if `tau = n`, else from `norm(max(P_tau p_tau - q_tau, 0))`. A token that was not
drawn is a point mass. Never fewer tokens are expected than under token-wise rejection, and no lossless verifier of
chains expects more. One drafted token is speculative sampling.

Paper: Sun et al., "Block Verification Accelerates Speculative Decoding", 2024.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from paceline.chance import Chance
from paceline.registry import Guarantee, method
from paceline.tree import TokenTree
from paceline.verifiers.base import Verdict, Verifier
from paceline.verifiers.siblings import ROUNDING, Coins, Laws, sequential_rejection


@method(
    name="block",
    kind="verifier",
    guarantee=Guarantee.LOSSLESS,
    summary="Judge a chain as a whole: never fewer accepted tokens than judging one by one.",
    paper="Block Verification Accelerates Speculative Decoding",
    year=2024,
    needs={"chain"},
)
@dataclass(frozen=True)
class Block(Verifier):
    """Joint verification of a chain.

    Raises:
        ValueError: the tree branches.
    """

    judges = ("distinct", "replacement", "fixed")
    shapes = frozenset({"chain"})

    def verify(self, tree: TokenTree, logp: torch.Tensor, chance: Chance, position: int) -> Verdict:
        if not tree.is_chain:
            raise ValueError("block verification judges a chain; the tree branches")
        laws, n = Laws(tree, logp), tree.drafted
        prefix = 1.0
        chances, residuals = [1.0], [self.residual(laws, 0, prefix)]
        for i in range(1, n + 1):
            token, law = int(tree.tokens[i]), laws.draft(i)
            proposed = 1.0 if law is None else float(law[token])
            prefix = min(1.0, prefix * float(laws.target(i - 1)[token]) / proposed)
            residuals.append(self.residual(laws, i, prefix))
            chances.append(self.chance_of(float(residuals[i].sum()), prefix) if i < n else prefix)
        # The key names the step: positions that are given up are judged again, by other coins.
        coins = (i for i in range(n, 0, -1) if chance.bernoulli(chances[i], position + i - 1, ("block", position)))
        kept = next(coins, 0)
        # A late token stands behind the last one.
        behind = laws.siblings([kept]) if kept == n else []
        index, rest = sequential_rejection(residuals[kept], behind, Coins(chance, position + kept))
        bonus = chance.categorical(rest, position + kept, "bonus") if index is None else behind[index].token
        return Verdict(list(range(kept + 1)), bonus)

    def residual(self, laws: Laws, node: int, prefix: float) -> torch.Tensor:
        """`[V]` weights of the token to draw if the chain is kept up to a node."""
        target = laws.target(node)
        if node == laws.tree.drafted:
            return target
        law = laws.draft(node + 1)
        drafted = torch.zeros_like(target) if law is None else law
        if law is None:
            drafted[int(laws.tree.tokens[node + 1])] = 1.0
        return (prefix * target - drafted).clamp_min(0)

    def chance_of(self, mass: float, prefix: float) -> float:
        """`h_i` for i < n."""
        whole = mass + 1 - prefix
        return mass / whole if whole >= ROUNDING else 1.0
