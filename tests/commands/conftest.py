"""Tiny models in folders, and a way to run the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner, Result

from paceline.cli import app
from paceline.training.tokenizer import train_tokenizer

TEXT = (
    "def add(a, b):\n    return a + b\n\n\nclass Stack:\n    def push(self, item):\n        self.items.append(item)\n"
)
Run = Callable[..., Result]


def save(folder: Path, vocabulary: int, seed: int, context: int = 2048) -> Path:
    """A random Llama of two small layers with a byte-level tokenizer of its own."""
    tokenizer = train_tokenizer([TEXT * 3], vocabulary)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=context,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save(tmp_path_factory.mktemp("tiny"), 290, seed=0))


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model with another vocabulary."""
    return str(save(tmp_path_factory.mktemp("other"), 270, seed=1))


@pytest.fixture
def run() -> Run:
    """`run("generate", "text", ...)` as the `paceline` script would."""
    runner = CliRunner()

    def call(*words: str, stdin: str | bytes | None = None) -> Result:
        return runner.invoke(app, list(words), input=stdin)

    return call
