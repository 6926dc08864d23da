"""The trie cache against a list of tokens: any order of calls leaves each row seeing exactly its own text."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from paceline.caches import Row, TrieCache, trie
from paceline.errors import BadRequest, OutOfMemory
from paceline.models.causal import CausalModel
from paceline.testing import TabularModel, random_table
from paceline.tree import TokenTree

VOCABULARY = 4


class Text:
    """What a row should hold: committed tokens and a crown of (token, parent)."""

    def __init__(self) -> None:
        self.trunk: list[int] = []
        self.crown: list[tuple[int, int]] = []

    def prefix(self, node: int) -> list[int]:
        """Committed tokens and those on the way to a crown node."""
        path: list[int] = []
        while node >= 0:
            token, node = self.crown[node]
            path.append(token)
        return self.trunk + path[::-1]

    def path(self, node: int) -> list[int]:
        nodes: list[int] = []
        while node >= 0:
            nodes.append(node)
            node = self.crown[node][1]
        return nodes[::-1]


def extend(
    model: CausalModel, cache: TrieCache, rows: list[Row], nodes: list[list[tuple[int, int]]]
) -> list[torch.Tensor]:
    """Write (token, parent) nodes behind the crowns of neighbouring rows; logits of the new nodes, a row each."""
    extension = cache.extend(rows, [[parent for _, parent in new] for new in nodes])
    tokens = torch.zeros(len(rows), extension.width, dtype=torch.int64)
    for b, new in enumerate(nodes):
        tokens[b, : len(new)] = torch.tensor([token for token, _ in new])
    wanted = torch.tensor([b * extension.width + i for b, new in enumerate(nodes) for i in range(len(new))])
    with torch.inference_mode():
        logits, _ = model.forward(tokens, torch.from_numpy(extension.positions), model._mask(extension), cache, wanted)
    return list(logits.split([len(new) for new in nodes]))


class AnyOrderOfCalls(RuleBasedStateMachine):
    """Rows of a small cache, driven at random, on a model whose logits name the prefix that a node sees."""

    @initialize()
    def start(self) -> None:
        self.model = TabularModel(random_table(VOCABULARY, seed=8), VOCABULARY, context=60)
        self.cache = self.model.new_cache(4, capacity=1)
        self.rows: list[tuple[Row, Text]] = []

    def pick(self, data: st.DataObject) -> tuple[Row, Text]:
        return data.draw(st.sampled_from(self.rows))

    def some(self) -> bool:
        return bool(self.rows)

    @precondition(lambda self: len(self.rows) < 4)
    @rule()
    def allocate(self) -> None:
        self.rows.append((self.cache.allocate(), Text()))

    @precondition(some)
    @rule(data=st.data())
    def extend(self, data: st.DataObject) -> None:
        ordered = sorted(self.rows, key=lambda item: item[0].index)
        first = data.draw(st.integers(0, len(ordered) - 1))
        group = ordered[first : data.draw(st.integers(first + 1, len(ordered)))]
        nodes = []
        for row, text in group:
            room = min(5, self.cache.limit - row.length)
            new: list[tuple[int, int]] = []
            for _ in range(data.draw(st.integers(min(1, room), room))):
                parent = data.draw(st.integers(-1, len(text.crown) - 1))
                new.append((data.draw(st.integers(0, VOCABULARY - 1)), parent))
                text.crown.append(new[-1])
            nodes.append(new)
        if any(nodes):
            logits = extend(self.model, self.cache, [row for row, _ in group], nodes)
            for (_, text), new, got in zip(group, nodes, logits, strict=True):
                for i, row_logits in enumerate(got):
                    node = len(text.crown) - len(new) + i
                    torch.testing.assert_close(row_logits, self.model.table(tuple(text.prefix(node))), rtol=0, atol=0)

    @precondition(some)
    @rule(data=st.data())
    def keep(self, data: st.DataObject) -> None:
        row, text = self.pick(data)
        node = data.draw(st.integers(-1, len(text.crown) - 1))
        self.cache.keep(row, text.path(node))
        text.trunk, text.crown = text.prefix(node), []

    @precondition(some)
    @rule(data=st.data())
    def retain(self, data: st.DataObject) -> None:
        row, text = self.pick(data)
        tips = data.draw(st.lists(st.integers(0, len(text.crown) - 1), max_size=3)) if text.crown else []
        nodes = sorted({node for tip in tips for node in text.path(tip)})
        before = [text.prefix(node) for node in nodes]
        renumbered = self.cache.retain(row, nodes)
        place = {-1: -1} | dict(zip(nodes, renumbered, strict=True))
        text.crown = [(text.crown[node][0], place[text.crown[node][1]]) for node in nodes]
        assert [text.prefix(node) for node in renumbered] == before

    @precondition(some)
    @rule(data=st.data())
    def crop(self, data: st.DataObject) -> None:
        row, text = self.pick(data)
        trunk = data.draw(st.integers(0, len(text.trunk) + 2))
        self.cache.crop(row, trunk)
        text.trunk, text.crown = text.trunk[:trunk], []

    @precondition(some)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        item = self.pick(data)
        self.rows.remove(item)
        self.cache.free(item[0])

    @precondition(lambda self: len(self.rows) > 1)
    @rule(data=st.data())
    def copy(self, data: st.DataObject) -> None:
        source, target = data.draw(st.permutations(self.rows))[:2]
        self.cache.copy(source[0], target[0])
        target[1].trunk, target[1].crown = list(source[1].trunk), []

    @precondition(some)
    @rule(data=st.data())
    def score(self, data: st.DataObject) -> None:
        """The production entry point: pending tokens and a tree on any rows in any order."""
        chosen = data.draw(st.permutations(self.rows))[: data.draw(st.integers(1, len(self.rows)))]
        chosen = [(row, text) for row, text in chosen if self.cache.limit - row.length >= 5]
        tokens = [data.draw(st.lists(st.integers(0, VOCABULARY - 1), min_size=2, max_size=5)) for _ in chosen]
        before = [data.draw(st.integers(0, len(t) - 1)) for t in tokens]
        trees = [TokenTree.chain(t[b], t[b + 1 :]) for t, b in zip(tokens, before, strict=True)]
        if not chosen:
            return
        pending = [t[:b] for t, b in zip(tokens, before, strict=True)]
        scores = self.model.score(self.cache, [row for row, _ in chosen], trees, pending)
        for i, ((_, text), t, b) in enumerate(zip(chosen, tokens, before, strict=True)):
            base = len(text.crown)
            text.crown += [(token, base + at - 1 if at else -1) for at, token in enumerate(t)]
            wanted = [self.model.table((*text.trunk, *t[: at + 1])) for at in range(b, len(t))]
            torch.testing.assert_close(scores.of(i), torch.stack(wanted), rtol=0, atol=0)

    @invariant()
    def rows_are_neighbours_and_as_long_as_their_texts(self) -> None:
        assert sorted(row.index for row, _ in self.rows) == list(range(len(self.rows)))
        for row, text in self.rows:
            assert (row.trunk, row.parents) == (len(text.trunk), [parent for _, parent in text.crown])


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Storage that must grow every few tokens."""
    monkeypatch.setattr(trie, "BLOCK", 8)


