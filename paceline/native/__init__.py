"""Small operations of a decoder layer in C, for CPUs; PyTorch computes them where there is no C compiler.

One token of a mid-sized model is some 30 small tensor operations a layer besides the matrix products, and attention
over a few hundred positions. At 573M parameters they take 15 ms of a pass in PyTorch, and 3 here (two Zen 4 cores).

Results are float32 sums in an order that only a token's own path decides (see `kernels.c`), so a token's numbers are
the same bits alone, in a tree or in a batch. They differ from PyTorch's by rounding.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, c_float, c_int, c_int64, c_void_p
from functools import cache, lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from paceline.native.build import Unavailable, load

#: Queries that the kernel works on side by side; `TEAM` in `kernels.c`.
TEAM = 4
_HALF = {torch.float32: 0, torch.bfloat16: 1}


class _Layout(Structure):
    _fields_ = (
        *((name, c_int64) for name in ("teams", "heads", "groups", "queries", "dim", "width", "longest")),
        *((name, c_int64 * 3) for name in ("query", "key", "value")),
        ("mask", c_int64 * 2),
        ("out", c_int64 * 3),
    )


class Seen(NamedTuple):
    """What the queries of a pass see, the same for all layers.

    Attributes:
        mask: `[B, 1, T, S]` float32, added to the scores; None where it adds nothing to any slot that is seen.
        slots: int32, the slots each query sees, in the order of its path, one query after the other.
        first: `[B * T + 1]` int64, where each query's slots begin, and their number.
        longest: most slots that one query sees.
        teams: `[G, 3]` int64, queries that are worked on together: their text, the first one and how many they are.
    """

    mask: Tensor | None
    slots: Tensor
    first: Tensor
    longest: int
    teams: Tensor


class Kernels:
    """The compiled operations. Tensors are on the CPU; those named float32 are, others may be bfloat16 too."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        p, n, i, f = c_void_p, c_int64, c_int, c_float
        self._norm, self._rotate, self._attend = library.rms_norm, library.rotate, library.attend
        self._norm.argtypes = [p, i, p, i, p, f, n, n, i]
        self._rotate.argtypes = [p, i, p, p, p, f, n, n, n, n, i]
        self._attend.argtypes = [p, p, p, p, p, p, p, p, i, POINTER(_Layout), f, f, i]
        for function in (self._norm, self._rotate, self._attend):
            function.restype = None

    def rms_norm(self, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """RMSNorm of `[R, d]` in float32, rounded once to the dtype of `x`; `weight` `[d]` float32."""
        x = x.contiguous()
        out, half = torch.empty_like(x), _HALF[x.dtype]
        rows, size = x.shape
        threads = torch.get_num_threads()
        self._norm(x.data_ptr(), half, out.data_ptr(), half, weight.data_ptr(), epsilon, rows, size, threads)
        return out

    def rotate(self, heads: Tensor, rope: Tensor, turned: int, norms: Tensor | None, epsilon: float) -> Tensor:
        """Rotary positions.

        Args:
            heads: `[R, H, D]`.
            rope: `[R, 2, D]` float32: cosines, and sines with the first half negated.
            turned: how many of the first heads are rotated; the others are copied.
            norms: `[turned, D]` float32, weights of an RMSNorm before it; None: there is no such norm.
            epsilon: of the norm.

        Returns:
            `[R, H, D]` float32.
        """
        rows, count, dim = heads.shape
        heads, out = heads.contiguous(), torch.empty(rows, count, dim)
        weights = None if norms is None else norms.data_ptr()
        numbers = (rows, count, turned, dim, torch.get_num_threads())
        self._rotate(heads.data_ptr(), _HALF[heads.dtype], out.data_ptr(), rope.data_ptr(), weights, epsilon, *numbers)
        return out

    def seen(self, mask: Tensor, hidden: float, queries: tuple[int, ...] | None = None) -> Seen:
        """What an additive mask leaves visible: every slot above `hidden`.

        Args:
            mask: `[B, 1, T, S]` float32.
            hidden: a number.
            queries: of texts of different lengths, how many of the T queries are each one's, B being 1; by default
                there are B texts of T queries each.
        """
        visible = mask > hidden
        counts = visible.sum(-1).flatten()
        first = torch.zeros(len(counts) + 1, dtype=torch.int64)
        torch.cumsum(counts, 0, out=first[1:])
        slots = torch.arange(mask.shape[3], dtype=torch.int32).expand(mask.shape)[visible]
        added = None
        if visible.logical_and(mask).any():
            added = mask if mask.stride(3) == 1 else mask.contiguous()
        return Seen(added, slots, first, int(counts.max()), _teams(queries or (mask.shape[2],) * len(mask)))

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, seen: Seen, scale: float, softcap: float | None, out: Tensor
    ) -> None:
        """Softmax attention, as `paceline.models.attention.attend` describes it; `out` `[B, T, H, Dv]` is written.

        Where texts have different numbers of queries, those of all lie one after the other in a batch of one.
        """
        query, key, value = (x if x.stride(3) == 1 else x.contiguous() for x in (query, key, value))
        _, heads, queries, dim = query.shape
        mask = seen.mask
        layout = _Layout(
            len(seen.teams), heads, heads // key.shape[1], queries, dim, value.shape[3], seen.longest,
            query.stride()[:3], key.stride()[:3], value.stride()[:3],
            (0, 0) if mask is None else (mask.stride(0), mask.stride(2)), (out.stride(0), out.stride(2), out.stride(1)),
        )  # fmt: skip
        tensors = (query, key, value, mask, seen.slots, seen.first, seen.teams, out)
        pointers = [None if x is None else x.data_ptr() for x in tensors]
        threads = torch.get_num_threads()
        self._attend(*pointers, _HALF[out.dtype], layout, scale, softcap or 0.0, threads)


@lru_cache(maxsize=512)
def _teams(queries: tuple[int, ...]) -> Tensor:
    """`Seen.teams` of texts with so many queries each."""
    ends = torch.tensor(queries).cumsum(0).tolist()
    return torch.tensor(
        [
            (text, at, min(TEAM, end - at))
            for text, (end, count) in enumerate(zip(ends, queries, strict=True))
            for at in range(end - count, end, TEAM)
        ]
    )


@cache
def _loaded() -> tuple[Kernels | None, str]:
    try:
        return Kernels(load()), "native, compiled for this machine"
    except Unavailable as error:
        return None, f"PyTorch's: {error}"


def kernels() -> Kernels | None:
    """The compiled operations, or None where there are none."""
    return _loaded()[0]


def reason() -> str:
    """Which kernels are in use, for people, and why no native ones if there are none."""
    return _loaded()[1]
