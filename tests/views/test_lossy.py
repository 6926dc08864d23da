"""Lossy views: their published values, neutral knobs, and that nothing unwritten is ever read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from paceline import Engine
from paceline.caches import TrieCache
from paceline.errors import BadRequest, Unsupported
from paceline.models.views import Exit, Skip, View, ViewRule, Watched
from paceline.registry import Guarantee, build
from paceline.tree import TokenTree
from paceline.views.ffn_skip import Fading, FFNSkip
from paceline.views.skip import SkippedBlocks
from paceline.views.skipdecode import SkipDecode
from paceline.views.unified import Unified
from tests.drafters.support import PROMPTS, results
from tests.views.support import LAYERS, PASSES, greedy, model_of, tapering

#: Each at a setting that leaves much out.
HARD = {
    "unified": "unified(speedup=2)",
    "skipdecode": "skipdecode(least=2, span=6)",
    "skipdecode in the prompt": "skipdecode(least=1, most=4, span=6, warm=0)",
    "ffn_skip": "ffn_skip(similarity=-1, cap=0.6, cold=1, warm=1)",
    "saturation": "saturation(threshold=0.95)",
    "saturation at once": "saturation(threshold=-2)",
    "exit": "exit(layer=1)",
    "skip": "skip(attention='1 2', mlp='0 2 3')",
}
NEUTRAL = [
    "unified(speedup=1)",
    "skipdecode(least=5)",
    "ffn_skip(similarity=1.5, cold=1)",
    "ffn_skip(cap=0, cold=1)",
    "saturation(threshold=1.01)",
    "exit(layer=5)",
    "skip",
]


def load(path: str, view: str | ViewRule | None, **options: Any) -> Engine:
    return Engine.load(tapering(), fast=path == "fused", view=view, drafter="none", **options)


# -- what runs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "speedup", "kept"),
    [
        (30, 5, [0, 6, 12, 18, 24, 29]),
        (32, 2, [*range(0, 29, 2), 31]),
        (12, 6, [0, 11]),
        (7, 1, list(range(7))),
        (5, 2.5, [0, 4]),
    ],
)
def test_unified_keeps_the_published_layers(layers: int, speedup: float, kept: list[int]) -> None:
    rule = Unified(speedup)
    rule.check(layers)
    assert rule.kept(layers) == kept
    view = rule.view(np.array([-2, -1, 0, 50]), layers)
    for layer in range(layers):
        runs = view.attends(layer)
        expected = [True, True, layer in kept, layer in kept]
        assert (runs if isinstance(runs, bool) else runs.tolist()) == (True if layer in kept else expected)


def test_skipdecode_has_the_published_budgets() -> None:
    rule = SkipDecode(least=4, most=10, span=5)
    assert rule.budget(np.arange(-2, 8), 10).tolist() == [10, 10, 10, 9, 8, 6, 5, 4, 4, 4]
    runs = [SkipDecode(least=4, most=10, span=5, warm=2).view(np.arange(-1, 5), 12).attends(i) for i in range(12)]
    table = np.array([np.full(6, row) if isinstance(row, bool) else row.numpy() for row in runs])
    assert table.sum(0).tolist() == [10, 9, 8, 6, 5, 4]
    assert table[:2].all()
    assert table[:, 5].nonzero()[0].tolist() == [0, 1, 10, 11]
    # Whatever runs for a token ran for every earlier one.
    assert (table[:, 1:] <= table[:, :-1]).all()


def counts(view: Fading, layers: int, similar: list[list[bool]]) -> list[list[bool]]:
    """Which sub-blocks run, given for each layer and token whether it would leave the state as it was."""
    ran = []
    for layer in range(layers):
        runs = view.feeds(layer)
        ran.append([runs] * len(similar[0]) if isinstance(runs, bool) else runs.tolist())
        before = torch.ones(len(similar[0]), 4)
        view.fed(layer, before, torch.tensor([[1.0 if same else -1.0] for same in similar[layer]]) * before)
    return ran


@pytest.mark.parametrize(("recheck", "expected"), [(None, "++---+++"), (2, "++--+-++")])
def test_ffn_skip_skips_after_a_similar_one_up_to_its_cap(recheck: int | None, expected: str) -> None:
    rule = FFNSkip(similarity=0.9, cap=3 / 8, cold=1, warm=2, recheck=recheck)
    view = rule.view(np.array([-1, 1, 2]), 8)
    ran = counts(view, 8, [[True] * 3] * 8)  # type: ignore[arg-type]
    assert ["".join("-+"[token] for token in column) for column in zip(*ran, strict=True)] == [*["+" * 8] * 2, expected]
    never = counts(rule.view(np.array([5, 6]), 8), 8, [[False] * 2] * 8)  # type: ignore[arg-type]
    assert never == [[True, True]] * 8


# -- texts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PASSES)
@pytest.mark.parametrize("view", NEUTRAL)
def test_a_neutral_knob_is_the_whole_model(view: str, path: str) -> None:
    engine = load(path, view, max_rows=3)
    assert engine.explain().guarantee is Guarantee.LOSSY
    assert [result.tokens for result in results(engine, PROMPTS, max_new_tokens=20)] == greedy(20)


@pytest.mark.parametrize("path", PASSES)
@pytest.mark.parametrize("name", HARD)
def test_every_drafter_batch_and_seed_says_what_the_view_says(name: str, path: str) -> None:
    engine = load(path, HARD[name], max_rows=3)
    whole = load(path, None)
    for options in ({}, {"temperature": 0.9, "seed": 4}):
        settings: dict[str, Any] = {"max_new_tokens": 7, "ignore_eos": True, **options}
        alone = [engine.generate(prompt, **settings).tokens for prompt in PROMPTS[:3]]
        assert alone != [whole.generate(prompt, **settings).tokens for prompt in PROMPTS[:3]]
        for drafter in ("none", "ngram(candidates=3, confidence=0, length=4)", "quantised(length=2, confidence=0)"):
            assert [r.tokens for r in results(engine, PROMPTS[:3], drafter=drafter, **settings)] == alone


@pytest.mark.parametrize("path", PASSES)
@pytest.mark.parametrize("name", HARD)
def test_cells_that_were_not_written_are_never_read(name: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every cell starts with a value that would be noticed."""
    options: dict[str, Any] = {"max_new_tokens": 10, "ignore_eos": True, "drafter": "recycling", "logprobs": 1}
    clean = results(load(path, HARD[name], max_rows=3), PROMPTS, **options)
    zeros = TrieCache.zeros
    monkeypatch.setattr(TrieCache, "zeros", lambda cache, *shape: zeros(cache, *shape).fill_(1e3))
    stained = results(load(path, HARD[name], max_rows=3), PROMPTS, **options)
    for ours, theirs in zip(stained, clean, strict=True):
        assert ours.tokens == theirs.tokens
        assert [e.logprob for e in ours.logprobs or ()] == [e.logprob for e in theirs.logprobs or ()]


