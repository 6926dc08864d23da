"""Judging: from raw logits at every node to an accepted path, all sequences at once, one device-to-host sync."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

import torch

from paceline.errors import NON_FINITE, ModelError
from paceline.models.causal import Scores
from paceline.sequence import Sequence
from paceline.tree import TokenTree
from paceline.verifiers.base import MatchVerifier, Verdict


@dataclass(frozen=True)
class Judged:
    """A verdict with what the rest of the step needs.

    Attributes:
        path: accepted nodes, root first.
        run: the accepted nodes' tokens, then the bonus token.
        states: the policy's state after each token of `run`.
        rows: `[N + 1, V]` policy scores at every node.
    """

    path: list[int]
    run: list[int]
    states: list[tuple[Any, ...]]
    rows: torch.Tensor


def judge(sequences: Seq[Sequence], trees: Seq[TokenTree], scores: Scores) -> list[Judged | Exception]:
    """Apply each sequence's policy and verifier. A sequence's own failure is returned in its place."""
    laws = [_law(s, tree, scores.of(i)) for i, (s, tree) in enumerate(zip(sequences, trees, strict=True))]
    matched = [i for i, s in enumerate(sequences) if isinstance(s.verifier, MatchVerifier)]
    general = [i for i in range(len(sequences)) if i not in matched]
    chosen = _choose([(sequences[i], trees[i], laws[i][0]) for i in matched])
    logp = [sequences[i].pipeline.distribution(laws[i][0]).flatten() for i in general]
    peaks = scores.logits.amax(-1)
    # Everything the host needs leaves the device in one transfer.
    host = torch.cat([t.double() for t in (peaks, *chosen, *logp)]).cpu()
    finite = torch.isfinite(host[: len(peaks)]).tolist()
    at = len(peaks)
    verdicts: dict[int, Verdict | Exception] = {}
    for i in matched:
        tokens = host[at : at + len(trees[i])].long().tolist()
        at += len(trees[i])
        verifier = sequences[i].verifier
        assert isinstance(verifier, MatchVerifier)
        verdicts[i] = verifier.walk(trees[i], tokens)
    for i, flat in zip(general, logp, strict=True):
        law = host[at : at + len(flat)].view(len(trees[i]), -1)
        at += len(flat)
        try:
            verdicts[i] = sequences[i].verifier.verify(trees[i], law, sequences[i].chance, sequences[i].generated)
        except Exception as error:
            verdicts[i] = error
    judged: list[Judged | Exception] = []
    for i, (sequence, tree) in enumerate(zip(sequences, trees, strict=True)):
        rows, states, failure = laws[i]
        verdict = verdicts[i]
        if not all(finite[scores.starts[i] : scores.starts[i + 1]]):
            failure = ModelError(NON_FINITE.format("model"))
        if failure is None and isinstance(verdict, Exception):
            failure = verdict
        judged.append(failure or _conclude(sequence, tree, verdict, rows, states))  # type: ignore[arg-type]
    return judged


def _law(
    sequence: Sequence, tree: TokenTree, logits: torch.Tensor
) -> tuple[torch.Tensor, list[tuple[Any, ...]], Exception | None]:
    try:
        rows, states = sequence.pipeline.over(tree, logits, sequence.state)
    except Exception as error:
        return logits, [sequence.state] * len(tree), error
    return rows, states, None


def _choose(parts: list[tuple[Sequence, TokenTree, torch.Tensor]]) -> list[torch.Tensor]:
    """Chosen token at every node: `[N + 1]` a sequence, still on the device."""
    chosen = []
    for sequence, tree, rows in parts:
        if sequence.pipeline.greedy:
            chosen.append(rows.argmax(-1))
            continue
        verifier = sequence.verifier
        assert isinstance(verifier, MatchVerifier)
        positions = [sequence.generated + int(depth) for depth in tree.depth]
        chosen.append(verifier.choose(rows, [sequence.chance] * len(tree), positions))
    return chosen


def _conclude(
    sequence: Sequence, tree: TokenTree, verdict: Verdict, rows: torch.Tensor, states: list[tuple[Any, ...]]
) -> Judged | Exception:
    last = verdict.path[-1]
    run = [int(tree.tokens[node]) for node in verdict.path[1:]] + [verdict.bonus]
    try:
        after = sequence.pipeline.advance(states[last], verdict.bonus, rows[last])
    except Exception as error:
        return error
    return Judged(verdict.path, run, [states[node] for node in verdict.path[1:]] + [after], rows)
