"""Hold-out by content, near-duplicates, shares."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path

import pytest

from paceline.errors import BadRequest
from paceline.training.corpus import (
    Document,
    Source,
    build_corpus,
    cap_shares,
    drop_near_duplicates,
    is_held_out,
    is_readable,
    python_files,
    read_extra,
)

from .conftest import source

LETTERS = str.maketrans("0123456789", "ghijklmnop")


def document(text: str, held_out: bool = False, origin: str = "a") -> Document:
    return Document(origin, "x.py", text, held_out)


def unrelated(seed: int, lines: int = 20) -> str:
    """A file that shares no line with another seed's."""
    words = [hashlib.sha256(f"{seed} {i}".encode()).hexdigest().translate(LETTERS) for i in range(lines)]
    return "".join(f"{word[:20]} = {word[20:35]}()\n" for word in words)


def test_hold_out_depends_on_content_only(tmp_path: Path) -> None:
    texts = [source(i) for i in range(2000)]
    held = [text for text in texts if is_held_out(text)]
    assert 0.01 < len(held) / len(texts) < 0.03
    path = tmp_path / "any_name.py"
    path.write_text(held[0])
    assert is_held_out(path)
    assert is_held_out(held[0].encode())


def test_near_duplicate_is_dropped_and_distinct_file_kept() -> None:
    original = unrelated(1)
    edited = original.replace(original.splitlines()[3], "renamed = 1")
    kept = drop_near_duplicates([document(original), document(edited), document(unrelated(2))])
    assert [d.text for d in kept] == [original, unrelated(2)]


def test_patchwork_of_several_files_is_a_duplicate() -> None:
    first, second = unrelated(1), unrelated(2)
    kept = drop_near_duplicates([document(first), document(second), document(first + second)])
    assert len(kept) == 2


def test_training_copy_of_a_held_out_file_is_dropped() -> None:
    text = unrelated(1)
    kept = drop_near_duplicates([document(text + "last = 1\n"), document(text, held_out=True)])
    assert [d.held_out for d in kept] == [True]


def test_cap_limits_one_source_only() -> None:
    documents = [document("x" * 60, origin=o) for o in ("a", "a", "b", "a", "b")]
    assert [d.source for d in cap_shares(documents, {"a": 130})] == ["a", "a", "b", "b"]


@pytest.mark.parametrize(
    "text",
    [
        "# This file is auto-generated, do not edit.\n" + unrelated(1),
        "TABLE = [" + ", ".join(str(i) for i in range(200)) + "]\n",
        "x = '" + "a" * 2000 + "'\n",
    ],
)
def test_generated_and_literal_files_are_not_readable(text: str) -> None:
    assert not is_readable(text)
    assert is_readable(source(1))


def test_python_files_skip_vendored_tests_and_bad_encodings(tmp_path: Path) -> None:
    for name in ("good.py", "_vendor/copy.py", "pkg/tests/test_it.py", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(source(3))
    (tmp_path / "latin.py").write_bytes(b"# caf\xe9\n" + source(3).encode())
    (tmp_path / "huge.py").write_text(unrelated(1, lines=8000))
    assert [p.name for p in python_files(tmp_path)] == ["good.py"]


def test_build_corpus_separates_and_repeats(tmp_path: Path) -> None:
    for number in range(200):
        (tmp_path / f"m{number}.py").write_text(unrelated(number))
    train, validation = build_corpus([Source("mine", tmp_path, cap=10**9, copies=2)])
    assert validation
    assert all(is_held_out(d.text) for d in validation)
    assert not any(is_held_out(d.text) for d in train)
    assert len(train) == 2 * (200 - len(validation))
    assert train == build_corpus([Source("mine", tmp_path, cap=10**9, copies=2)])[0]


def test_extra_text_formats(tmp_path: Path) -> None:
    record = {"question": "1+1?", "answer": "2\u2028"}
    (tmp_path / "a.jsonl").write_text(json.dumps(record, ensure_ascii=False) + "\n\n")
    (tmp_path / "b.gz").write_bytes(gzip.compress(b"ein Satz\n" * 30))
    texts = [d.text for d in read_extra(tmp_path)]
    assert texts[0] == "Question: 1+1?\nAnswer: 2\u2028\n"
    assert [t.count("\n") for t in texts[1:]] == [20, 10]


@pytest.mark.parametrize("line", ['{"question": "1+1?"}', "[1]", "no JSON"])
def test_extra_text_that_is_none_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "a.jsonl").write_text(f"\n{line}\n")
    with pytest.raises(BadRequest, match=r"a\.jsonl, line 2, is no record with question and answer"):
        list(read_extra(tmp_path))
