"""Lean forward passes for very small Llamas, the kind that draft on a CPU.

Where there are native kernels, a pass is one call of C (`paceline.native.small`). What follows is for where there are
none. One token of a one-million-parameter model is some fifty operations of a microsecond's work each, and PyTorch
spends several microseconds on most calls before it computes anything; NumPy spends a tenth of that. So everything
but the matrix products is NumPy here, on weights copied to float32. (The products stay with PyTorch because
NumPy's would bring threads of their own, which fight with PyTorch's for the cores.) The numbers are the model's
but for rounding, which a drafter can afford.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from paceline.caches import TrieCache
from paceline.errors import PacelineError
from paceline.models.causal import CausalModel
from paceline.models.check import self_check
from paceline.models.config import tabulated
from paceline.models.fast import speed_up
from paceline.models.forward import Mask
from paceline.models.fusable import fusable
from paceline.native import kernels
from paceline.native.small import SmallLlama

#: Bytes of float32 weights up to which this pays: they must stay in the CPU's cache.
LARGEST = 16 << 20


def speed_up_small(model: CausalModel) -> None:
    """Give a freshly loaded model the forward pass that is fastest for a few tokens at a time."""
    if suits(model):
        plain, native = model.forward, kernels()
        try:
            model.forward = Lean(model.module) if native is None else SmallLlama(model.module, native)
            self_check(model)
        except (PacelineError, ValueError):
            model.forward = plain
        else:
            model.path = f"{'lean' if native is None else 'native'} forward pass in float32"
            model.offers -= {"hidden_states", "views"}
            return
    speed_up(model)


def suits(model: CausalModel) -> bool:
    """Whether `Lean` knows everything this model does, and is likely to be faster."""
    if model.device.type != "cpu" or fusable(model.module) is not None:
        return False
    body, config = model.module.model, model.module.config
    linears = [m for m in body.layers.modules() if isinstance(m, torch.nn.Linear)]
    plain = all(linear.bias is None for linear in [*linears, model.module.lm_head])
    size = 4 * (model.module.lm_head.weight.numel() + sum(p.numel() for p in body.parameters()))
    same = not any(hasattr(layer.self_attn, "q_norm") for layer in body.layers)
    one = len(model.windows) == 1
    return plain and same and one and config.hidden_act in ("silu", "swish") and size <= LARGEST


class Lean:
    """Runs a small plain Llama; a `Forward`."""

    kv_dtype = torch.float32

    def __init__(self, module: Any) -> None:
        body = module.model
        self._layers = [_Layer(layer) for layer in body.layers]
        self._table = body.embed_tokens.weight.detach().float().numpy()
        self._head = _matrix(module.lm_head.weight.float() * body.norm.weight.float())
        self._epsilon = float(body.norm.variance_epsilon)
        self._rotary = body.rotary_emb
        self._rope = _rope(self._rotary, tabulated(module.config))

    def __call__(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        mask: Mask,
        cache: TrieCache,
        rows: torch.Tensor | None,
        hidden: tuple[int, ...] = (),
    ) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
        """Logits of a few tokens; `hidden` states are not offered."""
        assert isinstance(mask, torch.Tensor)
        at = positions.numpy().ravel()
        if (last := int(at.max())) >= len(self._rope):
            self._rope = _rope(self._rotary, 2 * last)
        x = self._table[tokens.numpy().ravel()]
        rope, hide = self._rope[at], mask.numpy()[:, 0]
        for i, layer in enumerate(self._layers):
            x = layer(x, rope, hide, cache, i)
        x = _unit(x if rows is None else x[rows.numpy()], self._epsilon)
        return torch.from_numpy(x) @ self._head, {}


class _Layer:
    """One decoder layer. Matrices are `[in, out]`; the norms' weights and the scores' scale are folded into them."""

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        before, between = layer.input_layernorm, layer.post_attention_layernorm
        self.dim = int(attention.head_dim)
        self.queries = attention.q_proj.out_features // self.dim
        self.keys = attention.k_proj.out_features // self.dim
        self.inner = mlp.down_proj.in_features
        q = attention.q_proj.weight.float() * float(attention.scaling)
        qkv = torch.cat([q, attention.k_proj.weight.float(), attention.v_proj.weight.float()])
        gate_up = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]).float()
        self.qkv, self.o = _matrix(qkv * before.weight.float()), _matrix(attention.o_proj.weight)
        self.gate_up, self.down = _matrix(gate_up * between.weight.float()), _matrix(mlp.down_proj.weight)
        self.before, self.between = float(before.variance_epsilon), float(between.variance_epsilon)

    def __call__(self, x: np.ndarray, rope: np.ndarray, hide: np.ndarray, cache: TrieCache, index: int) -> np.ndarray:
        """`[R, d]` to `[R, d]`; `rope` `[R, 2, 1, D]`, `hide` `[B, T, S]` additive."""
        heads = _times(_unit(x, self.before), self.qkv).reshape(len(x), -1, self.dim)
        both = self.queries + self.keys
        qk, value = heads[:, :both], heads[:, both:]
        halves = qk.reshape(len(x), both, 2, -1)[:, :, ::-1].reshape(qk.shape)
        qk = qk * rope[:, 0] + halves * rope[:, 1]
        x = x + _times(self._attend(qk[:, : self.queries], qk[:, self.queries :], value, hide, cache, index), self.o)
        gate_up = _times(_unit(x, self.between), self.gate_up)
        gate, up = gate_up[:, : self.inner], gate_up[:, self.inner :]
        return x + _times(0.5 * gate * (1 + np.tanh(0.5 * gate)) * up, self.down)

    def _attend(
        self, query: np.ndarray, key: np.ndarray, value: np.ndarray, hide: np.ndarray, cache: TrieCache, index: int
    ) -> np.ndarray:
        """`[R, H * D]` of queries `[R, H, D]` over the cache, where keys and values `[R, Hk, D]` are written first."""
        batch, width, _ = hide.shape
        keys, values = _storage(cache, index, key)
        extension = cache.pending
        assert extension is not None
        mixed = []
        for b, start in enumerate(extension.starts):
            own, end, row = slice(b * width, (b + 1) * width), start + width, extension.first + b
            keys[row, :, start:end] = key[own].swapaxes(0, 1)
            values[row, :, start:end] = value[own].swapaxes(0, 1)
            q = query[own].reshape(width, self.keys, -1, self.dim).transpose(1, 2, 0, 3)
            scores = _times(q.reshape(self.keys, -1, self.dim), keys[row, :, :end].swapaxes(1, 2))
            scores = scores.reshape(self.keys, -1, width, end) + hide[b, :, :end]
            scores = np.exp(scores - scores.max(-1, keepdims=True))
            scores /= scores.sum(-1, keepdims=True)
            out = _times(scores.reshape(self.keys, -1, end), values[row, :, :end])
            mixed.append(out.reshape(self.keys, -1, width, self.dim).transpose(2, 0, 1, 3).reshape(width, -1))
        return np.concatenate(mixed) if batch > 1 else mixed[0]


def _storage(cache: TrieCache, index: int, key: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A cache layer's keys and values, `[rows, Hk, capacity, D]`, not copied."""
    layer: Any = cache.layers[index]
    if not layer.is_initialized:
        like = torch.from_numpy(key[None].swapaxes(1, 2))
        layer.lazy_initialization(like, like)
    return layer.keys.numpy(), layer.values.numpy()


def _times(x: np.ndarray, y: torch.Tensor | np.ndarray) -> np.ndarray:
    """Matrix product of two matrices, or of each of two stacks of matrices."""
    right = y if isinstance(y, torch.Tensor) else torch.from_numpy(y)
    return torch.matmul(torch.from_numpy(x), right).numpy()


def _matrix(weight: torch.Tensor) -> torch.Tensor:
    """`[out, in]` of any dtype to a float32 copy `[in, out]`."""
    return weight.detach().float().T.contiguous()


def _unit(x: np.ndarray, epsilon: float) -> np.ndarray:
    """RMSNorm without weights."""
    mean = np.einsum("rd,rd->r", x, x)[:, None] / x.shape[1]
    return x / np.sqrt(mean + np.float32(epsilon))


def _rope(rotary: Any, length: int) -> np.ndarray:
    """`[length, 2, 1, D]` float32: cosines, and sines with the first half negated."""
    cos, sin = (table[0].float().numpy() for table in rotary(torch.zeros(1), torch.arange(length)[None]))
    half = cos.shape[-1] // 2
    return np.stack([cos, np.concatenate([-sin[:, :half], sin[:, half:]], 1)], 1)[:, :, None]
