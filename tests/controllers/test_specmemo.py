"""A cap on memory: what is foretold is what is used, the cap holds, and texts are the same below it."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch

from paceline import Engine
from paceline.controllers import Controller
from paceline.controllers.specmemo import SpecMemo, Text
from paceline.drafters.auto import Auto
from paceline.drafters.draft import DraftModel
from paceline.drafters.pearl import Pearl
from paceline.errors import BadRequest
from paceline.memory.watch import Watch
from paceline.requests import Sampling
from paceline.sequence import Sequence
from paceline.testing import TabularModel, random_table
from paceline.testing.laws import autoregressive, decoded, distance
from paceline.verifiers.coupled import Coupled
from paceline.verifiers.recursive import Recursive
from paceline.verifiers.rejection import Rejection
from tests.drafters.support import llama

LARGE = 1 << 30
SIZES: dict[str, Any] = {"context": 640, "vocabulary": 96, "hidden_size": 64, "intermediate_size": 96}


@cache
def target() -> Any:
    return llama(layers=3, **SIZES)


@cache
def draft() -> Any:
    """The target's first two layers, which mostly agree with it."""
    module = llama(layers=2, **SIZES)
    weights = target().state_dict()
    module.load_state_dict({name: weights[name] for name in module.state_dict()})
    return module


def engine(memory: object = LARGE, drafter: str = "draft", **options: Any) -> Engine:
    chosen: object = drafter
    if drafter == "draft":
        chosen = DraftModel(draft(), length=12, confidence=0.0, fast=False)
    if drafter == "auto":
        chosen = "auto(draft=none)"
    return Engine.load(target(), fast=False, drafter=chosen, memory=memory, nodes=options.pop("nodes", 16), **options)


def plan_of(engine: Engine) -> SpecMemo:
    found = engine.decoder.controller
    assert isinstance(found, SpecMemo)
    return found


def least(engine: Engine, tokens: int) -> int:
    """A cap below which a text of so many tokens would not fit."""
    return int(plan_of(engine).alone(tokens)) + 1


class Allocator(Watch):
    """Has only so many bytes to give."""

    def __init__(self, cap: int, holding: Engine) -> None:
        super().__init__()
        self.cap = cap
        modules = [holding.model.module, *(model.module for model, _ in holding._drafter.second)]
        for part in (part for module in modules for part in (*module.parameters(), *module.buffers())):
            self.note(part)

    def _changed(self, size: int) -> None:
        super()._changed(size)
        if self.live > self.cap:
            raise MemoryError(f"{self.live} bytes are more than {self.cap}")


def chat(engine: Engine, turns: int = 20, **sampling: Any) -> Iterator[list[int]]:
    """Answers of a chat in which each turn reads all that was said before."""
    generator = torch.Generator().manual_seed(1)
    said: list[int] = []
    for _ in range(turns):
        said += torch.randint(1, 96, (10,), generator=generator).tolist()
        answer = engine.generate(said, max_new_tokens=10, ignore_eos=True, **sampling).tokens
        said += answer
        yield answer


