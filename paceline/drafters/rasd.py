"""RASD: one tree from a draft model's guesses and from retrieved continuations.

A draft model guesses well everywhere, but not far; what was said before in a like place is often said again for long.
So the draft model grows its tree, a retriever copies, and both are fused:

1. Pruning, by the draft's own law q after the root: a retrieved branch stays if its first token is among the `top`
   most likely ones; branches are ranked by `q(first token) * number of retrieved continuations in them`, and the
   best `nodes` nodes are kept. A continuation that was found five times counts five times, where the retriever says
   so (`TokenTree.counts`: `ngram`, `rest`), else its tree's paths are counted. (The paper's exact rule and constants
   are not confirmed.)
2. Fusion, by longest matching prefix: a retrieved path follows the nodes of the tree while their tokens agree; the rest
   of it hangs under the last one.

What the draft model drew keeps its law and its place. Retrieved tokens are point masses, chosen after a look at what
was drawn, so they come behind it in every list of siblings; in that order a verifier that tries siblings one after the
other is exact. How many nodes the draft model may grow does not depend on what it draws.

Paper: Quan et al., "RASD: Retrieval-Augmented Speculative Decoding", 2025.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from paceline.budgets import check_budgets
from paceline.drafters.draft import DraftModel
from paceline.drafters.ensemble import Budget, Ensemble, built
from paceline.errors import BadRequest
from paceline.models.causal import CausalModel
from paceline.registry import Guarantee, method
from paceline.sequence import Sequence
from paceline.tree import Draws, TokenTree

#: Laws whose siblings may be followed by tokens that were not drawn.
MIXED = frozenset({"shared", "distinct", "replacement", "fixed"})


@method(
    name="rasd",
    kind="drafter",
    guarantee=Guarantee.LOSSLESS,
    summary="Fuses a draft model's tree with retrieved continuations that the draft finds likely.",
    paper="RASD: Retrieval-Augmented Speculative Decoding",
    year=2025,
    needs={"second_model"},
)
@dataclass(eq=False)
class RASD(Ensemble):
    """A draft model's tree and a retriever's, as one.

    Attributes:
        draft: a draft model with a tree (`specdec` and `rsd_s(width=1)` are chains).
        retrieve: a drafter that copies, such as `ngram(candidates=3)` or `suffix`.
        top: a retrieved branch must begin with one of so many most likely tokens of the draft model.
        nodes: most retrieved nodes; by default as many as ride along with the target's pass.
    """

    draft: Any = "draft(tree=dyspec(threshold=0.1))"
    retrieve: Any = "ngram(candidates=3)"
    top: int = 8
    nodes: int | None = None
    shape: str = field(init=False, repr=False, default="tree")
    drafts: frozenset[str] = field(init=False, repr=False, default=MIXED)
    _spare: int = field(init=False, repr=False, default=1)
    _vocabulary: int = field(init=False, repr=False, default=0)

    def __post_init__(self) -> None:
        if self.top < 1:
            raise BadRequest(f"rasd(top={self.top}): an integer of at least 1 is needed")
        if self.nodes is not None and self.nodes < 0:
            raise BadRequest(f"rasd(nodes={self.nodes}): an integer of at least 0 is needed")
        draft, retrieve = built(self.draft), built(self.retrieve)
        if not isinstance(draft, DraftModel) or draft.tree is None:
            raise BadRequest(
                f"rasd(draft={self.draft}): a draft model with a tree is needed, such as draft(tree=dyspec)"
            )
        if retrieve.drafts != {"fixed"}:
            raise BadRequest(
                f"rasd(retrieve={self.retrieve}): it draws tokens; one that copies is needed, such as ngram"
            )
        draft.drafts = self.drafts = draft.drafts & MIXED
        self.members = (draft, retrieve)

    def attach(self, target: CausalModel) -> None:
        check_budgets("rasd", self, target, "nodes")
        super().attach(target)
        self._spare, self._vocabulary = target.spare, target.vocab_size

    def propose(self, sequences: Seq[Sequence], budget: Seq[Budget]) -> list[TokenTree]:
        retrieved = self.ask(1, sequences, budget)
        for tree, (_, depth) in zip(retrieved, budget, strict=True):
            self._check(tree, depth)
        # Room for what was retrieved is set aside before anything is drawn; the draft model has the rest, and one
        # node at least.
        most = self._spare if self.nodes is None else self.nodes
        kept = [min(most, tree.drafted, max(nodes - 1, 0)) for tree, (nodes, _) in zip(retrieved, budget, strict=True)]
        left = [(nodes - extra, depth) for extra, (nodes, depth) in zip(kept, budget, strict=True)]
        grown = self.ask(0, sequences, left)
        return [
            fuse(tree, copies, prune(copies, sequence.drafts.states[0].first, self.top), extra)
            for sequence, tree, copies, extra in zip(sequences, grown, retrieved, kept, strict=True)
        ]

    def _check(self, tree: TokenTree, depth: int) -> None:
        if tree.drafted and int(tree.depth.max()) > depth:
            raise ValueError(f"rasd: {self.retrieve} drafted {int(tree.depth.max())} tokens ahead; {depth} can be used")
        if int(tree.tokens.max()) >= self._vocabulary:
            raise ValueError(f"rasd: {self.retrieve} drafted token {int(tree.tokens.max())} of {self._vocabulary}")


def prune(retrieved: TokenTree, law: torch.Tensor | None, top: int) -> list[int]:
    """The retrieved nodes in order of their worth, parents before children.

    Args:
        retrieved: the retriever's tree.
        law: `[V]` the draft's log-law after the root; `None`: unknown, every branch counts by its continuations.
        top: how many of its tokens a branch may begin with.

    Returns:
        Indices of nodes; branches that the draft finds unlikely are left out.
    """
    likely = None
    if law is not None:
        best = law.topk(min(top, len(law)))
        likely = dict(zip(best.indices.tolist(), best.values.exp().tolist(), strict=True))
    ranked: list[tuple[float, list[int]]] = []
    for first in retrieved.children[0]:
        branch = np.flatnonzero(retrieved.ancestors[:, first]).tolist()
        if retrieved.counts is None:
            found = sum(not retrieved.children[node] for node in branch)
        else:
            found = int(retrieved.counts[first])
        chance = 1.0 if likely is None else likely.get(int(retrieved.tokens[first]), 0.0)
        if chance > 0:
            ranked.append((chance * found, branch))
    ranked.sort(key=lambda item: -item[0])
    return [node for _, branch in ranked for node in branch]


def fuse(tree: TokenTree, retrieved: TokenTree, order: Seq[int], most: int) -> TokenTree:
    """A tree with retrieved paths: point masses behind its own nodes, where it does not have them already.

    Args:
        tree: keeps its nodes, their numbers and laws.
        retrieved: a tree under the same root.
        order: nodes of it, parents before children, the most valuable first; probes are left out.
        most: new nodes at most.
    """
    child = {
        (above, int(tree.tokens[node])): node for above, below in enumerate(tree.children) for node in reversed(below)
    }
    tokens, parents, place = tree.tokens.tolist(), tree.parents.tolist(), {0: 0}
    for node in order:
        above, token = place.get(int(retrieved.parents[node])), int(retrieved.tokens[node])
        if above is None or (retrieved.probe is not None and retrieved.probe[node]):
            continue
        if (above, token) not in child:
            if len(tokens) - len(tree) == most:
                continue
            child[above, token] = len(tokens)
            tokens.append(token)
            parents.append(above)
        place[node] = child[above, token]
    new = len(tokens) - len(tree)
    if not new:
        return tree
    draws = None if tree.draws is None else Draws(tree.draws.logq, np.pad(tree.draws.row, (0, new), constant_values=-1))
    probe = None if tree.probe is None else np.pad(tree.probe, (0, new))
    return TokenTree(np.array(tokens), np.array(parents), draws, _odds(tree, retrieved, place, parents), probe=probe)


def _odds(tree: TokenTree, retrieved: TokenTree, place: dict[int, int], parents: Seq[int]) -> np.ndarray | None:
    """Chances of the fused nodes: a copied token is as likely after its parent as the retriever holds it to be."""
    if tree.odds is None or retrieved.odds is None:
        return None
    copied = {at: node for node, at in place.items()}
    odds = tree.odds.tolist()
    for at in range(len(tree), len(parents)):
        node = copied[at]
        before = float(retrieved.odds[retrieved.parents[node]])
        odds.append(odds[parents[at]] * (float(retrieved.odds[node]) / before if before > 0 else 0.0))
    return np.array(odds)
