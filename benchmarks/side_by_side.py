"""Two drafters side by side, a step of one and a step of the other in turn: for differences of a few percent.

    python benchmarks/side_by_side.py                # eight texts at once, `none` and `auto`, 573M parameters, bfloat16

A machine that others compute on changes its speed by a tenth from one text to the next, and `paceline bench` compares
whole texts. Here both drafters' steps meet the same machine. Both write the same texts with the same weights, each from
nothing learned; whose step comes first changes at every step. Prompts come one after the other, another one with every
step, since several would be read in one step, too long to compare. The table says how many times as fast all texts are
written with the second drafter (end to end, and without the time in which prompts are read, which is the same work and
on such a machine not the same time), and how many times as soon a request is answered, counted from when it came.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from dataclasses import dataclass

from paceline import Engine
from paceline.evaluation.samples import Job
from paceline.evaluation.workloads import load
from paceline.models.loading import load_model, load_tokenizer
from paceline.sequence import Sequence


@dataclass
class Took:
    """Seconds of a drafter's steps, of which in reading prompts, and its tokens drafted, kept, written.

    `requests`: of every text from its arrival to its end, summed up.
    """

    seconds: float = 0.0
    reading: float = 0.0
    requests: float = 0.0
    drafted: int = 0
    kept: int = 0
    written: int = 0


def compare(engines: list[Engine], prompts: list[str], job: Job) -> list[Took]:
    """Write the same texts with both engines; with every step comes another prompt."""
    texts: list[list[Sequence]] = [[], []]
    found, order = [Took(), Took()], [0, 1]
    coming = list(zip(prompts, job.lengths(len(prompts)), strict=True))
    while coming or any(engine.decoder.busy for engine in engines):
        arrived, coming = coming[:1], coming[1:]
        for i in order:
            for prompt, length in arrived:
                found[i].requests -= found[i].seconds
                settings = {"max_new_tokens": length, "temperature": job.temperature, "ignore_eos": True}
                texts[i] += engines[i].submit(engines[i].request(prompt, seed=job.seed, **settings))
            if not engines[i].decoder.busy:
                continue
            written = sum(text.finish_reason is not None for text in texts[i])
            began = time.perf_counter()
            engines[i].decoder.step()
            found[i].seconds += time.perf_counter() - began
            written = sum(text.finish_reason is not None for text in texts[i]) - written
            found[i].requests += written * found[i].seconds
        order.reverse()
    assert [text.tokens for text in texts[0]] == [text.tokens for text in texts[1]]
    for took, own in zip(found, texts, strict=True):
        took.reading = sum(text.stats.prefill for text in own)
        took.drafted = sum(text.stats.drafted for text in own)
        took.kept = sum(text.stats.accepted for text in own)
        took.written = sum(text.stats.tokens for text in own)
    return found


def row(found: list[list[Took]]) -> str:
    """How many times as fast the second drafter is, medians over runs, and what it drafted."""
    whole = [first.seconds / second.seconds for first, second in found]
    beside = [(first.seconds - first.reading) / (second.seconds - second.reading) for first, second in found]
    waits = [first.requests / second.requests for first, second in found]
    drafted, kept, written = (sum(getattr(second, n) for _, second in found) for n in ("drafted", "kept", "written"))
    return (
        f"{statistics.median(whole):.3f} | {min(whole):.3f} to {max(whole):.3f} | {statistics.median(beside):.3f} | "
        f"{statistics.median(waits):.3f} | {drafted / written:.0%} | {kept / max(1, drafted):.0%} |"
    )


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="500m", help="100m, 500m, or pocket: the model as it is")
    parser.add_argument("--drafters", nargs=2, default=("none", "auto"), help="two specs")
    parser.add_argument("--workloads", nargs="+", default=("code", "edit"), help="names, see paceline bench --help")
    parser.add_argument("--temperatures", nargs="+", type=float, default=(0.0, 0.8), help="0 is greedy")
    parser.add_argument("--limit", type=int, default=8, help="prompts of each workload")
    parser.add_argument("--batch", type=int, default=8, help="prompts that come one after the other")
    parser.add_argument("--at-once", type=int, help="texts of a batch written at a time, while others wait")
    parser.add_argument("--tokens", type=int, default=96, help="new tokens of the longest text")
    parser.add_argument("--shortest", type=int, help="tokens of the shortest text; lengths are spread between")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each batch")
    given = parser.parse_args()
    inflated, rows = None if given.size == "pocket" else given.size, given.at_once or given.batch
    model, tokenizer = load_model("pocket-code", dtype="bfloat16", inflated=inflated), load_tokenizer("pocket-code")
    Engine(model, tokenizer, drafter=given.drafters[1]).generate("def", max_new_tokens=4)
    print("| texts | temperature | end to end | runs | reading aside | a request | drafted of written | kept |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for name, texts in load(given.workloads, limit=given.limit)[0].items():
        prompts = [prompt.text for prompt in texts]
        for temperature in given.temperatures:
            job, found = Job(given.tokens, temperature, shortest=given.shortest), []
            for start in given.repeats * list(range(0, len(prompts), given.batch)):
                engines = [Engine(model, tokenizer, drafter=d, max_rows=rows) for d in given.drafters]
                found.append(compare(engines, prompts[start : start + given.batch], job))
                del engines
                gc.collect()  # their caches are a gigabyte each
            print(f"| {name} | {temperature:g} | {row(found)}", flush=True)


if __name__ == "__main__":
    main()
