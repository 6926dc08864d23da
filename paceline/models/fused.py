"""A fast forward pass for the Llama family on a CPU.

It computes what the transformers module computes, with about 30 tensor operations a layer instead of over 100:
packed weights, q/k/v in one matrix, activation, gate and residual sums inside the matrix products, attention in
float32. Norms, rotation and softmax are computed in float32 and rounded once, where the module rounds in between; so
in bfloat16 the logits differ from the module's by rounding, to the more precise side.

What it adds is that **a token's logits are the same bits** whether the token is scored alone, in a chain, in a tree
or in a batch: a product's rows are computed alike however many they are (see `packing`), attention sums in the order of
the path (see `attention`), and everything else works on rows. Text is then the same for every drafter also in bfloat16.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import DynamicCache

from paceline.models.attention import Prepared, attend, prepare
from paceline.models.fusable import ACTIVATIONS, fusable
from paceline.models.packing import pack, release
from paceline.models.views import Runs, View
from paceline.native import kernels

#: Largest accepted difference from the module's logits, in standard deviations of the logits.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.25}

#: Rows that must be left out before the last layer is narrowed to the others.
_SPARED = 32


class _Norm:
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


class _Matrix:
    """One packed matrix made of the weights of linear layers, stacked by output, and their biases.

    The layers' weights are emptied unless `keep`. `activation`: what its products may take.
    """

    def __init__(self, *linears: Any, keep: bool = False, activation: str = "none") -> None:
        self.linears, self.keep = linears, keep
        weights = [linear.weight.detach() for linear in linears]
        biases = [linear.bias for linear in linears]
        self.bias: Tensor | None = None
        if any(bias is not None for bias in biases):
            blank = [weight.new_zeros(len(weight)) for weight in weights]
            self.bias = torch.cat([z if b is None else b.detach() for z, b in zip(blank, biases, strict=True)])
        self.packed = pack(torch.cat(weights) if len(weights) > 1 else weights[0], self.bias, activation)
        self.times, self.combined, self.dense = self.packed.times, self.packed.combined, self.packed.dense
        self.nbytes, self.least = self.packed.nbytes, self.packed.least
        for linear in () if keep else linears:
            release(linear.weight)

    def restore(self) -> None:
        """Fill the layers' weights again, bit for bit."""
        if self.keep:
            return
        parts = self.dense().split([linear.out_features for linear in self.linears])
        for linear, part in zip(self.linears, parts, strict=True):
            linear.weight.data = part.clone() if len(parts) > 1 else part


