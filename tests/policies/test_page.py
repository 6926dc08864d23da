"""The page on policies: its examples run one after another, and its table has the right names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from paceline import registry

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "policies.md").read_text()


def test_examples_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    registry.load()
    monkeypatch.setattr(registry, "_methods", dict(registry._methods))
    names: dict[str, Any] = {"__name__": "example"}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(compile(block, "docs/policies.md", "exec", dont_inherit=True), names)
    assert capsys.readouterr().out.strip() == names["result"].text.strip()


@pytest.mark.parametrize(
    "name",
    [
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "typical",
        "epsilon",
        "eta",
        "repetition",
        "frequency",
        "presence",
        "logit_bias",
        "no_repeat",
        "min_length",
        "banned",
        "allowed",
    ],
)
def test_the_table_names_method_and_argument(name: str) -> None:
    assert f"| `{registry.find('policy', name).argument}` | `{name}` |" in PAGE
