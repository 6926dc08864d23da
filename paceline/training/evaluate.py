"""Compression of held-out text: a language model's bits per byte, with `xz -9` as the yardstick."""

from __future__ import annotations

import lzma
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerFast


def unpack(path: Path, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """The documents of a packed file."""
    tokens = np.fromfile(path, dtype="<u2")
    ends = np.flatnonzero(tokens == tokenizer.eos_token_id)
    pieces = np.split(tokens, ends + 1)[:-1]
    return [str(tokenizer.decode(piece[:-1].tolist())) for piece in pieces]


def windows(tokens: Sequence[int], start: int, length: int) -> Iterator[torch.Tensor]:
    """A document as consecutive windows `[1, <= length + 1]`: the end token `start`, then all its tokens."""
    ids = torch.tensor([[start, *tokens]])
    for begin in range(0, ids.shape[1] - 1, length):
        yield ids[:, begin : begin + length + 1]


@torch.inference_mode()
def model_bits(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, text: str) -> float:
    """Bits the model needs for one document that begins after the end token.

    Windows do not overlap: every `max_position_embeddings` tokens the model starts without context, so the
    figure is an upper bound.
    """
    tokens = tokenizer.backend_tokenizer.encode(text).ids
    bits = 0.0
    for window in windows(tokens, tokenizer.eos_token_id, model.config.max_position_embeddings):
        window = window.to(model.device)
        logits = model(input_ids=window[:, :-1], use_cache=False).logits[0].float()
        bits += F.cross_entropy(logits, window[0, 1:], reduction="sum").item() / math.log(2)
    return bits


def model_bits_per_byte(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> float:
    """Bits per UTF-8 byte of `texts`, each scored by itself."""
    return sum(model_bits(model, tokenizer, text) for text in texts) / size(texts)


def xz_bits_per_byte(texts: Sequence[str], together: bool) -> float:
    """Bits per byte of `xz -9`: all texts in one stream (`together`), or each by itself."""
    streams = ["".join(texts)] if together else texts
    return 8 * sum(len(lzma.compress(text.encode(), preset=9)) for text in streams) / size(texts)


def size(texts: Sequence[str]) -> int:
    """Length in UTF-8 bytes."""
    return sum(len(text.encode()) for text in texts)
