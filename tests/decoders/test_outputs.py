"""What a caller gets: events, samples, log-probabilities and statistics."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from decoders.support import END, VOCABULARY, engine_of, run, scripted, text_of
from paceline.policies.base import Context, Pipeline
from paceline.policies.repetition import Repetition
from paceline.policies.temperature import Temperature
from paceline.policies.top_k import TopK
from paceline.requests import Event, TokenLogprob
from paceline.testing import random_table
from paceline.testing.drafters import Hostile, Oracle
from paceline.testing.running import finish, submit

PROMPT = [1, 5, 2]
SCRIPT = [1, 2, 3, 5, 1, 1, 2, 5, 4, 6]
SCRIPTED = scripted({tuple(PROMPT): SCRIPT})
NOISY = random_table(VOCABULARY, seed=5)


def oracle() -> Oracle:
    return Oracle({tuple(PROMPT): SCRIPT}, VOCABULARY, 3)


SETTINGS: list[dict[str, Any]] = [
    {},
    {"stop": ["ba", "caa"]},
    {"stop": ["zz", "bca"]},
    {"temperature": 1.0, "seed": 4},
    {"temperature": 1.0, "seed": 5, "stop": ["ab"], "logprobs": 2},
]


@pytest.mark.parametrize("options", SETTINGS)
def test_a_stream_says_what_generate_says(options: dict[str, Any]) -> None:
    engine = engine_of(SCRIPTED)
    whole = engine.generate(PROMPT, max_new_tokens=10, drafter="ngram", **options)
    events = list(engine.stream(PROMPT, max_new_tokens=10, drafter="ngram", **options))
    assert "".join(event.text for event in events) == whole.text
    assert [token for event in events for token in event.tokens] == whole.tokens
    assert [entry for event in events for entry in event.logprobs] == (whole.logprobs or [])
    assert [event.finish_reason for event in events] == [None] * (len(events) - 1) + [whole.finish_reason]


def test_streams_may_be_read_in_turns_and_with_other_calls_in_between() -> None:
    """Each call steps everybody's sequences; nobody's events are lost."""
    engine = engine_of(NOISY, rows=2)
    options = {"max_new_tokens": 6, "ignore_eos": True}
    wanted = [engine.generate([i], **options).tokens for i in (1, 2, 3)]
    streams = [engine.stream([i], **options) for i in (1, 2, 3)]
    read: list[list[int]] = [[], [], []]
    for i in [0, 1, 2, 0, 0, 1]:
        read[i] += next(streams[i]).tokens
    assert engine.generate([2], **options).tokens == wanted[1]
    for i in (2, 1, 0):
        read[i] += [token for event in streams[i] for token in event.tokens]
    assert read == wanted


def test_a_stream_raises_what_ended_it_and_calls_back() -> None:
    engine = engine_of(NOISY)
    seen: list[Event] = []

    def callback(event: Event) -> None:
        seen.append(event)
        if len(seen) == 2:
            raise KeyError("enough")

    stream = engine.stream([1], max_new_tokens=6, ignore_eos=True, callback=callback)
    with pytest.raises(KeyError, match="enough"):
        list(stream)
    assert [event.finish_reason for event in seen] == [None, None, "error"]
    assert not engine.decoder.busy


def test_events_tell_accepted_from_rejected() -> None:
    engine = engine_of(SCRIPTED)
    events: list[Event] = []
    submit(engine, PROMPT, drafter=oracle(), max_new_tokens=10, callback=events.append)
    assert finish(engine) == events
    # Each of three depths adds the true token, two wrong ones, and under one of these a twin of the true one that the
    # last step has no depth for; then comes the bonus token.
    assert [(event.tokens, event.accepted, len(event.rejected)) for event in events] == [
        ((1, 2, 3, 5), 3, 9),
        ((1, 1, 2, 5), 3, 9),
        ((4, 6), 1, 2),
    ]


def test_text_that_may_become_a_stop_string_is_held_back() -> None:
    engine = engine_of(SCRIPTED)
    shown = [event.text for event in engine.stream(PROMPT, max_new_tokens=10, stop=["abca!", "cc"])]
    # The text is a b ab c a a b c ba abc; "a", "ab", "abc" and "abca" are starts of a stop string.
    assert shown == ["", "", "ab", "", "", "abca", "", "", "abcb", "aabc"]


def test_samples_are_independent_streams_that_share_the_prompt() -> None:
    engine = engine_of(NOISY, rows=2)
    options = {"temperature": 1.0, "seed": 9, "max_new_tokens": 8}
    samples = engine.generate(PROMPT, n=4, **options)
    assert len({tuple(sample.tokens) for sample in samples}) == 4
    assert samples[0].tokens == engine.generate(PROMPT, **options).tokens
    again = engine.generate([PROMPT, PROMPT], n=2, drafter="ngram", **options)
    assert [s.tokens for s in again] == [s.tokens for s in (samples[:2] * 2)]


def test_a_second_sample_copies_the_prompt_instead_of_reading_it(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(NOISY)
    widths: list[int] = []
    plain = engine.model.forward

    def forward(tokens: torch.Tensor, *args: Any) -> Any:
        widths.append(tokens.numel())
        return plain(tokens, *args)

    monkeypatch.setattr(engine.model, "forward", forward)
    engine.generate([1, 2, 3, 4, 5, 6, 7, 1], n=3, max_new_tokens=1, temperature=1.0)
    # The first sample is through before the second comes, and its row with it.
    assert widths == [8, 8, 8]
    widths.clear()
    engine.generate([1, 2, 3, 4, 5, 6, 7, 1], n=3, max_new_tokens=2, temperature=1.0)
    assert widths == [8, 1, 1, 3]


@pytest.mark.parametrize("chunk", [1, 2, 3, 512])
def test_prompts_are_read_in_chunks(chunk: int) -> None:
    prompt = [1, 2, 3, 4, 5, 6, 7]
    wanted = engine_of(NOISY).generate(prompt, max_new_tokens=5).tokens
    engine = engine_of(NOISY)
    engine.decoder.prefill_chunk = chunk
    assert engine.generate(prompt, max_new_tokens=5).tokens == wanted
    results = engine.generate([prompt, [1], prompt[:3]], max_new_tokens=5, echo=True, logprobs=0)
    assert results[0].tokens == wanted
    assert len(results[0].prompt_logprobs or []) == 6


# -- log-probabilities ---------------------------------------------------------------------------------------


def direct(prefix: list[int], token: int, pipeline: Pipeline, text: list[int], top: int) -> TokenLogprob:
    """One entry from the definition: the table at the prefix, the policy's state after the text so far."""
    context = Context(tuple(PROMPT), VOCABULARY, frozenset({END}), torch.device("cpu"))
    state = pipeline.start(context)
    for earlier in text:
        state = pipeline.advance(state, earlier)
    raw = NOISY(tuple(prefix)).log_softmax(-1)
    law = pipeline.distribution(pipeline.transform(NOISY(tuple(prefix))[None], [state]))[0]

    def best(row: torch.Tensor) -> tuple[tuple[int, float], ...]:
        order = sorted(range(VOCABULARY), key=lambda v: -float(row[v]))[:top]
        return tuple((v, float(row[v])) for v in order if row[v] > -torch.inf)

    return TokenLogprob(token, float(raw[token]), float(law[token]), best(raw), best(law))


