"""How fast a chat is decoded below caps on memory, and what it really takes.

    python benchmarks/memory.py
    python benchmarks/memory.py --inflated 100m --dtype bfloat16

Twenty turns, each of which reads everything said before: lines of the shipped code workload and the model's answers.
Caps lie between what the last turn needs with full drafts and without any. Each is run twice: with all tensors watched,
for the most bytes that they took, and, for the times, in turns with a run without a cap; of `--pairs` such pairs the
median counts. The answers are compared: a cap must not change them.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time

from paceline import Engine
from paceline.controllers.specmemo import SpecMemo, Text
from paceline.evaluation.workloads import load
from paceline.memory.sizes import shown
from paceline.memory.watch import Watch

TURNS, GIVEN, ANSWER = 20, 16, 24
TOKENS = TURNS * (GIVEN + ANSWER)


def chat(engine: Engine, lines: list[int]) -> tuple[list[int], float, float, float]:
    """What was answered, tokens a second, tokens a pass, and drafted tokens a pass."""
    said: list[int] = []
    answers: list[int] = []
    passes = drafted = 0
    began = time.perf_counter()
    for turn in range(TURNS):
        said += lines[turn * GIVEN : (turn + 1) * GIVEN]
        result = engine.generate(said, max_new_tokens=ANSWER, ignore_eos=True)
        said, answers = said + result.tokens, answers + result.tokens
        passes, drafted = passes + result.stats.forward_passes, drafted + result.stats.drafted
    return answers, len(answers) / (time.perf_counter() - began), len(answers) / passes, drafted / passes


def plan_of(engine: Engine) -> SpecMemo:
    plan = engine.decoder.controller
    assert isinstance(plan, SpecMemo)
    return plan


def taken(engine: Engine, lines: list[int]) -> float:
    """Most bytes of tensors during a chat: weights as they are held, and what came and went beside them."""
    gc.collect()
    with Watch() as watch:
        chat(engine, lines)
        gc.collect()
    return plan_of(engine).weights + watch.peak - watch.live


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pocket-code")
    parser.add_argument("--inflated")
    parser.add_argument("--dtype")
    parser.add_argument("--drafter", default="draft")
    parser.add_argument("--caps", type=int, default=6)
    parser.add_argument("--pairs", type=int, default=3)
    args = parser.parse_args()

    def engine(memory: int) -> Engine:
        model = {"model": args.model, "inflated": args.inflated, "dtype": args.dtype}
        return Engine.load(**model, drafter=args.drafter, memory=memory)

    free = engine(1 << 40)
    plan = plan_of(free)
    lines = [token for prompt in load(["code"])[0]["code"] for token in free.tokenizer(prompt.text)["input_ids"]]
    drafts = tuple(range(1, len(free._drafter.second) + 1))
    least, most = (
        plan.needed([Text(TOKENS, 32)], 0),
        plan.needed([Text(TOKENS, 32, 0, drafts, True)], free.decoder.nodes),
    )
    wanted = chat(free, lines)[0]
    print(f"weights and tables {shown(plan.weights)}, without a cap {shown(taken(free, lines))}\n")
    print("| cap | taken | tokens a second, by those without a cap | tokens a pass | drafted a pass |")
    print("|---|---|---|---|---|")
    for i in range(args.caps):
        cap = int(most + (least - most) * i / (args.caps - 1)) + 1
        capped, ratios = engine(cap), []
        for _ in range(args.pairs):
            answers, speed, per_pass, drafted = chat(capped, lines)
            assert answers == wanted
            ratios.append(speed / chat(free, lines)[1])
        sizes = f"{shown(cap)} | {shown(taken(capped, lines))}"
        print(f"| {sizes} | {statistics.median(ratios):.2f} | {per_pass:.2f} | {drafted:.2f} |", flush=True)


if __name__ == "__main__":
    main()
