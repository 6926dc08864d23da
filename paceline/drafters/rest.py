"""REST: drafts are retrieved from a datastore of texts, by the longest ending of this text that is known there.

Each step:

1. the longest ending of the text, from `longest` down to `shortest` tokens, that stands in the datastore is found by
   binary search over its sorted suffixes (`paceline.datastore`);
2. up to `hits` of its places are looked at, evenly spread over all, and the `length` tokens after each are read, none
   beyond the end of a document;
3. every prefix of every continuation is counted. A prefix is never rarer than what extends it, so the most frequent
   `nodes` prefixes form a trie: the draft tree.

The chance of a node is taken as `a(s) a(s+1) ... * count / hits`, where `a(s)` is the chance that the next token is
among those found after an ending of s tokens; it starts from assumed values and learns from the text. The tree keeps
its likeliest nodes: `free` of them whatever their chance, which ride along with the target's pass, and more while their
chance is at least `confidence` (0: always `nodes`, as in the paper).

Paper: He, Zhong, Cai, Lee, He, "REST: Retrieval-Based Speculative Decoding", 2023. (Its sampling mode draws one token a
path and keeps the longest match, which favours drafts; here the verifier draws once a node and stays exact.)
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

import numpy as np

from paceline.budgets import check_budgets
from paceline.datastore import Datastore, fingerprint
from paceline.datastore.store import PAD, SORTED
from paceline.drafters.base import Outcome, SequenceDrafter
from paceline.drafters.odds import Odds
from paceline.drafters.vocabulary import tokenizer_of
from paceline.errors import BadRequest
from paceline.models.causal import CausalModel
from paceline.registry import Guarantee, method
from paceline.sequence import Sequence
from paceline.tree import TokenTree

#: Chance that the next token is among those found, by the class of the ending's length.
ODDS = (0.5, 0.5, 0.6, 0.65, 0.75, 0.85, 0.9)


@dataclass
class Notes:
    """What the drafter knows of one sequence, and of the draft being judged: its ending, and the first tokens found."""

    odds: Odds = field(default_factory=lambda: Odds(ODDS))
    span: int = 0
    found: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Prefixes:
    """The trie of some continuations, parents first.

    Attributes:
        tokens, parents, counts, depths: `[N]` int64 of each node; parents count from 1, 0 is the root.
    """

    tokens: np.ndarray
    parents: np.ndarray
    counts: np.ndarray
    depths: np.ndarray

    @classmethod
    def of(cls, rows: np.ndarray, end: int, most: int) -> Prefixes:
        """The trie of `[h, L]` continuations, ended by the token `end`, with at least its `most` commonest nodes."""
        group, seen = np.zeros(len(rows), np.int64), np.empty(0, np.int64)
        levels: list[tuple[np.ndarray, ...]] = []
        size = 0
        for depth in range(rows.shape[1]):
            known = rows[:, depth] != end
            rows, group = rows[known], group[known]
            if not len(rows):
                break
            keys, of_row, counts = np.unique(group * end + rows[:, depth], return_inverse=True, return_counts=True)
            # What is rarer than the `most` commonest so far is not among them, and neither is what lies below it.
            seen = np.append(seen, counts)
            least = np.partition(seen, -most)[-most] if len(seen) > most else 1
            kept = np.sort(np.argsort(-counts, kind="stable")[:most])
            kept = kept[counts[kept] >= least]
            node = np.zeros(len(keys), np.int64)
            node[kept] = size + 1 + np.arange(len(kept))
            parents, tokens = np.divmod(keys[kept], end)
            levels.append((tokens, parents, counts[kept], np.full(len(kept), depth + 1)))
            size += len(kept)
            group = node[of_row]
            rows, group = rows[group > 0], group[group > 0]
        columns = zip(*levels, strict=True) if levels else [[np.empty(0, np.int64)]] * 4
        return cls(*(np.concatenate(column) for column in columns))


@method(
    name="rest",
    kind="drafter",
    guarantee=Guarantee.LOSSLESS,
    summary="Retrieves a tree of what follows the text's last tokens in a datastore.",
    paper="REST: Retrieval-Based Speculative Decoding",
    year=2023,
    needs={"datastore"},
)
@dataclass(eq=False)
class Rest(SequenceDrafter):
    """Retrieval from a datastore.

    Attributes:
        datastore: its folder, made by `paceline datastore build` with the target's tokenizer.
        nodes: most drafted tokens.
        longest, shortest: lengths of the endings that are looked up.
        hits: most places looked at.
        length: tokens read at each, the greatest depth.
        confidence: beyond `free` nodes, the least chance of a node.
        free: nodes drafted whatever their chance; by default as many as cost the target next to nothing.
    """

    datastore: str
    nodes: int = 64
    longest: int = SORTED
    shortest: int = 2
    hits: int = 5000
    length: int = 10
    confidence: float = 0.2
    free: int | None = None
    shape = "tree"
    _store: Datastore = field(init=False, repr=False)
    _spare: int = field(init=False, repr=False, default=0)

    def __post_init__(self) -> None:
        for name, least, most in (
            ("nodes", 1, None),
            ("shortest", 1, SORTED),
            ("longest", 1, SORTED),
            ("hits", 1, None),
            ("length", 1, PAD - SORTED),
            ("free", 0, None),
        ):
            value = getattr(self, name)
            if value is not None and (value < least or (most is not None and value > most)):
                wanted = f"at least {least}" if most is None else f"{least} to {most}"
                raise BadRequest(f"rest({name}={value}): an integer of {wanted} is needed")
        if self.shortest > self.longest:
            raise BadRequest(f"rest(shortest={self.shortest}): at most longest={self.longest} is allowed")
        if not 0 <= self.confidence <= 1:
            raise BadRequest(f"rest(confidence={self.confidence}): a number from 0 to 1 is needed")
        self._store = Datastore(self.datastore)

    def attach(self, target: CausalModel) -> None:
        check_tokens(self._store, target)
        check_budgets("rest", self, target, "nodes", "length")
        self._spare = target.spare

    def begin(self, sequence: Sequence) -> None:
        sequence.drafts = Notes()

    def draft(self, sequence: Sequence, nodes: int, depth: int) -> TokenTree:
        notes: Notes = sequence.drafts
        notes.found = frozenset()
        root, limit = sequence.tokens[-1], min(nodes, self.nodes)
        if not limit or not depth:
            return TokenTree.empty(root)
        span, first, last = self._store.longest(sequence.tokens[-self.longest :], self.shortest, self.longest)
        if not span:
            return TokenTree.empty(root)
        rows = self._store.continuations(span, first, last, self.hits, min(self.length, depth))
        trie = Prefixes.of(rows, self._store.separator, limit)
        notes.span, notes.found = span, frozenset(trie.tokens[trie.depths == 1].tolist())
        covered = np.cumprod([notes.odds(span + i) for i in range(rows.shape[1])])
        return self._tree(root, trie, covered[trie.depths - 1] * trie.counts / len(rows), limit)

    def commit(self, outcomes: Seq[Outcome]) -> None:
        for outcome in outcomes:
            notes: Notes = outcome.sequence.drafts
            if notes.found:
                notes.odds.learn(notes.span, outcome.tokens[0] in notes.found)
            notes.found = frozenset()

    def _tree(self, root: int, trie: Prefixes, odds: np.ndarray, limit: int) -> TokenTree:
        """The likeliest nodes of a trie. Odds never grow downwards, so a stable sort keeps parents before children."""
        order = np.argsort(-odds, kind="stable")[:limit]
        free = self._spare if self.free is None else self.free
        order = order[(np.arange(len(order)) < free) | (odds[order] >= self.confidence)]
        place = np.zeros(len(odds) + 1, np.int64)
        place[order + 1] = 1 + np.arange(len(order))
        return TokenTree(
            np.concatenate([[root], trie.tokens[order]]),
            np.concatenate([[-1], place[trie.parents[order]]]),
            odds=np.concatenate([[1.0], odds[order]]),
            counts=np.concatenate([[trie.counts[trie.depths == 1].sum()], trie.counts[order]]),
        )


def check_tokens(store: Datastore, target: CausalModel) -> None:
    """Refuse a datastore whose ids do not mean the target's tokens. Raises `BadRequest`."""
    meta, tokenizer = store.meta, tokenizer_of(target)
    if meta.fingerprint and tokenizer is not None and (own := fingerprint(tokenizer)) != meta.fingerprint:
        raise BadRequest(
            f"datastore: {str(store.folder)!r} was built with another tokenizer ({meta.model or 'not named'}, "
            f"fingerprint {meta.fingerprint}; {target.name} has {own}); build one with --model {target.name}"
        )
    if meta.vocabulary > target.vocab_size:
        raise BadRequest(
            f"datastore: {str(store.folder)!r} has ids up to {meta.vocabulary - 1}, {target.name} has "
            f"{target.vocab_size} tokens; build one with the target's tokenizer"
        )
