"""A small model of the same vocabulary drafts a chain for the large one.

Each step the draft model first takes in, in one pass, what it has not seen of the text, then runs once a
drafted token. Its scores go through the sequence's own policies, whose state advances along the draft, so a
ban, a penalty or a temperature shapes the draft as it will shape the target's choice. How a token is picked
follows the verifier:

- greedy: the best token;
- coupled: the token that the seed's noise at its output position picks under the draft's law; the target is
  judged with the same noise, so similar laws pick the same token;
- independent (rejection): a draw of its own from the draft's law, which is handed over with the token.

A draft ends before `length` where the chance that all of it is accepted, estimated by the product of its
tokens' probabilities under the draft, falls below `confidence`: more would cost more than it brings. A drawn
token is always submitted and only tokens already drawn decide, so the output's law is not touched.

Papers: Leviathan, Kalman, Matias, "Fast Inference from Transformers via Speculative Decoding", 2023; coupled
draws: Daliri, Musco, Suresh, "Coupling without Communication and Drafter-Invariant Speculative Decoding", 2024.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from paceline.caches import Row, TrieCache
from paceline.drafters.base import Drafter, Outcome
from paceline.drafters.lean import speed_up_small
from paceline.drafters.vocabulary import check_vocabulary
from paceline.errors import BadRequest
from paceline.models.causal import CausalModel
from paceline.models.loading import load_model
from paceline.registry import Guarantee, method
from paceline.sequence import Sequence
from paceline.tree import TokenTree

#: Prompt tokens a pass of the draft model; and more cache rows than will ever be asked for.
CHUNK, ROWS = 512, 1 << 16


@dataclass(eq=False)
class Run:
    """One sequence's draft in the making.

    Attributes:
        sequence, row: whose it is, and its row of the draft model's cache.
        limit: most tokens; lowered to end the draft.
        state: the policy's state after the last token.
        pending: tokens that the draft model has not seen; it is to continue the last of them.
        tokens: the draft.
        laws: `[V]` log-distributions that the tokens were drawn from, where the verifier wants to know.
        log_chance: log of the estimated chance that all of it is accepted.
    """

    sequence: Sequence
    row: Row
    limit: int
    state: tuple[Any, ...]
    pending: list[int]
    tokens: list[int] = field(default_factory=list)
    laws: list[torch.Tensor] = field(default_factory=list)
    log_chance: float = 0.0
    scores: torch.Tensor = field(init=False, repr=False)

    @property
    def draws(self) -> bool:
        """Whether tokens are drawn independently of the target's."""
        return not self.sequence.pipeline.greedy and "shared" not in self.sequence.verifier.judges

    def ask(self, logits: torch.Tensor) -> torch.Tensor:
        """What the host must know to take the next token: (token, its log-probability), or the whole law.

        A policy that fails ends the draft here; it fails again, and is reported, when the target is judged.

        Args:
            logits: `[1, V]` raw scores of the draft model.

        Returns:
            `[2]` or `[V]` float64, still on the device; empty when the draft ends.
        """
        pipeline = self.sequence.pipeline
        try:
            scores = pipeline.transform(logits, [self.state])
        except Exception:
            self.limit = 0
            return logits.new_empty(0, dtype=torch.float64)
        self.scores = scores[0]
        if self.draws:
            return scores[0].log_softmax(-1).double()
        if pipeline.greedy:
            token = scores.argmax(-1)
        else:
            token = self.sequence.chance.couple(scores, [self.sequence.generated + len(self.tokens)])
        return torch.cat([token.double(), scores.log_softmax(-1)[0, token].double()])

    def take(self, answer: torch.Tensor, least: float) -> None:
        """Append the token that the answer to `ask`, now on the host, stands for.

        Args:
            answer: what `ask` returned.
            least: the draft ends where the chance that it holds falls below this.
        """
        sequence = self.sequence
        if self.draws:
            # The key names the step: where a position is drafted again, the draw is another one.
            position, key = sequence.generated + len(self.tokens), ("draft", sequence.generated)
            token = sequence.chance.categorical(answer.exp(), position, key)
            self.laws.append(answer)
            self.log_chance += float(answer[token])
        else:
            first, second = answer.tolist()
            token, self.log_chance = int(first), self.log_chance + second
        self.tokens.append(token)
        self.pending = [token]
        try:
            self.state = sequence.pipeline.advance(self.state, token, self.scores)
            over = token in sequence.end_tokens or sequence.pipeline.is_final(self.state)
        except Exception:
            over = True
        if over or not math.exp(self.log_chance) >= least:
            self.limit = 0

    def tree(self) -> TokenTree:
        laws = torch.stack(self.laws) if self.laws else None
        return TokenTree.chain(self.sequence.tokens[-1], self.tokens, laws)


