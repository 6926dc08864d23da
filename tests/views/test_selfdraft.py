"""Self-drafts on the target's own cache: texts, acceptance, what the cache holds, and when nothing is drafted."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from paceline import Engine
from paceline.drafters.early_exit import EarlyExit
from paceline.drafters.quantised import Quantised
from paceline.drafters.self_speculative import SelfSpeculative
from paceline.errors import BadRequest, Unsupported
from paceline.models.loading import load_model
from paceline.models.quantised import Bytes, Int4, Int8, eight_bits, quantised
from paceline.models.views import Exit
from paceline.testing.running import finish
from paceline.views.ffn_skip import FFNSkip
from paceline.views.unified import Unified
from tests.drafters.support import PROMPTS, generated, llama, results, start
from tests.views.support import PASSES, engine_of, greedy, model_of, scored, tapering

DRAFTS: dict[str, Any] = {
    "early exit": lambda: EarlyExit(layer=2, confidence=0.0),
    "early exit that stops": lambda: EarlyExit(layer=4, length=3, confidence=0.5),
    "a fixed set": lambda: SelfSpeculative("skip(attention='1 3', mlp=3)", confidence=0.0),
    "evenly spread layers": lambda: SelfSpeculative("unified(speedup=2)", length=3, confidence=0.0),
    "a falling schedule": lambda: SelfSpeculative("skipdecode(least=2, span=9)", confidence=0.2),
    "an exit": lambda: SelfSpeculative("exit(layer=3)", length=5, confidence=0.0),
    "feed-forward parts skipped": lambda: SelfSpeculative(
        FFNSkip(similarity=-1, cap=0.4, cold=1, warm=0), length=4, confidence=0.0
    ),
    "8 bits": lambda: Quantised(confidence=0.0),
    "4 bits": lambda: Quantised(bits=4, length=3, confidence=0.2),
}


@pytest.mark.parametrize("path", PASSES)
@pytest.mark.parametrize("name", DRAFTS)
def test_text_equals_transformers_alone_and_in_a_batch(name: str, path: str) -> None:
    engine = engine_of(path, DRAFTS[name](), max_rows=3)
    assert engine.generate(PROMPTS[0], max_new_tokens=30).tokens == greedy(30)[0]
    found = results(engine, PROMPTS, max_new_tokens=30)
    assert [result.tokens for result in found] == greedy(30)
    assert sum(result.stats.accepted for result in found) > 20


@pytest.mark.parametrize("path", PASSES)
@pytest.mark.parametrize("name", DRAFTS)
def test_what_is_committed_equals_a_fresh_pass_after_every_step(name: str, path: str) -> None:
    """The target's cache after drafts of every kind were written into it and forgotten."""
    engine = engine_of(path, DRAFTS[name](), max_rows=3)
    sequences = [start(engine, prompt, max_new_tokens=14, temperature=0.8, ignore_eos=True) for prompt in PROMPTS[:3]]
    while engine.decoder.busy:
        engine.decoder.step()
        for sequence in sequences:
            if sequence.row is None:
                continue
            fresh = engine.model.new_cache(1)
            engine.model.prefill(fresh, other := fresh.allocate(), sequence.tokens[: sequence.cached])
            assert sequence.row.parents == []
            for kept, wanted in zip(engine.decoder.cache.layers, fresh.layers, strict=True):
                for a, b in ((kept.keys, wanted.keys), (kept.values, wanted.values)):
                    torch.testing.assert_close(
                        a[sequence.row.index, :, : other.trunk], b[0, :, : other.trunk], rtol=1e-4, atol=1e-4
                    )


def test_a_sampled_text_does_not_depend_on_the_draft() -> None:
    engine = engine_of("module", "none", max_rows=3)
    options: dict[str, Any] = {"max_new_tokens": 25, "temperature": 0.8, "seed": 3, "repetition_penalty": 1.2}
    expected = [result.tokens for result in results(engine, PROMPTS, **options)]
    for make in DRAFTS.values():
        assert [r.tokens for r in results(engine, PROMPTS, drafter=make(), **options)] == expected


