"""Telling a decoder where a pass's tokens stand, where it would count slots.

Decoders of encoder-decoder models take no `position_ids`: they number a pass's tokens one after the other behind what
is cached. In a tree siblings stand at one position, and in a batch rows have texts of different lengths. So for the
time of a pass the few places that count are replaced, each by a small function, found by what the module has:

- a relative bias (`compute_bias`: the T5 family), by that of the distances between positions;
- a table of positions (`embed_positions`) that can be asked for given positions (BART, mBART, Marian, Pegasus, ...);
- a table that numbers every token but padding (M2M100, NLLB).

Whether that is all an architecture needs is tried at loading (`paceline.models.check`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Places:
    """Where the tokens of a pass and the slots that they look at stand, counted from the output's first token.

    Attributes:
        tokens: `[B, T]` int64.
        slots: `[B, S]` int64, not below 0; those that nobody sees may have any value.
        length: more than any of the tokens' positions.
    """

    tokens: Tensor
    slots: Tensor
    length: int


#: Makes what takes the place of a method, of the module, the method and a pass's places.
Replacement = Callable[[Any, Callable[..., Tensor], Places], Callable[..., Tensor]]


@dataclass(frozen=True)
class Seam:
    """A method of a part of a decoder that counts slots, and what replaces it."""

    part: nn.Module
    name: str
    replacement: Replacement


def seams(decoder: nn.Module) -> list[Seam]:
    """The places of a decoder that count slots."""
    found = [
        Seam(part, "compute_bias", _bias_of_distance)
        for part in decoder.modules()
        if hasattr(part, "compute_bias") and isinstance(getattr(part, "relative_attention_bias", None), nn.Embedding)
    ]
    table: Any = getattr(decoder, "embed_positions", None)
    if isinstance(table, nn.Module):
        if "position_ids" in inspect.signature(table.forward).parameters:
            found.append(Seam(table, "forward", _asked))
        elif hasattr(table, "weights") and hasattr(table, "make_weights"):
            found.append(Seam(table, "forward", _numbered))
    return found


@contextmanager
def placed(found: list[Seam], places: Places) -> Iterator[None]:
    """The decoder with its tokens at given places; whatever happens, the module is then as it was."""
    before = [vars(seam.part).get(seam.name) for seam in found]
    for seam in found:
        setattr(seam.part, seam.name, seam.replacement(seam.part, getattr(seam.part, seam.name), places))
    try:
        yield
    finally:
        for seam, own in zip(found, before, strict=True):
            if own is None:
                delattr(seam.part, seam.name)
            else:
                setattr(seam.part, seam.name, own)


def _bias_of_distance(part: Any, original: Callable[..., Tensor], places: Places) -> Callable[..., Tensor]:
    """A bias `[B, H, T, S]` of the distance from a token back to a slot; what lies ahead is masked."""
    distance = (places.tokens[:, :, None] - places.slots[:, None, :]).clamp_(min=0)

    def compute_bias(*args: Any, **kwargs: Any) -> Tensor:
        # That of one token behind so many others: by distance, the farthest first.
        known = original(1, places.length, device=distance.device, past_seen_tokens=places.length - 1)
        return known[0, :, 0].flip(-1)[:, distance].transpose(0, 1)

    return compute_bias


def _asked(part: Any, original: Callable[..., Tensor], places: Places) -> Callable[..., Tensor]:
    """Rows `[B, T, d]` of a table for given positions."""

    def forward(shape: Any, *args: Any, **kwargs: Any) -> Tensor:
        return original(shape, position_ids=places.tokens.flatten()).reshape(*places.tokens.shape, -1)

    return forward


def _numbered(part: Any, original: Callable[..., Tensor], places: Places) -> Callable[..., Tensor]:
    """Rows `[B, T, d]` of a table whose row `padding_idx` is that of padding, and the next one position 0's."""

    def forward(input_ids: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        padding = part.padding_idx
        numbers = torch.where(input_ids == padding, padding, places.tokens + padding + 1)
        if (longest := places.length + padding + 1) > len(part.weights):
            part.make_weights(longest, part.embedding_dim, padding)
        rows: Tensor = part.weights[numbers]
        return rows

    return forward
