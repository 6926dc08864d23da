"""Watch PyTorch's tensors come and go, on any device: how many bytes are alive, and how many were at most."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Watch(TorchDispatchMode):
    """Counts the storages that operations read or write while it is entered.

    What a storage was counted for is taken off again when it is freed. Storages that no operation touches are not
    seen, nor is memory inside a single operation.

    Attributes:
        live: bytes of the storages seen that are still alive.
        peak: most bytes that were alive at once since `restart`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()

    def restart(self) -> int:
        """Forget the peak; returns the bytes that are alive."""
        self.peak = self.live
        return self.live

    def note(self, tensor: torch.Tensor) -> None:
        """Count a tensor's storage, if it is not counted yet."""
        if tensor.is_mkldnn or tensor.is_meta:
            return
        storage = tensor.untyped_storage()
        if storage._cdata in self._known:
            return
        size, key = storage.nbytes(), storage._cdata
        self._known.add(key)
        self._changed(size)
        weakref.finalize(storage, self._gone, key, size).atexit = False

    def _changed(self, size: int) -> None:
        self.live += size
        self.peak = max(self.peak, self.live)

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for part in tree_leaves((args, kwargs, out)):
            if isinstance(part, torch.Tensor):
                self.note(part)
        return out
