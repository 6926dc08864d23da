"""The fused forward pass: a token's logits are the same bits alone, in a chain, in a tree and in a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.architectures import VOCABULARY, build
from models.test_attention import TREE, ancestry, drafted, random_tree, text
from paceline import native
from paceline.caches import Row, TrieCache, trie
from paceline.models import attention, fused, fused_layer, packing
from paceline.models.causal import CausalModel
from paceline.models.fast import speed_up
from paceline.models.fused import FusedDecoder
from paceline.native import Kernels, Seen
from paceline.tree import TokenTree

#: Grouped heads; norms on the heads; windows shorter than a tree is deep, and longer.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("LlamaConfig", {"head_dim": 16}),
    "Llama, wide": ("LlamaConfig", {"hidden_size": 576, "intermediate_size": 1536}),
    "Qwen3": ("Qwen3Config", {"head_dim": 16}),
    "Mistral, window": ("MistralConfig", {"head_dim": 16, "sliding_window": 4}),
    "Mistral, long window": ("MistralConfig", {"head_dim": 16, "sliding_window": 50}),
}
NARROW = [name for name in MODELS if name != "Llama, wide"]
#: One ends before a block of 128 slots does, so that trees lie across.
TRUNKS = [2, 121]


def fast(name: str, dtype: torch.dtype) -> CausalModel:
    model = CausalModel(build(*MODELS[name]).to(dtype))
    speed_up(model)
    assert isinstance(model.forward, FusedDecoder), model.path
    return model


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    if packing.unpackable(torch.zeros(2, 2, dtype=request.param)):
        pytest.skip(f"this CPU is not fast with {request.param}")
    return request.param


@pytest.fixture(scope="module", params=NARROW)
def model(request: pytest.FixtureRequest, dtype: torch.dtype) -> CausalModel:
    return fast(request.param, dtype)


@pytest.fixture(params=["native", "pytorch"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which operations are used."""
    if request.param == "pytorch":
        without_kernels(monkeypatch)
    elif native.kernels() is None:
        pytest.skip(native.reason())
    return str(request.param)


def without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "kernels", lambda: None)
    monkeypatch.setattr(fused, "kernels", lambda: None)
    monkeypatch.setattr(fused_layer, "kernels", lambda: None)
    monkeypatch.setattr(packing, "kernels", lambda: None)


def words(parents: Sequence[int]) -> list[int]:
    return [token % VOCABULARY for token in drafted(parents)]


def tree_of(parents: Sequence[int]) -> TokenTree:
    return TokenTree(np.array(words(parents)), np.array(parents))


def begun(model: CausalModel, cache: TrieCache, trunk: int) -> Row:
    row = cache.allocate()
    model.prefill(cache, row, [token % VOCABULARY for token in text(trunk)])
    return row


def alone(model: CausalModel, trunk: int, parents: Sequence[int]) -> list[Tensor]:
    """Logits and hidden states `[V + d]` of each node, scored by itself behind its ancestors."""
    cache, tokens, found = model.new_cache(1), words(parents), []
    row = begun(model, cache, trunk)
    for node in range(len(parents)):
        model.prefill(cache, row, [tokens[i] for i in ancestry(parents, node)[:-1]])
        found.append(numbers(model, cache, [row], [TokenTree.empty(tokens[node])])[0])
        cache.crop(row, trunk)
    return found


def numbers(model: CausalModel, cache: TrieCache, rows: list[Row], trees: list[TokenTree]) -> list[Tensor]:
    """Logits and hidden states of all nodes of all trees."""
    scores = model.score(cache, rows, trees, hidden=(0, 1, 2))
    return list(torch.cat([scores.logits, *(scores.hidden[layer].float() for layer in (0, 1, 2))], -1))


def in_tree(model: CausalModel, trunk: int, parents: Sequence[int]) -> list[Tensor]:
    cache = model.new_cache(1)
    return numbers(model, cache, [begun(model, cache, trunk)], [tree_of(parents)])


def same(some: Sequence[Tensor], others: Sequence[Tensor]) -> list[bool]:
    return [torch.equal(a, b) for a, b in zip(some, others, strict=True)]


@pytest.mark.parametrize("trunk", TRUNKS)
def test_a_node_of_a_tree_is_as_if_alone(model: CausalModel, path: str, trunk: int) -> None:
    assert all(same(in_tree(model, trunk, TREE), alone(model, trunk, TREE)))


def chains_are_as_if_token_by_token(model: CausalModel, trunk: int) -> bool:
    chain, lengths = list(range(-1, 6)), (1, 2, 3, 4, 5, 7)
    wanted = alone(model, trunk, chain)
    return all(all(same(in_tree(model, trunk, chain[:length]), wanted[:length])) for length in lengths)


@pytest.mark.parametrize("trunk", [1, 124])
def test_a_chain_is_as_if_token_by_token(model: CausalModel, path: str, trunk: int) -> None:
    assert chains_are_as_if_token_by_token(model, trunk)


