"""Attention whose result for a token does not depend on who else is in the batch or on where its past is stored.

A drafted token's keys and values lie somewhere in a tree, among those of its siblings; in plain decoding they lie in
a row. The visible keys are the same ones in the same order, so the result is the same real number, but it is the
same *float* only if every sum takes the same steps. Here it does, on a CPU, in float32.

The native kernel (`paceline.native`) gets there directly: it sums over a list of what the token sees, in the order of
its path. Where it cannot be had, PyTorch's products get there as follows:

- scores `q k^T` sum over the head dimension, which no layout changes;
- the maximum is exact; the softmax's denominator is summed in float64 and rounded once;
- `p v` sums over slots. A matrix product of at most 192 slots is one chain of fused multiply-adds in slot order, in
  which a masked slot adds an exact zero. So the sum is cut into *pieces* of 128 positions, added in order. A tree
  that lies across a piece's end puts nodes of the one piece behind slots of the next: then, and only then, pieces
  are picked by mask instead of by slice (`prepare` finds out from the mask alone: a slot's position on a node's
  path is the number of visible slots before it).

What the latter needs in return: at least 4 query rows a product (fewer are padded), and finite numbers in masked
slots. Behind a piece's end more than 64 nodes are summed correctly, but in an order that may differ in the last bit.
Both need a node's ancestors in ascending slots.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from paceline.native import Seen, kernels

#: Name in transformers' attention interface, and the dtype in which it wants keys and values cached.
NAME = "paceline"
KV_DTYPE = torch.float32
#: Positions a piece. Products of more than 192 slots are split by the kernel itself, at places that depend on S.
PIECE = 128
#: Additive mask values below this hide a slot: both -inf and the dtype's minimum are in use.
HIDDEN = -1e30
#: Most score elements held at once; longer query blocks are worked off one part after the other.
_BLOCK = 1 << 23


class Piece(NamedTuple):
    """Slots `start:stop` of one summand; `member` `[B, 1, 1, T, stop - start]` (0/1) picks among them, None: all."""

    start: int
    stop: int
    member: Tensor | None


class Cut(NamedTuple):
    """A mask `[B, 1, 1, T, S]` and what follows from it, the same for all layers."""

    mask: Tensor
    pieces: tuple[Piece, ...]
    empty: bool


#: What all layers share of a mask: for the native kernel, or for PyTorch.
Prepared = Seen | Cut


def prepare(mask: Tensor, positions: Tensor | None = None, queries: tuple[int, ...] | None = None) -> Prepared:
    """Find out what an additive mask lets each token see.

    Args:
        mask: `[B, 1, T, S]` float32; slots below `HIDDEN` are invisible.
        positions: `[B, T]` or `[1, T]` int64, of the tokens. They matter where a sliding window ends within a tree:
            its slots do not tell their positions.
        queries: of texts of different lengths, how many of the T are each one's; for the native kernel alone.
    """
    native = kernels()
    if native is not None:
        return native.seen(mask, HIDDEN, queries)
    batch, _, width, length = mask.shape
    visible = mask > HIDDEN
    if length % PIECE:
        visible = F.pad(visible, (0, -length % PIECE))
    counts = visible.view(batch * width, -1, PIECE).sum(-1).tolist()
    pieces = tuple(Piece(at, min(at + PIECE, length), None) for at in range(0, length, PIECE))
    if any(a < PIECE and b for row in counts for a, b in pairwise(row)):
        pieces = _by_position(visible[..., :length], pieces, positions)
    return Cut(mask[:, :, None], pieces, any(not any(row) for row in counts))


def _by_position(visible: Tensor, pieces: tuple[Piece, ...], positions: Tensor | None) -> tuple[Piece, ...]:
    """Pieces cut by position on each query's path; `visible` is `[B, 1, T, S]` bool."""
    seen = visible.cumsum(-1)
    if positions is None:
        # The first visible slot (0, or a sliding window's start) belongs to the trunk, where slot and position agree.
        before = visible.int().argmax(-1, keepdim=True) - 1
    else:
        # The last one is the token's own.
        before = positions[:, None, :, None] - seen[..., -1:]
    # No slot lies before its position; if a caller counts otherwise, none is lost and the sum is still the right one.
    position = (seen + before).clamp_(min=0).minimum(torch.arange(visible.shape[-1]))
    cut = []
    for piece in pieces:
        member = visible & (position >= piece.start) & (position < piece.start + PIECE)
        inside = member[..., piece.start : piece.stop]
        if int(member.sum()) == int(inside.sum()) == int(visible[..., piece.start : piece.stop].sum()):
            cut.append(piece)
            continue
        used = member.any(2).any(0)[0].nonzero()
        stop = max(piece.stop, int(used.max()) + 1 if len(used) else 0)
        cut.append(Piece(piece.start, stop, member[:, :, None, :, piece.start : stop].float()))
    return tuple(cut)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prepared: Prepared,
    scale: float,
    softcap: float | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Softmax attention, every sum in an order that only the visible past decides.

    Args:
        query: `[B, H, T, D]` float32.
        key: `[B, Hk, S, D]` float32, H a multiple of Hk.
        value: `[B, Hk, S, Dv]` float32.
        prepared: of the layer's mask.
        scale: factor on the scores.
        softcap: bound scores by `softcap * tanh(score / softcap)`.
        out: `[B, T, H, Dv]` float32 or bfloat16 to write to, its last dimension in a row; new float32 by default.

    Returns:
        `[B, T, H, Dv]`; zeros for queries that see nothing.
    """
    batch, heads, queries, _ = query.shape
    groups = heads // key.shape[1]
    if out is None:
        out = torch.empty(batch, queries, heads, value.shape[-1])
    if isinstance(prepared, Seen):
        native = kernels()
        assert native is not None
        native.attend(query, key, value, prepared, scale, softcap, out)
        return out
    step = max(16, _BLOCK // (batch * heads * key.shape[2]))
    if queries <= step:
        _block(query, key, value, prepared, scale, softcap, out, groups)
        return out
    for at in range(0, queries, step):
        part = slice(at, at + step)
        pieces = tuple(p if p.member is None else p._replace(member=p.member[:, :, :, part]) for p in prepared.pieces)
        rows = Cut(prepared.mask[:, :, :, part], pieces, prepared.empty)
        _block(query[:, :, part], key, value, rows, scale, softcap, out[:, part], groups)
    return out


def _block(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prepared: Cut,
    scale: float,
    softcap: float | None,
    out: Tensor,
    groups: int,
) -> None:
    batch, heads, queries, dim = query.shape
    length, width, rows = key.shape[2], value.shape[3], groups * queries
    inner = (batch, heads // groups, groups, queries)
    q = query.reshape(-1, rows, dim)
    # Few rows take other kernels, fewer than four or, with AVX-512, than dim / 24. One product alone is split among
    # threads by rows, which needs more of them for every part to have so many.
    least = max(4, dim // 24 + 1) * (1 if len(q) >= torch.get_num_threads() else 3)
    if rows < least:
        q = F.pad(q, (0, 0, 0, least - rows))
    v = value.flatten(0, 1)
    scores = torch.bmm(q, key.flatten(0, 1).transpose(1, 2))
    weights = scores[:, :rows].view(*inner, length)
    total = _softmax_(weights, prepared, scale, softcap)
    mixed: Tensor | None = None
    for start, stop, member in prepared.pieces:
        p = scores[:, :, start:stop]
        if member is not None:
            p = p.clone()
            p[:, :rows].view(*inner, -1).mul_(member)
        mixed = torch.bmm(p, v[:, start:stop]) if mixed is None else mixed.baddbmm_(p, v[:, start:stop])
    assert mixed is not None
    target = out.view(batch, queries, *inner[1:3], width).permute(0, 2, 3, 1, 4)
    torch.div(mixed[:, :rows].view(*inner, width), total, out=target)


def _softmax_(scores: Tensor, prepared: Cut, scale: float, softcap: float | None) -> Tensor:
    """Turn scores `[B, Hk, G, T, S]` into numerators, in place; returns the denominators `[B, Hk, G, T, 1]`."""
    if softcap is None:
        torch.add(prepared.mask, scores, alpha=scale, out=scores)
    else:
        scores.mul_(scale / softcap).tanh_().mul_(softcap).add_(prepared.mask)
    highest = scores.amax(-1, keepdim=True)
    if prepared.empty:
        highest.clamp_(min=HIDDEN)
    scores.sub_(highest).exp_()
    total = scores.sum(-1, keepdim=True, dtype=torch.float64).float()
    return total.clamp_(min=1) if prepared.empty else total


def attention_forward(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """`attend` behind transformers' attention interface, registered there as `"paceline"`.

    Scaled dot-product attention takes over where its order of summation cannot be had: on accelerators, under
    autograd, with dropout, and for anything but an additive or boolean mask of `[B, 1, T, S]`.

    Returns:
        `[B, T, H, D]` in the query's dtype, and None.
    """
    softcap = kwargs.get("softcap")
    plain = attention_mask is None or attention_mask.dim() != 4 or attention_mask.shape[1] != 1
    grad = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad)
    if plain or grad or dropout or query.device.type != "cpu" or kwargs.get("position_bias") is not None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    assert attention_mask is not None
    if attention_mask.dtype == torch.bool:
        attention_mask = torch.where(attention_mask, 0.0, -torch.inf)
    positions = kwargs.get("position_ids")
    if positions is not None and positions.shape not in ((1, query.shape[2]), (len(query), query.shape[2])):
        positions = None
    prepared = prepare(attention_mask.float().expand(len(query), 1, query.shape[2], key.shape[2]), positions)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    mixed = attend(query.float(), key.float(), value.float(), prepared, scale, softcap)
    return mixed.to(query.dtype), None


ALL_ATTENTION_FUNCTIONS.register(NAME, attention_forward)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, sdpa_mask)
