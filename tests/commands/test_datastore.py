"""`paceline datastore`: from files to drafts."""

from __future__ import annotations

import json
from pathlib import Path

from paceline import Engine

from .conftest import Run


def test_build_info_and_use(run: Run, tiny: str, tmp_path: Path) -> None:
    texts, out = tmp_path / "texts", tmp_path / "store"
    texts.mkdir()
    engine = Engine.load(tiny, drafter="none")
    written = engine.generate("class Stack:", max_new_tokens=40, ignore_eos=True)
    (texts / "a.py").write_text("class Stack:" + written.text)
    (texts / "b.txt").write_text("left out")
    (texts / "c.py").write_bytes(b"\xff")
    built = run("datastore", "build", str(out), str(texts), "-m", tiny, "--pattern", "*.py")
    assert built.exit_code == 0
    assert "1 documents" in built.stdout
    assert built.stderr == "left out: 1 of 2 files: no UTF-8 text in them, or more than 17 MB\n"
    meta = json.loads(run("datastore", "info", str(out), "--json").stdout)
    assert meta["documents"] == 1
    assert meta["tokens"] > 10
    assert f"{meta['tokens']:,}" in run("datastore", "info", str(out)).stdout
    drafted = engine.generate("class Stack:", max_new_tokens=40, ignore_eos=True, drafter=f"rest('{out}')")
    assert drafted.tokens == written.tokens
    assert drafted.stats.drafted > 0


def test_mistakes(run: Run, tiny: str, other: str, tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("def add(a, b):\n    return a + b\n")
    out = str(tmp_path / "store")
    for words, message in (
        (["build", out, str(tmp_path / "nowhere"), "-m", tiny], "nowhere"),
        (["build", out, str(tmp_path), "-m", tiny, "--pattern", "*.rs"], "*.rs"),
        (["build", out, str(tmp_path / "a.py"), "-m", "no-such-model"], "no-such-model"),
        (["info", out], "store"),
    ):
        refused = run("datastore", *words)
        assert refused.exit_code == 2, words
        assert message in refused.stderr
    assert run("datastore", "build", out, str(tmp_path / "a.py"), "-m", tiny).exit_code == 0
    again = run("datastore", "build", out, str(tmp_path / "a.py"), "-m", tiny)
    assert again.exit_code == 2
    assert "--force" in again.stderr
    assert run("datastore", "build", out, str(tmp_path / "a.py"), "-m", tiny, "--force").exit_code == 0
    refused = run("generate", "def", "-m", other, "-d", f"rest('{out}')")
    assert refused.exit_code == 2
    assert "another tokenizer" in refused.stderr
