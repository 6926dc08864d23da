"""Packed tokens: documents end to end in one flat file, and windows of it as training batches."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from paceline.errors import BadRequest

from .corpus import Document

CHUNK = 128  # documents encoded per call: enough to keep the tokenizer's threads busy


def pack(
    documents: Sequence[Document],
    tokenizer: PreTrainedTokenizerFast,
    path: Path,
    advance: Callable[[int], None] = lambda count: None,
) -> None:
    """Write every document and an end token as little-endian uint16, and the counts beside it as JSON.

    `advance` is called with the number of documents finished, for a progress bar.
    """
    end = tokenizer.eos_token_id
    tokens = 0
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        for start in range(0, len(documents), CHUNK):
            chunk = documents[start : start + CHUNK]
            encoded = tokenizer.backend_tokenizer.encode_batch_fast([d.text for d in chunk])
            flat = np.concatenate([np.array([*e.ids, end], dtype="<u2") for e in encoded])
            flat.tofile(file)
            tokens += flat.size
            advance(len(chunk))
    counts = {
        "tokens": tokens,
        "documents": len(documents),
        "bytes": sum(d.size for d in documents),
        "end": end,
    }
    path.with_suffix(".json").write_text(json.dumps(counts) + "\n")
    partial.replace(path)


class PackedTokens:
    """A packed file as batches of windows `[batch, length + 1]` (inputs and their next tokens).

    Each epoch cuts the file at another offset and visits the windows in another order. A batch is a function
    of its index alone, so resuming needs nothing but the step.
    """

    def __init__(self, path: Path, length: int, seed: int = 0) -> None:
        self.tokens = np.memmap(path, dtype="<u2", mode="r")
        self.bytes: int = json.loads(path.with_suffix(".json").read_text())["bytes"]
        self.length = length
        self.seed = seed
        self.windows = (len(self.tokens) - 1) // length - 1
        if self.windows < 1:
            raise BadRequest(f"{path} has {len(self.tokens)} tokens: too few for windows of {length}")
        self._epoch: tuple[int, int, np.ndarray] | None = None

    def window(self, index: int) -> np.ndarray:
        """Window number `index` counted over all epochs, `[length + 1]`."""
        epoch, position = divmod(index, self.windows)
        if self._epoch is None or self._epoch[0] != epoch:
            chance = np.random.default_rng((self.seed, epoch))
            self._epoch = epoch, int(chance.integers(self.length)), chance.permutation(self.windows)
        _, offset, order = self._epoch
        start = offset + int(order[position]) * self.length
        return self.tokens[start : start + self.length + 1]

    def batch(self, index: int, size: int) -> torch.Tensor:
        """Batch number `index` of `size` windows, `[size, length + 1]` int64."""
        rows = [self.window(index * size + row) for row in range(size)]
        return torch.from_numpy(np.stack(rows).astype(np.int64))
