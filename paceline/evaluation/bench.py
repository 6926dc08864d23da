"""A whole benchmark: models of several sizes, workloads, contestants, equality checks, one report."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from paceline.api import Engine
from paceline.errors import BadRequest, Unsupported
from paceline.evaluation import own, peers, workloads
from paceline.evaluation.equality import Difference, difference
from paceline.evaluation.memory import resident
from paceline.evaluation.provenance import provenance
from paceline.evaluation.report import Report, SizeInfo
from paceline.evaluation.runner import Arena, Batch, batches, interleaved
from paceline.evaluation.samples import Contestant, Job, Sample
from paceline.evaluation.summary import OWN_PLAIN, PEER_PLAIN
from paceline.models.inflate import INFLATED
from paceline.requests import Sampling, check_temperature
from paceline.settings import build_pipeline, settings_of

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
    view: str | None = None
    dtype: str | None = None
    device: str | None = None
    repeats: int = 1
    temperatures: tuple[float, ...] = (0.0,)
    seed: int = 0
    batch: int = 1
    at_once: int | None = None
    shortest: int | None = None
    peers: tuple[str, ...] = ("all",)
    assistant: str | None = None
    fresh: bool = True
    least: float = 0.0
    budget: float | None = None

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "repeats", "batch"):
            if getattr(self, name) < 1:
                raise BadRequest(f"{name}: {getattr(self, name)} is not allowed; at least 1 is needed")
        self._check_batch()
        if not self.sizes:
            raise BadRequest(f"sizes: none given; {AS_IS!r} stands for the model as it is")
        if unknown := [size for size in self.sizes if size not in (AS_IS, *INFLATED)]:
            raise BadRequest(f"sizes: {unknown[0]!r} is unknown; {', '.join((AS_IS, *INFLATED))} are allowed")
        if not self.workloads:
            raise BadRequest(f"workloads: none given; {', '.join(('all', *workloads.NAMES))} are allowed")
        if not self.temperatures:
            raise BadRequest("temperature: none given; 0 is greedy")
        for temperature in self.temperatures:
            check_temperature(temperature)
        if self.budget is not None and not self.budget >= 0:
            raise BadRequest(f"budget: {self.budget} is not allowed; a number of seconds of at least 0 is needed")
        if not 0 <= self.least < 1:
            raise BadRequest(f"least: {self.least} is not allowed; 0 (keep all) to below 1 is")
        peers.chosen(self.peers)
        build_pipeline(settings_of(Sampling(temperature=max(self.temperatures), seed=self.seed), self.policies))

    def _check_batch(self) -> None:
        most = {"at_once": self.batch, "shortest": self.max_new_tokens}
        for name in most:
            value = getattr(self, name)
            if value is not None and self.batch == 1:
                raise BadRequest(f"{name}: {value} is of batches, and batch is 1")
            if value is not None and not 1 <= value <= most[name]:
                raise BadRequest(f"{name}: {value} is not allowed; 1 to {most[name]} is")

    @property
    def jobs(self) -> list[Job]:
        """What every contestant does with a prompt."""
        temperatures = dict.fromkeys(self.temperatures)
        return [Job(self.max_new_tokens, temperature, self.seed, self.shortest) for temperature in temperatures]

    @property
    def assistant_name(self) -> str | None:
        """The draft model for transformers' assisted generation."""
        return self.assistant or (POCKET_DRAFT if self.model == POCKET else None)


#: Settings under which samples of one report must agree.
FIXED = (
    "model",
    "view",
    "max_new_tokens",
    "dtype",
    "device",
    "batch",
    "at_once",
    "shortest",
    "seed",
    "verifier",
    "policies",
    "fresh",
    "assistant",
)


