"""What lossy views lose, on a trained model and on text that it was not trained on."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from paceline.evaluation.workloads import load
from paceline.models.causal import CausalModel
from paceline.models.loading import load_model, load_tokenizer
from paceline.models.views import View, ViewRule
from paceline.tree import TokenTree
from paceline.views.ffn_skip import Fading, FFNSkip
from paceline.views.saturation import Saturation
from paceline.views.skip import SkippedBlocks
from paceline.views.skipdecode import SkipDecode

READ, LENGTH = 16, 160


@cache
def trained() -> CausalModel:
    return load_model("pocket-code", dtype="float32", fast=False)


@cache
def held_out() -> list[list[int]]:
    """The first `LENGTH` tokens of code that no pocket model was trained on."""
    tokenizer = load_tokenizer("pocket-code")
    prompts = load(["code"])[0]["code"]
    texts = [tokenizer(prompt.text + (prompt.reference or ""))["input_ids"] for prompt in prompts]
    return [text[:LENGTH] for text in texts if len(text) >= LENGTH][:6]


def perplexity(view: View | ViewRule | None) -> float:
    """Of all but the first `READ` tokens of each text, which the whole model reads."""
    model, losses = trained(), []
    for text in held_out():
        cache = model.new_cache(1)
        row = cache.allocate()
        row.prompt = READ
        model.prefill(cache, row, text[:READ])
        laws = model.score(cache, [row], [TokenTree.chain(text[READ], text[READ + 1 : -1])], view=view).logits
        losses.append(torch.nn.functional.cross_entropy(laws, torch.tensor(text[READ + 1 :])))
    return float(torch.stack(losses).mean().exp())


def test_less_is_lost_without_feed_forward_parts_than_without_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Perplexity at equal compute left out, in the two middle layers of four.

    `ffn_skip` leaves out one feed-forward part for a share of the tokens, `skipdecode` one whole layer for fewer of
    them: the better one of the two, and for the last tokens, which have most to go by.
    """
    kept: list[np.ndarray] = []
    feeds = Fading.feeds

    def noting(view: Fading, layer: int) -> Any:
        runs = feeds(view, layer)
        if layer == 2:
            kept.append(np.broadcast_to(np.asarray(runs), view.left.shape))
        return runs

    monkeypatch.setattr(Fading, "feeds", noting)
    layer = trained().module.model.layers[1]
    part = sum(p.numel() for p in layer.mlp.parameters()) / sum(p.numel() for p in layer.parameters())
    whole, tokens = perplexity(None), LENGTH - READ - 1
    found = [whole]
    for similarity in (0.98, 0.97, -1.0):
        kept.clear()
        found.append(perplexity(FFNSkip(similarity, cap=0.5, cold=1, warm=0)))
        skipped = 1 - np.concatenate(kept).mean()
        count = round(tokens * skipped * part)
        # The budget falls by one layer, behind the middle of the span.
        rule = SkipDecode(least=3, span=2 * (tokens - count))
        assert (rule.budget(np.arange(tokens) + 1, 4) == 3).sum() == count > 10
        assert found[-1] < perplexity(rule), f"{skipped:.0%} of the feed-forward parts left out"
    assert found == sorted(found), "the lower the knob, the more is lost"
    assert perplexity(SkippedBlocks("1", "1")) < perplexity(SkippedBlocks("2", "2"))


def test_the_earlier_tokens_leave_the_more_is_lost() -> None:
    found = [perplexity(Saturation(threshold)) for threshold in (1.01, 0.95, 0.93, 0.9, -1.0)]
    assert found[0] == perplexity(None)
    assert found == sorted(set(found))
