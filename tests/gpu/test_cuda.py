"""The same engine on a CUDA device; skipped where there is none."""

from __future__ import annotations

import pytest
import torch
from models.seq2seq import SUPPORTED, build, written
from transformers import LlamaConfig, LlamaForCausalLM

from paceline import Engine

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.fixture(scope="module")
def module() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        eos_token_id=None,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config).float().cuda().eval()


@pytest.mark.parametrize("drafter", ["none", "ngram", "recycling"])
def test_greedy_equals_transformers(module: LlamaForCausalLM, drafter: str) -> None:
    prompts = [[1, 2, 3], [4, 5, 6, 7, 8, 9, 4, 5, 6], [9]]
    engine = Engine.load(module, drafter=drafter)
    for prompt, result in zip(prompts, engine.generate(prompts, max_new_tokens=40), strict=True):
        ids = torch.tensor([prompt], device="cuda")
        expected = module.generate(ids, do_sample=False, max_new_tokens=40, pad_token_id=0)
        assert result.tokens == expected[0, len(prompt) :].tolist()


@pytest.mark.parametrize("name", ["T5, gated", "BART"])
def test_encoder_decoder_text_equals_transformers(name: str) -> None:
    module = build(*SUPPORTED[name]).cuda()
    sources = [[7], [5, 9, 5, 9, 5], [(3 * i) % 50 + 3 for i in range(23)]]
    for drafter in ("none", "ngram(candidates=4, confidence=0)", "aggressive(confidence=0)"):
        results = Engine.load(module, drafter=drafter).generate(sources, max_new_tokens=16)
        assert [result.tokens for result in results] == [written(module, source, 16) for source in sources]


def test_seed_equality_across_drafters(module: LlamaForCausalLM) -> None:
    engine = Engine.load(module)
    texts = [
        engine.generate([5, 6, 7], drafter=d, temperature=0.8, seed=4, max_new_tokens=40).tokens
        for d in ("none", "ngram", "recycling")
    ]
    assert texts[0] == texts[1] == texts[2]


def test_one_sync_a_step(module: LlamaForCausalLM) -> None:
    engine = Engine.load(module, drafter="ngram")
    stream = engine.stream([1, 2, 3, 1, 2, 3], max_new_tokens=20)
    next(stream)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with pytest.warns(UserWarning, match="synchroniz") as seen:
            next(stream)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(seen) <= 1
