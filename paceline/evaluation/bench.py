"""A whole benchmark: models of several sizes, workloads, contestants, equality checks, one report."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from paceline.api import Engine
from paceline.errors import BadRequest
from paceline.evaluation import own, peers, workloads
from paceline.evaluation.equality import Difference, difference
from paceline.evaluation.memory import resident
from paceline.evaluation.report import Report, SizeInfo
from paceline.evaluation.runner import Arena, Batch, batches
from paceline.evaluation.samples import Contestant, Job, Sample
from paceline.evaluation.summary import OWN_PLAIN, PEER_PLAIN

#: The model as it is; other sizes are presets of `paceline.models.inflate`.
AS_IS = "pocket"
POCKET, POCKET_DRAFT = "pocket-code", "pocket-code-draft"


@dataclass(frozen=True)
class Settings:
    """What to measure; see `paceline bench --help`."""

    model: str = POCKET
    sizes: tuple[str, ...] = (AS_IS,)
    drafters: tuple[str, ...] = ("all",)
    verifier: str = "coupled"
    policies: dict[str, Any] = field(default_factory=dict)
    workloads: tuple[str, ...] = ("all",)
    data: str | None = None
    limit: int | None = None
    max_new_tokens: int = 128
    dtype: str | None = None
    device: str | None = None
    repeats: int = 1
    temperature: float = 0.0
    seed: int = 0
    batch: int = 1
    peers: bool = True
    assistant: str | None = None
    fresh: bool = True
    budget: float | None = None

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "repeats", "batch"):
            if getattr(self, name) < 1:
                raise BadRequest(f"{name}: {getattr(self, name)} is not allowed; at least 1 is needed")
        if not self.sizes:
            raise BadRequest(f"sizes: none given; {AS_IS!r} stands for the model as it is")

    @property
    def assistant_name(self) -> str | None:
        """The draft model for transformers' assisted generation."""
        return self.assistant or (POCKET_DRAFT if self.model == POCKET else None)


def run(settings: Settings, progress: Callable[[str], None], report: Report | None = None) -> Report:
    """Measure everything, or what is missing in an earlier report, size by size (one size in memory at a time)."""
    report = report or Report(asdict(settings))
    deadline = None if settings.budget is None else time.monotonic() + settings.budget
    data = Path(settings.data) if settings.data is not None else None
    prompts, missing = workloads.load(settings.workloads, data, settings.limit)
    report.skipped.update(missing)
    if not prompts:
        raise BadRequest(f"workloads: nothing to measure; {'; '.join(missing.values())}")
    for size in settings.sizes:
        progress(f"{size}: loading")
        complete = _Size(settings, size, report).measure(prompts, progress, deadline)
        gc.collect()
        if not complete:
            report.complete = False
            return report
    report.complete = True
    return report


