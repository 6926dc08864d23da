"""Train a small language model: one loop, one checkpoint, one Hugging Face folder.

The budget is tokens, steps or minutes of work, whichever comes first, and the learning-rate schedule follows
the fraction of it that is used, so that a run of `minutes=90` ends on time *with* its decay. A run on lessons
(see `lessons`) mixes cross-entropy with the divergence from the teacher's guesses: a draft learns to guess what
its target would say.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from paceline.errors import BadRequest

from .lessons import Guesses, Lessons, lesson_loss
from .packing import PackedTokens
from .report import Reporter
from .schedule import OPTIMIZERS, ActiveClock, make_optimizers, rate, set_rate

SHARD = "15MB"


@dataclass(frozen=True, slots=True)
class LMConfig:
    """What a run does. At least one of `tokens`, `steps`, `minutes` bounds it."""

    tokens: int | None = None
    steps: int | None = None
    minutes: float | None = None
    length: int = 1024
    """Window length in tokens."""
    batch: int = 8
    """Windows per step."""
    micro_batch: int = 2
    """Windows per forward pass; 2 x 1024 keeps a pass inside a CPU's last-level cache."""
    lr: float = 3e-3
    warmup: float = 0.02
    """Fraction of the budget for warming up."""
    decay: float = 0.35
    """Fraction of the budget for the final decay."""
    optimizer: str = "muon"
    weight_decay: float = 0.1
    clip: float = 1.0
    distill: float = 0.9
    """Weight of the divergence from the teacher against cross-entropy; used only with lessons."""
    bf16: bool = True
    """Autocast matrix products to bfloat16; weights and optimizer state stay float32."""
    device: str = "cpu"
    seed: int = 0
    validate_windows: int = 32
    save_minutes: float = 10.0
    log_seconds: float = 30.0

    def __post_init__(self) -> None:
        if self.tokens is None and self.steps is None and self.minutes is None:
            raise BadRequest("a run needs a budget: tokens, steps or minutes")
        for name in ("tokens", "steps", "minutes", "lr"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise BadRequest(f"{name}: {value} is not allowed; a number above 0 is needed")
        for name in ("length", "batch", "micro_batch"):
            if getattr(self, name) < 1:
                raise BadRequest(f"{name}: {getattr(self, name)} is not allowed; an integer of at least 1 is needed")
        if not 0 <= self.distill <= 1:
            raise BadRequest(f"distill: {self.distill} is not allowed; a number from 0 to 1 is needed")
        if self.seed < 0:
            raise BadRequest(f"seed: {self.seed} is not allowed; an integer of at least 0 is needed")
        if self.optimizer not in OPTIMIZERS:
            raise BadRequest(f"optimizer: {self.optimizer!r} is unknown; {', '.join(OPTIMIZERS)} are allowed")
        if self.batch % self.micro_batch:
            raise BadRequest(f"batch: {self.batch} is not allowed; a multiple of micro_batch={self.micro_batch} is")

    @property
    def tokens_per_step(self) -> int:
        """Predicted tokens in one step."""
        return self.batch * self.length

    def progress(self, step: int, seconds: float) -> float:
        """Fraction of the budget used after `step` steps and `seconds` of work; 1 or more is the end."""
        used = [0.0]
        if self.tokens is not None:
            used.append(step * self.tokens_per_step / self.tokens)
        if self.steps is not None:
            used.append(step / self.steps)
        if self.minutes is not None:
            used.append(seconds / (60 * self.minutes))
        return max(used)


class Trainer:
    """A model in training. `run()` works to the budget's end, or a signal's stop, and leaves a checkpoint."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        train: PackedTokens | Lessons,
        validation: PackedTokens,
        config: LMConfig,
        out: Path,
        checkpoint: Path,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.train = train
        self.validation = validation
        self.config = config
        self.out = out
        self.checkpoint = checkpoint
        nn.Module.to(model, config.device)
        self.optimizers = make_optimizers(model, config.optimizer, config.lr, config.weight_decay)
        self.step = 0
        self.clock = ActiveClock()
        self.stopping = False

    def run(self, reporter: Reporter) -> float:
        """Train; returns the final validation bits per byte."""
        saved = time.monotonic()
        with self._stop_on_signals(), reporter:
            while not self.stopping and self.progress < 1:
                begin = time.monotonic()
                loss = self.train_step()
                self.clock.add(time.monotonic() - begin)
                reporter.update(self.step, self.progress, loss, self.config.tokens_per_step, self.clock.seconds)
                if time.monotonic() - saved > 60 * self.config.save_minutes and self.progress < 1:
                    self.save()
                    reporter.validated(self.step, self.validate())
                    saved = time.monotonic()
            self.save()
            bits = self.validate()
            reporter.validated(self.step, bits)
            if self.stopping:
                reporter.stopped(self.step)
        return bits

    @property
    def progress(self) -> float:
        """Fraction of the budget used."""
        return self.config.progress(self.step, self.clock.seconds)

    def train_step(self) -> float:
        """One optimizer step on `batch` windows; returns the mean loss in nats per token."""
        config = self.config
        set_rate(self.optimizers, config.lr * rate(self.progress, config.warmup, config.decay))
        parts = config.batch // config.micro_batch
        total = 0.0
        self.model.train()
        for windows, guesses in self._micro_batches():
            loss = self.loss(windows, guesses) / parts
            loss.backward()
            total += float(loss.detach())
        nn.utils.clip_grad_norm_(self.model.parameters(), config.clip)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return total

    def _micro_batches(self) -> Iterator[tuple[torch.Tensor, Guesses | None]]:
        """The windows `[micro_batch, length + 1]` of this step, with the teacher's guesses if there are any."""
        config = self.config
        batch = self.train.batch(self.step, config.batch)
        windows, guesses = batch if isinstance(batch, tuple) else (batch, None)
        for start in range(0, config.batch, config.micro_batch):
            part = slice(start, start + config.micro_batch)
            theirs = guesses and Guesses(*(t[part].to(config.device) for t in guesses))
            yield windows[part].to(config.device), theirs

    def loss(self, windows: torch.Tensor, guesses: Guesses | None = None) -> torch.Tensor:
        """Loss of windows `[batch, length + 1]`: cross-entropy, mixed with the divergence from a teacher's guesses."""
        logits, targets = self._logits(self.model, windows), windows[:, 1:].flatten()
        if guesses is None:
            return F.cross_entropy(logits, targets)
        return lesson_loss(logits, targets, Guesses(*(t.flatten(0, 1) for t in guesses)), self.config.distill)

    def _logits(self, model: PreTrainedModel, windows: torch.Tensor) -> torch.Tensor:
        """Float32 logits of every next token, `[batch * length, vocabulary]`."""
        with torch.autocast(self.config.device, torch.bfloat16, enabled=self.config.bf16):
            logits = model(input_ids=windows[:, :-1], use_cache=False).logits
        return logits.flatten(0, 1).float()

    @torch.no_grad()
    def validate(self, windows: int | None = None) -> float:
        """Bits per byte of (a part of) the validation tokens: `windows` windows, by default the config's."""
        count = min(windows or self.config.validate_windows, self.validation.windows)
        self.model.eval()
        losses = []
        for index in range(count):
            window = self.validation.batch(index, 1).to(self.config.device)
            losses.append(float(F.cross_entropy(self._logits(self.model, window), window[0, 1:])))
        bytes_per_token = self.validation.bytes / len(self.validation.tokens)
        return sum(losses) / len(losses) / math.log(2) / bytes_per_token

    def save(self) -> None:
        """Write the checkpoint (atomically) and the Hugging Face folder."""
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "seconds": self.clock.seconds,
            "config": dataclasses.asdict(self.config),
        }
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        partial = self.checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, self.checkpoint)
        export(self.model, self.tokenizer, self.out)

    def resume(self) -> None:
        """Continue from the checkpoint; the budget may differ from the one it was written under."""
        state: dict[str, Any] = torch.load(self.checkpoint, map_location=self.config.device)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step = state["step"]
        self.clock = ActiveClock(state["seconds"])

    @contextlib.contextmanager
    def _stop_on_signals(self) -> Iterator[None]:
        """Within, ctrl-C and SIGTERM end the run after the current step, with a checkpoint."""

        def stop(number: int, frame: FrameType | None) -> None:
            self.stopping = True

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def export(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Save as a Hugging Face folder with bfloat16 weights in shards below 16 MB."""
    saved = copy.deepcopy(model)
    nn.Module.to(saved, torch.bfloat16)
    saved.config.dtype = torch.bfloat16
    end = tokenizer.eos_token_id
    saved.generation_config = GenerationConfig(bos_token_id=end, eos_token_id=end, pad_token_id=end)
    saved.save_pretrained(folder, max_shard_size=SHARD)
    tokenizer.save_pretrained(folder)
