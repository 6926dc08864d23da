"""A draft model with another tokenizer drafts text, which is spelled in the target's tokens.

The two models share no token, but they share the text. A step

1. follows the text: new tokens are decoded; while they end inside a character nothing is drafted;
2. reads it: the draft model's tokens of the text are kept, and their last few are encoded anew together with what
   was added. The seam is checked: decoded in one piece, kept and new tokens must give the same characters; if not
   (some tokenizers treat the start of a text differently), the whole text is encoded;
3. drafts: the draft model writes its best tokens, as `draft` does;
4. spells: the drafted characters, up to the last whole one, are encoded by the target's tokenizer together with the
   text's last tokens where these come out unchanged, else alone; again the whole must decode to the same characters.

What is drafted are fixed tokens, so every verifier keeps the target's law whatever was drafted. Where text is sampled,
a best guess is all there is: the noise that coupled drafts share belongs to the target's tokens.

Paper: Timor et al., "Accelerating LLM Inference with Lossless Speculative Decoding Algorithms for Heterogeneous
Vocabularies", 2025 (string-level exact match; how far back the text is encoded anew is decided here).
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from itertools import takewhile
from operator import eq
from pathlib import Path
from typing import Any

import torch

from paceline.budgets import check_budgets
from paceline.drafters.base import Drafter, Outcome
from paceline.drafters.draft import DraftModel
from paceline.drafters.lean import speed_up_small
from paceline.drafters.vocabulary import tokenizer_of
from paceline.errors import BadRequest, Unsupported
from paceline.models.causal import CausalModel
from paceline.models.loading import load_model
from paceline.policies.base import Pipeline
from paceline.registry import Guarantee, method
from paceline.sequence import Sequence
from paceline.text import Detokenizer
from paceline.tree import TokenTree
from paceline.verifiers.coupled import Coupled

#: Tokens decoded before a seam, to see the characters behind it as they stand in the text; and how many of the draft
#: model's last tokens are encoded anew.
CONTEXT, ANEW = 8, 16
#: What decoders write for bytes that are no whole character.
BROKEN = "\ufffd"


class Speller:
    """A tokenizer seen as a map between texts and ids, special tokens left out."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def decode(self, ids: Seq[int]) -> str:
        text = self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text)

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def whole(self, text: str) -> list[int]:
        """A text from its start, with the special tokens that the model expects there."""
        return list(self.tokenizer(text)["input_ids"])

    def behind(self, context: Seq[int], ids: Seq[int]) -> str | None:
        """The characters that `ids` add behind `context`; `None` where a character lies across the seam."""
        before, both = self.decode(context), self.decode([*context, *ids])
        return both[len(before) :] if both.startswith(before) and not before.endswith(BROKEN) else None

    def extended(self, ids: list[int], text: str, added: str) -> tuple[int, list[int]]:
        """From where on the ids of `text`, which are `ids` but for the characters `added` at its end, are others."""
        start = max(0, len(ids) - ANEW)
        context = ids[max(0, start - CONTEXT) : start]
        if len(context) == CONTEXT and (last := self.behind(context, ids[start:])) is not None:
            new = self.encode(last + added)
            if self.behind(context, new) == last + added:
                return start, new
        return 0, self.whole(text)

    def continued(self, ids: list[int], added: str) -> list[int]:
        """Ids that add some characters behind the few `ids` before; none where they cannot be spelled."""
        for start in range(len(ids)):
            context = ids[start:]
            joined = self.encode(self.decode(context) + added)
            if joined[: len(context)] == context and self.behind(context, joined[len(context) :]) == added:
                return joined[len(context) :]
        alone = self.encode(added)
        return alone if self.behind(ids, alone) == added else []


@dataclass(eq=False)
class Reading:
    """What the draft model sees of one sequence.

    Attributes:
        own: the text in the draft model's tokens, a sequence of its own.
        text: the text, as far as `taken` tokens of the target go.
        drafted: what the draft model wrote behind it.
    """

    own: Sequence
    text: str = ""
    taken: int = 0
    drafted: list[int] = field(default_factory=list)


