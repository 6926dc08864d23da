"""The seed alone decides: the same text under every drafter, node budget, batch and cache row, in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from models.architectures import VOCABULARY, build

from paceline import Engine
from paceline.models.fused import FusedDecoder
from paceline.testing.drafters import Hostile, Oracle
from paceline.testing.methods import drafters
from paceline.testing.running import finish, submit

NEW = 24
#: The last one grows over the end of a cache block.
PROMPTS = [[7], [5, 9, 5, 9, 5], [(3 * i) % 50 + 2 for i in range(23)], [11, 12, 13], [i * i % 47 for i in range(120)]]
SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "greedy, penalised": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3},
    "sampled": {"temperature": 0.8, "top_p": 0.9},
    "sampled, penalised": {"temperature": 1.1, "frequency_penalty": 0.5, "min_p": 0.02},
}


def target() -> Any:
    """Enough layers to leave some out."""
    return build("LlamaConfig", {"num_hidden_layers": 4})


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "fast"])
def engine(request: pytest.FixtureRequest) -> Engine:
    return Engine.load(target(), drafter="none", max_rows=8, nodes=7, fast=request.param)


def thorough(engine: Engine, name: str) -> bool:
    """Whether drafters are tried at every setting: once a forward pass, at the hardest settings of it."""
    return name == ("sampled, penalised" if isinstance(engine.model.forward, FusedDecoder) else "sampled")


@pytest.fixture(scope="module")
def draft(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The target itself as a draft model, so that drafts are accepted."""
    folder: Path = tmp_path_factory.mktemp("draft")
    target().save_pretrained(folder)
    return str(folder)


def alone(engine: Engine, options: dict[str, Any]) -> list[list[int]]:
    """Plain decoding, one prompt at a time, each with a seed of its own."""
    return [
        engine.generate(prompt, drafter="none", max_new_tokens=NEW, seed=seed, **options).tokens
        for seed, prompt in enumerate(PROMPTS)
    ]


def together(engine: Engine, options: dict[str, Any], chosen: list[Any]) -> list[list[int]]:
    """All prompts at once, each under the drafter chosen for it."""
    records = []
    for seed, (prompt, drafter) in enumerate(zip(PROMPTS, chosen, strict=True)):
        if isinstance(drafter, str):
            records += engine.submit(engine.request(prompt, drafter=drafter, max_new_tokens=NEW, seed=seed, **options))
        else:
            settings = engine.request(prompt, max_new_tokens=NEW, seed=seed, **options).sampling
            records += submit(engine, prompt, drafter=drafter, **vars(settings))
    finish(engine)
    assert [record.error for record in records] == [None] * len(PROMPTS)
    return [record.tokens[record.prompt_length :] for record in records]


@pytest.mark.parametrize("name", SETTINGS)
def test_the_text_depends_on_the_seed_alone(engine: Engine, draft: str, name: str) -> None:
    options = SETTINGS[name]
    wanted = alone(engine, options)
    oracle = Oracle({tuple(p): text for p, text in zip(PROMPTS, wanted, strict=True)}, VOCABULARY)
    specs: list[Any] = [*drafters(draft, thorough(engine, name)), oracle, Hostile(VOCABULARY, 9)]
    for spec in specs:
        assert together(engine, options, [spec] * len(PROMPTS)) == wanted, spec
    for shift in range(3):  # every prompt under another drafter, in one batch
        chosen = [specs[(3 * i + shift) % len(specs)] for i in range(len(PROMPTS))]
        assert together(engine, options, chosen) == wanted, shift


@pytest.mark.parametrize(("nodes", "rows"), [(0, 8), (1, 1), (3, 2), (15, 8), (40, 2)])
def test_budgets_and_rows_do_not_matter(engine: Engine, draft: str, nodes: int, rows: int) -> None:
    options = SETTINGS["sampled"]
    wanted = alone(engine, options)
    other = Engine(engine.model, drafter="none", max_rows=rows, nodes=nodes)
    for spec in ("recycling", drafters(draft)[-2]):
        assert together(other, options, [spec] * len(PROMPTS)) == wanted, spec


def test_another_seed_is_another_text(engine: Engine) -> None:
    texts = [engine.generate(PROMPTS[1], max_new_tokens=NEW, temperature=0.8, seed=seed).tokens for seed in range(4)]
    assert len({tuple(text) for text in texts}) == 4
    assert texts[0] == engine.generate(PROMPTS[1], max_new_tokens=NEW, temperature=0.8).tokens