@pytest.mark.usefixtures("small_blocks")
class TestAnyOrderOfCalls(AnyOrderOfCalls.TestCase):  # type: ignore[name-defined, misc]
    settings = settings(max_examples=40, stateful_step_count=25)


# -- on a real model, in float64 -----------------------------------------------------------------------------


def llama(window: int | None = None) -> CausalModel:
    torch.manual_seed(0)
    size = {
        "vocab_size": 17,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 600,
        "initializer_range": 0.5,
    }
    if window is None:
        return CausalModel(LlamaForCausalLM(LlamaConfig(**size)).double())
    return CausalModel(MistralForCausalLM(MistralConfig(**size, sliding_window=window)).double())


@torch.inference_mode()
def fresh(model: CausalModel, text: list[int]) -> torch.Tensor:
    """`[V]` logits after a text, without a cache."""
    return model.module(input_ids=torch.tensor([text]), use_cache=False).logits[0, -1].float()


@pytest.mark.parametrize("window", [None, 3])
def test_trees_equal_fresh_passes_over_their_paths(window: int | None) -> None:
    model = llama(window)
    generator = np.random.default_rng(0)
    cache = model.new_cache(3, capacity=1)
    rows = [cache.allocate() for _ in range(3)]
    texts = [generator.integers(17, size=length).tolist() for length in (5, 1, 126)]
    for row, text in zip(rows, texts, strict=True):
        model.prefill(cache, row, text, chunk=50)
    for _ in range(3):  # the longest row grows over the end of a block
        trees = []
        for _ in rows:
            parents = np.array([-1, *(int(generator.integers(node)) for node in range(1, 6))])
            trees.append(TokenTree(generator.integers(17, size=6), parents))
        scores = model.score(cache, rows, trees)
        for b, (row, tree) in enumerate(zip(rows, trees, strict=True)):
            for node in range(6):
                path = tree.tokens[tree.path(node)].tolist()
                torch.testing.assert_close(scores.of(b)[node], fresh(model, texts[b] + path), rtol=0, atol=1e-6)
            kept = tree.path(int(generator.integers(6)))
            cache.keep(row, kept)
            texts[b] += tree.tokens[kept].tolist()
    assert cache.capacity > 128


