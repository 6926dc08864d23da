"""RSD-S: stochastic beam search over the draft, which draws whole paths without replacement.

Every path s of a level has a log-probability phi(s) under the draft and a perturbed one, G(s) (root: 0 and 0). A child
x of s gets a Gumbel variable at location phi(s) + log q(x), conditioned on the largest of its siblings being G(s); the
`width` largest of the level are kept, siblings in descending order. All paths that were ever kept are the tree.

The same variables can be had one after the other, largest first: a node's next child has the value

    G' = mu - log(exp(mu - G) - log u),   mu = phi(s) + log(what is left of q),   u uniform,

a Gumbel variable at mu cut off at G, the value of the child before (the first child has G(s) itself); which token it is
is independent of its value, a draw from what is left of q. So tokens are drawn only where the values, which know
nothing of them, have made a place. For every outcome of the values the tree is then a legal one whose tokens follow
their reported laws, hence the output is exact.

When nothing is drawn (greedy) this is beam search by probability. `width` 1 is an ordinary chain.

Paper: Jeon et al., "Recursive Speculative Decoding: Accelerating LLM Inference via Sampling Without Replacement", 2024;
stochastic beam search: Kool, van Hoof, Welling, "Stochastic Beams and Where to Find Them", 2019.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass

from paceline.errors import BadRequest
from paceline.registry import Guarantee, method
from paceline.trees.base import Tree
from paceline.trees.growth import Growth


@method(
    name="rsd_s",
    kind="tree",
    guarantee=Guarantee.LOSSLESS,
    summary="Stochastic beam search: whole paths without replacement.",
    paper="Recursive Speculative Decoding: Accelerating LLM Inference via Sampling Without Replacement",
    year=2024,
)
@dataclass(eq=False)
class StochasticBeams(Tree):
    """A beam of constant width.

    Attributes:
        width: paths kept at every level.
    """

    width: int = 3
    laws = frozenset({"shared", "distinct", "fixed"})

    def __post_init__(self) -> None:
        if self.width < 1:
            raise BadRequest(f"rsd_s(width={self.width}): an integer of at least 1 is needed")
        self.shape = "tree" if self.width > 1 else "chain"

    def branching(self, nodes: int) -> int:
        return min(self.width, nodes)

    def grow(self, growth: Growth, nodes: int, depth: int) -> Iterator[list[int]]:
        beam = {0: 0.0}
        while beam:
            slots = [(-self._value(growth, node, 0, above), node, 0) for node, above in beam.items()]
            heapq.heapify(slots)
            beam = {}
            while slots and len(beam) < self.width:
                value, node, rank = heapq.heappop(slots)
                child = growth.draw(node) if value < math.inf else None
                if child is not None:
                    beam[child] = -value
                    heapq.heappush(slots, (-self._value(growth, node, rank + 1, -value), node, rank + 1))
            if beam:
                yield list(beam)

    def _value(self, growth: Growth, node: int, rank: int, above: float) -> float:
        """G of the node's next child; `above`: that of the child before, or the node's own."""
        left = growth.promise(node)
        if left <= 0:
            return -math.inf
        if growth.law == "fixed":
            return math.log(left)
        return above if rank == 0 else truncated_gumbel(math.log(left), above, growth.uniform(node, rank))


def truncated_gumbel(location: float, bound: float, uniform: float) -> float:
    """A Gumbel variable at `location`, given that it is at most `bound`, from a uniform number in [0, 1)."""
    low, high = location - bound, math.log(-math.log(max(uniform, 1e-300)))
    # log(exp(low) + exp(high)), which neither overflows nor loses the smaller one
    return location - (max(low, high) + math.log1p(math.exp(-abs(low - high))))
