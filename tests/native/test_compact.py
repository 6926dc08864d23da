"""Matrices in 12 bits a weight: the same bits as in 16, whatever the weights."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from models.architectures import build
from torch import Tensor

from paceline.models import fused
from paceline.models.causal import CausalModel
from paceline.models.fast import speed_up
from paceline.models.packing import FROM_MEMORY, pack, pack_linears
from paceline.native import Kernels, kernels
from paceline.native.compact import BLOCK, CompactPanels
from paceline.native.matrix import WIDE, Panels
from paceline.tree import TokenTree

native = kernels()
pytestmark = pytest.mark.skipif(
    native is None or not native.library.compact_available(), reason="no native kernel for compact matrices"
)
#: One block, part of a panel, inputs that are no whole chunk, several panels and chunks.
SHAPES = [(32, WIDE), (96, 7), (288, 61), (1536, 3 * WIDE + 1)]


@pytest.fixture(params=["tiles", "compact"], autouse=True)
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """For CPUs with matrix units, if this is one, and for others."""
    assert native is not None
    tiles = request.param == "tiles"
    if tiles and not native.library.tiles_available():
        pytest.skip("this CPU cannot run tiles.c")
    for module in ("compact", "matrix"):
        monkeypatch.setattr(f"paceline.native.{module}.has_tiles", lambda library: tiles)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def both(weight: Tensor, bias: Tensor | None = None) -> tuple[CompactPanels, Panels]:
    assert isinstance(native, Kernels)
    return CompactPanels(native, weight, bias), Panels(native, weight, bias)


def every_exponent(outputs: int, inputs: int) -> Tensor:
    """Weights that no table of 16 exponents holds, with infinities, both zeros and the smallest numbers."""
    bits = torch.arange(outputs * inputs, dtype=torch.int32) * 40503 % 65536
    weight = bits.to(torch.uint16).view(torch.bfloat16).view(outputs, inputs)
    return torch.where(weight.isnan(), 1.0, weight)


def few_and_many(outputs: int, inputs: int) -> Tensor:
    """Blocks of each kind side by side."""
    weight = random(outputs, inputs, seed=9)
    weight[:, ::64] = every_exponent(outputs, inputs)[:, ::64].clamp(-9, 9)
    weight[:, 32 : inputs // 2] = 0.0
    return weight


def zeros(outputs: int, inputs: int) -> Tensor:
    return torch.zeros(outputs, inputs).bfloat16()


WEIGHTS = {"random": random, "zeros": zeros, "every": every_exponent, "mixed": few_and_many}


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
def test_products_are_the_same_bits_as_of_plain_panels(inputs: int, outputs: int, kind: str) -> None:
    compact, plain = both(WEIGHTS[kind](outputs, inputs), random(outputs, seed=1))
    x, other = random(70, inputs, seed=2), random(70, outputs, seed=3)
    for rows in (0, 1, 2, 5, 8, 11, 12, 13, 15, 16, 17, 24, 25, 31, 32, 33, 37, 48, 70):
        for products in (
            (matrix.times(x[:rows]) for matrix in (compact, plain)),
            (matrix.times(x[:rows], "swish") for matrix in (compact, plain)),
            (matrix.combined(x[:rows], other[:rows], "add") for matrix in (compact, plain)),
            (matrix.combined(x[:rows], other[:rows], "mul") for matrix in (compact, plain)),
        ):
            got, expected = products
            assert torch.equal(got.view(torch.int16), expected.view(torch.int16))


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
def test_unpacked_it_is_what_was_packed(inputs: int, outputs: int, kind: str) -> None:
    weight = WEIGHTS[kind](outputs, inputs)
    compact, _ = both(weight)
    assert compact.shape == (outputs, inputs)
    assert torch.equal(compact.dense().view(torch.int16), weight.view(torch.int16))


def test_it_takes_a_quarter_less_than_plain_panels() -> None:
    compact, plain = both(random(256, 1024))
    assert 0.75 * plain.nbytes <= compact.nbytes < 0.775 * plain.nbytes


def test_blocks_with_too_many_exponents_are_kept_beside() -> None:
    sparing = random(2 * WIDE, 256)
    sparing[WIDE:, 64:96] = every_exponent(WIDE, 32)
    one, none = both(sparing)[0], both(random(2 * WIDE, 256))[0]
    assert one.nbytes - none.nbytes == 2 * BLOCK


@pytest.mark.parametrize("rows", [3, 40])
def test_the_number_of_threads_changes_nothing(rows: int) -> None:
    compact, _ = both(few_and_many(5 * WIDE, 1536))
    x, found = random(rows, 1536), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(compact.times(x))
    torch.set_num_threads(1)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_products_of_several_threads_do_not_disturb_each_other() -> None:
    compact, _ = both(random(4 * WIDE, 512))
    inputs = [random(rows, 512, seed=rows) for rows in range(2, 30)]
    expected = [compact.times(x) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            for got, wanted in zip(pool.map(compact.times, inputs), expected, strict=True):
                assert torch.equal(got, wanted)


def test_inputs_that_lie_apart() -> None:
    compact, _ = both(random(61, 96))
    x = random(6, 192, seed=5)
    assert torch.equal(compact.times(x[::2, 1::2]), compact.times(x[::2, 1::2].contiguous()))


def test_not_a_number_comes_through_in_its_row_alone() -> None:
    compact, _ = both(random(61, 96))
    for rows in (3, 20):
        x = random(rows, 96)
        x[1, 7] = torch.nan
        got = compact.times(x)
        assert got[1].isnan().all()
        assert not got[[0, *range(2, rows)]].isnan().any()


@pytest.mark.parametrize(
    ("inputs", "compact", "kind"), [(96, True, CompactPanels), (96, False, Panels), (80, True, Panels)]
)
def test_weights_that_come_from_memory_are_laid_out_so_where_it_fits(inputs: int, compact: bool, kind: type) -> None:
    assert type(pack(random(61, inputs), compact=compact)) is kind


def test_a_model_scores_the_same_bits_and_gets_its_weights_back(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, sizes = [], []
    tree = TokenTree.chain(5, [6, 7, 8])
    for limit in (0, FROM_MEMORY):
        monkeypatch.setattr(fused, "FROM_MEMORY", limit)
        module = build("LlamaConfig", {"hidden_size": 64, "intermediate_size": 96, "tie_word_embeddings": False})
        before = {name: weight.clone() for name, weight in module.bfloat16().state_dict().items()}
        model = CausalModel(module)
        plain = model.nbytes
        undo = speed_up(model)
        assert isinstance(model.forward, fused.FusedDecoder)
        cache = model.new_cache(1)
        row = cache.allocate()
        prompt = model.prefill(cache, row, list(range(3, 40)), logits=True)
        scores.append(torch.cat([*prompt, model.score(cache, [row], [tree]).logits]))
        sizes.append(model.nbytes)
        assert model.parameters == plain // 2
        undo()
        assert model.nbytes == plain
        assert all(torch.equal(weight, before[name]) for name, weight in module.state_dict().items())
    assert torch.equal(scores[0], scores[1])
    assert sizes[0] < sizes[1] == plain


def test_linear_layers_of_other_models_save_as_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paceline.models.packing.FROM_MEMORY", 0)
    module = torch.nn.Sequential(torch.nn.Linear(64, 96), torch.nn.Linear(96, 32)).bfloat16()
    x = random(4, 64)
    with torch.no_grad():
        before = [layer.weight.clone() for layer in module]
        record = pack_linears(module)
        assert record.saved == sum(weight.nbytes for weight in before) - record.nbytes > 0
        wide = x.double() @ before[0].double().T
        assert (module[0](x).double() - wide - record.layers["0"].bias.double()).abs().max() < 0.05
        record.undo()
        assert all(torch.equal(layer.weight, weight) for layer, weight in zip(module, before, strict=True))
    assert record.saved == 0
