"""The documentation's Python examples run."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest

from paceline import Engine, registry
from paceline.commands.methods import markdown

ROOT = Path(__file__).resolve().parents[2]


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


PAGES = ("verifiers", "caches", "trees", "retrieval", "views")


@pytest.mark.parametrize("page", [*(f"docs/{page}.md" for page in PAGES), "README.md"])
def test_examples_run(page: str) -> None:
    for block in blocks(page):
        if "/models/" not in block:
            exec(compile(block, page, "exec"), {"__name__": "example"})


def test_the_table_of_methods_is_current() -> None:
    """Made by `paceline methods --markdown`; paste its output between the marks of the README."""
    text = (ROOT / "README.md").read_text()
    table = text.split("<!-- methods: paceline methods --markdown -->\n")[1].split("<!-- end of methods -->")[0]
    assert table.strip() == markdown(registry.methods())


def test_the_worked_method_is_a_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file that `adding-a-method.md` builds registers, drafts, and leaves the text unchanged."""
    (tmp_path / "bigram_example.py").write_text(blocks("docs/adding-a-method.md")[0])
    monkeypatch.syspath_prepend(tmp_path)
    registry.load()
    monkeypatch.setattr(registry, "_methods", dict(registry._methods))
    importlib.import_module("bigram_example")
    monkeypatch.delitem(sys.modules, "bigram_example")
    engine = Engine.load("pocket-code", dtype="float32", drafter="none")
    prompt = "for i in range(10):\n    print(i)\nfor i in range(10):\n"
    plain = engine.generate(prompt, max_new_tokens=40)
    drafted = engine.generate(prompt, max_new_tokens=40, drafter="bigram(length=4)")
    assert drafted.tokens == plain.tokens
    assert drafted.stats.drafted > 0
    with pytest.raises(ValueError, match="length=0"):
        engine.explain(drafter="bigram(length=0)")
