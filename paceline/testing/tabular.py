"""A language model that is a table: every conditional distribution is written down, so laws can be computed exactly.

It is driven through the production `CausalModel.score` and `TrieCache`: its "attention" stores a token's id as
the key and its position as the value, and reads the prefix of a node back from the slots its mask lets it see.
A wrong mask, slot, position or gather therefore gives a wrong prefix, hence a wrong law.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from paceline.caches import TrieCache
from paceline.models.causal import CausalModel
from paceline.models.costs import PassCosts
from paceline.models.views import Exit, View

#: `[V]` float64 unnormalised log-probabilities of the token after a prefix.
Table = Callable[[tuple[int, ...]], torch.Tensor]


def random_table(vocabulary: int, seed: int = 0, zeros: int = 0, spread: float = 1.0) -> Table:
    """An unrelated random distribution after every prefix.

    Args:
        vocabulary: V.
        seed: equal seeds give equal tables.
        zeros: tokens of probability 0 after every prefix (which ones differs between prefixes).
        spread: standard deviation of the log-probabilities; large values give nearly greedy tables.
    """

    @cache
    def table(prefix: tuple[int, ...]) -> torch.Tensor:
        generator = np.random.default_rng((seed, *prefix, 1 << 20))
        logits = spread * generator.standard_normal(vocabulary)
        logits[generator.permutation(vocabulary)[:zeros]] = -np.inf
        return torch.from_numpy(logits).log_softmax(-1)

    return table


def allowing(table: Table, tokens: Iterable[int]) -> Table:
    """The table with probability 0 for every other token."""
    allowed = list(tokens)

    @cache
    def restricted(prefix: tuple[int, ...]) -> torch.Tensor:
        logits = table(prefix)
        kept = torch.full_like(logits, -torch.inf)
        kept[allowed] = logits[allowed]
        return kept.log_softmax(-1)

    return restricted


def near(table: Table, name: str) -> Table:
    """A table that leans towards another one; equal names give equal tables."""
    seed = zlib.crc32(name.encode())

    @cache
    def leaning(prefix: tuple[int, ...]) -> torch.Tensor:
        logits = table(prefix)
        return (logits + random_table(len(logits), seed)(prefix)).log_softmax(-1)

    return leaning


class TabularForward:
    """The forward pass: read each node's prefix out of the cache through its mask and look it up.

    A view of the model is a table that leans towards the model's, another one for every view. A hidden state is the
    layer's number and the prefix, padded to a common length.
    """

    kv_dtype = torch.float64

    def __init__(self, table: Table) -> None:
        self.table = table
        self._views: dict[str, Table] = {}

    def quantised(self, bits: int) -> TabularForward:
        """A forward pass with other numbers."""
        return TabularForward(near(self.table, f"{bits} bits"))

    def seen_by(self, view: View | None) -> Table:
        """The table of a view."""
        name = repr(view)
        if view is not None and name not in self._views:
            self._views[name] = near(self.table, name)
        return self.table if view is None else self._views[name]

    def __call__(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        mask: torch.Tensor,
        cache: TrieCache,
        rows: torch.Tensor | None,
        hidden: tuple[int, ...] = (),
        view: View | None = None,
    ) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
        if view is not None and view.states is not None:
            return torch.stack([self._read_out(state) for state in view.states.flatten(0, 1)]), {}
        layer: Any = cache.layers[0]
        stored, where = layer.update(tokens[:, None, :, None].double(), positions[:, None, :, None].double())
        wanted = range(tokens.numel()) if rows is None else rows.tolist()
        prefixes = []
        for at in wanted:
            row, node = divmod(at, tokens.shape[1])
            seen = mask[row, 0, node] == 0
            order = where[row, 0, seen, 0].argsort()
            if where[row, 0, seen, 0][order].tolist() != list(range(len(order))):
                raise AssertionError(f"a node sees positions {where[row, 0, seen, 0].tolist()}, not those of one text")
            prefixes.append(tuple(stored[row, 0, seen, 0][order].long().tolist()))
        table = self.seen_by(view)
        taps = {layer: torch.stack([_state(layer, prefix) for prefix in prefixes]) for layer in hidden}
        return torch.stack([table(prefix) for prefix in prefixes]), taps

    def _read_out(self, state: torch.Tensor) -> torch.Tensor:
        """The law of an inner layer, of its state."""
        layer, *prefix = state.long().tolist()
        return self.seen_by(Exit(layer))(tuple(token for token in prefix if token >= 0))


def _state(layer: int, prefix: tuple[int, ...]) -> torch.Tensor:
    return F.pad(torch.tensor([layer, *prefix], dtype=torch.float64), (0, 63 - len(prefix)), value=-1)


class TabularModel(CausalModel):
    """A `CausalModel` whose every conditional distribution is explicit.

    Args:
        table: gives the log-probabilities after a prefix (prompt included).
        vocabulary: V.
        end_tokens: ids that end a text.
        context: most tokens of a sequence.
        name: for messages.
    """

    def __init__(
        self,
        table: Table,
        vocabulary: int,
        *,
        end_tokens: Sequence[int] = (),
        context: int = 32,
        name: str = "table",
    ) -> None:
        self.table, self.vocab_size, self.context, self.name = table, vocabulary, context, name
        self.forward = TabularForward(table)
        self.device = torch.device("cpu")
        # The first one alone stores anything.
        self.num_layers = 4
        self.windows = {"full_attention": None}
        self.offers = frozenset({"chain", "tree", "views"})
        self.spare = 5
        self.nbytes, self.path = 0, "a table"
        self._ends = frozenset(end_tokens)

    @cached_property
    def costs(self) -> PassCosts:
        """Made up, so that what is decided by them is the same in every run."""
        return PassCosts({1: 1.0, 6: 1.1, 12: 1.5})

    @property
    def end_tokens(self) -> frozenset[int]:
        return self._ends

    def law(self, prefix: Sequence[int]) -> Any:
        """`[V]` float64 probabilities after a prefix."""
        return self.table(tuple(prefix)).softmax(-1)
