"""Synthetic acceptance: the rate is what was asked for."""

from __future__ import annotations

import pytest
from drafters.support import PROMPTS, engine_of, llama

from paceline.errors import BadRequest
from paceline.testing.drafters import Fixed
from paceline.testing.running import finish, submit
from paceline.verifiers.synthetic import Synthetic

CHAIN = Fixed((7, 8, 9, 10))


@pytest.mark.parametrize("rate", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_tokens_a_pass_follow_the_rate(rate: float, temperature: float) -> None:
    engine = engine_of(llama(0), nodes=4)
    (sequence,) = submit(
        engine,
        PROMPTS[1],
        drafter=CHAIN,
        verifier=Synthetic(rate),
        temperature=temperature,
        max_new_tokens=120,
        seed=1,
        ignore_eos=True,
    )
    finish(engine)
    expected = sum(rate**i for i in range(5))
    assert sequence.stats.tokens_per_pass == pytest.approx(expected, rel=0.2)


def test_a_rate_of_zero_is_plain_decoding() -> None:
    engine = engine_of(llama(0))
    for options in ({}, {"temperature": 0.9, "seed": 3}):
        plain = engine.generate(PROMPTS[0], max_new_tokens=20, **options)
        found = engine.generate(PROMPTS[0], drafter="ngram", verifier="synthetic(rate=0)", max_new_tokens=20, **options)
        assert found.tokens == plain.tokens


@pytest.mark.parametrize("rate", [-0.1, 1.1])
def test_a_bad_rate_is_named(rate: float) -> None:
    with pytest.raises(BadRequest, match=f"rate={rate}"):
        engine_of(llama(0), verifier=f"synthetic(rate={rate})")
