"""Lessons for a draft: text that its target continued, with the target's best guesses at every token.

A draft is asked to guess what its target *writes*, which is not what people write: a small target repeats itself
and loses the thread in ways of its own. So the teacher continues prompts cut from the training text, and the draft
learns from prompt and continuation alike (sequence-level distillation, Kim and Rush 2016; on-policy data for
drafts, Zhou et al. 2024). The teacher's `TOP` likeliest next tokens are stored while it writes: it never runs
again, so that several epochs cost no more than training on plain text.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from paceline.errors import BadRequest

from .packing import PackedTokens

TOP = 16
ROWS = 128
"""Rows written at a time: enough that reading the teacher's weights costs little beside the arithmetic."""
HEAD_POSITIONS = 4096
"""Positions whose logits are in memory at a time while prompts are read."""


@dataclass(frozen=True, slots=True)
class Writing:
    """What the teacher writes.

    Attributes:
        tokens: predicted tokens in all, prompts included.
        share: part of them that the teacher writes itself; the rest are the prompts. 0: it only reads.
        length: tokens of a row after its first.
        temperature: of every second row; the others take the likeliest token.
    """

    tokens: int = 3_000_000
    share: float = 0.6
    length: int = 512
    temperature: float = 0.8

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise BadRequest(f"own_text: {self.share} is not allowed; a number from 0 up to 1 is needed")
        if self.tokens < self.length:
            raise BadRequest(f"lessons: {self.tokens} is not allowed; at least {self.length} tokens fill a row")

    @property
    def rows(self) -> int:
        """Rows in all."""
        return self.tokens // self.length

    def prompt(self, chance: np.random.Generator) -> int:
        """Length of a prompt: half to one and a half times the mean."""
        mean = (1 - self.share) * self.length
        return min(max(1, round(mean * chance.uniform(0.5, 1.5))), self.length) if self.share else self.length


class Guesses(NamedTuple):
    """A teacher's likeliest next tokens `[..., top]`, best first, and their log-probabilities."""

    tokens: torch.Tensor
    scores: torch.Tensor


class Lessons:
    """A file of lessons as batches. A batch is a function of its index alone; each epoch has another order."""

    def __init__(self, path: Path, seed: int = 0) -> None:
        described = json.loads(path.with_suffix(".json").read_text())
        self.length: int = described["length"]
        self.rows = np.memmap(path, _row(self.length, described["top"]), mode="r")
        self.seed = seed
        self._epoch: tuple[int, np.ndarray] | None = None

    def batch(self, index: int, size: int) -> tuple[torch.Tensor, Guesses]:
        """Batch number `index`: `size` windows `[size, length + 1]`, and the guesses at all but the first tokens."""
        rows = np.stack([self._one(index * size + i) for i in range(size)])
        tokens, guesses = (torch.from_numpy(rows[name].astype(np.int64)) for name in ("tokens", "guesses"))
        return tokens, Guesses(guesses, torch.from_numpy(rows["scores"].astype(np.float32)))

    def _one(self, index: int) -> np.void:
        epoch, position = divmod(index, len(self.rows))
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = epoch, np.random.default_rng((self.seed, epoch)).permutation(len(self.rows))
        return self.rows[self._epoch[1][position]]


def _row(length: int, top: int) -> np.dtype[np.void]:
    return np.dtype(
        [("tokens", "<u2", (length + 1,)), ("guesses", "<u2", (length, top)), ("scores", "<f2", (length, top))]
    )


def lesson_loss(logits: torch.Tensor, targets: torch.Tensor, guesses: Guesses, distill: float) -> torch.Tensor:
    """Cross-entropy with the text, mixed with KL(teacher || model) over the guesses and everything else as one.

    Args:
        logits: `[N, V]` float32 of the model.
        targets: `[N]` the tokens that follow.
        guesses: `[N, top]`.
        distill: weight of the divergence, 0 to 1.

    Returns:
        The mean over positions, in nats.
    """
    # One pass over the vocabulary; all the rest is on the few columns that were kept.
    kept = logits.log_softmax(-1).gather(1, torch.cat([targets[:, None], guesses.tokens], 1))
    text, ours = -kept[:, 0], kept[:, 1:]
    mass = guesses.scores.exp()
    rest = _rest(mass)
    divergence = (mass * (guesses.scores - ours)).sum(-1) + rest * (rest.log() - _rest(ours.exp()).log())
    return torch.lerp(text, divergence, distill).mean()


def _rest(mass: torch.Tensor) -> torch.Tensor:
    """The probability `[N]` that is left beside `[N, top]`; never 0, so that it has a logarithm."""
    return (1 - mass.sum(-1)).clamp(min=1e-6)


