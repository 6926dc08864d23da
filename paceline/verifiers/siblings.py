"""Sequential rejection over siblings: the one primitive under most lossless verifiers.

Let p be the target's law at a node, `x_1 .. x_k` the tokens of its children in draw order, and `q_i` the law that `x_i`
was drawn from *given* `x_1 .. x_{i-1}`. With r = p at first, for i = 1 .. k:

    accept x_i with probability min(1, r(x_i) / q_i(x_i)), and go on below it;
    otherwise r = norm(max(r - q_i, 0)).

Where all are refused, a token drawn from r ends the walk. What is accepted or drawn has exactly the law p. One draw is
speculative sampling; `q_i = q` for all i is SpecInfer; q without its earlier siblings, renormalised, is sampling
without replacement (recursive rejection, Sequoia). A token that was not drawn is a point mass: it is accepted with
probability r(x_i), and refused it leaves r without x_i.

Why it is exact: whichever x_i is drawn, y is accepted there with probability `min(q_i(y), r(y))`, and what r has beyond
that, `max(r - q_i, 0)`, is what the rest of the list has to bring about.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from paceline.chance import Chance
from paceline.tree import TokenTree
from paceline.verifiers.base import Verdict, Verifier

#: A remainder lighter than this is rounding.
ROUNDING = 1e-12
#: By how much the sum of a reported law may differ from 1.
TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True)
class Sibling:
    """A drafted token that is up for acceptance.

    Attributes:
        node, parent: its index and its parent's in the tree; the late token's index is the one behind the last node's.
        token: its token id.
        law: `[V]` float64, what it was drawn from given its earlier siblings; `None` for a token that was not drawn.
    """

    node: int
    parent: int
    token: int
    law: torch.Tensor | None = None


def sequential_rejection(
    target: torch.Tensor, siblings: Sequence[Sibling], flip: Callable[[float, int], bool]
) -> tuple[int | None, torch.Tensor]:
    """Accept one of the siblings or none.

    Args:
        target: `[V]` float64 law p.
        siblings: in draw order.
        flip: `flip(probability, i)` is the coin of the i-th sibling; values above 1 always accept.

    Returns:
        The index of the accepted sibling, or `None`; and `[V]` float64, the law of the token to draw if none was.
    """
    rest = target
    for i, sibling in enumerate(siblings):
        token, law = sibling.token, sibling.law
        proposed = 1.0 if law is None else float(law[token])
        if flip(float(rest[token]) / proposed, i):
            return i, rest
        left = without(rest, token) if law is None else (rest - law).clamp_min(0)
        mass = float(left.sum())
        if mass >= ROUNDING:
            rest = left / mass
        elif float(rest[token]) > 0:  # both laws are equal but for rounding: rounding refused the token
            return i, rest
    return None, rest


def without(law: torch.Tensor, token: int) -> torch.Tensor:
    """A copy of `[V]` weights with one token's set to 0."""
    left = law.clone()
    left[token] = 0
    return left


class Laws:
    """The laws of a scored tree, `[V]` float64 a node, normalised.

    Args:
        tree: what was drafted.
        logp: `[N + 1, V]`, the policy's log-distribution at every node.

    Raises:
        ValueError: a reported law has another vocabulary.
    """

    def __init__(self, tree: TokenTree, logp: torch.Tensor) -> None:
        self.tree, self.logp = tree, logp
        self._logq = tree.draws.logq.cpu() if tree.draws is not None else None
        if self._logq is not None and self._logq.shape[-1] != logp.shape[-1]:
            raise ValueError(f"draft laws over {self._logq.shape[-1]} tokens, but the target has {logp.shape[-1]}")

    def target(self, node: int) -> torch.Tensor:
        """p after a node."""
        law = self.logp[node].double().exp()
        return law / law.sum()

    def draft(self, node: int) -> torch.Tensor | None:
        """q that a node's token was drawn from; `None` if it was not drawn.

        Raises:
            ValueError: q does not sum to 1, or the token has no probability under it.
        """
        tree = self.tree
        if tree.draws is None or self._logq is None or tree.draws.row[node] < 0:
            return None
        row, token = int(tree.draws.row[node]), int(tree.tokens[node])
        if row >= len(self._logq):
            raise ValueError(f"draft token {token} was drawn, but its law, number {row}, is missing")
        return self.checked(self._logq[row], token)

    def checked(self, logq: torch.Tensor, token: int) -> torch.Tensor:
        """The law of a drawn token from its `[V]` logarithm. Raises `ValueError` as `draft` does."""
        law = logq.double().exp()
        mass = float(law.sum())
        if not abs(mass - 1) <= TOLERANCE:
            raise ValueError(f"the law of draft token {token} sums to {mass:.6g}; a distribution sums to 1")
        if float(law[token]) <= 0:
            raise ValueError(f"draft token {token} has probability 0 under the law it was drawn from")
        return law / mass

    def siblings(self, nodes: Sequence[int]) -> list[Sibling]:
        """The children of some nodes with equal prefixes, in draw order; behind them what was drawn late."""
        children = sorted(child for node in nodes for child in self.tree.children[node])
        tree, last = self.tree, self.tree.drafted
        found = [
            Sibling(child, int(tree.parents[child]), int(tree.tokens[child]), self.draft(child)) for child in children
        ]
        if tree.late is not None and last in nodes:
            token, logq = tree.late
            found.append(Sibling(last + 1, last, token, self.checked(logq, token)))
        return found


class SiblingVerifier(Verifier):
    """A verifier that walks down the tree and at each node accepts one of the children, or none.

    Subclasses say which laws they judge. Children with equal tokens are one prefix: below the accepted one, the
    children of its later twins are further candidates. (Those of an earlier, refused twin are not: whether the accepted
    one was drawn at all may have depended on them.)
    """

    #: How one of the siblings is chosen, as `sequential_rejection`.
    choose = staticmethod(sequential_rejection)

    def verify(self, tree: TokenTree, logp: torch.Tensor, chance: Chance, position: int) -> Verdict:
        laws = Laws(tree, logp)
        node, twins, at = 0, [0], position
        while True:
            siblings = self.candidates(laws.siblings(twins))
            index, rest = self.choose(laws.target(node), siblings, Coins(chance, at))
            if index is None:
                return Verdict(tree.path(node), chance.categorical(rest, at, "bonus"))
            if siblings[index].node == len(tree):  # the late token: no node yet, hence the step's last token
                return Verdict(tree.path(node), siblings[index].token)
            node = siblings[index].node
            twins = [s.node for s in siblings[index:] if s.token == siblings[index].token]
            at += 1

    def candidates(self, siblings: list[Sibling]) -> list[Sibling]:
        """Siblings in the order in which they are tried: that of drawing, unless a law allows another.

        Raises:
            ValueError: their laws are not those that the verifier judges.
        """
        return siblings


@dataclass(frozen=True, slots=True)
class Coins:
    """The independent coins of one output position, as `sequential_rejection` wants them."""

    chance: Chance
    position: int

    def __call__(self, probability: float, index: int) -> bool:
        return self.chance.bernoulli(probability, self.position, ("accept", index))
