"""Judging: from raw logits at every node to an accepted path, all sequences at once, one device-to-host sync."""

from __future__ import annotations

import math
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

import torch

from paceline.errors import NON_FINITE, BadRequest, ModelError
from paceline.models.nodes import Scores
from paceline.sequence import Sequence
from paceline.tree import TokenTree
from paceline.verifiers.base import MatchVerifier


@dataclass(frozen=True)
class Judged:
    """A verdict with what the rest of the step needs.

    Attributes:
        path: accepted nodes, root first.
        run: the accepted nodes' tokens, the bonus token, and tokens that the verifier trusts unverified.
        nodes: where each token of `run` was chosen: `path`, and nodes behind it.
        states: the policy's state after each token of `run`.
        rows: `[N + 1, V]` policy scores at every node.
        peeked: on the host, flat float64: what the drafter asked for.
    """

    path: list[int]
    run: list[int]
    nodes: list[int]
    states: list[tuple[Any, ...]]
    rows: torch.Tensor
    peeked: torch.Tensor


@dataclass(frozen=True)
class Question:
    """What one sequence's verdict depends on, before the host has seen any of it.

    Attributes:
        rows: `[N + 1, V]` policy scores.
        states: the policy's state at every node.
        peaks: `[N + 1]` best policy score of every node.
        answer: flat, still on the device: the token chosen at every node, or all log-distributions.
        chosen: which of the two.
        peeked: flat, still on the device: what the drafter asked for.
    """

    rows: torch.Tensor
    states: list[tuple[Any, ...]]
    peaks: torch.Tensor
    answer: torch.Tensor
    chosen: bool
    peeked: torch.Tensor

    @property
    def parts(self) -> tuple[torch.Tensor, ...]:
        return self.peaks, self.answer, self.peeked


def judge(sequences: Seq[Sequence], trees: Seq[TokenTree], scores: Scores) -> list[Judged | Exception]:
    """Apply each sequence's policy and verifier. A sequence's own failure is returned in its place."""
    questions = [
        _attempt(_ask, sequence, tree, scores.of(i))
        for i, (sequence, tree) in enumerate(zip(sequences, trees, strict=True))
    ]
    asked = [question for question in questions if isinstance(question, Question)]
    wanted = [scores.logits.amax(-1), *(part for question in asked for part in question.parts)]
    # Everything the host needs leaves the device in one transfer.
    host = iter(torch.cat([part.double() for part in wanted]).cpu().split([len(part) for part in wanted]))
    finite = next(host).isfinite().tolist()
    judged: list[Judged | Exception] = []
    for i, (sequence, tree, question) in enumerate(zip(sequences, trees, questions, strict=True)):
        verdict: Judged | Exception
        if isinstance(question, Question):
            parts = [next(host) for _ in question.parts]
            verdict = _attempt(_conclude, sequence, tree, question, *parts, scores.of(i))
        else:
            verdict = question
        if not all(finite[scores.starts[i] : scores.starts[i + 1]]):
            verdict = ModelError(NON_FINITE.format("model"))
        judged.append(verdict)
    return judged


def _attempt(work: Any, *args: Any) -> Any:
    """What `work` returns, or the exception it raises: a part that fails ends its own sequence only."""
    try:
        return work(*args)
    except Exception as error:
        return error


def _ask(sequence: Sequence, tree: TokenTree, logits: torch.Tensor) -> Question:
    pipeline, verifier = sequence.pipeline, sequence.verifier
    rows, states = pipeline.over(tree, logits, sequence.state)
    if rows.shape != logits.shape:
        raise ValueError(f"policies: scores of shape {tuple(logits.shape)} came back as {tuple(rows.shape)}")
    chosen = True
    if pipeline.greedy and verifier.walks_greedily:
        answer = rows.argmax(-1)
    elif isinstance(verifier, MatchVerifier):
        positions = [sequence.generated + int(depth) for depth in tree.depth]
        answer = verifier.choose(rows, sequence.chance, positions).reshape(len(tree))
    else:
        answer, chosen = rows.log_softmax(-1).flatten(), False
    peeked = sequence.drafter.peek(sequence, tree, logits, rows)
    return Question(
        rows, states, rows.amax(-1), answer, chosen, rows.new_empty(0) if peeked is None else peeked.flatten()
    )


def _conclude(
    sequence: Sequence,
    tree: TokenTree,
    question: Question,
    peaks: torch.Tensor,
    answer: torch.Tensor,
    peeked: torch.Tensor,
    logits: torch.Tensor,
) -> Judged:
    verifier, chance, position = sequence.verifier, sequence.chance, sequence.generated
    if question.chosen:
        verdict = verifier.walk(tree, answer.long().tolist(), chance, position)
    elif sequence.pipeline.greedy:
        verdict = verifier.verify_greedy(tree, answer.view(len(tree), -1))
    else:
        drawn = sequence.drafter.late(sequence, tree)
        verdict = verifier.verify(drawn, answer.view(len(tree), -1), chance, position)
    path, last = verdict.path, verdict.path[-1]
    # Nodes off the path may be dead ends; a text must not go on from one.
    reached = peaks.tolist()
    if not all(math.isfinite(reached[node]) for node in path):
        raise BadRequest("policies: they leave no token that may come next; loosen one of them")
    run = [*(int(tree.tokens[node]) for node in path[1:]), verdict.bonus]
    after = sequence.pipeline.advance(question.states[last], verdict.bonus, question.rows[last])
    judged = Judged(path, run, path, [*(question.states[node] for node in path[1:]), after], question.rows, peeked)
    return _unverified(sequence, judged, verdict.behind, logits) if verdict.behind else judged


def _unverified(sequence: Sequence, judged: Judged, behind: Seq[int], logits: torch.Tensor) -> Judged:
    """Go on with what the nodes behind the path say, as long as the verifier trusts it."""
    pipeline, verifier = sequence.pipeline, sequence.verifier
    assert isinstance(verifier, MatchVerifier)
    run, nodes, states, rows = [*judged.run], [*judged.nodes], [*judged.states], judged.rows.clone()
    for node in behind:
        if run[-1] in sequence.end_tokens or pipeline.is_final(states[-1]):
            break
        # The history is that of the text, whatever stands in the tree.
        row = pipeline.transform(logits[node : node + 1], [states[-1]])
        position = sequence.generated + len(run)
        chosen = row.argmax(-1) if pipeline.greedy else verifier.choose(row, sequence.chance, [position])
        text = [*sequence.tokens, *run, int(chosen)]
        if not verifier.trusts(row[0].log_softmax(-1), text, len(run) + 1 - len(judged.path)):
            break
        states.append(pipeline.advance(states[-1], text[-1], row[0]))
        run.append(text[-1])
        nodes.append(node)
        rows[node] = row[0]
    return Judged(judged.path, run, nodes, states, rows, judged.peeked)
