"""A datastore: where do these tokens stand, and what follows them?

A folder of three files:

- `meta.json`: format version, counts, the tokenizer's fingerprint, and the two types below;
- `tokens.bin`: all documents one after the other, each followed by a separator (an id above the vocabulary), and at the
  end `PAD` separators; little-endian uint16 where the ids fit, else int32;
- `suffixes.bin`: int32, every position that is no separator, sorted by the `SORTED` tokens from there on.

Positions of one n-gram (n <= `SORTED`) therefore are neighbours in `suffixes.bin` and found by binary search. Both
arrays are memory-mapped: a process holds the pages it has looked at, and several processes share them.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from paceline.errors import BadRequest

VERSION = 1
#: Tokens by which suffixes are sorted: the longest n-gram that can be looked up.
SORTED = 16
#: Separators at the end, so that a suffix and its continuation never reach beyond the file.
PAD = 64
META, TOKENS, SUFFIXES = "meta.json", "tokens.bin", "suffixes.bin"


@dataclass(frozen=True)
class Meta:
    """What a datastore is.

    Attributes:
        version: of the format.
        tokens: without separators.
        documents: how many texts.
        vocabulary: ids are below it, and it is the separator.
        dtype: of `tokens.bin`, as NumPy writes it.
        model: whose tokenizer made the ids.
        fingerprint: of that tokenizer; empty when the ids came from elsewhere.
    """

    version: int
    tokens: int
    documents: int
    vocabulary: int
    dtype: str
    model: str
    fingerprint: str

    def write(self, folder: Path) -> None:
        (folder / META).write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Meta:
        """Raises `BadRequest` where there is no datastore, or one of another version."""
        try:
            values = json.loads((folder / META).read_text())
            meta = cls(**values)
        except (OSError, ValueError, TypeError) as error:
            raise BadRequest(
                f"datastore: {str(folder)!r} is none ({error}); make one with `paceline datastore build`"
            ) from error
        if meta.version != VERSION:
            raise BadRequest(
                f"datastore: {str(folder)!r} has format {meta.version}, {VERSION} is needed; build it anew"
            )
        return meta


class Datastore:
    """An open datastore.

    Args:
        folder: made by `paceline.datastore.build`.

    Raises:
        BadRequest: there is none, or it is damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        self.meta = Meta.read(self.folder)
        # Plain views of the maps: slicing a `memmap` costs several times as much.
        self.tokens = np.asarray(self._map(TOKENS, np.dtype(self.meta.dtype)))
        self.suffixes = np.asarray(self._map(SUFFIXES, np.dtype("<i4")))
        wanted = (self.meta.tokens + self.meta.documents + PAD, self.meta.tokens)
        if (len(self.tokens), len(self.suffixes)) != wanted:
            raise BadRequest(f"datastore: {str(folder)!r} is damaged: its files have other sizes than its {META} says")

    @property
    def separator(self) -> int:
        return self.meta.vocabulary

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        return self.tokens.nbytes + self.suffixes.nbytes

    def find(self, gram: list[int]) -> tuple[int, int]:
        """The range of `suffixes` whose positions begin with a gram of at most `SORTED` tokens."""
        first = self._bound(gram, 0, len(self.suffixes), after=False)
        return first, self._bound(gram, first, len(self.suffixes), after=True)

    def longest(self, tail: list[int], low: int, high: int) -> tuple[int, int, int]:
        """The longest ending of `tail`, of `low` to `high` tokens, that is known.

        Returns:
            Its length and its range of `suffixes`; (0, 0, 0) where none is known. An ending is known only if all
            shorter ones are, so lengths are halved, not tried one by one.
        """
        best, high = (0, 0, 0), min(high, len(tail), SORTED)
        while low <= high:
            # The short ones are asked first: that many endings are unknown altogether.
            span = low if not best[0] else (low + high + 1) // 2
            first, last = self.find(tail[-span:])
            if first < last:
                best, low = (span, first, last), span + 1
            else:
                high = span - 1
        return best

    def continuations(self, span: int, first: int, last: int, hits: int, length: int) -> np.ndarray:
        """What follows the n-grams of a range.

        Args:
            span: n.
            first, last: the range of `suffixes`.
            hits: most places looked at; of more, evenly spread ones, for neighbours go on alike.
            length: tokens after each, at most `PAD - SORTED`.

        Returns:
            `[min(hits, last - first), length]` int64; the separator from the end of the document on.
        """
        count = min(hits, last - first)
        chosen = first + np.arange(count, dtype=np.int64) * (last - first) // count
        starts = self.suffixes[chosen].astype(np.int64) + span
        rows = self.tokens[starts[:, None] + np.arange(length)].astype(np.int64)
        over = np.logical_or.accumulate(rows == self.separator, axis=1)
        rows[over] = self.separator
        return rows

    def _bound(self, gram: list[int], low: int, high: int, after: bool) -> int:
        """The first index in [low, high] whose suffix does not sort before the gram (or, `after`, behind its range)."""
        tokens, suffixes, n = self.tokens, self.suffixes, len(gram)
        while low < high:
            middle = (low + high) // 2
            at = suffixes[middle]
            found = tokens[at : at + n].tolist()
            if found < gram or (after and found == gram):
                low = middle + 1
            else:
                high = middle
        return low

    def _map(self, name: str, dtype: np.dtype) -> np.ndarray:
        path = self.folder / name
        try:
            return np.memmap(path, dtype, "r") if path.stat().st_size else np.empty(0, dtype)
        except (OSError, ValueError) as error:
            raise BadRequest(f"datastore: {str(path)!r} cannot be read: {error}") from error
