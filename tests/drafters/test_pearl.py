"""Parallel drafting: the law, what threads change (nothing), what a round costs, and that no thread is left over."""

from __future__ import annotations

import itertools
import threading
import time
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from exact.cases import DRAFT, POLICIES, PROMPT, TARGET, VOCABULARY
from exact.cases import engine_of as tabular

from paceline import Engine, registry
from paceline.drafters.draft import DraftModel
from paceline.drafters.pearl import THREAD, Pearl, balanced
from paceline.drafters.turns import Turns
from paceline.errors import BadRequest
from paceline.evaluation.acceptance import coupled
from paceline.models.costs import PassCosts
from paceline.models.loading import load_model
from paceline.testing import TabularModel, autoregressive, decoded, distance, random_table
from paceline.testing.laws import Decoded
from paceline.testing.running import finish, submit
from paceline.testing.tabular import Table
from paceline.tree import TokenTree
from paceline.verifiers.rejection import Rejection
from paceline.verifiers.siblings import Laws
from tests.drafters.support import PROMPTS, engine_of, generated, llama, results, start

MODULE = llama(seed=0, layers=2)
NEAR = llama(seed=0, layers=2)
with torch.no_grad():
    NEAR.lm_head.weight += 0.02 * torch.randn(NEAR.lm_head.weight.shape, generator=torch.Generator().manual_seed(1))


def running() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == THREAD]


@pytest.mark.parametrize("policy", ["none", "penalties", "greedy"])
@pytest.mark.parametrize("verifier", ["rejection", "coupled"])
def test_the_law_is_kept(verifier: str, policy: str) -> None:
    engine, pipeline = tabular(), POLICIES[policy]()

    def make() -> Pearl:
        return Pearl(TabularModel(DRAFT, VOCABULARY, name="draft"), length=2, threads=False)

    result = decoded(engine, PROMPT, 3, make, registry.build("verifier", verifier), pipeline)
    assert distance(result.law, autoregressive(engine.model, pipeline, PROMPT, 3)) < 1e-10
    assert result.drafted > 0 or policy == "greedy"


def test_the_law_is_kept_where_late_drafts_follow_late_drafts() -> None:
    """Pre-verify, then post-verify: over five tokens, two of three possible, every other one certain for the draft."""
    engine, sampled = tabular(random_table(VOCABULARY, seed=6, zeros=1)), POLICIES["none"]()

    def make() -> Pearl:
        tables = [random_table(VOCABULARY, seed=6, zeros=zeros, spread=0.3) for zeros in (1, 2)]
        model = TabularModel(lambda prefix: tables[len(prefix) % 2](prefix), VOCABULARY, name="draft")
        return Pearl(model, length=2, threads=False)

    result = decoded(engine, PROMPT, 5, make, registry.build("verifier", "rejection"), sampled)
    assert distance(result.law, autoregressive(engine.model, sampled, PROMPT, 5)) < 1e-10
    assert result.drafted > 0.5


@pytest.mark.parametrize("verifier", ["rejection", "block", "spectr"])
def test_the_law_of_long_drafts_is_kept(verifier: str) -> None:
    """Four tokens of two possible ones, three a draft: late tokens behind nothing, behind a chain, and refused."""
    engine, sampled = tabular(random_table(2, seed=1), 2), POLICIES["none"]()

    def make() -> Pearl:
        return Pearl(TabularModel(random_table(2, seed=2), 2, name="draft"), length=3, threads=False)

    result = decoded(engine, [0], 4, make, registry.build("verifier", verifier), sampled)
    assert distance(result.law, autoregressive(engine.model, sampled, [0], 4)) < 1e-10
    assert result.accepted > 0.3


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.9}, {"temperature": 0.9, "verifier": "rejection"}])
@pytest.mark.parametrize("length", [1, 4])
def test_threads_change_nothing(length: int, settings: dict[str, Any]) -> None:
    texts = []
    for threads in (True, False):
        engine = engine_of(MODULE, Pearl(NEAR, length=length, threads=threads, fast=False), max_rows=3)
        found = results(engine, PROMPTS, max_new_tokens=30, seed=6, ignore_eos=True, **settings)
        texts.append([(result.tokens, result.stats.drafted, result.stats.accepted) for result in found])
        assert engine._drafter._cache.live == []
        assert not running()
    assert texts[0] == texts[1]
    if length > 1:
        assert sum(accepted for _, _, accepted in texts[0]) > 10
    if "verifier" not in settings:
        plain = results(engine, PROMPTS, drafter="none", max_new_tokens=30, seed=6, ignore_eos=True, **settings)
        assert [tokens for tokens, _, _ in texts[0]] == [result.tokens for result in plain]