class _Size:
    """One size of the model, with Paceline's engine and transformers' modules loaded side by side."""

    def __init__(self, settings: Settings, size: str, report: Report) -> None:
        self.settings, self.size, self.report = settings, size, report
        inflated = None if size == AS_IS else size
        kind: dict[str, Any] = {"dtype": settings.dtype, "device": settings.device, "inflated": inflated}
        empty = _resident(None)
        self.engine = Engine.load(settings.model, max_rows=settings.batch, **kind)
        model = self.engine.model
        loaded = resident(model.device)
        self.contestants: list[Contestant] = []
        found, skipped = own.methods(self.engine, list(settings.drafters), settings.verifier, settings.policies)
        self.contestants += found
        report.skipped.update(skipped)
        if settings.peers:
            self._add_peers(kind)
        report.sizes[size] = SizeInfo(
            label=size if inflated is None else f"{size}, inflated",
            inflated=inflated is not None,
            parameters=model.nbytes // model.module.dtype.itemsize,
            weight_bytes=model.nbytes,
            dtype=str(model.module.dtype).removeprefix("torch."),
            path=model.path,
            own_bytes=loaded - empty,
            peer_bytes=resident(model.device) - loaded if settings.peers else None,
        )

    def _add_peers(self, kind: dict[str, Any]) -> None:
        settings, report = self.settings, self.report
        module = peers.load_peer(settings.model, **kind)
        assistant = None
        if settings.assistant_name is None:
            report.skipped["assisted"] = "no draft model is known for this model; name one with --assistant"
        else:
            assistant = peers.load_peer(settings.assistant_name, settings.dtype, settings.device, None)
        for peer in peers.peers(module, assistant):
            if peer.single and settings.batch > 1:
                report.skipped[f"transformers {peer.name}"] = "transformers generates one prompt at a time in this mode"
            else:
                self.contestants.append(peer)

    def measure(
        self, prompts: dict[str, list[workloads.Prompt]], progress: Callable[[str], None], deadline: float | None
    ) -> bool:
        settings = self.settings
        job = Job(settings.max_new_tokens, settings.temperature, settings.seed)
        mine = [s for s in self.report.samples if s.size == self.size]
        model = self.engine.model
        arena = Arena(self.size, self.contestants, job, model.device, settings.fresh, progress, mine)
        todo = [batch for name, found in prompts.items() for batch in self._batches(name, found)]
        if not todo:
            raise BadRequest(f"workloads: no prompt fits the context of {model.context} tokens")
        before = len(mine)
        arena.warm_up(todo[0])
        try:
            return arena.play(todo, settings.repeats, deadline)
        finally:
            self.report.samples += arena.samples[before:]
            progress(f"{self.size}: comparing texts")
            self.report.identical[self.size] = self._identical(arena.samples, todo)

    def _batches(self, workload: str, prompts: list[workloads.Prompt]) -> list[Batch]:
        room = self.engine.model.context - self.settings.max_new_tokens
        coded = [(p.name, self.engine.tokenizer(p.text)["input_ids"]) for p in prompts]
        fitting = [(name, ids) for name, ids in coded if len(ids) <= room]
        if len(fitting) < len(coded):
            reason = f"{len(coded) - len(fitting)} of {len(coded)} prompts exceed {room} tokens"
            self.report.skipped[f"{workload} (part)"] = reason
        return batches(workload, fitting, self.settings.batch) if fitting else []

    def _identical(self, samples: list[Sample], todo: list[Batch]) -> dict[str, Any]:
        """For each method and each plain decoding: on how many prompts the tokens are the same."""
        references = {OWN_PLAIN: (own.SIDE, own.PLAIN)}
        if self.settings.peers and not self.settings.temperature:  # sampled: another source of randomness
            references[PEER_PLAIN] = (peers.SIDE, peers.PLAIN)
        checker = _Checker(self.engine.model, {(b.workload, b.name): b for b in todo}, samples)
        return {
            workload: {
                f"{side} {method}": {
                    name: checker.compare(workload, side, method, *ref) for name, ref in references.items()
                }
                for side, method in dict.fromkeys((s.side, s.method) for s in samples)
                if side == own.SIDE or not self.settings.temperature
            }
            for workload in dict.fromkeys(s.workload for s in samples)
        }


class _Checker:
    """Compares token lists; the logits behind a difference are computed once for all methods that share it."""

    def __init__(self, model: Any, prompts: dict[tuple[str, str], Batch], samples: list[Sample]) -> None:
        self.model, self.prompts, self.samples = model, prompts, samples
        self._known: dict[Any, Difference | None] = {}

    def compare(self, workload: str, side: str, method: str, *reference: str) -> dict[str, Any]:
        texts, others = self._texts(workload, side, method), self._texts(workload, *reference)
        shared = [key for key in texts if key in others]
        found = [d for key in shared if (d := self._difference(workload, key, texts[key], others[key][0])) is not None]
        gaps = [d.gap for d in found if d.gap is not None]
        return {
            "equal": len(shared) - len(found),
            "of": len(shared),
            "first": asdict(found[0]) if found else None,
            "largest_gap": max(gaps, default=None),
        }

    def _texts(self, workload: str, side: str, method: str) -> dict[tuple[str, int], list[tuple[int, ...]]]:
        """The different texts of each batch and place in it: one, unless a repetition deviates."""
        found: dict[tuple[str, int], list[tuple[int, ...]]] = {}
        for s in self.samples:
            if (s.workload, s.side, s.method) == (workload, side, method):
                for i, tokens in enumerate(s.tokens):
                    texts = found.setdefault((s.prompt, i), [])
                    texts += [tuple(tokens)] if tuple(tokens) not in texts else []
        return found

    def _difference(
        self, workload: str, key: tuple[str, int], texts: list[tuple[int, ...]], reference: tuple[int, ...]
    ) -> Difference | None:
        name, place = key
        other = next((text for text in texts if text != reference), None)
        if other is None:
            return None
        known = (workload, key, other, reference)
        if known not in self._known:
            prompt = self.prompts[workload, name].prompts[place]
            self._known[known] = difference(name, prompt, other, reference, self.model)
        return self._known[known]


def _resident(device: Any) -> int:
    import torch

    return resident(torch.device(device or "cpu"))
