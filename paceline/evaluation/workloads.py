"""Prompts to measure with: those that ship with Paceline, and well-known ones from a folder of the user's.

The shipped code, edits and docstrings quote standard-library files that no pocket model was trained on
(`benchmarks/build_workloads.py` makes them and records each file's hash).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paceline.errors import BadRequest
from paceline.registry import suggest

FOLDER = Path(__file__).resolve().parent / "workloads"
SHIPPED = ("code", "edit", "json", "prose")


@dataclass(frozen=True)
class Prompt:
    """One text to continue.

    Attributes:
        name: unique within its category.
        category: its workload.
        text: the prompt.
        source, licence: where it comes from and on what terms.
        reference: how the original goes on, where there is one.
    """

    name: str
    category: str
    text: str
    source: str
    licence: str
    reference: str | None = None


@dataclass(frozen=True)
class External:
    """A public data set that a user may have: its file's pattern and what of a record is the prompt."""

    pattern: str
    origin: str
    licence: str
    prompt: Callable[[dict[str, Any]], str]


EXTERNAL = {
    "humaneval": External("human_eval*.jsonl", "openai/human-eval", "MIT", lambda r: str(r["prompt"])),
    "spec_bench": External("spec_bench*.jsonl", "hemingkx/Spec-Bench", "Apache-2.0", lambda r: str(r["turns"][0])),
    "gsm8k": External(
        "gsm8k_test*.jsonl", "openai/grade-school-math", "MIT", lambda r: f"Question: {r['question']}\nAnswer:"
    ),
}
NAMES = (*SHIPPED, *EXTERNAL)


def load(
    names: Iterable[str], data: Path | None = None, limit: int | None = None
) -> tuple[dict[str, list[Prompt]], dict[str, str]]:
    """The prompts of some workloads.

    Args:
        names: of `NAMES`; `"all"` stands for the shipped ones and, with `data`, the external ones.
        data: a folder that holds external files, at any depth.
        limit: most prompts of a workload, spread evenly over it.

    Returns:
        Prompts by workload, and for each workload that is not there the reason.

    Raises:
        BadRequest: unknown name, a limit below 1, or `data` is no folder.
    """
    if limit is not None and limit < 1:
        raise BadRequest(f"limit: {limit} is not allowed; at least 1 is needed")
    if data is not None and not data.is_dir():
        raise BadRequest(f"data: {str(data)!r} is not a folder")
    found: dict[str, list[Prompt]] = {}
    missing: dict[str, str] = {}
    for name in _expand(names, data):
        if name in SHIPPED:
            found[name] = spread(_shipped(name), limit)
        elif data is None:
            missing[name] = f"{name} does not ship with Paceline; give --data a folder with {EXTERNAL[name].pattern}"
        elif (path := _newest(data, EXTERNAL[name].pattern)) is None:
            missing[name] = f"no {EXTERNAL[name].pattern} under {data}"
        else:
            found[name] = spread(_external(name, path), limit)
    return found, missing


def spread(prompts: Sequence[Prompt], limit: int | None) -> list[Prompt]:
    """At most `limit` of them at even distances, so that a few are as varied as all."""
    if limit is None or limit >= len(prompts):
        return list(prompts)
    return [prompts[i * len(prompts) // limit] for i in range(limit)]


def _expand(names: Iterable[str], data: Path | None) -> list[str]:
    wanted: list[str] = []
    for name in names:
        if name == "all":
            wanted += SHIPPED if data is None else NAMES
        elif name in NAMES:
            wanted.append(name)
        else:
            raise BadRequest(f"workload {suggest(name, ['all', *NAMES])}")
    return list(dict.fromkeys(wanted))


def _shipped(name: str) -> list[Prompt]:
    records = _records(FOLDER / f"{name}.jsonl")
    return [
        Prompt(r["name"], r["category"], r["prompt"], r["source"], r["licence"], r.get("reference")) for r in records
    ]


def _external(name: str, path: Path) -> list[Prompt]:
    kind = EXTERNAL[name]
    prompts = []
    for i, record in enumerate(_records(path)):
        label = record.get("task_id") or record.get("question_id") or i
        try:
            prompts.append(Prompt(str(label), name, kind.prompt(record), kind.origin, kind.licence))
        except (KeyError, IndexError, TypeError) as error:
            raise BadRequest(f"data: {path}, line {i + 1}, is no {name} record ({error!r})") from error
    return prompts


def _newest(folder: Path, pattern: str) -> Path | None:
    paths = sorted(folder.rglob(pattern), key=lambda p: p.stat().st_mtime)
    return paths[-1] if paths else None


def _records(path: Path) -> list[dict[str, Any]]:
    try:
        # Not `splitlines`: a record's strings may hold what it takes for line ends, such as U+2028.
        return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    except ValueError as error:
        raise BadRequest(f"data: {path} is not JSON lines: {error}") from error