@pytest.mark.parametrize("threads", [True, False])
def test_it_takes_turns_with_another(threads: bool) -> None:
    engine = engine_of(MODULE, Turns("ngram", Pearl(NEAR, length=3, threads=threads, fast=False)), max_rows=3)
    settings = {"max_new_tokens": 30, "temperature": 0.9, "seed": 6, "ignore_eos": True}
    found = results(engine, PROMPTS, **settings)
    assert [r.tokens for r in found] == [r.tokens for r in results(engine, PROMPTS, drafter="none", **settings)]
    assert not running()


def test_greedy_text_equals_transformers() -> None:
    engine = engine_of(MODULE, Pearl(NEAR, length=4), max_rows=3)
    mixed = results(engine, PROMPTS, max_new_tokens=40)
    assert [result.tokens for result in mixed] == [generated(MODULE, prompt, 40) for prompt in PROMPTS]


def test_a_perfect_draft_is_submitted_without_a_pause() -> None:
    """The first pass scores the text alone; each further one what was written during the one before."""
    target, twin = (TabularModel(TARGET, VOCABULARY) for _ in range(2))
    for settings in ({}, {"temperature": 1.0, "seed": 2}):
        engine = Engine(target, drafter=Pearl(twin, length=4), nodes=9)
        stats = engine.generate([0], max_new_tokens=25, **settings).stats
        assert stats.accepted == stats.drafted
        assert stats.forward_passes == 1 + 24 // 4


P, Q = (torch.tensor(law, dtype=torch.float64) for law in ([0.5, 0.3, 0.2], [0.2, 0.5, 0.3]))


def tried(target: Table, draft: Table, verifier: str) -> Decoded:
    """Three tokens, drafts of two: only if the first token is the late draft's is its second one submitted."""

    def make() -> Pearl:
        return Pearl(TabularModel(draft, VOCABULARY, name="draft"), length=2, threads=False)

    return decoded(tabular(target), PROMPT, 3, make, registry.build("verifier", verifier), POLICIES["none"]())


@pytest.mark.parametrize(
    "verifier",
    ["rejection", "block", "recursive", "specinfer", "spectr", "optimal", "lenient(lenience=1)", "coupled"],
)
def test_the_first_late_token_is_tried_by_the_verifiers_own_rule(verifier: str) -> None:
    result = tried(lambda prefix: P.log(), lambda prefix: Q.log(), verifier)
    rate = coupled(P[None], Q[None]) if verifier == "coupled" else P.minimum(Q).sum()
    assert result.drafted == pytest.approx(float(rate), abs=1e-9)


@pytest.mark.parametrize("verifier", ["block", "recursive", "specinfer", "spectr", "optimal", "lenient(lenience=1)"])
def test_late_tokens_keep_the_law(verifier: str) -> None:
    wanted = autoregressive(tabular().model, POLICIES["none"](), PROMPT, 3)
    assert distance(tried(TARGET, DRAFT, verifier).law, wanted) < 1e-10


def test_the_proof_sees_a_late_token_that_is_taken_unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Laws, "checked", lambda laws, logq, token: torch.eye(VOCABULARY).double()[token] * 1e-9)
    wanted = autoregressive(tabular().model, POLICIES["none"](), PROMPT, 3)
    assert distance(tried(TARGET, DRAFT, "rejection").law, wanted) > 1e-3


def test_a_late_token_is_tried_in_an_ensemble_too() -> None:
    def make() -> Turns:
        model = TabularModel(lambda prefix: Q.log(), VOCABULARY, name="draft")
        return Turns("none", Pearl(model, length=2, threads=False))

    engine, sampled = tabular(lambda prefix: P.log()), POLICIES["none"]()
    result = decoded(engine, PROMPT, 3, make, Rejection(), sampled)
    assert result.drafted == pytest.approx(0.7, abs=1e-9)
    assert distance(result.law, autoregressive(engine.model, sampled, PROMPT, 3)) < 1e-10


