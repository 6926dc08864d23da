"""The documentation's Python examples run."""

from __future__ import annotations

import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from paceline import Engine, registry
from paceline.cli import app
from paceline.commands.methods import markdown

ROOT = Path(__file__).resolve().parents[2]


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


#: Pages that build a method have a test of their own.
OWN = ("adding-a-method.md", "policies.md")
PAGES = sorted(p.name for p in (ROOT / "docs").glob("*.md") if p.name not in OWN and blocks(f"docs/{p.name}"))
#: What a block may name that cannot be had here: folders of the reader, and a model that takes long to make.
ABSENT = ("/models/", "500m")


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.load("pocket-code")


@pytest.mark.parametrize("page", [*(f"docs/{page}" for page in PAGES), "README.md"])
def test_examples_run(page: str, engine: Engine) -> None:
    """Blocks of a page go on from one another."""
    names: dict[str, Any] = {"__name__": "example", "Engine": Engine, "engine": engine, "prompt": "def area(a, b):"}
    for block in blocks(page):
        if not any(name in block for name in ABSENT):
            exec(compile(block, page, "exec"), names)


def commands() -> list[str]:
    """Every `paceline` command line of the documentation, continued lines joined."""
    found: list[str] = []
    for path in [*(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "paceline/pocket/README.md"]:
        text = path.read_text().replace("\\\n", " ")
        found += re.findall(r"^(?: {4})?(?:.* \| )?(paceline (?!COMMAND).*)$", text, re.MULTILINE)
    return sorted({line.split("  #")[0].strip() for line in found if "--help" not in line})


@pytest.mark.parametrize("line", commands())
def test_commands_of_the_documentation_exist(line: str) -> None:
    """With the options that they are shown with; nothing is run."""
    command, context = typer.main.get_command(app), None
    words = shlex.split(line)[1:]
    while True:
        context = command.make_context(command.name or "paceline", words, parent=context)
        rest = [*getattr(context, "_protected_args", ()), *context.args]
        if not rest or not hasattr(command, "resolve_command"):
            break
        _, command, words = command.resolve_command(context, rest)


def test_the_table_of_methods_is_current() -> None:
    """Made by `paceline methods --markdown`; paste its output between the marks of the README."""
    text = (ROOT / "README.md").read_text()
    table = text.split("<!-- methods: paceline methods --markdown -->\n")[1].split("<!-- end of methods -->")[0]
    assert table.strip() == markdown(registry.methods())


def test_the_worked_method_is_a_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file that `adding-a-method.md` builds registers, drafts, and leaves the text unchanged."""
    file = tmp_path / "bigram_example.py"
    file.write_text(blocks("docs/adding-a-method.md")[0])
    style = [sys.executable, "-m", "ruff", "check", "--quiet", "--config", str(ROOT / "pyproject.toml"), str(file)]
    assert subprocess.run(style, check=False).returncode == 0
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
