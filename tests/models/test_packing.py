"""Packed linear layers: the same numbers, reversible bit for bit, and a row's result does not depend on the others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from models.architectures import build
from paceline.models.packing import DTYPES, PackedLinear, pack_linears, unpackable
from paceline.native import kernels
from paceline.native.matrix import Panels

#: Inputs and outputs of a layer: of tiny models, uneven ones, and those of small real models.
SHAPES = [(32, 48), (48, 61), (257, 130), (576, 1536), (1536, 576)]
#: Largest difference from exact numbers, in standard deviations of the result.
ERROR = {torch.float32: 1e-5, torch.bfloat16: 0.02}


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    if request.param == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this CPU has no bfloat16")
    return request.param


@pytest.fixture(params=["ours", "oneDNN"], autouse=True)
def layout(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own layout, where this machine has it, and oneDNN's."""
    if request.param == "oneDNN":
        monkeypatch.setattr("paceline.models.packing.kernels", lambda: None)
    elif kernels() is None:
        pytest.skip("no native kernels")


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def close(got: Tensor, wanted: Tensor) -> bool:
    return bool((got.double() - wanted).abs().max() <= ERROR[got.dtype] * wanted.std())


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: weight.clone() for name, weight in module.state_dict().items()}


def unchanged(module: nn.Module, before: dict[str, Tensor]) -> bool:
    after = module.state_dict()
    return after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)


