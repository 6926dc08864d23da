"""The adapter: any rows in any order, hidden states, context and end tokens, and what the self-check lets through."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GenerationConfig, LlamaConfig

from models.architectures import SUPPORTED, VOCABULARY, build
from paceline.caches import Row, TrieCache
from paceline.errors import ModelError, OutOfMemory, Unsupported
from paceline.models.causal import CausalModel
from paceline.models.check import self_check
from paceline.models.config import windows
from paceline.models.loading import load_model
from paceline.tree import TokenTree


@pytest.fixture(scope="module")
def model() -> CausalModel:
    return CausalModel(build(*SUPPORTED["Llama"]).double())


@torch.inference_mode()
def fresh(model: CausalModel, text: list[int]) -> torch.Tensor:
    return model.module(input_ids=torch.tensor([text]), use_cache=False).logits[0].float()


def test_rows_are_scored_in_the_order_asked_for(model: CausalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those with few others between them share a pass, which leaves the others as they are."""
    cache, passes = model.new_cache(4), []
    one_pass = CausalModel._pass

    def counted(self: CausalModel, cache: TrieCache, rows: list[Row], *rest: Any) -> Any:
        passes.append([row.index for row in rows])
        return one_pass(self, cache, rows, *rest)

    monkeypatch.setattr(CausalModel, "_pass", counted)
    rows = [cache.allocate() for _ in range(4)]
    texts = [[1, 2], [3], [], [5, 6, 7]]
    for row, text in zip(rows, texts, strict=True):
        model.prefill(cache, row, text)
    shared = {
        (0, 1, 2, 3): [[0, 1, 2, 3]],
        (3, 0, 2): [[0, 1, 2, 3]],
        (2, 0): [[0, 1, 2]],
        (0, 3): [[0], [3]],
        (1,): [[1]],
    }
    for order, wanted_passes in shared.items():
        passes.clear()
        trees = [TokenTree.chain(10 + i, [20 + i, 30 + i][: i % 3]) for i in order]
        pending = [[8, 9][: i % 2] for i in order]
        scores = model.score(cache, [rows[i] for i in order], trees, pending, hidden=(1,))
        assert passes == wanted_passes
        assert [len(row.parents) > 0 for row in rows] == [i in order for i in range(4)]
        assert scores.starts == [0, *np.cumsum([len(tree) for tree in trees]).tolist()]
        for at, i in enumerate(order):
            wanted = fresh(model, texts[i] + pending[at] + trees[at].tokens.tolist())
            torch.testing.assert_close(scores.of(at), wanted[-len(trees[at]) :], rtol=0, atol=1e-6)
            cache.crop(rows[i], len(texts[i]))
        assert scores.hidden[1].shape == (scores.starts[-1], 32)


def test_hidden_states_are_the_modules(model: CausalModel) -> None:
    cache = model.new_cache(1)
    row = cache.allocate()
    tree = TokenTree.chain(4, [5, 6])
    scores = model.score(cache, [row], [tree], [[1, 2]], hidden=(0, 1, 2))
    with torch.inference_mode():
        states = model.module(input_ids=torch.tensor([[1, 2, 4, 5, 6]]), output_hidden_states=True).hidden_states
    for layer in range(3):
        torch.testing.assert_close(scores.hidden[layer], states[layer][0, 2:], rtol=0, atol=1e-6)
    torch.testing.assert_close(scores.logits, fresh(model, [1, 2, 4, 5, 6])[2:], rtol=0, atol=1e-6)


@pytest.mark.parametrize("chunk", [1, 3, 512])
def test_prefill_commits_and_may_tell_logits(model: CausalModel, chunk: int) -> None:
    text = [3, 1, 4, 1, 5, 9, 2]
    cache = model.new_cache(2)
    rows = [cache.allocate(), cache.allocate()]
    assert model.prefill(cache, rows[0], text, chunk) == []
    pieces = model.prefill(cache, rows[1], text, chunk, logits=True)
    assert [len(piece) for piece in pieces] == [min(chunk, 7 - at) for at in range(0, 7, chunk)]
    torch.testing.assert_close(torch.cat(pieces), fresh(model, text), rtol=0, atol=1e-6)
    for row in rows:
        assert (row.trunk, row.parents) == (7, [])
        scores = model.score(cache, [row], [TokenTree.empty(6)])
        torch.testing.assert_close(scores.logits[0], fresh(model, [*text, 6])[-1], rtol=0, atol=1e-6)
        cache.crop(row, 7)
    assert model.prefill(cache, rows[0], []) == []


