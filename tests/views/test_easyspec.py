"""Grouped layers: texts, calibration, and what groups cost in acceptance."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from paceline import Engine
from paceline.drafters.draft import DraftModel
from paceline.drafters.easyspec import EasySpec
from paceline.drafters.lean import speed_up_small
from paceline.errors import BadRequest, Unsupported
from paceline.models.loading import load_model
from tests.drafters.support import PROMPTS, llama, results, start
from tests.views.support import PASSES, engine_of, greedy, model_of

LENGTH: dict[str, Any] = {"max_new_tokens": 16, "ignore_eos": True}


def accepted(engine: Engine, drafter: Any, **options: Any) -> int:
    return sum(result.stats.accepted for result in results(engine, PROMPTS, drafter=drafter, **LENGTH, **options))


@pytest.mark.parametrize("path", PASSES)
@pytest.mark.parametrize("knobs", [{}, {"group": 2, "exact": 1}, {"group": 9, "calibrate": False}])
def test_text_equals_transformers(path: str, knobs: dict[str, Any]) -> None:
    engine = engine_of(path, EasySpec(confidence=0.0, length=4, **knobs), max_rows=3)
    found = results(engine, PROMPTS, max_new_tokens=24)
    assert [result.tokens for result in found] == greedy(24)


def test_groups_of_one_are_the_plain_draft_model() -> None:
    engine = engine_of("module", "none", max_rows=2)
    draft = llama(layers=4, seed=0)
    knobs: dict[str, Any] = {"length": 3, "confidence": 0.0}
    for choice in ({}, {"temperature": 0.8, "verifier": "rejection"}):
        options = {**LENGTH, **choice}
        plain = results(engine, PROMPTS, drafter=DraftModel(draft, fast=False, **knobs), **options)
        grouped = results(engine, PROMPTS, drafter=EasySpec(draft, group=1, **knobs), **options)
        assert [r.tokens for r in grouped] == [r.tokens for r in plain]
        assert [r.stats.accepted_at for r in grouped] == [r.stats.accepted_at for r in plain]


@pytest.mark.parametrize("calibrate", [True, False])
def test_calibration_keeps_the_cache_exact(calibrate: bool) -> None:
    """Without it the error stays, in the tokens that were read in a group, and these become more and more."""
    drafter = EasySpec(group=3, confidence=0.0, length=3, calibrate=calibrate)
    engine = engine_of("module", drafter, max_rows=2)
    sequence = start(engine, PROMPTS[2], **LENGTH)
    errors, wrong = [], []
    while sequence.generated < 12:
        engine.decoder.step()
        row, fresh = sequence.drafts.row, engine.model.new_cache(1)
        engine.model.prefill(fresh, fresh.allocate(), sequence.tokens[: row.trunk])
        pairs = zip(drafter._cache.layers, fresh.layers, strict=True)
        differences = [(a.keys[row.index, :, : row.trunk] - b.keys[0, :, : row.trunk]).abs() for a, b in pairs]
        errors.append(max(float(d.max()) for d in differences))
        wrong.append(int((torch.stack(differences).amax((0, 1, 3)) > 1e-5).sum()))
    assert (max(errors) < 1e-5) == calibrate
    assert wrong == sorted(wrong)
    assert (wrong[-1] > wrong[0]) != calibrate
    assert drafter._cache.live


def test_larger_groups_do_not_accept_more() -> None:
    engine = engine_of("fused", "none", max_rows=4)
    by_group = [accepted(engine, EasySpec(group=group, confidence=0.0, length=4)) for group in (1, 2, 5)]
    assert by_group[0] > 1.05 * by_group[1] > by_group[2]
    assert by_group[-1] > accepted(engine, DraftModel(llama(seed=9), length=4, confidence=0.0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EasySpec(group=0), "group=0"),
        (lambda: EasySpec(exact=-1), "exact=-1"),
        (lambda: EasySpec(length=0), "easyspec.length=0"),
        (lambda: EasySpec(tree="sequoia"), "easyspec.tree=sequoia"),
        (lambda: engine_of("module", EasySpec(exact=6)), "exact=6.*has 5 layers"),
    ],
)
def test_knobs_are_checked(make: Any, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        make()


def test_a_draft_without_views_is_refused() -> None:
    lean = load_model(llama(), fast=False)
    speed_up_small(lean)
    with pytest.raises(Unsupported, match="does not offer views"):
        Engine(model_of("module"), drafter=EasySpec(lean))
