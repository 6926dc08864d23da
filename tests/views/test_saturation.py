"""MuE's exits: which layers a token goes through, and what stands in the cache of those that it does not."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from models.architectures import SUPPORTED, build
from torch import Tensor
from transformers.cache_utils import DynamicCache
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from paceline.caches import Row, TrieCache
from paceline.errors import BadRequest
from paceline.models.causal import CausalModel
from paceline.models.fused_layer import Layer
from paceline.models.loading import load_model
from paceline.models.views import Runs
from paceline.tree import TokenTree
from paceline.views.saturation import Saturating, Saturation
from tests.views.support import LAYERS, PASSES, model_of, tapering
from tests.views.test_views import WITHOUT

PROMPT, TOKENS = [5, 6, 7, 8], [9, 10, 11, 40, 3, 12, 20, 21]
THRESHOLD = 0.95


def begun(model: CausalModel) -> tuple[TrieCache, Row]:
    cache = model.new_cache(1)
    row = cache.allocate()
    row.prompt = len(PROMPT)
    model.prefill(cache, row, PROMPT)
    return cache, row


def view_of(count: int, threshold: float = THRESHOLD) -> Saturating:
    view = Saturation(threshold).view(np.arange(count), LAYERS)
    assert isinstance(view, Saturating)
    return view


@torch.no_grad()
def written_out(tokens: list[int], prompt: int) -> tuple[Tensor, list[int], DynamicCache]:
    """Logits of every token, its number of layers, and what is cached: token by token, by the module's own parts."""
    module, cache = tapering(), DynamicCache()
    logits, counts = [], []
    for place, token in enumerate(tokens):
        x = module.model.embed_tokens(torch.tensor([[token]]))
        where = module.model.rotary_emb(x, torch.tensor([[place]]))
        count = 0
        for number, layer in enumerate(module.model.layers):
            if count == number:
                entering, normed, count = x, layer.input_layernorm(x), number + 1
                x = x + layer.self_attn(normed, where, attention_mask=None, past_key_values=cache)[0]
                x = x + layer.mlp(layer.post_attention_layernorm(x))
                if place < prompt or float(F.cosine_similarity(entering, x, dim=-1)) < THRESHOLD:
                    continue
                count = -count
            else:
                normed, part = layer.input_layernorm(x), layer.self_attn
                key, value = (matrix(normed).view(1, 1, 2, -1).transpose(1, 2) for matrix in (part.k_proj, part.v_proj))
                cache.update(apply_rotary_pos_emb(key, key, *where)[0], value, number)
        logits.append(module.lm_head(module.model.norm(x))[0, 0])
        counts.append(abs(count))
    return torch.stack(logits), counts, cache


