"""A text ends at the same place whether its tokens come one by one or many at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from decoders.support import END, VOCABULARY, Witness, engine_of, run, scripted, text_of
from paceline.policies.base import Context, Pipeline, Policy, Stage, State
from paceline.requests import Result
from paceline.testing.drafters import Oracle

PROMPT = (5, 7)


@dataclass(frozen=True)
class EndsAfter(Policy):
    """A toy grammar: the text is complete after so many tokens."""

    tokens: int

    stage = Stage.MASK

    def start(self, context: Context) -> int:
        return 0

    def advance(self, state: State, token: int, row: torch.Tensor | None = None) -> int:
        return int(state) + 1

    def is_final(self, state: State) -> bool:
        return bool(state >= self.tokens)

    def transform(self, scores: torch.Tensor, states: Sequence[State]) -> torch.Tensor:
        return scores


def essence(result: Result) -> tuple[object, ...]:
    """What must not depend on how the text was drafted."""
    logprobs = [(entry.token, round(entry.logprob, 12), entry.top) for entry in result.logprobs or []]
    return result.text, result.tokens, result.finish_reason, result.stop_reason, result.stats.tokens, logprobs


@given(
    script=st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=14),
    stop=st.lists(st.sampled_from(["abab", "ca", "bc", " a", "b", "aba", "cc"]), max_size=2),
    stop_token_ids=st.lists(st.integers(1, VOCABULARY - 1), max_size=1),
    ignore_eos=st.booleans(),
    max_new_tokens=st.integers(1, 16),
    context=st.integers(2, 20),
    depth=st.integers(1, 6),
    wrong=st.booleans(),
    grammar=st.sampled_from([None, None, 3, 6]),
)
@settings(max_examples=120)
def test_drafted_text_ends_where_plain_text_ends(
    script: list[int],
    stop: list[str],
    stop_token_ids: list[int],
    ignore_eos: bool,
    max_new_tokens: int,
    context: int,
    depth: int,
    wrong: bool,
    grammar: int | None,
) -> None:
    engine = engine_of(scripted({PROMPT: script}), context=context, nodes=24)
    pipeline = None if grammar is None else Pipeline((EndsAfter(grammar),), greedy=True)
    options: dict[str, object] = {
        "stop": stop,
        "stop_token_ids": stop_token_ids,
        "ignore_eos": ignore_eos,
        "max_new_tokens": max_new_tokens,
        "pipeline": pipeline,
        "logprobs": 2,
    }
    plain = run(engine, PROMPT, drafter=Witness(Oracle({PROMPT: []}, VOCABULARY), engine), **options)
    witness = Witness(Oracle({PROMPT: script}, VOCABULARY, depth, wrong), engine)
    drafted = run(engine, PROMPT, drafter=witness, **options)
    assert plain.error is None
    assert drafted.error is None
    assert essence(drafted) == essence(plain)
    assert plain.stats.forward_passes == len(plain.tokens)
    assert len(plain.tokens) <= min(max_new_tokens, context - len(PROMPT) + 1)
    stats = drafted.stats
    assert sum(stats.histogram) == stats.forward_passes
    assert sum(i * count for i, count in enumerate(stats.histogram)) == stats.accepted == sum(stats.accepted_at)
    assert stats.tokens - stats.accepted in (stats.forward_passes, stats.forward_passes - 1)
    assert (witness.verbs[0], witness.verbs[-1]) == ("begin", "end")
    assert witness.verbs.count("commit") == stats.forward_passes


SCRIPT = [1, 2, 3, 5, 1, 1, 2, 5]  # "a" "b" "ab" "c" "a" "a" "b" "c"


@pytest.mark.parametrize("depth", [1, 2, 3, 5])
def test_a_stop_string_may_straddle_tokens_and_drafted_spans(depth: int) -> None:
    engine = engine_of(scripted({PROMPT: SCRIPT}), nodes=24)
    for stop, kept, tokens in (("bab", "a", 3), ("abc", "ab", 4), ("caa", "abab", 6), ("abca", "ab", 5), ("b", "a", 2)):
        result = run(engine, PROMPT, drafter=Oracle({PROMPT: SCRIPT}, VOCABULARY, depth), stop=stop)
        assert (result.text, len(result.tokens), result.stop_reason) == (kept, tokens, stop)
        assert result.finish_reason == "stop"
        assert result.stats.forward_passes == -(-tokens // (depth + 1))


@pytest.mark.parametrize("drafted", [False, True])
def test_the_order_of_endings_that_hold_at_the_same_token(drafted: bool) -> None:
    """Grammar, then stop string, then end token, then length: the third token makes all four true."""
    engine = engine_of(scripted({PROMPT: SCRIPT}), nodes=24)
    drafter = Oracle({PROMPT: SCRIPT}, VOCABULARY) if drafted else None
    grammar = Pipeline((EndsAfter(3),), greedy=True)
    for pipeline, stop, ids, reason, cause, text in (
        (grammar, "bab", [3], "stop", "grammar", "abab"),
        (None, "bab", [3], "stop", "bab", "a"),
        (None, "xx", [3], "stop", 3, "abab"),
        (None, "xx", [6], "length", None, "abab"),
    ):
        result = run(
            engine, PROMPT, drafter=drafter, pipeline=pipeline, stop=stop, stop_token_ids=ids, max_new_tokens=3
        )
        assert (result.finish_reason, result.stop_reason, result.text) == (reason, cause, text)
        assert result.tokens == SCRIPT[:3]


def test_the_end_token_counts_and_shows_no_text() -> None:
    script = [1, 2, END, 5, 5]
    engine = engine_of(scripted({PROMPT: script}))
    for drafter in (None, Oracle({PROMPT: script}, VOCABULARY, 4)):
        result = run(engine, PROMPT, drafter=drafter)
        assert (result.text, result.tokens, result.stop_reason) == ("ab", [1, 2, END], END)
        result = run(engine, PROMPT, drafter=drafter, ignore_eos=True, max_new_tokens=5)
        assert (result.text, result.tokens, result.finish_reason) == ("abcc", script, "length")


@pytest.mark.parametrize("context", [3, 4, 7])
def test_a_full_context_ends_the_text(context: int) -> None:
    """`context` tokens may be read, so one more than that may be written."""
    engine = engine_of(scripted({PROMPT: SCRIPT}), context=context)
    texts = {PROMPT: SCRIPT}
    for drafter in (None, Oracle(texts, VOCABULARY, 6), Oracle(texts, VOCABULARY, 6, wrong=False)):
        result = run(engine, PROMPT, drafter=drafter, max_new_tokens=50)
        assert (result.tokens, result.finish_reason) == (SCRIPT[: context + 1 - len(PROMPT)], "length")
        assert result.text == text_of(result.tokens)


def test_a_prompt_that_fills_the_context_gets_one_token() -> None:
    engine = engine_of(scripted({PROMPT: SCRIPT}), context=2)
    assert run(engine, PROMPT).tokens == SCRIPT[:1]