@torch.inference_mode()
def write_lessons(
    teacher: PreTrainedModel,
    text: PackedTokens,
    writing: Writing,
    path: Path,
    seed: int = 0,
    advance: Callable[[int], None] = lambda count: None,
) -> None:
    """Let the teacher continue prompts cut from windows of `text` (of the writing's length) into a file of lessons.

    `advance` is called with the number of rows finished, for a progress bar.
    """
    top = min(TOP, teacher.config.vocab_size)
    chance = np.random.default_rng(seed)
    torch.manual_seed(seed)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        for index, start in enumerate(range(0, writing.rows, ROWS)):
            count = min(ROWS, writing.rows - start)
            prompts = text.batch(index, ROWS)[:count, : writing.prompt(chance)].to(teacher.device)
            tokens, guesses = continue_rows(teacher, prompts, writing, top)
            rows = np.empty(count, _row(writing.length, top))
            rows["tokens"] = tokens.cpu()
            rows["guesses"], rows["scores"] = guesses.tokens.cpu(), guesses.scores.cpu()
            rows.tofile(file)
            advance(count)
    path.with_suffix(".json").write_text(json.dumps(describe(teacher, writing)) + "\n")
    partial.replace(path)


def describe(teacher: PreTrainedModel, writing: Writing) -> dict[str, Any]:
    """What a file of lessons is, as stored beside it."""
    mark = hashlib.sha256(embeddings(teacher).float().cpu().numpy().tobytes()).hexdigest()[:16]
    return {**dataclasses.asdict(writing), "top": min(TOP, teacher.config.vocab_size), "teacher": mark}


def embeddings(model: PreTrainedModel) -> torch.Tensor:
    """The input embeddings `[V, d]`, not copied."""
    table: Any = model.get_input_embeddings()
    weight: torch.Tensor = table.weight.detach()
    return weight


def continue_rows(
    teacher: PreTrainedModel, prompts: torch.Tensor, writing: Writing, top: int
) -> tuple[torch.Tensor, Guesses]:
    """Prompts `[R, P]` continued to `[R, length + 1]`, and the guesses `[R, length, top]` on the way."""
    count, read = prompts.shape
    heat = torch.tensor([0.0, writing.temperature], device=prompts.device).repeat(count)[:count]
    tokens = F.pad(prompts, (0, writing.length + 1 - read))
    guesses = Guesses(
        tokens.new_empty((count, writing.length, top)),
        torch.empty((count, writing.length, top), dtype=torch.float16, device=prompts.device),
    )
    cache = Cache(layers=[Buffered(writing.length) for _ in range(teacher.config.num_hidden_layers)])
    seen = 0
    for end in range(read, writing.length + 1):
        output = teacher.base_model(input_ids=tokens[:, seen:end], past_key_values=cache, use_cache=True)
        for hidden in output.last_hidden_state.split(max(1, HEAD_POSITIONS // count), 1):
            laws = teacher.get_output_embeddings()(hidden).float().log_softmax(-1)
            part = slice(seen, seen := seen + hidden.shape[1])
            scores, best = laws.topk(top)
            guesses.tokens[:, part], guesses.scores[:, part] = best, scores.half()
        tokens[:, end] = choose(laws[:, -1], heat)
    return tokens, guesses


def choose(laws: torch.Tensor, heat: torch.Tensor) -> torch.Tensor:
    """A token `[R]` of each law `[R, V]` (logarithms) at temperatures `[R]`; 0 takes the likeliest."""
    best = laws.argmax(-1)
    if (drawn := heat > 0).any():
        mass = (laws[drawn] / heat[drawn, None]).softmax(-1).cumsum(-1)
        # One uniform number a row, found by bisection: a draw of noise for every token would take longest of all.
        goal = torch.rand_like(mass[:, :1]) * mass[:, -1:]
        best[drawn] = torch.searchsorted(mass, goal, right=True).squeeze(1).clamp(max=laws.shape[1] - 1)
    return best


def halve_products(model: PreTrainedModel) -> None:
    """Let a float32 model multiply matrices in bfloat16.

    Attention stays in float32: one query a row is three times slower in bfloat16 on a CPU, and takes longer than
    all matrix products when many rows are written.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight = nn.Parameter(module.weight.bfloat16(), requires_grad=False)
            module.register_forward_pre_hook(lambda module, inputs: (inputs[0].bfloat16(),))
            module.register_forward_hook(lambda module, inputs, output: output.float())


class Buffered(DynamicLayer):
    """A cache layer with room for `capacity` tokens from the start: nothing is copied when it grows."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        rows, heads, _, dim = key_states.shape
        self.room = key_states.new_empty((2, rows, heads, self.capacity, dim))
        self.keys, self.values = self.room[..., :0, :]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append keys and values `[R, H, T, D]`; returns all of them so far, views of the buffer."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[2]
        self.room[0, :, :, start:end] = key_states
        self.room[1, :, :, start:end] = value_states
        self.keys, self.values = self.room[..., :end, :]
        return self.keys, self.values
