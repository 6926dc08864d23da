"""The step: propose, score, judge, keep - for all live sequences at once.

    drafter --tree--> model --logits/node--> policy --law/node--> verifier --path--> cache, text

Sequences are admitted and finish at any step; each has its own tree, drafter, policy and randomness. A sequence
that fails (bad policy, exception in a callback, non-finite logits) ends alone with its error.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import torch

from paceline.controllers.base import Controller, Unlimited
from paceline.decoders.judge import Judged, judge
from paceline.decoders.logprobs import prompt_logprobs, token_logprobs
from paceline.drafters.base import Drafter, Outcome
from paceline.drafters.lighter import without_second
from paceline.ending import Ending, trim
from paceline.models.nodes import Scores
from paceline.policies.base import Context
from paceline.requests import Event, Stats
from paceline.sequence import Sequence
from paceline.tree import TokenTree


class TreeDecoder:
    """Continuous batching of token-tree decoding on one model.

    Args:
        model: a `CausalModel`, or anything with its `score`, `prefill`, `new_cache`, `limit`, `vocab_size`,
            `end_tokens` and `device`.
        max_rows: most sequences decoded at once; further ones wait.
        nodes: most drafted nodes a tree.
        prefill_chunk: prompt tokens a forward pass.
        controller: may allow less than these; nothing is limited further by default.
    """

    def __init__(
        self,
        model: Any,
        *,
        max_rows: int = 8,
        nodes: int = 15,
        prefill_chunk: int = 512,
        controller: Controller | None = None,
    ) -> None:
        self.model, self.nodes, self.prefill_chunk = model, nodes, prefill_chunk
        self.max_rows = max_rows
        self.cache = model.new_cache(max_rows)
        self.controller = controller or Unlimited()
        self.controller.attach(model, self.cache)
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self._events: list[Event] = []

    # -- what callers use ---------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether any sequence waits or runs."""
        return bool(self.waiting or self.running)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence; it is admitted when a row is free."""
        self.waiting.append(sequence)

    @torch.inference_mode()
    def cancel(self, request_id: int) -> list[Event]:
        """End every sequence of a request now; their rows are free at once."""
        before = len(self._events)  # of the step in progress, should a callback be what cancels
        for sequence in [s for s in (*self.waiting, *self.running) if s.request.id == request_id]:
            event = Event(request_id, sequence.index, finish_reason="cancelled")
            self._guarded(sequence, self._finish, "cancelled", event)
        events = self._events[before:]
        del self._events[before:]
        return events

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """One forward pass for every running sequence, then admit what fits. Returns what happened."""
        if self.running:
            self._step(list(self.running))
        while self.waiting and len(self.running) < self.max_rows:
            if not self.controller.admits(self.running, self.waiting[0]):
                break
            self._admit(self.waiting.popleft())
        events, self._events = self._events, []
        return events

    # -- admission ----------------------------------------------------------------------------------------

    def _admit(self, sequence: Sequence) -> None:
        began = time.perf_counter()
        self._guarded(sequence, self._begin)
        sequence.stats.prefill += time.perf_counter() - began
        # The first pass carries the rest of the prompt; taken alone it does not stretch the others' pass.
        if sequence.error is None:
            self._step([sequence])

    def _begin(self, sequence: Sequence) -> None:
        self._retire([*self.running, sequence])
        sequence.cache, sequence.row = self.cache, self.cache.allocate()
        sequence.row.prompt = sequence.prompt_length
        self.running.append(sequence)
        prompt = tuple(sequence.tokens)
        seen = prompt[sequence.source :]
        context = Context(seen, self.model.vocab_size, sequence.end_tokens, self.model.device)
        sequence.state = sequence.pipeline.start(context)
        self._prefill(sequence, list(prompt))
        sequence.drafter.begin(sequence)

    def _prefill(self, sequence: Sequence, prompt: list[int]) -> None:
        """Commit the prompt but for a last stretch, which rides with the first tree."""
        row, sampling = sequence.row, sequence.request.sampling
        chunk = self.controller.prefill_chunk(self.running, self.prefill_chunk)
        if sampling.logprobs is not None and sampling.scores_prompt:
            for at in range(0, len(prompt) - 1, chunk):
                part = prompt[at : at + chunk + 1]
                (logits,) = self.model.prefill(self.cache, row, part[:-1], chunk, logits=True)
                sequence.prompt_logprobs += prompt_logprobs(logits, part[1:], sampling.logprobs)
            return
        sibling = next((s for s in self.running if s.request is sequence.request and s.generated), None)
        if sibling is not None:
            self.cache.copy(sibling.row, row)
            self.cache.crop(row, len(prompt) - 1)
        whole = (len(prompt) - 1) // chunk * chunk
        self.model.prefill(self.cache, row, prompt[sequence.cached : whole], chunk)

    # -- the step -----------------------------------------------------------------------------------------

    def _step(self, sequences: list[Sequence]) -> None:
        clock = _Clock(len(sequences))
        trees = self._propose(sequences)
        live = [s for s in sequences if s.finish_reason is None]
        clock.lap("draft")
        kept: list[tuple[Outcome, Ending]] = []
        for group, scores in self._score(live, trees):
            clock.lap("score")
            judged = judge(group, [trees[s] for s in group], scores)
            clock.lap("judge")
            outcomes = [
                self._guarded(s, self._keep, trees[s], verdict, scores, i)
                for i, (s, verdict) in enumerate(zip(group, judged, strict=True))
            ]
            kept += [outcome for outcome in outcomes if outcome is not None]
            clock.lap("keep")
        self._tell_drafters([outcome for outcome, _ in kept])
        clock.lap("draft")
        for outcome, _ in kept:
            clock.charge(outcome.sequence.stats)
        for outcome, ending in kept:
            # A callback may have cancelled a later one.
            if outcome.sequence.finish_reason is None:
                began = time.perf_counter()
                self._guarded(outcome.sequence, self._emit, outcome, ending)
                outcome.sequence.stats.other += time.perf_counter() - began

    def _propose(self, sequences: list[Sequence]) -> dict[Sequence, TokenTree]:
        self._retire(self.running)
        trees: dict[Sequence, TokenTree] = {}
        nodes = self.controller.nodes(self.running, self.nodes)
        joining = self._joining()
        for drafter, group in _by_drafter(sequences, lambda s: s):
            budget, drafter.joining = [self._budget(s, nodes) for s in group], joining
            try:
                for s, tree, (nodes, depth) in zip(group, drafter.propose(group, budget), budget, strict=True):
                    trees[s] = self._checked(s, tree.limit(nodes, depth))
            except Exception as error:  # the drafter's sequences end, the others go on
                for s in group:
                    self._fail(s, error)
        return trees

    def _joining(self) -> int:
        """Waiting texts that are about to begin, as things stand."""
        most = min(len(self.waiting), self.max_rows - len(self.running))
        return most if most > 0 and self.controller.admits(self.running, self.waiting[0]) else 0

    def _checked(self, sequence: Sequence, tree: TokenTree) -> TokenTree:
        """A wrong root would change the text without a word; an unknown token can take a GPU's whole process down."""
        if tree.root != sequence.tokens[-1]:
            raise ValueError(f"the draft's root is token {tree.root}, but the text ends in {sequence.tokens[-1]}")
        if tree.tokens.min() < 0 or tree.tokens.max() >= self.model.vocab_size:
            raise ValueError(f"the draft {tree.tokens[1:].tolist()} holds token ids outside the vocabulary")
        return tree

    def _retire(self, sequences: list[Sequence]) -> None:
        """Texts whose second models may keep nothing of them any more go on with drafters that have none."""
        for sequence in self.controller.retired(sequences):
            drafter, sequence.drafter = sequence.drafter, without_second(sequence.drafter, sequence.verifier)
            if sequence.row is not None:
                self._guarded(sequence, drafter.end)
                self._guarded(sequence, sequence.drafter.begin)

    def _budget(self, sequence: Sequence, nodes: int) -> tuple[int, int]:
        """Most drafted nodes and most useful depth: the last token of a text comes as a bonus, if there is one."""
        spare = self._room(sequence)
        useful = sequence.remaining - sequence.verifier.extends
        return max(0, min(nodes, spare)), max(0, min(useful, spare))

    def _room(self, sequence: Sequence) -> int:
        """Tokens that the model can still read."""
        return self.model.limit(sequence.prompt_length) - len(sequence.tokens)

    def _score(
        self, sequences: list[Sequence], trees: dict[Sequence, TokenTree]
    ) -> Iterator[tuple[list[Sequence], Scores]]:
        """Scores of all sequences together; should their pass fail, of each alone, and the culprit ends."""
        if not sequences:
            return
        rows, pending = [s.row for s in sequences], [s.tokens[s.cached : -1] for s in sequences]
        taps = tuple(sorted({layer for s in sequences for layer in s.drafter.taps}))
        try:
            scores = self.model.score(self.cache, rows, [trees[s] for s in sequences], pending, taps)
        except Exception as error:
            for s in sequences:
                self.cache.crop(s.row, s.cached)
            if len(sequences) == 1:
                self._fail(sequences[0], error)
                return
        else:
            yield sequences, scores
            return
        for s in sequences:
            yield from self._score([s], trees)

    def _keep(
        self, sequence: Sequence, tree: TokenTree, verdict: Judged | Exception, scores: Scores, i: int
    ) -> tuple[Outcome, Ending]:
        if isinstance(verdict, Exception):
            raise verdict
        logits = scores.of(i)
        ending = trim(sequence, verdict.run, verdict.states, self._room(sequence) + 1)
        run, path = verdict.run[: ending.tokens], verdict.path[: ending.tokens]
        before = sequence.uncached - 1
        self.cache.keep(sequence.row, [*range(before), *(before + node for node in path)])
        if (top := sequence.request.sampling.logprobs) is not None:
            nodes = verdict.nodes[: ending.tokens]
            law = sequence.pipeline.distribution(verdict.rows[nodes])
            sequence.logprobs += token_logprobs(logits[nodes], law, run, top)
        sequence.tokens += run
        sequence.state = sequence.pipeline.settle(verdict.states[len(run) - 1])
        accepted = min(len(verdict.path) - 1, len(run))
        sequence.stats.record(int(tree.depth.max()), tree.drafted, accepted, len(run))
        path = verdict.path[: accepted + 1]
        return Outcome(sequence, tree, logits, path, run, verdict.rows, scores.hidden_of(i), verdict.peeked), ending

    def _tell_drafters(self, outcomes: list[Outcome]) -> None:
        for drafter, group in _by_drafter(outcomes, lambda outcome: outcome.sequence):
            try:
                drafter.observe(group)
                drafter.commit(group)
            except Exception as error:
                for outcome in group:
                    self._fail(outcome.sequence, error)

    # -- events and ends ----------------------------------------------------------------------------------

    def _emit(self, sequence: Sequence, outcome: Outcome, ending: Ending) -> None:
        tree = outcome.tree
        kept = set(outcome.path)
        event = Event(
            sequence.request.id,
            sequence.index,
            text=sequence.detokenizer.release(sequence.request.sampling.stop, final=ending.reason is not None),
            tokens=tuple(outcome.tokens),
            accepted=len(outcome.path) - 1,
            rejected=tuple(int(t) for node, t in enumerate(tree.tokens) if node not in kept),
            finish_reason=ending.reason,
            logprobs=tuple(sequence.logprobs[-len(outcome.tokens) :]),
        )
        if ending.reason is None:
            self._send(sequence, event)
        else:
            sequence.stop_reason = ending.cause
            self._finish(sequence, ending.reason, event)

    def _finish(self, sequence: Sequence, reason: str, event: Event) -> None:
        """Release what the sequence holds, then tell its caller."""
        sequence.finish_reason = reason
        sequence.stats.cache_bytes = self.cache.nbytes
        try:
            if sequence in self.waiting:
                self.waiting.remove(sequence)
            if sequence.row is not None:
                row, sequence.row = sequence.row, None
                self.running.remove(sequence)
                self.cache.free(row)
                sequence.drafter.end(sequence)
        finally:
            self._send(sequence, event)

    def _send(self, sequence: Sequence, event: Event) -> None:
        self._events.append(event)
        if sequence.request.callback is not None:
            sequence.request.callback(event)

    def _fail(self, sequence: Sequence, error: Exception) -> None:
        if sequence.error is not None:
            return
        sequence.error = error
        event = Event(sequence.request.id, sequence.index, finish_reason="error", error=error)
        try:
            self._finish(sequence, "error", event)
        except Exception as second:  # a drafter's `end`, or the callback again: the first error is the one to report
            error.add_note(f"and while ending the sequence: {second!r}")

    def _guarded(self, sequence: Sequence, work: Callable[..., Any], *args: Any) -> Any:
        """Run work that belongs to one sequence; an exception ends that sequence and no other."""
        try:
            return work(sequence, *args)
        except Exception as error:
            self._fail(sequence, error)
            return None


class _Clock:
    """Seconds of each phase of a step, shared evenly by the step's sequences."""

    def __init__(self, share: int) -> None:
        self.share, self.last = share, time.perf_counter()
        self.spent = dict.fromkeys(("draft", "score", "judge", "keep"), 0.0)

    def lap(self, phase: str) -> None:
        now = time.perf_counter()
        self.spent[phase] += now - self.last
        self.last = now

    def charge(self, stats: Stats) -> None:
        for name, seconds in self.spent.items():
            # The first pass reads the rest of the prompt; its time is the prompt's.
            phase = "prefill" if name == "score" and stats.forward_passes == 1 else name
            setattr(stats, phase, getattr(stats, phase) + seconds / self.share)


def _by_drafter(items: list[Any], sequence_of: Callable[[Any], Sequence]) -> list[tuple[Drafter, list[Any]]]:
    groups: dict[int, tuple[Drafter, list[Any]]] = {}
    for item in items:
        drafter = sequence_of(item).drafter
        groups.setdefault(id(drafter), (drafter, []))[1].append(item)
    return list(groups.values())