class _Layer:
    """One decoder layer. `kind` is its entry in the config's `layer_types`, `index` its place in the cache."""

    def __init__(self, layer: Any, kind: str | None, activation: str, keep: bool = False) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.kind, self.index, self.scale = kind, int(attention.layer_idx), float(attention.scaling)
        self.dim = int(attention.head_dim)
        self.queries = attention.q_proj.out_features // self.dim
        self.keys = attention.k_proj.out_features // self.dim
        self.before, self.between = _Norm([layer.input_layernorm]), _Norm([layer.post_attention_layernorm])
        self.head_norm: _Norm | None = None
        if hasattr(attention, "q_norm"):
            self.head_norm = _Norm([attention.q_norm] * self.queries + [attention.k_norm] * self.keys)
        self.act, self.algorithm = ACTIVATIONS[activation]
        self.qkv = _Matrix(attention.q_proj, attention.k_proj, attention.v_proj, keep=keep)
        self.o = _Matrix(attention.o_proj, keep=keep)
        self.gate = _Matrix(mlp.gate_proj, keep=keep, activation=self.act)
        self.up, self.down = _Matrix(mlp.up_proj, keep=keep), _Matrix(mlp.down_proj, keep=keep)

    def __call__(self, x: Tensor, step: _Step) -> Tensor:
        """`[R, d]` to `[R, d]`; only the first B x T rows are real and reach the cache."""
        return self.feed(self.attend(x, x, step))

    def attend(self, source: Tensor, x: Tensor, step: _Step) -> Tensor:
        """`x` and the attention sub-block of `source`, which is `x` itself in the whole model."""
        batch, width = step.shape
        both, real = self.queries + self.keys, batch * width
        heads = self.turn(self.qkv.times(self.before(source)), step.rope)[:real]
        qk = heads[:, :both].view(batch, width, both, self.dim).transpose(1, 2)
        value = heads[:, both:].unflatten(0, step.shape).transpose(1, 2)
        keys, values = step.cache.update(qk[:, self.queries :], value, self.index)
        query = qk[:, : self.queries]
        if step.wanted is not None:
            query, x = query.index_select(2, step.wanted), x.index_select(0, step.wanted)
        out = step.mixed[: batch * query.shape[2]].view(batch, -1, self.queries, self.dim)
        # Caches of a module that was not fused may hold another dtype.
        keys, values = keys.float(), values.float()
        attend(query, keys, values, step.prepared[self.kind], self.scale, out=out)
        return self.o.combined(step.mixed, x, "add")

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

    def follow(self, view: View, number: int, x: Tensor, step: _Step) -> Tensor:
        """As much of the layer as the view runs."""
        runs = view.attends(number)
        if runs is not False:
            x = _where(runs, self.attend(view.source(number, x), x, step), x)
        runs = view.feeds(number)
        if runs is not False:
            after, real = self.feed(x), step.shape[0] * step.shape[1]
            view.fed(number, x[:real], after[:real])
            x = _where(runs, after, x)
        return x

    def matrices(self) -> dict[str, _Matrix]:
        return {name: getattr(self, name) for name in ("qkv", "o", "gate", "up", "down")}


def _where(runs: Runs, changed: Tensor, x: Tensor) -> Tensor:
    """`changed` in the rows that run, `x` in the others and in padding."""
    if isinstance(runs, bool):
        return changed
    padded = F.pad(runs, (0, len(x) - len(runs)))
    return torch.where(padded[:, None], changed, x)


class _Step(NamedTuple):
    """What all layers of one forward pass share.

    Attributes:
        shape: (B, T).
        rope: `[R, 2, D]`, see `rope_table`, of the rows' positions.
        prepared: masks by layer kind.
        cache: keys and values.
        mixed: `[R, H * D]` scratch for attention's output; rows behind B x T stay zero.
        wanted: the rows that go on behind the keys and values, None: all; `prepared` and `mixed` are those of theirs.
    """

    shape: tuple[int, int]
    rope: Tensor
    prepared: dict[str | None, Prepared]
    cache: Any
    mixed: Tensor
    wanted: Tensor | None = None


