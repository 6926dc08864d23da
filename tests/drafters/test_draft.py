"""Drafting with a second model: acceptance, laws, vocabularies, and what its cache holds."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from paceline import Engine
from paceline.drafters.base import Drafter
from paceline.drafters.draft import DraftModel
from paceline.errors import BadRequest, Unsupported
from paceline.models.loading import load_model
from paceline.policies.base import Pipeline, Policy, Stage
from paceline.sequence import Sequence
from paceline.testing import TabularModel, random_table
from paceline.testing.running import finish, submit
from paceline.tree import TokenTree
from tests.drafters.support import PROMPTS, VOCABULARY, engine_of, generated, llama, results, start

TARGET = llama(seed=0, layers=3)


def near(seed: int = 0, **config: Any) -> Any:
    """A draft that mostly agrees with `TARGET`: its first two layers."""
    module = llama(seed=seed, layers=2, **config)
    module.model.layers.load_state_dict(TARGET.model.layers[:2].state_dict())
    for part in ("embed_tokens", "norm"):
        getattr(module.model, part).load_state_dict(getattr(TARGET.model, part).state_dict())
    module.lm_head.load_state_dict(TARGET.lm_head.state_dict())
    return module


def tables(target: int = 1, draft: int = 2, vocabulary: int = 6, **knobs: Any) -> tuple[Engine, DraftModel]:
    """An engine on a tabular model and a drafter on another."""
    model = TabularModel(random_table(vocabulary, target), vocabulary)
    drafter = DraftModel(TabularModel(random_table(vocabulary, draft), vocabulary, name="draft"), **knobs)
    return Engine(model, drafter=drafter, nodes=8), drafter


def proposed(engine: Engine, drafter: DraftModel, prompt: list[int], **options: Any) -> tuple[Sequence, TokenTree]:
    """A begun sequence and its first draft."""
    sequence = start(engine, prompt, drafter=drafter, max_new_tokens=20, **options)
    engine.decoder.waiting.clear()
    engine.decoder.running.append(sequence)
    engine.decoder._begin(sequence)
    return sequence, drafter.propose([sequence], [(8, 8)])[0]


# -- acceptance -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verifier", ["coupled", "rejection"])
@pytest.mark.parametrize(
    "policy",
    [
        {},
        {"temperature": 1.0},
        {"temperature": 0.7, "top_p": 0.8, "repetition_penalty": 1.3},
        {"temperature": 1.2, "no_repeat_ngram_size": 2, "min_new_tokens": 20},
    ],
)
def test_a_draft_equal_to_the_target_is_always_accepted(verifier: str, policy: dict[str, Any]) -> None:
    model = load_model(TARGET, fast=False)
    engine = Engine(model, drafter=DraftModel(model, length=4, confidence=0), verifier=verifier, nodes=7)
    for result in results(engine, PROMPTS, max_new_tokens=31, ignore_eos=True, seed=5, **policy):
        stats = result.stats
        assert stats.accepted == stats.drafted
        assert stats.forward_passes == math.ceil(31 / 5)


def test_a_module_that_is_the_target_is_not_loaded_twice() -> None:
    module = llama()
    engine = engine_of(module, DraftModel(module))
    assert engine._drafter._model is engine.model


# -- texts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("knobs", [{}, {"confidence": 0.0}, {"confidence": 0.9, "length": 3}, {"fast": False}])
def test_text_equals_transformers(knobs: dict[str, Any]) -> None:
    engine = engine_of(TARGET, DraftModel(near(), **knobs), max_rows=3)
    expected = [generated(TARGET, prompt, 40) for prompt in PROMPTS]
    for prompt, text in zip(PROMPTS, expected, strict=True):
        assert engine.generate(prompt, max_new_tokens=40).tokens == text
    mixed = results(engine, PROMPTS, max_new_tokens=40)
    assert [result.tokens for result in mixed] == expected
    assert sum(result.stats.accepted for result in mixed) > 20


def test_a_batch_of_different_lengths_samples_what_each_samples_alone() -> None:
    engine = engine_of(TARGET, DraftModel(near(), length=5), max_rows=3)
    lengths = [3, 40, 1, 17, 26, 9]
    prompts = [PROMPTS[i % len(PROMPTS)] * (1 + i) for i in range(len(lengths))]
    settings = {"temperature": 0.8, "seed": 11, "ignore_eos": True}
    requests = [
        start(engine, prompt, max_new_tokens=length, **settings)
        for prompt, length in zip(prompts, lengths, strict=True)
    ]
    finish(engine)
    for request, prompt, length in zip(requests, prompts, lengths, strict=True):
        alone = engine.generate(prompt, max_new_tokens=length, drafter="none", **settings)
        assert request.tokens[len(prompt) :] == alone.tokens
    assert engine._drafter._cache.live == []


# -- how far it drafts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("nodes", "depth", "expected"), [(0, 5, 0), (5, 0, 0), (2, 5, 2), (5, 3, 3), (9, 9, 4)])
def test_the_budget_is_kept(nodes: int, depth: int, expected: int) -> None:
    engine, drafter = tables(length=4, confidence=0)
    sequence, _ = proposed(engine, drafter, [1, 2])
    assert drafter.propose([sequence], [(nodes, depth)])[0].drafted == expected


@pytest.mark.parametrize(("confidence", "hint"), [(0.02, 0), (0.1, 0), (0.3, 0), (1.0, 0), (0.02, 0.3)])
def test_a_draft_ends_with_the_first_token_that_makes_it_doubtful(confidence: float, hint: float) -> None:
    """Or hardly worth its row, for whoever asks."""
    engine, drafter = tables(length=8, confidence=confidence)
    drafter.worth, confidence = hint, max(confidence, hint)
    for prompt in ([1], [2, 3], [4, 5, 1]):
        sequence, tree = proposed(engine, drafter, prompt)
        path = sequence.tokens[-1:] + tree.tokens[1:].tolist()
        chances = [
            math.prod(float(drafter._model.law([*prompt[:-1], *path[: i + 1]])[path[i + 1]]) for i in range(n))
            for n in range(1, len(path))
        ]
        assert all(chance >= confidence for chance in chances[:-1])
        assert chances[-1] < confidence or tree.drafted == 8


def test_a_large_draft_model_must_be_surer_of_itself() -> None:
    module, chances = llama(), []
    for target in (llama(seed=1, layers=40), llama(seed=1)):
        drafter = DraftModel(module)
        drafter.attach(load_model(target, fast=False))
        chances.append(drafter._least)
    assert 0 < chances[0] < chances[1] <= 0.2


def test_a_draft_ends_with_an_end_token() -> None:
    engine, drafter = tables(length=8, confidence=0)
    _, free = proposed(engine, drafter, [1, 2])
    last = int(free.tokens[3])
    first = free.tokens.tolist().index(last, 1)
    _, ended = proposed(engine, drafter, [1, 2], stop_token_ids=(last,))
    assert ended.tokens.tolist() == free.tokens[: first + 1].tolist()


def test_texts_beyond_the_drafts_context_are_not_drafted_for() -> None:
    engine = engine_of(TARGET, DraftModel(near(context=24), confidence=0))
    for length in (10, 23, 24, 40):
        prompt = (PROMPTS[0] * 8)[:length]
        result = engine.generate(prompt, max_new_tokens=30, ignore_eos=True)
        assert result.tokens == engine.generate(prompt, max_new_tokens=30, drafter="none", ignore_eos=True).tokens
        assert (result.stats.drafted > 0) == (length <= 24)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [({"length": 0}, "length=0"), ({"confidence": -0.1}, "confidence=-0.1"), ({"confidence": 2.0}, "from 0 to 1")],
)
def test_knobs_are_checked(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        DraftModel(**knobs)


# -- laws -----------------------------------------------------------------------------------------------------


def test_independent_draws_come_with_the_law_they_were_drawn_from() -> None:
    """The policy's law on the draft's scores at every prefix, with the policy's state advanced along the draft."""
    engine, drafter = tables(length=5, confidence=0)
    settings = {"temperature": 0.7, "repetition_penalty": 1.5, "top_k": 4}
    prompt = [1, 2, 3]
    sequence, tree = proposed(engine, drafter, prompt, verifier="rejection", **settings)
    assert tree.draws is not None
    assert tree.draws.row.tolist() == [-1, 0, 1, 2, 3, 4]
    state = sequence.state
    for i in range(5):
        prefix = (*prompt, *tree.tokens[1 : i + 1].tolist())
        scores = sequence.pipeline.transform(drafter._model.table(prefix)[None], [state])
        torch.testing.assert_close(tree.draws.logq[i], sequence.pipeline.distribution(scores)[0])
        state = sequence.pipeline.advance(state, int(tree.tokens[i + 1]), scores[0])


