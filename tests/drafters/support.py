"""Tiny Llamas with text of their own making, and requests that are driven step by step."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from paceline import Engine
from paceline.requests import Result
from paceline.sequence import Sequence as Record

VOCABULARY = 48
PROMPTS = [[5, 6, 7, 8, 5, 6], [3], [9, 2, 9, 2, 9, 2, 30, 31, 32, 33], [11, 40, 40, 12]]


def llama(seed: int = 0, layers: int = 2, vocabulary: int = VOCABULARY, context: int = 192, **config: Any) -> Any:
    """A random Llama whose greedy texts wander before they repeat themselves."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    module = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            num_hidden_layers=layers,
            max_position_embeddings=context,
            initializer_range=0.3,
            bos_token_id=None,
            eos_token_id=0,
            pad_token_id=0,
            **{**sizes, **config},
        )
    )
    return module.float().eval()


def engine_of(module: Any, drafter: object = "none", **options: Any) -> Engine:
    return Engine.load(module, drafter=drafter, fast=False, **options)


def generated(module: Any, prompt: Sequence[int], count: int) -> list[int]:
    """What transformers generates greedily."""
    out = module.generate(torch.tensor([list(prompt)]), max_new_tokens=count, do_sample=False)
    return out[0, len(prompt) :].tolist()


def results(engine: Engine, prompts: list[list[int]], **options: Any) -> list[Result]:
    """All prompts in one batch, every one without error."""
    found = engine.generate(prompts, **options)
    for result in found:
        assert result.error is None
    return found


@cache
def greedy(count: int) -> list[list[int]]:
    """What transformers generates with `llama()` after each of `PROMPTS`."""
    module = llama()
    return [generated(module, prompt, count) for prompt in PROMPTS]


def batch(drafter: object, count: int, engine: Engine | None = None) -> list[Result]:
    """All prompts in one batch of `llama()`, every text that of transformers."""
    found = results(engine or engine_of(llama()), PROMPTS, max_new_tokens=count, drafter=drafter)
    assert [result.tokens for result in found] == greedy(count)
    return found


def start(engine: Engine, prompt: Sequence[int], **options: Any) -> Record:
    """A request that waits in the decoder; call `engine.decoder.step()`."""
    return engine.submit(engine.request(list(prompt), **options))[0]
