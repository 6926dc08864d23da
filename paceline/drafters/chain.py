"""Writing a chain of drafted tokens: under which law each token is picked, what the host must know, where it ends.

`Run` is one sequence's draft in the making, whatever scores its tokens; `ChainModel` scores those of several sequences
with a second model, a pass a token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Any

import torch

from paceline.caches import Row
from paceline.chance import Chance, couple_each
from paceline.drafters.second import SecondModel
from paceline.sequence import Sequence
from paceline.tree import TokenTree

#: A chain's tokens are their parents' only children, so each of these says the same of them, but for the shared noise.
CHAIN_LAWS = frozenset({"shared", "distinct", "replacement", "chains", "top", "fixed"})


@dataclass(eq=False)
class Run:
    """One sequence's draft in the making.

    Attributes:
        sequence, row: whose it is, and its row of the draft model's cache.
        limit: most tokens; lowered to end the draft.
        state: the policy's state after the last token.
        pending: tokens that the draft model has not seen; it is to continue the last of them.
        tokens: the draft.
        states: the policy's state after each token.
        laws: `[V]` log-distributions that the tokens were drawn from, where the verifier wants to know.
        odds: the estimated chance that the draft is accepted as far as each token.
        log_chance: log of the estimated chance that all of it is accepted.
        ahead: tokens between the text and the draft.
        law: what the tokens follow, a key of `paceline.plan.LAWS`; by default what the verifier likes best.
        step: output position of the text's next token.
        chance: the sequence's randomness.
    """

    sequence: Sequence
    row: Row
    limit: int
    state: tuple[Any, ...]
    pending: list[int]
    tokens: list[int] = field(default_factory=list)
    states: list[tuple[Any, ...]] = field(default_factory=list)
    laws: list[torch.Tensor] = field(default_factory=list)
    odds: list[float] = field(default_factory=list)
    log_chance: float = 0.0
    ahead: int = 0
    law: str = ""
    step: int = field(init=False)
    chance: Chance = field(init=False)
    scores: torch.Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        sequence = self.sequence
        # A chain can follow any law, hence the verifier's favourite.
        self.law = "fixed" if sequence.pipeline.greedy else self.law or sequence.verifier.judges[0]
        self.step, self.chance = sequence.generated, sequence.chance

    @property
    def draws(self) -> bool:
        """Whether tokens are drawn independently of the target's."""
        return self.law not in ("shared", "fixed")

    def like(self, other: Run) -> bool:
        """Whether its tokens follow the same policy and law as another's."""
        return self.law == other.law and self.sequence.pipeline == other.sequence.pipeline

    @property
    def position(self) -> int:
        """Output position of the next token."""
        return self.step + self.ahead + len(self.tokens)

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
        token = scores.argmax(-1) if self.law == "fixed" else self.chance.couple(scores, [self.position])
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
            token = self.chance.categorical(answer.exp(), self.position, ("draft", self.step))
            self.laws.append(answer)
            self.log_chance += float(answer[token])
        else:
            first, second = answer.tolist()
            token, self.log_chance = int(first), self.log_chance + second
        self.tokens.append(token)
        self.odds.append(math.exp(self.log_chance))
        self.pending = [token]
        try:
            self.state = sequence.pipeline.advance(self.state, token, self.scores)
            over = token in sequence.end_tokens or sequence.pipeline.is_final(self.state)
        except Exception:
            over = True
        self.states.append(self.state)
        if over or not self.odds[-1] >= least:
            self.limit = 0

    def tree(self) -> TokenTree:
        laws = torch.stack(self.laws) if self.laws else None
        return TokenTree.chain(self.sequence.tokens[-1], self.tokens, laws, self.odds)


def ask_all(runs: Seq[Run], logits: torch.Tensor) -> list[torch.Tensor]:
    """What each run's `ask` returns of its row of `logits` `[len(runs), V]`; texts of one policy are asked together."""
    try:
        if len(runs) > 1 and not runs[0].draws and all(run.like(runs[0]) for run in runs):
            return _asked_together(runs, logits)
    except Exception:  # one of them is to blame; asked alone, it ends its own draft
        pass
    return [run.ask(logits[i : i + 1]) for i, run in enumerate(runs)]


def _asked_together(runs: Seq[Run], logits: torch.Tensor) -> list[torch.Tensor]:
    scores = runs[0].sequence.pipeline.transform(logits, [run.state for run in runs])
    for run, row in zip(runs, scores, strict=True):
        run.scores = row
    if runs[0].law == "fixed":
        tokens = scores.argmax(-1)
    else:
        tokens = couple_each(scores, [run.chance for run in runs], [run.position for run in runs])
    chances = scores.log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
    return list(torch.stack([tokens.double(), chances.double()], -1))


class ChainModel(SecondModel):
    """A second model that writes chains."""

    def write(self, runs: Seq[Run], least: float = 0.0) -> None:
        """Finish some drafts, a pass a token; each ends where the chance that it holds falls below `least`."""
        while active := [run for run in runs if len(run.tokens) < run.limit]:
            logits = self._score(active)
            asked = ask_all(active, logits)
            # Everything the host needs leaves the device in one transfer.
            host, at = torch.cat(asked).cpu(), 0
            for run, answer in zip(active, asked, strict=True):
                if size := answer.shape[0]:
                    run.take(host[at : at + size], least)
                    at += size

    def _score(self, runs: list[Run]) -> torch.Tensor:
        """`[len(runs), V]` scores of the tokens that follow; V is the target's vocabulary."""
        trees = [TokenTree.empty(run.pending[-1]) for run in runs]
        pending = [run.pending[:-1] for run in runs]
        logits = self._model.score(self._cache, [run.row for run in runs], trees, pending).logits
        for run in runs:
            self._cache.keep(run.row, range(len(run.pending)))
        return self.padded(logits)