def test_greedy_and_coupled_drafts_are_point_masses() -> None:
    engine, drafter = tables(length=5, confidence=0)
    for options in ({"verifier": "rejection"}, {"temperature": 1.0}):
        _, tree = proposed(engine, drafter, [1, 2, 3], **options)
        assert tree.drafted == 5
        assert tree.draws is None


def test_draws_of_two_steps_at_one_position_differ() -> None:
    """A position that is drafted again gets a fresh draw: the old one may have decided what is drafted now."""
    engine, drafter = tables(length=8, confidence=0)
    drafter._model = TabularModel(lambda prefix: torch.zeros(6, dtype=torch.float64), 6, name="flat")
    sequence, first = proposed(engine, drafter, [1], verifier="rejection", temperature=1.0)
    sequence.tokens.append(2)
    second = drafter.propose([sequence], [(7, 7)])[0]
    assert second.tokens[1:].tolist() != first.tokens[2:].tolist()


# -- its cache ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_its_cache_equals_a_fresh_pass_after_every_step(temperature: float) -> None:
    drafter = DraftModel(near(), length=4, confidence=0.1)
    engine = engine_of(TARGET, drafter, max_rows=3)
    sequences = [
        start(engine, prompt, max_new_tokens=25, temperature=temperature, ignore_eos=True, seed=2) for prompt in PROMPTS
    ]
    compared = 0
    while engine.decoder.busy:
        engine.decoder.step()
        for sequence in sequences:
            if sequence.drafts is None:
                continue
            row, model, cache = sequence.drafts.row, drafter._model, drafter._cache
            assert row.parents == []
            assert row.trunk <= len(sequence.tokens) - 1
            fresh = model.new_cache(1)
            model.prefill(fresh, other := fresh.allocate(), sequence.tokens[: row.trunk])
            assert other.trunk == row.trunk
            for kept, wanted in zip(cache.layers, fresh.layers, strict=True):
                for a, b in ((kept.keys, wanted.keys), (kept.values, wanted.values)):
                    torch.testing.assert_close(a[row.index, :, : row.trunk], b[0, :, : row.trunk], rtol=1e-4, atol=1e-5)
            compared += row.trunk > sequence.prompt_length
    assert compared > 20
    assert drafter._cache.live == []