def test_few_rows_of_a_wide_model_are_as_many(dtype: torch.dtype) -> None:
    """One row of so wide a matrix takes another kernel, which is why few are padded."""
    assert chains_are_as_if_token_by_token(fast("Llama, wide", dtype), 5)


def test_other_rows_do_not_matter(model: CausalModel, path: str) -> None:
    """Rows of other lengths, with trees of other sizes."""
    trunks, trees = [125, 1, 9, 251], [TREE, [-1], random_tree(24, 1), [-1, 0, 0]]
    cache = model.new_cache(4)
    rows = [begun(model, cache, trunk) for trunk in trunks]
    together = iter(numbers(model, cache, rows, [tree_of(tree) for tree in trees]))
    for trunk, tree in zip(trunks, trees, strict=True):
        assert all(same([next(together) for _ in tree], in_tree(model, trunk, tree)))


def test_tokens_before_the_root_may_be_any_number_in_each_row(model: CausalModel, path: str) -> None:
    trees, before = [[-1, 0, 0], [-1], [-1, 0]], [[5, 6, 7], [], [8]]
    cache = model.new_cache(3)
    rows = [begun(model, cache, trunk) for trunk in (30, 3, 125)]
    together = model.score(cache, rows, [tree_of(tree) for tree in trees], before, hidden=(1,))
    for i, (tree, tokens) in enumerate(zip(trees, before, strict=True)):
        single = model.new_cache(1)
        row = begun(model, single, rows[i].trunk)
        own = model.score(single, [row], [tree_of(tree)], [tokens], hidden=(1,))
        assert torch.equal(together.of(i), own.logits)
        assert torch.equal(together.hidden_of(i)[1], own.hidden[1])
        # What was written is the same as well, and in the same places.
        cache.keep(rows[i], range(len(tokens)))
        single.keep(row, range(len(tokens)))
        for many, one in zip(cache.layers, single.layers, strict=True):
            assert torch.equal(many.keys[rows[i].index, :, : row.trunk], one.keys[0, :, : row.trunk])
            assert torch.equal(many.values[rows[i].index, :, : row.trunk], one.values[0, :, : row.trunk])


def test_padding_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    if native.kernels() is None:
        pytest.skip(native.reason())
    model, feed, rows = fast("Llama", torch.float32), fused_layer.Layer.feed, set()

    def counted(self: fused_layer.Layer, x: Tensor) -> Tensor:
        rows.add(len(x))
        return feed(self, x)

    cache = model.new_cache(3)
    own = [begun(model, cache, trunk) for trunk in (4, 9, 2)]
    monkeypatch.setattr(fused_layer.Layer, "feed", counted)
    model.score(cache, own, [tree_of(random_tree(12, 1)), TokenTree.empty(3), TokenTree.empty(5)])
    assert rows == {14}


