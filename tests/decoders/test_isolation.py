"""What befalls one sequence befalls no other: failures, cancellation, memory, mixed parts in one batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from decoders.support import VOCABULARY, engine_of, run, scripted
from paceline import Engine
from paceline.caches import TrieCache, trie
from paceline.chance import Chance
from paceline.drafters.base import Drafter, Outcome, SequenceDrafter
from paceline.errors import BadRequest, ModelError, OutOfMemory
from paceline.policies.base import Context, Pipeline, Policy, Stage, State
from paceline.requests import Event
from paceline.sequence import Sequence as Record
from paceline.testing import random_table
from paceline.testing.drafters import Hostile, Oracle
from paceline.testing.running import finish, submit
from paceline.tree import TokenTree
from paceline.verifiers import MatchVerifier, Verdict, Verifier
from paceline.verifiers.rejection import Rejection

PROMPTS = ([1, 5], [2, 5, 5], [3])
SCRIPTS = {(1, 5): [1, 2, 3, 4, 5, 6, 7, 1], (2, 5, 5): [2, 2, 4, 4, 6, 6, 1, 1], (3,): [7, 6, 5, 4, 3, 2, 1, 1]}
LENGTH = 8
TABLE = scripted(SCRIPTS)


class Fault(Exception):
    """Raised on purpose."""


@dataclass(frozen=True)
class FailingPolicy(Policy):
    """Fails at one of its calls, once the text is long enough."""

    where: str

    stage = Stage.PENALTY

    def start(self, context: Context) -> int:
        if self.where == "start":
            raise Fault(self.where)
        return 0

    def advance(self, state: State, token: int, row: torch.Tensor | None = None) -> int:
        if self.where == "advance" and state >= 3:
            raise Fault(self.where)
        return int(state) + 1

    def transform(self, scores: torch.Tensor, states: Sequence[State]) -> torch.Tensor:
        if self.where == "transform" and states[0] >= 3:
            raise Fault(self.where)
        if self.where == "no token" and states[0] >= 3:
            return torch.full_like(scores, -torch.inf)
        return scores[0] if self.where == "wrong shape" and states[0] >= 3 else scores

    def is_final(self, state: State) -> bool:
        if self.where == "is_final" and state >= 4:
            raise Fault(self.where)
        return False


@dataclass(eq=False)
class FailingDrafter(SequenceDrafter):
    """Fails at one of its verbs, once the text is long enough."""

    where: str

    def fail(self, where: str, sequence: Record, tokens: int = 3) -> None:
        if where == self.where and sequence.generated >= tokens:
            raise Fault(where)

    def begin(self, sequence: Record) -> None:
        self.fail("begin", sequence, 0)

    def draft(self, sequence: Record, nodes: int, depth: int) -> TokenTree:
        self.fail("propose", sequence)
        wrong = {"unknown token": [VOCABULARY], "negative token": [1, -1]}.get(self.where)
        if wrong and sequence.generated >= 3:
            return TokenTree.chain(sequence.tokens[-1], wrong)
        if self.where == "wrong root" and sequence.generated >= 3:
            return TokenTree.chain(sequence.tokens[-1] ^ 1, [1, 2])
        return TokenTree.empty(sequence.tokens[-1])

    def observe(self, outcomes: Sequence[Outcome]) -> None:
        self.fail("observe", outcomes[0].sequence)

    def commit(self, outcomes: Sequence[Outcome]) -> None:
        self.fail("commit", outcomes[0].sequence)

    def end(self, sequence: Record) -> None:
        self.fail("end", sequence)


class FailingVerifier(Verifier):
    def verify(self, tree: TokenTree, logp: torch.Tensor, chance: Chance, position: int) -> Verdict:
        raise Fault("verify")


class FailingMatch(MatchVerifier):
    def choose(self, scores: torch.Tensor, chance: Chance, positions: Sequence[int]) -> torch.Tensor:
        raise Fault("choose")


def failing_callback(event: Event) -> None:
    raise Fault("callback")


FAULTS: dict[str, dict[str, Any]] = {
    **{
        f"policy, {where}": {"pipeline": Pipeline((FailingPolicy(where),), greedy=greedy)}
        for where, greedy in [
            ("start", True),
            ("advance", True),
            ("transform", False),
            ("is_final", False),
            ("no token", True),
            ("wrong shape", False),
        ]
    },
    "policy, no token, rejection": {
        "pipeline": Pipeline((FailingPolicy("no token"),), greedy=False),
        "verifier": Rejection(),
    },
    **{
        f"drafter, {where}": {"drafter": FailingDrafter(where)}
        for where in ("begin", "propose", "observe", "commit", "end", "unknown token", "negative token", "wrong root")
    },
    "verifier, verify": {"verifier": FailingVerifier(), "pipeline": Pipeline((), greedy=False)},
    "verifier, choose": {"verifier": FailingMatch(), "pipeline": Pipeline((), greedy=False)},
    "callback": {"callback": failing_callback},
}


def settled(engine: Engine) -> None:
    """Nothing is left behind."""
    assert engine.decoder.cache.live == []
    assert not engine.decoder.busy


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_ends_its_own_request_alone(name: str) -> None:
    engine = engine_of(TABLE)
    oracle = Oracle(SCRIPTS, VOCABULARY)
    seen: list[Event] = []
    (before,) = submit(engine, PROMPTS[0], drafter=oracle, max_new_tokens=LENGTH, callback=seen.append)
    (broken,) = submit(engine, PROMPTS[1], max_new_tokens=LENGTH, **FAULTS[name])
    (after,) = submit(engine, PROMPTS[2], drafter=oracle, max_new_tokens=LENGTH)
    events = finish(engine)
    for record in (before, after):
        assert (record.error, record.finish_reason) == (None, "length")
        assert record.tokens[record.prompt_length :] == SCRIPTS[tuple(record.request.prompt)]
    assert sum((event.tokens for event in seen), ()) == tuple(SCRIPTS[tuple(PROMPTS[0])])
    assert isinstance(broken.error, Fault | ValueError)
    assert (broken.finish_reason, broken.row) == ("error", None)
    last = [event for event in events if event.request_id == broken.request.id][-1]
    assert (last.finish_reason, last.error) == ("error", broken.error)
    settled(engine)


def test_the_messages_name_what_failed() -> None:
    engine = engine_of(TABLE)
    result = run(engine, PROMPTS[1], pipeline=Pipeline((FailingPolicy("no token"),), greedy=True))
    assert str(result.error) == "policies: they leave no token that may come next; loosen one of them"
    assert result.tokens == SCRIPTS[tuple(PROMPTS[1])][:3]
    with pytest.raises(BadRequest, match="leave no token"):
        engine.generate(PROMPTS[1], policies=[FailingPolicy("no token")])
    both = engine.generate([PROMPTS[0], PROMPTS[1]], policies=[FailingPolicy("no token")], max_new_tokens=3)
    assert [r.finish_reason for r in both] == ["length", "length"]


@pytest.mark.parametrize("verifier", ["coupled", "rejection"])
def test_a_pass_that_fails_is_repeated_one_by_one(verifier: str) -> None:
    """With the same drafts: each drafter is asked once a step, and only the culprit's request ends."""
    asked: list[int] = []

    class Counting(Oracle):
        def draft(self, sequence: Record, nodes: int, depth: int) -> TokenTree:
            asked.append(sequence.request.id)
            return super().draft(sequence, nodes, depth)

    def table(prefix: tuple[int, ...]) -> torch.Tensor:
        if prefix[:3] == tuple(PROMPTS[1]) and len(prefix) > 6:
            raise Fault("kernel")
        return TABLE(prefix)

    engine = engine_of(table)
    drafter = Counting(SCRIPTS, VOCABULARY, 2, wrong=verifier == "coupled")
    judge = engine.request([1], verifier=verifier).verifier
    records = [submit(engine, p, drafter=drafter, verifier=judge, max_new_tokens=LENGTH)[0] for p in PROMPTS]
    finish(engine)
    assert [type(r.error) for r in records] == [type(None), Fault, type(None)]
    assert [r.tokens[r.prompt_length :] for r in records[::2]] == [SCRIPTS[tuple(p)] for p in PROMPTS[::2]]
    assert [asked.count(r.request.id) for r in records] == [3, 2, 3]
    assert [r.stats.forward_passes for r in records] == [3, 1, 3]
    settled(engine)


