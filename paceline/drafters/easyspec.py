"""EasySpec: a draft model whose layers' attention runs side by side, in groups.

Within a group of N neighbouring layers, attention reads the group's input x instead of the layers' own:

    a_j = Attention_j(Norm_j(x))  for all j of the group, then in order  x <- x + a_j;  x <- x + MLP_j(Norm'_j(x))

so the N attention blocks do not wait for one another and may run on a device each. Keys and values written this way
are approximate; *calibration* keeps their error from outliving a round: the first pass of every draft is the ordinary
one, over everything accepted in the last round. It writes their keys and values anew, and drafts the first token.

This engine runs on one device, where a group's blocks run one after the other: here the approximation and what it costs
in acceptance can be studied, not the speed that several devices give. Whether the published method keeps MLPs in order
is recalled, not confirmed, and so is that its groups begin with the first layer.

Paper: Wu et al., "EasySpec: Layer-Parallel Speculative Decoding for Efficient Multi-GPU Utilization", 2025.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch

from paceline.drafters.base import Outcome
from paceline.drafters.chain import Run
from paceline.drafters.draft import DraftModel
from paceline.errors import BadRequest
from paceline.models.causal import CausalModel
from paceline.models.loading import load_model
from paceline.models.views import Grouped, require_views
from paceline.registry import Guarantee, method
from paceline.tree import TokenTree


@method(
    name="easyspec",
    kind="drafter",
    guarantee=Guarantee.LOSSLESS,
    summary="A draft model whose attention blocks run in parallel groups, set right every round.",
    paper="EasySpec: Layer-Parallel Speculative Decoding for Efficient Multi-GPU Utilization",
    year=2025,
    needs={"views"},
)
@dataclass(eq=False)
class EasySpec(DraftModel):
    """Drafting with grouped layers.

    Attributes:
        model, length, dtype, fast, confidence: as for `draft`; model none: the target itself, with a cache of its own.
            Only a model given by name is made faster.
        group: N, layers of a group; 1 is the plain draft model.
        exact: so many first layers stay outside of groups.
        calibrate: begin every draft with an ordinary pass over what was accepted.
    """

    name: ClassVar[str] = "easyspec"
    model: Any = None
    group: int = 4
    exact: int = 0
    calibrate: bool = True
    _view: Grouped = field(init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tree is not None:
            raise BadRequest(f"easyspec(tree={self.tree!s}): it drafts a chain; leave it out")
        if self.group < 1 or self.exact < 0:
            wrong = f"group={self.group}" if self.group < 1 else f"exact={self.exact}"
            raise BadRequest(f"easyspec({wrong}): group of at least 1 and exact of at least 0 are needed")
        if self.model is None and self.dtype is not None:
            raise BadRequest(f"easyspec(dtype={self.dtype!r}): it is of a draft model; name one with model=")

    def attach(self, target: CausalModel) -> None:
        super().attach(target)
        require_views(self._model, "drafter 'easyspec'")
        if self.exact > self._model.num_layers:
            raise BadRequest(
                f"easyspec(exact={self.exact}): {self._model.name} has {self._model.num_layers} layers; "
                "at most as many can be exact"
            )
        self._view = Grouped(self.group, frozenset(range(self.exact)))

    def commit(self, outcomes: Seq[Outcome]) -> None:
        super().commit(outcomes)
        for outcome in outcomes if self.calibrate else ():
            # The ordinary pass reached the root of this round; all behind it is approximate.
            before = len(outcome.sequence.tokens) - len(outcome.tokens)
            self._cache.crop(outcome.sequence.drafts.row, before)

    def _score(self, runs: list[Run]) -> torch.Tensor:
        trees = [TokenTree.empty(run.pending[-1]) for run in runs]
        pending = [run.pending[:-1] for run in runs]
        # All runs of a pass have as many tokens.
        view = None if self.calibrate and not runs[0].tokens else self._view
        logits = self._model.score(self._cache, [run.row for run in runs], trees, pending, view=view).logits
        for run in runs:
            self._cache.keep(run.row, range(len(run.pending)))
        return self.padded(logits)

    def _load(self, target: CausalModel) -> CausalModel:
        if self.model is None or self.model is getattr(target, "module", None):
            return target
        if isinstance(self.model, CausalModel):
            return self.model
        # A module in hand belongs to the caller; to speed it up would take its weights.
        named = isinstance(self.model, str | Path)
        dtype = self.dtype or (target.module.dtype if named and hasattr(target, "module") else None)
        return load_model(self.model, dtype=dtype, device=target.device, fast=self.fast and named)