@pytest.mark.parametrize("path", PASSES)
@pytest.mark.parametrize("verifier", ["coupled", "rejection"])
def test_a_view_of_everything_is_always_accepted(verifier: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paceline.drafters.early_exit.EarlyExit.view", lambda self, sequence: None)
    engine = engine_of(path, EarlyExit(layer=1, length=3, confidence=0.0), verifier=verifier, nodes=7)
    for result in results(engine, PROMPTS, max_new_tokens=13, ignore_eos=True, temperature=0.9, top_p=0.9):
        assert result.stats.accepted == result.stats.drafted
        assert result.stats.forward_passes == 1 + 3


@pytest.mark.parametrize("path", PASSES)
def test_a_view_drafts_what_it_says_as_the_model(path: str) -> None:
    """Behind a prompt that the whole model read; the prompt's place decides where a schedule is."""
    drafter = SelfSpeculative("unified(speedup=2)", length=3, confidence=0.0)
    engine = engine_of(path, drafter, max_rows=3)
    sequences = [start(engine, prompt, max_new_tokens=9, ignore_eos=True) for prompt in PROMPTS[:3]]
    engine.decoder.step()
    with torch.inference_mode():
        trees = drafter.propose(sequences, [(7, 7)] * 3)
    lossy = model_of(path)
    lossy.follow(Unified(2))
    for sequence, tree in zip(sequences, trees, strict=True):
        cache = lossy.new_cache(1)
        row = cache.allocate()
        row.prompt = sequence.prompt_length
        lossy.prefill(cache, row, sequence.tokens[:-1])
        logits = lossy.score(cache, [row], [tree]).logits
        assert tree.tokens[1:].tolist() == logits[:-1].argmax(-1).tolist()
        assert (tree.drafted, sequence.row.parents) == (3, [])


def test_a_view_that_drafts_breaks_its_schedule_and_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Unified, "view", lambda rule, places, layers: Exit(2 if places.max() < 3 else layers))
    with pytest.raises(Unsupported, match=r"Unified.speedup=2.0. lets layer 2 attend behind"):
        engine_of("module", "self_speculative(unified, confidence=0)").generate(
            PROMPTS[0], max_new_tokens=12, ignore_eos=True
        )


def test_nothing_is_drafted_before_the_prompt_is_cached() -> None:
    drafter = EarlyExit(layer=2, confidence=0.0)
    engine = engine_of("module", drafter)
    first = start(engine, PROMPTS[0], max_new_tokens=9, ignore_eos=True)
    engine.decoder.step()
    assert (first.generated, first.stats.drafted) == (1, 0)
    alone = start(engine, [3], max_new_tokens=9, ignore_eos=True)
    finish(engine)
    assert first.stats.drafted > 0
    assert alone.error is None


def test_budget_and_confidence_end_a_draft() -> None:
    engine = engine_of("module", EarlyExit(layer=4, length=6, confidence=0.0), nodes=2)
    assert engine.generate(PROMPTS[0], max_new_tokens=30, ignore_eos=True).stats.drafted <= 2 * 30
    sure = engine_of("module", EarlyExit(layer=4, length=6, confidence=1.0))
    stats = sure.generate(PROMPTS[0], max_new_tokens=20, ignore_eos=True).stats
    assert 0 < stats.drafted <= stats.forward_passes