@pytest.mark.parametrize("path", PASSES)
def test_a_chain_is_what_its_tokens_are_one_by_one(path: str) -> None:
    """Also token by token, where a token that has left is alone in its pass and the rest of the layers is filled."""
    expected, counts, cells = written_out(PROMPT + TOKENS, len(PROMPT))
    assert counts[: len(PROMPT)] == [LAYERS] * len(PROMPT)
    assert any(early < late < LAYERS for early, late in pairwise(counts[len(PROMPT) :]))
    model = model_of(path)
    for trees in ([TokenTree.chain(TOKENS[0], TOKENS[1:])], [TokenTree.empty(token) for token in TOKENS]):
        cache, row = begun(model)
        logits, layers = [], []
        for tree in trees:
            view = view_of(len(tree))
            logits.append(model.score(cache, [row], [tree], view=view).logits)
            layers += view.layers.tolist()
            cache.keep(row, range(len(tree)))
        assert layers == counts[len(PROMPT) :]
        torch.testing.assert_close(torch.cat(logits), expected[len(PROMPT) :], rtol=1e-4, atol=1e-4)
        for ours, theirs in zip(cache.layers, cells.layers, strict=True):
            torch.testing.assert_close(ours.keys[0, :, : row.trunk], theirs.keys[0], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(ours.values[0, :, : row.trunk], theirs.values[0], rtol=1e-4, atol=1e-4)


class Discarding(Saturating):
    """Never says for a pass as a whole that its tokens have left: attention is computed, and discarded."""

    def attends(self, layer: int) -> Runs:
        return self.running


@pytest.mark.parametrize("name", ["fused", *(name for name in SUPPORTED if name not in WITHOUT)])
def test_filled_cells_are_those_of_attention_that_is_discarded(name: str) -> None:
    model = model_of("fused") if name == "fused" else load_model(build(*SUPPORTED[name]), fast=False)
    found = []
    for kind in (Saturating, Discarding):
        cache, row = begun(model)
        view = kind(-1.0, torch.ones(3, dtype=torch.bool))
        tree = TokenTree(np.array([9, 10, 11]), np.array([-1, 0, 0]))
        left = model.score(cache, [row], [tree], view=view).logits
        assert view.layers.tolist() == [1] * 3
        cache.keep(row, [0, 2])
        after = model.score(cache, [row], [TokenTree.empty(12)]).logits
        stores = [store[0, :, : row.trunk] for layer in cache.layers for store in (layer.keys, layer.values)]
        found.append([left, after, *stores])
    for filled, discarded in zip(*found, strict=True):
        torch.testing.assert_close(filled, discarded, rtol=0, atol=0)


def test_behind_the_exit_no_other_part_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = {"attend": 0, "feed": 0, "write": 0}

    def counted(name: str) -> Any:
        own = getattr(Layer, name)

        def call(*args: Any) -> Any:
            calls[name] += 1
            return own(*args)

        return call

    model = model_of("fused")
    cache, row = begun(model)
    for name in calls:
        monkeypatch.setattr(Layer, name, counted(name))
    model.score(cache, [row], [TokenTree.empty(9)], view=view_of(1, -1.0))
    assert calls == {"attend": 1, "feed": 1, "write": LAYERS}


def test_behind_the_exit_a_module_ends_attention_at_its_keys_and_values() -> None:
    model, calls = model_of("module"), {"q_proj": 0, "v_proj": 0, "o_proj": 0, "down_proj": 0}
    cache, row = begun(model)
    model.score(cache, [row], [TokenTree.empty(9)], view=view_of(1))
    cache.crop(row, len(PROMPT))
    for name, part in model.module.named_modules():
        if (last := name.rpartition(".")[2]) in calls:
            part.register_forward_hook(lambda *_, last=last: calls.__setitem__(last, calls[last] + 1))
    model.score(cache, [row], [TokenTree.empty(9)], view=view_of(1, -1.0))
    assert calls == {"q_proj": LAYERS, "v_proj": LAYERS, "o_proj": 1, "down_proj": 1}
    assert "update" not in vars(cache)


@pytest.mark.parametrize(
    ("threshold", "layers"),
    [(1.01, [3, 3, 3, 3]), (0.5, [3, 2, 3, 1]), (0.0, [3, 1, 2, 1]), (-1.0, [3, 1, 1, 1])],
)
def test_a_token_leaves_behind_the_first_layer_that_hardly_changes_it(threshold: float, layers: list[int]) -> None:
    """Four tokens, the first of the prompt; a layer turns each by some angle."""
    view = Saturation(threshold).view(np.array([-1, 0, 1, 7]), 3)
    assert isinstance(view, Saturating)
    before = torch.tensor([[1.0, 0.0]]).repeat(4, 1)
    for layer, degrees in enumerate([[0, 80, 100, 0], [0, 10, 70, 120], [0, 0, 0, 0]]):
        view.attends(layer)
        angles = torch.tensor(degrees).deg2rad()
        view.passed(layer, before, torch.stack([angles.cos(), angles.sin()], -1))
    assert view.layers.tolist() == layers


def test_a_threshold_is_a_number() -> None:
    with pytest.raises(BadRequest, match=r"saturation\(threshold=nan\): a number is needed"):
        Saturation(float("nan"))
