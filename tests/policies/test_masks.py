"""Masks: banned and allowed tokens, minimum length, and combinations that leave nothing."""

from __future__ import annotations

import pytest
import torch
from transformers.generation import logits_process as hf

from paceline.errors import BadRequest
from paceline.policies import Context, Pipeline
from paceline.policies.allowed import Allowed
from paceline.policies.banned import Banned
from paceline.policies.min_length import MinLength
from paceline.policies.no_repeat import NoRepeat

from .common import CONTEXT, V, after, one, scores


def test_banned_tokens_are_masked() -> None:
    policy, raw = Banned([8, 1, 8]), scores(3, 0)
    expected = hf.SuppressTokensLogitsProcessor([1, 8])(None, raw)
    assert torch.equal(policy.transform(raw, [policy.start(CONTEXT)] * 3), expected)
    assert policy == Banned((1, 8))


def test_only_allowed_tokens_stay() -> None:
    assert one(Allowed([2, 0]), [1.0, 2.0, 3.0]).tolist() == [1.0, -torch.inf, 3.0]


@pytest.mark.parametrize("generated", range(5))
def test_minimum_length_bans_end_tokens_until_reached(generated: int) -> None:
    policy, raw, prompt = MinLength(3), scores(1, 1), (4, 5)
    context = Context(prompt, V, frozenset({0, 7, V + 9}))
    ids = torch.tensor([[*prompt, *[2] * generated]])
    expected = hf.MinNewTokensLengthLogitsProcessor(len(prompt), 3, [0, 7])(ids, raw)
    assert torch.equal(policy.transform(raw, [after(policy, [2] * generated, context)]), expected)


def test_minimum_length_counts_each_node() -> None:
    policy, raw = MinLength(2), torch.zeros(3, V)
    rows = policy.transform(raw, [after(policy, [2] * n) for n in range(3)])
    assert rows[:, 0].tolist() == [-torch.inf, -torch.inf, 0.0]
    assert rows[:, 1:].isfinite().all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Banned(5), "banned_tokens: 5 is not allowed; a list of token ids is needed"),
        (lambda: Banned("12 x"), "banned_tokens: 'x' is not an integer"),
        (lambda: Banned([1.5]), "banned_tokens: 1.5 is not an integer"),
        (lambda: Banned([-1]), "banned_tokens: -1 is out of range"),
        (lambda: Banned([True]), "banned_tokens: True is not an integer"),
        (
            lambda: Banned([3, V]).start(CONTEXT),
            f"banned_tokens: token id {V} is outside the vocabulary; 0 <= id < {V}",
        ),
        (lambda: Banned(range(V)).start(CONTEXT), f"banned_tokens: all {V} tokens are banned"),
        (lambda: Allowed([]), "allowed_tokens: an empty list allows no token"),
        (lambda: Allowed([99]).start(CONTEXT), "allowed_tokens: token id 99 is outside the vocabulary"),
        (lambda: MinLength(-1), "min_new_tokens: -1 is out of range; an integer of at least 0"),
        (lambda: MinLength("3"), "min_new_tokens: '3' is not an integer"),
        (
            lambda: MinLength(1).start(Context((), 2, frozenset({0, 1}))),
            "min_new_tokens: 1 cannot be reached; every token is an end token",
        ),
    ],
)
def test_refused_arguments(make: object, message: str) -> None:
    with pytest.raises(BadRequest) as refusal:
        make()  # type: ignore[operator]
    assert message in str(refusal.value)


@pytest.mark.parametrize(
    "policies",
    [
        [Banned([2, 3]), Allowed([3, 2])],
        [MinLength(1), Allowed([0])],
        [Allowed([1, 4]), NoRepeat(1)],  # 1 and 4 are in the prompt
    ],
    ids=str,
)
def test_masks_that_leave_nothing_together_are_refused_at_the_start(policies: list) -> None:
    with pytest.raises(BadRequest, match="leave no token that may come first"):
        Pipeline.of(policies, greedy=True).start(CONTEXT)


def test_a_dead_end_later_has_no_finite_score() -> None:
    """Nothing is unbanned behind the policy's back: the row stays empty for the engine to refuse."""
    pipeline = Pipeline.of([Allowed([7, 8]), NoRepeat(1)], greedy=True)
    state = pipeline.start(CONTEXT)
    for token in (7, 8):
        state = pipeline.advance(state, token)
    assert not pipeline.transform(scores(1, 2), [state]).isfinite().any()
