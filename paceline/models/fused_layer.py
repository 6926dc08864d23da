"""The parts of a fused decoder layer: norms, packed matrices, attention and feed-forward sub-blocks."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from paceline.models.attention import Prepared, attend
from paceline.models.fusable import ACTIVATIONS
from paceline.models.packing import pack, release
from paceline.models.views import Runs, View
from paceline.native import kernels


class Norm:
    """RMSNorm in float32. With several norms, one for each entry of the last but one dimension."""

    def __init__(self, norms: list[Any]) -> None:
        weights = [norm.weight.detach().float() for norm in norms]
        self.weight = torch.stack(weights) if len(norms) > 1 else weights[0].contiguous()
        self.epsilon = float(norms[0].variance_epsilon)
        self._added, self._share = torch.tensor(self.epsilon), 1.0 / self.weight.shape[-1]

    def __call__(self, x: Tensor) -> Tensor:
        """`[R, d]` to the same shape and dtype."""
        native = kernels()
        if native is not None:
            return native.rms_norm(x, self.weight, self.epsilon)
        return self.in_float32(x.float()).to(x.dtype)

    def in_float32(self, x: Tensor) -> Tensor:
        """A new tensor."""
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = torch.addcmul(self._added, length, length, value=self._share).rsqrt_()
        return torch.mul(x, scale).mul_(self.weight)


class Matrix:
    """One packed matrix made of the weights of linear layers, stacked by output, and their biases.

    The layers' weights are emptied unless `keep`. `activation`: what its products may take; `compact`: see `pack`.

    Attributes:
        saved: bytes that a product need not read, of those of the plain weights.
    """

    def __init__(self, *linears: Any, keep: bool = False, activation: str = "none", compact: bool = False) -> None:
        self.linears, self.keep = linears, keep
        weights = [linear.weight.detach() for linear in linears]
        biases = [linear.bias for linear in linears]
        self.bias: Tensor | None = None
        if any(bias is not None for bias in biases):
            blank = [weight.new_zeros(len(weight)) for weight in weights]
            self.bias = torch.cat([z if b is None else b.detach() for z, b in zip(blank, biases, strict=True)])
        self.packed = pack(torch.cat(weights) if len(weights) > 1 else weights[0], self.bias, activation, compact)
        self.times, self.combined, self.dense = self.packed.times, self.packed.combined, self.packed.dense
        self.nbytes, self.least, self.spare = self.packed.nbytes, self.packed.least, self.packed.spare
        self.saved = max(0, sum(weight.nbytes for weight in weights) - self.nbytes)
        for linear in () if keep else linears:
            release(linear.weight)

    def restore(self) -> None:
        """Fill the layers' weights again, bit for bit."""
        if self.keep:
            return
        parts = self.dense().split([linear.out_features for linear in self.linears])
        for linear, part in zip(self.linears, parts, strict=True):
            linear.weight.data = part.clone() if len(parts) > 1 else part


