"""What drafters with a model of their own share: loading it, its cache rows, and the tokens it can read."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F

from paceline.caches import Row, TrieCache
from paceline.drafters.base import Drafter
from paceline.drafters.lean import speed_up_small
from paceline.drafters.vocabulary import check_vocabulary
from paceline.errors import BadRequest, Unsupported
from paceline.models.causal import CausalModel
from paceline.models.loading import load_model
from paceline.sequence import Sequence

#: More cache rows than will ever be asked for.
ROWS = 1 << 16


@dataclass(eq=False)
class SecondModel(Drafter):
    """Base of drafters that run a second model over the text.

    Attributes:
        model: a name, folder or Hub id as for `Engine.load`, or a loaded model. It must have the target's
            vocabulary (see `check_vocabulary`). Texts beyond its own context are not drafted for.
        length: most tokens of a draft, or the greatest depth of a tree; by default as many as ride along with the
            target's pass (`spare`).
        dtype: of a model given by name; the target's by default.
        fast: replace its forward pass by faster ones where that is possible.
    """

    #: For messages.
    name: ClassVar[str] = "draft"
    model: Any = "pocket-code-draft"
    length: int | None = None
    dtype: str | None = None
    fast: bool = True
    _model: CausalModel = field(init=False, repr=False)
    _cache: TrieCache = field(init=False, repr=False)
    _target_vocabulary: int = field(init=False, repr=False, default=0)
    _spare: int = field(init=False, repr=False, default=1)

    def __post_init__(self) -> None:
        if self.length is not None and self.length < 1:
            raise BadRequest(f"{self.name}(length={self.length}): an integer of at least 1 is needed")

    @property
    def second(self) -> list[tuple[CausalModel, TrieCache]]:
        return [(self._model, self._cache)] if self._target_vocabulary else []

    def attach(self, target: CausalModel) -> None:
        if not self._target_vocabulary:
            self._model = self._load(target)
            self._cache = self._model.new_cache(ROWS)
        if self.shape not in self._model.offers:
            raise Unsupported(
                f"{self.name}: {self._model.name} cannot draft a {self.shape}: {self._model.lacks.get(self.shape)}; "
                "draft a chain with it"
            )
        if self._model.device != target.device:
            raise BadRequest(f"{self.name}: its model is on {self._model.device}, the target on {target.device}")
        if self._model.opening not in ((), target.opening):
            raise Unsupported(
                f"{self.name}: {self._model.name} has an encoder, and its output begins with the tokens "
                f"{list(self._model.opening)}, that of {target.name} with {list(target.opening)}; both must be equal"
            )
        check_vocabulary(self._model, target)
        self.size_ratio = self._model.nbytes / target.nbytes if target.nbytes else 0.0
        self._target_vocabulary, self._spare = target.vocab_size, target.spare

    def read(self, sequence: Sequence, row: Row) -> None:
        """Take the prompt into a fresh cache row, but for its last stretch."""
        row.prompt = sequence.prompt_length
        whole = (len(sequence.tokens) - 1) // self.prefill_chunk * self.prefill_chunk
        if whole < self._model.limit(row.prompt):
            self._model.prefill(self._cache, row, self.readable(sequence.tokens[:whole]), self.prefill_chunk)

    def room(self, sequence: Sequence) -> int:
        """Tokens that the model can still draft before its context ends; its last one need not be read."""
        return self._model.limit(sequence.prompt_length) - len(sequence.tokens) + 1

    def readable(self, tokens: list[int]) -> list[int]:
        """The tokens as the draft model can read them: an id beyond its table becomes its last."""
        last = self._model.vocab_size - 1
        return tokens if last + 1 >= self._target_vocabulary else [min(token, last) for token in tokens]

    def padded(self, logits: torch.Tensor) -> torch.Tensor:
        """`[n, V]` scores, V that of the target. Padding rows of the larger table are never drafted."""
        missing = self._target_vocabulary - logits.shape[-1]
        return F.pad(logits, (0, missing), value=-torch.inf) if missing else logits

    def _load(self, target: CausalModel) -> CausalModel:
        if isinstance(self.model, CausalModel):
            return self.model
        module = getattr(target, "module", None)
        if self.model is module and module is not None:
            return target
        named = isinstance(self.model, str | Path)
        dtype = self.dtype or (module.dtype if named and module is not None else None)
        loaded = load_model(self.model, dtype=dtype, device=target.device, fast=False)
        if self.fast:
            speed_up_small(loaded)
        return loaded