def run(
    settings: Settings,
    progress: Callable[[str], None],
    report: Report | None = None,
    save: Callable[[Report], None] = lambda report: None,
) -> Report:
    """Measure everything, or what is missing in an earlier report, size by size (one size in memory at a time).

    Args:
        settings: what to measure.
        progress: told what is about to happen.
        report: an earlier one to go on with. It may lack methods, sizes, workloads, temperatures.
        save: called after every round, so that nothing measured is lost.

    Raises:
        BadRequest: nothing to measure, or the earlier report was made under other settings.
    """
    report = _continued(report, settings)
    began = time.monotonic()
    data = Path(settings.data) if settings.data is not None else None
    prompts, missing = workloads.load(settings.workloads, data, settings.limit)
    report.skipped.update(missing)
    if not prompts:
        raise BadRequest(f"workloads: nothing to measure; {'; '.join(missing.values())}")
    complete = True
    for done, size in enumerate(settings.sizes):
        progress(f"{size}: loading")
        field = _Size(settings, size, report, lambda: save(report))
        complete &= field.measure(prompts, progress, _deadline(settings, began, len(settings.sizes) - done))
        del field
        gc.collect()
    report.complete = complete
    return report


def _deadline(settings: Settings, began: float, sizes: int) -> float | None:
    """When a size must be done: what is left of the budget is shared evenly among the sizes that are left."""
    if settings.budget is None:
        return None
    now = time.monotonic()
    return now + (began + settings.budget - now) / sizes


def _continued(report: Report | None, settings: Settings) -> Report:
    asked = asdict(settings)
    if report is None:
        return Report(asked)
    for name in FIXED:
        if report.settings.get(name) != asked[name]:
            raise BadRequest(f"resume: the report has {name} {report.settings.get(name)!r}, not {asked[name]!r}")
    for name in ("sizes", "drafters", "workloads", "temperatures", "peers"):
        asked[name] = tuple(dict.fromkeys([*report.settings[name], *asked[name]]))
    again = tuple(f"({size}" for size in settings.sizes)
    report.skipped = {name: why for name, why in report.skipped.items() if not any(part in name for part in again)}
    report.settings = asked
    now = provenance()
    report.provenance.setdefault("resumed", []).append({name: now[name] for name in ("date", "commit", "argv")})
    return report


