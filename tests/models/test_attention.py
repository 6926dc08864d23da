"""A token's attention is the same bits alone, in a chain, at any node of a tree and in a batch, by either kernel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import Tensor

from paceline import native
from paceline.caches import Row, TrieCache
from paceline.models import attention
from paceline.models.attention import Cut, Prepared, attend, attention_forward, prepare
from paceline.native import Kernels, Seen

TOKENS, HEADS, KEYS, DIM = 97, 4, 2, 16
#: Trunks that end at a block's begin, just before its end, and a few slots before: trees then lie across it.
TRUNKS = [1, 120, 126, 127, 128, 250, 380]
#: Parents of a tree in which siblings and cousins lie between a node and its ancestors; -1: the trunk's tip.
TREE = [-1, 0, 0, 0, 1, 2, 1, 3, 5, 4, 8, 5, 10, 9, 12, 13]


@pytest.fixture(params=["native", "pytorch"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which operations are used."""
    if request.param == "pytorch":
        monkeypatch.setattr(attention, "kernels", lambda: None)
    elif native.kernels() is None:
        pytest.skip(native.reason())
    return str(request.param)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def text(length: int) -> list[int]:
    return [(i * i + 3 * i) % TOKENS for i in range(length)]


@dataclass
class Layer:
    """Attention alone, over a production cache; queries, keys and values belong to a token and its position.

    Attributes:
        softcap: of the scores.
        window: how many positions a token sees.
        longer: slots, all hidden, by which attention looks further than it has to.
        dtype: of the result.
    """

    dim: int = DIM
    softcap: float | None = None
    window: int | None = None
    longer: int = 0
    dtype: torch.dtype = torch.float32
    tables: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.tables = [random(TOKENS, heads, self.dim, seed=heads) for heads in (HEADS, KEYS)]
        self.tables.append(random(TOKENS, KEYS, self.dim, seed=7))
        self.places = random(600, 1, self.dim, seed=9)

    def cache(self, rows: int = 1) -> TrieCache:
        return TrieCache(layers=1, rows=rows, limit=600, dtype=torch.float32, device=torch.device("cpu"))

    @torch.inference_mode()
    def outputs(
        self, cache: TrieCache, rows: Sequence[Row], new: Sequence[Sequence[int]], parents: Sequence[list[int]]
    ) -> list[Tensor]:
        """`[n, H, D]` for each row's new tokens, which stay in its crown."""
        extension = cache.extend(rows, parents)
        tokens = torch.tensor([[*row, *[0] * (extension.width - len(row))] for row in new])
        positions = torch.from_numpy(extension.positions)
        query, key, value = ((table[tokens] + self.places[positions]).transpose(1, 2) for table in self.tables)
        keys, values = cache.layers[0].update(key, value)
        visible = extension.visible if self.window is None else extension.window(self.window)
        mask = torch.from_numpy(np.where(visible, np.float32(0), np.float32(-np.inf)))[:, None]
        if self.longer:
            pad = (0, self.longer)
            mask = torch.nn.functional.pad(mask, pad, value=-torch.inf)
            keys, values = (torch.nn.functional.pad(x, (0, 0, *pad)) for x in (keys, values))
        out = torch.empty(*tokens.shape, HEADS, self.dim, dtype=self.dtype)
        attend(query, keys, values, prepare(mask, positions), self.dim**-0.5, self.softcap, out)
        return [out[b, : len(row)] for b, row in enumerate(new)]

    def commit(self, cache: TrieCache, tokens: Sequence[int]) -> Row:
        """A new row that holds a text."""
        row = cache.allocate()
        if tokens:
            self.outputs(cache, [row], [tokens], [list(range(-1, len(tokens) - 1))])
            cache.keep(row, range(len(tokens)))
        return row

    def alone(self, tokens: Sequence[int]) -> Tensor:
        """`[H, D]` of the last token, scored by itself behind the others."""
        cache = self.cache()
        return self.outputs(cache, [self.commit(cache, tokens[:-1])], [tokens[-1:]], [[-1]])[0][0]


