"""Matrices in bfloat16 for CPUs that multiply it natively (AVX512-BF16), by `matrix.c`, and others, by `widened.c`.

A pass over few rows costs what reading the weights costs, and a core that multiplies while it reads asks for too little
at a time: oneDNN gets two thirds of the memory's bandwidth with one row and half of it with eight. The kernel here
fetches ahead of itself and gets nearly all of it, for up to eight rows; with hundreds of rows both compute at the
CPU's limit.

Where the CPU has matrix units (AMX) the same panels are multiplied on them, by `tiles.c`: up to 16 rows cost little
more than one, hundreds what they cost in oneDNN. Its own kernels for them differ with the number of rows, and so do the
last bits of a row; these do not.

CPUs with AVX2 alone have to widen bfloat16 to float32 first, for which oneDNN has nothing fast. Reading half the bytes
is worth it: over up to three rows the memory is the limit there, beyond them computing is, which costs what it costs in
float32.
"""

from __future__ import annotations

from ctypes import CDLL, c_int, c_int64, c_void_p
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from paceline.native import Kernels
from paceline.native.pages import WEIGHTS

#: Outputs a panel has; `WIDE` in `matrix.c`.
WIDE = 32
_OPERATIONS = {"add": 1, "mul": 2}
#: Of both kinds of product, behind the input and the weights.
_AFTER: list[Any] = [c_void_p, c_int, c_void_p, c_int, c_void_p, c_int64, c_int64, c_int64, c_int]


def has_tiles(library: CDLL) -> bool:
    """Whether matrix units multiply panels on this CPU."""
    return bool(library.tiles_available())


def product_of(library: CDLL) -> Any:
    """The function that multiplies panels on this CPU, or None."""
    if has_tiles(library):
        return library.tiles_product
    if library.matrix_available():
        return library.matrix_product
    return library.widened_product if library.widened_available() else None


class Panels:
    """A matrix `[out, in]` in bfloat16, and its bias.

    Attributes:
        least: fewest rows that are multiplied.
        spare: further rows that cost next to nothing beside one.
        shape: (out, in).
        nbytes: bytes it occupies.
    """

    least = 1

    def __init__(self, native: Kernels, weight: Tensor, bias: Tensor | None) -> None:
        self.shape, library = weight.shape, native.library
        self.spare = 15 if has_tiles(library) else 7 if library.matrix_available() else 4
        outputs, inputs = weight.shape
        padded = F.pad(weight, (0, 0, 0, -outputs % WIDE)) if outputs % WIDE else weight
        self._bias = None if bias is None else bias.detach().float()
        self._lay_out(native, padded.view(-1, WIDE, inputs // 2, 2).transpose(1, 2))
        self._run.argtypes = [c_void_p] * (1 + len(self._reads(0))) + _AFTER
        self._run.restype = None

    def _lay_out(self, native: Kernels, panels: Tensor) -> None:
        """Keep `[out / WIDE, in / 2, WIDE, 2]`; sets what multiplies it, and `nbytes`."""
        self._panels = WEIGHTS.copy(panels)
        self._run, self.nbytes = product_of(native.library), self._panels.nbytes

    def _reads(self, rows: int) -> tuple[int, ...]:
        """Addresses of what a product of so many rows needs besides them."""
        return (self._panels.data_ptr(),)

    @staticmethod
    def suits(native: Kernels, weight: Tensor, activation: str) -> bool:
        """Whether this machine has the kernel for it, with this activation behind it."""
        even = weight.dtype == torch.bfloat16 and weight.shape[1] % 2 == 0
        return even and activation in ("none", "swish") and product_of(native.library) is not None

    def times(self, x: Tensor, activation: str = "none", algorithm: str = "") -> Tensor:
        """`[R, in]` to `[R, out]`, with the bias, then the activation ("none" or "swish")."""
        return self._product(x, activation == "swish", None, 0)

    def combined(self, x: Tensor, other: Tensor, operation: str) -> Tensor:
        """The product "add"ed to, or "mul"tiplied by, `other` `[R, out]`."""
        return self._product(x, False, other.contiguous(), _OPERATIONS[operation])

    def dense(self) -> Tensor:
        """`[out, in]`, the same bits."""
        return self._plain().transpose(1, 2).reshape(-1, self.shape[1])[: self.shape[0]]

    def _plain(self) -> Tensor:
        return self._panels

    def _product(self, x: Tensor, swish: bool, other: Tensor | None, operation: int) -> Tensor:
        x = x.contiguous()
        rows, (outputs, inputs) = len(x), self.shape
        out = torch.empty(rows, outputs, dtype=torch.bfloat16)
        bias, operand = (None if t is None else t.data_ptr() for t in (self._bias, other))
        numbers = (rows, inputs, outputs, torch.get_num_threads())
        self._run(x.data_ptr(), *self._reads(rows), bias, swish, operand, operation, out.data_ptr(), *numbers)
        return out
