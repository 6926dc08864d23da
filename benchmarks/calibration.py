"""Print how well `specdec` knows when its chains break, on the shipped texts, which no pocket model was trained on."""

from __future__ import annotations

import numpy as np

from paceline import Engine
from paceline.evaluation.calibration import expected_error, watch
from paceline.evaluation.workloads import SHIPPED, load

TEXTS, TOKENS, LENGTH = 4, 64, 8


def main() -> None:
    """A line a temperature and verifier."""
    engine = Engine.load("pocket-code")
    prompts = [prompt.text for found in load(SHIPPED, limit=TEXTS)[0].values() for prompt in found]
    print("| temperature, verifier | predictions | chains that held | ECE learned | ECE of the draft's probabilities |")
    print("|---|---|---|---|---|")
    for temperature, verifier in ((0.0, "coupled"), (0.7, "coupled"), (1.0, "coupled"), (1.0, "rejection")):
        options = {"temperature": temperature, "verifier": verifier, "max_new_tokens": TOKENS, "seed": 1}
        seen = watch(engine, "pocket-code-draft", prompts, LENGTH, **options)
        errors = (expected_error(predicted, seen.held) for predicted in (seen.holds, seen.odds))
        print(
            f"| {temperature:g}, `{verifier}` | {len(seen.held)} | {np.mean(seen.held):.3f} | "
            + " | ".join(f"{error:.3f}" for error in errors)
            + " |",
            flush=True,
        )


if __name__ == "__main__":
    main()
