"""The lean forward passes compute what the module computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from paceline.drafters import lean
from paceline.drafters.lean import Lean, speed_up_small, suits
from paceline.models.causal import CausalModel
from paceline.models.loading import load_model
from paceline.native import kernels
from paceline.native.small import SmallLlama
from paceline.tree import TokenTree
from tests.drafters.support import VOCABULARY, llama

TREE = TokenTree(np.array([4, 5, 6, 7, 5]), np.array([-1, 0, 0, 1, 2]))


@pytest.fixture(params=["native", "numpy"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type[Any]:
    """Both passes, where there is a C compiler."""
    if request.param == "numpy":
        monkeypatch.setattr(lean, "kernels", lambda: None)
        return Lean
    if kernels() is None:
        pytest.skip("no native kernels")
    return SmallLlama


def scores(model: CausalModel) -> list[torch.Tensor]:
    """Trees and chains on three rows of different lengths, with and without tokens to catch up on."""
    cache = model.new_cache(4)
    rows = [cache.allocate() for _ in range(3)]
    found = []
    for row, length in zip(rows, (1, 20, 140), strict=True):
        found += model.prefill(cache, row, [(7 * i + 3) % VOCABULARY for i in range(length)], 64, logits=True)
    trees = [TREE, TokenTree.chain(8, [9]), TokenTree.empty(2)]
    found.append(model.score(cache, rows, trees, [[1, 2], [], [3]]).logits)
    for row, path in zip(rows, ([0, 1, 2, 4], [0, 1], [0]), strict=True):
        cache.keep(row, path)
    found.append(model.score(cache, rows[1:], [TREE, TREE]).logits)
    return found


@pytest.mark.parametrize(
    "shape",
    [{}, {"num_key_value_heads": 4}, {"num_key_value_heads": 1, "tie_word_embeddings": True}, {"head_dim": 16}],
)
def test_logits_equal_the_module(shape: dict[str, Any], kind: type[Any]) -> None:
    plain = load_model(llama(**shape), fast=False)
    model = load_model(llama(**shape), fast=False)
    speed_up_small(model)
    assert isinstance(model.forward, kind)
    for got, wanted in zip(scores(model), scores(plain), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_positions_beyond_the_first_table(kind: type[Any]) -> None:
    plain = load_model(llama(context=700), fast=False)
    model = load_model(llama(context=700), fast=False)
    speed_up_small(model)
    tokens = [(5 * i) % VOCABULARY for i in range(650)]
    logits = [m.prefill(m.new_cache(1), m.new_cache(1).allocate(), [1])[:0] for m in (model, plain)]
    assert logits == [[], []]
    found = []
    for m in (model, plain):
        cache = m.new_cache(1)
        found.append(m.prefill(cache, cache.allocate(), tokens, 100, logits=True)[-1])
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)


def test_large_or_unusual_models_are_left_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"vocab_size": 16, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8}
    biased = load_model(Qwen2ForCausalLM(Qwen2Config(**sizes, **heads)), fast=False)
    normed = load_model(Qwen3ForCausalLM(Qwen3Config(**sizes, **heads)), fast=False)
    assert not suits(biased)
    assert not suits(normed)
    assert not suits(load_model(llama(hidden_act="gelu"), fast=False))
    small = load_model(llama(), fast=False)
    assert suits(small)
    monkeypatch.setattr(lean, "LARGEST", 1000)
    assert not suits(small)
    speed_up_small(small)
    assert not isinstance(small.forward, Lean | SmallLlama)


def test_a_model_it_gets_wrong_is_left_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lean, "kernels", lambda: None)
    monkeypatch.setattr(lean, "_unit", lambda x, epsilon: x)
    model = load_model(llama(), fast=False)
    speed_up_small(model)
    assert not isinstance(model.forward, Lean | SmallLlama)


@pytest.mark.skipif(kernels() is None, reason="no native kernels")
def test_weights_that_bfloat16_would_round_stay_as_they_are() -> None:
    rounded, exact = llama(), llama()
    rounded.load_state_dict({name: x.bfloat16().float() for name, x in exact.state_dict().items()})
    for module, dtype in ((rounded, torch.bfloat16), (exact, torch.float32)):
        model = load_model(module, fast=False)
        speed_up_small(model)
        assert isinstance(model.forward, SmallLlama)
        assert model.forward.dtype == dtype


@pytest.mark.skipif(kernels() is None, reason="no native kernels")
def test_native_numbers_do_not_depend_on_threads_or_company() -> None:
    model = load_model(llama(), fast=False)
    speed_up_small(model)
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(scores(model))
    torch.set_num_threads(1)
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))
    cache = model.new_cache(2)
    rows = [cache.allocate(), cache.allocate()]
    together = model.score(cache, rows, [TREE, TokenTree.chain(4, [5])]).logits
    cache.free(rows[1])
    cache.crop(rows[0], 0)
    assert torch.equal(model.score(cache, rows[:1], [TokenTree.chain(4, [5])]).logits, together[[5, 6]])


@pytest.mark.skipif(kernels() is None, reason="no native kernels")
def test_norms_with_several_epsilons_are_left_to_others() -> None:
    module = llama()
    module.model.norm.variance_epsilon = 0.5
    model = load_model(module, fast=False)
    speed_up_small(model)
    assert not isinstance(model.forward, SmallLlama)
