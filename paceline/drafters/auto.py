"""Nobody should have to tune a draft: which drafter, how many tokens, or none, decided anew at every step.

*Worth.* Every drafted node `v` comes with the drafter's guess of the chance that it is accepted, corrected by what
became of such guesses in this text and others (`Trust`); call it `A(v)`. A step that scores the `n` best nodes brings
`E(n) = 1 + sum A(v)` tokens in expectation and takes `R(n)` seconds, where `R` is what a pass of that many rows was
measured to cost on this device (`PassCosts`), plus drafting and judging. `n` maximises `E(n) / R(n)`; `n = 0` is
plain decoding. Several texts in a batch share the pass, and the best nodes of all are scored (`Portions`). Where drafts
bring less than asking for them takes, nobody is asked for a while, unless the text is seen to repeat itself (`Rest`). A
batch's texts are asked for together, where that pays for all, or no more is lost by it than may be (`Purse`).

*Who drafts.* Drafters that take next to no time (copying, a table) are asked at every step, and the best draft of the
step wins. Drafters that take time (a model) must be chosen before they are asked. They are arms of a `Bandit`, asked
where their index beats the best free draft. Nothing one drew is passed over: the choice is made before.

The choice depends on measured times. Under the coupled verifier, and with greedy decoding, that cannot change the
text; under verifiers with chances of their own it can change which of the equally distributed texts a seed gives.

Papers: Auer, Cesa-Bianchi, Fischer, "Finite-time Analysis of the Multiarmed Bandit Problem", 2002; cost model: Chen et
al., "Sequoia: Scalable, Robust, and Hardware-aware Speculative Decoding", 2024.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from typing import Any

import torch

from paceline.budgets import check_budgets
from paceline.drafters.bandit import Bandit
from paceline.drafters.base import Drafter, Outcome
from paceline.drafters.ensemble import Budget, Ensemble, built
from paceline.drafters.expense import WORTH, Mean
from paceline.drafters.notes import Notes, Past
from paceline.drafters.prices import Prices, clock
from paceline.drafters.purse import Purse, copied
from paceline.drafters.worth import Offer, Seen
from paceline.errors import BadRequest, PacelineError
from paceline.models.causal import CausalModel
from paceline.registry import Guarantee, method
from paceline.sequence import Sequence
from paceline.tree import TokenTree

#: What remembers successors where there is no draft model, by shape.
TABLE = {"tree": "recycling", "chain": "recycling(template='0 00 000 0000')"}
#: How many times as much as a free drafter may take a dear one takes.
DEAR = 5
#: By how much drafts that all hold must make a batch's steps faster, so that it is worth finding out whether they do.
CRAMPED = 0.15
#: Chance from which a token is drafted beside a prompt, where to score it takes as long as to read a token.
SURE = 0.5


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
        self._alone, self._choosing, self._live, self._texts = Mean(), 0.0, 0, 0
        self._past: dict[float, Past] = {}
        self._purse = Purse()
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
        check_budgets("auto", self, target, "most")
        super().attach(target)
        pocket = _pocket_draft(target) if self.draft == "pocket" else None
        if pocket is not None:
            self.members += (pocket,)
        elif self.table == "spare" and self.draft in (None, "pocket"):
            table = built(TABLE[self.shape])
            table.attach(target)
            self.members += (table,)
        self._prices, self._spare = Prices(target.costs, not target.ragged), target.spare
        self._bandit = Bandit(self._prices, [member.size_ratio for member in self.members], self.explore, self._purse)

    def shared(self) -> Notes:
        count = len(self.members)
        return Notes([None] * count, [None] * count, reach=self._spare)

    def begin(self, sequence: Sequence) -> None:
        self._live += 1  # `end` follows also where a member fails to begin
        super().begin(sequence)
        past = self._past.setdefault(round(sequence.request.sampling.temperature, 1), Past(len(self.members)))
        sequence.drafts.start(past, sequence.pipeline.greedy)

    def end(self, sequence: Sequence) -> None:
        self._live -= sequence.drafts is not None
        super().end(sequence)

    def propose(self, sequences: Seq[Sequence], budget: Seq[Budget]) -> list[TokenTree]:
        began, self._texts = clock(), len(sequences)
        rows = self._texts
        beside = rows == 1 and sequences[0].uncached > 1 + self._spare  # more of a prompt than rides along
        asked = self._willing(sequences[0], beside) if rows == 1 else self._willing_of(sequences)
        if rows == 1:
            self._time_judging(sequences[0])
        if not asked:
            if rows > 1 and not self._purse.paused:
                self._prices.begin([1] * rows)
            return [TokenTree.empty(s.tokens[-1]) for s in sequences]
        limits = {s: (min(nodes, self.most), depth) for s, (nodes, depth) in zip(sequences, budget, strict=True)}
        for s in asked:
            s.drafts.paid = 0.0
        best = {s: Offer.none(s.tokens[-1]) for s in asked}
        dear = self._ask_all(asked, limits, best, rows)
        offers, shares = [best[s] for s in asked], [s.drafts.past.luck.share for s in asked]
        # In a batch, where a token brings less, nothing is drafted beside a prompt.
        sizes = [offers[0].sure(SURE)] if beside else self._prices.sizes(offers, shares, rows - len(asked))
        trees = {s: self._cut(s, offer, size) for s, offer, size in zip(asked, offers, sizes, strict=True)}
        proposed = [trees.get(s) or TokenTree.empty(s.tokens[-1]) for s in sequences]
        self._choosing = clock() - began - dear
        self._prices.begin([len(tree) for tree in proposed])
        return proposed

    def _cut(self, sequence: Sequence, offer: Offer, size: int) -> TokenTree:
        """What is scored of a text's best draft."""
        notes, tree = sequence.drafts, offer.cut(size)
        notes.sent, notes.hoped = tree.drafted, float(offer.gains[tree.drafted]) - 1
        notes.cut = tree.drafted < offer.tree.drafted
        return tree

    @property
    def _crowd(self) -> int:
        """Texts that share the next step, or soon will."""
        return self._live + self.joining

    def _willing(self, sequence: Sequence, beside: bool) -> list[Sequence]:
        """A text alone, if members are asked for it in this step."""
        rest, in_vain = sequence.drafts.rest, beside and self._crowd > 1
        # No text begins amid a rest.
        if rest.begins(in_vain=in_vain) and not in_vain and rest.glances:
            rest.stirs(self.glimpse(sequence), self._alone.seconds, self._prices.plain(1))
        return [] if rest.now else [sequence]

    def _willing_of(self, sequences: Seq[Sequence]) -> list[Sequence]:
        """The texts of a batch for which members are asked in this step: those that are due, if it pays for all."""
        rows, purse = len(sequences), self._purse
        cramped = not purse.pauses() and self._prices.room(rows) < CRAMPED
        if cramped:
            purse.pause()
        if cramped or purse.paused:
            for s in sequences:
                s.drafts.rest.begins(in_vain=True)
            return []
        room = self._prices.room(rows)
        hopes = {s: s.drafts.rest.hope for s in sequences if not s.drafts.rest.begins(rows, room)}
        hopes |= self._promised([s for s in sequences if s.drafts.rest.glances], rows)
        if hopes and not self._opens(hopes, rows):
            hopes |= {s: max(saved, hopes.get(s, 0.0)) for s, saved in self._promised(sequences, rows).items()}
            if not self._opens(hopes, rows):
                purse.pause()
                hopes = {}
        for s in sequences:
            s.drafts.rest.now = True
        for s in hopes:
            s.drafts.rest.wakes()
        return [s for s in sequences if s in hopes]

    def _opens(self, hopes: dict[Sequence, float], rows: int) -> bool:
        """Whether to ask for texts whose drafts are expected to save so many tokens."""
        plain = self._prices.plain(rows)
        return self._purse.opens(sum(hopes.values()) * plain / rows, len(hopes), rows, plain)

    def _promised(self, sequences: Seq[Sequence], rows: int) -> dict[Sequence, float]:
        """Tokens that drafts would save by what members see at a glance, where that is worth asking for them."""
        row, least = self._prices.row(rows), WORTH * self._purse.seconds * rows / self._prices.plain(rows)
        found = {s: copied(self.glimpse(s), row, self.most) for s in sequences}
        return {s: saved for s, saved in found.items() if saved > least}

    def _ask_all(
        self, sequences: list[Sequence], limits: dict[Sequence, Budget], best: dict[Sequence, Offer], rows: int
    ) -> float:
        """Ask every member that may have something; `best` becomes the best drafts.

        Returns:
            Seconds that dear members took, in a batch all that take time: whether they are worth theirs is foretold.
        """
        spent, paid = 0.0, [i for i in range(len(self.members)) if not self._bandit.free(i)]
        for member in range(len(self.members)):
            if member not in paid:
                self._offers(member, sequences, limits, best, rows)
        for member in paid:
            began = clock()
            hopeful = [s for s in sequences if self._bandit.hopeful(member, s, best[s], max(rows, self._crowd))]
            # What nobody knows yet, one text finds out for all.
            unknown = [s for s in hopeful if not self._bandit.knows(member, s, rows)]
            if hopeful := [s for s in hopeful if s not in unknown[1:]]:
                self._offers(member, hopeful, limits, best, rows)
            taken = clock() - began
            if rows > 1 or not self._bandit.free(member, DEAR):
                spent += taken
            for s in hopeful if rows > 1 else ():
                s.drafts.paid += taken / len(hopeful)
        return spent

    def peek(
        self, sequence: Sequence, tree: TokenTree, logits: torch.Tensor, scores: torch.Tensor
    ) -> torch.Tensor | None:
        notes: Notes = sequence.drafts
        if notes.rest.now:
            return None
        began = clock()
        seen = super().peek(sequence, tree, logits, scores)
        if self._wonders(notes):
            sure = scores[:1].softmax(-1).amax(-1).double()
            seen = sure if seen is None else torch.cat([seen, sure])
        self._choosing += clock() - began
        return seen

    def _wonders(self, notes: Notes) -> bool:
        """Whether to learn how sure the target is: in a batch that says less than it takes."""
        return notes.curious and self._texts == 1

    def observe(self, outcomes: Seq[Outcome]) -> None:
        began, told = clock(), []
        for outcome in outcomes:
            notes: Notes = outcome.sequence.drafts
            if notes.rest.now:
                continue
            if self._wonders(notes):
                notes.wonder(float(outcome.peeked[-1]))
                outcome = replace(outcome, peeked=outcome.peeked[:-1])
            told.append(outcome)
        if told:
            super().observe(told)
            self._choosing += clock() - began

    def commit(self, outcomes: Seq[Outcome]) -> None:
        texts, asked = len(outcomes), [o for o in outcomes if not o.sequence.drafts.rest.now]
        for outcome in outcomes:
            outcome.sequence.drafts.steps += 1
        began, measured = clock(), (texts > 1 or bool(asked)) and self._prices.end()
        if not asked:
            super().commit(outcomes)
            if texts > 1:
                self._purse.add(0.0)
            return
        if measured:
            for past in {id(o.sequence.drafts.past): o.sequence.drafts.past for o in outcomes}.values():
                like = [o for o in asked if o.sequence.drafts.past is past]
                past.luck.add(sum(o.sequence.drafts.hoped for o in like), sum(len(o.path) - 1 for o in like))
        for outcome in asked:
            self._learn(outcome, texts)
        super().commit(outcomes)
        spent = self._choosing + clock() - began
        if texts == 1:
            self._alone.add(spent)
        else:
            self._purse.asked(len(asked), spent)
            self._purse.add(self._saved(outcomes, spent))

    def _learn(self, outcome: Outcome, texts: int) -> None:
        """Take in what became of the drafts for a text that was asked for."""
        notes: Notes = outcome.sequence.drafts
        for i, tree in enumerate(notes.trees):
            if tree is not None:  # it was asked, so its time was spent, whether or not its draft was taken
                own = self.seen(outcome, i)
                seen = Seen.of(own.tree, own.path)
                for record in (notes.records[i], notes.past.records[i]):
                    record.trust.learn(seen)
                    if texts == 1:
                        record.form.add(len(outcome.tokens), outcome.tree.drafted)
        accepted, asking = len(outcome.path) - 1, self._alone if texts == 1 else self._purse
        if asking.known:
            plain = self._prices.plain(texts) / texts
            saved = accepted - outcome.tree.drafted * self._prices.node / plain
            notes.rest.asked(saved, asking.seconds, plain, notes.paid)
            notes.past.brought.add(saved - notes.paid / plain, 0)
        held = accepted == outcome.tree.drafted
        notes.reach = min(self.most, notes.reach + 2) if held else max(self._spare, notes.reach - 1)

    def _saved(self, outcomes: Seq[Outcome], asking: float) -> float:
        """Plain steps that a batch's step saved, less seconds of asking and what rows took."""
        tokens = sum(len(outcome.path) - 1 for outcome in outcomes)
        rows = self._prices.node * sum(outcome.tree.drafted for outcome in outcomes)
        paid = sum(o.sequence.drafts.paid for o in outcomes if not o.sequence.drafts.rest.now)
        return tokens / len(outcomes) - (rows + asking + paid) / self._prices.plain(len(outcomes))

    def _time_judging(self, sequence: Sequence) -> None:
        """Learn what the last step of a single text took beside its pass."""
        notes: Notes = sequence.drafts
        if notes.rest.now:
            notes.sent, notes.spent = 0, None
            return
        spent, before = sequence.stats.judge + sequence.stats.keep, notes.spent
        # The first step is the prompt's, and others may have shared those since the last one.
        if before is not None and before[0] == notes.steps - 1 > 0:
            self._prices.beside.add(notes.sent, spent - before[1])
        notes.spent = notes.steps, spent

    def _offers(
        self,
        member: int,
        sequences: list[Sequence],
        limits: dict[Sequence, Budget],
        best: dict[Sequence, Offer],
        rows: int,
    ) -> None:
        """Ask a member; its draft replaces a worse one. Drawn tokens must be judged, so nothing replaces them."""
        sequences = [s for s in sequences if best[s].tree.draws is None]
        if not sequences:
            return
        began = clock()
        self.members[member].worth = self._prices.worth(rows)
        trees = self.ask(member, sequences, [self._asked(member, s, limits[s], rows) for s in sequences])
        self._bandit.paces[member].add(clock() - began, rows, max(int(tree.depth.max()) for tree in trees))
        for s, tree in zip(sequences, trees, strict=True):
            notes: Notes = s.drafts
            offer = Offer.none(tree.root)
            if tree.drafted:
                offer = Offer.of(tree, notes.records[member].trust.corrected(tree))
            for record in (notes.records[member], notes.past.records[member]):
                record.offers.add(offer)
            # What is paid already does not count.
            if tree.draws is not None or (tree.drafted and self._prices.prefers(offer, best[s], rows)):
                best[s] = offer

    def _asked(self, member: int, sequence: Sequence, limits: Budget, rows: int) -> Budget:
        nodes, depth = limits
        if self._bandit.free(member):
            return limits
        notes: Notes = sequence.drafts
        reach = self._bandit.reach(notes, rows)
        if rows == 1:
            reach = min(reach, self._prices.sensible(notes.records[member], self._bandit.paces[member], self.most))
        return min(nodes, reach), depth


def _pocket_draft(target: CausalModel) -> Drafter | None:
    """The pocket draft model, if it can serve this target."""
    drafter = built("draft")
    try:
        drafter.attach(target)
    except PacelineError:
        return None
    return drafter