def ancestry(parents: Sequence[int], node: int) -> list[int]:
    """The nodes from the trunk's tip to this one."""
    return [] if node < 0 else [*ancestry(parents, parents[node]), node]


def drafted(parents: Sequence[int]) -> list[int]:
    return [(7 * i + 5) % TOKENS for i in range(len(parents))]


def differing(layer: Layer, trunk: int, parents: list[int]) -> list[int]:
    """Nodes of a tree whose attention is not what they get alone."""
    cache, tokens = layer.cache(), drafted(parents)
    got = layer.outputs(cache, [layer.commit(cache, text(trunk))], [tokens], [parents])[0]
    paths = [[*text(trunk), *(tokens[i] for i in ancestry(parents, node))] for node in range(len(parents))]
    return [node for node, whole in enumerate(paths) if not torch.equal(got[node], layer.alone(whole))]


def random_tree(nodes: int, seed: int) -> list[int]:
    generator = np.random.default_rng(seed)
    return [-1, *(int(generator.integers(max(0, i - 9), i)) for i in range(1, nodes))]


@pytest.mark.parametrize("trunk", TRUNKS)
def test_a_node_of_a_tree_is_as_if_alone(path: str, trunk: int) -> None:
    assert differing(Layer(), trunk, TREE) == []


@pytest.mark.parametrize("dim", [8, 24, 64, 80, 128, 192])
def test_a_node_is_as_if_alone_whatever_the_heads(path: str, dim: int) -> None:
    assert differing(Layer(dim), 120, TREE) == []


@pytest.mark.parametrize(
    "layer", [Layer(softcap=2.0), Layer(window=40), Layer(window=300), Layer(dtype=torch.bfloat16)], ids=repr
)
def test_a_node_is_as_if_alone_with_a_cap_a_window_and_rounding(path: str, layer: Layer) -> None:
    assert differing(layer, 120, TREE) == []
    assert differing(layer, 251, TREE) == []


@pytest.mark.parametrize("window", [2, 3, 6])
def test_a_node_is_as_if_alone_where_the_window_is_shorter_than_the_path(path: str, window: int) -> None:
    """Then nothing that it sees lies in the trunk."""
    for trunk in (1, 118, 121, 124):
        assert differing(Layer(window=window), trunk, TREE) == []


@pytest.mark.parametrize("seed", range(2))
def test_nodes_of_random_trees_are_as_if_alone(path: str, seed: int) -> None:
    assert differing(Layer(), 100 + seed, random_tree(60, seed)) == []
    assert differing(Layer(), 240 + seed, random_tree(40, seed)) == []


@pytest.mark.parametrize("trunk", [0, 1, 120, 250])
def test_a_chain_is_as_if_token_by_token(path: str, trunk: int) -> None:
    for length in (1, 2, 3, 4, 5, 20):
        assert differing(Layer(), trunk, list(range(-1, length - 1))) == []


@pytest.mark.parametrize("trunk", [5, 120])
def test_siblings_and_slots_do_not_matter(path: str, trunk: int) -> None:
    """The same path among none, few and many others."""
    layer, tokens, wanted = Layer(), [3, 1, 4, 1, 5], None
    for crowd in (0, 1, 3, 9):
        parents, new, above, last = [], [], -1, []
        for token in tokens:
            new += [(token + i + 1) % TOKENS for i in range(crowd)] + [token]
            parents += [above] * (crowd + 1)
            above = len(parents) - 1
            last.append(above)
        cache = layer.cache()
        got = layer.outputs(cache, [layer.commit(cache, text(trunk))], [new], [parents])[0][last]
        wanted = got if wanted is None else wanted
        assert torch.equal(got, wanted)


def test_other_rows_do_not_matter(path: str) -> None:
    """Rows of other lengths, with other trees, in every order."""
    layer, trunks = Layer(), [130, 0, 7, 250, 121]
    trees = [TREE, [-1], random_tree(20, 1), list(range(-1, 6)), random_tree(12, 2)]
    cache = layer.cache(5)
    rows = [layer.commit(cache, text(trunk)) for trunk in trunks]
    together = layer.outputs(cache, rows, [drafted(tree) for tree in trees], trees)
    for trunk, tree, got in zip(trunks, trees, together, strict=True):
        single = layer.cache()
        assert torch.equal(layer.outputs(single, [layer.commit(single, text(trunk))], [drafted(tree)], [tree])[0], got)


