"""Tokens a pass of drafters that look the output up, on 64 texts: what they find, whatever it takes on this machine.

    python benchmarks/replay.py                      # some minutes; the pocket model, float32

Half of the texts are greedy, half sampled at temperature 0.8. Every text is plain decoding's.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from paceline import Engine
from paceline.evaluation.workloads import load
from paceline.requests import Stats

WORKLOADS = ("code", "edit", "json", "prose")
DRAFTERS = ("copyspec", "aded", "ngram", "suffix(memory=0)", "suffix")
#: Tokens that are drafted whatever their chance: it differs between machines by what rides along with a pass.
RIDES = 5


def texts(engine: Engine, limit: int, tokens: int, drafter: str) -> Iterator[tuple[str, Stats]]:
    """Each text and its statistics."""
    prompts = [prompt.text for found in load(WORKLOADS, limit=limit)[0].values() for prompt in found]
    for temperature in (0.0, 0.8):
        for prompt in prompts:
            settings = {"temperature": temperature, "seed": 1, "max_new_tokens": tokens, "ignore_eos": True}
            result = engine.generate(prompt, drafter=drafter, **settings)
            yield result.text, result.stats


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=8, help="prompts of each workload")
    parser.add_argument("--tokens", type=int, default=200, help="new tokens a text")
    given = parser.parse_args()
    print("| drafter | tokens a pass, 5 | tokens a pass, 15 |\n|---|---|---|")
    plain = [text for text, _ in texts(Engine.load("pocket-code", dtype="float32"), given.limit, given.tokens, "none")]
    for drafter in DRAFTERS:
        cells = []
        for nodes in (5, 15):
            engine = Engine.load("pocket-code", dtype="float32", nodes=nodes)
            engine.model.spare = RIDES
            total = Stats()
            for expected, (text, stats) in zip(plain, texts(engine, given.limit, given.tokens, drafter), strict=True):
                assert text == expected, f"{drafter} changed a text"
                total.add(stats)
            cells.append(f"{total.tokens_per_pass:.2f}")
        print(f"| `{drafter}` | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