# -- foretold and measured ------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("drafter", ["none", "ngram", "draft"])
@pytest.mark.parametrize("length", [40, 200, 420])
def test_foretold_bytes_are_within_5_percent_of_the_measured_ones(
    drafter: str, temperature: float, length: int
) -> None:
    subject = engine(drafter=drafter)
    plan = plan_of(subject)
    prompt = [7, 8, 9, 10] * (length // 4)
    (sequence,) = subject.submit(subject.request(prompt, max_new_tokens=24, temperature=temperature, ignore_eos=True))
    subject.decoder.step()
    subject.decoder.step()
    gc.collect()
    ratios = []
    with Allocator(LARGE, subject) as memory:
        subject.decoder.step()
        while sequence.finish_reason is None and sequence.remaining > 1:
            held, text = memory.restart(), plan._text(sequence)
            drafted = sequence.stats.drafted
            subject.decoder.step()
            assert held <= memory.peak
            if sequence.finish_reason is None:
                ratios.append(plan.needed([text], sequence.stats.drafted - drafted) / memory.peak)
    assert ratios
    assert all(0.95 <= ratio <= 1.05 for ratio in ratios), ratios


# -- the cap --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("drafter", "temperature"), [("draft", 0.9), ("ngram", 0.0)])
def test_a_chat_never_needs_more_than_the_cap_and_says_the_same(drafter: str, temperature: float) -> None:
    free = engine(drafter=drafter)
    wanted = list(chat(free, temperature=temperature))
    cap = least(free, 20 * 20)
    subject = engine(cap, drafter=drafter)
    gc.collect()
    with Allocator(cap, subject) as memory:
        answers = list(chat(subject, temperature=temperature))
    assert answers == wanted
    assert memory.peak > 0.8 * cap


def test_several_texts_at_once_stay_below_the_cap() -> None:
    prompts = [[5 + i, 6, 7] * (10 + 9 * i) for i in range(6)]
    wanted = engine().generate(prompts, max_new_tokens=20, ignore_eos=True)
    cap = int(1.25 * least(engine(), 200))
    subject = engine(cap)
    most = 0
    requests = [subject.request(prompt, max_new_tokens=20, ignore_eos=True) for prompt in prompts]
    sequences = [sequence for request in requests for sequence in subject.submit(request)]
    with Allocator(cap, subject):
        while subject.decoder.busy:
            subject.decoder.step()
            most = max(most, len(subject.decoder.running))
    assert [s.tokens[s.prompt_length :] for s in sequences] == [result.tokens for result in wanted]
    assert 1 < most < 6
    assert subject.decoder.cache.nbytes == 0


def test_log_probabilities_of_a_prompt_stay_below_the_cap() -> None:
    prompt, options = [3, 4, 5, 6, 7, 8] * 40, {"max_new_tokens": 8, "logprobs": 2, "echo": True}
    free = engine(drafter="none")
    cap = least(free, 260)
    subject = engine(cap, drafter="none")
    with Allocator(cap, subject):
        found = subject.generate(prompt, **options)
    wanted = free.generate(prompt, **options)
    assert found.tokens == wanted.tokens
    assert [entry.token for entry in found.prompt_logprobs] == prompt[1:]
    for mine, theirs in zip(found.prompt_logprobs, wanted.prompt_logprobs, strict=True):
        assert mine.logprob == pytest.approx(theirs.logprob, abs=1e-4)


def test_a_draft_that_runs_beside_the_target_needs_its_own_room() -> None:
    def at(cap: int) -> Engine:
        beside = Pearl(draft(), length=6, fast=False, threads=False)
        return Engine.load(target(), fast=False, drafter=beside, memory=cap, nodes=12)

    free, prompt = at(LARGE), [3, 4, 5, 6, 7, 8] * 20
    texts = [Text(160, drafts=(1,))]
    cap = int(plan_of(free).needed(texts, 6)) + 1
    assert cap > plan_of(engine()).needed(texts, 6) + plan_of(free)._readers[1].footprint.base
    subject = at(cap)
    with Allocator(cap, subject):
        found = subject.generate(prompt, max_new_tokens=40, ignore_eos=True)
    assert found.stats.drafted > 0
    assert found.tokens == free.generate(prompt, max_new_tokens=40, ignore_eos=True).tokens


def test_throughput_falls_smoothly_with_the_cap() -> None:
    """The draft is always right, so a pass brings as many tokens as fit, and one."""

    def at(cap: object, **options: int) -> Engine:
        perfect = DraftModel(target(), length=12, confidence=0.0, fast=False)
        plan = SpecMemo(cap, **options)  # type: ignore[arg-type]
        return Engine.load(target(), fast=False, drafter=perfect, memory=plan, nodes=12)

    text = Text(240, drafts=(1,))
    caps = [int(plan_of(at(LARGE)).needed([text], nodes)) + 1 for nodes in range(12, -1, -2)]
    prompt = [3, 4, 5, 6, 7, 8] * 30
    results = [at(cap).generate(prompt, max_new_tokens=60, ignore_eos=True) for cap in caps]
    assert all(result.tokens == results[0].tokens for result in results)
    speeds = [result.stats.tokens_per_pass for result in results]
    assert speeds == sorted(speeds, reverse=True)
    assert speeds[0] > 9
    assert speeds[-1] < 2
    assert max(before - after for before, after in pairwise(speeds)) < 5, speeds
    # A knob says which drafts are too small to be worth their passes.
    picky = at(caps[3], least=12).generate(prompt, max_new_tokens=60, ignore_eos=True)
    assert results[3].stats.drafted > 0
    assert picky.stats.drafted == 0


def test_a_text_that_outgrows_its_draft_goes_on_without_it() -> None:
    free = engine()
    subject = engine(least(free, 470))
    prompt = [3, 4, 5, 6, 7, 8] * 45
    result = subject.generate(prompt, max_new_tokens=200, ignore_eos=True)
    assert result.tokens == free.generate(prompt, max_new_tokens=200, ignore_eos=True).tokens
    assert 0 < result.stats.drafted_at[0] < result.stats.forward_passes // 2
    ((_, kept),) = subject._drafter.second
    assert not kept.live
    assert kept.nbytes == 0


def test_other_members_draft_on_without_the_second_model() -> None:
    module = DraftModel(draft(), length=12, confidence=0.0, fast=False)
    free = Engine.load(target(), fast=False, drafter=Auto(draft=module), memory=LARGE, nodes=16)
    cap = int(plan_of(free).alone(330)) + 20_000
    subject = Engine.load(target(), fast=False, drafter=Auto(draft=module), memory=cap, nodes=16)
    result = subject.generate([3, 4, 5, 6, 7, 8] * 45, max_new_tokens=60, ignore_eos=True)
    assert result.tokens == free.generate([3, 4, 5, 6, 7, 8] * 45, max_new_tokens=60, ignore_eos=True).tokens
    assert result.stats.drafted > 0


# -- what is refused ------------------------------------------------------------------------------------------


def test_a_cap_below_weights_and_one_token_is_refused() -> None:
    with pytest.raises(BadRequest, match=r"memory: 100.0 KiB is [\d.]+ KiB too little: weights and tables take"):
        engine("100KiB", drafter="none")
    need = least(engine(drafter="none"), 1)
    engine(need + 64_000, drafter="none")
    with pytest.raises(BadRequest, match="too little"):
        engine(need - 64_000, drafter="none")


def test_a_draft_that_does_not_fit_is_refused_and_leaves_the_engine_as_it_was() -> None:
    subject = engine(least(engine(drafter="none"), 100), drafter="none")
    with pytest.raises(BadRequest, match=r"memory: .* too little"):
        subject.generate([5, 6, 7], drafter=DraftModel(draft(), fast=False))
    assert subject.generate([5, 6, 7], max_new_tokens=4).error is None


def test_a_text_too_long_is_refused_before_any_model_runs() -> None:
    subject = engine(least(engine(drafter="none"), 380), drafter="none")
    with pytest.raises(BadRequest, match=r"memory: a text of 450 tokens, .* needs .* more than the cap of .*; at most"):
        subject.generate([5] * 400, max_new_tokens=50)
    assert len(subject.generate([5] * 360, max_new_tokens=20, ignore_eos=True).tokens) == 20


@pytest.mark.parametrize("memory", ["0", "-5MiB", "12 parsecs", "1.5", 0, "5MiBs", "KiB", 2.5, "specmemo(cap=0)"])
def test_sizes_that_are_none_are_refused(memory: object) -> None:
    with pytest.raises(BadRequest, match=r"memory|specmemo|controller"):
        engine(memory, drafter="none")


@pytest.mark.parametrize("knob", ["chunk", "least"])
def test_knobs_out_of_range_are_refused(knob: str) -> None:
    with pytest.raises(BadRequest, match=rf"specmemo\({knob}=0\): an integer of at least 1 is needed"):
        engine(f"specmemo(cap=1GiB, {knob}=0)", drafter="none")


# -- the law --------------------------------------------------------------------------------------------------


class Fickle(Controller):
    """As much as a plan of memory may ask of a decoder: another budget in every step, and drafts given up."""

    def nodes(self, sequences: Any, most: int) -> int:
        return min(most, sum(sequences[0].tokens) % 3)

    def retired(self, sequences: Any) -> list[Sequence]:
        return [s for s in sequences if s.drafts is not None and s.generated >= 2 and s.tokens[-1] == 1]


@pytest.mark.parametrize("verifier", [Rejection(), Coupled(), Recursive()])
@pytest.mark.parametrize("tree", [None, "rsd_c(branches='2 1')"])
def test_the_law_does_not_depend_on_budgets(verifier: Any, tree: str | None) -> None:
    model, other = (TabularModel(random_table(3, seed), 3) for seed in (1, 2))
    subject = Engine(model, nodes=4)
    subject.decoder.controller = Fickle()
    pipeline = subject.pipeline(Sampling(temperature=1.0))
    knobs: dict[str, Any] = {"length": 2, "confidence": 0.0} if tree is None else {"tree": tree}
    found = decoded(subject, [1, 2], 3, lambda: DraftModel(other, **knobs), verifier, pipeline)
    assert distance(found.law, autoregressive(model, pipeline, [1, 2], 3)) < 1e-10
    assert found.drafted > 0