class Layer:
    """One decoder layer. `kind` is its entry in the config's `layer_types`, `index` its place in the cache."""

    def __init__(
        self, layer: Any, kind: str | None, activation: str, keep: bool = False, compact: bool = False
    ) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.kind, self.index, self.scale = kind, int(attention.layer_idx), float(attention.scaling)
        self.dim = int(attention.head_dim)
        self.queries = attention.q_proj.out_features // self.dim
        self.keys = attention.k_proj.out_features // self.dim
        self.before, self.between = Norm([layer.input_layernorm]), Norm([layer.post_attention_layernorm])
        self.head_norm: Norm | None = None
        if hasattr(attention, "q_norm"):
            self.head_norm = Norm([attention.q_norm] * self.queries + [attention.k_norm] * self.keys)
        self.act, self.algorithm = ACTIVATIONS[activation]
        self.qkv = Matrix(attention.q_proj, attention.k_proj, attention.v_proj, keep=keep, compact=compact)
        self.o = Matrix(attention.o_proj, keep=keep, compact=compact)
        self.gate = Matrix(mlp.gate_proj, keep=keep, activation=self.act, compact=compact)
        self.up = Matrix(mlp.up_proj, keep=keep, compact=compact)
        self.down = Matrix(mlp.down_proj, keep=keep, compact=compact)

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        """`[R, d]` to `[R, d]`; only the first rows, `step.real` of them, are tokens and reach the cache."""
        return self.feed(self.attend(x, x, step))

    def attend(self, source: Tensor, x: Tensor, step: Step) -> Tensor:
        """`x` and the attention sub-block of `source`, which is `x` itself in the whole model."""
        query, keys, values = self.write(source, step)
        if step.wanted is not None:
            query, x = query.index_select(2, step.wanted), x.index_select(0, step.wanted)
        out = step.mixed[: len(query) * query.shape[2]].view(len(query), -1, self.queries, self.dim)
        # Caches of a module that was not fused may hold another dtype.
        keys, values = keys.float(), values.float()
        attend(query, keys, values, step.prepared[self.kind], self.scale, out=out)
        return self.o.combined(step.mixed, x, "add")

    def write(self, source: Tensor, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        """Cache the keys and values of `source`.

        Returns:
            Its queries `[B, H, T, D]`, and all that the cache has of its rows, `[B, Hk, S, D]` each.
        """
        both = self.queries + self.keys
        heads = self.turn(self.qkv.times(self.before(source)), step.rope)[: step.real]
        if step.shape is None:
            keys, values = step.cache.layers[self.index].write(heads[:, self.queries : both], heads[:, both:])
            return heads[None, :, : self.queries].transpose(1, 2), keys, values
        by_text = heads.unflatten(0, step.shape).transpose(1, 2)
        keys, values = step.cache.update(by_text[:, self.queries : both], by_text[:, both:], self.index)
        return by_text[:, : self.queries], keys, values

    def turn(self, qkv: Tensor, rope: Tensor) -> Tensor:
        """Queries, keys and values `[R, heads * D]` to float32 `[R, heads, D]`, the former two rotated."""
        heads, both = qkv.view(len(qkv), -1, self.dim), self.queries + self.keys
        norm, native = self.head_norm, kernels()
        if native is not None:
            weight, epsilon = (None, 0.0) if norm is None else (norm.weight, norm.epsilon)
            return native.rotate(heads, rope, both, weight, epsilon)
        heads = heads.float()
        qk = heads[:, :both] if norm is None else norm.in_float32(heads[:, :both])
        # roll brings each half to the other's place; the table's sines carry the minus of `rotate_half`.
        qk = torch.mul(qk, rope[:, :1]).addcmul_(qk.roll(self.dim // 2, -1), rope[:, 1:])
        return torch.cat([qk, heads[:, both:]], 1)

    def feed(self, x: Tensor) -> Tensor:
        """`x` and its feed-forward sub-block."""
        h = self.between(x)
        h = self.up.combined(h, self.gate.times(h, self.act, self.algorithm), "mul")
        return self.down.combined(h, x, "add")

    def follow(self, view: View, number: int, x: Tensor, step: Step) -> Tensor:
        """As much of the layer as the view runs."""
        entering, runs = x, view.attends(number)
        if runs is not False:
            x = _where(runs, self.attend(view.source(number, x), x, step), x)
        elif view.fills:
            self.write(view.source(number, x), step)
        runs = view.feeds(number)
        if runs is not False:
            after = _where(runs, self.feed(x), x)
            view.fed(number, x[: step.real], after[: step.real])
            x = after
        view.passed(number, entering[: step.real], x[: step.real])
        return x

    def matrices(self) -> dict[str, Matrix]:
        return {name: getattr(self, name) for name in ("qkv", "o", "gate", "up", "down")}


def _where(runs: Runs, changed: Tensor, x: Tensor) -> Tensor:
    """`changed` in the rows that run, `x` in the others and in padding."""
    if isinstance(runs, bool):
        return changed
    padded = F.pad(runs, (0, len(x) - len(runs)))
    return torch.where(padded[:, None], changed, x)


class Step(NamedTuple):
    """What all layers of one forward pass share.

    Attributes:
        real: rows that are tokens; the others are padding for the matrices.
        shape: (B, T), whose product they are; None: texts have different numbers of tokens, one after the other.
        rope: `[R, 2, D]`, see `rope_table`, of the rows' positions.
        prepared: masks by layer kind.
        cache: keys and values.
        mixed: `[R, H * D]` scratch for attention's output; rows that are padding stay zero.
        wanted: the rows that go on behind the keys and values, None: all; `prepared` and `mixed` are those of theirs.
    """

    real: int
    shape: tuple[int, int] | None
    rope: Tensor
    prepared: dict[str | None, Prepared]
    cache: Any
    mixed: Tensor
    wanted: Tensor | None = None
