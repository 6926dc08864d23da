"""The cache is a trie: rows of a committed trunk and a crown of live nodes.

A row holds one sequence: slots `[0, trunk)` are the committed prefix in order, slots behind it the crown, whose
nodes name their parents. `extend` reserves slots for new nodes and gives their positions and attention mask
(trunk + own ancestors); the model's forward pass then writes keys and values through `update`; `keep` moves an
accepted path into the trunk and forgets the rest; `retain` keeps several branches alive. Storage is static,
`[rows, heads, capacity, dim]` a layer: a step allocates nothing and copies no prefix.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from paceline.caches.rows import Extension, Row
from paceline.errors import BadRequest, OutOfMemory
from paceline.tree import ancestor_matrix

#: Attention length is a multiple of this, and never 256: the float32 matrix product that weighs the values takes
#: another summation order at that one length on x86, which would make a token's logits depend on padding.
BLOCK = 128


def bucket(length: int) -> int:
    """The smallest legal attention length that holds `length` slots."""
    size = -(-length // BLOCK) * BLOCK
    return size + BLOCK if size == 256 else size


class TrieLayer(CacheLayerMixin):
    """Keys and values of one layer, `[rows, heads, capacity, dim]`."""

    def __init__(self, cache: TrieCache) -> None:
        super().__init__()
        self.cache = cache

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        rows, capacity = self.cache.rows, self.cache.capacity
        self.keys = self.cache.zeros(rows, key_states.shape[1], capacity, key_states.shape[3])
        self.values = self.cache.zeros(rows, value_states.shape[1], capacity, value_states.shape[3])
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write `[B, H, T, D]` into the slots reserved by `extend`; returns views `[B, H, S, D]`."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        extension, keys, values = self._reserved()
        if len(extension.starts) == 1:
            start = extension.starts[0]
            keys[:, :, start : start + extension.width] = key_states
            values[:, :, start : start + extension.width] = value_states
        else:
            row, slot = self.cache.write_index
            keys.transpose(1, 2)[row, slot] = key_states.transpose(1, 2).to(keys.dtype)
            values.transpose(1, 2)[row, slot] = value_states.transpose(1, 2).to(values.dtype)
        return keys[:, :, : extension.length], values[:, :, : extension.length]

    def write(self, key_states: torch.Tensor, value_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As `update`, of nodes alone: `[N, H, D]`, those of one row after those of the other, nothing padded."""
        if not self.is_initialized:
            self.lazy_initialization(key_states[None].transpose(1, 2), value_states[None].transpose(1, 2))
        extension, keys, values = self._reserved()
        place = tuple(torch.from_numpy(index).to(self.cache.device) for index in extension.places)
        keys.transpose(1, 2)[place] = key_states.to(keys.dtype)
        values.transpose(1, 2)[place] = value_states.to(values.dtype)
        return keys[:, :, : extension.length], values[:, :, : extension.length]

    def _reserved(self) -> tuple[Extension, torch.Tensor, torch.Tensor]:
        """The new nodes, and the keys and values of their rows."""
        extension = self.cache.pending
        if extension is None:
            raise RuntimeError("TrieCache.update: call extend() before the forward pass")
        assert self.keys is not None
        assert self.values is not None
        rows = slice(extension.first, extension.first + len(extension.starts))
        return extension, self.keys[rows], self.values[rows]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.cache.pending.length if self.cache.pending else query_length, 0

    def get_seq_length(self) -> int:
        return self.cache.pending.starts[0] if self.cache.pending else 0

    def get_max_length(self) -> int:
        return self.cache.limit


