"""Verifiers: walk a scored tree, return the accepted path and one further token.

Three altitudes. `MatchVerifier` needs only the token that the policy chooses at every node and walks the tree
while a child carries it. `paceline.verifiers.siblings.SiblingVerifier` accepts or refuses the children of a node one
after the other. A general `Verifier` reads whole distributions. Beside them, `GreedyVerifier` is for rules of greedy
decoding that relax it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from paceline.chance import Chance
from paceline.errors import Unsupported
from paceline.tree import TokenTree

if TYPE_CHECKING:
    from paceline.models.causal import CausalModel


@dataclass(frozen=True, slots=True)
class Verdict:
    """Accepted node indices, root first, and the bonus token that follows the last of them.

    `behind` holds nodes whose own choice may follow the bonus token unverified, one after the other, as long as the
    verifier trusts it (`MatchVerifier.trusts`); only lossy verifiers name any.
    """

    path: list[int]
    bonus: int
    behind: Sequence[int] = ()


class Verifier(ABC):
    """Base of all verifiers. Subclasses are frozen dataclasses: their fields are the knobs."""

    #: Laws of drafted tokens that it can judge, the preferred one first (see `paceline.plan.LAWS`).
    judges: ClassVar[tuple[str, ...]] = ("fixed",)
    #: Shapes of tree it can judge.
    shapes: ClassVar[frozenset[str]] = frozenset({"chain", "tree"})
    #: Which choices of a policy it can judge.
    choices: ClassVar[frozenset[str]] = frozenset({"greedy", "sampled"})
    #: Whether it follows the best token of every node when the policy is greedy, as a lossless verifier must;
    #: no distribution leaves the device then. Otherwise `verify_greedy` decides.
    walks_greedily: ClassVar[bool] = True

    @property
    def extends(self) -> bool:
        """Whether it adds a token to a draft that holds; where it does not, the last token of a text can be drafted."""
        return True

    def attach(self, target: CausalModel) -> None:
        """Called with the target before any sequence. Raises `BadRequest` or `Unsupported` on a mismatch."""

    def walk(self, tree: TokenTree, chosen: Sequence[int], chance: Chance, position: int) -> Verdict:
        """Follow the tokens chosen at the nodes from the root while the tree has them.

        Args:
            tree: N drafted tokens under a root.
            chosen: N + 1 tokens, one a node.
            chance, position: as for `verify`.
        """
        node, path = 0, [0]
        while (child := next((c for c in tree.children[node] if tree.tokens[c] == chosen[node]), None)) is not None:
            node = child
            path.append(node)
        return Verdict(path, int(chosen[node]))

    @abstractmethod
    def verify(self, tree: TokenTree, logp: torch.Tensor, chance: Chance, position: int) -> Verdict:
        """Judge one tree.

        Args:
            tree: N drafted tokens under a root, with the laws of sampled nodes.
            logp: `[N + 1, V]` float CPU tensor, the policy's normalised log-distribution at every node.
            chance: the sequence's randomness.
            position: output position of the root's successors (the token at depth d is at `position + d - 1`).
        """

    def verify_greedy(self, tree: TokenTree, logp: torch.Tensor) -> Verdict:
        """Judge one tree under a greedy policy; asked only of verifiers that do not walk greedily.

        Args:
            tree: N drafted tokens under a root.
            logp: `[N + 1, V]` float CPU tensor, log-softmax of the policy's scores at every node (temperature 1).
        """
        raise NotImplementedError(f"{type(self).__name__} has no rule for greedy policies")


class GreedyVerifier(Verifier):
    """A verifier of greedy decoding alone, which need not follow the best tokens; subclasses have `verify_greedy`."""

    judges = ("fixed",)
    choices = frozenset({"greedy"})
    walks_greedily = False

    def verify(self, tree: TokenTree, logp: torch.Tensor, chance: Chance, position: int) -> Verdict:
        raise Unsupported(f"{type(self).__name__} judges greedy decoding only; set temperature=0")


class MatchVerifier(Verifier):
    """A verifier that accepts a child exactly when it carries the token chosen at its parent.

    The choice does not depend on the draft, so the draft may follow any law; tokens picked with the verifier's own
    noise agree most often.
    """

    judges = ("shared", "distinct", "replacement", "chains", "top", "fixed")

    @abstractmethod
    def choose(self, scores: torch.Tensor, chance: Chance, positions: Sequence[int]) -> torch.Tensor:
        """Tokens `[n]` chosen at n nodes of a sequence, on the device of `scores` (no sync).

        Args:
            scores: `[n, V]` unnormalised policy scores.
            chance: the sequence's randomness.
            positions: output position of each node's successor.
        """

    def trusts(self, law: torch.Tensor, text: Sequence[int], unverified: int) -> bool:
        """Whether a token chosen at a node of `Verdict.behind` is emitted though no pass has verified it.

        Args:
            law: `[V]` log-distribution that it was chosen from.
            text: prompt and text, the token last.
            unverified: how many tokens at its end are unverified, this one included.
        """
        return False

    def verify(self, tree: TokenTree, logp: torch.Tensor, chance: Chance, position: int) -> Verdict:
        positions = [position + int(d) for d in tree.depth]
        return self.walk(tree, self.choose(logp, chance, positions).tolist(), chance, position)


def longest_prefix(kept: torch.Tensor, best: torch.Tensor) -> Verdict:
    """A chain up to its first refused token, and the best token in its place or, if none is refused, behind the chain.

    Args:
        kept: `[N]` bool, whether a drafted token in itself is good enough.
        best: `[N + 1]` int64, the best token at the root and after each of them.
    """
    count = int(kept.cumprod(0).sum())
    return Verdict(list(range(count + 1)), int(best[count]))