def test_retained_branches_go_on_from_their_own_tips() -> None:
    model = llama(window=4)
    cache = model.new_cache(1)
    row = cache.allocate()
    model.prefill(cache, row, [1, 2, 3])
    extend(model, cache, [row], [[(4, -1), (5, 0), (6, 0), (7, 1), (8, 2)]])
    assert cache.retain(row, [0, 2, 4]) == [0, 1, 2]
    (logits,) = extend(model, cache, [row], [[(9, 2), (10, 1), (11, 3)]])
    for got, path in zip(logits, ([4, 6, 8, 9], [4, 6, 10], [4, 6, 8, 9, 11]), strict=True):
        torch.testing.assert_close(got, fresh(model, [1, 2, 3, *path]), rtol=0, atol=1e-6)


def test_not_a_number_dies_with_its_row() -> None:
    """A masked slot weighs 0, yet 0 times NaN is NaN: freed and overwritten rows must hold numbers only."""
    model = llama()
    cache = model.new_cache(2)
    first, second = cache.allocate(), cache.allocate()
    model.prefill(cache, first, [1] * 40)
    model.prefill(cache, second, [2, 3])
    with torch.inference_mode():
        for layer in cache._ready():
            layer.keys[first.index] = torch.nan
            layer.values[first.index] = torch.nan
    cache.free(first)
    third = cache.allocate()
    for row, text in ((second, [2, 3, 4]), (third, [4])):
        scores = model.score(cache, [row], [TokenTree.empty(4)])
        torch.testing.assert_close(scores.logits[0], fresh(model, text), rtol=0, atol=1e-6)


# -- storage -------------------------------------------------------------------------------------------------


def test_storage_grows_with_need_and_is_counted() -> None:
    model = llama()
    cache = model.new_cache(4, capacity=1)
    assert cache.nbytes == 0
    row = cache.allocate()
    sizes = []
    for _ in range(6):
        model.prefill(cache, row, [1] * 100)
        sizes.append((cache.rows, cache.capacity))
    assert sizes == [(1, 128), (1, 384), (1, 384), (1, 640), (1, 640), (1, 640)]
    # Keys and values of 2 layers, 2 heads, 4 dimensions, 8 bytes.
    assert cache.nbytes == 2 * 2 * 640 * 2 * 4 * 8
    for _ in range(2):
        cache.allocate()
    assert (cache.rows, cache.nbytes) == (4, 4 * 2 * 2 * 640 * 2 * 4 * 8)


@pytest.fixture
def full_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """From now on no tensor of more than 128 slots can be allocated."""
    plain = torch.zeros

    def zeros(*shape: object, **options: object) -> torch.Tensor:
        if len(shape) == 1 and isinstance(shape[0], tuple) and len(shape[0]) == 4 and shape[0][2] > 128:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return plain(*shape, **options)  # type: ignore[call-overload, no-any-return]

    with monkeypatch.context() as patch:
        patch.setattr(torch, "zeros", zeros)
        yield patch


