"""Edits as training text: what changes, what stays, and whose functions they are."""

from __future__ import annotations

import ast
import json
import re
import textwrap
from pathlib import Path

import pytest

import paceline
from paceline.errors import BadRequest
from paceline.training.corpus import Source, build_corpus, is_held_out
from paceline.training.edits import edit_documents
from paceline.training.recipe import Recipe

FILE = textwrap.dedent(
    """
    import os


    def first(directory, pattern=None):
        found = []
        for entry in os.listdir(directory):
            if pattern is None or pattern in entry:
                found.append(entry)
        return found


    class Holder:
        def second(self, limit=3):
            # at most so many
            values = list(range(limit))
            total = sum(values)
            return total, limit
    """
)
HEAD = re.compile(r"# (\w+), first version\n(.*)\n\n\n# \1, second version: (.*?)\n(.*)\n", re.S)


def some(count: int = 40) -> list[str]:
    """Documents of many files that differ, so that every kind of edit is among them."""
    return [document for i in range(count) for document in edit_documents(f"{FILE}\nNUMBER = {i}\n")]


def test_the_second_version_is_the_first_with_the_change_it_names() -> None:
    kinds = set()
    for document in some():
        found = HEAD.fullmatch(document)
        assert found is not None
        _, before, change, after = found.groups()
        assert before != after
        ast.parse(before), ast.parse(after)
        renamed = re.fullmatch(r"`(\w+)` is called `(\w+)`", change)
        if renamed is not None:
            old, new = renamed.groups()
            assert not re.search(rf"\b{new}\b", before)
            assert re.sub(rf"\b{new}\b", old, after) == before
            kinds.add("renamed argument" if re.search(rf"def .*\b{old}\b", before) else "renamed local")
        else:
            assert change == "with type hints"
            assert re.sub(r": \w+( = |(?=[,)]))", lambda m: m[1].strip(), after) == before
            kinds.add("hinted")
    assert kinds == {"renamed argument", "renamed local", "hinted"}


def test_equal_files_give_equal_edits_and_methods_are_dedented() -> None:
    assert some(5) == some(5)
    assert {document.split("\n")[1].split("(")[0] for document in some()} == {"def first", "def second"}
    assert list(edit_documents("def broken(:\n")) == []


def test_edits_take_their_share_of_training_text_only(tmp_path: Path) -> None:
    for i in range(300):
        names = {name: f"{name}_{i:x}" for name in ("first", "second", "Holder", "found", "entry", "values", "total")}
        text = re.sub(r"\b\w+\b", lambda m, names=names: names.get(m[0], m[0]), FILE)
        (tmp_path / f"file{i}.py").write_text(f"{text}\nNUMBER = {i}\n")
    sources = [Source("files", tmp_path, cap=10**9)]
    plain, _ = build_corpus(sources)
    train, held_out = build_corpus(sources, edits=0.2)
    edits = [d for d in train if d.source == "edits"]
    assert sum(d.size for d in edits) == pytest.approx(0.2 * sum(d.size for d in plain), rel=0.05)
    assert sorted(d.text for d in train if d.source != "edits") == sorted(d.text for d in plain)
    assert held_out
    assert all(d.source == "files" and is_held_out(d.text) for d in held_out)
    assert edits
    assert not {d.name for d in held_out} & {d.name for d in edits}


def test_the_form_is_the_workloads() -> None:
    path = Path(paceline.__file__).parent / "evaluation" / "workloads" / "edit.jsonl"
    for line in path.read_text().splitlines():
        record = json.loads(line)
        assert HEAD.fullmatch(record["prompt"] + record["reference"]) is not None


def test_a_share_out_of_range_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=r"edits: 1\.5 is not allowed"):
        Recipe("tiny", tmp_path / "out", tmp_path / "work", edits=1.5)
