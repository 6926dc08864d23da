"""Matrices in bfloat16 that occupy 12 bits a weight, for passes that cost what reading the weights costs.

Half of a bfloat16 number is its exponent, and a model's weights have few of them: 32 x 32 neighbours have some ten.
Instead of 8 bits for each exponent these matrices keep 4, its place in a table of the block's own (as entropy coding
does for GPUs in "70% Size, 100% Accuracy: Lossless LLM Compression via Dynamic-Length Float", Zhang et al. 2025, but
with codes of one length, which a CPU takes apart in registers, while it multiplies). Nothing is lost: the weights, and
so the products, are the same bits as those of `Panels`. The rare block with more than 16 exponents is kept as it was.

With one to ten rows a product takes a fifth to a third less time than in 16 bits where the weights come from memory.
Where they come from a cache it takes up to a tenth longer, so small models are not laid out like this. On matrix units,
by `tiles.c`, it is a fifth less with one row, and no more than in 16 bits with any number of them.
"""

from __future__ import annotations

import threading
from ctypes import CDLL, c_int, c_int64, c_void_p
from functools import cache

import torch
from torch import Tensor

from paceline.native import Kernels
from paceline.native.matrix import WIDE, Panels, has_tiles
from paceline.native.pages import WEIGHTS, Pages

#: Inputs of a block, and weights; `INPUTS` and `BLOCK` in `compact.h`.
INPUTS = 32
BLOCK = INPUTS * WIDE
#: Up to so many rows each thread copies for itself, without matrix units; `MOST` in `compact.c`.
MOST = 12

_LOCAL = threading.local()


def _room(count: int) -> int:
    """The address of room for so many numbers of 2 bytes, of this thread: large ones are slow to allocate anew."""
    room: Tensor | None = getattr(_LOCAL, "room", None)
    if room is None or len(room) < count:
        _LOCAL.room = room = torch.empty(count, dtype=torch.bfloat16)
    return room.data_ptr()


@cache
def _declared(library: CDLL) -> CDLL:
    """The library, with the types of its functions."""
    sizes = [c_int64, c_int64]
    library.compact_bytes.argtypes, library.compact_bytes.restype = sizes, c_int64
    library.compact_pack.argtypes = [c_void_p, *sizes, c_void_p, c_void_p, c_int]
    library.compact_spare.argtypes = [c_void_p, *sizes, c_void_p, c_void_p]
    library.compact_unpack.argtypes = [c_void_p, c_void_p, *sizes, c_void_p, c_int]
    for function in (library.compact_pack, library.compact_spare, library.compact_unpack):
        function.restype = None
    return library


class CompactPanels(Panels):
    """A matrix `[out, in]` in bfloat16, laid out in 12 bits a weight, and its bias."""

    @staticmethod
    def suits(native: Kernels, weight: Tensor, activation: str) -> bool:
        """Whether this machine has the kernel for it, with this activation behind it."""
        whole = weight.shape[1] % INPUTS == 0 and bool(native.library.compact_available())
        return whole and Panels.suits(native, weight, activation)

    def _lay_out(self, native: Kernels, panels: Tensor) -> None:
        library, inputs = _declared(native.library), self.shape[1]
        # In pages of its own, which go back to the system at once: the heap would keep the room of each matrix.
        plain, counts = Pages().copy(panels), torch.empty(len(panels), dtype=torch.int64)
        self._library = library
        self._panels = WEIGHTS.empty((library.compact_bytes(inputs, self.shape[0]),), torch.uint8)
        source = (plain.data_ptr(), len(plain), inputs, self._panels.data_ptr())
        library.compact_pack(*source, counts.data_ptr(), torch.get_num_threads())
        self._spare = torch.empty(int(counts.sum()), BLOCK, dtype=torch.bfloat16)
        if len(self._spare):
            library.compact_spare(*source, self._spare.data_ptr())
        self._weights = self._panels.data_ptr(), self._spare.data_ptr()
        self._tiles = has_tiles(library)
        self._run = library.tiles_compact_product if self._tiles else library.compact_product
        self.nbytes = self._panels.nbytes + self._spare.nbytes

    def _reads(self, rows: int) -> tuple[int, ...]:
        if self._tiles:
            return self._weights
        copies = torch.get_num_threads() if rows <= MOST else 1
        return (*self._weights, _room(copies * rows * self.shape[1]))

    def _plain(self) -> Tensor:
        plain = torch.empty(-(-self.shape[0] // WIDE), self.shape[1] // 2, WIDE, 2, dtype=torch.bfloat16)
        numbers = len(plain), self.shape[1], plain.data_ptr(), torch.get_num_threads()
        self._library.compact_unpack(*self._weights, *numbers)
        return plain
