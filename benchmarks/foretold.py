"""How well the time of a step is foretold: from what passes of target and draft cost by their rows.

    python benchmarks/foretold.py                    # the pocket model inflated to 573M parameters, bfloat16

Steps of `draft(length=n, confidence=0)` after a short prompt, against the target's pass over n + 1 rows and n passes of
the draft over one, as `auto` and the trees reckon with them. A machine's speed changes: passes are measured before and
after each text, and their mean counts.
"""

from __future__ import annotations

import argparse
import statistics

from paceline import Engine
from paceline.drafters.draft import DraftModel
from paceline.drafters.lean import speed_up_small
from paceline.models.causal import CausalModel
from paceline.models.costs import PassCosts, measure
from paceline.models.loading import load_model

PROMPT = "import os\n\n\ndef"
LENGTHS = (0, 2, 4, 6, 8, 12)


def passes(model: CausalModel, length: int) -> PassCosts:
    """Over one row, and over `length` and one more."""
    return measure(model, (1, 2, max(3, 1 + length)))


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="500m", help="100m, 500m, or pocket: the model as it is")
    parser.add_argument("--tokens", type=int, default=64, help="new tokens a text")
    given = parser.parse_args()
    inflated = None if given.size == "pocket" else given.size
    engine = Engine.load("pocket-code", dtype="bfloat16", inflated=inflated, drafter="none")
    small = load_model("pocket-code-draft", dtype="bfloat16", fast=False)
    speed_up_small(small)
    settings = {"max_new_tokens": given.tokens, "ignore_eos": True}
    engine.generate(PROMPT, **settings)
    print("| drafted tokens | foretold ms a step | measured | ratio |\n|---|---|---|---|")
    for length in LENGTHS:
        drafter = DraftModel(model=small, length=length, confidence=0) if length else "none"
        engine.generate(PROMPT, drafter=drafter, max_new_tokens=4)
        before = passes(engine.model, length), passes(small, 1)
        stats = engine.generate(PROMPT, drafter=drafter, **settings).stats
        after = passes(engine.model, length), passes(small, 1)
        drafted = stats.drafted / stats.forward_passes
        foretold = statistics.mean(target(1 + round(drafted)) + drafted * draft(1) for target, draft in (before, after))
        # The first pass reads the prompt, and its time is the prompt's.
        measured = stats.score / (stats.forward_passes - 1) + stats.draft / stats.forward_passes
        print(
            f"| {drafted:.1f} | {foretold * 1e3:.1f} | {measured * 1e3:.1f} | {measured / foretold:.2f} |", flush=True
        )


if __name__ == "__main__":
    main()