def test_only_the_member_whose_tree_was_scored_adds_a_late_token() -> None:
    turns = Turns("none", "none")
    drawn = replace(TokenTree.chain(1, [2]), late=(3, Q.log()))
    sequence: Any = SimpleNamespace(drafts=turns.shared())
    for own, scored, wanted in (
        (drawn, drawn, (3, Q.log())),
        (drawn, TokenTree.chain(1, [2]), None),
        (None, TokenTree.chain(1, [2]), None),
        (TokenTree.chain(1, []), TokenTree.empty(1), (3, Q.log())),
    ):
        sequence.drafts.trees[1] = own
        turns.members[1].late = lambda sequence, tree: drawn  # type: ignore[method-assign]
        assert str(turns.late(sequence, scored).late) == str(wanted)


# -- what a round costs ---------------------------------------------------------------------------------------


@dataclass
class Clock:
    """Simulated time of the main thread, and of the drafting thread while it runs."""

    now: float = 0.0
    late: float = 0.0
    drafting: bool = False

    def spend(self, seconds: float) -> None:
        if self.drafting:
            self.late += seconds
        else:
            self.now += seconds


class TimedModel(TabularModel):
    """A model of one law whose every pass takes a given time."""

    def __init__(self, law: torch.Tensor, clock: Clock, seconds: float) -> None:
        super().__init__(lambda prefix: law.log(), len(law), context=300, name="timed")
        self.clock, self.seconds = clock, seconds

    def score(self, *args: Any, **options: Any) -> Any:
        self.clock.spend(self.seconds)
        return super().score(*args, **options)


class TimedPearl(Pearl):
    """Its thread begins at the main thread's time; who waits for it goes on at the later of both."""

    clock = Clock()

    def _draft(self) -> None:
        self.clock.late, self.clock.drafting = self.clock.now, True
        super()._draft()
        self.clock.drafting = False

    def _wait(self) -> None:
        super()._wait()
        self.clock.now = max(self.clock.now, self.clock.late)


def rounds(parallel: bool, agreement: float, draft_pass: float, length: int = 4) -> list[float]:
    """Times of all steps after the prompt's, by a clock on which a pass of the target takes 1."""
    clock, share = Clock(), agreement / 2
    target = TimedModel(torch.tensor([0.5, 0.5, 0, 0]).double(), clock, 1.0)
    model = TimedModel(torch.tensor([share, share, 1 - agreement, 0]).double(), clock, draft_pass)
    drafter: Any = DraftModel(model, length=length, confidence=0)
    if parallel:
        drafter = TimedPearl(model, length=length, threads=False)
        drafter.clock = clock
    engine = Engine(target, drafter="none", nodes=2 * length)
    submit(engine, [1], drafter=drafter, verifier=Rejection(), max_new_tokens=120, temperature=1.0, seed=3)
    times = []
    while engine.decoder.busy:
        engine.decoder.step()
        times.append(clock.now)
    return [after - before for before, after in itertools.pairwise(times)]


@pytest.mark.parametrize("draft_pass", [0.1, 0.25, 0.4])
def test_a_round_takes_the_longer_of_both_sides(draft_pass: float) -> None:
    parallel, plain = rounds(True, 0.8, draft_pass), rounds(False, 0.8, draft_pass)
    # Towards the end little of the text is left to draft.
    assert parallel[:-4] == pytest.approx([max(4 * draft_pass, 1.0)] * (len(parallel) - 4))
    assert plain[:-4] == pytest.approx([4 * draft_pass + 1.0] * (len(plain) - 4))


@pytest.mark.parametrize("agreement", [0.5, 0.8, 0.95])
def test_it_takes_no_longer_than_drafting_in_turn(agreement: float) -> None:
    """Equal lengths of drafts, independent coins, and a draft that takes as long to write as to judge."""
    assert sum(rounds(True, agreement, 0.25)) <= sum(rounds(False, agreement, 0.25))