def test_how_far_attention_looks_does_not_matter(
    model: CausalModel, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = [in_tree(model, trunk, TREE) for trunk in TRUNKS]
    bucket = trie.bucket
    monkeypatch.setattr(trie, "bucket", lambda length: bucket(length) + 384)
    for trunk, one in zip(TRUNKS, wanted, strict=True):
        assert all(same(in_tree(model, trunk, TREE), one))


def test_how_the_prompt_was_cut_does_not_matter(model: CausalModel, path: str) -> None:
    tokens, results = [token % VOCABULARY for token in text(140)], []
    for chunk in (5, 64, 140):
        cache = model.new_cache(1)
        row = cache.allocate()
        model.prefill(cache, row, tokens, chunk)
        results.append(numbers(model, cache, [row], [TokenTree.empty(3)])[0])
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_wanted_positions_alone_are_the_same(model: CausalModel, path: str) -> None:
    """Tokens before the root give no logits, which makes the last product a smaller one."""
    cache = model.new_cache(1)
    row = begun(model, cache, 20)
    behind = model.score(cache, [row], [TokenTree.chain(5, [6])], [[1, 2, 3, 4]]).logits
    cache.crop(row, 20)
    whole = model.score(cache, [row], [TokenTree.chain(1, [2, 3, 4, 5, 6])]).logits
    assert torch.equal(behind, whole[-2:])


# -- what makes these tests fail -------------------------------------------------------------------------------


def test_the_last_layer_may_spare_the_rows_of_a_prompt_that_nobody_wants(
    model: CausalModel, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their keys and values are in the cache all the same, and the wanted rows are the same bits."""
    found = []
    for spared in (1, 1000):
        monkeypatch.setattr(fused, "_SPARED", spared)
        cache, pieces = model.new_cache(1), []
        row = cache.allocate()
        for length, wanted in ((70, 1), (40, 3), (9, 2)):
            tokens = [token % VOCABULARY for token in text(length)]
            tree = TokenTree.chain(tokens[-wanted], tokens[length - wanted + 1 :])
            pieces.append(model.score(cache, [row], [tree], [tokens[:-wanted]]).logits)
            cache.keep(row, range(length))
        found.append([*pieces, model.score(cache, [row], [tree_of(TREE)]).logits])
    assert all(same(*found))


@pytest.mark.parametrize("name", NARROW)
def test_slots_in_another_order_would_be_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if native.kernels() is None:
        pytest.skip(native.reason())
    model, seen = fast(name, torch.float32), Kernels.seen

    def shuffled(self: Kernels, mask: Tensor, hidden: float, queries: tuple[int, ...] | None = None) -> Seen:
        plain = seen(self, mask, hidden, queries)
        generator = torch.Generator().manual_seed(plain.slots.numel())
        runs = plain.slots.split(plain.first.diff().tolist())
        return plain._replace(slots=torch.cat([r[torch.randperm(len(r), generator=generator)] for r in runs]))

    monkeypatch.setattr(Kernels, "seen", shuffled)
    assert not all(same(in_tree(model, 121, TREE), alone(model, 121, TREE)))


@pytest.mark.parametrize("name", NARROW)
def test_pieces_by_slot_instead_of_position_would_be_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = fast(name, torch.float32)
    without_kernels(monkeypatch)
    monkeypatch.setattr(attention, "_by_position", lambda visible, pieces, positions: pieces)
    assert not all(same(in_tree(model, 121, TREE), alone(model, 121, TREE)))


def test_positions_left_out_would_be_seen_where_a_window_ends_in_the_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    model, prepare = fast("Mistral, window", torch.float32), fused.prepare
    without_kernels(monkeypatch)
    monkeypatch.setattr(fused, "prepare", lambda mask, positions, queries: prepare(mask, None, queries))
    assert not all(same(in_tree(model, 121, TREE), alone(model, 121, TREE)))


# -- what is computed ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NARROW)
def test_logits_and_hidden_states_are_the_modules(name: str, path: str) -> None:
    tokens = [token % VOCABULARY for token in text(60)]
    with torch.inference_mode():
        wanted = build(*MODELS[name])(input_ids=torch.tensor([tokens]), output_hidden_states=True)
    model = fast(name, torch.float32)
    cache = model.new_cache(1)
    scores = model.score(cache, [cache.allocate()], [TokenTree.chain(tokens[0], tokens[1:])], hidden=(0, 1, 2))
    torch.testing.assert_close(scores.logits, wanted.logits[0], rtol=1e-4, atol=1e-4)
    for layer in range(3):
        torch.testing.assert_close(scores.hidden[layer], wanted.hidden_states[layer][0], rtol=1e-4, atol=1e-4)


def test_both_kernels_agree(model: CausalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    if native.kernels() is None:
        pytest.skip(native.reason())
    ours = torch.stack(in_tree(model, 60, TREE))
    without_kernels(monkeypatch)
    theirs = torch.stack(in_tree(model, 60, TREE))
    error = 1e-5 if model.module.dtype == torch.float32 else 0.05
    assert (ours - theirs).abs().max() <= error * theirs.std()


@pytest.mark.parametrize("tied", [False, True])
def test_the_module_gets_its_weights_back_bit_for_bit(tied: bool, dtype: torch.dtype) -> None:
    module = build("Qwen2Config", {"tie_word_embeddings": tied}).to(dtype)
    before = {name: weight.clone() for name, weight in module.state_dict().items()}
    decoder = FusedDecoder(module)
    assert not module.model.layers[0].self_attn.q_proj.weight.numel()
    assert bool(module.lm_head.weight.numel()) == tied
    decoder.undo()
    after = module.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert (module.lm_head.weight is module.model.embed_tokens.weight) == tied


def test_a_module_may_keep_its_weights() -> None:
    module = build(*MODELS["Llama"])
    before = {name: weight.clone() for name, weight in module.state_dict().items()}
    decoder = FusedDecoder(module, keep=True)
    for _ in range(2):
        assert all(torch.equal(weight, before[name]) for name, weight in module.state_dict().items())
        decoder.undo()


def test_a_module_that_computes_something_else_is_refused_and_left_as_it_was() -> None:
    module = build(*MODELS["Llama"])
    module.model.layers[1].self_attn.register_forward_hook(lambda module, given, out: (2 * out[0], *out[1:]))
    before = {name: weight.clone() for name, weight in module.state_dict().items()}
    with pytest.raises(ValueError, match="differs from the module's by"):
        FusedDecoder(module)
    assert all(torch.equal(weight, before[name]) for name, weight in module.state_dict().items())


def test_other_architectures_are_refused_by_what_they_have() -> None:
    for config, reason in (("GPT2Config", "not laid out like a Llama"), ("Olmo2Config", "a layer has")):
        with pytest.raises(ValueError, match=reason):
            FusedDecoder(build(config, {}))
