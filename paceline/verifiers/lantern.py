"""LANTERN: a drafted token borrows the probability of tokens that mean nearly the same.

Image tokens have many near twins among which the target spreads its probability, so exact verification refuses most
drafts. For a drafted token x take its nearest neighbours in order of distance while their probability together stays at
most delta; call them A(x). The relaxed law is

    p_x(x) = p(x) + p(A),    p_x(A) = 0,    p_x = p elsewhere,    so that TV(p_x, p) = p(A) <= delta

A token of probability 0 borrows nothing.

Accept x with probability `min(1, p_x(x) / q(x))`, else go on with `norm(max(p_x - q, 0))`, as `sequential_rejection`.
A delta above 1 is read as a multiple: `p(A) <= (delta - 1) p(x)`. Under a greedy policy x is accepted if it is the
best token of p_x, with p at temperature 1. The bound holds for each drafted token's law; the law of what is emitted
may differ from p by more.

Distances come as a table of neighbours, such as those of an image tokenizer's codebook, or are those of the rows of the
target's input embedding (L2), where that is asked for: words that lie near one another there need not be alike.

Paper: Jang et al., "LANTERN: Accelerating Visual Autoregressive Models with Relaxed Speculative Decoding", 2025.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from paceline.errors import BadRequest, Unsupported
from paceline.models.causal import CausalModel
from paceline.registry import Guarantee, method
from paceline.tree import TokenTree
from paceline.verifiers.base import Verdict
from paceline.verifiers.siblings import Sibling, SiblingVerifier, sequential_rejection

#: The table that stands for the target's input embedding.
EMBEDDING = "embedding"


@method(
    name="lantern",
    kind="verifier",
    guarantee=Guarantee.LOSSY,
    summary="A drafted token borrows the probability of its nearest neighbours, up to delta.",
    paper="LANTERN: Accelerating Visual Autoregressive Models with Relaxed Speculative Decoding",
    year=2025,
    needs={"embeddings"},
    knob="delta",
)
@dataclass(eq=False)
class Lantern(SiblingVerifier):
    """Sequential rejection with a relaxed target law.

    Attributes:
        delta: most probability borrowed; 0 is lossless, above 1 a multiple of the token's own probability.
        neighbours: how many nearest tokens may lend (K), fewer than the vocabulary has.
        table: `[V, >= K]` integers, each token's neighbours, nearest first and without itself, or a `.npy` file of
            them; `"embedding"`: found in the target's embedding, a token's when it is first drafted. There is no
            default.
    """

    delta: float = 0.1
    neighbours: int = 1000
    table: Any = None
    _vectors: torch.Tensor | None = field(init=False, repr=False, default=None)
    _known: dict[int, torch.Tensor] = field(init=False, repr=False, default_factory=dict)

    judges = ("distinct", "replacement", "fixed")
    walks_greedily = False

    def __post_init__(self) -> None:
        if not self.delta >= 0:
            raise BadRequest(f"lantern(delta={self.delta}): a number of at least 0 is needed")
        if self.neighbours < 1:
            raise BadRequest(f"lantern(neighbours={self.neighbours}): an integer of at least 1 is needed")

    def attach(self, target: CausalModel) -> None:
        if self.neighbours >= target.vocab_size:
            raise BadRequest(
                f"lantern(neighbours={self.neighbours}): fewer than the vocabulary's {target.vocab_size} are needed"
            )
        if self.table is None:
            raise BadRequest(
                "lantern: which tokens are near one another is not known; give table=, an array or a .npy file of each "
                "token's neighbours, or table='embedding' for the nearest in the target's input embedding"
            )
        self._known = {}
        if not (isinstance(self.table, str) and self.table == EMBEDDING):
            table = read_table(self.table, target.vocab_size, self.neighbours)
            self._known = dict(enumerate(table[:, : self.neighbours]))
            return
        module = getattr(target, "module", None)
        if module is None:
            raise Unsupported(f"lantern: {target.name} has no embedding to measure distances in; give a table")
        self._vectors = module.get_input_embeddings().weight[: target.vocab_size].detach()

    def near(self, token: int) -> torch.Tensor:
        """`[K]` int64 neighbours of a token, nearest first, without itself."""
        if token not in self._known:
            assert self._vectors is not None
            vectors = self._vectors.float()
            distances = (vectors - vectors[token]).norm(dim=-1)
            distances[token] = torch.inf
            self._known[token] = distances.topk(self.neighbours, largest=False).indices.cpu()
        return self._known[token]

    def relaxed(self, law: torch.Tensor, token: int) -> torch.Tensor:
        """`[V]` law p_x for a drafted token x."""
        if float(law[token]) <= 0:  # ruled out by the policy, or refused before
            return law
        near = self.near(token)
        limit = self.delta if self.delta <= 1 else (self.delta - 1) * float(law[token])
        lenders = near[law[near].cumsum(0) <= limit]
        changed = law.clone()
        changed[token] += law[lenders].sum()
        changed[lenders] = 0
        return changed

    def choose(
        self, target: torch.Tensor, siblings: Sequence[Sibling], flip: Callable[[float, int], bool]
    ) -> tuple[int | None, torch.Tensor]:
        rest = target
        for i, sibling in enumerate(siblings):
            law = self.relaxed(rest, sibling.token)
            index, rest = sequential_rejection(law, [sibling], lambda p, _, i=i: flip(p, i))  # type: ignore[misc]
            if index is not None:
                return i, rest
        return None, rest

    def verify_greedy(self, tree: TokenTree, logp: torch.Tensor) -> Verdict:
        node, best = 0, logp.argmax(-1).tolist()
        while True:
            law = logp[node].double().exp()
            # The best token itself comes first, then whatever becomes the best by what it borrows.
            children = sorted(tree.children[node], key=lambda child: int(tree.tokens[child]) != best[node])
            tokens = ((child, int(tree.tokens[child])) for child in children)
            child = next((child for child, token in tokens if int(self.relaxed(law, token).argmax()) == token), None)
            if child is None:
                return Verdict(tree.path(node), best[node])
            node = child


def read_table(table: Any, vocabulary: int, neighbours: int) -> torch.Tensor:
    """`[V, >= K]` int64 neighbours. Raises `BadRequest` for a file, shape or entry that is none."""
    if isinstance(table, str | Path):
        try:
            table = np.load(Path(table).expanduser(), allow_pickle=False)
        except (OSError, ValueError) as error:
            raise BadRequest(f"lantern: table {table!r} cannot be read: {error}") from error
    try:
        found = torch.as_tensor(table)
    except (RuntimeError, TypeError, ValueError) as error:
        raise BadRequest(f"lantern: table {table!r:.80} is no array: {error}") from error
    if found.is_floating_point() or found.ndim != 2 or len(found) != vocabulary or found.shape[1] < neighbours:
        raise BadRequest(
            f"lantern: a table of shape {tuple(found.shape)}, {found.dtype}; integers of shape "
            f"({vocabulary}, at least {neighbours}) are needed"
        )
    if int(found.min()) < 0 or int(found.max()) >= vocabulary:
        raise BadRequest(f"lantern: the table holds ids from {int(found.min())} to {int(found.max())}")
    if bool((found == torch.arange(vocabulary)[:, None]).any()):
        raise BadRequest("lantern: the table holds a token among its own neighbours; leave it out")
    return found.long()