def same(entry: TokenLogprob, other: TokenLogprob) -> None:
    assert entry.token == other.token
    assert (entry.logprob, entry.policy_logprob) == pytest.approx((other.logprob, other.policy_logprob), abs=1e-12)
    for mine, theirs in ((entry.top, other.top), (entry.policy_top, other.policy_top)):
        assert [v for v, _ in mine] == [v for v, _ in theirs]
        assert [p for _, p in mine] == pytest.approx([p for _, p in theirs], abs=1e-12)


@pytest.mark.parametrize("verifier", ["coupled", "rejection"])
@pytest.mark.parametrize("greedy", [True, False])
def test_logprobs_equal_a_direct_computation(greedy: bool, verifier: str) -> None:
    policies = [Repetition(1.4)] if greedy else [Repetition(1.4), Temperature(0.8), TopK(4)]
    pipeline = Pipeline.of(policies, greedy)
    options = {"max_new_tokens": 12, "logprobs": 5, "echo": True, "temperature": 0 if greedy else 0.8, "seed": 1}
    options["ignore_eos"] = True
    options |= {"policies": policies[:1], **({} if greedy else {"options": {"top_k": 4}})}
    engine = engine_of(NOISY)
    drafter = Hostile(VOCABULARY, 8, chain=verifier == "rejection")
    built = engine.request(PROMPT, verifier=verifier).verifier
    result = run(engine, PROMPT, drafter=drafter, verifier=built, **options)
    assert result.error is None
    assert result.stats.accepted > 0
    assert result.logprobs is not None
    assert [entry.token for entry in result.logprobs] == result.tokens
    for i, entry in enumerate(result.logprobs):
        text = result.tokens[:i]
        same(entry, direct(PROMPT + text, result.tokens[i], pipeline, text, 5))
    assert result.prompt_logprobs is not None
    for i, entry in enumerate(result.prompt_logprobs, 1):
        same(entry, direct(PROMPT[:i], PROMPT[i], Pipeline((), greedy=False), [], 5))
    assert result.text == text_of(PROMPT) + text_of(result.tokens)


def test_logprobs_only_when_asked_for() -> None:
    engine = engine_of(NOISY)
    result = engine.generate(PROMPT, max_new_tokens=3)
    assert (result.logprobs, result.prompt_logprobs) == (None, None)
    result = engine.generate(PROMPT, max_new_tokens=3, logprobs=0)
    assert [entry.top for entry in result.logprobs or []] == [()] * 3
    assert result.prompt_logprobs is None
    result = engine.generate([1], max_new_tokens=3, logprobs=100, echo=True)
    assert result.prompt_logprobs == []
    assert {len(entry.top) for entry in result.logprobs or []} == {VOCABULARY}


# -- statistics ----------------------------------------------------------------------------------------------


def test_statistics_count_what_happened() -> None:
    engine = engine_of(SCRIPTED)
    stats = run(engine, PROMPT, drafter=oracle(), max_new_tokens=10).stats
    assert (stats.forward_passes, stats.tokens, stats.drafted, stats.accepted) == (3, 10, 27, 7)
    assert (stats.drafted_at, stats.accepted_at, stats.histogram) == ([3, 2, 2, 2], [3, 2, 2], [0, 1, 0, 2])
    assert stats.tokens_per_pass == pytest.approx(10 / 3)
    assert min(stats.prefill, stats.draft, stats.score, stats.judge, stats.keep) > 0
    assert stats.cache_bytes == engine.decoder.cache.nbytes > 0


def test_a_batch_shares_its_seconds() -> None:
    engine = engine_of(NOISY, rows=4)
    began = time.perf_counter()
    results = engine.generate([[i + 1] for i in range(4)], max_new_tokens=12, ignore_eos=True)
    assert 0 < sum(result.stats.seconds for result in results) < time.perf_counter() - began
    assert all(result.stats.forward_passes == 12 for result in results)


def test_echo_puts_the_prompt_first() -> None:
    result = engine_of(NOISY).generate(PROMPT, max_new_tokens=2, echo=True)
    assert result.prompt_tokens == 3
    assert result.text == text_of(PROMPT) + text_of(result.tokens)
