"""RAPID: the draft model reads a short, retrieved context, the target the whole one.

The prompt but for its end is cut into chunks of `chunk` tokens. Chunks and the query, the prompt's last `query`
tokens, are embedded; the chunks most similar to the query (cosine, at least `floor`), up to `retrieved` tokens
together, stay in their order in front of it. The draft model writes behind this short prompt and what was generated.
Its passes read few keys, so on long prompts even the target itself, the default, is a fast draft of itself; and a draft
model may have a shorter context than the prompt. The best chunk is kept where none reaches the floor, so retrieval is
never empty.

Embeddings need no training: `tfidf`, the weighted counts of a chunk's tokens and pairs of neighbouring tokens; `table`,
the mean row of the target's embedding table, less the mean of all; or any function from token lists to `[n, d]`.

The published method also moves the target's distribution towards the draft's: that is the verifier `rapid`, and lossy.
Under any other verifier the draft decides nothing but how many tokens a pass brings.

Paper: Chen et al., "Long-Context Inference with Retrieval-Augmented Speculative Decoding", 2025.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from paceline.drafters.base import Outcome
from paceline.drafters.chain import Run
from paceline.drafters.draft import Draft, DraftModel
from paceline.errors import BadRequest
from paceline.models.causal import CausalModel
from paceline.plan import agreed
from paceline.registry import Guarantee, method
from paceline.sequence import Sequence

#: From n lists of tokens to `[n, d]` vectors whose cosines say how alike they are.
Embedder = Callable[[list[list[int]]], np.ndarray]


def tfidf(texts: list[list[int]]) -> np.ndarray:
    """Counts of tokens and of pairs of neighbours, weighted by `log((1 + n) / (1 + texts that have it)) + 1`."""
    terms = [[*((token,) for token in text), *itertools.pairwise(text)] for text in texts]
    number = {term: i for i, term in enumerate(dict.fromkeys(itertools.chain.from_iterable(terms)))}
    counts = np.zeros((len(texts), len(number)))
    for row, found in zip(counts, terms, strict=True):
        np.add.at(row, [number[term] for term in found], 1)
    weights: np.ndarray = counts * (np.log((1 + len(texts)) / (1 + (counts > 0).sum(0))) + 1)
    return weights


@dataclass(eq=False)
class Reading(Draft):
    """A sequence whose draft model reads `short` in place of the prompt."""

    short: list[int] = field(default_factory=list)

    def unread(self, text: list[int], prompt_length: int) -> list[int]:
        """What the draft model has not read of the short context and the text behind the prompt."""
        read = self.row.trunk
        return self.short[read:] + text[prompt_length + max(0, read - len(self.short)) :]


@method(
    name="rapid",
    kind="drafter",
    guarantee=Guarantee.LOSSLESS,
    summary="The draft reads only the parts of a long prompt that resemble its end.",
    paper="Long-Context Inference with Retrieval-Augmented Speculative Decoding",
    year=2025,
)
@dataclass(eq=False)
class Rapid(DraftModel):
    """Drafting on a retrieved context.

    Attributes:
        model, length, dtype, fast, confidence: as for `draft`; model none: the target itself, with a cache of its own.
        chunk: tokens of a chunk.
        query: last tokens of the prompt, which are always read.
        retrieved: most tokens of chunks that are read; where the rest of the prompt has no more, all of it is.
        floor: least cosine of a chunk, -1 to 1.
        embed: "tfidf", "table", or an `Embedder`.
    """

    name: ClassVar[str] = "rapid"
    model: Any = None
    chunk: int = 128
    query: int = 128
    retrieved: int = 1024
    floor: float = 0.1
    embed: Any = "tfidf"
    _table: Any = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tree is not None:
            raise BadRequest(f"rapid(tree={self.tree!s}): it drafts a chain; leave it out")
        if self.model is None and self.dtype is not None:
            raise BadRequest(f"rapid(dtype={self.dtype!r}): it is of a draft model; name one with model=")
        for name in ("chunk", "query", "retrieved"):
            if getattr(self, name) < 1:
                raise BadRequest(f"rapid({name}={getattr(self, name)}): an integer of at least 1 is needed")
        if self.retrieved < self.chunk:
            raise BadRequest(f"rapid(retrieved={self.retrieved}): at least one chunk of {self.chunk} tokens is needed")
        if not -1 <= self.floor <= 1:
            raise BadRequest(f"rapid(floor={self.floor}): a number from -1 to 1 is needed")
        if not callable(self.embed) and self.embed not in ("tfidf", "table"):
            raise BadRequest(f"rapid(embed={self.embed!r}): tfidf, table or a function is needed")

    def attach(self, target: CausalModel) -> None:
        super().attach(target)
        if self.embed == "table" and self._table is None:
            if getattr(target, "module", None) is None:
                raise BadRequest(f"rapid(embed=table): {target.name} has no embedding table; tfidf needs none")
            self._table = target.module.get_input_embeddings().weight.detach()

    def begin(self, sequence: Sequence) -> None:
        short = self.readable(self.shortened(sequence.tokens))
        sequence.drafts = reading = Reading(self._cache.allocate(), short=short)
        reading.row.prompt = len(short)
        whole = (len(short) - 1) // self.prefill_chunk * self.prefill_chunk
        if whole < self._model.limit(len(short)):
            self._model.prefill(self._cache, reading.row, short[:whole], self.prefill_chunk)

    def commit(self, outcomes: Seq[Outcome]) -> None:
        for outcome in outcomes:
            sequence, reading = outcome.sequence, outcome.sequence.drafts
            before = sequence.generated - len(outcome.tokens)
            self._cache.crop(reading.row, len(reading.short) + before + len(outcome.path) - 1)

    def room(self, sequence: Sequence) -> int:
        short = len(sequence.drafts.short)
        return self._model.limit(short) - short - sequence.generated + 1

    def shortened(self, prompt: list[int]) -> list[int]:
        """The chunks worth reading, in order, and the query."""
        start = max(0, len(prompt) - self.query)
        if start <= self.retrieved:
            return list(prompt)
        chunks = [prompt[at : min(at + self.chunk, start)] for at in range(0, start, self.chunk)]
        vectors = self._vectors([*chunks, prompt[start:]])
        vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        alike = vectors[:-1] @ vectors[-1]
        best = np.argsort(-alike, kind="stable")[: self.retrieved // self.chunk]
        kept = sorted(i for i in best.tolist() if alike[i] >= self.floor or i == best[0])
        return [*itertools.chain.from_iterable(chunks[i] for i in kept), *prompt[start:]]

    def _vectors(self, texts: list[list[int]]) -> np.ndarray:
        if callable(self.embed):
            vectors = np.asarray(self.embed(texts), np.float64)
            if vectors.ndim != 2 or len(vectors) != len(texts) or not np.isfinite(vectors).all():
                raise BadRequest(
                    f"rapid(embed=...): it gave an array of shape {vectors.shape} for {len(texts)} texts; "
                    f"[{len(texts)}, d] finite numbers are needed"
                )
            return vectors
        if self.embed == "tfidf":
            return tfidf(texts)
        middle = self._table.float().mean(0)
        return np.stack([(self._table[text].float().mean(0) - middle).cpu().numpy() for text in texts])

    def _run(self, sequence: Sequence, nodes: int, depth: int) -> Run:
        reading: Reading = sequence.drafts
        # A step that is tried again finds its own first draft in the cache.
        self._cache.crop(reading.row, len(reading.short) + sequence.generated - 1)
        limit = min(self.length or self._spare, nodes, depth, self.room(sequence))
        pending, law = reading.unread(sequence.tokens, sequence.prompt_length), agreed(self, sequence.verifier)
        return Run(sequence, reading.row, limit, sequence.state, self.readable(pending), law=law)

    def _load(self, target: CausalModel) -> CausalModel:
        return target if self.model is None else super()._load(target)