def test_end_tokens_come_from_the_generation_config_then_the_config() -> None:
    module = build(*SUPPORTED["Llama"])
    found = []
    for generation, config in ((None, None), (None, 7), ([3, 4], 7), (5, 7)):
        module.generation_config = GenerationConfig(eos_token_id=generation)
        module.config.eos_token_id = config
        found.append(CausalModel(module).end_tokens)
    assert found == [frozenset(), frozenset({7}), frozenset({3, 4}), frozenset({5})]


def test_the_context_comes_from_the_config() -> None:
    assert CausalModel(build(*SUPPORTED["Llama"])).context == 400
    assert CausalModel(build(*SUPPORTED["GPT-2"])).context == 400
    model = CausalModel(build(*SUPPORTED["Llama"]))
    assert model.new_cache(1).limit == 400
    assert model.new_cache(1, limit=7).limit == 7


def test_weights_read_by_a_pass() -> None:
    """Everything once, but for an embedding table that is not also the head."""
    untied = build(*SUPPORTED["Llama"])
    total = sum(p.nbytes for p in untied.parameters())
    assert CausalModel(untied).nbytes == total - VOCABULARY * 32 * 4
    tied = build("LlamaConfig", {"tie_word_embeddings": True})
    assert CausalModel(tied).nbytes == sum(p.nbytes for p in tied.parameters())


# -- windows -------------------------------------------------------------------------------------------------


def config(**values: Any) -> Any:
    return SimpleNamespace(model_type="toy", to_dict=lambda: values, **values)


def test_windows_by_layer_type() -> None:
    both = ["sliding_attention", "full_attention", "sliding_attention"]
    assert windows(config()) == {"full_attention": None}
    assert windows(config(sliding_window=5)) == {"full_attention": 5}
    assert windows(config(sliding_window=5, use_sliding_window=False)) == {"full_attention": None}
    assert windows(config(sliding_window=5, layer_types=both)) == {"sliding_attention": 5, "full_attention": None}
    assert windows(LlamaConfig()) == {"full_attention": None}


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"layer_types": ["full_attention", "conv", "linear_attention"]}, "has conv, linear_attention layers"),
        ({"layer_types": ["sliding_attention"]}, "limits attention by an unnamed window"),
        ({"window_size": 9, "sliding_window": 4}, "limits attention by window_size=9"),
    ],
)
def test_other_attention_is_refused(values: dict[str, Any], reason: str) -> None:
    with pytest.raises(Unsupported, match=reason):
        windows(config(**values))


# -- self-check ----------------------------------------------------------------------------------------------


def test_the_check_restores_windows() -> None:
    module = build(*SUPPORTED["Gemma 2"])
    adapter = CausalModel(module)
    before = dict(adapter.windows)
    self_check(adapter)
    assert adapter.windows == before
    assert module.config.sliding_window == 6


def test_a_window_that_means_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Off by one is enough, however long the window: the check narrows it."""
    from paceline.caches import Extension

    plain = Extension.window
    monkeypatch.setattr(Extension, "window", lambda self, size: plain(self, size + 1))
    with pytest.raises(Unsupported, match="does not honour tree masks"):
        self_check(CausalModel(build("MistralConfig", {"sliding_window": 300})))


def test_broken_weights_are_named() -> None:
    module = build(*SUPPORTED["Llama"])
    with torch.no_grad():
        module.model.layers[1].mlp.up_proj.weight[0, 0] = torch.nan
    with pytest.raises(ModelError, match=r"LlamaForCausalLM: .*non-finite logits"):
        load_model(module)


def test_foreign_errors_are_a_refusal_and_memory_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    for raised, seen, words in (
        (AssertionError("odd"), Unsupported, "cannot take a prepared cache.*AssertionError: odd"),
        (OutOfMemory("full"), OutOfMemory, "full"),
    ):
        adapter = CausalModel(build(*SUPPORTED["Llama"]))

        def forward(*args: object, raised: Exception = raised, **kwargs: object) -> None:
            raise raised

        monkeypatch.setattr(adapter.module, "forward", forward)
        with pytest.raises(seen, match=words):
            self_check(adapter)
