"""What must be said about a benchmark's tables: where, when and how it was measured, and what is missing."""

from __future__ import annotations

import datetime
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence

from paceline.evaluation import own, peers
from paceline.evaluation.report import Report, SizeInfo
from paceline.evaluation.summary import ALL, OWN_PLAIN, PEER_PLAIN, Row
from paceline.evaluation.tables import Section, choice

#: Instruction sets that matrices are multiplied by, best first: one name of a CPU may stand for several.
MULTIPLIERS = ("amx_bf16", "avx512_bf16", "avx512f", "avx2")

NOTES = (
    "tokens/s: median of end-to-end speed; decode: the same without the prompt, that is without the time to the first "
    "token (first).",
    "×: median of the ratios of runs of the same prompt at the same memory bandwidth, against Paceline's plain "
    "decoding, transformers' (HF) plain decoding, and the fastest of its modes, first end to end, then decoding alone.",
    "per pass: tokens a forward pass, bonus token included; kept: share of drafts whose first token was kept; other: "
    "share of decoding outside the target's passes.",
    "memory: the model, what the method keeps for itself, and the most that a run needed beside.",
    "loops: share of the text that repeats itself (8-grams seen before in it), where drafts are easily right.",
    "same text: greedy, whether all tokens equal Paceline's and transformers' plain decoding, else on how many prompts "
    "each; sampled, whether they equal Paceline's plain decoding with the same seed. Transformers draws its samples "
    "from another source, so these are other texts.",
)
#: What a terminal's narrower tables need.
SHORT_NOTES = (
    "tokens/s: median of end-to-end speed; decode: the same without the prompt.",
    "×: how many times as fast, the median over runs of one prompt at one memory bandwidth: as Paceline's plain "
    "decoding, as transformers' (HF) plain decoding, as the best of its modes.",
    "pass: tokens a forward pass, bonus token included; other: share of decoding outside the target's passes; loops: "
    "share of the text that repeats itself, where drafts are easily right.",
    "same: whether all texts equal plain decoding's, else how many. --markdown and --html show and explain more.",
)


def title_of(section: Section) -> str:
    """Workload and temperature."""
    workload = "all workloads" if section.workload == ALL else section.workload
    return f"{workload}, {choice(section.temperature)}"


def differences(report: Report, rows: Sequence[Row] | None = None) -> Iterator[str]:
    """A sentence for each method whose tokens differ from its own side's plain decoding, and for the two sides."""
    for row in report.rows() if rows is None else rows:
        if row.workload == ALL:
            continue
        reference = PEER_PLAIN if row.side == peers.SIDE or row.method == own.PLAIN else OWN_PLAIN
        check = row.identical.get(reference)
        if check is None or check["first"] is None:
            continue
        first, gap = check["first"], ""
        if first["gap"] is not None:
            gap = f"; the two best logits are {first['gap']:.3g} apart there, and {check['largest_gap']:.3g} at most"
        yield (
            f"{row.size} {row.workload}, {choice(row.temperature)}, {row.side} {row.method}: "
            f"{check['of'] - check['equal']} of {check['of']} texts differ from {reference}, the first "
            f"({first['prompt']}) at token {first['position']}{gap}"
        )


def machine(report: Report) -> str:
    """Where it was measured, in a line."""
    p, s = report.provenance, report.settings
    dtypes = ", ".join(dict.fromkeys(info.dtype for info in report.sizes.values()))
    on_gpu = s.get("device") == "cuda" or (p["gpu"] and not s.get("device"))
    widest = next((f" with {flag}" for flag in MULTIPLIERS if flag in p["isa"]), "")
    place = p["gpu"] if on_gpu else p["cpu"] + widest
    at_once = f" ({s['at_once']} at once)" if s.get("at_once") else ""
    shortest = f"{s['shortest']} to " if s.get("shortest") else ""
    return (
        f"{place}, {p['threads']} of {p['cores']} cores in use, {p['memory_bytes'] / 2**30:.0f} GiB; {dtypes}, batch "
        f"{s['batch']}{at_once}, {shortest}{s['max_new_tokens']} new tokens, "
        f"{', '.join(choice(t) for t in s['temperatures'])}; "
        f"Paceline {p['paceline']}{' ' + p['commit'] if p['commit'] else ''}, torch {p['torch']}, "
        f"transformers {p['transformers']}"
    )


def command(report: Report) -> str:
    """What was typed."""
    return shlex.join(["paceline", *report.provenance["argv"]])


def date(report: Report) -> str:
    """When it began, and when it was gone on with."""
    moments = [report.provenance["date"], *(again["date"] for again in report.provenance.get("resumed", []))]
    days = [f"{datetime.datetime.fromisoformat(moment):%d %B %Y, %H:%M} UTC" for moment in moments]
    return days[0] + (f", resumed {'; '.join(days[1:])}" if len(days) > 1 else "")


def mode_note(report: Report) -> str:
    """Which bandwidths there were."""
    found = report.modes
    if not report.samples:
        return "nothing was measured"
    named = ", ".join(f"{name} {value / 1e9:.0f} GB/s" for name, value in found.bandwidths.items())
    if found.busy:
        disturbed = sum(not s.stable for s in report.samples)
        return (
            f"THE MACHINE WAS BUSY: {disturbed} of {len(report.samples)} runs were disturbed and count all the same; "
            f"do not trust these speeds; memory bandwidth: {named}"
        )
    odd = sum(found.of(s) is None for s in report.samples)
    return f"memory bandwidth: {named}; {odd} of {len(report.samples)} runs left out as disturbed"


def missing(report: Report) -> Iterator[str]:
    """Where the budget ended before everything was measured: a sentence for each size and temperature."""
    runs = Counter((s.size, s.temperature, s.workload, (s.side, s.method)) for s in report.samples)
    for size, planned in report.planned.items():
        methods = dict.fromkeys((s.side, s.method) for s in report.samples if s.size == size)
        for temperature in report.settings["temperatures"]:
            asked = [m for m in methods if f"{m[0]} {m[1]} ({size}, temperature {temperature:g})" not in report.skipped]
            parts = []
            for workload, wanted in planned.items():
                done = [runs[size, temperature, workload, m] for m in asked] or [0]
                if min(done) < wanted:
                    count = f"{min(done)}" if min(done) == max(done) else f"{min(done)} to {max(done)}"
                    parts.append(f"{workload} {count} of {wanted}")
            if parts:
                yield f"incomplete: {size}, {choice(temperature)}: {', '.join(parts)} runs of each method"
    for size in report.settings["sizes"]:
        if size not in report.planned:
            yield f"incomplete: {size} was not measured"


def caption(section: Section) -> str:
    """What is above a table."""
    report, best = section.board.report, section.best_peer or "-"
    return (
        f"Speeds at {report.modes.bandwidths[section.mode] / 1e9:.0f} GB/s, where one pass a token would give at most "
        f"{section.bound:.0f} tokens/s. Transformers' best: {best}. {section.loops:.0%} of the text repeats itself."
    )


def about(info: SizeInfo) -> str:
    """A size of the model, in a sentence."""
    inflated = (
        "; inflated: costs what a model of that size costs, says what the small one says" if info.inflated else ""
    )
    return (
        f"{info.parameters / 1e6:.0f} million parameters, {info.weight_bytes / 1e6:.0f} MB in {info.dtype}{inflated}."
    )


def left_out(report: Report) -> list[str]:
    """What was not measured, and why."""
    return [f"left out: {name}: {' '.join(reason.split())}" for name, reason in report.skipped.items()]
