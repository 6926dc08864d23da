"""Greedy text equals transformers' own, token for token, for every architecture and drafter, alone and in batches."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from models.architectures import REFUSED, SIZE, SUPPORTED, VOCABULARY, build
from paceline import Engine
from paceline.errors import Unsupported
from paceline.models.costs import PassCosts
from paceline.sequence import Sequence
from paceline.specs import parse
from paceline.testing.drafters import Oracle
from paceline.testing.methods import drafters
from paceline.testing.running import finish, submit

NEW = 20
#: One architecture meets every drafter at every setting, the others those whose trees or passes are unlike the others'.
THOROUGH = "Llama"
UNLIKE = (
    *("recycling", "draft", "pearl", "lookahead", "quantised", "early_exit", "self_speculative", "swift", "del"),
    *("easyspec", "rapid", "auto"),
)
#: Of different lengths; one is longer than every window, one than a block of the cache.
PROMPTS = [[7], [5, 9, 5, 9, 5], [(3 * i) % 50 + 2 for i in range(23)], [(i * i) % 47 + 3 for i in range(140)]]


@cache
def module_of(name: str) -> Any:
    return build(*SUPPORTED[name])


@cache
def wanted(name: str) -> dict[tuple[int, ...], list[int]]:
    """What transformers generates."""
    module, texts = module_of(name), {}
    for prompt in PROMPTS:
        ids = module.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=NEW, pad_token_id=0)
        texts[tuple(prompt)] = ids[0, len(prompt) :].tolist()
    return texts


@pytest.fixture(scope="module")
def draft(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a draft model."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("draft")
    LlamaForCausalLM(LlamaConfig(**{**SIZE, "num_hidden_layers": 1})).save_pretrained(folder)
    return str(folder)


def texts(sequences: list[Sequence]) -> dict[tuple[int, ...], list[int]]:
    assert [s.error for s in sequences] == [None] * len(sequences)
    return {tuple(s.request.prompt): s.tokens[s.prompt_length :] for s in sequences}


def oracle(engine: Engine, name: str) -> list[Sequence]:
    """All prompts in one batch under the drafter that knows the text and hides it among wrong siblings."""
    knowing = Oracle(wanted(name), VOCABULARY)
    sequences = [s for prompt in PROMPTS for s in submit(engine, prompt, drafter=knowing, max_new_tokens=NEW)]
    finish(engine)
    return sequences


@pytest.mark.parametrize("name", SUPPORTED)
def test_greedy_text_equals_transformers(name: str, draft: str) -> None:
    engine = Engine.load(module_of(name), drafter="none", max_rows=3, nodes=12)
    for prompt in (PROMPTS[0], PROMPTS[3]):
        assert engine.generate(prompt, max_new_tokens=NEW).tokens == wanted(name)[tuple(prompt)]
    specs = drafters(draft, thorough=name == THOROUGH)
    for spec in specs if name == THOROUGH else [spec for spec in specs if parse(spec).name in UNLIKE]:
        try:
            results = engine.generate(PROMPTS, drafter=spec, max_new_tokens=NEW)
        except Unsupported:  # needs layers that can be left out, or more of them
            continue
        assert [r.tokens for r in results] == list(wanted(name).values()), spec


@pytest.mark.parametrize("name", SUPPORTED)
def test_trees_are_really_exercised(name: str) -> None:
    """Every true token stands among wrong siblings; all are accepted, in about a quarter of the passes."""
    engine = Engine.load(module_of(name), drafter="none", max_rows=3, nodes=12)
    sequences = oracle(engine, name)
    assert texts(sequences) == wanted(name)
    for sequence in sequences:
        assert sequence.stats.accepted >= NEW * 2 // 3
        assert sequence.stats.drafted >= 3 * sequence.stats.accepted
        assert sequence.stats.forward_passes <= NEW // 4 + 1


@pytest.mark.parametrize("name", SUPPORTED)
def test_the_faster_forward_pass_writes_the_same_text(name: str) -> None:
    reference = wanted(name)
    engine = Engine.load(build(*SUPPORTED[name]), drafter="none", max_rows=3, nodes=12, fast=True)
    assert texts(oracle(engine, name)) == reference


def test_every_drafter_gets_something_accepted(tmp_path: Path) -> None:
    module_of("Llama").save_pretrained(tmp_path)
    engine = Engine.load(module_of("Llama"), drafter="none")
    deep = Engine.load(build("LlamaConfig", {"num_hidden_layers": 4}), drafter="none")
    # Beside passes as short as theirs drafts may not pay, and then some drafters rightly hold back.
    engine.model.costs = deep.model.costs = PassCosts({1: 1.0, 32: 1.0})
    for spec in drafters(str(tmp_path))[1:]:
        # `auto` tries no model that has to read so much of a batch, but one text's.
        batches = [[prompt] for prompt in PROMPTS] if spec.startswith("auto(copy=none") else [PROMPTS]
        for prompts in batches:
            try:
                results = engine.generate(prompts, drafter=spec, max_new_tokens=40)
            except Unsupported:  # too few layers to leave some out
                results = deep.generate(prompts, drafter=spec, max_new_tokens=40)
            assert sum(r.stats.accepted for r in results) > 0, spec


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_driven_is_refused_with_the_reason(name: str) -> None:
    config, changes, reason = REFUSED[name]
    with pytest.raises(Unsupported, match=reason):
        Engine.load(build(config, changes), drafter="none")
