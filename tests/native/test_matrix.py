"""Matrices in panels: products with all that may follow them, the same bits for a row whatever the others."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from paceline.models.packing import OneDNN, pack, unpackable
from paceline.native import Kernels, kernels
from paceline.native.matrix import WIDE, Panels, product_of

native = kernels()
pytestmark = pytest.mark.skipif(
    native is None or not Panels.suits(native, torch.zeros(2, 2, dtype=torch.bfloat16), "none"),
    reason="no native kernel for bfloat16 matrices",
)
SHAPES = [(2, 1), (32, WIDE), (48, 61), (130, 3 * WIDE + 1), (1536, 96)]


@pytest.fixture(params=["tiles", "matrix", "widened"], autouse=True)
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """For CPUs with matrix units, for CPUs that multiply bfloat16, and for others, as far as this one can run them."""
    assert native is not None
    if not getattr(native.library, f"{request.param}_available")():
        pytest.skip(f"this CPU cannot run {request.param}.c")
    monkeypatch.setattr("paceline.native.matrix.product_of", lambda library: library[f"{request.param}_product"])


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def panels(inputs: int, outputs: int, bias: bool = False) -> tuple[Panels, Tensor, Tensor]:
    """A matrix in panels, dense in float64, and its bias or zeros in float64."""
    assert isinstance(native, Kernels)
    weight, added = random(outputs, inputs), random(outputs, seed=1)
    made = Panels(native, weight, added if bias else None)
    return made, weight.double(), added.double() if bias else torch.zeros(outputs, dtype=torch.float64)


def assert_rounded(got: Tensor, exact: Tensor, scale: float) -> None:
    """Within one rounding to bfloat16 and the float32 sum's error."""
    assert got.dtype == torch.bfloat16
    assert ((got.double() - exact).abs() <= exact.abs() * 2**-8 + 1e-5 * scale).all()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 3, 8, 9, 21, 39])
@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
def test_products_are_the_formulas(inputs: int, outputs: int, rows: int, bias: bool) -> None:
    matrix, weight, added = panels(inputs, outputs, bias)
    x, other = random(rows, inputs, seed=2), random(rows, outputs, seed=3)
    exact = x.double() @ weight.T + added
    assert_rounded(matrix.times(x), exact, inputs)
    assert_rounded(matrix.times(x, "swish"), exact * exact.sigmoid(), inputs)
    assert_rounded(matrix.combined(x, other, "add"), exact + other, inputs)
    assert_rounded(matrix.combined(x, other, "mul"), exact * other, inputs * 4)


@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
def test_a_row_is_the_same_bits_among_any_others(inputs: int, outputs: int) -> None:
    matrix, _, _ = panels(inputs, outputs, bias=True)
    x = random(100, inputs, seed=4)
    alone = torch.cat([matrix.times(row[None], "swish") for row in x])
    for count in (*range(1, 21), 31, 32, 33, 48, 49, 64, 65, 100):
        assert torch.equal(matrix.times(x[:count], "swish"), alone[:count])


def test_the_number_of_threads_changes_nothing() -> None:
    matrix, _, _ = panels(1536, 96)
    for x in (random(5, 1536), random(40, 1536)):
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(matrix.times(x))
        torch.set_num_threads(1)
        assert torch.equal(found[0], found[1])
        assert torch.equal(found[0], found[2])


@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
def test_unpacked_it_is_what_was_packed(inputs: int, outputs: int) -> None:
    matrix, weight, _ = panels(inputs, outputs)
    assert matrix.shape == (outputs, inputs)
    assert torch.equal(matrix.dense().double(), weight)
    assert weight.numel() * 2 <= matrix.nbytes < (weight.numel() + WIDE * inputs) * 2


def test_inputs_that_lie_apart_and_none_at_all() -> None:
    matrix, _, _ = panels(48, 61)
    x = random(6, 96, seed=5)
    assert torch.equal(matrix.times(x[::2, 1::2]), matrix.times(x[::2, 1::2].contiguous()))
    other = random(61, 3, seed=6).T
    assert torch.equal(
        matrix.combined(x[:3, :48], other, "add"), matrix.combined(x[:3, :48], other.contiguous(), "add")
    )
    assert matrix.times(x[:0, :48]).shape == (0, 61)


def test_not_a_number_comes_through_in_its_row_alone() -> None:
    matrix, _, _ = panels(48, 61)
    for rows in (3, 39):
        x = random(rows, 48)
        x[1, 7] = torch.nan
        for got in (matrix.times(x), matrix.times(x, "swish")):
            assert got[1].isnan().all()
            assert not got[[0, *range(2, rows)]].isnan().any()


@pytest.mark.parametrize(
    ("weight", "activation", "kind"),
    [
        (random(61, 48), "none", Panels),
        (random(61, 48), "swish", Panels),
        (random(61, 48), "gelu", OneDNN),
        (random(61, 47), "none", OneDNN),
        (random(61, 48).float(), "none", OneDNN),
    ],
)
def test_what_it_cannot_do_is_left_to_onednn(weight: Tensor, activation: str, kind: type) -> None:
    if reason := unpackable(weight, activation):  # oneDNN cannot either
        assert kind is OneDNN
        pytest.skip(reason)
    assert type(pack(weight, activation=activation)) is kind


@pytest.mark.parametrize(
    ("available", "taken"),
    [({"tiles", "matrix"}, "tiles"), ({"matrix"}, "matrix"), ({"widened"}, "widened"), (set(), None)],
)
def test_the_best_kernel_that_the_system_lets_it_use_is_taken(available: set[str], taken: str | None) -> None:
    kinds = ("tiles", "matrix", "widened")
    answers = {f"{kind}_available": lambda kind=kind: int(kind in available) for kind in kinds}
    library: Any = SimpleNamespace(**answers, **{f"{kind}_product": kind for kind in kinds})
    assert product_of(library) == taken


def test_without_native_kernels_onednn_does_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paceline.models.packing.kernels", lambda: None)
    if reason := unpackable(random(61, 48)):
        pytest.skip(reason)
    assert type(pack(random(61, 48))) is OneDNN
