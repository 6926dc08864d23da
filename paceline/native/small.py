"""A very small plain Llama, the kind that drafts, run on a CPU by one call of C a pass (`small.c`).

One token of a million-parameter model is microseconds of arithmetic, and a pass of it in Python is a hundred calls.
The weights stay in bfloat16 where that loses nothing: a draft's passes are short, so what counts is how much has to
come back into the CPU's cache after each pass of the target.
"""

from __future__ import annotations

from ctypes import POINTER, Structure, byref, c_float, c_int64, c_void_p
from typing import Any

import numpy as np
import torch
from torch import Tensor

from paceline.models.attention import HIDDEN
from paceline.models.config import tabulated
from paceline.models.fused import rope_table
from paceline.native import Kernels
from paceline.native.pages import WEIGHTS

#: Outputs a panel of a matrix has; `PANEL` in `small.c`.
PANEL = 64


class _CLayer(Structure):
    _fields_ = tuple(
        (name, c_void_p) for name in ("qkv", "o", "gate", "up", "down", "before", "between", "keys", "values")
    )


class _CShape(Structure):
    _fields_ = (
        *(
            (name, c_int64)
            for name in (
                "layers", "rows", "hidden", "queries", "keys", "dim", "inner", "vocabulary", "half", "wanted",
                "longest", "threads", "cache_row", "cache_head",
            )
        ),
        *((name, c_float) for name in ("epsilon", "scale")),
    )  # fmt: skip


class _CPass(Structure):
    _fields_ = tuple((name, c_void_p) for name in ("rope", "cache_rows", "places", "slots", "first", "wanted"))


class SmallLlama:
    """The forward pass of a small plain Llama (`paceline.drafters.lean.suits`); it copies the weights.

    Attributes:
        dtype: of the copy: bfloat16 if every weight is one.

    Raises:
        ValueError: its layers differ in an epsilon.
    """

    kv_dtype = torch.float32

    def __init__(self, module: Any, native: Kernels) -> None:
        body, attention = module.model, module.model.layers[0].self_attn
        norms = [body.norm, *(n for x in body.layers for n in (x.input_layernorm, x.post_attention_layernorm))]
        if len({float(norm.variance_epsilon) for norm in norms}) > 1:
            raise ValueError("module: its norms differ in epsilon")
        linears = [x for x in module.modules() if isinstance(x, torch.nn.Linear)]
        half = all(torch.equal(x.weight, x.weight.bfloat16().to(x.weight.dtype)) for x in linears)
        self.dtype = dtype = torch.bfloat16 if half else torch.float32
        self._run = native.library.small_llama
        self._run.argtypes = [POINTER(_CLayer), POINTER(_CShape), POINTER(_CPass), *[c_void_p] * 5]
        self._run.restype = None
        self._table = body.embed_tokens.weight.detach().float().numpy()
        self._norm = body.norm.weight.detach().float().contiguous()
        self._head = _panels(module.lm_head.weight, dtype)
        self._weights = [_weights(layer, dtype) for layer in body.layers]
        self._layers = (_CLayer * len(self._weights))(
            *(_CLayer(**{name: x.data_ptr() for name, x in layer.items()}) for layer in self._weights)
        )
        dim = int(attention.head_dim)
        self._shape = _CShape(
            layers=len(self._weights),
            hidden=self._table.shape[1],
            queries=attention.q_proj.out_features // dim,
            keys=attention.k_proj.out_features // dim,
            dim=dim,
            inner=body.layers[0].mlp.down_proj.in_features,
            vocabulary=module.lm_head.out_features,
            half=half,
            epsilon=float(body.norm.variance_epsilon),
            scale=float(attention.scaling),
        )
        self._rotary = body.rotary_emb
        self._rope = rope_table(self._rotary, tabulated(module.config)).numpy()

    def __call__(
        self,
        tokens: Tensor,
        positions: Tensor,
        mask: Any,
        cache: Any,
        rows: Tensor | None,
        hidden: tuple[int, ...] = (),
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Logits `[N, V]` of `[B, T]` tokens, all or those at the flat indices `rows`; no `hidden` states."""
        visible = mask.numpy()[:, 0] > HIDDEN
        ids, at, visible = tokens.numpy().ravel(), positions.numpy().ravel(), visible.reshape(-1, visible.shape[-1])
        wanted = np.arange(len(at)) if rows is None else rows.numpy()
        real = cache.pending.real
        if real is not None:  # what fills up the rows of texts with fewer tokens is not computed
            ids, at, visible, wanted = ids[real], at[real], visible[real], np.searchsorted(real, wanted)
        if (last := int(at.max())) >= len(self._rope):
            self._rope = rope_table(self._rotary, 2 * last).numpy()
        counts = visible.sum(-1)
        first = np.concatenate([[0], counts.cumsum()])
        x, rope, slots = self._table[ids], self._rope[at], visible.nonzero()[1].astype(np.int32)
        where, places = cache.pending.places
        where = where + cache.pending.first
        shape = self._shape
        shape.rows, shape.wanted = len(at), len(wanted)
        shape.longest, shape.threads = int(counts.max()), torch.get_num_threads()
        self._aim(cache)
        logits = torch.empty(len(wanted), shape.vocabulary)
        width = 2 * shape.hidden + (2 * shape.queries + 2 * shape.keys) * shape.dim + shape.inner
        room = torch.empty(len(at) * width)
        about = _CPass(*(array.ctypes.data for array in (rope, where, places, slots, first, wanted)))
        pointers = (self._norm.data_ptr(), self._head.data_ptr(), x.ctypes.data, room.data_ptr(), logits.data_ptr())
        self._run(self._layers, byref(shape), byref(about), *pointers)
        return logits, {}

    def _aim(self, cache: Any) -> None:
        """Point every layer at its place in the cache."""
        for layer, kept in zip(self._layers, cache.layers, strict=True):
            if not kept.is_initialized:
                like = torch.empty(1, self._shape.keys, 1, self._shape.dim)
                kept.lazy_initialization(like, like)
            layer.keys, layer.values = kept.keys.data_ptr(), kept.values.data_ptr()
        self._shape.cache_row, self._shape.cache_head = kept.keys.stride(0), kept.keys.stride(1)


def _weights(layer: Any, dtype: torch.dtype) -> dict[str, Tensor]:
    """What `_CLayer` points to."""
    attention, mlp = layer.self_attn, layer.mlp
    joined = torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight])
    matrices = {"qkv": joined, "o": attention.o_proj.weight, "gate": mlp.gate_proj.weight}
    matrices |= {"up": mlp.up_proj.weight, "down": mlp.down_proj.weight}
    norms = {"before": layer.input_layernorm.weight, "between": layer.post_attention_layernorm.weight}
    return {name: _panels(x, dtype) for name, x in matrices.items()} | {
        name: x.detach().float().contiguous() for name, x in norms.items()
    }


def _panels(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """`[out, in]` to `[ceil(out / PANEL), in, PANEL]`, with zeros for outputs that do not exist."""
    padded = torch.nn.functional.pad(weight.detach(), (0, 0, 0, -len(weight) % PANEL))
    return WEIGHTS.copy(padded.view(-1, PANEL, weight.shape[1]).transpose(1, 2).to(dtype))
