"""What a model's passes and texts need in bytes, measured on the model at hand.

Besides its weights a model needs keys and values, `slot` bytes for each slot of each text, and while a pass runs, room
for states, masks and scores. That room is measured by watching a few passes and fitting

    room(n, u, S) = base + node n + read u + cell n S + span u S + wide S
    room(1, 0, S) = one + look S

with n the nodes that are scored, u the tokens that are read without being scored, and S the slots that attention looks
at; some of its kernels copy keys and values, but not for a single query. Both are raised until no pass that was watched
needed more. What a draw takes, as opposed to the best token, is measured beside it: policies that sort and cut, and
laws that are handed to a verifier as a whole.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls

from paceline.caches import Row, TrieCache
from paceline.caches.trie import bucket
from paceline.errors import Unsupported
from paceline.memory.watch import Watch
from paceline.policies.base import Context
from paceline.requests import Sampling
from paceline.settings import build_pipeline
from paceline.tree import TokenTree

#: Nodes of the passes that are watched, tokens before them, which nearly fill their slots, and how many are read alone.
NODES, CONTEXTS, PARTS = (1, 9, 17), (111, 367), (16, 48)
#: More than the fit says, for passes that it does not meet.
MARGIN = 1.02


@dataclass(frozen=True)
class Footprint:
    """Bytes that a model needs beside its weights.

    Attributes:
        slot: of the keys and values of one slot of a text.
        tensor: the largest share of it in one tensor; these grow one after the other.
        base, node, read, cell, span, wide, one, look: of a pass, see above.
        draw: more of each scored node, where tokens are drawn.
    """

    slot: float
    tensor: float
    base: float
    node: float
    read: float
    cell: float
    span: float
    wide: float
    one: float
    look: float
    draw: float

    def room(self, nodes: int, read: int, slots: int, texts: int = 1, drawn: bool = False) -> float:
        """Bytes of a pass over some texts that scores nodes, reads tokens, and looks at so many slots of each."""
        rows, drawing = nodes + read, nodes * self.draw * drawn
        if rows <= texts:
            return MARGIN * (rows * (self.one + self.look * slots) + drawing)
        attention = slots * (self.cell * nodes + self.span * read + self.wide * texts)
        return MARGIN * (self.base + nodes * self.node + read * self.read + attention + drawing)


@torch.inference_mode()
def measure(model: Any) -> Footprint:
    """Watch a few passes over random tokens; it takes as long as reading some 800.

    Args:
        model: a `CausalModel`.

    Raises:
        Unsupported: it has an encoder, or keeps other states than keys and values.
    """
    cache = model.new_cache(1, capacity=1)
    other = "it has an encoder" if model.encoded(2) else "it keeps other states than keys and values"
    if model.encoded(2) or not isinstance(cache, TrieCache):
        raise Unsupported(f"memory: what {model.name} needs cannot be foretold, since {other}; leave memory= out")
    most = max(1, min(model.longest, model.context // 2))
    passes: list[tuple[int, int, int, int]] = []
    draw, row = 0.0, cache.allocate()
    for length in sorted({min(length, most) for length in CONTEXTS}, reverse=True):
        watched, drawn = _watched(model, cache, row, length)
        passes, draw = passes + watched, max(draw, drawn)
    scored, read, slots, found = np.array(passes, float).T
    rows = scored + read
    ones = np.ones_like(rows)
    several = _fitted(np.stack([ones, scored, read, scored * slots, read * slots, slots], 1)[rows > 1], found[rows > 1])
    single = _fitted(np.stack([ones, slots], 1)[rows == 1], found[rows == 1])
    stored = cache.rows * cache.capacity
    names = ("base", "node", "read", "cell", "span", "wide", "one", "look")
    room = dict(zip(names, several + single, strict=True))
    return Footprint(slot=cache.nbytes / stored, tensor=cache.largest / stored, draw=draw, **room)


def _watched(model: Any, cache: TrieCache, row: Row, length: int) -> tuple[list[tuple[int, int, int, int]], float]:
    """(n, u, S, bytes) of passes over and behind so many tokens, and what a draw takes a node."""
    most = min(max(NODES), model.limit(length) - length)
    tokens = np.random.default_rng(0).integers(0, model.vocab_size, max(CONTEXTS) + max(NODES)).tolist()
    row.prompt = length

    def peak(work: Callable[[], object], before: int) -> int:
        """Bytes that some work needs at most, beside what it leaves behind the first time: storage and tables."""
        with Watch() as watch:
            for _ in range(2):
                cache.crop(row, before)
                held = watch.restart()
                work()
        return watch.peak - held

    def scored(nodes: int) -> torch.Tensor:
        tree = TokenTree.chain(tokens[length], tokens[length + 1 : length + nodes])
        return model.score(cache, [row], [tree]).logits

    cache.crop(row, length)
    model.prefill(cache, row, tokens[row.trunk : length])  # a longer context was there before, or nothing
    passes = []
    for part in sorted({min(part, length) for part in PARTS}):
        found = peak(lambda n=length - part: model.prefill(cache, row, tokens[n:length]), length - part)  # type: ignore[misc]
        passes.append((1, part - 1, bucket(length), found))
    for nodes in sorted({min(nodes, most) for nodes in NODES}):
        best = peak(lambda n=nodes: scored(n).argmax(-1), length)  # type: ignore[misc]
        passes.append((nodes, 0, bucket(length + nodes), best))
    drawn = peak(lambda: _draw(model, scored(most)), length)
    return passes, max(0.0, (drawn - best) / most)


def _draw(model: Any, logits: torch.Tensor) -> torch.Tensor:
    """As much as a step may make of the scores: flat ones are sorted and cut, and the whole law goes to the host."""
    pipeline = build_pipeline(Sampling(temperature=100.0, options={"top_p": 0.9}))
    state = pipeline.start(Context((), model.vocab_size, frozenset(), model.device))
    scores = pipeline.transform(logits, [state] * len(logits))
    return torch.cat([pipeline.distribution(scores).flatten().double()]).cpu().view(len(scores), -1)


def _fitted(features: np.ndarray, found: np.ndarray) -> list[float]:
    """Non-negative weights of the features `[m, k]`, the first of which is 1, so that none of m passes needed more."""
    weights, _ = nnls(features, found)
    weights[0] += max(0.0, float((found - features @ weights).max()))
    return list(weights.tolist())
