"""Jacobi decoding by blocks, and blocks that end early."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import Any

import pytest

from paceline import Engine
from paceline.drafters.ceed import CEED
from paceline.errors import BadRequest
from paceline.plan import plan
from paceline.policies.base import Pipeline
from paceline.registry import Guarantee
from paceline.testing import TabularModel, random_table
from paceline.verifiers.ceed import CEEDAcceptance
from tests.drafters.support import PROMPTS, batch, engine_of, llama, results, start

VOCABULARY, BLOCK = 12, 6
PROMPT = [1, 2, 3]


@cache
def model(seed: int = 3) -> TabularModel:
    return TabularModel(random_table(VOCABULARY, seed=seed), VOCABULARY, context=96)


def engine(seed: int = 3, block: int = BLOCK, **options: Any) -> Engine:
    return Engine(model(seed), drafter=CEED(block=block), **options)


def best(prefix: list[int], seed: int = 3) -> int:
    return int(random_table(VOCABULARY, seed=seed)(tuple(prefix)).argmax())


def greedy(prefix: list[int], count: int) -> list[int]:
    text = list(prefix)
    for _ in range(count):
        text.append(best(text))
    return text[len(prefix) :]


def iterated(text: list[int], cap: int) -> list[int]:
    """The block behind a text after so many passes over all of it."""
    drafter = CEED(block=BLOCK)
    drafter.attach(model())
    block = [*drafter._fill(text, [], BLOCK - 1), 0]
    for _ in range(cap):
        block = [best(text + block[:i]) for i in range(BLOCK)]
    return block


# -- the iteration --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cap", range(1, BLOCK + 1))
def test_every_block_is_its_iterate_after_so_many_passes(cap: int) -> None:
    found = engine().generate(PROMPT, max_new_tokens=5 * BLOCK, verifier=CEEDAcceptance(cap))
    text = list(PROMPT)
    for _ in range(5):
        text += iterated(text, cap)
    assert found.tokens == text[len(PROMPT) :]
    assert found.stats.forward_passes <= 5 * cap
    for start_ in range(0, 5 * BLOCK, BLOCK):
        before = PROMPT + found.tokens[:start_]
        assert found.tokens[start_ : start_ + cap] == greedy(before, cap), "so many tokens of a block are greedy"


def test_fewer_passes_are_another_text() -> None:
    """Else the tests above would say little."""
    texts = [engine().generate(PROMPT, max_new_tokens=30, verifier=CEEDAcceptance(cap)) for cap in (1, 2, BLOCK)]
    assert len({tuple(result.tokens) for result in texts}) == 3
    passes = [result.stats.forward_passes for result in texts]
    assert passes[0] == 5
    assert passes == sorted(passes)


def test_a_block_is_finished_before_the_next_begins() -> None:
    model = engine()
    sequence = start(model, PROMPT, max_new_tokens=40)
    for _ in range(30):
        guesses, passes = sequence.drafts or ([], 0)
        tree = model._drafter.propose([sequence], [(99, 99)])[0] if sequence.generated else None
        before = sequence.generated
        model.decoder.step()
        if tree is None or sequence.finish_reason:
            continue
        assert tree.passes == passes + 1
        assert tree.drafted == (BLOCK - 1 if not guesses else len(guesses) - 1)
        assert sequence.generated // BLOCK == before // BLOCK or sequence.generated % BLOCK == 0


@pytest.mark.parametrize("cap", [None, BLOCK, 99])
@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0}])
def test_with_a_pass_a_token_it_is_plain_decoding(cap: int | None, settings: dict[str, Any]) -> None:
    for seed in range(4):
        options = {"max_new_tokens": 30, "seed": seed, **settings}
        plain = engine(seed).generate(PROMPT, drafter="none", **options).tokens
        assert engine(seed).generate(PROMPT, verifier=CEEDAcceptance(cap), **options).tokens == plain
        assert engine(seed).generate(PROMPT, **options).tokens == plain, "and so it is where all is verified"


def test_text_equals_transformers() -> None:
    own = engine_of(llama())
    for spec in ("ceed", "ceed(block=8, init=repeat)", "turns(ngram, ceed(block=3))"):
        assert sum(result.stats.accepted for result in batch(spec, 40, own)) > 0


def test_a_small_budget_makes_small_blocks() -> None:
    found = engine(nodes=2).generate(PROMPT, max_new_tokens=30, verifier=CEEDAcceptance(1))
    assert found.stats.forward_passes == 10
    assert found.tokens[::3] == [best(PROMPT + found.tokens[:at]) for at in range(0, 30, 3)]


# -- what is emitted unverified -------------------------------------------------------------------------------


@pytest.mark.parametrize("cap", [1, 2, 4])
@pytest.mark.parametrize("settings", [{}, {"temperature": 1.3, "seed": 5}])
def test_policies_hold_for_unverified_tokens(cap: int, settings: dict[str, Any]) -> None:
    judge = CEEDAcceptance(cap)
    options: dict[str, Any] = {"max_new_tokens": 40, "verifier": judge, **settings}
    legal = {4, 7, 8, 11}
    assert set(engine().generate(PROMPT, allowed_tokens=sorted(legal), **options).tokens) <= legal
    text = engine().generate(PROMPT, no_repeat_ngram_size=2, **options).tokens
    grams = list(pairwise(text))
    assert len(grams) == len(set(grams))


def test_endings_and_logprobs_hold_for_unverified_tokens() -> None:
    options: dict[str, Any] = {"verifier": CEEDAcceptance(1), "max_new_tokens": 20}
    plain = engine().generate(PROMPT, **options).tokens
    end = plain[BLOCK + 3]
    ended = engine().generate(PROMPT, stop_token_ids=[end], **options).tokens
    assert ended == plain[: plain.index(end) + 1]
    assert engine().generate(PROMPT, **options | {"max_new_tokens": 8}).tokens == plain[:8]
    named = engine().generate(PROMPT, logprobs=1, **options)
    assert [entry.token for entry in named.logprobs or ()] == plain


def test_a_dead_end_is_not_emitted() -> None:
    """Each of two tokens is forbidden behind both: the text ends in an error, as that of plain decoding."""
    options: dict[str, Any] = {"allowed_tokens": [4, 5], "no_repeat_ngram_size": 1, "max_new_tokens": 9}
    for parts in ({"drafter": "none"}, {"verifier": CEEDAcceptance(1)}):
        with pytest.raises(BadRequest, match="they leave no token that may come next"):
            engine().generate(PROMPT, **options, **parts)


def test_a_batch_gives_the_texts_of_each_alone() -> None:
    prompts, judge = [[1], [9, 10, 4], [2, 3], [7]], CEEDAcceptance(2)
    settings: dict[str, Any] = {"max_new_tokens": 25, "verifier": judge, "temperature": 0.9, "seed": 4}
    mixed = results(engine(max_rows=2), prompts, **settings)
    assert [r.tokens for r in mixed] == [engine().generate(p, **settings).tokens for p in prompts]


def test_drafts_whose_passes_nobody_counts_are_verified() -> None:
    own = engine_of(llama())
    for spec in ("none", "ngram(confidence=0)", "jacobi", "lexical", "turns(ngram, ceed)"):
        texts = [
            [r.tokens for r in results(own, PROMPTS, max_new_tokens=20, drafter=spec, verifier=verifier)]
            for verifier in ("ceed(cap=1)", "coupled")
        ]
        assert (texts[0] == texts[1]) == ("ceed" not in spec)


# -- mistakes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "spec", "message"),
    [
        ("verifier", "ceed(cap=0)", r"ceed\(cap=0\): an integer of at least 1 is needed"),
        ("verifier", "ceed(cap=1.5)", r"ceed\(cap=1.5\): an integer"),
        ("drafter", "ceed(block=0)", r"ceed\(block=0\): an integer of at least 1 is needed"),
        ("drafter", "ceed(init=x)", r"ceed\(init='x'\): one of 'text', 'random', 'repeat' is needed"),
    ],
)
def test_knobs_are_checked(kind: str, spec: str, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        engine().generate(PROMPT, **{kind: spec})


def test_the_plan_names_the_loss() -> None:
    found = plan(model(), CEED(), CEEDAcceptance(3), Pipeline())
    assert found.guarantee is Guarantee.LOSSY
    assert found.lines[-1] == "guarantee lossy: bounded by cap"
