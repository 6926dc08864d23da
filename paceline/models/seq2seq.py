"""Encoder-decoder models: an encoder reads what is given, once; a decoder that looks at it scores trees.

A text is the source, the decoder's opening (its start token, and the first output token where the model prescribes
one) and what is generated. So drafters find the source in the text, and a row holds all of it: slots `[0, n)` are the
source's, which cross attention reads, those behind are the decoder's own (`paceline.caches.source`). A row's first
pass runs the encoder, writes what cross attention sees of the source, and scores opening and tree; later ones leave
the source's slots alone. Rows that have their source share a pass; one that has not takes its own.

Positions count from the opening; where a decoder would count slots it is told better (`paceline.models.positions`).
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers.modeling_outputs import BaseModelOutput

from paceline.caches import Extension, Row, TrieCache
from paceline.caches.source import SourceCache
from paceline.errors import Unsupported
from paceline.models.causal import CausalModel
from paceline.models.config import UNLIMITED, context, weight_bytes
from paceline.models.forward import Mask
from paceline.models.nodes import Nodes, laid_out, starts_of
from paceline.models.positions import Places, placed, seams
from paceline.models.views import View, ViewRule


def is_seq2seq(module: Any) -> bool:
    """Whether the model reads what is given with an encoder."""
    return bool(getattr(module.config, "is_encoder_decoder", False))


@dataclass(frozen=True)
class Sources:
    """What one pass must know of its rows' sources.

    Attributes:
        length: slots of the longest one.
        mask: `[B, 1, T, length]` float32, additive: which of these slots a row's tokens see.
        slots: `[B, S]` int64, where the slots that self attention looks at stand in the output.
        written: more than any position of the pass in the output.
        unread: `[1, length]` int64, the source of the only row, which the encoder has not read yet; else None.
    """

    length: int
    mask: torch.Tensor
    slots: torch.Tensor
    written: int
    unread: torch.Tensor | None


class Seq2SeqForward:
    """The transformers module's own forward pass, told where its tokens stand."""

    def __init__(self, module: Any) -> None:
        self.module, self.kv_dtype = module, module.dtype
        self.seams = seams(module.get_decoder())
        self._takes_positions = "decoder_position_ids" in inspect.signature(module.forward).parameters

    def __call__(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        mask: Mask,
        cache: TrieCache,
        rows: torch.Tensor | None,
        hidden: tuple[int, ...] = (),
        sources: Sources | None = None,
    ) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
        """As `ModuleForward`; tokens, positions and masks are those of the decoder."""
        assert sources is not None
        dtype = self.module.dtype
        cast = {k: m.to(dtype) for k, m in mask.items()} if isinstance(mask, dict) else mask.to(dtype)
        if sources.unread is not None:
            encoder = self.module.get_encoder()(input_ids=sources.unread)
        else:  # nobody looks at it: its keys and values are cached
            blank = torch.zeros(len(tokens), 1, 1, dtype=dtype, device=tokens.device)
            encoder = BaseModelOutput(last_hidden_state=blank)
        with placed(self.seams, Places(positions, sources.slots, sources.written)):
            out = self.module(
                encoder_outputs=encoder,
                attention_mask=sources.mask.to(dtype),
                decoder_input_ids=tokens,
                decoder_attention_mask=cast,
                past_key_values=SourceCache(cache, sources.length, written=sources.unread is None),
                use_cache=True,
                output_hidden_states=bool(hidden),
                **({"decoder_position_ids": positions} if self._takes_positions else {}),
            )
        logits = out.logits.flatten(0, 1)
        taps = {layer: out.decoder_hidden_states[layer].flatten(0, 1) for layer in hidden}
        if rows is not None:
            logits, taps = logits[rows], {layer: h[rows] for layer, h in taps.items()}
        return logits.float(), taps


