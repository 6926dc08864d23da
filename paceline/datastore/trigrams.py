"""The commonest tri-grams of a datastore, counted from its sorted suffixes."""

from __future__ import annotations

import numpy as np

from paceline.datastore.build import CHUNK
from paceline.datastore.store import Datastore


def successors(store: Datastore, contexts: int, most: int) -> dict[tuple[int, int], dict[int, float]]:
    """What follows the commonest pairs of tokens.

    Args:
        store: an open datastore.
        contexts: how many pairs.
        most: successors a pair, the commonest ones.

    Returns:
        For each pair its successors with their relative frequencies (of all successors), the commonest first; the
        rarest pair first.
    """
    keys, counts = _counted(store)
    base = store.meta.vocabulary
    pairs, first = _runs(keys // base)
    totals = np.add.reduceat(counts, first) if len(keys) else counts
    ends = np.append(first[1:], len(keys))
    found: dict[tuple[int, int], dict[int, float]] = {}
    for i in np.argsort(totals, kind="stable")[-contexts:].tolist():
        own = slice(first[i], ends[i])
        order = np.argsort(-counts[own], kind="stable")[:most]
        shares = counts[own][order] / totals[i]
        a, b = divmod(int(pairs[i]), base)
        found[a, b] = dict(zip((keys[own][order] % base).tolist(), shares.tolist(), strict=True))
    return found


def _counted(store: Datastore) -> tuple[np.ndarray, np.ndarray]:
    """`[k]` int64 tri-grams as numbers of three digits to the base of the vocabulary, ascending, and their counts."""
    base, keys, counts = store.meta.vocabulary, [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for at in range(0, len(store.suffixes), CHUNK):
        places = store.suffixes[at : at + CHUNK].astype(np.int64)
        a, b, c = (store.tokens[places + i].astype(np.int64) for i in range(3))
        whole = (b != base) & (c != base)
        found, starts = _runs(((a * base + b) * base + c)[whole])
        keys.append(found)
        counts.append(np.diff(np.append(starts, whole.sum())))
    # A tri-gram may begin in one chunk and go on in the next.
    merged, starts = _runs(np.concatenate(keys))
    return merged, np.add.reduceat(np.concatenate(counts), starts) if len(merged) else np.concatenate(counts)


def _runs(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct values of ascending keys, as the suffixes' order makes them, and where each begins."""
    starts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1])[: len(keys)])
    return keys[starts], starts