class _Size:
    """One size of the model, with Paceline's engine and transformers' modules loaded side by side."""

    def __init__(self, settings: Settings, size: str, report: Report, save: Callable[[], None]) -> None:
        self.settings, self.size, self.report, self.save = settings, size, report, save
        inflated = None if size == AS_IS else size
        kind: dict[str, Any] = {"dtype": settings.dtype, "device": settings.device, "inflated": inflated}
        empty = _resident(None)
        own_kind = {**kind, "view": settings.view}  # transformers runs all of the model
        rows = settings.at_once or settings.batch
        self.engine = Engine.load(settings.model, max_rows=rows, drafter=own.PLAIN, **own_kind)
        model = self.engine.model
        if model.opening:
            raise Unsupported(f"bench: {model.name} has an encoder, and the workloads are texts to be continued")
        loaded = resident(model.device)
        found, skipped = own.methods(self.engine, list(settings.drafters), settings.verifier, settings.policies)
        self.contestants: list[Contestant] = [*found]
        report.skipped.update({f"{name} ({size})": reason for name, reason in skipped.items()})
        for method in found:
            job = next((job for job in settings.jobs if method.refusal(job) is None), None)
            if job is not None:
                report.methods[method.name] = method.about(job)
        before_peers = resident(model.device, collect=False)
        measured = bool(peers.chosen(settings.peers))
        if measured and (settings.at_once or settings.shortest):
            measured, report.skipped["transformers"] = False, "it writes a batch's texts all at once, and equally long"
        if measured:
            self._add_peers(kind)
        report.sizes[size] = SizeInfo(
            label=_label(settings, size),
            inflated=inflated is not None,
            parameters=model.parameters,
            weight_bytes=model.nbytes,
            dtype=str(model.module.dtype).removeprefix("torch."),
            path=model.path,
            own_bytes=loaded - empty,
            peer_bytes=resident(model.device, collect=False) - before_peers if measured else None,
            held={method.name: method.held for method in found},
        )

    def _add_peers(self, kind: dict[str, Any]) -> None:
        settings, report, wanted = self.settings, self.report, peers.chosen(self.settings.peers)
        module = peers.load_peer(settings.model, **kind)
        assistant = None
        if peers.ASSISTED in wanted:
            if settings.assistant_name is None:
                report.skipped[f"transformers {peers.ASSISTED}"] = (
                    "no draft model is known for this model; name one with --assistant"
                )
            else:
                assistant = peers.load_peer(settings.assistant_name, settings.dtype, settings.device, None)
        for peer in peers.peers(module, assistant):
            if peer.name in wanted and peer.single and settings.batch > 1:
                report.skipped[f"transformers {peer.name}"] = "transformers generates one prompt at a time in this mode"
            elif peer.name in wanted:
                self.contestants.append(peer)

    def measure(
        self, prompts: dict[str, list[workloads.Prompt]], progress: Callable[[str], None], deadline: float | None
    ) -> bool:
        settings, report, model = self.settings, self.report, self.engine.model
        groups = [found for name, texts in prompts.items() if (found := self._batches(name, texts))]
        if not groups:
            raise BadRequest(f"workloads: no prompt fits the context of {model.context} tokens")
        todo = interleaved(groups)
        planned = {group[0].workload: len(group) * settings.repeats for group in groups}
        report.planned[self.size] = report.planned.get(self.size, {}) | planned
        arena = Arena(
            self.size,
            self.contestants,
            settings.jobs,
            model.device,
            settings.fresh,
            progress,
            report.samples,
            settings.least,
            self.save,
            report.skipped,
        )
        arena.warm_up(min(todo, key=lambda batch: sum(map(len, batch.prompts))))
        try:
            return arena.play(todo, settings.repeats, deadline)
        finally:
            progress(f"{self.size}: comparing texts")
            self._compare({(batch.workload, batch.name): batch for batch in todo})

    def _batches(self, workload: str, prompts: list[workloads.Prompt]) -> list[Batch]:
        room = self.engine.model.context - self.settings.max_new_tokens
        coded = [(p.name, self.engine.tokenizer(p.text)["input_ids"]) for p in prompts]
        fitting = [(name, ids) for name, ids in coded if len(ids) <= room]
        if len(fitting) < len(coded):
            reason = f"{len(coded) - len(fitting)} of {len(coded)} prompts exceed {room} tokens"
            self.report.skipped[f"{workload} (part)"] = reason
        return batches(workload, fitting, self.settings.batch) if fitting else []

    def _compare(self, todo: dict[tuple[str, str], Batch]) -> None:
        """For each method and each plain decoding: on how many prompts the tokens are the same."""
        for temperature in dict.fromkeys(s.temperature for s in self.report.samples if s.size == self.size):
            mine = [s for s in self.report.samples if (s.size, s.temperature) == (self.size, temperature)]
            known = self.report.identical.setdefault(self.size, {}).setdefault(f"{temperature:g}", {})
            known.update(self._identical(mine, todo, temperature))

    def _identical(
        self, samples: list[Sample], todo: dict[tuple[str, str], Batch], temperature: float
    ) -> dict[str, Any]:
        """By workload and method. Sampled texts are the same where one seed gives one text; never transformers'."""
        references = {OWN_PLAIN: (own.SIDE, own.PLAIN)} if not temperature or own.seeded(self.settings.verifier) else {}
        if not temperature and any(s.side == peers.SIDE and s.method == peers.PLAIN for s in samples):
            references[PEER_PLAIN] = (peers.SIDE, peers.PLAIN)
        checker = _Checker(self.engine.model, todo, samples)
        return {
            workload: {
                f"{side} {method}": {
                    name: checker.compare(workload, side, method, *ref) for name, ref in references.items()
                }
                for side, method in dict.fromkeys((s.side, s.method) for s in samples if s.workload == workload)
                if side == own.SIDE or not temperature
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
            # A prompt of an earlier run may not be among those of this one: then the gap stays unknown.
            batch = self.prompts.get((workload, name))
            prompt, model = (batch.prompts[place], self.model) if batch else ((), None)
            self._known[known] = difference(name, prompt, other, reference, model)
        return self._known[known]


def _label(settings: Settings, size: str) -> str:
    """A size for people: whether it is inflated, and which view Paceline's side follows."""
    inflated = "" if size == AS_IS else ", inflated"
    return f"{size}{inflated}" + (f", Paceline by the view {settings.view}" if settings.view is not None else "")


def _resident(device: Any) -> int:
    import torch

    return resident(torch.device(device or "cpu"))
