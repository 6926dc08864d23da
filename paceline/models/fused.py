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
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import DynamicCache

from paceline.models.attention import Prepared, prepare
from paceline.models.config import tabulated, weight_bytes
from paceline.models.fusable import fusable
from paceline.models.fused_layer import Layer, Matrix, Norm, Step
from paceline.models.packing import FROM_MEMORY
from paceline.models.views import View
from paceline.native import kernels

#: Largest accepted difference from the module's logits, in standard deviations of the logits.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.25}

Mask = Tensor | dict[str, Tensor]

#: Rows that must be left out before the last layer is narrowed to the others.
_SPARED = 32


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
        self._rope = rope_table(self._rotary, tabulated(config))
        self._norm = Norm([body.norm])
        compact = weight_bytes(module) >= FROM_MEMORY
        tied = module.lm_head.weight is body.embed_tokens.weight
        self._head = Matrix(module.lm_head, keep=keep or tied, compact=compact)
        kinds = getattr(config, "layer_types", None) or [None] * len(body.layers)
        layers = zip(body.layers, kinds, strict=True)
        self._layers = [Layer(*pair, config.hidden_act, keep, compact) for pair in layers]
        self._least = max(matrix.least for matrix in self._matrices())
        try:
            self._verify(tokens, expected)
        except BaseException:
            self.undo()
            raise

    @property
    def ragged(self) -> bool:
        """Whether padding in a batch is left out."""
        return kernels() is not None

    @property
    def nbytes(self) -> int:
        """Bytes of packed weights; a forward pass reads all of them."""
        return sum(matrix.nbytes for matrix in self._matrices())

    @property
    def saved(self) -> int:
        """Bytes that a pass need not read, of those of the module's weights."""
        return sum(matrix.saved for matrix in self._matrices())

    @property
    def spare(self) -> int:
        """Drafted tokens that a pass scores at almost no extra cost."""
        return min(matrix.spare for matrix in self._matrices())

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
        mask: Mask,
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
            cache: its `update(k, v, layer)` stores `[B, Hk, T, D]` and returns float32 `[B, Hk, S, D]`. Where a
                `TrieCache` says that some of the B x T places are padding, they are left out of the pass.
            rows: flat indices into B x T for which results are wanted; None: all.
            hidden: layers whose hidden states are wanted too (0: embeddings, L: after the last norm).
            view: which parts run; all by default.

        Returns:
            Logits `[N, V]` float32 and `{layer: [N, d]}` in the module's dtype, N = len(rows) or B x T.
        """
        batch, width = tokens.shape
        shape: tuple[int, int] | None = (batch, width)
        queries: tuple[int, ...] | None = None
        if view is None and (nodes := _unpadded(cache)) is not None:
            shape, queries = None, tuple(cache.pending.counts)
            tokens, positions, mask, rows = _picked(nodes, tokens, positions, mask, rows)
        real = tokens.numel()
        spare = max(0, self._least - real)
        if view is None or view.states is None:
            x = F.embedding(F.pad(tokens.flatten(), (0, spare)) if spare else tokens.flatten(), self._table)
        else:
            x = F.pad(view.states.flatten(0, 1), (0, 0, 0, spare)).to(self.dtype)
        rope = self._rotation(F.pad(positions.flatten(), (0, spare)) if spare else positions.flatten())
        first = self._layers[0]
        mixed = x.new_zeros(len(x), first.queries * first.dim)
        step = Step(real, shape, rope, self._prepare(mask, positions, queries), cache, mixed)
        taps: dict[int, Tensor] = {}
        for number, layer in self._run(view):
            if number in hidden:
                taps[number] = x
            if layer is self._layers[-1] and rows is not None and shape and self._few(rows, tokens, view, hidden):
                step, real, rows = self._narrowed(step, rows, mask, positions), len(rows), None
            x = layer(x, step) if view is None else layer.follow(view, number, x, step)
        if view is not None and view.last in hidden:
            taps[view.last] = x
        return self._finish(x, real, rows, taps, len(self._layers) in hidden)

    def _run(self, view: View | None) -> list[tuple[int, Layer]]:
        """The layers of a pass, with their numbers."""
        whole = list(enumerate(self._layers))
        return whole if view is None else whole[view.first : view.last]

    def _few(self, rows: Tensor, tokens: Tensor, view: View | None, hidden: tuple[int, ...]) -> bool:
        """Whether so few rows of a prompt are wanted that the last layer had better spare the others."""
        return view is None and not hidden and len(tokens) == 1 and tokens.numel() - len(rows) >= _SPARED

    def _narrowed(self, step: Step, rows: Tensor, mask: Mask, positions: Tensor) -> Step:
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

    def _prepare(
        self, mask: Mask, positions: Tensor, queries: tuple[int, ...] | None = None
    ) -> dict[str | None, Prepared]:
        if isinstance(mask, dict):
            return {kind: prepare(one, positions, queries) for kind, one in mask.items()}
        return dict.fromkeys({layer.kind for layer in self._layers}, prepare(mask, positions, queries))

    def _rotation(self, positions: Tensor) -> Tensor:
        longest = int(positions.max()) + 1
        if longest > len(self._rope):
            self._rope = rope_table(self._rotary, max(longest, 2 * len(self._rope)))
        return self._rope.index_select(0, positions)

    def _matrices(self) -> list[Matrix]:
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


def _unpadded(cache: Any) -> Tensor | None:
    """Which of the places of a batch hold nodes, where some do not and the kernels can do without these."""
    extension = getattr(cache, "pending", None)
    if extension is None or extension.real is None or kernels() is None:
        return None
    return torch.from_numpy(extension.real)


def _picked(
    nodes: Tensor, tokens: Tensor, positions: Tensor, mask: Mask, rows: Tensor | None
) -> tuple[Tensor, Tensor, Mask, Tensor | None]:
    """A padded batch `[B, T]` as one row `[1, N]` of its nodes alone."""

    def of(one: Tensor) -> Tensor:
        return one.flatten(0, 2).index_select(0, nodes)[None, None]

    picked = {kind: of(one) for kind, one in mask.items()} if isinstance(mask, dict) else of(mask)
    wanted = None if rows is None or len(rows) == len(nodes) else torch.searchsorted(nodes, rows)
    return tokens.flatten()[nodes][None], positions.flatten()[nodes][None], picked, wanted


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