def test_a_draft_that_fails_leaves_the_others_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of("module", "none", max_rows=2)
    bad = start(engine, PROMPTS[0], max_new_tokens=12, ignore_eos=True, drafter=(drafter := EarlyExit(layer=2)))
    good = start(engine, PROMPTS[2], max_new_tokens=12)
    engine.decoder.step()

    def fail(*args: object) -> None:
        raise RuntimeError("draft failed")

    monkeypatch.setattr(drafter, "_go_on", fail)
    finish(engine)
    assert str(bad.error) == "draft failed"
    assert good.tokens[len(PROMPTS[2]) :] == generated(tapering(), PROMPTS[2], 12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EarlyExit(length=0), "length=0"),
        (lambda: EarlyExit(confidence=1.5), "from 0 to 1"),
        (lambda: engine_of("module", "early_exit(0)"), "early_exit.layer=0.*1 to 4 can draft"),
        (lambda: engine_of("module", "early_exit(5)"), "early_exit.layer=5.*5 layers; 1 to 4 can draft"),
        (lambda: SelfSpeculative("unifed"), "did you mean 'unified'"),
        (lambda: SelfSpeculative(length=0), "self_speculative.length=0"),
        (lambda: SelfSpeculative(FFNSkip, confidence=0.0), "a view's instance is needed"),
        (lambda: engine_of("module", "self_speculative(unified(speedup=9))"), "unified.speedup=9.*at least 2 must"),
        (lambda: engine_of("module", "self_speculative(exit(layer=6))"), "exit.layer=6.*1 to 5 may run"),
        (lambda: engine_of("module", "self_speculative(skip(mlp=5))"), "layer 5 cannot be skipped"),
        (lambda: Quantised(bits=3), "quantised.bits=3.*8 or 4"),
        (lambda: Quantised(length=0), "quantised.length=0"),
    ],
)
def test_knobs_are_checked(make: Any, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        make()


# -- quantised matrices ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(48, 32), (50, 48), (64, 64)])
@pytest.mark.parametrize(("kind", "error"), [(Int8, 0.02), (eight_bits, 0.02), (Int4, 0.12)])
@pytest.mark.parametrize("biased", [False, True])
def test_a_quantised_product_is_close(kind: Any, error: float, shape: tuple[int, int], biased: bool) -> None:
    torch.manual_seed(0)
    weight, x, bias = torch.randn(shape), torch.randn(4, shape[1]), torch.randn(shape[0]) if biased else None
    got, expected = kind(weight, bias).product(x), torch.nn.functional.linear(x, weight, bias)
    assert got.shape == expected.shape
    assert (got - expected).norm() < error * expected.norm()


def test_a_row_in_8_bits_is_the_same_among_any_others_and_uneven_sizes_do_not_matter() -> None:
    matrix = eight_bits(torch.randn(70, 33), torch.randn(70))
    if not isinstance(matrix, Bytes):
        pytest.skip("no native kernel for 8 bits")
    x = torch.randn(19, 33)
    alone = torch.cat([matrix.product(row[None]) for row in x])
    assert all(torch.equal(matrix.product(x[:count]), alone[:count]) for count in range(1, 20))
    assert torch.equal(matrix.product(torch.zeros(1, 33))[0], matrix._bias)


def test_without_native_kernels_pytorchs_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paceline.models.quantised.kernels", lambda: None)
    assert isinstance(eight_bits(torch.randn(8, 8), None), Int8)


@pytest.mark.parametrize("path", PASSES)
@pytest.mark.parametrize(("bits", "error"), [(8, 0.1), (4, 0.6)])
def test_quantised_logits_are_close_and_the_target_is_untouched(bits: int, error: float, path: str) -> None:
    model = load_model(tapering(), fast=path == "fused")
    plain = scored(model, PROMPTS[2], [4, 5]).logits
    got = scored(quantised(model, bits), PROMPTS[2], [4, 5]).logits
    assert 0 < (got - plain).norm() < error * plain.norm()
    torch.testing.assert_close(scored(model, PROMPTS[2], [4, 5]).logits, plain, rtol=0, atol=0)


@pytest.mark.parametrize("activation", ["gelu", "gelu_pytorch_tanh", "relu", "silu"])
def test_every_activation(activation: str) -> None:
    model = load_model(llama(hidden_act=activation), fast=False)
    plain = scored(model, PROMPTS[0], [4]).logits
    assert (scored(quantised(model, 8), PROMPTS[0], [4]).logits - plain).norm() < 0.25 * plain.norm()


@pytest.mark.parametrize("fast", [False, True])
def test_a_bfloat16_target_and_its_cache(fast: bool) -> None:
    engine = Engine.load(tapering(), dtype="bfloat16", fast=fast, drafter=Quantised(confidence=0.0))
    stats = engine.generate(PROMPTS[2], max_new_tokens=30, ignore_eos=True).stats
    assert stats.accepted > 0.5 * stats.drafted > 0


def test_fewer_bits_are_fewer_bytes() -> None:
    model = load_model(llama(hidden_size=64, intermediate_size=128), fast=True)
    assert quantised(model, 4).nbytes < quantised(model, 8).nbytes < model.forward.nbytes


def test_a_build_without_the_kernels_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*args: object) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr("paceline.models.quantised.kernels", lambda: None)
    monkeypatch.setattr(torch.ops.quantized, "linear_prepack", missing)
    with pytest.raises(Unsupported, match=r"lacks the 8-bit product .no such kernel"):
        quantised(load_model(llama(), fast=False), 8)


def test_other_architectures_are_refused_by_name() -> None:
    from models.architectures import SUPPORTED, build

    with pytest.raises(Unsupported, match="cannot be quantised for drafting: GPT2"):
        quantised(load_model(build(*SUPPORTED["GPT-2"]), fast=False), 8)
