"""The packed file and its windows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from paceline.errors import BadRequest
from paceline.training.corpus import Document
from paceline.training.packing import PackedTokens, pack


def test_documents_are_separated_and_lossless(
    documents: list[Document], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    finished: list[int] = []
    pack(documents, tokenizer, tmp_path / "all.bin", finished.append)
    tokens = np.fromfile(tmp_path / "all.bin", dtype="<u2")
    ends = np.flatnonzero(tokens == tokenizer.eos_token_id)
    assert sum(finished) == len(ends) == len(documents)
    pieces = np.split(tokens, ends + 1)
    assert [tokenizer.decode(p[:-1].tolist()) for p in pieces[:-1]] == [d.text for d in documents]


def test_counts_of_bytes(work: Path, documents: list[Document]) -> None:
    assert PackedTokens(work / "train.bin", 16).bytes == sum(len(d.text.encode()) for d in documents[:36])


def test_an_epoch_visits_every_window_once(work: Path) -> None:
    data = PackedTokens(work / "train.bin", 32)
    first = {data.window(i).tobytes() for i in range(data.windows)}
    second = {data.window(data.windows + i).tobytes() for i in range(data.windows)}
    assert len(first) == len(second) == data.windows
    assert first != second  # another offset


def test_batches_depend_on_index_and_seed_only(work: Path) -> None:
    data, again = PackedTokens(work / "train.bin", 32), PackedTokens(work / "train.bin", 32)
    data.batch(50, 4)
    assert data.batch(7, 4).equal(again.batch(7, 4))
    assert data.batch(7, 4).shape == (4, 33)
    assert not data.batch(7, 4).equal(PackedTokens(work / "train.bin", 32, seed=1).batch(7, 4))


def test_too_short_file_is_refused(work: Path) -> None:
    with pytest.raises(BadRequest, match="too few"):
        PackedTokens(work / "validation.bin", 100_000)
