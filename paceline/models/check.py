"""Does this architecture honour tree masks and explicit positions? Try it, once, at loading.

Names and versions of architectures come and go; a small tree scored at once must give what its paths give one by
one through the module's plain forward pass. ALiBi and other position schemes that ignore `position_ids`, and
modules that ignore a prepared mask, fail here instead of producing subtly wrong text.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from paceline.errors import NON_FINITE, ModelError, OutOfMemory, Unsupported
from paceline.models.causal import CausalModel
from paceline.tree import TokenTree

#: Forty siblings stand between the root and the nodes that are compared, so that these are stored far behind their
#: positions: a scheme that counts slots is far off, in any precision.
_PARENTS = (-1, *[0] * 40, 40, 41, 1, 43)
_COMPARED = (42, 44)
#: Sliding windows are narrowed to this for the check; the paths are longer.
_WINDOW = 4


def plain_logits(model: CausalModel) -> torch.Tensor:
    """`[2 len(model.tried), V]` float32: what the module, as it is now, says after the texts `self_check` compares."""
    prefix, tree = _case(model)
    texts = [np.concatenate([prefix, tree.tokens[tree.path(node)]]).tolist() for node in _COMPARED]
    with torch.inference_mode(), _narrow_windows(model):
        return torch.stack([model.says(text, prompt) for prompt in model.tried for text in texts])


@torch.inference_mode()
def self_check(model: CausalModel, plain: torch.Tensor | None = None) -> None:
    """Compare a tree's logits with its paths'.

    Args:
        model: the adapter to check.
        plain: `plain_logits` from before the module was changed; by default of the module as it is.

    Raises:
        Unsupported: they differ beyond rounding.
        ModelError: the model's logits are not finite.
    """
    prefix, tree = _case(model)
    with driven(model, "take a prepared cache, 4-D mask and position_ids"), _narrow_windows(model):
        cache = model.new_cache(len(model.tried), limit=len(prefix) + len(tree), capacity=1)
        rows = [cache.allocate() for _ in model.tried]
        for row, prompt in zip(rows, model.tried, strict=True):
            row.prompt = prompt
            model.prefill(cache, row, prefix.tolist())
        scores = model.score(cache, rows, [tree] * len(rows))
    if not torch.isfinite(scores.logits).all():
        raise ModelError(NON_FINITE.format(model.name))
    plain = plain_logits(model) if plain is None else plain
    got = torch.cat([scores.of(i)[list(_COMPARED)] for i in range(len(rows))])
    for found, expected in zip(got, plain, strict=True):
        difference, scale = float((found - expected).abs().max()), float(expected.std()) + 1e-6
        if difference > TOLERANCE[model.module.dtype] * scale:
            raise Unsupported(
                f"{model.name} (model type {model.config.model_type!r}) does not honour tree masks and position_ids: "
                f"a token's logits in a tree differ from plain decoding by {difference:.3g} "
                "(ALiBi and similar position schemes cannot be driven)"
            )


@contextmanager
def driven(model: CausalModel, how: str) -> Iterator[None]:
    """Whatever foreign modelling code raises about arguments it does not expect, as `Unsupported`: it cannot `how`."""
    try:
        yield
    except (ModelError, OutOfMemory):
        raise
    except Exception as error:
        raise Unsupported(
            f"{model.name} (model type {model.config.model_type!r}) cannot {how}: {type(error).__name__}: {error}"
        ) from error


def _case(model: CausalModel) -> tuple[np.ndarray, TokenTree]:
    """Five committed tokens and the tree under the last of them."""
    tokens = np.random.default_rng(0).integers(0, model.vocab_size, 5 + len(_PARENTS))
    return tokens[:5], TokenTree(tokens[5:], np.array(_PARENTS))


@contextmanager
def _narrow_windows(model: CausalModel) -> Iterator[None]:
    """Sliding windows of a few tokens, so that a short text shows whether both sides mean the same by them."""
    windows = model.windows
    if not any(windows.values()):
        yield
        return
    own = model.config.sliding_window
    model.windows = {kind: _WINDOW if window else None for kind, window in windows.items()}
    model.config.sliding_window = _WINDOW
    try:
        yield
    finally:
        model.windows, model.config.sliding_window = windows, own


TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-2, torch.bfloat16: 0.5, torch.float16: 0.25}
