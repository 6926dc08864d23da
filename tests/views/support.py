"""Tiny Llamas of several layers in both forward passes, and one pass over a fixed case."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from paceline import Engine
from paceline.models.causal import CausalModel
from paceline.models.loading import load_model
from paceline.models.nodes import Scores
from paceline.tree import TokenTree
from tests.drafters.support import PROMPTS, generated, llama

LAYERS = 5
PASSES = ("module", "fused")


def tapering(layers: int = LAYERS, **config: Any) -> Any:
    """A Llama whose later layers change little, so that its inner states can be read out."""
    module = llama(layers=layers, **config)
    with torch.no_grad():
        for number, layer in enumerate(module.model.layers):
            for matrix in (layer.self_attn.o_proj, layer.mlp.down_proj):
                matrix.weight *= 0.5**number
    return module


@cache
def greedy(count: int) -> list[list[int]]:
    """What transformers generates with `tapering()` after each of `PROMPTS`."""
    return [generated(tapering(), prompt, count) for prompt in PROMPTS]


def model_of(path: str, **config: Any) -> CausalModel:
    return load_model(tapering(**config), fast=path == "fused")


def engine_of(path: str, drafter: object, **options: Any) -> Engine:
    return Engine(model_of(path), drafter=drafter, **options)


def scored(model: CausalModel, prompt: list[int], tokens: list[int], **options: Any) -> Scores:
    """A chain scored behind a committed prompt."""
    cache = model.new_cache(1)
    row = cache.allocate()
    model.prefill(cache, row, prompt)
    return model.score(cache, [row], [TokenTree.chain(tokens[0], tokens[1:])], **options)
