"""What `auto` knows of one text, and of all texts like it."""

from __future__ import annotations

from dataclasses import dataclass, field

from paceline.drafters.ensemble import Shared
from paceline.drafters.expense import HOPE, NEWS, PATIENCE, Luck, Rest
from paceline.drafters.worth import EVER, HALF_LIFE, Form, Offers, Record, Trust

#: What a batch's texts know of drafts weighs so many steps, but for one text in TRIES.
EARNEST, TRIES = 8.0, 8
#: How sure a target is taken to be of its next token before it said so in the text at hand: a little surer than what
#: makes a drafter worth trying, so that it is tried at once where to read the text for it takes next to nothing.
UNSURE = 0.42
#: How many times as long as one text's, what is known of all texts' guesses lasts.
PAST = 16


class Past:
    """What is known of all texts of one temperature.

    Attributes:
        records: of each member.
        brought, luck: of all drafts.
        texts: how many there were.
    """

    def __init__(self, members: int = 0) -> None:
        self.records = [Record(Trust(PAST * HALF_LIFE), offers=Offers(EVER)) for _ in range(members)]
        self.brought, self.luck, self.texts = Form(PATIENCE, HOPE * PATIENCE), Luck(), 0


@dataclass
class Notes(Shared):
    """What is known of one text.

    Attributes:
        past: what is known of others like it.
        records: of each member.
        weight: drafts in a batch that what others saw of such drafts counts for.
        rest: when nobody is asked.
        greedy: whether the target's likeliest next token is the next token.
        sure: how likely the target's likeliest next token has been under the policy, on the mean; None: not known yet.
        curious: whether that is asked for, since some member was never asked by such a text.
        steps: steps so far.
        reach: tokens that a paid member is asked for.
        sent, hoped: drafted tokens of the last step, and how many were expected to be accepted.
        paid: seconds that drafters took in it that are chosen because they are expected to save more, in a batch.
        cut: whether more than that was drafted.
        spent: of how many steps judging and keeping took how many seconds before it; None: nobody was asked in it.
    """

    past: Past = field(default_factory=Past)
    records: list[Record] = field(default_factory=list)
    weight: float = EARNEST
    rest: Rest = field(default_factory=Rest)
    greedy: bool = False
    sure: float | None = None
    curious: bool = False
    steps: int = 0
    reach: int = 1
    sent: int = 0
    cut: bool = False
    hoped: float = 0.0
    paid: float = 0.0
    spent: tuple[int, float] | None = None

    def start(self, past: Past, greedy: bool) -> None:
        """A text begins, knowing what others taught."""
        self.past, self.records = past, [record.hint() for record in past.records]
        # A draft that reads the prompt in vain is felt by the whole batch: one text in some tries it for all.
        past.texts += 1
        self.weight = EARNEST if past.texts % TRIES else 1.0
        self.rest = Rest(past.brought.hint(PATIENCE))
        self.greedy, self.sure = greedy, 1.0 if greedy else None
        self.curious = not greedy and any(self.knows_nothing_of(i) for i in range(len(self.records)))

    @property
    def right(self) -> float:
        """How likely a drafted token is right, going by how sure the target is; one token says little of that."""
        if self.sure is None:
            return UNSURE
        return self.sure if self.greedy else self.sure + (UNSURE - self.sure) / (2 + self.steps)

    def knows_nothing_of(self, member: int) -> bool:
        """Whether a member was never asked by a text alone, this one or another."""
        return not (self.records[member].form.steps or self.past.records[member].form.steps)

    def wonder(self, chance: float) -> None:
        """The target's likeliest next token had this chance."""
        before = 0.0 if self.sure is None else self.sure
        self.sure = before + max(NEWS, 1 / (1 + self.steps)) * (chance - before)
        # A draft is right about as often as the target is sure, and goes on as long as it is right.
        self.rest.expect(self.right / max(1 - self.right, 1e-6))
        self.curious = any(self.knows_nothing_of(member) for member in range(len(self.records)))
