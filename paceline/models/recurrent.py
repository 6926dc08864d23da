"""Models with recurrent layers: chains of tokens are scored, drafts taken back by checkpoints.

State-space, linear-attention and gated convolution layers, alone or among attention layers, keep a summary of the text.
It cannot be held at every node of a tree, so such a model offers chains. Most architectures go on from a state by
several tokens in one pass; some only by one, and then every scored token costs a pass: `spare` is 0, so that nothing is
drafted unless it is asked for. Which of the two an architecture does is tried once, at loading.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence as Seq
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache
from transformers.cache_utils import LinearAttentionCacheLayerMixin

from paceline.caches import Row
from paceline.caches.states import StateCache, StateRow
from paceline.errors import Unsupported
from paceline.models.causal import CausalModel
from paceline.models.check import TOLERANCE, driven
from paceline.models.config import UNLIMITED
from paceline.models.nodes import Nodes, Scores
from paceline.tree import TokenTree

#: Accepted tokens of earlier passes that ride along with the next one; more are read by a pass of their own, so that a
#: checkpoint can be put behind them.
RIDE = 8


def is_recurrent(module: Any) -> bool:
    """Whether some layer of the model keeps a recurrent or convolutional state."""
    try:
        layers = DynamicCache(config=module.config.get_text_config(decoder=True)).layers
    except Exception:  # a configuration that transformers' cache does not know keeps its state elsewhere
        return False
    return any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in layers)


class RecurrentModel(CausalModel):
    """A model with recurrent layers that scores chains.

    Args:
        module: a loaded `PreTrainedModel` with a language-model head.
        name: for messages.

    Attributes:
        continues: whether a pass may go on from a state by several tokens.

    Raises:
        Unsupported: the module does not go on from a state as it should.
    """

    def __init__(self, module: Any, name: str = "model") -> None:
        super().__init__(module, name=name)
        parameters = inspect.signature(module.forward).parameters
        self._cache_argument = "cache_params" if "cache_params" in parameters else "past_key_values"
        self._takes_positions = "position_ids" in parameters
        self._keeps_logits = "logits_to_keep" in parameters
        self.offers = frozenset({"chain"})
        self.lacks = {
            "tree": "the state of its recurrent layers cannot be kept at the nodes of a tree",
            "views": "every token goes into the state of its recurrent layers; a layer left out would miss tokens that "
            "all later ones need, and what a draft put into a state cannot be dropped as keys and values can",
        }
        if not any(getattr(self.config, name, None) for name in ("max_position_embeddings", "n_positions")):
            self.context = UNLIMITED
        self.path = "the module's own forward pass, a row at a time"
        self.continues = True
        self._check()

    def attention_windows(self) -> dict[str, int | None]:
        """None: the module makes its own masks."""
        return {}

    def new_cache(self, rows: int, limit: int | None = None, capacity: int = 512) -> Any:
        """An empty `StateCache` for `rows` sequences of at most `limit` tokens; `capacity` is not used."""
        return StateCache(rows, limit or self.context)

    @torch.inference_mode()
    def expand(
        self,
        cache: Any,
        rows: Seq[Row],
        nodes: Seq[Nodes],
        hidden: tuple[int, ...] = (),
        view: Any = None,
    ) -> Scores:
        """A pass a row over a chain at its tip; see `CausalModel.expand`.

        Raises:
            Unsupported: nodes that are no chain, hidden states or views are asked for.
        """
        if hidden or view is not None:
            raise Unsupported(f"{self.name} has no hidden states and no views to offer, only logits of chains")
        logits = [self._extend(row, new) for row, new in zip(rows, nodes, strict=True)]  # type: ignore[arg-type]
        starts = np.cumsum([0, *(len(new) for new in nodes)]).tolist()
        return Scores(torch.cat(logits), starts, {})

    def prefill(
        self, cache: Any, row: Any, tokens: Seq[int], chunk: int = 512, logits: bool = False
    ) -> list[torch.Tensor]:
        """As `CausalModel.prefill`. What goes on by one token only reads a prompt in a single pass."""
        if self.continues or row.seen:
            return super().prefill(cache, row, tokens, chunk, logits)
        return super().prefill(cache, row, tokens, max(1, len(tokens)), logits)

    # -- internals ----------------------------------------------------------------------------------------

    def _extend(self, row: StateRow, new: Nodes) -> torch.Tensor:
        """`[len(new), V]` logits of a chain at a row's tip."""
        above = len(row.crown)
        if new.parents.tolist() != list(range(above - 1, above - 1 + len(new.parents))):
            raise Unsupported(f"{self.name} cannot score a tree: {self.lacks['tree']}")
        tokens = new.tokens.tolist()
        row.parents += new.parents.tolist()
        # The root is certain to stay; a draft behind it is not.
        if len(new) > 1 and (not self.continues or len(row.unseen) + new.skip > RIDE):
            row.crown += tokens[: new.skip]
            if row.unseen:
                self._run(row, row.unseen, 1)
            row.crown += tokens[new.skip :]
        else:
            row.crown += tokens
        row.save()
        return self._run(row, row.unseen, len(new))

    def _run(self, row: StateRow, tokens: list[int], wanted: int) -> torch.Tensor:
        """Take tokens into a row's state; `[wanted, V]` float32 logits of the last ones."""
        if row.state is None:
            row.state = DynamicCache(config=self.config)
        elif not self.continues and len(tokens) > 1:
            return torch.cat([self._run(row, [token], 1) for token in tokens])[-wanted:]
        options: dict[str, Any] = {self._cache_argument: row.state, "use_cache": True}
        if self._takes_positions:
            options["position_ids"] = torch.arange(row.seen, row.seen + len(tokens), device=self.device)[None]
        if self._keeps_logits:
            options["logits_to_keep"] = wanted
        # Counted before the pass: should it fail half-way, the state is beyond what is committed, and is put back.
        row.seen += len(tokens)
        out = self.module(input_ids=torch.tensor([tokens], device=self.device), **options)
        return out.logits[0, -wanted:].float()

    def _check(self) -> None:
        """Find out how the module goes on from a state, or that it does not."""
        if self._difference() <= TOLERANCE[self.module.dtype]:
            return
        self.continues, self.spare = False, 0
        difference = self._difference()
        if not difference <= TOLERANCE[self.module.dtype]:
            raise Unsupported(
                f"{self.name} (model type {self.config.model_type!r}) does not go on from a stored state as it should: "
                f"a token's logits differ from those of the whole text by {difference:.3g} of their spread"
            )

    @torch.inference_mode()
    def _difference(self) -> float:
        """How far logits of chains, refused drafts between them, are from those of the text at once."""
        text = np.random.default_rng(0).integers(0, self.vocab_size, 12)
        wrong = (text[6:8] + 1) % self.vocab_size
        with driven(self, "be driven through a cache of states"):
            wanted = self.module(input_ids=torch.from_numpy(text).to(self.device)[None], use_cache=False).logits[0]
            cache = self.new_cache(1)
            row = cache.allocate()
            self.prefill(cache, row, text[:3].tolist())
            first = self.score(cache, [row], [TokenTree.chain(int(text[3]), [*text[4:6], *wrong])]).logits
            cache.keep(row, range(3))
            second = self.score(cache, [row], [TokenTree.chain(int(text[6]), text[7:11])]).logits
            cache.keep(row, range(5))
            third = self.score(cache, [row], [TokenTree.empty(int(text[11]))]).logits
        got = torch.cat([first[:3], second, third])
        return float((got - wanted[3:].float()).abs().max() / (wanted.float().std() + 1e-6))