class FusedDecoder:
    """Runs a Llama-like module (`fusable`) on a CPU, from packed weights.

    The module's matrices are emptied as they are packed, so memory does not double; it cannot run by itself until
    `undo()`. Kept beside the packed copy: an embedding table that is also the output matrix, norms and biases.

    Args:
        module: a loaded decoder-only module with a language-model head, in bfloat16 or float32.
        keep: leave the module its matrices; memory doubles.

    Raises:
        ValueError: the module is not `fusable`, or its own logits come out otherwise; it is left as it was.
    """

    kv_dtype = torch.float32

    def __init__(self, module: Any, keep: bool = False) -> None:
        reason = fusable(module)
        if reason is not None:
            raise ValueError(f"module: {reason}")
        body, config = module.model, module.config
        tokens, expected = _sample(module)
        self.dtype: torch.dtype = module.lm_head.weight.dtype
        self._table: Tensor = body.embed_tokens.weight.detach()
        self._rotary = body.rotary_emb
        self._rope = rope_table(self._rotary, 512)
        self._norm = _Norm([body.norm])
        self._head = _Matrix(module.lm_head, keep=keep or module.lm_head.weight is body.embed_tokens.weight)
        kinds = getattr(config, "layer_types", None) or [None] * len(body.layers)
        self._layers = [_Layer(*pair, config.hidden_act, keep) for pair in zip(body.layers, kinds, strict=True)]
        self._least = max(matrix.least for matrix in self._matrices())
        try:
            self._verify(tokens, expected)
        except BaseException:
            self.undo()
            raise

    @property
    def nbytes(self) -> int:
        """Bytes of packed weights; a forward pass reads all of them."""
        return sum(matrix.nbytes for matrix in self._matrices())

    @property
    def spare(self) -> int | None:
        """Drafted tokens that a pass scores at almost no extra cost, where the matrices make it more than usual."""
        return 7 if self._least == 1 else None

    def replaced(self, make: Callable[[Tensor, Tensor | None, bool], Any]) -> FusedDecoder:
        """A decoder with other matrices that shares everything else with this one; it computes in float32.

        Args:
            make: a matrix with `times`, `combined`, `nbytes` and `least`, of the weight `[out, in]`, the bias, and
                whether it is the head.
        """
        other = copy.copy(self)
        other.dtype, other._layers = torch.float32, [copy.copy(layer) for layer in self._layers]
        for layer in other._layers:
            for name, matrix in layer.matrices().items():
                setattr(layer, name, make(matrix.dense(), matrix.bias, False))
        other._head = make(self._head.dense(), self._head.bias, True)
        other._least = max(matrix.least for matrix in other._matrices())
        return other

    def undo(self) -> None:
        """Give the module its weights back, bit for bit. The decoder is unusable afterwards."""
        for matrix in self._matrices():
            matrix.restore()
        self._layers = []

    def __call__(
        self,
        tokens: Tensor,
        positions: Tensor,
        mask: Tensor | dict[str, Tensor],
        cache: Any,
        rows: Tensor | None = None,
        hidden: tuple[int, ...] = (),
        view: View | None = None,
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """One forward pass.

        Args:
            tokens: `[B, T]` int64.
            positions: `[B, T]` int64.
            mask: additive float32 `[B, 1, T, S]`, or one for each of the config's layer types.
            cache: its `update(k, v, layer)` stores `[B, Hk, T, D]` and returns float32 `[B, Hk, S, D]`.
            rows: flat indices into B x T for which results are wanted; None: all.
            hidden: layers whose hidden states are wanted too (0: embeddings, L: after the last norm).
            view: which parts run; all by default.

        Returns:
            Logits `[N, V]` float32 and `{layer: [N, d]}` in the module's dtype, N = len(rows) or B x T.
        """
        batch, width = tokens.shape
        real = batch * width
        spare = max(0, self._least - real)
        if view is None or view.states is None:
            x = F.embedding(F.pad(tokens.flatten(), (0, spare)) if spare else tokens.flatten(), self._table)
        else:
            x = F.pad(view.states.flatten(0, 1), (0, 0, 0, spare)).to(self.dtype)
        rope = self._rotation(F.pad(positions.flatten(), (0, spare)) if spare else positions.flatten())
        first = self._layers[0]
        mixed = x.new_zeros(len(x), first.queries * first.dim)
        step = _Step((batch, width), rope, self._prepare(mask, positions), cache, mixed)
        taps: dict[int, Tensor] = {}
        for number, layer in self._run(view):
            if number in hidden:
                taps[number] = x
            if layer is self._layers[-1] and rows is not None and self._few(rows, tokens, view, hidden):
                step, real, rows = self._narrowed(step, rows, mask, positions), len(rows), None
            x = layer(x, step) if view is None else layer.follow(view, number, x, step)
        if view is not None and view.last in hidden:
            taps[view.last] = x
        return self._finish(x, real, rows, taps, len(self._layers) in hidden)

    def _run(self, view: View | None) -> list[tuple[int, _Layer]]:
        """The layers of a pass, with their numbers."""
        whole = list(enumerate(self._layers))
        return whole if view is None else whole[view.first : view.last]

    def _few(self, rows: Tensor, tokens: Tensor, view: View | None, hidden: tuple[int, ...]) -> bool:
        """Whether so few rows of a prompt are wanted that the last layer had better spare the others."""
        return view is None and not hidden and len(tokens) == 1 and tokens.numel() - len(rows) >= _SPARED

    def _narrowed(self, step: _Step, rows: Tensor, mask: Tensor | dict[str, Tensor], positions: Tensor) -> _Step:
        """The last layer's step, where only some rows of the one text go on."""
        wanted = F.pad(rows, (0, max(0, self._least - len(rows))))
        part = {k: m[:, :, wanted] for k, m in mask.items()} if isinstance(mask, dict) else mask[:, :, wanted]
        prepared = self._prepare(part, positions[:, wanted])
        return step._replace(
            prepared=prepared, mixed=step.mixed.new_zeros(len(wanted), step.mixed.shape[1]), wanted=wanted
        )

    def project(self, normed: Tensor) -> Tensor:
        """Logits `[N, V]` float32 of hidden states `[N, d]` behind the last norm."""
        count = len(normed)
        if count < self._least:
            normed = F.pad(normed, (0, 0, 0, self._least - count))
        return self._head.times(normed)[:count].float()

    def _finish(
        self, x: Tensor, real: int, rows: Tensor | None, taps: dict[int, Tensor], last: bool
    ) -> tuple[Tensor, dict[int, Tensor]]:
        x = x[:real] if rows is None else x.index_select(0, rows)
        taps = {n: tap[:real] if rows is None else tap.index_select(0, rows) for n, tap in taps.items()}
        normed = self._norm(x)
        if last:
            taps[len(self._layers)] = normed
        return self.project(normed), taps

    def _prepare(self, mask: Tensor | dict[str, Tensor], positions: Tensor) -> dict[str | None, Prepared]:
        if isinstance(mask, dict):
            return {kind: prepare(one, positions) for kind, one in mask.items()}
        return dict.fromkeys({layer.kind for layer in self._layers}, prepare(mask, positions))

    def _rotation(self, positions: Tensor) -> Tensor:
        longest = int(positions.max()) + 1
        if longest > len(self._rope):
            self._rope = rope_table(self._rotary, max(longest, 2 * len(self._rope)))
        return self._rope.index_select(0, positions)

    def _matrices(self) -> list[_Matrix]:
        return [*(matrix for layer in self._layers for matrix in layer.matrices().values()), self._head]

    def _verify(self, tokens: Tensor, expected: Tensor) -> None:
        length = tokens.shape[1]
        mask = torch.full((length, length), -torch.inf).triu_(1)[None, None]
        kinds = {layer.kind for layer in self._layers}
        masks = mask if kinds == {None} else {str(kind): mask for kind in kinds}
        got, _ = self(tokens, torch.arange(length)[None], masks, DynamicCache())
        error, spread = float((got - expected).abs().max()), float(expected.std())
        if not error <= _TOLERANCE[self.dtype] * spread:
            raise ValueError(
                f"module: the fused forward pass differs from the module's by {error:.3g} (spread {spread:.3g}); "
                f"{type(self).__name__} does not know everything this module does"
            )


def _sample(module: Any) -> tuple[Tensor, Tensor]:
    """A few tokens `[1, T]` and the module's own logits `[T, V]` for them."""
    length = min(6, getattr(module.config, "sliding_window", None) or 6)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(module.config.vocab_size, (1, length), generator=generator)
    with torch.no_grad():
        return tokens, module(input_ids=tokens, use_cache=False).logits[0].float()


def rope_table(rotary: Any, length: int) -> Tensor:
    """`[length, 2, D]` float32: cosines, and sines with the first half negated."""
    cos, sin = rotary(torch.zeros(1), torch.arange(length)[None])
    half = cos.shape[-1] // 2
    return torch.stack([cos[0], torch.cat([-sin[0, :, :half], sin[0, :, half:]], -1)], 1)
