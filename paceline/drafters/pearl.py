"""PEARL: the draft model writes on while the target scores, so neither waits for the other.

In ordinary drafting the draft model idles during the target's pass, and the target while the draft is written. Here a
thread continues the text behind what was just submitted, `length` tokens a pass of the target, as if all of that would
be accepted. When the pass is judged,

- what continues the late draft's first token is the next draft, ready at once, if everything was accepted and that
  first token is the one that the target chose (the bonus token): the draft grows longer as long as it holds ("post-
  verify");
- otherwise the late draft is forgotten, and the next pass of the target scores the text alone, while the draft model
  writes `length` tokens behind it, of which the first is compared with what the target chooses ("pre-verify").

So a round takes the longer of `length` draft passes and one target pass. By default `length` is where both take equally
long, `length t_D = t_T(length)`; the times are measured when the models are attached. How the late draft's first token
x, drawn from q, meets the target's choice, which has the law p:

- greedy or coupled: it is compared with it; with shared noise they agree as often as submitted tokens would;
- under a verifier that draws: it is tried before the bonus token is drawn, with a coin of its own, accepted with
  probability min(1, p(x) / q(x)), else the bonus is drawn from norm(max(p - q, 0)) (`TokenTree.late`).

(The published code seeds by position, which on our reading gives the coin that accepted a token to the next test as
well, and shifts the law. Here every test has its own.) What the thread drafts depends on the text and the seed, not on
time: with `threads=false` the same tokens are drafted one after the other.

On a single GPU the two models' work is queued in one stream and nothing is gained.

Paper: Liu et al., "PEARL: Parallel Speculative Decoding with Adaptive Draft Length", 2024.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from paceline.budgets import check_budgets
from paceline.caches import Row
from paceline.chance import Chance
from paceline.drafters.chain import CHAIN_LAWS, ChainModel, Run
from paceline.errors import BadRequest
from paceline.models.causal import CausalModel
from paceline.models.costs import PassCosts
from paceline.registry import Guarantee, method
from paceline.sequence import Sequence
from paceline.tree import TokenTree

#: Name of the drafting threads.
THREAD = "paceline-pearl"
#: Default lengths: a late draft's first token is compared alone, and passes over more rows are not measured.
LENGTHS = range(2, 33)


def balanced(target: PassCosts, draft: PassCosts) -> int:
    """The length at which as many passes of the draft take as long as one of the target over so many rows."""
    return min(LENGTHS, key=lambda length: abs(length * draft(1) - target(length)))


@dataclass(eq=False)
class Ahead:
    """What the draft model has written behind a sequence's text.

    Attributes:
        row: its row of the draft model's cache, which has read the text and all of `tokens` but the last.
        chance: the sequence's randomness, for the thread.
        start: length of the text that `tokens` continue.
        tokens: submitted and late drafts.
        laws: `[V]` each, what the tokens were drawn from, if they were drawn.
        states: the policy's state after each of them.
        over: whether the text ends with the last of them.
    """

    row: Row
    chance: Chance
    start: int = 0
    tokens: list[int] = field(default_factory=list)
    laws: list[torch.Tensor] = field(default_factory=list)
    states: list[tuple[Any, ...]] = field(default_factory=list)
    over: bool = False

    def agreed(self, text: Seq[int]) -> int:
        """How many of the tokens the text has confirmed since."""
        since = text[self.start :]
        matching = (i for i, (a, b) in enumerate(zip(self.tokens, since, strict=False)) if a != b)
        return next(matching, min(len(self.tokens), len(since)))

    def submit(self, text: Seq[int], most: int) -> None:
        """Keep, of what the text has not contradicted, the first `most` tokens behind it."""
        known = self.agreed(text)
        holds = known == len(text) - self.start
        part = slice(known, known + most if holds else known)
        self.over = self.over and holds and len(self.tokens) <= known + most
        self.tokens, self.laws, self.states = self.tokens[part], self.laws[part], self.states[part]
        self.start = len(text)

    def extend(self, run: Run) -> None:
        """Append a late draft."""
        self.tokens += run.tokens
        self.laws += run.laws
        self.states += run.states
        self.over = run.limit == 0 and bool(run.tokens)


@method(
    name="pearl",
    kind="drafter",
    guarantee=Guarantee.LOSSLESS,
    summary="A draft model writes on in a thread of its own while the target scores.",
    paper="PEARL: Parallel Speculative Decoding with Adaptive Draft Length",
    year=2024,
    needs={"second_model"},
)
@dataclass(eq=False)
class Pearl(ChainModel):
    """Parallel drafting.

    Attributes:
        model, dtype, fast: as for every `SecondModel`; not the target itself, since both run at a time.
        length: tokens drafted during a pass of the target; by default as many as a pass of the draft fits into one of
            the target, from 2 to 32, which may differ from run to run by what the machine was doing.
        threads: draft in a thread; otherwise the same, one after the other.
    """

    name = "pearl"
    drafts = CHAIN_LAWS
    overlaps = True
    threads: bool = True
    _most: int = field(init=False, repr=False, default=1)
    _thread: threading.Thread | None = field(init=False, repr=False, default=None)
    _late: list[tuple[Ahead, Run]] = field(init=False, repr=False, default_factory=list)
    _error: Exception | None = field(init=False, repr=False, default=None)

    def attach(self, target: CausalModel) -> None:
        check_budgets("pearl", self, target, "length")
        super().attach(target)
        module = getattr(target, "module", None)
        if self._model is target or (module is not None and self._model.module is module):
            raise BadRequest(f"pearl(model={target.name}): that is the target; both run at a time and cannot be one")
        self._most = self.length or balanced(target.costs, self._model.costs)

    def begin(self, sequence: Sequence) -> None:
        self._wait()
        sequence.drafts = Ahead(self._cache.allocate(), sequence.chance.twin())
        self.read(sequence, sequence.drafts.row)

    def propose(self, sequences: Seq[Sequence], budget: Seq[tuple[int, int]]) -> list[TokenTree]:
        self._wait()
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        trees = [self._submitted(sequence, min(limits)) for sequence, limits in zip(sequences, budget, strict=True)]
        self._late = [
            (sequence.drafts, self._run(sequence, depth))
            for sequence, (_, depth) in zip(sequences, budget, strict=True)
        ]
        if any(run.limit > 0 for _, run in self._late):
            if self.threads:
                self._thread = threading.Thread(target=self._draft, name=THREAD, daemon=True)
                self._thread.start()
            else:
                self._draft()
        return trees

    def late(self, sequence: Sequence, tree: TokenTree) -> TokenTree:
        self._wait()
        ahead, first = sequence.drafts, tree.drafted
        return replace(tree, late=(ahead.tokens[first], ahead.laws[first])) if len(ahead.laws) > first else tree

    def end(self, sequence: Sequence) -> None:
        self._wait()
        if sequence.drafts is not None:
            row, sequence.drafts = sequence.drafts.row, None
            self._cache.free(row)
        if not self._cache.live:
            self._error = None  # nobody is left whom it concerns

    def _submitted(self, sequence: Sequence, most: int) -> TokenTree:
        """What was drafted behind the text while its end was scored; the cache keeps what it has read of that."""
        ahead: Ahead = sequence.drafts
        read = ahead.start + ahead.agreed(sequence.tokens)
        ahead.submit(sequence.tokens, most)
        # Beyond what agrees, the row holds another text; and the last token is read again, for what follows it.
        known = read + len(ahead.tokens) if read == len(sequence.tokens) else read
        self._cache.crop(ahead.row, min(known, len(sequence.tokens) + len(ahead.tokens) - 1))
        laws = torch.stack(ahead.laws) if ahead.laws else None
        return TokenTree.chain(sequence.tokens[-1], ahead.tokens, laws)

    def _run(self, sequence: Sequence, depth: int) -> Run:
        """The late draft behind what was submitted."""
        ahead: Ahead = sequence.drafts
        text, count = sequence.tokens + ahead.tokens, len(ahead.tokens)
        # The first token of it can only be compared: a lone one is of no use.
        limit = min(self._most, depth - count, self.room(sequence) - count)
        state = ahead.states[-1] if ahead.states else sequence.state
        limit = 0 if ahead.over or limit < 2 else limit
        run = Run(sequence, ahead.row, limit, state, self.readable(text[ahead.row.trunk :]), ahead=count)
        run.chance = ahead.chance
        return run

    def _draft(self) -> None:
        """Write the late drafts; in the thread nothing else touches the draft model and its cache meanwhile."""
        try:
            with torch.inference_mode():
                self.write([run for _, run in self._late])
        except Exception as error:
            self._error = error

    def _wait(self) -> None:
        """The late drafts are written and noted."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        for ahead, run in self._late if self._error is None else ():
            ahead.extend(run)
        self._late = []