def test_failed_growth_changes_nothing(full_memory: pytest.MonkeyPatch) -> None:
    model = llama()
    cache = model.new_cache(2, capacity=1)
    short, long = cache.allocate(), cache.allocate()
    model.prefill(cache, short, [1, 2])
    model.prefill(cache, long, [3] * 120)
    with pytest.raises(OutOfMemory, match=r"2 rows of 384 tokens .* lower max_rows"):
        model.score(cache, [short, long], [TokenTree.empty(1), TokenTree.chain(1, [2] * 20)])
    assert (short.length, long.length, cache.capacity) == (2, 120, 128)
    scores = model.score(cache, [short, long], [TokenTree.empty(5), TokenTree.empty(6)])
    torch.testing.assert_close(scores.of(0)[0], fresh(model, [1, 2, 5]), rtol=0, atol=1e-6)
    full_memory.undo()
    cache.keep(long, [0])
    scores = model.score(cache, [long], [TokenTree.chain(1, [2] * 20)])
    torch.testing.assert_close(scores.logits[20], fresh(model, [3] * 120 + [6, 1] + [2] * 20), rtol=0, atol=1e-6)


def test_a_row_that_cannot_be_stored_is_not_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama()
    cache = model.new_cache(2, capacity=1)
    row = cache.allocate()
    model.prefill(cache, row, [1, 2])
    with monkeypatch.context() as patch:
        patch.setattr(TrieCache, "zeros", lambda *_: (_ for _ in ()).throw(OutOfMemory("full")))
        with pytest.raises(OutOfMemory):
            cache.allocate()
    assert cache.live == [row]
    assert cache.allocate().index == 1
    with pytest.raises(RuntimeError, match="all 2 rows are in use"):
        cache.allocate()


def test_wrong_calls_are_refused() -> None:
    model = TabularModel(random_table(VOCABULARY), VOCABULARY, context=6)
    with pytest.raises(BadRequest, match="rows=0"):
        model.new_cache(0)
    cache = model.new_cache(3)
    rows = [cache.allocate() for _ in range(3)]
    with pytest.raises(ValueError, match="not consecutive"):
        cache.extend([rows[0], rows[2]], [[-1], [-1]])
    with pytest.raises(ValueError, match="exceed the limit of 6"):
        cache.extend([rows[0]], [[-1] * 7])
    extend(model, cache, [rows[0]], [[(1, -1), (2, 0), (3, 0)]])
    for path in ([1], [0, 3], [0, 1, 2], [-1]):
        with pytest.raises(ValueError, match="is not a path"):
            cache.keep(rows[0], path)
    for nodes in ([1], [0, 3], [-1]):
        with pytest.raises(ValueError, match="do not exist in the crown or lack their parents"):
            cache.retain(rows[0], nodes)
    with pytest.raises(RuntimeError, match="call extend"):
        model.new_cache(1).layers[0].update(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1))  # type: ignore[union-attr]


def test_attention_lengths_are_whole_blocks_and_never_256() -> None:
    lengths = [trie.bucket(n) for n in (1, 128, 129, 256, 257, 384, 385)]
    assert lengths == [128, 128, 384, 384, 384, 384, 512]


def test_a_sparing_cache_grows_by_chunks_and_gives_back() -> None:
    model = llama()
    cache = model.new_cache(4)
    cache.spare(128)
    slot = 2 * 2 * 4 * 2 * 8  # layers, keys and values, bytes, heads, dim

    def stored() -> tuple[int, int]:
        assert cache.nbytes == cache.rows * cache.capacity * slot
        return cache.rows, cache.capacity

    first, second = cache.allocate(), cache.allocate()
    model.prefill(cache, first, [1, 2, 3])
    assert stored() == (2, 128)
    model.prefill(cache, second, [4] * 300)
    assert stored() == (2, 384)
    third = cache.allocate()
    model.prefill(cache, third, [5] * 20)
    assert stored() == (3, 384)
    cache.free(second)
    assert stored() == (2, 128)
    for row, text in ((first, [1, 2, 3]), (third, [5] * 20)):
        logits = model.score(cache, [row], [TokenTree.empty(6)]).logits[0]
        torch.testing.assert_close(logits, fresh(model, [*text, 6]), rtol=0, atol=1e-6)
    cache.free(first)
    cache.free(third)
    assert cache.nbytes == 0
    row = cache.allocate()
    model.prefill(cache, row, [7, 8])
    logits = model.score(cache, [row], [TokenTree.empty(6)]).logits[0]
    torch.testing.assert_close(logits, fresh(model, [7, 8, 6]), rtol=0, atol=1e-6)
    assert cache.slots(129) == 384
    cache.chunk = 300
    assert cache.slots(10) == 384
    assert cache.slots(301) == 640