def test_a_dead_end_off_the_path_is_no_fault() -> None:
    """A drafted token that the policy forbids may leave it without a next token; only accepted nodes matter."""

    @dataclass(frozen=True)
    class DeadEnds(Policy):
        stage = Stage.MASK

        def start(self, context: Context) -> bool:
            return False

        def advance(self, state: State, token: int, row: torch.Tensor | None = None) -> bool:
            return bool(state) or token == 7

        def transform(self, scores: torch.Tensor, states: Sequence[State]) -> torch.Tensor:
            dead = torch.tensor(states)[:, None]
            banned = torch.nn.functional.one_hot(torch.tensor(7), VOCABULARY).bool()
            return scores.masked_fill(dead | banned, -torch.inf)

    engine = engine_of(TABLE, nodes=6)
    for greedy in (True, False):
        pipeline = Pipeline((DeadEnds(),), greedy=greedy)
        plain = run(engine, PROMPTS[1], pipeline=pipeline, max_new_tokens=LENGTH)
        drafted = run(engine, PROMPTS[1], pipeline=pipeline, drafter=Hostile(VOCABULARY, 8), max_new_tokens=LENGTH)
        assert plain.error is None
        assert drafted.error is None
        assert drafted.tokens == plain.tokens


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_logits_end_one_row(value: float) -> None:
    """At the third token of one text, in a batch whose rows lie in one storage."""

    def table(prefix: tuple[int, ...]) -> torch.Tensor:
        logits = TABLE(prefix)
        return logits + value if prefix[:3] == tuple(PROMPTS[1]) and len(prefix) >= 5 else logits

    engine = engine_of(table)
    results = engine.generate([list(p) for p in PROMPTS], max_new_tokens=LENGTH)
    assert [r.finish_reason for r in results] == ["length", "error", "length"]
    assert isinstance(results[1].error, ModelError)
    assert results[1].tokens == SCRIPTS[tuple(PROMPTS[1])][:2]
    assert [r.tokens for r in results[::2]] == [SCRIPTS[tuple(p)] for p in PROMPTS[::2]]
    settled(engine)


