"""The peer: transformers' own `generate` with the same weights, prompts and number of tokens."""

from __future__ import annotations

import time
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from paceline.errors import BadRequest
from paceline.evaluation.samples import Contestant, Job, Prompts, Run
from paceline.evaluation.timing import synchronize
from paceline.models.loading import load_model
from paceline.registry import suggest

SIDE, PLAIN = "transformers", "plain"
#: The modes, in the order in which they are reported.
LOOKUP, ASSISTED = "prompt lookup", "assisted"
NAMES = (PLAIN, LOOKUP, ASSISTED)
#: Tokens that prompt lookup drafts.
LENGTH = 10


class Clock(BaseStreamer):
    """Notes when tokens arrive: how many, and after how many seconds."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.arrivals = device, list[tuple[int, float]]()
        self._began = time.perf_counter()

    def put(self, value: torch.Tensor) -> None:
        """First the prompt, then the new tokens of each pass."""
        synchronize(self.device)
        self.arrivals.append((value.numel(), time.perf_counter() - self._began))

    def end(self) -> None:
        """Nothing is left to do."""


class Peer(Contestant):
    """One mode of transformers' `generate`.

    Args:
        name: for tables.
        module: the model; its generation config must not end the text (see `load_peer`).
        options: arguments of `generate` that choose the mode.
        single: whether the mode takes one prompt at a time only.
    """

    side = SIDE

    def __init__(self, name: str, module: Any, options: dict[str, Any], single: bool) -> None:
        self.name, self.module, self.options, self.single = name, module, options, single

    def run(self, prompts: Prompts, job: Job) -> Run:
        ids, mask = _padded(prompts, self.module.device)
        sampling = {"do_sample": True, "temperature": job.temperature} if job.temperature else {"do_sample": False}
        torch.manual_seed(job.seed)
        device = torch.device(self.module.device)
        clock = Clock(device)
        began = time.perf_counter()
        out = self.module.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=job.max_new_tokens,
            streamer=clock,
            **sampling,
            **self.options,
        )
        synchronize(device)
        spent = time.perf_counter() - began
        tokens = out[:, ids.shape[1] :].tolist()
        _, (count, first), *_ = clock.arrivals
        return Run(tokens, spent, first, sum(map(len, tokens)) - count)


def load_peer(model: Any, dtype: str | None, device: str | None, inflated: str | None) -> Any:
    """The module as transformers runs it, told to go on after an end token so that all contestants do equal work."""
    module = load_model(model, dtype=dtype, device=device, inflated=inflated, fast=False).module
    plain = GenerationConfig(pad_token_id=0, use_cache=True)
    module.generation_config = plain
    return module


def chosen(names: tuple[str, ...]) -> list[str]:
    """Those of `NAMES` that are meant; `"all"` and `"none"` are allowed. Raises `BadRequest` on an unknown name."""
    for name in names:
        if name not in (*NAMES, "all", "none"):
            raise BadRequest(f"peers: {suggest(name, [*NAMES, 'all', 'none'])}")
    return [name for name in NAMES if (name in names or "all" in names) and "none" not in names]


def peers(module: Any, assistant: Any | None) -> list[Peer]:
    """Plain decoding, prompt lookup, and assisted generation where there is an assistant."""
    found = [
        Peer(PLAIN, module, {}, single=False),
        Peer(LOOKUP, module, {"prompt_lookup_num_tokens": LENGTH}, single=True),
    ]
    if assistant is not None:
        if assistant.config.vocab_size != module.config.vocab_size:
            raise BadRequest(
                f"assistant: its vocabulary has {assistant.config.vocab_size} tokens, the model's "
                f"{module.config.vocab_size}"
            )
        found.append(Peer(ASSISTED, module, {"assistant_model": assistant}, single=True))
    return found


def _padded(prompts: Prompts, device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and attention mask `[B, L]`, shorter prompts padded on the left."""
    width = max(len(p) for p in prompts)
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    return ids.to(device), mask.to(device)
