"""A miniature corpus, tokenizer and packed files, made once for all training tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from paceline.training.corpus import Document
from paceline.training.packing import pack
from paceline.training.tokenizer import train_tokenizer


def source(number: int) -> str:
    """A small Python module; every number gives another one."""
    words = ["alpha", "beta", "gamma", "delta", "omega"]
    lines = [
        f"def {words[(number + i) % 5]}_{number}(self, value):\n    return self.{words[i]} + value * {i}\n"
        for i in range(5)
    ]
    return f'"""Module {number}."""\n\n\n' + "\n\n".join(lines)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny matrices are fastest on one thread, and equal from run to run."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def documents() -> list[Document]:
    return [Document("test", f"{i}.py", source(i), held_out=False) for i in range(40)]


@pytest.fixture(scope="session")
def tokenizer(documents: list[Document]) -> PreTrainedTokenizerFast:
    return train_tokenizer([d.text for d in documents], vocabulary=300)


@pytest.fixture(scope="session")
def work(
    tmp_path_factory: pytest.TempPathFactory, documents: list[Document], tokenizer: PreTrainedTokenizerFast
) -> Path:
    """A folder with `train.bin` and `validation.bin`."""
    folder = tmp_path_factory.mktemp("work")
    pack(documents[:36], tokenizer, folder / "train.bin")
    pack(documents[36:], tokenizer, folder / "validation.bin")
    return folder