@pytest.fixture
def small_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Blocks of 8 slots, and no memory for more than 2 of them a row."""
    plain = TrieCache.zeros

    def zeros(self: TrieCache, *shape: int) -> torch.Tensor:
        if shape[2] > 16:
            raise OutOfMemory(f"cache: no memory for {shape[2]} tokens")
        return plain(self, *shape)

    monkeypatch.setattr(trie, "BLOCK", 8)
    monkeypatch.setattr(TrieCache, "zeros", zeros)
    return


@pytest.mark.usefixtures("small_memory")
@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 0, 1)])
def test_growth_that_fails_ends_the_request_that_needed_it(order: tuple[int, ...]) -> None:
    engine = engine_of(TABLE)
    engine.decoder.cache.capacity = 8
    lengths = {0: LENGTH, 1: 30, 2: LENGTH}
    records = {i: submit(engine, PROMPTS[i], max_new_tokens=lengths[i], ignore_eos=True)[0] for i in order}
    finish(engine)
    assert isinstance(records[1].error, OutOfMemory)
    assert records[1].tokens[3 : 3 + LENGTH] == SCRIPTS[tuple(PROMPTS[1])]
    for i in (0, 2):
        assert records[i].error is None
        assert records[i].tokens[len(PROMPTS[i]) :] == SCRIPTS[tuple(PROMPTS[i])]
    settled(engine)


def test_a_prompt_that_does_not_fit_in_memory_harms_nobody(small_memory: None) -> None:
    engine = engine_of(TABLE)
    engine.decoder.cache.capacity = 8
    results = engine.generate([PROMPTS[0], [1] * 40, PROMPTS[2]], max_new_tokens=LENGTH)
    assert [r.finish_reason for r in results] == ["length", "error", "length"]
    assert isinstance(results[1].error, OutOfMemory)
    settled(engine)


# -- cancellation --------------------------------------------------------------------------------------------


def test_cancelling_frees_rows_at_once_and_others_go_on() -> None:
    engine = engine_of(TABLE, rows=2)
    drafter = FailingDrafter("never")
    records = [submit(engine, p, max_new_tokens=LENGTH, drafter=drafter)[0] for p in PROMPTS]
    for _ in range(3):
        engine.decoder.step()
    assert [r.row is not None for r in records] == [True, True, False]
    events = engine.decoder.cancel(records[0].request.id)
    assert [(e.request_id, e.finish_reason) for e in events] == [(records[0].request.id, "cancelled")]
    assert engine.decoder.cache.live == [records[1].row]
    assert engine.decoder.cancel(records[0].request.id) == []
    engine.decoder.cancel(records[2].request.id)  # still waiting
    finish(engine)
    assert [r.finish_reason for r in records] == ["cancelled", "length", "cancelled"]
    assert engine.result(records[0]).tokens == SCRIPTS[tuple(PROMPTS[0])][:3]
    assert engine.result(records[1]).tokens == SCRIPTS[tuple(PROMPTS[1])]
    settled(engine)


def test_all_samples_of_a_request_are_cancelled_even_if_its_callback_fails() -> None:
    engine = engine_of(TABLE)
    calls: list[Event] = []

    def callback(event: Event) -> None:
        calls.append(event)
        if event.finish_reason is not None:
            raise Fault("callback")

    records = submit(engine, PROMPTS[0], n=3, max_new_tokens=LENGTH, callback=callback)
    engine.decoder.step()
    engine.decoder.cancel(records[0].request.id)
    assert all(isinstance(r.error, Fault) for r in records)
    settled(engine)


def test_a_callback_may_cancel_its_own_request() -> None:
    engine = engine_of(TABLE)
    inner: list[Event] = []

    def callback(event: Event) -> None:
        if len(event.tokens) and event.index == 0:
            inner.extend(engine.decoder.cancel(event.request_id))

    records = submit(engine, PROMPTS[0], n=3, max_new_tokens=LENGTH, callback=callback)
    (other,) = submit(engine, PROMPTS[1], max_new_tokens=LENGTH)
    events = finish(engine)
    assert [r.finish_reason for r in records] == ["cancelled"] * 3
    assert [r.error for r in records] == [None] * 3
    assert other.tokens[3:] == SCRIPTS[tuple(PROMPTS[1])]
    assert {e.finish_reason for e in inner} == {"cancelled"}
    assert [e.tokens for e in events if e.request_id == records[0].request.id] == [(1,)]
    settled(engine)


def test_leaving_a_stream_early_cancels_the_rest() -> None:
    engine = engine_of(TABLE)
    for _ in engine.stream(PROMPTS[0], max_new_tokens=LENGTH):
        break
    settled(engine)


def test_an_interrupt_leaves_the_decoder_usable() -> None:
    calls: list[int] = []

    def table(prefix: tuple[int, ...]) -> torch.Tensor:
        calls.append(len(prefix))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return TABLE(prefix)

    engine = engine_of(table)
    with pytest.raises(KeyboardInterrupt):
        engine.generate(PROMPTS[0], max_new_tokens=LENGTH)
    settled(engine)
    assert engine.generate(PROMPTS[0], max_new_tokens=LENGTH).tokens == SCRIPTS[tuple(PROMPTS[0])]


# -- sharing -------------------------------------------------------------------------------------------------


def mixed() -> Iterator[Callable[[Engine], list[Record]]]:
    """Requests with nothing in common."""
    oracle = Oracle(SCRIPTS, VOCABULARY)
    drafters: list[Drafter | None] = [None, oracle, Hostile(VOCABULARY), oracle, Hostile(VOCABULARY, 9), None, oracle]
    for i, drafter in enumerate(drafters):
        options: dict[str, Any] = {
            "drafter": drafter,
            "temperature": 0.0 if i % 3 == 0 else 0.9,
            "seed": i,
            "max_new_tokens": LENGTH - i % 4,
            "options": [{}, {"top_k": 3}, {"repetition_penalty": 1.5}][i % 3],
            "logprobs": 1 if i % 2 else None,
            "n": 2 if i == 4 else 1,
        }
        prompt = list(PROMPTS[i % 3])
        yield lambda engine, prompt=prompt, options=options: submit(engine, prompt, **options)  # type: ignore[misc]


def outcome(engine: Engine, records: list[Record]) -> list[tuple[object, ...]]:
    results = [engine.result(record) for record in records]
    return [(r.tokens, r.text, r.finish_reason, [(e.token, e.logprob) for e in r.logprobs or []]) for r in results]


@pytest.mark.parametrize("rows", [1, 2, 3, 8])
def test_a_batch_gives_each_request_what_it_gets_alone(rows: int) -> None:
    """Drafters, policies, seeds, lengths and samples mixed; more requests than rows."""
    table = random_table(VOCABULARY, seed=3, spread=2.0)
    alone = []
    for start in mixed():
        engine = engine_of(table, rows=1)
        records = start(engine)
        finish(engine)
        alone.append(outcome(engine, records))
    engine = engine_of(table, rows=rows)
    everything = [start(engine) for start in mixed()]
    peak = 0
    while engine.decoder.busy:
        engine.decoder.step()
        peak = max(peak, len(engine.decoder.cache.live))
    assert peak <= rows
    assert [outcome(engine, records) for records in everything] == alone
    settled(engine)


def test_requests_are_admitted_in_order_and_join_a_running_batch() -> None:
    engine = engine_of(TABLE, rows=2)
    admitted: list[int] = []
    records = [
        submit(engine, PROMPTS[i % 3], max_new_tokens=3 + i, callback=lambda e, i=i: admitted.append(i))[0]  # type: ignore[misc]
        for i in range(5)
    ]
    finish(engine)
    assert list(dict.fromkeys(admitted)) == [0, 1, 2, 3, 4]
    assert all(r.tokens[r.prompt_length :] == SCRIPTS[tuple(r.request.prompt)][: 3 + i] for i, r in enumerate(records))