class TrieCache(Cache):
    """Rows of trunk and crown behind the four calls `allocate`, `extend`, `keep` / `retain`, `free`.

    Args:
        layers: number of attention layers.
        rows: most rows that may be live at once.
        limit: most committed tokens and live nodes a row may hold.
        dtype: of keys and values.
        device: where they live.
        capacity: slots allocated at first. Rows and slots double as they are needed, up to `rows` and `limit`.

    Attributes:
        chunk: slots by which it grows instead (see `spare`).
    """

    chunk: int | None = None

    def __init__(
        self,
        *,
        layers: int,
        rows: int,
        limit: int,
        dtype: torch.dtype,
        device: torch.device,
        capacity: int = 512,
    ) -> None:
        if rows < 1 or limit < 1:
            raise BadRequest(f"cache: rows={rows}, limit={limit}; both must be at least 1")
        self.max_rows, self.limit = rows, limit
        self.dtype, self.device = dtype, device
        self.rows, self.capacity = 1, bucket(min(capacity, limit))
        self.live: list[Row] = []
        self.pending: Extension | None = None
        super().__init__(layers=[TrieLayer(self) for _ in range(layers)])

    def spare(self, chunk: int) -> None:
        """From now on grow by `chunk` slots and by single rows, and give back what freed rows leave."""
        self.chunk = chunk
        self._release()

    # -- rows ---------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def allocate(self) -> Row:
        """A fresh row behind the live ones.

        Raises:
            RuntimeError: all are taken.
            OutOfMemory: storage could not grow.
        """
        if len(self.live) == self.max_rows:
            raise RuntimeError(f"cache: all {self.max_rows} rows are in use")
        if len(self.live) == self.rows:
            self._resize(self.rows + 1 if self.chunk else min(2 * self.rows, self.max_rows), self.capacity)
        row = Row(len(self.live))
        self.live.append(row)
        return row

    @torch.inference_mode()
    def free(self, row: Row) -> None:
        """Release a row; the last live row moves into its place, so that live rows stay neighbours."""
        last = self.live.pop()
        for layer in self._ready():
            for store in (layer.keys, layer.values):
                if last is not row:
                    store[row.index, :, : last.length] = store[last.index, :, : last.length]
                    store[row.index, :, last.length :].zero_()
                # A masked slot weighs 0, but 0 times a left-over NaN would still poison the next owner.
                store[last.index].zero_()
        if last is not row:
            last.index = row.index
            self.live[row.index] = last
        if self.chunk:
            self._release()

    @torch.inference_mode()
    def copy(self, source: Row, target: Row, length: int | None = None, origin: TrieCache | None = None) -> None:
        """Give `target` the trunk of `source` (its crown is left out).

        Args:
            length: its first slots alone.
            origin: the cache that holds `source`, where it is another one.
        """
        length = source.trunk if length is None else length
        self._grow(length)
        layers: Any = zip(self.layers, (origin or self).layers, strict=True)
        for layer, given in layers:
            if given.is_initialized and not layer.is_initialized:
                layer.lazy_initialization(given.keys, given.values)
            if given.is_initialized:
                layer.keys[target.index, :, :length] = given.keys[source.index, :, :length]
                layer.values[target.index, :, :length] = given.values[source.index, :, :length]
        target.trunk, target.parents = length, []

    # -- one step -----------------------------------------------------------------------------------------

    @torch.inference_mode()
    def extend(self, rows: Sequence[Row], parents: Sequence[Sequence[int] | np.ndarray]) -> Extension:
        """Reserve slots for new nodes of neighbouring rows.

        Args:
            rows: live rows with consecutive indices.
            parents: for each row, the parent of each new node: -1 for the tip of the trunk, otherwise the index
                of a crown node, counting those already live first and then the new ones.

        Raises:
            ValueError: rows are not neighbours, or a row would exceed `limit`.
            OutOfMemory: storage could not grow.
        """
        first = rows[0].index
        if any(row.index != first + i for i, row in enumerate(rows)):
            raise ValueError(f"rows: indices {[row.index for row in rows]} are not consecutive")
        width = max(len(p) for p in parents)
        for row, new in zip(rows, parents, strict=True):
            if row.length + len(new) > self.limit:
                raise ValueError(f"cache: {row.length} + {len(new)} nodes exceed the limit of {self.limit}")
        starts = [row.length for row in rows]
        self._grow(max(starts) + width)
        for row, new in zip(rows, parents, strict=True):
            row.parents.extend(np.asarray(new).tolist())
        self.pending = self._layout(rows, starts, width)
        if len(rows) > 1:
            slots = torch.tensor(starts, device=self.device)[:, None] + torch.arange(width, device=self.device)
            self.write_index = (torch.arange(len(rows), device=self.device)[:, None].expand_as(slots), slots)
        return self.pending

    @torch.inference_mode()
    def keep(self, row: Row, path: Sequence[int]) -> None:
        """Move a path of the crown (root first, each the child of the one before) into the trunk, forget the rest.

        Raises:
            ValueError: `path` does not lead from the trunk's tip through existing nodes.
        """
        above = -1
        for node in path:
            if not 0 <= node < len(row.parents) or row.parents[node] != above:
                raise ValueError(f"path: {list(path)} is not a path of the crown {row.parents}")
            above = node
        self._gather(row, path)
        row.trunk += len(path)
        row.parents = []

    @torch.inference_mode()
    def retain(self, row: Row, nodes: Sequence[int]) -> list[int]:
        """Keep a subset of the crown alive, closed under parents; returns the nodes' new indices.

        Raises:
            ValueError: a node's parent is missing from `nodes`.
        """
        order = sorted(set(nodes))
        renumber = {node: i for i, node in enumerate(order)} | {-1: -1}
        missing = [n for n in order if not 0 <= n < len(row.parents) or row.parents[n] not in renumber]
        if missing:
            raise ValueError(f"nodes: {missing} do not exist in the crown or lack their parents in {order}")
        self._gather(row, order)
        row.parents = [renumber[row.parents[node]] for node in order]
        return [renumber[node] for node in nodes]

    def crop(self, row: Row, trunk: int) -> None:  # type: ignore[override]
        """Forget the crown and every committed slot from `trunk` on."""
        row.trunk, row.parents = min(row.trunk, trunk), []

    def slots(self, length: int) -> int:
        """Slots a row that it allocates for rows of up to `length`."""
        return bucket(-(-length // self.chunk) * self.chunk if self.chunk else length)

    @property
    def nbytes(self) -> int:
        """Bytes of allocated keys and values."""
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self._ready())

    @property
    def largest(self) -> int:
        """Bytes of the largest tensor of keys or values."""
        return max((part.nbytes for layer in self._ready() for part in (layer.keys, layer.values)), default=0)

    # -- internals ----------------------------------------------------------------------------------------

    def zeros(self, *shape: int) -> torch.Tensor:
        """Storage. Raises `OutOfMemory` with the size that was asked for."""
        try:
            return torch.zeros(shape, dtype=self.dtype, device=self.device)
        except (RuntimeError, MemoryError) as error:
            size = int(np.prod(shape)) * self.dtype.itemsize / 2**20
            raise OutOfMemory(
                f"cache: no memory for {shape[0]} rows of {shape[2]} tokens ({size:.0f} MiB more per layer tensor); "
                "lower max_rows, the context or max_new_tokens"
            ) from error

    def _ready(self) -> list[Any]:
        layers: list[Any] = self.layers
        return [layer for layer in layers if layer.is_initialized]

    def _grow(self, length: int) -> None:
        if bucket(length) > self.capacity:
            more = length if self.chunk else max(length, min(2 * self.capacity, self.limit))
            self._resize(self.rows, self.slots(more))

    def _release(self) -> None:
        """Give back what the live rows do not need."""
        rows, capacity = max(1, len(self.live)), self.slots(max((row.length for row in self.live), default=1))
        if not self.live:
            for layer in self._ready():
                layer.keys = layer.values = None
                layer.is_initialized = False
        if (rows, capacity) != (self.rows, self.capacity):
            self._resize(rows, capacity)

    def _resize(self, rows: int, capacity: int) -> None:
        # One tensor after the other, so that only one exists twice. Should an allocation fail, some are larger than
        # `rows` and `capacity` say, and the live rows stay usable.
        for layer in self._ready():
            for name in ("keys", "values"):
                old = getattr(layer, name)
                new = self.zeros(rows, old.shape[1], capacity, old.shape[3])
                shared = (slice(min(rows, len(old))), slice(None), slice(min(capacity, old.shape[2])))
                new[shared] = old[shared]
                setattr(layer, name, new)
                del old
        self.rows, self.capacity = rows, capacity

    def _layout(self, rows: Sequence[Row], starts: list[int], width: int) -> Extension:
        length = bucket(max(starts) + width)
        counts = [row.length - start for row, start in zip(rows, starts, strict=True)]
        if all(row.length == start + width and row.is_chain for row, start in zip(rows, starts, strict=True)):
            # Chains behind their trunks, nothing padded: slot, position and order are one.
            slots = np.arange(length)
            positions = np.array(starts)[:, None] + np.arange(width)
            visible = slots <= positions[:, :, None]
            known = slots * visible[:, -1]
            return Extension(rows[0].index, starts, counts, width, length, positions, visible, known)
        shape = (len(rows), width, length)
        visible = np.zeros(shape, bool)
        positions = np.zeros(shape[:2], np.int64)
        slots = np.zeros((len(rows), length), np.int64)
        for b, (row, start) in enumerate(zip(rows, starts, strict=True)):
            old, end = start - row.trunk, row.length
            visible[b, :, : row.trunk] = True
            depths = np.arange(len(row.parents)) if row.is_chain else np.array(row.depths())
            visible[b, : end - start, row.trunk : end] = ancestor_matrix(row.parents)[old:]
            slots[b, : row.trunk] = np.arange(row.trunk)
            slots[b, row.trunk : end] = row.trunk + depths
            positions[b, : end - start] = slots[b, start:end]
            # Padding looks at itself so that no softmax is empty; nobody looks at padding.
            padding = np.arange(end - start, width)
            visible[b, padding, start + padding] = True
            positions[b, padding] = slots[b, start + padding] = row.trunk
        return Extension(rows[0].index, starts, counts, width, length, positions, visible, slots)

    def _gather(self, row: Row, nodes: Sequence[int]) -> None:
        """Move crown nodes, in ascending order, to the front of the crown."""
        moved = [(i, node) for i, node in enumerate(nodes) if i != node]
        if not moved:
            return
        target = torch.tensor([row.trunk + i for i, _ in moved], device=self.device)
        source = torch.tensor([row.trunk + node for _, node in moved], device=self.device)
        for layer in self._ready():
            for store in (layer.keys[row.index], layer.values[row.index]):
                store.index_copy_(1, target, store.index_select(1, source))