def rising(monkeypatch: pytest.MonkeyPatch) -> None:
    """`skipdecode` becomes a rule that lets later tokens attend where earlier ones did not."""
    monkeypatch.setattr(SkipDecode, "budget", lambda rule, positions, layers: np.where(positions > 5, layers, 2))


def test_the_stain_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    rising(monkeypatch)
    monkeypatch.setattr(Watched, "view", lambda watched, *args: watched.rule.view(*args))
    zeros, found = TrieCache.zeros, []
    for stain in (0.0, 1e3):
        monkeypatch.setattr(TrieCache, "zeros", lambda cache, *shape, stain=stain: zeros(cache, *shape).fill_(stain))
        engine = load("module", "skipdecode")
        found.append(engine.generate(PROMPTS[2], max_new_tokens=12, ignore_eos=True, logprobs=1).logprobs)
    assert found[0] != found[1]


@pytest.mark.parametrize("path", PASSES)
@pytest.mark.parametrize("drafter", ["none", "ngram(confidence=0)"])
def test_a_rule_that_would_read_unwritten_cells_is_stopped(
    path: str, drafter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rising(monkeypatch)
    engine = load(path, "skipdecode", max_rows=2)
    with pytest.raises(Unsupported, match=r"SkipDecode.* lets layer 1 attend behind \d generated .* left it out"):
        engine.generate(PROMPTS[2], max_new_tokens=12, ignore_eos=True, drafter=drafter)
    assert engine.decoder.cache.live == []


class Late(ViewRule):
    """Ends ever later: a layer that it does not even ask about comes in."""

    def view(self, generated: np.ndarray, layers: int) -> View:
        return Exit(min(layers, 2 + max(0, int(generated.max()))))


def test_layers_behind_an_exit_count_as_left_out() -> None:
    model = model_of("fused")
    model.follow(Late())
    cache = model.new_cache(1)
    row = cache.allocate()
    row.prompt = 4
    model.prefill(cache, row, [5, 6, 7, 8])
    model.score(cache, [row], [TokenTree.empty(9)])
    cache.keep(row, [0])
    with pytest.raises(Unsupported, match="lets layer 2 attend behind 1 generated tokens, but left it out behind -4"):
        model.score(cache, [row], [TokenTree.empty(10)])


def test_what_is_left_out_for_later_tokens_of_other_texts_is_no_reason_to_stop() -> None:
    """Texts at different places of a falling schedule, in one batch and one after another."""
    engine = load("fused", "skipdecode(least=1, span=9)", max_rows=3)
    for _ in range(2):
        assert all(
            result.finish_reason == "length" for result in results(engine, PROMPTS, max_new_tokens=12, ignore_eos=True)
        )


@pytest.mark.parametrize("path", PASSES)
def test_a_step_of_unified_runs_the_kept_layers_alone(path: str) -> None:
    """The logits behind a prompt are those of a model without the other layers that sees the prompt's own keys."""
    model = model_of(path)
    others = frozenset(range(LAYERS)) - set(Unified(2.5).kept(LAYERS))
    cache = model.new_cache(1)
    row = cache.allocate()
    row.prompt = 4
    model.prefill(cache, row, [5, 6, 7, 8])
    expected = model.score(cache, [row], [TokenTree.chain(9, [10])], view=Skip(others, others)).logits
    cache.crop(row, 4)
    model.follow(Unified(2.5))
    got = model.score(cache, [row], [TokenTree.chain(9, [10])]).logits
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


# -- what is refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("view", "message"),
    [
        ("unified(speedup=0.5)", "speedup=0.5"),
        ("unified(speedup=3)", "speedup=3.*at least 2 must be kept"),
        ("skipdecode(least=4, most=3)", "least=4, most=3.*may not rise"),
        ("skipdecode(least=6)", "<= 5 layers"),
        ("skipdecode(span=0)", "span=0"),
        ("skipdecode(warm=3, least=2)", "warm=3"),
        ("ffn_skip(cold=3)", "cold=3.*at most 2"),
        ("ffn_skip(cap=1.5)", "cap=1.5"),
        ("ffn_skip(similarity=-2)", "similarity=-2"),
        ("ffn_skip(recheck=0)", "recheck=0"),
        ("saturation(threshold=high)", "threshold='high'.*a number"),
        ("exit(layer=0)", "layer=0.*1 to 5 may run"),
        ("exit(layer=6)", "layer=6.*1 to 5 may run"),
        ("skip(attention='1 x')", "skip.attention='1 x'.*numbers of layers"),
        ("skip(mlp=2.5)", "skip.mlp=2.5.*numbers of layers"),
        ("skip(mlp=7)", "layer 7 cannot be skipped"),
        ("skip(attention='0 1 2 3 4', mlp='0 1 2 3 4')", "all 5 layers"),
        ("unifed", "did you mean 'unified'"),
    ],
)
def test_knobs_are_checked_before_any_model_runs(view: str, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        load("module", view)


def test_sets_are_given_in_any_form() -> None:
    forms = (SkippedBlocks("3 1", 2), SkippedBlocks([1, 3], {2}), build("view", "skip('1 3 3', mlp='2')"))
    assert len({*forms}) == 1
    assert forms[0].view(np.arange(3), 5) == Skip(frozenset({1, 3}), frozenset({2}))


def test_self_drafts_and_second_views_are_refused() -> None:
    engine = load("module", "unified")
    for drafter in ("early_exit", "self_speculative"):
        with pytest.raises(Unsupported, match=r"follows Unified.speedup=2.0. in every pass already"):
            engine.generate(PROMPTS[0], drafter=drafter)
    with pytest.raises(Unsupported, match="in every pass already"):
        engine.model.follow(build("view", "ffn_skip"))


def test_the_plan_names_view_and_knob() -> None:
    lines = load("module", "unified(speedup=2)").explain().lines
    assert lines[1].startswith("view      Unified(speedup=2): Generated tokens go")
    assert lines[-1] == "guarantee lossy: bounded by speedup"
