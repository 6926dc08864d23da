"""Nobody should have to tune a draft: which drafter, how many tokens, or none, decided anew at every step.

*Worth.* Every drafted node `v` comes with the drafter's guess of the chance that it is accepted, corrected by what
became of such guesses in this text (`Trust`); call it `A(v)`. A step that scores the `n` best nodes brings
`E(n) = 1 + sum A(v)` tokens in expectation and takes `R(n)` seconds, where `R` is what a pass of that many rows was
measured to cost on this device (`PassCosts`), plus drafting and judging. `n` maximises `E(n) / R(n)`; `n = 0` is
plain decoding. With several texts in a batch they share the pass, and `n` is common. Where drafts bring less than
asking for them takes, nobody is asked for a while (`Rest`).

*Who drafts.* Drafters that take next to no time (copying, a table) are asked at every step, and the best draft of the
step wins. Drafters that take time (a model) must be chosen before they are asked. They are arms of a bandit: the
index of an arm is its mean rate so far, in tokens a second, times `1 + explore sqrt(log t / n)` after `n` of `t` steps
(UCB1 on discounted means), so a useless arm is tried O(log t) times; it is asked where its index beats the best
free draft. Nothing it drew is passed over: the choice is made before.

The choice depends on measured times. Under the coupled verifier, and with greedy decoding, that cannot change the
text; under verifiers with chances of their own it can change which of the equally distributed texts a seed gives.

Papers: Auer, Cesa-Bianchi, Fischer, "Finite-time Analysis of the Multiarmed Bandit Problem", 2002; cost model: Chen et
al., "Sequoia: Scalable, Robust, and Hardware-aware Speculative Decoding", 2024.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from paceline.drafters.base import Drafter, Outcome
from paceline.drafters.ensemble import Budget, Ensemble, Shared, as_seen, built
from paceline.drafters.expense import PATIENCE, Beside, Luck, Rest, moved
from paceline.drafters.worth import Form, Offer, Trust
from paceline.errors import BadRequest, PacelineError
from paceline.models.causal import CausalModel
from paceline.models.costs import PassCosts
from paceline.registry import Guarantee, method
from paceline.sequence import Sequence
from paceline.tree import TokenTree

clock = time.perf_counter
#: What remembers successors where there is no draft model, by shape.
TABLE = {"tree": "recycling", "chain": "recycling(template='0 00 000 0000')"}
#: A drafter that takes less than this share of a plain pass is free.
FREE = 0.02
#: How many times as fast a batch must be expected to advance with drafts, whose worth is guessed roughly.
MARGIN = 1.15
#: Chance from which a token is drafted beside a prompt, where to score it takes as long as to read a token.
SURE = 0.5
#: Calls until a drafter's time is known: the first is slower than any other, and must not condemn it.
WARM = 3


class Past:
    """What is known of all texts of one temperature: what steps brought in which a member was asked, and all drafts."""

    def __init__(self, members: int = 0) -> None:
        self.forms, self.brought = [Form() for _ in range(members)], Form(PATIENCE, PATIENCE)


@dataclass
class Notes(Shared):
    """What is known of one text.

    Attributes:
        past: what is known of others like it.
        forms, trusts: of each member.
        rest: when nobody is asked.
        steps: steps so far.
        reach: tokens that a paid member is asked for.
        sent, spent: drafted tokens of the last step, and seconds of judging and keeping until before it (None: nobody
            was asked in it).
    """

    past: Past = field(default_factory=Past)
    forms: list[Form] = field(default_factory=list)
    trusts: list[Trust] = field(default_factory=list)
    rest: Rest = field(default_factory=Rest)
    steps: int = 0
    reach: int = 1
    sent: int = 0
    spent: float | None = None


@method(
    name="auto",
    kind="drafter",
    guarantee=Guarantee.LOSSLESS,
    summary="Chooses drafter, draft and its size at every step, by measured costs and what held so far.",
    paper="Finite-time Analysis of the Multiarmed Bandit Problem",
    year=2002,
)
@dataclass(eq=False)
class Auto(Ensemble):
    """The drafter that chooses.

    Attributes:
        copy: a drafter that copies from the text; none: leave it out.
        draft: a drafter that takes time, such as a model; `pocket`: the pocket draft model, if it has the target's
            vocabulary; none: leave it out.
        table: a drafter that remembers successors; `spare`: token recycling, where there is no `draft`; none: leave it
            out.
        most: most drafted tokens a step.
        explore: how far an arm's index lies above its mean; 0: never try what looks worse.
        shape: "tree", or "chain" for verifiers and models that need one.
    """

    copy: Any = "ngram(min_ngram=2, confidence=0.05, length=32)"
    draft: Any = "pocket"
    table: Any = "spare"
    most: int = 31
    explore: float = 0.07
    shape: str = "tree"

    def __post_init__(self) -> None:
        self._beside = Beside()
        self._asking, self._looks = math.inf, 0
        self._luck, self._hoped = Luck(), 0.0
        self._past: dict[float, Past] = {}
        self._sent: tuple[float, int, int] | None = None
        self._common, self._node, self._live = self.most, 0.0, 0
        if self.most < 1:
            raise BadRequest(f"auto(most={self.most}): an integer of at least 1 is needed")
        if not self.explore >= 0:
            raise BadRequest(f"auto(explore={self.explore}): a number of at least 0 is needed")
        if self.shape not in ("tree", "chain"):
            raise BadRequest(f"auto(shape={self.shape!r}): 'tree' or 'chain' is allowed")
        own = [spec for spec in (self.copy, self.table, self.draft) if spec not in (None, "spare", "pocket")]
        self.members = tuple(built(spec) for spec in own)
        wrong = [type(m).__name__ for m in self.members if m.shape == "tree" and self.shape == "chain"]
        if wrong:
            raise BadRequest(f"auto(shape='chain'): {wrong[0]} as configured drafts trees")

    def attach(self, target: CausalModel) -> None:
        super().attach(target)
        pocket = _pocket_draft(target) if self.draft == "pocket" else None
        if pocket is not None:
            self.members += (pocket,)
        elif self.table == "spare" and self.draft in (None, "pocket"):
            table = built(TABLE[self.shape])
            table.attach(target)
            self.members += (table,)
        self._costs: PassCosts = target.costs
        self._spare = target.spare
        self._seconds: list[float] = [0.0] * len(self.members)
        self._calls = [0] * len(self.members)

    def shared(self) -> Notes:
        count = len(self.members)
        return Notes([None] * count, [None] * count, trusts=[Trust() for _ in range(count)], reach=self._spare)

    def begin(self, sequence: Sequence) -> None:
        self._live += 1  # `end` follows also where a member fails to begin
        super().begin(sequence)
        notes: Notes = sequence.drafts
        notes.past = self._past.setdefault(round(sequence.request.sampling.temperature, 1), Past(len(self.members)))
        notes.forms, notes.rest = [form.hint() for form in notes.past.forms], Rest(notes.past.brought.hint(PATIENCE))

    def end(self, sequence: Sequence) -> None:
        self._live -= sequence.drafts is not None
        super().end(sequence)

    def propose(self, sequences: Seq[Sequence], budget: Seq[Budget]) -> list[TokenTree]:
        began, rows = clock(), len(sequences)
        asked = [s for s in sequences if not s.drafts.rest.begins()]
        if rows == 1:
            self._time_judging(sequences[0])
        if asked:
            limits = {s: (min(nodes, self.most), depth) for s, (nodes, depth) in zip(sequences, budget, strict=True)}
            best = {s: Offer.none(s.tokens[-1]) for s in sequences}
            self._ask_all(asked, limits, best, rows)
            first = rows == 1 and sequences[0].uncached > 1 + self._spare  # more of a prompt than rides along
            offers = list(best.values())
            self._common = self._beside_prompt(offers[0]) if first else self._width(offers, rows)
            trees = [best[s].cut(self._common) for s in sequences]
            self._hoped = sum(best[s].gains[tree.drafted] - 1 for s, tree in zip(sequences, trees, strict=True))
            spent, self._looks = (clock() - began) / len(asked), self._looks + 1
            self._asking = moved(self._asking, spent) if self._looks > WARM else min(spent, self._asking)
        else:
            trees = [TokenTree.empty(s.tokens[-1]) for s in sequences]
        for s, tree in zip(sequences, trees, strict=True):
            s.drafts.sent = tree.drafted
        total = sum(len(tree) for tree in trees)
        self._sent, self._node = (clock(), rows, total), 0.0
        if total > rows:
            self._node = (self._costs(total) - self._costs(rows)) / (total - rows)
        return trees

    def _ask_all(
        self, sequences: list[Sequence], limits: dict[Sequence, Budget], best: dict[Sequence, Offer], rows: int
    ) -> None:
        """Ask every member that may have something; `best` becomes the best drafts."""
        paid = [i for i, seconds in enumerate(self._seconds) if seconds > FREE * self._costs(1)]
        for member in range(len(self.members)):
            if member not in paid:
                self._offers(member, sequences, limits, best, rows)
        for member in paid:
            # What nobody knows yet, one text finds out for all.
            if hopeful := [s for s in sequences if self._hopeful(member, s, best[s], max(rows, self._live))]:
                known = self._calls[member] >= WARM
                self._offers(member, hopeful if known else hopeful[:1], limits, best, rows)

    def peek(self, sequence: Sequence, tree: TokenTree, logits: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if not sequence.drafts.rest.now:
            return super().peek(sequence, tree, logits, scores)
        return logits.new_empty(0)

    def observe(self, outcomes: Seq[Outcome]) -> None:
        super().observe([outcome for outcome in outcomes if not outcome.sequence.drafts.rest.now])

    def commit(self, outcomes: Seq[Outcome]) -> None:
        if self._time_step() and self._node:
            self._luck.add(self._hoped, sum(len(outcome.path) - 1 for outcome in outcomes))
        for outcome in outcomes:
            notes: Notes = outcome.sequence.drafts
            notes.steps += 1
            if notes.rest.now:
                continue
            for i, (tree, trust) in enumerate(zip(notes.trees, notes.trusts, strict=True)):
                if tree is not None:  # it was asked, so its time was spent, whether or not its draft was taken
                    seen = as_seen(outcome, tree)
                    trust.learn(seen.tree, seen.path)
                    for form in (notes.forms[i], notes.past.forms[i]):
                        form.add(len(outcome.tokens), outcome.tree.drafted)
            accepted = len(outcome.path) - 1
            if self._looks >= WARM:
                plain = self._plain(len(outcomes))
                saved = accepted - outcome.tree.drafted * self._node / plain
                notes.rest.asked(saved, self._asking, plain)
                notes.past.brought.add(saved, 0)
            held = accepted == outcome.tree.drafted
            notes.reach = min(self.most, notes.reach + 2) if held else max(self._spare, notes.reach - 1)
        super().commit(outcomes)

    def _plain(self, texts: int) -> float:
        """Seconds of a step without drafts, for each of so many texts."""
        return float(self._costs(texts) + self._beside(texts)) / texts

    def _time_step(self) -> bool:
        """Learn what the step of a batch that ends took beyond its pass; whether it was one."""
        several = self._sent is not None and self._sent[1] > 1
        if self._sent is not None and several:
            sent, texts, nodes = self._sent
            self._beside.batch(texts, nodes > texts, max(0.0, clock() - sent - self._costs(nodes)))
        self._sent = None
        return several

    def _time_judging(self, sequence: Sequence) -> None:
        """Learn what the last step of a single text took beside its pass."""
        notes: Notes = sequence.drafts
        if notes.rest.now:
            notes.spent = None
            return
        spent = sequence.stats.judge + sequence.stats.keep
        if notes.spent is not None and notes.steps > 1:  # the first one is the prompt's
            self._beside.single(notes.sent, spent - notes.spent)
        notes.spent = spent

    def _offers(
        self,
        member: int,
        sequences: list[Sequence],
        limits: dict[Sequence, Budget],
        best: dict[Sequence, Offer],
        rows: int,
    ) -> None:
        """Ask a member; its draft replaces a worse one."""
        began = clock()
        trees = self.ask(member, sequences, [self._asked(member, s, limits[s], rows) for s in sequences])
        spent = (clock() - began) / len(sequences)
        known = self._seconds[member]
        self._calls[member] += 1
        if self._calls[member] <= WARM:
            self._seconds[member] = min(spent, known or spent)
        else:
            self._seconds[member] = known + 0.1 * (spent - known)
        for s, tree in zip(sequences, trees, strict=True):
            offer = Offer.of(tree, s.drafts.trusts[member].corrected(tree))
            # What is paid already does not count; drawn tokens must be judged.
            if tree.draws is not None or self._rate(offer, rows) > self._rate(best[s], rows):
                best[s] = offer

    def _asked(self, member: int, sequence: Sequence, limits: Budget, rows: int) -> Budget:
        nodes, depth = limits
        if self._seconds[member] <= FREE * self._costs(1):
            return limits
        # In a batch drafts are short, and what is cut off again should not be drafted.
        return min(nodes, sequence.drafts.reach, self._common + 2 if rows > 1 else nodes), depth

    def _hopeful(self, member: int, sequence: Sequence, offer: Offer, rows: int) -> bool:
        """Whether a member that takes time may beat the best draft so far."""
        if offer.tree.draws is not None:
            return False
        own: Form = sequence.drafts.forms[member]
        form = own if own.steps else sequence.drafts.past.forms[member].hint()
        if not form.steps or self._calls[member] < WARM:
            return True
        tokens, nodes = form.tokens / form.steps, form.nodes / form.steps
        # In tokens, up to as many as a draft may bring: one that failed at first would never be asked again otherwise.
        # The others in a batch wait meanwhile.
        doubt = math.sqrt(math.log(1 + sequence.drafts.steps) / form.steps)
        bonus = self.explore * (1 + nodes) * doubt / rows
        spent = rows * self._seconds[member]
        step = self._costs(round(rows * (1 + nodes))) + self._beside(rows, nodes)
        whole = float((tokens + bonus) / (step + spent))
        needed = self._rate(offer, rows) * (MARGIN if rows > 1 else 1.0)
        return max(whole, self._shorter(tokens, nodes, rows, spent)) > needed

    def _shorter(self, tokens: float, nodes: float, rows: int, spent: float) -> float:
        """Tokens a second of drafts shorter than those so far, for batches, where each drafted token costs more."""
        if rows == 1:
            return 0.0
        sizes, chance = np.arange(1, max(2, round(nodes) + 1)), 1 - 1 / max(tokens, 1.0)
        expected = np.cumsum(chance ** np.arange(len(sizes) + 1))[1:]
        seconds = self._costs.each(rows * (1 + sizes)) + self._beside(rows, sizes) + spent
        return float((expected / seconds).max())

    def _rate(self, offer: Offer, rows: int) -> float:
        """Expected tokens a second of one text at the best size of its draft."""
        if not offer.tree.drafted:
            return 1 / (rows * self._plain(rows))
        return float(self._rates(offer.gains, rows).max())

    def _width(self, offers: list[Offer], rows: int) -> int:
        """The common size of drafts with which all texts together advance fastest."""
        widest = max(len(offer.order) for offer in offers)
        if not widest:
            return 0
        gains = sum(np.pad(offer.gains, (0, widest - len(offer.order)), mode="edge") for offer in offers)
        if rows > 1:
            gains = rows + self._luck.share * (np.asarray(gains) - rows)
        rates = self._rates(np.asarray(gains), rows)
        return int(rates.argmax()) if rows == 1 or rates.max() > MARGIN * rates[0] else 0

    def _beside_prompt(self, offer: Offer) -> int:
        """Nodes that are worth their time beside a prompt; in a batch, where a token brings less, none are."""
        return offer.sure(SURE) if self._live == 1 else 0

    def _rates(self, gains: np.ndarray, rows: int) -> np.ndarray:
        """Tokens a second of drafts of 0, 1, ... tokens that bring `gains`, each of `rows` texts having one."""
        nodes = np.arange(len(gains))
        seconds = self._costs.each(rows * (1 + nodes)) + self._beside(rows, nodes)
        return np.asarray(gains / seconds)


def _pocket_draft(target: CausalModel) -> Drafter | None:
    """The pocket draft model, if it can serve this target."""
    drafter = built("draft")
    try:
        drafter.attach(target)
    except PacelineError:
        return None
    return drafter
