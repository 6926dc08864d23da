"""The native operations against the plain formulas in float64."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from paceline import native
from paceline.models.attention import HIDDEN
from paceline.native import Kernels

DIMS = [8, 16, 24, 64, 80, 96, 128]
DTYPES = [torch.float32, torch.bfloat16]
#: Of a result that was rounded once, relative to the exact number.
ROUNDED = {torch.float32: 2e-6, torch.bfloat16: 2**-8 + 2e-6}
#: What is left of sums whose terms cancel.
LEFT = {torch.float32: 3e-6, torch.bfloat16: 3e-6}


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    found = native.kernels()
    if found is None:
        pytest.skip(native.reason())
    return found


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def close(got: Tensor, wanted: Tensor) -> None:
    """To one rounding of the exact numbers."""
    torch.testing.assert_close(got.double(), wanted, rtol=ROUNDED[got.dtype], atol=LEFT[got.dtype])


def plain_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    x = x.double()
    return x / (x.square().mean(-1, keepdim=True) + epsilon).sqrt() * weight.double()


def plain_rotation(heads: Tensor, rope: Tensor, turned: int, norms: Tensor | None, epsilon: float) -> Tensor:
    out = heads.double()
    some = out[:, :turned] if norms is None else plain_norm(out[:, :turned], norms, epsilon)
    swapped = torch.cat(some.chunk(2, -1)[::-1], -1)
    return torch.cat([some * rope[:, :1].double() + swapped * rope[:, 1:].double(), out[:, turned:]], 1)


def plain_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float, softcap: float | None = None
) -> Tensor:
    """`[B, T, H, Dv]`; what is hidden does not enter, whatever it is."""
    batch, heads, queries, _ = query.shape
    out = torch.zeros(batch, queries, heads, value.shape[3], dtype=torch.float64)
    for b, h, t in torch.cartesian_prod(*map(torch.arange, (batch, heads, queries))).tolist():
        seen = mask[b, 0, t] > HIDDEN
        group = h * key.shape[1] // heads
        scores = key[b, group, seen].double() @ query[b, h, t].double() * scale
        if softcap is not None:
            scores = softcap * (scores / softcap).tanh()
        if seen.any():
            weights = (scores + mask[b, 0, t, seen].double()).softmax(-1)
            out[b, t, h] = weights @ value[b, group, seen].double()
    return out


def random_mask(batch: int, queries: int, length: int) -> Tensor:
    """Hidden by either value in use; what is visible is weighed by small numbers."""
    generator = torch.Generator().manual_seed(5)
    draws = torch.rand(batch, 1, queries, length, generator=generator)
    hidden = torch.where(draws < 0.3, -torch.inf, torch.finfo(torch.float32).min)
    return torch.where(draws < 0.6, hidden, draws - 1)


def attention(
    kernels: Kernels,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    softcap: float | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The kernel's result, in memory that was full of NaN before."""
    batch, heads, queries, dim = query.shape
    out = torch.full((batch, queries, heads, value.shape[3]), torch.nan, dtype=dtype)
    kernels.attend(query, key, value, kernels.seen(mask, HIDDEN), dim**-0.5, softcap, out)
    return out


def inputs(dim: int = 16, width: int = 16, batch: int = 2, queries: int = 3, length: int = 41) -> tuple[Tensor, ...]:
    """Queries of four heads, keys and values of two, a mask."""
    query, key = random(batch, 4, queries, dim), random(batch, 2, length, dim, seed=1)
    return query, key, random(batch, 2, length, width, seed=2), random_mask(batch, queries, length)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [*DIMS, 1, 33, 257])
def test_rms_norm_is_the_formula_rounded_once(kernels: Kernels, size: int, dtype: torch.dtype) -> None:
    x, weight = random(5, size, dtype=dtype), random(size, seed=1)
    x[3], x[4] = 0, x[4] * 1e-4
    got = kernels.rms_norm(x, weight, 1e-5)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), plain_norm(x, weight, 1e-5), rtol=ROUNDED[dtype], atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_norm_keeps_what_is_no_number(kernels: Kernels, dtype: torch.dtype) -> None:
    x = random(3, 24, dtype=dtype)
    x[1, 20] = torch.nan
    got = kernels.rms_norm(x, torch.ones(24), 1e-5)
    assert got.isnan().all(-1).tolist() == [False, True, False]
    assert got[[0, 2]].isfinite().all()