class Net(nn.Module):
    """Layers of every kind: plain ones, GPT-2's, one of another dtype, one of a subclass, a tied head."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(61, 32)
        self.first, self.conv = nn.Linear(32, 48), Conv1D(32, 48)
        self.inner = nn.Sequential(nn.Linear(32, 32, bias=False), nn.ReLU(), nn.Linear(32, 32))
        self.whole, self.special = nn.Linear(32, 32).double(), Special(32, 32)
        self.head = nn.Linear(32, 61, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.special(self.inner(self.conv(self.first(self.table(tokens))))))


class Special(nn.Linear):
    """A subclass: it may do more than multiply."""


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
def test_packing_loses_nothing(inputs: int, outputs: int, dtype: torch.dtype) -> None:
    weight = random(outputs, inputs, dtype=dtype)
    assert torch.equal(PackedLinear(weight).weight, weight)
    assert torch.equal(PackedLinear(weight.t().contiguous().t()).weight, weight)


@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
def test_a_row_does_not_depend_on_how_many_there_are_from_two_on(inputs: int, outputs: int, dtype: torch.dtype) -> None:
    """oneDNN's own product, without padding: what padding relies on."""
    if dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported():
        pytest.skip("oneDNN's kernels for matrix units differ with the number of rows; ours are used there")
    packed = torch.ops.mkldnn._reorder_linear_weight(random(outputs, inputs, dtype=dtype), 4)
    x = random(70, inputs, dtype=dtype, seed=1)

    def product(rows: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(rows.contiguous(), packed, None, "none", [], "")

    whole = product(x)
    for count in (*range(2, 34), 64, 65):
        assert torch.equal(product(x[:count]), whole[:count]), count
    assert torch.equal(product(x.flip(0)), whole.flip(0))
    assert torch.equal(product(F.pad(x[:3], (0, 0, 0, 5)))[:3], whole[:3])


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
def test_a_packed_layer_gives_a_row_the_same_bits_in_any_company(
    inputs: int, outputs: int, biased: bool, dtype: torch.dtype
) -> None:
    bias = nn.Parameter(random(outputs, dtype=dtype, seed=2)) if biased else None
    layer, x = PackedLinear(random(outputs, inputs, dtype=dtype), bias), random(12, inputs, dtype=dtype, seed=1)
    whole = layer(x)
    assert whole.dtype == dtype
    assert close(whole, F.linear(x.double(), layer.weight.double(), None if bias is None else bias.double()).detach())
    for count in range(1, 12):
        assert torch.equal(layer(x[:count]), whole[:count]), count
    assert torch.equal(layer(x[5]), whole[5])
    assert torch.equal(layer(x.view(3, 4, inputs)), whole.view(3, 4, outputs))
    assert torch.equal(layer(x[:3].view(1, 3, 1, inputs)), whole[:3].view(1, 3, 1, outputs))
    assert layer(x[:0]).shape == (0, outputs)


def test_gradients_flow_through_a_packed_layer_to_its_input(dtype: torch.dtype) -> None:
    weight, bias = random(48, 32, dtype=dtype), nn.Parameter(random(48, dtype=dtype))
    layer, x = PackedLinear(weight, bias), random(2, 3, 32, dtype=dtype, seed=1).requires_grad_()
    out = layer(x)
    out.float().square().sum().backward()
    with torch.no_grad():
        assert close(out, layer(x).double())
    gradient = 2 * out.detach().double() @ weight.double()
    assert x.grad is not None
    assert close(x.grad, gradient)


def test_gpt2s_layers_keep_their_layout(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    conv = Conv1D(48, 32).to(dtype)
    layer, x = PackedLinear(conv.weight, conv.bias, transposed=True), random(5, 32, dtype=dtype)
    assert (layer.in_features, layer.out_features) == (32, 48)
    assert torch.equal(layer.weight, conv.weight)
    assert close(layer(x), x.double() @ conv.weight.detach().double())


def test_every_plain_layer_is_packed_and_put_back_bit_for_bit(net: Net) -> None:
    before, layers, tokens = weights(net), dict(net.named_modules()), torch.arange(7)
    wanted = net(tokens)
    record = pack_linears(net)
    assert set(record.layers) == {"first", "conv", "inner.0", "inner.2", "head"}
    assert all(isinstance(net.get_submodule(name), PackedLinear) for name in record.layers)
    assert all(record.layers[name] is layers[name] for name in record.layers)
    plain = sum(before[f"{name}.weight"].nbytes for name in record.layers)
    assert plain <= record.nbytes <= 3 * plain
    with torch.no_grad():
        torch.testing.assert_close(net(tokens), wanted.detach(), rtol=1e-5, atol=1e-5)
    record.undo()
    assert unchanged(net, before)
    assert dict(net.named_modules()) == layers
    assert torch.equal(net(tokens), wanted)
    assert (record.layers, record.nbytes) == ({}, 0)
    record.undo()
    assert unchanged(net, before)


def test_weights_are_released_unless_something_else_reads_them(net: Net) -> None:
    """A head that is tied to the embedding is packed, and the table stays what it was."""
    table = net.table.weight.clone()
    record = pack_linears(net)
    held = {name: layer.weight.numel() for name, layer in record.layers.items()}
    assert held == {"first": 0, "conv": 0, "inner.0": 0, "inner.2": 0, "head": 61 * 32}
    assert torch.equal(net.table.weight, table)
    record.undo()
    assert net.head.weight is net.table.weight


def test_layers_that_are_left_alone_are_named_with_the_reason(net: Net) -> None:
    net.inner[0].half()
    net.inner[2].to("meta")
    special = net.special
    record = pack_linears(net)
    assert record.skipped == {
        "whole": "weights are torch.float64, packing is for bfloat16 and float32",
        "inner.0": "weights are torch.float16, packing is for bfloat16 and float32",
        "inner.2": "weights are on meta, packing is for cpu",
    }
    assert net.special is special
    assert set(record.layers) == {"first", "conv", "head"}


@pytest.mark.parametrize(
    ("missing", "reason"),
    [
        ("torch.backends.mkldnn.is_available", "this build of torch lacks oneDNN"),
        ("torch.ops.mkldnn._is_mkldnn_bf16_supported", "this CPU has no bfloat16 support in oneDNN"),
    ],
)
def test_nothing_is_packed_where_onednn_cannot(
    net: Net, missing: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    net.bfloat16()
    before = weights(net)
    monkeypatch.setattr(missing, lambda: False)
    monkeypatch.setattr("paceline.models.packing.kernels", lambda: None)
    record = pack_linears(net)
    assert not record.layers
    assert set(record.skipped) == {"first", "conv", "inner.0", "inner.2", "whole", "head"}
    assert all(why.startswith(reason) for why in record.skipped.values())
    assert unchanged(net, before)


def test_own_kernels_pack_bfloat16_where_onednn_cannot(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    native, weight = kernels(), random(48, 32, dtype=torch.bfloat16)
    monkeypatch.setattr("torch.ops.mkldnn._is_mkldnn_bf16_supported", lambda: False)
    if native is None or not Panels.suits(native, weight, "none"):
        pytest.skip("no native kernels for bfloat16")
    monkeypatch.setattr("paceline.models.packing.kernels", lambda: native)
    assert unpackable(weight, "swish") is None
    for refused, activation in ((weight, "gelu"), (weight[:, :31], "none")):
        assert "no native kernel suits" in str(unpackable(refused, activation))
    assert not pack_linears(net.bfloat16()).skipped


def test_bias_and_training_flag_stay_with_the_layer(net: Net) -> None:
    bias = net.first.bias
    net.first.train()
    pack_linears(net)
    assert net.first.bias is bias
    assert net.first.training
    assert not net.conv.training


@pytest.mark.parametrize(("config", "changes"), [("GPT2Config", {"n_embd": 32, "n_head": 4}), ("GemmaConfig", {})])
def test_whole_models_compute_the_same_and_are_put_back(config: str, changes: dict[str, Any]) -> None:
    model = build(config, changes)
    before, tokens = weights(model), torch.arange(9)[None]
    with torch.no_grad():
        wanted = model(tokens).logits
        record = pack_linears(model)
        assert not record.skipped
        torch.testing.assert_close(model(tokens).logits, wanted, rtol=1e-4, atol=1e-4)
        record.undo()
        assert unchanged(model, before)
        assert torch.equal(model(tokens).logits, wanted)
