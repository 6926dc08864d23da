"""Memory for weights in huge pages, where the system has them.

A pass reads every weight once, and so touches each of a large model's 4 KB pages once. Translating their addresses, and
reading pages that lie scattered in the memory, costs a CPU up to a fifth of its bandwidth; not in pages of 2 MB.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
import threading
from collections.abc import Sequence

import torch
from torch import Tensor

#: Bytes of a huge page, and of the address space taken at a time; only what is written to becomes memory.
PAGE, CHUNK = 2 << 20, 64 << 20
#: Tensors begin at multiples of this.
ALIGNMENT = 4096


class Pages:
    """Hands out tensors cut from chunks of memory; a chunk is freed when the last of its tensors is."""

    def __init__(self) -> None:
        self._chunk: mmap.mmap | None = None
        self._used = 0
        self._lock = threading.Lock()

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """An uninitialised tensor on the CPU; PyTorch's own where there are no huge pages to ask for."""
        count = math.prod(shape)
        if not count:
            return torch.empty(shape, dtype=dtype)
        try:
            chunk, at = self._cut(count * dtype.itemsize)
        except OSError:
            return torch.empty(shape, dtype=dtype)
        # The tensor keeps the chunk alive.
        return torch.frombuffer(chunk, dtype=dtype, count=count, offset=at).view(tuple(shape))

    def copy(self, x: Tensor) -> Tensor:
        """A contiguous copy of a tensor on the CPU."""
        return self.empty(x.shape, x.dtype).copy_(x)

    def _cut(self, size: int) -> tuple[mmap.mmap, int]:
        """Memory of `size` bytes: a chunk, and where it begins there. Raises `OSError`."""
        with self._lock:
            if self._chunk is None or self._used + size > len(self._chunk):
                self._chunk, self._used = _mapped(max(size, CHUNK)), 0
            at, self._used = self._used, self._used + -(-size // ALIGNMENT) * ALIGNMENT
            return self._chunk, at


def _mapped(size: int) -> mmap.mmap:
    """A private mapping of at least `size` bytes, in huge pages as they are first written.

    Raises:
        OSError: there is no address space, or the system knows no huge pages.
    """
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        raise OSError("no huge pages")
    chunk = mmap.mmap(-1, -(-size // PAGE) * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    chunk.madvise(mmap.MADV_HUGEPAGE)
    return chunk


def trim() -> None:
    """Give memory that was freed back to the system, where the C library can; it keeps much of what weights leave."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


#: For every model's weights.
WEIGHTS = Pages()