def test_a_long_prompt_is_read_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Drafter, "prefill_chunk", 8)
    engine = engine_of(TARGET, DraftModel(near()))
    prompt = [(3 * i) % VOCABULARY for i in range(40)]
    assert engine.generate(prompt, max_new_tokens=20).tokens == generated(TARGET, prompt, 20)


def test_a_step_that_is_tried_again_drafts_the_same() -> None:
    engine, drafter = tables(length=4, confidence=0)
    sequence, first = proposed(engine, drafter, [1, 2, 3], temperature=1.0)
    again = drafter.propose([sequence], [(8, 8)])[0]
    assert again.tokens.tolist() == first.tokens.tolist()


# -- failures -------------------------------------------------------------------------------------------------


class Fails(Policy):
    """Raises at a chosen token."""

    stage = Stage.MASK
    at = 3

    def advance(self, state: Any, token: int, row: torch.Tensor | None = None) -> int:
        return (state or 0) + 1

    def transform(self, scores: torch.Tensor, states: Any) -> torch.Tensor:
        if any((state or 0) >= self.at for state in states):
            raise RuntimeError("policy failed")
        return scores


def test_a_failing_policy_ends_its_own_sequence_and_frees_its_row() -> None:
    drafter = DraftModel(near(), length=4, confidence=0)
    engine = engine_of(TARGET, drafter)
    bad = submit(engine, PROMPTS[0], pipeline=Pipeline((Fails(),)), max_new_tokens=20)[0]
    good = start(engine, PROMPTS[1], max_new_tokens=20)
    finish(engine)
    assert isinstance(bad.error, RuntimeError)
    assert good.error is None
    assert good.tokens[len(PROMPTS[1]) :] == generated(TARGET, PROMPTS[1], 20)
    assert drafter._cache.live == []


def test_rows_are_freed_on_cancel_and_on_a_failing_callback() -> None:
    drafter = DraftModel(near())
    engine = engine_of(TARGET, drafter)
    first, second = (start(engine, prompt, max_new_tokens=30, ignore_eos=True) for prompt in PROMPTS[:2])
    engine.decoder.step()
    assert len(drafter._cache.live) == 2
    engine.decoder.cancel(first.request.id)
    assert len(drafter._cache.live) == 1

    def refuse(event: object) -> None:
        raise ValueError("no")

    second.request.callback = refuse
    finish(engine)
    assert isinstance(second.error, ValueError)
    assert drafter._cache.live == []