def test_its_cache_equals_a_fresh_pass() -> None:
    drafter = Pearl(NEAR, length=3, fast=False)
    engine = engine_of(MODULE, drafter, max_rows=3)
    sequences = [start(engine, p, max_new_tokens=20, temperature=1.0, ignore_eos=True, seed=2) for p in PROMPTS]
    compared = 0
    while engine.decoder.busy:
        engine.decoder.step()
        drafter._wait()
        for ahead in (s.drafts for s in sequences if s.drafts is not None):
            sequence = next(s for s in sequences if s.drafts is ahead)
            text = (sequence.tokens[: ahead.start] + ahead.tokens)[: ahead.row.trunk]
            assert ahead.row.trunk >= len(text) - 1
            fresh = drafter._model.new_cache(1)
            drafter._model.prefill(fresh, fresh.allocate(), text)
            kept, wanted = drafter._cache.layers[-1], fresh.layers[-1]
            at = slice(0, ahead.row.trunk)
            torch.testing.assert_close(
                kept.values[ahead.row.index, :, at], wanted.values[0, :, at], rtol=1e-4, atol=1e-5
            )
            compared += len(ahead.tokens) > 0
    assert compared > 10


# -- the length -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "draft", "length"),
    [
        ({1: 8.0, 32: 8.0}, 1.0, 8),  # t_T / t_D
        ({1: 8.0, 32: 8.0}, 1.5, 5),
        ({1: 6.0, 11: 11.0, 32: 21.5}, 1.0, 11),  # a pass over more rows takes longer, and leaves time for more
        ({1: 1.0, 32: 1.0}, 1.0, 2),
        ({1: 900.0, 32: 900.0}, 1.0, 32),
    ],
)
def test_both_sides_finish_together(target: dict[int, float], draft: float, length: int) -> None:
    assert balanced(PassCosts(target), PassCosts({1: draft, 2: draft})) == length


def test_the_default_length_is_measured_and_a_given_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paceline.models.causal.measure", lambda model: PassCosts({1: model.num_layers, 2: 4.0}))
    target, draft = load_model(MODULE, fast=False), load_model(llama(layers=1), fast=False)
    for given, length in ((None, balanced(target.costs, draft.costs)), (7, 7)):
        drafter = Pearl(draft, length=given, fast=False)
        drafter.attach(target)
        assert drafter._most == length


# -- ends and failures ----------------------------------------------------------------------------------------


def test_no_thread_outlives_its_text(monkeypatch: pytest.MonkeyPatch) -> None:
    drafter = Pearl(NEAR, length=3, fast=False)
    engine = engine_of(MODULE, drafter)
    whole = Pearl.write

    def slow(self: Pearl, *args: Any) -> None:
        time.sleep(0.05)
        whole(self, *args)

    monkeypatch.setattr(Pearl, "write", slow)
    first, second = (start(engine, prompt, max_new_tokens=30, ignore_eos=True) for prompt in PROMPTS[:2])
    engine.decoder.step()
    assert running()
    engine.decoder.cancel(first.request.id)
    assert not running()
    assert len(drafter._cache.live) == 1
    engine.decoder.step()
    engine.decoder.cancel(second.request.id)
    assert not running()
    assert drafter._cache.live == []


@pytest.mark.parametrize("threads", [True, False])
def test_a_failing_draft_ends_its_texts_and_no_later_one(threads: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    drafter = Pearl(NEAR, length=3, fast=False, threads=threads)
    engine = engine_of(MODULE, drafter)
    sequence = start(engine, PROMPTS[0], max_new_tokens=30, ignore_eos=True)
    engine.decoder.step()
    with monkeypatch.context() as patch:

        def broken(*args: object, **kwargs: object) -> None:
            raise RuntimeError("draft failed")

        drafter._wait()
        patch.setattr(drafter._model, "score", broken)
        finish(engine)
    assert str(sequence.error) == "draft failed"
    assert drafter._cache.live == []
    assert not running()
    assert len(engine.generate(PROMPTS[0], max_new_tokens=9, ignore_eos=True).tokens) == 9


def test_the_target_cannot_draft_for_itself_at_the_same_time() -> None:
    with pytest.raises(BadRequest, match="that is the target"):
        engine_of(MODULE, Pearl(MODULE))
    with pytest.raises(BadRequest, match="length=0"):
        Pearl(NEAR, length=0)
