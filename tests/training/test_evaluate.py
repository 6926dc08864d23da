"""Bits per byte."""

from __future__ import annotations

import lzma
import math
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from paceline.errors import BadRequest
from paceline.training.corpus import Document
from paceline.training.evaluate import model_bits, model_bits_per_byte, unpack, windows, xz_bits_per_byte
from paceline.training.presets import preset_config
from paceline.training.tokenizer import train_tokenizer


def test_unpack_restores_documents(work: Path, documents: list[Document], tokenizer: PreTrainedTokenizerFast) -> None:
    assert unpack(work / "validation.bin", tokenizer) == [d.text for d in documents[36:]]


def test_windows_predict_every_token_once() -> None:
    parts = list(windows(range(1, 11), 0, 4))
    assert torch.cat([part[0, 1:] for part in parts]).tolist() == list(range(1, 11))
    assert torch.cat([part[0, :-1] for part in parts]).tolist() == list(range(10))


def test_a_uniform_model_needs_log2_of_the_vocabulary(tokenizer: PreTrainedTokenizerFast) -> None:
    model = LlamaForCausalLM(preset_config("tiny", 256, tokenizer.eos_token_id, 8)).requires_grad_(False)
    model.get_input_embeddings().weight.zero_()
    # Token ids beyond this model's 256 do not occur: every byte's own token is below.
    text = "".join(tokenizer.decode([i]) for i in range(40, 60))
    count = len(tokenizer(text).input_ids)
    assert model_bits(model, tokenizer, [text]) == pytest.approx(8 * count, rel=1e-5)
    assert model_bits_per_byte(model, tokenizer, [text, text]) == pytest.approx(8 * count / len(text), rel=1e-5)


def test_documents_scored_together_cost_what_each_costs_alone(
    documents: list[Document], tokenizer: PreTrainedTokenizerFast
) -> None:
    """Window by window, from the logits of the whole model."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(preset_config("tiny", len(tokenizer), tokenizer.eos_token_id, 16)).requires_grad_(False)
    texts = [documents[i].text[: 40 * i + 1] for i in range(6)]
    nats = 0.0
    for text in texts:
        for window in windows(tokenizer(text).input_ids, tokenizer.eos_token_id, 16):
            logits = model(input_ids=window[:, :-1]).logits[0]
            nats += float(torch.nn.functional.cross_entropy(logits, window[0, 1:], reduction="sum"))
    assert model_bits(model, tokenizer, texts) == pytest.approx(nats / math.log(2), rel=1e-5)


def test_a_file_of_another_tokenizer_is_refused(work: Path) -> None:
    small = train_tokenizer(["x"], vocabulary=257)
    with pytest.raises(BadRequest, match="was packed for another tokenizer"):
        unpack(work / "validation.bin", small)


def test_xz_together_and_apart() -> None:
    texts = ["abc" * 50, "abc" * 50]
    both = 8 * len(lzma.compress("".join(texts).encode(), preset=9)) / 300
    assert xz_bits_per_byte(texts, together=True) == both < xz_bits_per_byte(texts, together=False)
