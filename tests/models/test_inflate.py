"""Inflated models compute what the small ones do."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from paceline.errors import BadRequest
from paceline.models.inflate import INFLATED, inflate, inflate_preset

SIZES = {
    "vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "eos_token_id": None, "bos_token_id": None,
}  # fmt: skip


def llama(**more: object) -> LlamaForCausalLM:
    torch.manual_seed(0)
    module = LlamaForCausalLM(LlamaConfig(**SIZES | more)).eval()
    for parameter in module.parameters():  # norms away from 1, so that their scale matters
        parameter.data += torch.randn_like(parameter) * 0.1
    return module


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("size", [{"hidden": 128, "layers": 5}, {"hidden": 48, "layers": 3, "intermediate": 100}])
def test_logits_agree(size: dict[str, int], tied: bool) -> None:
    small = llama(tie_word_embeddings=tied)
    large = inflate(small, **size)
    tokens = torch.randint(60, (2, 20))
    torch.testing.assert_close(large(tokens).logits, small(tokens).logits, atol=2e-5, rtol=1e-4)
    assert large.config.num_hidden_layers == size["layers"]
    assert sum(p.numel() for p in large.parameters()) > sum(p.numel() for p in small.parameters())


def test_four_times_the_width_is_exact_in_bfloat16() -> None:
    small = llama(num_hidden_layers=1).bfloat16()
    large = inflate(small, hidden=128, layers=1)
    tokens = torch.randint(60, (1, 20))
    difference = (large(tokens).logits - small(tokens).logits).abs().max()
    assert difference <= 0.03 * small(tokens).logits.std()


def test_head_norms_and_biases() -> None:
    torch.manual_seed(1)
    small = Qwen3ForCausalLM(Qwen3Config(**SIZES, attention_bias=True)).eval()
    for parameter in small.parameters():
        parameter.data += torch.randn_like(parameter) * 0.1
    large = inflate(small, hidden=64, layers=3)
    tokens = torch.randint(60, (1, 20))
    torch.testing.assert_close(large(tokens).logits, small(tokens).logits, atol=2e-5, rtol=1e-4)


def test_greedy_text_is_the_same() -> None:
    small = llama()
    large = inflate(small, hidden=96, layers=4)
    prompt = torch.tensor([[1, 2, 3]])
    texts = [m.generate(prompt, do_sample=False, max_new_tokens=30, pad_token_id=0).tolist() for m in (small, large)]
    assert texts[0] == texts[1]


def test_parameter_count() -> None:
    large = inflate(llama(tie_word_embeddings=True), hidden=64, layers=3, intermediate=96)
    layer = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96 + 2 * 64
    assert sum(p.numel() for p in large.parameters()) == 60 * 64 + 3 * layer + 64


def test_sizes_are_checked() -> None:
    small = llama()
    for size, match in (
        ({"hidden": 16, "layers": 2}, "hidden=16"),
        ({"hidden": 64, "layers": 1}, "layers=1"),
        ({"hidden": 72, "layers": 2}, "multiple of 16"),
        ({"hidden": 64, "layers": 2, "intermediate": 8}, "intermediate=8"),
    ):
        with pytest.raises(BadRequest, match=match):
            inflate(small, **size)
    with pytest.raises(BadRequest, match="100m"):
        inflate_preset(small, "7b")
    assert set(INFLATED) == {"100m", "500m"}
