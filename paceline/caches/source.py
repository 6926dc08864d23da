"""What a decoder reads of an encoder's text: keys and values in the first slots of a trie cache's rows.

A row of an encoder-decoder model holds a whole text: slots `[0, n)` belong to the n tokens of the source, the slots
behind them to the decoder's. Cross attention reads the former and self attention the latter, so one storage a layer
serves both, and rows are allocated, copied, grown and freed as they always are.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin, EncoderDecoderCache

from paceline.caches.trie import TrieCache


class SourceLayer(CacheLayerMixin):
    """Keys and values of the sources of neighbouring rows in one layer.

    Args:
        layer: the trie cache's layer that holds them.
        rows: which rows.
        length: slots of the longest source.
    """

    def __init__(self, layer: Any, rows: slice, length: int) -> None:
        super().__init__()
        self.layer, self.rows, self.length = layer, rows, length
        if layer.is_initialized:
            self._look()

    def _look(self) -> None:
        self.keys = self.layer.keys[self.rows, :, : self.length]
        self.values = self.layer.values[self.rows, :, : self.length]
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        if not self.layer.is_initialized:
            self.layer.lazy_initialization(key_states, value_states)
        self._look()

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write `[B, H, n, D]`, the source as the layer's cross attention sees it; returns the same as it is kept.

        Raises:
            ValueError: heads of another number or size than those of the layer's self attention.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        if (key_states.shape, value_states.shape) != (self.keys.shape, self.values.shape):
            raise ValueError(
                f"cross attention has keys and values {_sizes(key_states, value_states)} (heads x size), "
                f"self attention {_sizes(self.keys, self.values)}; both must be equal"
            )
        self.keys.copy_(key_states)
        self.values.copy_(value_states)
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return self.length


class SourceCache(EncoderDecoderCache):
    """Both caches that a decoder asks for, in the rows of one trie cache that were extended last.

    Args:
        cache: `extend` was called on it.
        length: slots of the longest source among the rows.
        written: whether the sources' keys and values are there already; otherwise the pass writes them.
    """

    def __init__(self, cache: TrieCache, length: int, written: bool) -> None:
        extension = cache.pending
        assert extension is not None
        rows = slice(extension.first, extension.first + len(extension.starts))
        layers: list[Any] = [SourceLayer(layer, rows, length) for layer in cache.layers]
        super().__init__(cache, Cache(layers=layers))
        self.is_updated = dict.fromkeys(range(len(layers)), written)


def _sizes(keys: torch.Tensor, values: torch.Tensor) -> str:
    return f"{keys.shape[1]}x{keys.shape[3]} and {values.shape[1]}x{values.shape[3]}"
