"""Jacobi decoding: the iteration, its guesses, and texts."""

from __future__ import annotations

import pytest

from paceline import Engine
from paceline.drafters.jacobi import Jacobi
from paceline.errors import BadRequest
from paceline.testing import TabularModel, random_table
from tests.drafters.support import PROMPTS, batch, engine_of, llama, start

VOCABULARY = 6


def proposed(drafter: Jacobi, sequence: object, nodes: int = 99, depth: int = 99) -> list[int]:
    tree = drafter.propose([sequence], [(nodes, depth)])[0]  # type: ignore[list-item]
    assert tree.is_chain
    return tree.tokens[1:].tolist()


def best(prefix: list[int]) -> int:
    return int(random_table(VOCABULARY, seed=3)(tuple(prefix)).argmax())


def test_the_next_guess_is_what_the_pass_said() -> None:
    """Against the iteration written out: z_i is the best token after the text and y_1 .. y_{i-1}."""
    model = TabularModel(random_table(VOCABULARY, seed=3), VOCABULARY)
    drafter = Jacobi(block=5)
    engine = Engine(model, drafter=drafter)
    sequence = start(engine, [1, 2, 3], max_new_tokens=20)
    engine.decoder.step()
    for _ in range(6):
        text, guess = list(sequence.tokens), proposed(drafter, sequence)
        assert len(guess) == 4
        said = [best(text + guess[:i]) for i in range(5)]
        right = next((i for i in range(4) if guess[i] != said[i]), 4)
        engine.decoder.step()
        assert sequence.tokens == text + said[: right + 1]
        assert proposed(drafter, sequence)[: 4 - right] == said[right + 1 :]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_pass_solves_for_at_least_one_token(temperature: float) -> None:
    model = TabularModel(random_table(VOCABULARY, seed=3), VOCABULARY, context=64)
    engine = Engine(model, drafter=Jacobi(block=6))
    for seed in range(5):
        settings = {"max_new_tokens": 30, "temperature": temperature, "seed": seed}
        result = engine.generate([1, 2], **settings)
        assert result.tokens == engine.generate([1, 2], drafter="none", **settings).tokens
        assert result.stats.forward_passes <= 30


@pytest.mark.parametrize("init", ["text", "random", "repeat"])
@pytest.mark.parametrize("block", [1, 2, 4, 8])
def test_after_k_passes_at_least_k_tokens_are_greedy(block: int, init: str) -> None:
    """So a block of n tokens never takes more than n passes."""
    for seed in range(3):
        model = TabularModel(random_table(VOCABULARY, seed=seed), VOCABULARY, context=64)
        engine = Engine(model, drafter=Jacobi(block=block, init=init))
        plain = engine.generate([1, 2, 3], max_new_tokens=24, drafter="none").tokens
        sequence = start(engine, [1, 2, 3], max_new_tokens=24)
        for passes in range(1, 25):
            engine.decoder.step()
            assert sequence.generated >= min(passes, 24)
            assert sequence.tokens[3:] == plain[: sequence.generated]


def test_a_solution_is_committed_in_one_pass() -> None:
    """Guesses that are the text already: all of them and one more are kept."""
    model = TabularModel(random_table(VOCABULARY, seed=3), VOCABULARY)
    drafter = Jacobi(block=5)
    engine = Engine(model, drafter=drafter)
    for settings in ({}, {"temperature": 1.0, "seed": 4}):
        text = engine.generate([1, 2, 3], max_new_tokens=12, drafter="none", **settings).tokens
        sequence = start(engine, [1, 2, 3], max_new_tokens=12, **settings)
        engine.decoder.step()
        sequence.drafts = text[sequence.generated :][:4]
        at = sequence.generated
        engine.decoder.step()
        assert sequence.tokens[3:] == text[: at + 5]
        engine.decoder.cancel(sequence.request.id)


@pytest.mark.parametrize(("init", "guess"), [("repeat", [4, 4, 4]), ("text", None), ("random", None)])
def test_fresh_guesses(init: str, guess: list[int] | None) -> None:
    drafter = Jacobi(block=4, init=init)
    drafter.attach(TabularModel(random_table(VOCABULARY), VOCABULARY))
    first = drafter._fill([3, 4], [], 3)
    assert first == drafter._fill([3, 4], [], 3), "equal texts give equal guesses"
    assert len(first) == 3
    assert guess in (None, first)
    assert set(first) <= (set(range(VOCABULARY)) if init == "random" else {3, 4})
    assert drafter._fill([3, 4], [1, 2], 3)[:2] == [1, 2]


def test_a_block_of_one_is_plain_decoding() -> None:
    result = engine_of(llama()).generate(PROMPTS[0], max_new_tokens=20, drafter="jacobi(block=1)")
    assert result.stats.drafted == 0
    assert result.stats.forward_passes == len(result.tokens)


@pytest.mark.parametrize(("knobs", "message"), [({"block": 0}, "block=0"), ({"init": "x"}, "'text', 'random'")])
def test_knobs_are_checked(knobs: dict[str, object], message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        Jacobi(**knobs)  # type: ignore[arg-type]


def test_text_equals_transformers() -> None:
    engine = engine_of(llama())
    for spec in ("jacobi", "jacobi(block=8, init=repeat)", "turns(ngram, jacobi)", "turns(jacobi(block=3), ngram)"):
        assert sum(result.stats.accepted for result in batch(spec, 40, engine)) > 0