def test_a_failing_draft_model_frees_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    drafter = DraftModel(near())
    engine = engine_of(TARGET, drafter)
    sequence = start(engine, PROMPTS[0], max_new_tokens=30)
    engine.decoder.step()

    def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("draft failed")

    monkeypatch.setattr(drafter._model, "score", broken)
    finish(engine)
    assert str(sequence.error) == "draft failed"
    assert drafter._cache.live == []
    assert engine.decoder.cache.live == []


# -- vocabularies ---------------------------------------------------------------------------------------------


def saved(module: Any, folder: Path, words: list[str]) -> str:
    """A folder with a model and a tokenizer of these words."""
    module.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[0]))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return str(folder)


def test_sizes_that_differ_are_refused_by_name() -> None:
    with pytest.raises(BadRequest, match=f"has 50 tokens, .* has {VOCABULARY}"):
        engine_of(TARGET, DraftModel(llama(vocabulary=50)))


def test_tokenizers_that_differ_are_refused(tmp_path: Path) -> None:
    words = [f"w{i}" for i in range(40)]
    target = saved(llama(), tmp_path / "target", words)
    same = saved(llama(), tmp_path / "same", words)
    other = saved(llama(), tmp_path / "other", [*words[:-2], words[-1], words[-2]])
    engine = Engine.load(target, dtype="float32", fast=False, drafter=DraftModel(same))
    with pytest.raises(BadRequest, match=f"has {VOCABULARY} tokens, .*2 of them mean something else.*'w38'"):
        engine.generate("w1", drafter=DraftModel(other))


@pytest.mark.parametrize("size", [41, 64])
def test_sizes_may_differ_by_padding(tmp_path: Path, size: int) -> None:
    """What lies beyond the tokenizer is padding: ids that the target lacks are never drafted."""
    words = [f"w{i}" for i in range(40)]
    target = saved(TARGET, tmp_path / "target", words)
    module = llama(vocabulary=size, layers=1)
    with torch.no_grad():  # the draft would love to say an id the target lacks
        module.lm_head.weight[40:] *= 20
    engine = Engine.load(target, dtype="float32", fast=False)
    drafter = DraftModel(saved(module, tmp_path / "draft", words), confidence=0)
    for prompt in ([5, 6, 7], [VOCABULARY - 1, 3]):
        for temperature, verifier in ((0.0, "coupled"), (1.0, "coupled"), (1.0, "rejection")):
            options = {"max_new_tokens": 20, "temperature": temperature, "verifier": verifier, "ignore_eos": True}
            result = engine.generate(prompt, drafter=drafter, **options)
            assert len(result.tokens) == 20
            assert result.stats.drafted > 20
            if verifier == "coupled":
                assert result.tokens == engine.generate(prompt, drafter="none", **options).tokens


def test_a_name_gets_the_targets_dtype(tmp_path: Path) -> None:
    words = [f"w{i}" for i in range(40)]
    folder = saved(llama(), tmp_path / "model", words)
    engine = Engine.load(folder, dtype="bfloat16", fast=False)
    for dtype, wanted in ((None, torch.bfloat16), ("float32", torch.float32)):
        drafter = DraftModel(folder, dtype=dtype, fast=False)
        drafter.attach(engine.model)
        assert drafter._model.module.dtype == wanted


# -- trees ----------------------------------------------------------------------------------------------------

TREES = (
    "fixed",
    "sequoia",
    "dyspec",
    "dyspec(threshold=0.1)",
    "rsd_c(branches='2 2 1')",
    "rsd_s(width=3)",
    "chains(2)",
)