@pytest.mark.parametrize("longer", [128, 256, 512])
def test_how_far_attention_looks_does_not_matter(path: str, longer: int) -> None:
    for trunk in (3, 120, 250):
        results = []
        for layer in (Layer(), Layer(longer=longer if trunk > 120 else longer + 128)):
            cache = layer.cache()
            row = layer.commit(cache, text(trunk))
            results.append(layer.outputs(cache, [row], [drafted(TREE)], [TREE])[0])
        assert torch.equal(*results)


def test_kept_nodes_go_on_as_if_they_had_always_been_there(path: str) -> None:
    layer = Layer()
    cache = layer.cache()
    row, tokens = layer.commit(cache, text(120)), drafted(TREE)
    layer.outputs(cache, [row], [tokens], [TREE])
    kept = ancestry(TREE, len(TREE) - 1)
    cache.keep(row, kept)
    got = layer.outputs(cache, [row], [[11, 12, 13]], [[-1, 0, 0]])[0]
    whole = text(120) + [tokens[i] for i in kept] + [11]
    assert torch.equal(got[0], layer.alone(whole))
    assert torch.equal(got[2], layer.alone([*whole, 13]))


def test_long_texts_are_worked_off_in_parts(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Layer()
    whole = layer.outputs(layer.cache(), [layer.cache().allocate()], [text(300)], [list(range(-1, 299))])[0]
    monkeypatch.setattr(attention, "_BLOCK", 1)
    cache = layer.cache()
    parts = layer.outputs(cache, [cache.allocate()], [text(300)], [list(range(-1, 299))])[0]
    assert torch.equal(parts, whole)
    assert differing(layer, 118, random_tree(40, 3)) == []


def test_slots_in_another_order_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests fail where the sums over the past run in any other order than the path's."""
    if native.kernels() is None:
        pytest.skip(native.reason())
    seen = Kernels.seen

    def shuffled(self: Kernels, mask: Tensor, hidden: float, queries: tuple[int, ...] | None = None) -> Seen:
        plain = seen(self, mask, hidden, queries)
        generator = torch.Generator().manual_seed(plain.slots.numel())
        runs = plain.slots.split(plain.first.diff().tolist())
        return plain._replace(slots=torch.cat([r[torch.randperm(len(r), generator=generator)] for r in runs]))

    monkeypatch.setattr(Kernels, "seen", shuffled)
    assert len(differing(Layer(), 120, TREE)) > len(TREE) // 2


def test_pieces_by_slot_instead_of_position_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "kernels", lambda: None)
    monkeypatch.setattr(attention, "_by_position", lambda visible, pieces, positions: pieces)
    assert differing(Layer(), 60, TREE) == []
    assert differing(Layer(), 120, TREE) != []


# -- what is computed ------------------------------------------------------------------------------------------


def plain(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float, softcap: float | None) -> Tensor:
    """`[B, T, H, Dv]` in float64; zeros where nothing is seen."""
    groups = query.shape[1] // key.shape[1]
    key, value = (x.double().repeat_interleave(groups, 1) for x in (key, value))
    scores = query.double() @ key.transpose(2, 3) * scale
    scores = scores if softcap is None else softcap * (scores / softcap).tanh()
    weights = (
        (scores + mask.double().clamp(min=-torch.inf)).masked_fill(mask <= attention.HIDDEN, -torch.inf).softmax(-1)
    )
    return (weights.nan_to_num(0.0) @ value).transpose(1, 2)


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("hidden", [-torch.inf, torch.finfo(torch.float32).min])
def test_attention_is_the_formula(path: str, hidden: float, softcap: float | None) -> None:
    """Any mask, any grouping of the heads, values of another width, queries that see nothing."""
    query, key, value = random(2, 6, 5, 24), random(2, 3, 300, 24, seed=1), random(2, 3, 300, 40, seed=2)
    mask = random(2, 1, 5, 300, seed=3)
    mask = torch.where(mask < 0.3, hidden, mask)
    mask[1, :, 2] = hidden
    got = attend(query, key, value, prepare(mask), 0.2, softcap)
    assert got.dtype == torch.float32
    assert (got[1, 2] == 0).all()
    wanted = plain(query, key, value, mask, 0.2, softcap)
    torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shift", [-200, -1, 1, 500])
