"""Compression of held-out text: a language model's bits per byte, with `xz -9` as the yardstick."""

from __future__ import annotations

import lzma
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from paceline.errors import BadRequest

#: Positions in a forward pass, positions whose logits are computed together, and the target of what is no text.
POSITIONS, PIECE, IGNORED = 2048, 256, -100


def unpack(path: Path, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """The documents of a packed file. Raises `BadRequest` for one that another tokenizer made."""
    tokens = np.fromfile(path, dtype="<u2")
    if len(tokens) and int(tokens.max()) >= len(tokenizer):
        raise BadRequest(f"work: {path} was packed for another tokenizer: token {tokens.max()} of {len(tokenizer)}")
    ends = np.flatnonzero(tokens == tokenizer.eos_token_id)
    pieces = np.split(tokens, ends + 1)[:-1]
    return [str(tokenizer.decode(piece[:-1].tolist())) for piece in pieces]


def windows(tokens: Sequence[int], start: int, length: int) -> Iterator[torch.Tensor]:
    """A document as consecutive windows `[1, <= length + 1]`: the end token `start`, then all its tokens."""
    ids = torch.tensor([[start, *tokens]])
    for begin in range(0, ids.shape[1] - 1, length):
        yield ids[:, begin : begin + length + 1]


def batches(windows: Iterable[torch.Tensor], end: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Windows `[1, T + 1]` of like lengths together: inputs `[B, T]` filled up with `end`, targets with `IGNORED`.

    What fills up stands behind the texts, where causal attention does not look.
    """
    ordered = sorted(windows, key=lambda window: -window.shape[1])
    while ordered:
        length = ordered[0].shape[1] - 1
        count = max(1, POSITIONS // length)
        group, ordered = ordered[:count], ordered[count:]
        inputs = [F.pad(window[:, :-1], (0, length + 1 - window.shape[1]), value=end) for window in group]
        targets = [F.pad(window[:, 1:], (0, length + 1 - window.shape[1]), value=IGNORED) for window in group]
        yield torch.cat(inputs), torch.cat(targets)


@torch.inference_mode()
def model_bits(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> float:
    """Bits the model needs for all documents, each of which begins after the end token.

    Windows do not overlap: every `max_position_embeddings` tokens the model starts without context, so the
    figure is an upper bound.
    """
    end, length = tokenizer.eos_token_id, model.config.max_position_embeddings
    encoded = tokenizer.backend_tokenizer.encode_batch_fast(list(texts))
    cut = (window for document in encoded for window in windows(document.ids, end, length))
    nats = torch.zeros((), dtype=torch.float64, device=model.device)
    for inputs, targets in batches(cut, end):
        states = model.base_model(input_ids=inputs.to(model.device), use_cache=False).last_hidden_state.flatten(0, 1)
        # Logits of all positions would not fit into a processor's cache, and take longer to move than to compute.
        for hidden, wanted in zip(states.split(PIECE), targets.to(model.device).flatten().split(PIECE), strict=True):
            logits = model.get_output_embeddings()(hidden).float()
            nats += F.cross_entropy(logits, wanted, ignore_index=IGNORED, reduction="sum")
    return float(nats) / math.log(2)


def model_bits_per_byte(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> float:
    """Bits per UTF-8 byte of `texts`, each scored by itself."""
    return model_bits(model, tokenizer, texts) / size(texts)


def xz_bits_per_byte(texts: Sequence[str], together: bool) -> float:
    """Bits per byte of `xz -9`: all texts in one stream (`together`), or each by itself."""
    streams = ["".join(texts)] if together else texts
    return 8 * sum(len(lzma.compress(text.encode(), preset=9)) for text in streams) / size(texts)


def size(texts: Sequence[str]) -> int:
    """Length in UTF-8 bytes."""
    return sum(len(text.encode()) for text in texts)
