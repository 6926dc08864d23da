"""Input-guided aggressive decoding on an encoder-decoder model: the source is the draft of the output."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from models.seq2seq import SUPPORTED, VOCABULARY, build

from paceline import Engine
from paceline.requests import Result
from paceline.testing.running import finish, submit
from tests.drafters.support import engine_of, llama

A, B, C, D, X, Y, END, BOS, LANGUAGE = 21, 22, 23, 24, 25, 26, 27, 28, 29


class Scripted:
    """Runs a model's own pass, for its cache, and says a script whatever stands before."""

    def __init__(self, own: Any, script: Sequence[int], opening: int) -> None:
        self.own, self.kv_dtype, self.script, self.opening, self.calls = own, own.kv_dtype, [*script], opening, 0

    def __call__(
        self,
        tokens: Any,
        positions: torch.Tensor,
        mask: Any,
        cache: Any,
        rows: torch.Tensor | None,
        *args: Any,
        **more: Any,
    ) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
        logits, taps = self.own(tokens, positions, mask, cache, rows, *args, **more)
        self.calls += 1
        at = positions.flatten() if rows is None else positions.flatten()[rows]
        said = [self.script[min(int(place) + 1 - self.opening, len(self.script) - 1)] for place in at]
        return torch.nn.functional.one_hot(torch.tensor(said), VOCABULARY).float() * 9 + 0 * logits, taps


@cache
def module_of(name: str) -> Any:
    config, options, seed = SUPPORTED[name]
    return build(config, {**options, "eos_token_id": END}, seed)


def scripted(output: Sequence[int], drafter: str = "aggressive", name: str = "T5", first: int | None = None) -> Engine:
    module = module_of(name)
    module.generation_config.forced_bos_token_id = first
    engine = Engine.load(module, drafter=drafter)
    model = engine.model
    model.forward = Scripted(model.forward, [*output, END], len(model.opening))
    return engine


def corrected(source: Sequence[int], output: Sequence[int], *args: Any, **options: Any) -> Result:
    engine = scripted(output, *args, **options)
    result = engine.generate([*source], max_new_tokens=50)
    assert result.tokens == [*output, END]
    assert engine.model.forward.calls == result.stats.forward_passes
    return result


def passes(source: Sequence[int], output: Sequence[int], *args: Any, **options: Any) -> int:
    return corrected(source, output, *args, **options).stats.forward_passes


@pytest.mark.parametrize("name", ["T5", "BART"])
def test_the_worked_example(name: str) -> None:
    source = [A, B, C, D, END]
    assert passes(source, [A, X, C, D], "none", name) == 5
    assert passes(source, [A, X, C, D], name=name) == 3
    assert passes(source, [A, X, C, D], "aggressive(resume=nearest)", name) == 2
    assert passes(source, [X, Y], name=name) == 3
    assert passes([A, B, C, D], [A, X, C, D], name=name) == 3, "whether the source ends in an end token or not"


@pytest.mark.parametrize(
    ("before", "behind", "first"),
    [
        ((), (), None),
        ((), (END,), None),  # T5, Marian, Pegasus
        ((BOS,), (END,), BOS),  # BART, which is told to begin with <s>
        ((), (END, LANGUAGE), LANGUAGE + 1),  # mBART
    ],
)
def test_an_unchanged_sentence_takes_one_pass(before: tuple[int, ...], behind: tuple[int, ...], first: int) -> None:
    sentence = [A, B, C, D, A, B]
    result = corrected([*before, *sentence, *behind], sentence, first=first)
    assert result.stats.forward_passes == 1
    assert result.stats.accepted >= len(sentence)


def test_a_bos_token_of_the_models_own_is_copied_too() -> None:
    sentence = [BOS, A, B, C]
    assert passes([*sentence, END], sentence, name="BART") == 1


def test_a_long_sentence_takes_a_pass_for_each_budget_of_nodes() -> None:
    sentence = [*range(3, 20), A, B, C, D, *range(30, 58)]
    engine = scripted(sentence)
    assert engine.decoder.nodes == 31
    result = engine.generate([*sentence, END], max_new_tokens=99)
    assert result.tokens == [*sentence, END]
    assert result.stats.forward_passes == 2


def test_markers_choose_a_part_of_the_source() -> None:
    source = [A, LANGUAGE, B, C, D, Y, A, END]
    marked = corrected(source, [B, C, D], f"aggressive(after={LANGUAGE}, before={Y})")
    assert (marked.stats.forward_passes, marked.stats.drafted) == (1, 3)
    assert passes(source, source[:-1], f"aggressive(after={X})") == 1, "no marker: the whole source"


def test_a_fallback_speaks_where_the_place_is_lost() -> None:
    output = [X, Y, X, Y, X, Y, X, Y]
    assert passes([A, B, END], output, "aggressive(fallback=ngram)") < passes([A, B, END], output)


def test_what_the_encoder_wrote_is_untouched_by_refused_drafts() -> None:
    source, output = [A, B, C, D, A, B, C, END], [A, X, C, Y, A, X, C]
    engine = scripted(output)
    (sequence,) = submit(engine, source, max_new_tokens=50)
    cache, held = engine.decoder.cache, []
    while sequence.finish_reason is None:
        engine.decoder.step()
        layers = [store[0, :, : len(source)] for layer in cache.layers for store in (layer.keys, layer.values)]
        held += [torch.stack(layers).clone()] if sequence.row else []
    assert len(held) > 2
    assert all(torch.equal(held[0], later) for later in held)
    assert sequence.stats.accepted < sequence.stats.drafted


def test_several_sentences_share_passes() -> None:
    """A real model, whose outputs are given to it as sources."""
    engine = Engine.load(module_of("BART"), drafter="none", max_rows=4)
    sources = [[5, 9, 5], [(3 * i) % 17 + 3 for i in range(23)], [7], [11, 12]]
    plain = engine.generate(sources, max_new_tokens=20)
    results = engine.generate(sources, max_new_tokens=20, drafter="aggressive(confidence=0, resume=nearest)")
    assert [result.tokens for result in results] == [result.tokens for result in plain]
    finish(engine)


def test_a_decoder_only_prompt_is_followed_from_its_start() -> None:
    engine = engine_of(llama(), "aggressive(confidence=0)")
    (sequence,) = submit(engine, [5, 6, 7, 8], max_new_tokens=4)
    engine.decoder.step()
    assert sequence.given == [5, 6, 7, 8]
    assert sequence.drafts is not None
    assert sequence.stats.drafted == 3, "as far as it is useful"
    finish(engine)
