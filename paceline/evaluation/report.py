"""A benchmark's result: written as JSON, and read again."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from paceline.errors import BadRequest
from paceline.evaluation import own
from paceline.evaluation.provenance import provenance
from paceline.evaluation.samples import Sample
from paceline.evaluation.summary import ALL, Modes, Row, summarise

FORMAT = 2


@dataclass
class SizeInfo:
    """One measured size of the model.

    Attributes:
        label: for people; says when the model is inflated.
        parameters, weight_bytes: read by one forward pass.
        path: how Paceline computes the forward pass.
        own_bytes, peer_bytes: memory that loading took, for each side.
        held: memory that each drafter keeps for itself, such as a model of its own.
    """

    label: str
    inflated: bool
    parameters: int
    weight_bytes: int
    dtype: str
    path: str
    own_bytes: int
    peer_bytes: int | None
    held: dict[str, int] = field(default_factory=dict)


@dataclass
class Report:
    """Everything a benchmark found.

    Attributes:
        settings: what was asked.
        sizes, samples: what was measured.
        identical: per size, temperature, workload and method: on how many prompts the tokens equal plain decoding's.
        skipped: what was left out, and why.
        complete: whether the time budget sufficed.
        planned: per size and workload, how many runs each method was to make at each temperature.
        methods: per drafter, its guarantee under the verifier, what it does, and its source.
    """

    settings: dict[str, Any]
    provenance: dict[str, Any] = field(default_factory=provenance)
    sizes: dict[str, SizeInfo] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    identical: dict[str, Any] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    complete: bool = True
    planned: dict[str, dict[str, int]] = field(default_factory=dict)
    methods: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def modes(self) -> Modes:
        """Bandwidth modes seen."""
        return Modes(self.samples)

    def rows(self) -> list[Row]:
        """The summary, with the equality checks and the memory in use filled in."""
        batch = self.settings.get("batch", 1)
        rows = summarise(self.samples, {n: i.weight_bytes / batch for n, i in self.sizes.items()}, self.modes)
        for row in rows:
            checks = self.identical.get(row.size, {}).get(f"{row.temperature:g}", {})
            row.identical = _identical(checks, row.workload, f"{row.side} {row.method}")
            row.memory = _memory(self.sizes[row.size], row)
        return rows

    def write(self, path: Path, summary: bool = True) -> None:
        """Store as JSON: settings, provenance, raw samples and, if wanted, the summary. A file is replaced at once."""
        record = {"format": FORMAT, **asdict(self)}
        if summary:
            record |= {"modes": self.modes.bandwidths, "summary": [asdict(row) for row in self.rows()]}
        new = path.with_name(path.name + ".new")
        new.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        new.replace(path)

    @classmethod
    def read(cls, path: Path) -> Report:
        """The report in a file. Raises `BadRequest` when it is none."""
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            if record["format"] != FORMAT:
                raise BadRequest(f"{path}: a report of format {record['format']}, this version reads {FORMAT}")
            return cls(
                record["settings"],
                record["provenance"],
                {name: SizeInfo(**info) for name, info in record["sizes"].items()},
                [Sample(**sample) for sample in record["samples"]],
                record["identical"],
                record["skipped"],
                record["complete"],
                record["planned"],
                record["methods"],
            )
        except BadRequest:
            raise
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "`paceline bench --json FILE` writes one"
            raise BadRequest(f"{path} is no benchmark report: {reason}") from error


def _memory(info: SizeInfo, row: Row) -> int | None:
    """Most bytes that a run of the row needed, with the model and what the method keeps."""
    model = info.own_bytes if row.side == own.SIDE else info.peer_bytes
    return None if row.growth is None or model is None else model + info.held.get(row.method, 0) + row.growth


def _identical(checks: dict[str, Any], workload: str, method: str) -> dict[str, Any]:
    """The checks of one row; of all workloads together when it is their row."""
    found = [c[method] for name, c in checks.items() if workload in (name, ALL) and method in c]
    merged: dict[str, Any] = {}
    for reference in found[0] if found else ():
        parts = [c[reference] for c in found]
        gaps = [p["largest_gap"] for p in parts if p["largest_gap"] is not None]
        merged[reference] = {
            "equal": sum(p["equal"] for p in parts),
            "of": sum(p["of"] for p in parts),
            "first": next((p["first"] for p in parts if p["first"]), None),
            "largest_gap": max(gaps, default=None),
        }
    return merged
