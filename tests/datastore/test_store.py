"""Datastores: the sorted suffixes, look-ups, what follows, and mistakes."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paceline.datastore import Datastore, build, fingerprint
from paceline.datastore.store import META, PAD, SORTED, SUFFIXES, TOKENS
from paceline.datastore.texts import documents, find_files
from paceline.errors import BadRequest


def stored(folder: Path, texts: Any, vocabulary: int = 8, **options: Any) -> Datastore:
    build(folder / "store", texts, vocabulary, force=True, **options)
    return Datastore(folder / "store")


def places(store: Datastore, gram: list[int]) -> list[int]:
    first, last = store.find(gram)
    return sorted(store.suffixes[first:last].tolist())


def searched(store: Datastore, gram: list[int]) -> list[int]:
    tokens = store.tokens.tolist()
    return [i for i in range(len(tokens)) if tokens[i : i + len(gram)] == gram]


@pytest.mark.parametrize(("vocabulary", "bucket"), [(2, 10), (5, 1 << 20), (5, 7), (5000, 50), (70_000, 100)])
def test_hits_equal_a_search(tmp_path: Path, vocabulary: int, bucket: int) -> None:
    generator = np.random.default_rng(vocabulary)
    top = min(vocabulary, 6)
    texts = [generator.integers(vocabulary - top, vocabulary, generator.integers(0, 60)) for _ in range(12)]
    store = stored(tmp_path, texts, vocabulary, bucket=bucket)
    assert store.meta.tokens == sum(map(len, texts))
    assert store.tokens.dtype == (np.uint16 if vocabulary < 2**16 else np.int32)
    for _ in range(150):
        gram = generator.integers(vocabulary - top, vocabulary, generator.integers(1, 5)).tolist()
        assert places(store, gram) == searched(store, gram)
        tail = generator.integers(vocabulary - top, vocabulary, 20).tolist()
        known = [n for n in range(1, SORTED + 1) if searched(store, tail[-n:])]
        wanted = max(known, default=0) if known and max(known) >= 2 else 0
        assert store.longest(tail, 2, SORTED)[0] == wanted


def test_suffixes_are_sorted_by_their_first_tokens(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    store = stored(tmp_path, [generator.integers(0, 3, 400) for _ in range(3)], 3, bucket=100)
    keys = [store.tokens[at : at + SORTED].tolist() for at in store.suffixes]
    assert keys == sorted(keys)
    assert len(set(store.suffixes.tolist())) == 1200


def test_what_follows_ends_with_the_document(tmp_path: Path) -> None:
    store = stored(tmp_path, [[1, 2, 3, 4, 5], [1, 2, 6], [7, 1, 2]])
    rows = store.continuations(2, *store.find([1, 2]), 9, 3)
    assert sorted(rows.tolist()) == [[3, 4, 5], [6, 8, 8], [8, 8, 8]]
    assert places(store, [6, 7]) == [], "no gram crosses from one document into the next"


def test_many_hits_are_sampled_evenly(tmp_path: Path) -> None:
    store = stored(tmp_path, [[1, i % 4 + 2] for i in range(400)])
    rows = store.continuations(1, *store.find([1]), 40, 1)
    assert np.bincount(rows[:, 0], minlength=6)[2:].tolist() == [10, 10, 10, 10]


def test_a_hundred_thousand_tokens_are_searched_quickly(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    texts = [generator.zipf(1.4, 1000) % 2000 for _ in range(100)]
    store = stored(tmp_path, texts, 2000, bucket=1 << 15)
    spent = []
    for text in texts:
        began = time.perf_counter()
        span, first, last = store.longest(text[:100].tolist(), 2, SORTED)
        spent.append(time.perf_counter() - began)
        assert span == SORTED
        assert last > first
    assert sorted(spent)[50] < 1e-3


def test_memory_is_bounded_by_the_bucket(tmp_path: Path) -> None:
    from paceline.datastore.build import _ranges

    counts = np.array([0, 5, 5, 30, 1, 1, 0, 8, 0])
    ranges = list(_ranges(counts, 10))
    assert [int(counts[a:b].sum()) for a, b in ranges] == [10, 30, 10]
    assert all(b - a == 1 or counts[a:b].sum() <= 10 for a, b in ranges)


def test_files_become_documents(tmp_path: Path) -> None:
    engine_words = {"a": 0, "b": 1, "c": 2}

    class Letters:
        def __call__(self, texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
            return {"input_ids": [[engine_words[c] for c in text] for text in texts]}

    (tmp_path / "in" / ".hidden").mkdir(parents=True)
    for name, text in (("x.py", "ab"), ("y.txt", "c"), (".hidden/z.py", "c"), ("empty.py", " ")):
        (tmp_path / "in" / name).write_text(text)
    (tmp_path / "in" / "binary.py").write_bytes(b"\xff\x00")
    files = find_files([tmp_path / "in"], "*.py")
    assert [file.name for file in files] == ["binary.py", "empty.py", "x.py"]
    seen: list[Path] = []
    assert list(documents([*files, tmp_path / "in/y.txt"], Letters(), seen.append)) == [[0, 1], [2]]
    assert len(seen) == 4
    with pytest.raises(BadRequest, match="nowhere"):
        find_files([tmp_path / "nowhere"])
    with pytest.raises(BadRequest, match=r"'\*\.rs'"):
        find_files([tmp_path], "*.rs")


@pytest.mark.parametrize(
    ("texts", "vocabulary", "message"),
    [([[1, 9]], 8, "token id 9"), ([[-1]], 8, "token id -1"), ([], 8, "no tokens"), ([[]], 8, "no tokens")],
)
def test_bad_tokens_are_refused_and_nothing_is_left(
    tmp_path: Path, texts: list[list[int]], vocabulary: int, message: str
) -> None:
    with pytest.raises(BadRequest, match=message):
        stored(tmp_path, texts, vocabulary)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    for force in (False, True):
        with pytest.raises(BadRequest, match="precious"):
            build(tmp_path / "precious", [[1]], 8, force=force)
    build(tmp_path / "store", [[1]], 8)
    with pytest.raises(BadRequest, match="exists"):
        build(tmp_path / "store", [[1]], 8)
    assert build(tmp_path / "store", [[1, 2]], 8, force=True).tokens == 2


def test_damage_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="is none"):
        Datastore(tmp_path)
    store = stored(tmp_path, [[1, 2, 3]])
    folder = store.folder
    assert len(store.tokens) == 4 + PAD
    (folder / SUFFIXES).write_bytes(b"\0" * 8)
    with pytest.raises(BadRequest, match="damaged"):
        Datastore(folder)
    (folder / TOKENS).unlink()
    with pytest.raises(BadRequest, match="cannot be read"):
        Datastore(folder)
    meta = json.loads((folder / META).read_text())
    (folder / META).write_text(json.dumps(meta | {"version": 99}))
    with pytest.raises(BadRequest, match="format 99"):
        Datastore(folder)


def test_fingerprints_tell_tokenizers_apart() -> None:
    class Words:
        def __init__(self, words: dict[str, int]) -> None:
            self.words = words

        def get_vocab(self) -> dict[str, int]:
            return self.words

    one = fingerprint(Words({"a": 0, "b": 1}))
    assert one == fingerprint(Words({"b": 1, "a": 0}))
    assert one != fingerprint(Words({"a": 1, "b": 0}))
    assert len(one) == 16