@method(
    name="draft",
    kind="drafter",
    guarantee=Guarantee.LOSSLESS,
    summary="A smaller model of the same vocabulary drafts, one token a pass.",
    paper="Fast Inference from Transformers via Speculative Decoding",
    year=2023,
    needs={"second_model"},
)
@dataclass(eq=False)
class DraftModel(Drafter):
    """Drafting with a second model.

    Attributes:
        model: a name, folder or Hub id as for `Engine.load`, or a loaded model. It must have the target's
            vocabulary (see `check_vocabulary`). Texts beyond its own context are not drafted for.
        length: most tokens of a draft; by default as many as ride along with the target's pass (`spare`).
        confidence: a draft ends where the chance that it holds falls below this; 0: at `length` tokens only. By
            default the higher, the larger the draft model is beside the target: a token must be worth its pass.
        dtype: of a model given by name; the target's by default.
        fast: replace its forward pass by faster ones where that is possible.
    """

    model: Any = "pocket-code-draft"
    length: int | None = None
    confidence: float | None = None
    dtype: str | None = None
    fast: bool = True
    drafts = frozenset({"shared", "distinct", "replacement", "chains", "fixed"})
    _model: CausalModel = field(init=False, repr=False)
    _cache: TrieCache = field(init=False, repr=False)
    _target_vocabulary: int = field(init=False, repr=False, default=0)
    _spare: int = field(init=False, repr=False, default=1)
    _least: float = field(init=False, repr=False, default=0.0)

    def __post_init__(self) -> None:
        if self.length is not None and self.length < 1:
            raise BadRequest(f"draft(length={self.length}): an integer of at least 1 is needed")
        if self.confidence is not None and not 0 <= self.confidence <= 1:
            raise BadRequest(f"draft(confidence={self.confidence}): a number from 0 to 1 is needed")

    def attach(self, target: CausalModel) -> None:
        if not self._target_vocabulary:
            self._model = self._load(target)
            self._cache = self._model.new_cache(ROWS)
        if self._model.device != target.device:
            raise BadRequest(f"draft: its model is on {self._model.device}, the target on {target.device}")
        check_vocabulary(self._model, target)
        self._target_vocabulary, self._spare = target.vocab_size, target.spare
        self._least = _worthwhile(self._model, target) if self.confidence is None else self.confidence

    def begin(self, sequence: Sequence) -> None:
        sequence.drafts = row = self._cache.allocate()
        whole = (len(sequence.tokens) - 1) // CHUNK * CHUNK
        if whole < self._cache.limit:
            self._model.prefill(self._cache, row, self._readable(sequence.tokens[:whole]), CHUNK)

    def propose(self, sequences: Seq[Sequence], budget: Seq[tuple[int, int]]) -> list[TokenTree]:
        runs = [self._run(sequence, *limits) for sequence, limits in zip(sequences, budget, strict=True)]
        while active := [run for run in runs if len(run.tokens) < run.limit]:
            logits = self._score(active)
            asked = [run.ask(logits[i : i + 1]) for i, run in enumerate(active)]
            # Everything the host needs leaves the device in one transfer.
            host, at = torch.cat(asked).cpu(), 0
            for run, answer in zip(active, asked, strict=True):
                if size := answer.shape[0]:
                    run.take(host[at : at + size], self._least)
                    at += size
        return [run.tree() for run in runs]

    def commit(self, outcomes: Seq[Outcome]) -> None:
        for outcome in outcomes:
            before = len(outcome.sequence.tokens) - len(outcome.tokens)
            self._cache.crop(outcome.sequence.drafts, before + len(outcome.path) - 1)

    def end(self, sequence: Sequence) -> None:
        if sequence.drafts is not None:
            row, sequence.drafts = sequence.drafts, None
            self._cache.free(row)

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

    def _run(self, sequence: Sequence, nodes: int, depth: int) -> Run:
        row, tokens = sequence.drafts, sequence.tokens
        # A step that is tried again finds its own first draft in the cache.
        self._cache.crop(row, len(tokens) - 1)
        room = self._cache.limit - len(tokens) + 1
        limit = min(self.length or self._spare, nodes, depth, room)
        return Run(sequence, row, limit, sequence.state, self._readable(tokens[row.trunk :]))

    def _score(self, runs: list[Run]) -> torch.Tensor:
        """`[len(runs), V]` scores of the tokens that follow; V is the target's vocabulary."""
        trees = [TokenTree.empty(run.pending[-1]) for run in runs]
        pending = [run.pending[:-1] for run in runs]
        logits = self._model.score(self._cache, [run.row for run in runs], trees, pending).logits
        for run in runs:
            self._cache.keep(run.row, range(len(run.pending)))
        missing = self._target_vocabulary - logits.shape[-1]
        # Padding rows of the larger table: never drafted, or never to be drafted.
        return F.pad(logits, (0, missing), value=-torch.inf) if missing else logits

    def _readable(self, tokens: list[int]) -> list[int]:
        """The tokens as the draft model can read them: an id beyond its table becomes its last."""
        last = self._model.vocab_size - 1
        return tokens if last + 1 >= self._target_vocabulary else [min(token, last) for token in tokens]


def _worthwhile(draft: CausalModel, target: CausalModel) -> float:
    """The chance from which a drafted token is worth its pass, when a target's pass brings about two tokens."""
    return min(0.2, 2 * draft.nbytes / target.nbytes) if target.nbytes else 0.2
