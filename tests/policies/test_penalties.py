"""Penalties: the sign rule, what counts, equality with transformers and scalar loops, settling."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers.generation import logits_process as hf

from paceline.errors import BadRequest
from paceline.policies import Context, Policy
from paceline.policies.frequency import Frequency
from paceline.policies.history import BOUND, Counts, History
from paceline.policies.logit_bias import LogitBias
from paceline.policies.no_repeat import NoRepeat
from paceline.policies.presence import Presence
from paceline.policies.repetition import Repetition

from .common import CONTEXT, PROMPT, V, after, one, scores

REMEMBERING = [Repetition(1.3), Frequency(0.6), Presence(-0.9), NoRepeat(1), NoRepeat(2), NoRepeat(3)]
TOKENS = st.lists(st.integers(0, V - 1), max_size=2 * BOUND + 10)


def test_repetition_divides_positive_and_multiplies_negative_scores() -> None:
    assert one(Repetition(2.0), [2.0, -2.0, 0.0], prompt=[0, 2], tokens=[1]).tolist() == [1.0, -4.0, 0.0]


def test_repetition_reads_raw_scores() -> None:
    """On log-probabilities, all negative, the law would be another."""
    raw = torch.tensor([[2.0, 1.0, -1.0]])
    policy = Repetition(1.5)
    states = [policy.start(Context((0,), 3))]
    on_raw = policy.transform(raw, states).softmax(-1)
    on_logp = policy.transform(raw.log_softmax(-1), states).softmax(-1)
    assert (on_raw - on_logp).abs().max() > 0.01


def test_the_prompt_counts_for_repetition_alone() -> None:
    row = [1.0, 1.0, 1.0]
    assert one(Repetition(2.0), row, prompt=[0, 0], tokens=[1]).tolist() == [0.5, 0.5, 1.0]
    assert one(Frequency(0.5), row, prompt=[0, 0], tokens=[1, 1]).tolist() == [1.0, 0.0, 1.0]
    assert one(Presence(0.5), row, prompt=[0, 0], tokens=[1, 1]).tolist() == [1.0, 0.5, 1.0]
    assert one(NoRepeat(1), row, prompt=[0, 0], tokens=[1]).tolist() == [-torch.inf, -torch.inf, 1.0]


def test_no_repeat_bans_what_followed_the_same_context() -> None:
    row = [0.0] * 5
    assert one(NoRepeat(2), row, prompt=[1, 2, 1, 3, 1]).tolist() == [0.0, 0.0, -torch.inf, -torch.inf, 0.0]
    assert one(NoRepeat(3), row, prompt=[1, 2, 4, 1], tokens=[2]).tolist() == [0.0, 0.0, 0.0, 0.0, -torch.inf]
    assert one(NoRepeat(3), row, prompt=[1, 2]).tolist() == row


@settings(max_examples=40, deadline=None, derandomize=True)
@given(prompt=st.lists(st.integers(0, V - 1), min_size=1, max_size=20), tokens=TOKENS, seed=st.integers(0, 99))
@example(prompt=[1, 2], tokens=[3, 4, 3, 3, 0] * 11, seed=0)
@example(prompt=[1], tokens=[5, 6, 7, 5, 6] * (BOUND // 5) + [5, 6, 8, 5], seed=1)
def test_equal_to_transformers_and_to_scalar_loops(prompt: list[int], tokens: list[int], seed: int) -> None:
    raw, ids, context = scores(1, seed), torch.tensor([prompt + tokens]), Context(tuple(prompt), V)
    counts = Counter(tokens)
    frequency = torch.tensor([[float(raw[0, v]) - 0.6 * counts[v] for v in range(V)]])
    presence = torch.tensor([[float(raw[0, v]) + 0.9 * (counts[v] > 0) for v in range(V)]])
    pairs: list[tuple[Policy, torch.Tensor]] = [
        (Repetition(1.3), hf.RepetitionPenaltyLogitsProcessor(1.3)(ids, raw)),
        (Repetition(0.7), hf.RepetitionPenaltyLogitsProcessor(0.7)(ids, raw)),
        (Frequency(0.6), frequency),
        (Presence(-0.9), presence),
        *((NoRepeat(n), hf.NoRepeatNGramLogitsProcessor(n)(ids, raw)) for n in (1, 2, 3, 5)),
    ]
    for policy, expected in pairs:
        for settle in (False, True):
            row = policy.transform(raw, [after(policy, tokens, context, settle)])
            torch.testing.assert_close(row, expected, msg=f"{policy}, settle={settle}")


@pytest.mark.parametrize("policy", REMEMBERING, ids=str)
def test_settling_changes_nothing_but_the_base(policy: Policy) -> None:
    tokens = [(7 * i + i // 3) % 4 for i in range(BOUND + 1)]
    state = after(policy, tokens)
    settled = policy.settle(state)
    assert isinstance(settled, History)
    assert (state.length, settled.length) == (BOUND + 1, 0)
    assert policy.settle(settled) is settled
    raw = scores(2, 1)
    for more in ((), (1,), (1, 1, 9), (9, 5, 9)):  # of the base, of both, of the tail alone
        pair = [state, settled]
        for token in more:
            pair = [policy.advance(s, token) for s in pair]
        rows = policy.transform(raw[:1].expand(2, -1), pair)
        assert torch.equal(rows[0], rows[1])


@pytest.mark.parametrize("policy", REMEMBERING, ids=str)
def test_forks_share_a_base_that_never_changes(policy: Policy) -> None:
    """Two forks settle apart; their common past and each other stay as they were."""
    past = after(policy, [1, 2] * 10)
    raw = scores(1, 2)
    before = policy.transform(raw, [past])
    left, right = past, past
    for step in range(BOUND):
        left = policy.settle(policy.advance(left, step % 3))
        right = policy.settle(policy.advance(right, 6 + step % 5))
    assert torch.equal(policy.transform(raw, [past]), before)
    rows = policy.transform(raw.expand(3, -1), [left, past, right])  # states of three different bases at once
    for row, state in zip(rows, (left, past, right), strict=True):
        assert torch.equal(row, policy.transform(raw, [state])[0])
    assert not torch.equal(rows[0], rows[2])


def test_counts_are_frozen() -> None:
    empty = Counts.of(torch.zeros(4, dtype=torch.int64))
    more = empty.plus([1, 1, 3, 9])  # 9 is beyond the vocabulary: no score belongs to it
    assert more.dense.tolist() == [0, 2, 0, 1]
    assert (more.tokens.tolist(), more.amounts.tolist()) == ([1, 3], [2, 1])
    assert empty.dense.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("policy", REMEMBERING, ids=str)
def test_prompt_ids_beyond_the_scores_are_harmless(policy: Policy) -> None:
    raw = scores(1, 3)
    with_foreign = policy.transform(raw, [policy.start(Context((V + 5, 3), V))])
    assert torch.equal(with_foreign, policy.transform(raw, [policy.start(Context((V + 6, 3), V))]))


def test_logit_bias_is_added() -> None:
    policy = LogitBias({"2": 1.5, 7: -3})
    raw = scores(3, 4)
    processor = hf.SequenceBiasLogitsProcessor([[[2], 1.5], [[7], -3.0]])
    expected = processor(torch.tensor([PROMPT] * 3), raw)
    torch.testing.assert_close(policy.transform(raw, [policy.start(CONTEXT)] * 3), expected)
    assert policy == LogitBias({7: -3, 2: 1.5})
    assert LogitBias({4: 0}).neutral


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Repetition(0), "repetition_penalty: 0 is out of range; a number above 0"),
        (
            lambda: Repetition(1e-300),
            "repetition_penalty: 1e-300 is out of range; a number above 0, from 1e-30 to 1e+30",
        ),
        (lambda: Repetition(10**400), "repetition_penalty: 1000"),
        (lambda: LogitBias({3: 10**400}), "logit_bias[3]: 1000"),
        (lambda: LogitBias({3: 1e39}), "logit_bias[3]: 1e+39 is out of range; a number from -1e+30 to 1e+30"),
        (lambda: Repetition(float("inf")), "repetition_penalty: inf is out of range"),
        (lambda: Repetition(None), "repetition_penalty: None is not a number"),
        (lambda: Frequency(2.1), "frequency_penalty: 2.1 is out of range; -2 <= frequency_penalty <= 2"),
        (lambda: Presence(-3), "presence_penalty: -3 is out of range; -2 <= presence_penalty <= 2"),
        (lambda: NoRepeat(-1), "no_repeat_ngram_size: -1 is out of range"),
        (lambda: NoRepeat(2.0), "no_repeat_ngram_size: 2.0 is not an integer"),
        (lambda: LogitBias(5), "logit_bias: 5 is not a mapping of token ids to numbers"),
        (lambda: LogitBias({"a": 1}), "logit_bias: 'a' is not an integer"),
        (lambda: LogitBias({-1: 1}), "logit_bias: -1 is out of range"),
        (lambda: LogitBias({1: "x"}), "logit_bias[1]: 'x' is not a number"),
        (lambda: LogitBias({1: float("-inf")}), "logit_bias[1]: -inf is out of range"),
        (lambda: LogitBias({1: 1, "1": 2}), "logit_bias: token id 1 is given twice"),
        (
            lambda: LogitBias({V: 1}).start(CONTEXT),
            f"logit_bias: token id {V} is outside the vocabulary; 0 <= id < {V}",
        ),
    ],
)
def test_refused_arguments(make: object, message: str) -> None:
    with pytest.raises(BadRequest) as refusal:
        make()  # type: ignore[operator]
    assert message in str(refusal.value)