class Seq2SeqModel(CausalModel):
    """An encoder-decoder model that scores token trees of its output.

    Args:
        module: a loaded `PreTrainedModel` with an encoder, a decoder and a language-model head.
        name: for messages.

    Raises:
        Unsupported: it has two vocabularies, no start token, or parts whose numbers depend on other texts.
    """

    forward: Seq2SeqForward

    def __init__(self, module: Any, name: str = "model") -> None:
        super().__init__(module, Seq2SeqForward(module), name)
        self.opening = _opening(module, name)
        self.tried = (1 + len(self.opening), 3 + len(self.opening))
        self.offers = frozenset({"chain", "tree", "hidden_states"})
        self.lacks = {
            "views": "it is an encoder-decoder model, whose layers attend to a source as well",
            "prompt_logprobs": "its encoder reads a prompt and says nothing about it",
        }
        _check(module, name)
        decoder = module.get_decoder()
        layers = [part.layer_idx for part in decoder.modules() if isinstance(getattr(part, "layer_idx", None), int)]
        self.num_layers = 1 + max(layers, default=self.num_layers - 1)
        self.nbytes = weight_bytes(module, decoder, module.get_output_embeddings())
        self.parameters = self.nbytes // module.dtype.itemsize
        # A relative bias is the same from some distance on, so it has no end.
        endless = any(seam.name == "compute_bias" for seam in self.forward.seams)
        self._source_limit = UNLIMITED if endless else context(getattr(module.get_encoder(), "config", module.config))
        self._output_limit = UNLIMITED if endless else self.context
        self.context = self._source_limit + self._output_limit

    @property
    def longest(self) -> int:
        return self._source_limit + len(self.opening)

    def encoded(self, prompt: int) -> int:
        return max(0, prompt - len(self.opening))

    def limit(self, prompt: int) -> int:
        return self.encoded(prompt) + self._output_limit if prompt <= self.longest else 0

    def says(self, text: Seq[int], prompt: int) -> torch.Tensor:
        ids, source = torch.tensor([list(text)], device=self.device), self.encoded(prompt)
        out = self.module(input_ids=ids[:, :source], decoder_input_ids=ids[:, source:], use_cache=False)
        logits: torch.Tensor = out.logits[0, -1].float()
        return logits

    def prefill(
        self, cache: TrieCache, row: Row, tokens: Seq[int], chunk: int = 512, logits: bool = False
    ) -> list[torch.Tensor]:
        """As `CausalModel.prefill`. A prompt is read in one piece; less than one waits for the first pass.

        Raises:
            Unsupported: logits are asked for, and a source has none.
        """
        if logits:
            raise Unsupported(f"{self.name} has no log-probabilities of a prompt: {self.lacks['prompt_logprobs']}")
        if row.length == 0:
            if len(tokens) < row.prompt:
                return []
            super().prefill(cache, row, tokens[: row.prompt], max(1, row.prompt))
            tokens = tokens[row.prompt :]
        return super().prefill(cache, row, tokens, chunk)

    # -- internals ----------------------------------------------------------------------------------------

    def _together(self, before: Row, row: Row) -> bool:
        return super()._together(before, row) and self._read(before) and self._read(row)

    def _read(self, row: Row) -> bool:
        """Whether the row holds its source."""
        return 0 < self.encoded(row.prompt) <= row.length

    def _pass(
        self, cache: TrieCache, rows: Seq[Row], nodes: Seq[Nodes], hidden: tuple[int, ...], view: View | ViewRule | None
    ) -> tuple[torch.Tensor, dict[int, torch.Tensor], list[int]]:
        unread = None
        if not self._read(rows[0]):
            unread, rest = self._source(rows[0], nodes[0])
            nodes = [rest]
        lengths = np.array([self.encoded(row.prompt) for row in rows])
        extension = cache.extend(rows, [new.parents for new in nodes])
        for visible, length in zip(extension.visible, lengths, strict=True):
            visible[:, :length] = False  # self attention does not see the source
        positions = np.maximum(extension.positions - lengths[:, None], 0)  # padding may stand anywhere
        tokens, wanted = laid_out(nodes, extension.width)
        logits, taps = self.forward(
            tokens.to(self.device),
            torch.from_numpy(positions).to(self.device),
            self._mask(extension),
            cache,
            None if wanted is None else wanted.to(self.device),
            hidden,
            sources=self._sources(lengths, extension, int(positions.max()) + 1, unread),
        )
        return logits, taps, starts_of(nodes)

    def _sources(self, lengths: np.ndarray, extension: Extension, written: int, unread: torch.Tensor | None) -> Sources:
        """What the forward pass is told of rows whose sources have these lengths."""
        behind = np.arange(lengths.max()) >= lengths[:, None]
        mask = torch.from_numpy(np.where(behind, np.float32(-np.inf), np.float32(0))).to(self.device)[:, None, None]
        slots = torch.from_numpy(np.maximum(extension.slot_positions - lengths[:, None], 0)).to(self.device)
        return Sources(int(lengths.max()), mask.expand(-1, -1, extension.width, -1), slots, written, unread)

    def _source(self, row: Row, new: Nodes) -> tuple[torch.Tensor, Nodes]:
        """Take the source off the first nodes of a row and reserve its slots; also returns the nodes behind it."""
        length = self.encoded(row.prompt)
        chain = list(range(-1, length - 1))
        if not length or row.length or new.skip < length or new.parents[:length].tolist() != chain:
            raise ValueError(
                f"{self.name}: a row's first pass takes its whole source of {length} tokens (`row.prompt` less the "
                f"opening) and more; it has {row.length} of {len(new.tokens)} given at once"
            )
        row.parents = chain
        source = torch.from_numpy(new.tokens[None, :length]).to(self.device)
        return source, Nodes(new.tokens[length:], new.parents[length:], new.skip - length)


def _check(module: Any, name: str) -> None:
    """Refuse what the check at loading would not find. Raises `Unsupported`."""
    table, head = module.get_input_embeddings(), module.get_output_embeddings()
    if table is None or head is None:
        raise Unsupported(f"{name} (model type {module.config.model_type!r}) has no language-model head")
    read, written = table.weight.shape[0], head.weight.shape[0]
    if read != written:
        raise Unsupported(
            f"{name} (model type {module.config.model_type!r}) reads {read} token ids and writes {written}; "
            "source and output need one vocabulary"
        )
    if getattr(module.get_encoder(), "attention_type", None) == "block_sparse":
        raise Unsupported(
            f"{name} (model type {module.config.model_type!r}) has an encoder that leaves sparse attention for good "
            "once it reads a short text; set attention_type='original_full' in its config"
        )
    if getattr(module.config, "expert_capacity", None):
        raise Unsupported(
            f"{name} (model type {module.config.model_type!r}) has experts of limited capacity: what else is in a pass "
            "decides which of its tokens they leave out"
        )


def _opening(module: Any, name: str) -> tuple[int, ...]:
    """What stands in front of every output: the start token, and the first token where it is prescribed.

    Raises:
        Unsupported: no start token is known.
    """
    generation = getattr(module, "generation_config", None)
    kinds = ("decoder_start_token_id", "bos_token_id")
    ids = [getattr(given, kind, None) for kind in kinds for given in (generation, module.config)]
    start = next((token for token in ids if token is not None), None)
    if not isinstance(start, int):
        raise Unsupported(f"{name}: neither its config nor its generation config names one decoder_start_token_id")
    first = getattr(generation, "forced_bos_token_id", None)
    return (start,) if first is None else (start, int(first))
