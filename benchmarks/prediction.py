"""What it saves to say what one expects: the edit workload's references as `prediction=`, next to plain decoding.

    python benchmarks/prediction.py                  # the pocket model inflated to 573M parameters, bfloat16

Greedy, pairs of runs, one right after the other; the text of every run is that of plain decoding.
"""

from __future__ import annotations

import argparse
import statistics
import time

from paceline import Engine
from paceline.evaluation.workloads import load


def main() -> None:
    """Print a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="500m", help="100m, 500m, or pocket: the model as it is")
    parser.add_argument("--limit", type=int, default=6, help="prompts")
    parser.add_argument("--tokens", type=int, default=96, help="new tokens a text")
    given = parser.parse_args()
    inflated = None if given.size == "pocket" else given.size
    engine = Engine.load("pocket-code", dtype="bfloat16", inflated=inflated, drafter="none")
    settings = {"max_new_tokens": given.tokens, "ignore_eos": True}
    ratios, passes, kept = [], [], []
    for prompt in load(["edit"], limit=given.limit)[0]["edit"]:
        began = time.perf_counter()
        plain = engine.generate(prompt.text, **settings)
        between = time.perf_counter()
        result = engine.generate(prompt.text, prediction=prompt.reference, **settings)
        ratios.append((between - began) / (time.perf_counter() - between))
        assert result.text == plain.text
        passes.append(result.stats.tokens_per_pass)
        kept.append(result.stats.accepted / max(1, result.stats.drafted))
    print(
        f"{len(ratios)} edits, {given.size}: {statistics.median(ratios):.2f} times as fast as plain decoding, "
        f"{statistics.median(passes):.2f} tokens a pass, {statistics.median(kept):.0%} of the drafted tokens kept"
    )


if __name__ == "__main__":
    main()
