"""Self-drafts that speak by another law than their target keep the target's law when tokens are drawn from it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest

from paceline import Engine
from paceline.drafters.base import Drafter
from paceline.drafters.del_exit import Del
from paceline.drafters.early_exit import EarlyExit
from paceline.drafters.easyspec import EasySpec
from paceline.drafters.none import NoDraft
from paceline.drafters.rapid import Rapid
from paceline.drafters.self_speculative import SelfSpeculative
from paceline.drafters.swift import Swift
from paceline.policies.base import Pipeline
from paceline.testing.laws import Decoded, decoded, distance
from paceline.verifiers.block import Block
from paceline.verifiers.rejection import Rejection
from tests.views.support import tapering

PROMPT, LENGTH = [1, 2, 1, 2, 1], 3
DRAFTS: dict[str, Callable[[], Drafter]] = {
    "grouped layers": lambda: EasySpec(group=3, length=2, confidence=0.0),
    "grouped layers, not calibrated": lambda: EasySpec(group=3, length=2, confidence=0.0, calibrate=False),
    "early exit": lambda: EarlyExit(layer=1, length=2, confidence=0.0),
    "learned exit": lambda: Del(layer=1, length=2),
    "a view": lambda: SelfSpeculative("skip(attention=2, mlp='1 2 3')", length=2, confidence=0.0),
    "skipped layers": lambda: Swift(skip=0.8, length=2, confidence=0.0, tries=0),
    "a part of the prompt": lambda: Rapid(chunk=1, query=1, retrieved=1, floor=-1.0, length=2, confidence=0.0),
}


@cache
def engine() -> Engine:
    """A model of four tokens in float64; its later layers change enough for drafts to be wrong."""
    return Engine.load(tapering(vocabulary=4).double(), fast=False, drafter="none", max_rows=1)


@cache
def law(name: str, block: bool = False) -> Decoded:
    make = DRAFTS.get(name, NoDraft)
    return decoded(engine(), PROMPT, LENGTH, make, Block() if block else Rejection(), Pipeline((), greedy=False))


@pytest.mark.parametrize("block", [False, True])
@pytest.mark.parametrize("name", DRAFTS)
def test_the_targets_law_is_kept(name: str, block: bool) -> None:
    found = law(name, block)
    assert distance(found.law, law("none").law) < 1e-6
    assert 0 < found.accepted < 0.99 * found.drafted, "some drafts are refused"