@method(
    name="translate",
    kind="drafter",
    guarantee=Guarantee.LOSSLESS,
    summary="A smaller model with another tokenizer drafts text, spelled in the target's tokens.",
    paper="Accelerating LLM Inference with Lossless Speculative Decoding Algorithms for Heterogeneous Vocabularies",
    year=2025,
    needs={"second_model", "tokenizers"},
)
@dataclass(eq=False)
class Translate(Drafter):
    """Drafting with a model of another vocabulary.

    Attributes:
        model: a name, folder or Hub id as for `Engine.load`, or a loaded model; its tokenizer lies beside it.
        length: most tokens the draft model writes; by default as many as ride along with the target's pass.
        confidence: a draft ends where the chance that it holds falls below this.
        dtype: of a model given by name; the target's by default.
    """

    model: Any = "pocket-code-draft"
    length: int | None = None
    confidence: float = 0.2
    dtype: str | None = None
    _loaded: CausalModel = field(init=False, repr=False)
    _inner: DraftModel = field(init=False, repr=False)
    _read: Speller = field(init=False, repr=False)
    _written: Speller = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.length is not None and self.length < 1:
            raise BadRequest(f"translate(length={self.length}): an integer of at least 1 is needed")
        if not 0 <= self.confidence <= 1:
            raise BadRequest(f"translate(confidence={self.confidence}): a number from 0 to 1 is needed")

    def attach(self, target: CausalModel) -> None:
        check_budgets("translate", self, target, "length")
        written = tokenizer_of(target)
        if written is None:
            raise BadRequest(f"translate: the target {target.name} has no tokenizer; give Engine.load(tokenizer=...)")
        self._written = Speller(written)
        if hasattr(self, "_inner"):
            return
        self._loaded = self._load(target)
        if self._loaded.opening:
            raise Unsupported(f"translate: {self._loaded.name} has an encoder; a decoder-only model is needed")
        read = tokenizer_of(self._loaded)
        if read is None:
            raise BadRequest(f"translate: its model {self._loaded.name} has no tokenizer beside it")
        self._read = Speller(read)
        self._inner = DraftModel(self._loaded, self.length or target.spare, confidence=self.confidence)
        self._inner.attach(self._loaded)

    def begin(self, sequence: Sequence) -> None:
        own = Sequence(
            request=sequence.request,
            index=sequence.index,
            tokens=[],
            prompt_length=0,
            pipeline=Pipeline(),
            chance=sequence.chance,
            drafter=self._inner,
            verifier=Coupled(),
            detokenizer=Detokenizer(None, []),
            end_tokens=self._loaded.end_tokens,
        )
        sequence.drafts = Reading(own)

    def propose(self, sequences: Seq[Sequence], budget: Seq[tuple[int, int]]) -> list[TokenTree]:
        trees = [TokenTree.empty(sequence.tokens[-1]) for sequence in sequences]
        ready = [i for i, sequence in enumerate(sequences) if min(budget[i]) and self._follow(sequence)]
        if not ready:
            return trees
        readings = [sequences[i].drafts for i in ready]
        drafts = self._inner.propose([reading.own for reading in readings], [budget[i] for i in ready])
        for i, reading, draft in zip(ready, readings, drafts, strict=True):
            reading.drafted = draft.tokens[1:].tolist()
            spelled = self._spelled(sequences[i], reading.drafted)
            trees[i] = TokenTree.chain(sequences[i].tokens[-1], spelled[: min(budget[i])])
        return trees

    def end(self, sequence: Sequence) -> None:
        if sequence.drafts is not None:
            self._inner.end(sequence.drafts.own)
            sequence.drafts = None

    def _load(self, target: CausalModel) -> CausalModel:
        if isinstance(self.model, CausalModel):
            return self.model
        dtype = self.dtype or (target.module.dtype if isinstance(self.model, str | Path) else None)
        loaded = load_model(self.model, dtype=dtype, device=target.device, fast=False)
        speed_up_small(loaded)
        return loaded

    def _follow(self, sequence: Sequence) -> bool:
        """Bring the draft model's text up to date; false where it ends inside a character, or is empty."""
        reading: Reading = sequence.drafts
        context = sequence.tokens[max(0, reading.taken - CONTEXT) : reading.taken]
        added = self._written.behind(context, sequence.tokens[reading.taken :])
        text = self._written.decode(sequence.tokens) if added is None else reading.text + added
        if text.endswith(BROKEN):
            return False
        own = reading.own.tokens
        start, new = len(own), list[int]()
        if added is None:
            start, new = 0, self._read.whole(text)
        elif added:
            start, new = self._read.extended(own, text, added)
        reading.text, reading.taken = text, len(sequence.tokens)
        self._rewrite(reading, start, new)
        return bool(own)

    def _rewrite(self, reading: Reading, start: int, new: list[int]) -> None:
        """Give the draft model other tokens from `start` on; it keeps what it has read, its right guesses included."""
        own = reading.own
        before, reading.drafted = [*own.tokens[start:], *reading.drafted], []
        own.tokens[start:] = new
        if own.drafts is not None:
            common = sum(1 for _ in takewhile(bool, map(eq, before, new)))
            self._inner.commit([Outcome(own, TokenTree.empty(0), torch.empty(0), [0], new[common:])])
        elif own.tokens:
            self._inner.begin(own)

    def _spelled(self, sequence: Sequence, drafted: list[int]) -> list[int]:
        """The draft model's tokens as the target's, up to the last whole character."""
        added = self._read.behind(sequence.drafts.own.tokens[-CONTEXT:], drafted)
        text = (added or "").rstrip(BROKEN)
        return self._written.continued(sequence.tokens[-CONTEXT:], text) if text else []
