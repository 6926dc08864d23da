"""How a batch of nodes is turned into logits."""

from __future__ import annotations

import inspect
from functools import cached_property
from typing import Any, Protocol

import torch

from paceline.caches import TrieCache
from paceline.models.steering import Steering, blocks_of
from paceline.models.views import View

Mask = torch.Tensor | dict[str, torch.Tensor]


class Forward(Protocol):
    """How a batch of nodes is turned into logits: the module's own forward pass, or a faster equal one.

    That of a model which offers views takes one as `view=`.
    """

    kv_dtype: torch.dtype

    def __call__(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        mask: Any,
        cache: TrieCache,
        rows: torch.Tensor | None,
        hidden: tuple[int, ...] = (),
    ) -> tuple[torch.Tensor, dict[int, torch.Tensor]]: ...


class ModuleForward:
    """The transformers module's own forward pass."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.kv_dtype = module.dtype
        self._keeps_logits = "logits_to_keep" in inspect.signature(module.forward).parameters

    @cached_property
    def steering(self) -> Steering:
        """Runs the module by a view; for models that offer views."""
        blocks = blocks_of(self.module, self.module.config.get_text_config(decoder=True))
        assert blocks is not None
        return Steering(self.module, blocks)

    def __call__(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        mask: Mask,
        cache: TrieCache,
        rows: torch.Tensor | None,
        hidden: tuple[int, ...] = (),
        view: View | None = None,
    ) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
        """Tokens and positions `[B, T]`, additive float mask `[B, 1, T, S]` (or one a layer type).

        With a view, hidden states of layers that it leaves out are those that enter the next one that runs.
        """
        if view is not None:
            with self.steering.steered(view):
                return self(tokens, positions, mask, cache, rows, hidden)
        dtype = self.module.dtype
        cast = {k: m.to(dtype) for k, m in mask.items()} if isinstance(mask, dict) else mask.to(dtype)
        # The head's matrix is large: with one row, spare it the positions nobody asked for.
        few = rows is not None and len(tokens) == 1 and self._keeps_logits
        out = self.module(
            input_ids=tokens,
            position_ids=positions,
            attention_mask=cast,
            past_key_values=cache,
            use_cache=True,
            output_hidden_states=bool(hidden),
            **({"logits_to_keep": rows} if few else {}),
        )
        logits = out.logits.flatten(0, 1)
        taps = {layer: out.hidden_states[layer].flatten(0, 1) for layer in hidden}
        if rows is not None:
            logits, taps = logits if few else logits[rows], {layer: h[rows] for layer, h in taps.items()}
        return logits.float(), taps