def test_bfloat16_is_rounded_to_even_as_pytorch_does(kernels: Kernels) -> None:
    """Of queries that see one slot, the output is that slot's value."""
    ends = torch.tensor([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
    value = (torch.arange(1 << 16) * 65536 + ends[:, None]).int().view(torch.float32).view(1, 1, 6, 1 << 16)
    value = torch.where(value.abs() < 2.0**-126, 0.0, value)
    out = torch.empty(1, 6, 1, 1 << 16, dtype=torch.bfloat16)
    mask = torch.full((1, 1, 6, 6), -torch.inf).masked_fill(torch.eye(6, dtype=torch.bool), 0.0)
    kernels.attend(torch.zeros(1, 1, 6, 8), torch.zeros(1, 1, 6, 8), value, kernels.seen(mask, HIDDEN), 1.0, None, out)
    wanted = value.transpose(1, 2).bfloat16()
    assert torch.equal(out.isnan(), wanted.isnan())
    assert torch.equal(out[~out.isnan()], wanted[~wanted.isnan()])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("dim", DIMS)
def test_rotation_is_the_formula(kernels: Kernels, dim: int, normed: bool, dtype: torch.dtype) -> None:
    heads, rope = random(5, 7, dim, dtype=dtype), random(5, 2, dim, seed=1)
    for turned in (0, 4, 7):
        norms = random(turned, dim, seed=2) if normed else None
        got = kernels.rotate(heads, rope, turned, norms, 1e-6)
        assert got.dtype == torch.float32
        close(got, plain_rotation(heads, rope, turned, norms, 1e-6))
        assert torch.equal(got[:, turned:], heads[:, turned:].float())


@pytest.mark.parametrize("dtype", DTYPES)
def test_norm_and_rotation_take_inputs_that_are_not_contiguous(kernels: Kernels, dtype: torch.dtype) -> None:
    x, rope, weight = random(16, 5, dtype=dtype).t(), random(5, 2, 16, seed=1), random(16, seed=2)
    assert torch.equal(kernels.rms_norm(x, weight, 1e-5), kernels.rms_norm(x.contiguous(), weight, 1e-5))
    heads = random(5, 16, 3, dtype=dtype).transpose(1, 2)
    close(kernels.rotate(heads, rope, 2, None, 0.0), plain_rotation(heads, rope, 2, None, 0.0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("dim", "width"), [*zip(DIMS, DIMS, strict=True), (24, 40), (128, 16), (16, 130), (20, 7)])
def test_attention_is_the_formula_rounded_once(kernels: Kernels, dim: int, width: int, dtype: torch.dtype) -> None:
    given = inputs(dim, width)
    close(attention(kernels, *given, dtype=dtype), plain_attention(*given, dim**-0.5))


@pytest.mark.parametrize("length", [1, 15, 16, 17, 32, 130])
def test_attention_over_any_number_of_slots(kernels: Kernels, length: int) -> None:
    query, key, value, _ = inputs(length=length)
    mask = torch.zeros(1, 1, 1, 1).expand(2, 1, 3, length)
    close(attention(kernels, query, key, value, mask), plain_attention(query, key, value, mask, 0.25))


@pytest.mark.parametrize("softcap", [0.5, 30.0])
def test_scores_are_capped_before_the_mask_is_added(kernels: Kernels, softcap: float) -> None:
    given = inputs()
    close(attention(kernels, *given, softcap=softcap), plain_attention(*given, 0.25, softcap))


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_heads_share_keys_in_groups(kernels: Kernels, groups: int) -> None:
    query, key, value = random(2, 4, 3, 24), *random(2, 2, 4 // groups, 19, 24, seed=1)
    mask = random_mask(2, 3, 19)
    close(attention(kernels, query, key, value, mask), plain_attention(query, key, value, mask, 24**-0.5))


def test_masks_may_be_expanded(kernels: Kernels) -> None:
    query, key, value, mask = inputs()
    for few in (mask[:1], mask[:, :, :1], mask[:1, :, :1], mask[..., :1].clamp(min=-1)):
        wide = few.expand(mask.shape)
        assert 0 in wide.stride()
        close(attention(kernels, query, key, value, wide), plain_attention(query, key, value, wide, 0.25))


def test_keys_queries_and_outputs_may_be_views(kernels: Kernels) -> None:
    query, key, value, mask = inputs()
    wanted = attention(kernels, query, key, value, mask)
    stored = random(5, 2, 99, 16)
    stored[1:3, :, :41] = key
    turned = query.transpose(1, 2).contiguous().transpose(1, 2)
    assert not turned.is_contiguous()
    assert torch.equal(attention(kernels, turned, stored[1:3, :, :41], value, mask), wanted)
    upright = [x.transpose(2, 3).contiguous().transpose(2, 3) for x in (query, key, value)]
    assert torch.equal(attention(kernels, *upright, mask.transpose(2, 3).contiguous().transpose(2, 3)), wanted)
    wide = torch.full((2, 9, 4, 16), 7.0)
    kernels.attend(query, key, value, kernels.seen(mask, HIDDEN), 0.25, None, wide[:, 2:5])
    assert torch.equal(wide[:, 2:5], wanted)
    assert (wide[:, :2] == 7).all()
    assert (wide[:, 5:] == 7).all()


@pytest.mark.parametrize("counts", [(3, 3), (5, 1), (1, 9), (4, 0)])
def test_texts_may_have_different_numbers_of_queries(kernels: Kernels, counts: tuple[int, int]) -> None:
    """Those of all lie one after the other; each text's are what they are alone, bit for bit."""
    query, key, value, mask = inputs(queries=max(counts))
    parts = [(query[b : b + 1, :, :n], mask[b : b + 1, :, :n]) for b, n in enumerate(counts)]
    joined, seen = torch.cat([q for q, _ in parts], 2), torch.cat([m for _, m in parts], 2)
    out = torch.full((1, sum(counts), 4, 16), torch.nan)
    kernels.attend(joined, key, value, kernels.seen(seen, HIDDEN, counts), 0.25, None, out)
    for b, ((q, m), own) in enumerate(zip(parts, out.split(list(counts), 1), strict=True)):
        if counts[b]:
            assert torch.equal(attention(kernels, q, key[b : b + 1], value[b : b + 1], m), own)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hidden", [-torch.inf, torch.finfo(torch.float32).min])
def test_queries_that_see_nothing_give_zeros(kernels: Kernels, hidden: float, dtype: torch.dtype) -> None:
    query, key, value, mask = inputs()
    mask[0, :, 1] = mask[1, :, 2] = hidden
    got = attention(kernels, query, key, value, mask, dtype=dtype)
    assert (got[0, 1] == 0).all()
    assert (got[1, 2] == 0).all()
    close(got, plain_attention(query, key, value, mask, 0.25))
    mask[:] = hidden
    assert (attention(kernels, query, key, value, mask, dtype=dtype) == 0).all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_hidden_slots_hold_does_not_matter(kernels: Kernels, bad: float) -> None:
    query, key, value, mask = inputs()
    mask[:, :, :, [0, 7, 40]] = -torch.inf
    wanted = attention(kernels, query, key, value, mask)
    key[:, :, [0, 7, 40]] = value[:, :, [0, 7, 40]] = bad
    assert torch.equal(attention(kernels, query, key, value, mask), wanted)


@pytest.mark.parametrize("slot", [0, 1, 15, 16, 37, 40])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_no_number_comes_through_where_it_is_seen(kernels: Kernels, slot: int, dtype: torch.dtype) -> None:
    query, key, value, _ = inputs()
    mask = torch.zeros(2, 1, 3, 41)
    mask[0, :, 1, slot] = -torch.inf
    key[0, 1, slot, 3] = torch.nan
    got = attention(kernels, query, key, value, mask, dtype=dtype).isnan()
    wanted = torch.zeros(2, 3, 4, 16, dtype=torch.bool)
    wanted[0, [0, 2], 2:] = True
    assert torch.equal(got, wanted)
    key[0, 1, slot, 3], value[0, 1, slot, 5] = 1.0, torch.nan
    got = attention(kernels, query, key, value, mask, dtype=dtype).isnan()
    wanted[..., :5] = wanted[..., 6:] = False
    assert torch.equal(got, wanted)


def test_the_exponential_is_right_to_two_units_in_the_last_place(kernels: Kernels) -> None:
    """Two slots of scores 0 and x weigh as 1 and exp(x)."""
    x = torch.cat([torch.linspace(-87, 0, 20001), torch.linspace(-1, 0, 5000), -torch.logspace(-30, 0, 500)])
    mask = torch.stack([torch.zeros(len(x)), x], -1)[None, None]
    nothing = torch.zeros(1, 1, 1, 8)
    query, key = nothing.expand(1, 1, len(x), 8), nothing.expand(1, 1, 2, 8)
    got = attention(kernels, query, key, torch.eye(2)[None, None], mask)[0, :, 0].double()
    torch.testing.assert_close(got[:, 1] / got[:, 0], x.double().exp(), rtol=2 * 2**-23 + 2 * 2**-24, atol=2**-125)


def test_slots_far_below_the_best_weigh_nothing(kernels: Kernels) -> None:
    mask = torch.tensor([[0.0, -87.5], [0.0, -1e4], [-1e29, 0.0], [-1e29, -1e29]])[None, None]
    nothing = torch.zeros(1, 1, 1, 8)
    query, key = nothing.expand(1, 1, 4, 8), nothing.expand(1, 1, 2, 8)
    got = attention(kernels, query, key, torch.eye(2)[None, None], mask)[0, :, 0]
    assert got.tolist() == [[1, 0], [1, 0], [0, 1], [0.5, 0.5]]


def test_large_scores_do_not_overflow(kernels: Kernels) -> None:
    query, key, value, mask = inputs()
    got = attention(kernels, query * 1e4, key, value, mask)
    torch.testing.assert_close(got.double(), plain_attention(query * 1e4, key, value, mask, 0.25), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_two_threads_give_the_same_bits_as_one(kernels: Kernels, dtype: torch.dtype, threads: None) -> None:
    x, weight, rope = random(300, 640, dtype=dtype), random(640, seed=1), random(300, 2, 64, seed=2)
    given = inputs(dim=80, width=80, queries=9, length=150)
    results = []
    for count in (1, 2):
        torch.set_num_threads(count)
        normed, turned = kernels.rms_norm(x, weight, 1e-5), kernels.rotate(x.view(300, 10, 64), rope, 8, None, 0.0)
        results.append([normed, turned, attention(kernels, *given, dtype=dtype)])
    assert x.numel() > 1 << 16
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))
