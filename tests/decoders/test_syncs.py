"""How often a step makes the host wait for the device: logits that count every way out of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from decoders.support import VOCABULARY, engine_of
from paceline.testing import random_table

T = torch.Tensor
#: Methods that copy to the host, or whose result's shape or value the host must know.
WAITS = {T.cpu, T.tolist, T.item, T.numpy, T.nonzero, T.__bool__, T.__int__, T.__float__, T.__index__, torch.nonzero}


class OnDevice(torch.Tensor):
    """Whatever is computed from it is `OnDevice` too, until it is copied to the host."""

    waits = 0

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_function__(function, types, args, kwargs or {})
        index = args[1] if function is T.__getitem__ else ()
        masks = [i for i in (index if isinstance(index, tuple) else (index,)) if isinstance(i, OnDevice)]
        if function in WAITS or any(mask.dtype is torch.bool for mask in masks):
            OnDevice.waits += 1
        return result.as_subclass(torch.Tensor) if function is T.cpu else result


@pytest.mark.parametrize(
    ("drafter", "verifier"),
    [
        ("none", "coupled"),
        ("ngram", "coupled"),
        ("ngram", "rejection"),
        ("ngram", "block"),
        ("suffix", "recursive"),
        ("suffix", "specinfer"),
        ("suffix", "optimal"),
        ("ngram", "lenient"),
        ("ngram", "spectr"),
        ("ngram", "typical"),
        ("ngram", "synthetic"),
        ("recycling", "coupled"),
        ("turns(ngram, recycling)", "coupled"),
        ("jacobi", "coupled"),
        ("sjd", "rejection"),
        ("lookahead", "coupled"),
    ],
)
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_one_wait_a_step(drafter: str, verifier: str, temperature: float) -> None:
    """For the whole batch, whatever drafter and verifier want to know."""
    engine = engine_of(random_table(VOCABULARY, seed=3))
    plain = engine.model.forward

    def forward(*args: Any) -> Any:
        logits, hidden = plain(*args)
        return logits.as_subclass(OnDevice), hidden

    engine.model.forward = forward
    options = {"temperature": temperature, "repetition_penalty": 1.2, "top_k": 5, "top_p": 0.9, "ignore_eos": True}
    for i in range(3):
        request = engine.request([1, 2, 3, 1, 2 + i], drafter=drafter, verifier=verifier, max_new_tokens=12, **options)
        engine.submit(request)
    engine.decoder.step()
    steps = 0
    while engine.decoder.busy:
        OnDevice.waits = 0
        engine.decoder.step()
        assert OnDevice.waits == 1
        steps += 1
    assert steps > 3