def test_positions_that_are_not_the_slots_lose_nothing(path: str, shift: int) -> None:
    query, key, value = random(1, 2, 9, 16), random(1, 2, 300, 16, seed=1), random(1, 2, 300, 16, seed=2)
    mask = torch.full((9, 300), -torch.inf).triu_(292)[None, None]
    mask[..., 100:150] = -torch.inf
    got = attend(query, key, value, prepare(mask, torch.arange(9)[None] + 291 + shift), 0.2)
    torch.testing.assert_close(got.double(), plain(query, key, value, mask, 0.2, None), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_result_may_be_written_anywhere(path: str, dtype: torch.dtype) -> None:
    query, key, value = random(2, 4, 3, 16), random(2, 2, 9, 16, seed=1), random(2, 2, 9, 16, seed=2)
    prepared = prepare(torch.zeros(1, 1, 1, 9).expand(2, 1, 3, 9))
    wide = torch.full((2, 5, 4, 16), 7.0, dtype=dtype)
    wanted = attend(query, key, value, prepared, 0.25)
    assert attend(query, key, value, prepared, 0.25, out=wide[:, 1:4]) is not None
    assert torch.equal(wide[:, 1:4], wanted.to(dtype))
    assert (wide[:, [0, 4]] == 7).all()


def test_both_kernels_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    if native.kernels() is None:
        pytest.skip(native.reason())
    layer, cache = Layer(), Layer().cache()
    ours = layer.outputs(cache, [layer.commit(cache, text(120))], [drafted(TREE)], [TREE])[0]
    monkeypatch.setattr(attention, "kernels", lambda: None)
    cache = layer.cache()
    theirs = layer.outputs(cache, [layer.commit(cache, text(120))], [drafted(TREE)], [TREE])[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def prepared_kind(prepared: Prepared) -> str:
    return "pytorch" if isinstance(prepared, Cut) else "native"


def test_the_kernel_asked_for_is_the_one_used(path: str) -> None:
    assert prepared_kind(prepare(torch.zeros(1, 1, 2, 5))) == path


# -- behind transformers' interface ----------------------------------------------------------------------------


def given(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    mask = torch.ones(7, 7, dtype=torch.bool).tril()[None, None].expand(2, 1, 7, 7)
    query, key, value = (random(2, heads, 7, 16, seed=seed).to(dtype) for heads, seed in ((4, 0), (2, 1), (2, 2)))
    return query, key, value, mask


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_interface_takes_boolean_and_additive_masks_of_one_row(path: str, dtype: torch.dtype) -> None:
    query, key, value, mask = given(dtype)
    module = torch.nn.Module()
    additive = torch.where(mask, 0.0, torch.finfo(dtype).min).to(dtype)
    results = [attention_forward(module, query, key, value, one)[0] for one in (mask, mask[:1], additive)]
    assert results[0].dtype == dtype
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    wanted = plain(query, key, value, torch.where(mask, 0.0, -torch.inf), 0.25, None)
    torch.testing.assert_close(results[0].double(), wanted, rtol=5e-3, atol=1e-6)


def test_the_interface_leaves_to_pytorch_what_it_cannot_sum_in_order(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    query, key, value, mask = given()
    module = torch.nn.Module()
    module.num_key_value_groups, module.is_causal = 2, False
    wanted = attention_forward(module, query, key, value, mask)[0]
    monkeypatch.setattr(attention, "attend", None)
    learning = query.clone().requires_grad_()
    got = attention_forward(module, learning, key, value, mask)[0]
    got.sum().backward()
    assert learning.grad is not None
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)
    per_head = mask.expand(2, 4, 7, 7)
    torch.testing.assert_close(attention_forward(module, query, key, value, per_head)[0], wanted, rtol=1e-5, atol=1e-6)