@pytest.mark.parametrize("tree", TREES)
def test_text_of_a_tree_equals_transformers(tree: str) -> None:
    engine = engine_of(TARGET, DraftModel(near(), tree=tree, budget=9, fast=False), max_rows=3)
    mixed = results(engine, PROMPTS, max_new_tokens=25)
    assert [result.tokens for result in mixed] == [generated(TARGET, prompt, 25) for prompt in PROMPTS]
    assert sum(result.stats.accepted for result in mixed) > 20
    assert engine._drafter._cache.live == []


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("verifier", ["coupled", "recursive"])
def test_the_cache_of_a_tree_equals_a_fresh_pass_after_every_step(verifier: str, temperature: float) -> None:
    drafter = DraftModel(near(), tree="rsd_s(width=3)", budget=9)
    engine = engine_of(TARGET, drafter, max_rows=3, verifier=verifier)
    sequences = [
        start(engine, prompt, max_new_tokens=20, temperature=temperature, ignore_eos=True, seed=2) for prompt in PROMPTS
    ]
    reused = 0
    while engine.decoder.busy:
        before = {s: s.drafts.row.trunk for s in sequences if s.drafts is not None}
        engine.decoder.step()
        for sequence in (s for s in sequences if s.drafts is not None):
            row, model, cache = sequence.drafts.row, drafter._model, drafter._cache
            assert row.parents == []
            fresh = model.new_cache(1)
            model.prefill(fresh, fresh.allocate(), sequence.tokens[: row.trunk])
            kept, wanted = cache.layers[-1], fresh.layers[-1]
            for a, b in ((kept.keys, wanted.keys), (kept.values, wanted.values)):
                torch.testing.assert_close(a[row.index, :, : row.trunk], b[0, :, : row.trunk], rtol=1e-4, atol=1e-5)
            reused += row.trunk - before.get(sequence, row.trunk) > 1
    assert reused > 5


def test_a_tree_takes_one_pass_a_level_for_all_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    drafter = DraftModel(near(), tree="rsd_c(branches='2 2 1')", budget=10)
    engine = engine_of(TARGET, drafter, max_rows=4)
    for prompt in PROMPTS:
        start(engine, prompt, max_new_tokens=30, ignore_eos=True)
    engine.decoder.step()  # admits them all
    passes, whole = [], drafter._model._pass

    def counted(*args: Any) -> Any:
        passes.append(len(args[1]))
        return whole(*args)

    monkeypatch.setattr(drafter._model, "_pass", counted)
    engine.decoder.step()
    assert passes == [4, 4, 4]


def test_a_tree_reads_no_further_than_the_drafts_context() -> None:
    engine = engine_of(TARGET, DraftModel(near(context=24), tree="rsd_s", budget=9))
    for length in (10, 23, 24, 40):
        prompt = (PROMPTS[0] * 8)[:length]
        result = engine.generate(prompt, max_new_tokens=30, ignore_eos=True)
        assert result.tokens == engine.generate(prompt, max_new_tokens=30, drafter="none", ignore_eos=True).tokens
        assert (result.stats.drafted > 0) == (length <= 24)


def test_a_failing_policy_ends_a_tree_where_it_fails() -> None:
    drafter = DraftModel(near(), tree="rsd_c(branches='2 2 2')", budget=14)
    engine = engine_of(TARGET, drafter, nodes=14)
    bad = submit(engine, PROMPTS[0], pipeline=Pipeline((Fails(),)), max_new_tokens=20)[0]
    good = start(engine, PROMPTS[1], max_new_tokens=20)
    finish(engine)
    assert isinstance(bad.error, RuntimeError)
    assert good.tokens[len(PROMPTS[1]) :] == generated(TARGET, PROMPTS[1], 20)
    assert drafter._cache.live == []


def test_a_tree_equal_to_the_targets_own_is_always_followed() -> None:
    model = load_model(TARGET, fast=False)
    for verifier in ("coupled", "recursive", "specinfer"):
        drafter = DraftModel(model, tree="rsd_c(branches='2 1 1')", budget=6)
        engine = Engine(model, drafter=drafter, verifier=verifier, nodes=7)
        result = engine.generate(PROMPTS[0], max_new_tokens=24, temperature=0.9, seed=3, ignore_eos=True)
        assert result.stats.accepted == 3 * 6


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"budget": 0, "tree": "fixed"}, "budget=0"),
        ({"budget": 4}, "a chain has none"),
        ({"confidence": 0.5, "tree": "fixed"}, "it ends chains"),
        ({"tree": "dyspek"}, "did you mean 'dyspec'"),
    ],
)
def test_knobs_of_trees_are_checked(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        DraftModel(**knobs)


def test_a_tree_is_refused_by_a_verifier_that_judges_chains() -> None:
    engine = engine_of(TARGET)
    with pytest.raises(Unsupported, match="drafts a tree"):
        engine.explain(drafter=DraftModel(near(), tree="fixed"), verifier="rejection")
    assert engine.explain(drafter=DraftModel(near(), tree="specdec"), verifier="rejection")
