"""Making a datastore within bounded memory.

Tokens go to disk as they come. Suffixes are then sorted *bucket by bucket*: the vocabulary is cut into ranges of tokens
that begin at most `bucket` suffixes each; the suffixes of a range are gathered, sorted in memory, and written behind
those of the ranges before. Since suffixes of different ranges are ordered by their first token alone, the buckets one
after the other are the whole order: one array, and one binary search at query time, where independently sorted shards
would each have to be searched. A look-up needs the order of the first `SORTED` tokens only, so a suffix's sort key is
these tokens, packed into few 64-bit integers; prefix doubling, which orders whole suffixes, needs the ranks of all
positions at once and cannot work in pieces.

Memory: about `100 * bucket` bytes. One token that begins more suffixes than that is a bucket of its own, so in practice
the commonest token of the text sets the peak. Time: linear but for the sort, a pass over the tokens a bucket.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from paceline.datastore.store import META, PAD, SORTED, SUFFIXES, TOKENS, VERSION, Meta
from paceline.errors import BadRequest

#: Suffixes sorted at once, and tokens looked at together elsewhere.
BUCKET, CHUNK = 1 << 22, 1 << 22
#: Positions are int32.
MOST = 2**31 - 1 - PAD
Progress = Callable[[float], None]


def build(
    out: str | Path,
    documents: Iterable[Sequence[int]],
    vocabulary: int,
    *,
    model: str = "",
    fingerprint: str = "",
    force: bool = False,
    bucket: int = BUCKET,
    progress: Progress | None = None,
) -> Meta:
    """Write a datastore.

    Args:
        out: its folder, which must not exist.
        documents: token ids of each text; empty ones are left out.
        vocabulary: ids are below it.
        model, fingerprint: of the tokenizer that made the ids (see `paceline.datastore.fingerprint`).
        force: replace an older datastore at `out`.
        bucket: suffixes sorted at once.
        progress: told the share of suffixes sorted, from 0 to 1.

    Raises:
        BadRequest: `out` exists, nothing was given, an id is out of range, or there are 2**31 tokens or more.
    """
    out = Path(out).expanduser()
    if out.exists() and not (force and (out / META).exists()):
        raise BadRequest(f"datastore: {str(out)!r} exists; choose another folder, or replace a datastore with --force")
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise BadRequest(f"datastore: {str(out)!r} cannot be made: {error.strerror}; choose another folder") from error
    try:
        dtype = np.dtype("<u2" if vocabulary < 2**16 else "<i4")
        tokens, count = _write_tokens(partial / TOKENS, documents, vocabulary, dtype)
        _write_suffixes(partial, dtype, vocabulary, bucket, progress or (lambda share: None))
        meta = Meta(VERSION, tokens, count, vocabulary, dtype.str, model, fingerprint)
        meta.write(partial)
        if out.exists():
            shutil.rmtree(out)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return meta


def _write_tokens(path: Path, documents: Iterable[Sequence[int]], vocabulary: int, dtype: np.dtype) -> tuple[int, int]:
    """Numbers of tokens and of documents written."""
    tokens = count = 0
    with path.open("wb") as file:
        for document in documents:
            ids = np.asarray(document, np.int64)
            if not len(ids):
                continue
            if ids.min() < 0 or ids.max() >= vocabulary:
                wrong = ids[(ids < 0) | (ids >= vocabulary)][0]
                raise BadRequest(f"datastore: token id {wrong} is not allowed; ids from 0 to {vocabulary - 1} are")
            tokens, count = tokens + len(ids), count + 1
            if tokens + count > MOST:
                raise BadRequest(f"datastore: more than {MOST} tokens do not fit; build several")
            file.write(np.append(ids, vocabulary).astype(dtype).tobytes())
        file.write(np.full(PAD, vocabulary, dtype).tobytes())
    if not tokens:
        raise BadRequest("datastore: the texts hold no tokens; give files with text")
    return tokens, count


def _write_suffixes(folder: Path, dtype: np.dtype, vocabulary: int, bucket: int, progress: Progress) -> None:
    tokens = np.asarray(np.memmap(folder / TOKENS, dtype, "r"))
    counts, done = np.zeros(vocabulary + 1, np.int64), 0
    for _, chunk in _chunks(tokens):
        counts += np.bincount(chunk, minlength=vocabulary + 1)
    counts = counts[:vocabulary]
    with (folder / SUFFIXES).open("wb") as file:
        for first, last in _ranges(counts, bucket):
            places = [at + np.flatnonzero((chunk >= first) & (chunk < last)) for at, chunk in _chunks(tokens)]
            file.write(_sorted(tokens, np.concatenate(places), vocabulary).astype("<i4").tobytes())
            done += int(counts[first:last].sum())
            progress(done / counts.sum())


def _chunks(tokens: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    for at in range(0, len(tokens), CHUNK):
        yield at, tokens[at : at + CHUNK]


def _ranges(counts: np.ndarray, bucket: int) -> Iterator[tuple[int, int]]:
    """Ranges [first, last) of tokens that begin at most `bucket` suffixes together, or are a single token."""
    ends = np.cumsum(counts)
    first = 0
    while first < len(counts):
        before = ends[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(ends, before + bucket, side="right")))
        if ends[last - 1] > before:
            yield first, last
        first = last


def _sorted(tokens: np.ndarray, places: np.ndarray, vocabulary: int) -> np.ndarray:
    """Places in the order of the `SORTED` tokens from each on; equal ones by place."""
    bits = vocabulary.bit_length()
    packed = 64 // bits
    keys = []
    for start in range(0, SORTED, packed):
        key = np.zeros(len(places), np.uint64)
        for offset in range(start, min(start + packed, SORTED)):
            key <<= np.uint64(bits)
            key |= tokens[places + offset].astype(np.uint64)
        keys.append(key)
    return places[np.lexsort(keys[::-1])]
