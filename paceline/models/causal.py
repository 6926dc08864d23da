"""One adapter for every decoder-only transformers model: score trees of tokens on trie cache rows."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from functools import cached_property
from itertools import pairwise
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from paceline.caches import Extension, Row, TrieCache
from paceline.models.config import context, weight_bytes, windows
from paceline.models.costs import PassCosts, measure
from paceline.models.forward import Forward, Mask, ModuleForward
from paceline.models.nodes import Nodes, Scores, laid_out, starts_of
from paceline.models.steering import blocks_of
from paceline.models.views import Resume, View, ViewRule, Watched, require_views
from paceline.tree import TokenTree


class CausalModel:
    """A decoder-only model that scores token trees.

    Args:
        module: a loaded `PreTrainedModel` with a language-model head.
        forward: a faster forward pass that computes the same; the module's own by default.
        name: for messages.

    Attributes:
        nbytes: bytes that one forward pass reads of the weights, as they are laid out.
        parameters: weights that one forward pass reads.
        path: how the forward pass is computed, for people.
        spare: drafted tokens that a pass over one row scores at almost no extra cost.
        rule: a lossy view that every pass follows, or None for the whole model.
        tokenizer: the one used with it, where one is known.
        lacks: why it does not offer some capability, for messages.
        opening: tokens that stand behind what was given, in front of what is generated; they end every prompt.
        context: most tokens of a text, and `longest` of a prompt.
        tried: lengths of the prompts with which the check at loading scores its tree, in one pass.

    Raises:
        Unsupported: the architecture cannot be driven (chunked attention, ALiBi, ...), with the reason.
    """

    rule: ViewRule | None = None
    _watched: ViewRule | None = None
    tokenizer: Any = None
    lacks: Mapping[str, str] = MappingProxyType({})
    opening: tuple[int, ...] = ()
    tried: tuple[int, ...] = (4,)

    def __init__(self, module: Any, forward: Forward | None = None, name: str = "model") -> None:
        self.module, self.name = module.eval(), name
        self.config = module.config.get_text_config(decoder=True)
        self.forward: Forward = forward or ModuleForward(module)
        self.device = torch.device(module.device)
        self.vocab_size = int(self.config.vocab_size)
        self.num_layers = int(self.config.num_hidden_layers)
        self.windows = self.attention_windows()
        self.nbytes = weight_bytes(module)
        self.parameters = self.nbytes // module.dtype.itemsize
        self.path = "the module's own forward pass"
        self.offers = frozenset({"chain", "tree", "hidden_states"})
        if blocks_of(module, self.config) is not None:
            self.offers |= {"views"}
        # oneDNN computes up to six rows in the time of one; a GPU has room for a full tile of its matrix units.
        self.spare = 5 if self.device.type == "cpu" else 31
        self.context = context(self.config)

    def attention_windows(self) -> dict[str, int | None]:
        """Sliding window of each attention layer type (`None`: unlimited). Raises `Unsupported` for other layers."""
        return windows(self.config)

    @property
    def end_tokens(self) -> frozenset[int]:
        """Ids that end a text, from the generation config, else the config."""
        generation = getattr(self.module, "generation_config", None)
        ids = getattr(generation, "eos_token_id", None)
        if ids is None:
            ids = getattr(self.config, "eos_token_id", None)
        return frozenset([ids] if isinstance(ids, int) else ids or [])

    @property
    def ragged(self) -> bool:
        """Whether a pass over several texts computes their nodes alone, not padding up to the widest tree."""
        return bool(getattr(self.forward, "ragged", False))

    @property
    def longest(self) -> int:
        return self.context

    def encoded(self, prompt: int) -> int:
        """How many tokens of a prompt of that length an encoder reads; the rest is the beginning of the output."""
        return 0

    def limit(self, prompt: int) -> int:
        """Most tokens of a text whose first `prompt` are given; 0 where these are too many."""
        return self.context

    def says(self, text: Seq[int], prompt: int) -> torch.Tensor:
        """`[V]` float32: what the module itself, as it is now, says after a text whose first `prompt` are given."""
        ids = torch.tensor([list(text)], device=self.device)
        logits: torch.Tensor = self.module(input_ids=ids, use_cache=False).logits[0, -1].float()
        return logits

    @cached_property
    def costs(self) -> PassCosts:
        """What a pass costs by the tokens it scores; measured when it is first asked for."""
        return measure(self)

    def follow(self, rule: ViewRule) -> None:
        """Run every pass by a lossy view from now on. Raises `BadRequest` or `Unsupported` where it does not suit."""
        require_views(self, type(rule).__name__)
        rule.check(self.num_layers)
        # A draft's own view would leave out yet other layers, and read keys that were never written.
        self.rule, self._watched, self.offers = rule, Watched(rule), self.offers - {"views"}
        self.lacks = {**self.lacks, "views": f"it follows {rule} in every pass already"}

    def new_cache(self, rows: int, limit: int | None = None, capacity: int = 512) -> TrieCache:
        """An empty cache for `rows` sequences of at most `limit` tokens (the model's context by default)."""
        return TrieCache(
            layers=self.num_layers,
            rows=rows,
            limit=limit or self.context,
            dtype=self.forward.kv_dtype,
            device=self.device,
            capacity=capacity,
        )

    @torch.inference_mode()
    def score(
        self,
        cache: TrieCache,
        rows: Seq[Row],
        trees: Seq[TokenTree],
        pending: Seq[Seq[int]] | None = None,
        hidden: tuple[int, ...] = (),
        view: View | ViewRule | None = None,
    ) -> Scores:
        """One forward pass over a tree a row.

        Args:
            cache: the rows' cache. Rows that are neighbours, or nearly, share a pass; others take one each.
            rows: one a tree.
            trees: nodes to score; their keys and values go into the rows' crowns.
            pending: for each row, committed tokens before the root that the cache has not seen; they are written
                first (as a chain above the root) and give no logits.
            hidden: layers whose hidden states are wanted (0: embeddings; L: after the last norm).
            view: which parts of the model run; all by default. Rows then have to be neighbours where it has `states`.
                A rule gives each pass its view, by how many tokens stand behind the rows' prompts.

        Returns:
            Logits of every tree node, root first. In crown coordinates node i of tree b is `len(pending[b]) + i`
            behind the nodes that were live before.

        Raises:
            BadRequest: the view does not suit the model.
            Unsupported: the model offers no views.
        """
        pending = pending or [()] * len(rows)
        nodes = [Nodes.behind(row, tree, before) for row, tree, before in zip(rows, trees, pending, strict=True)]
        return self.expand(cache, rows, nodes, hidden, view)

    @torch.inference_mode()
    def expand(
        self,
        cache: TrieCache,
        rows: Seq[Row],
        nodes: Seq[Nodes],
        hidden: tuple[int, ...] = (),
        view: View | ViewRule | None = None,
    ) -> Scores:
        """One forward pass over new nodes anywhere in the rows' crowns: what `score` is made of.

        Args:
            cache, rows, hidden, view: as in `score`.
            nodes: for each row, nodes under its trunk's tip, under live crown nodes or under one another.

        Returns:
            Logits of every node that is not skipped.

        Raises:
            BadRequest, Unsupported: as `score`.
        """
        if view is not None:
            require_views(self, type(view).__name__)
            view.check(self.num_layers)
        if len(rows) == 1:
            logits, taps, starts = self._pass(cache, rows, nodes, hidden, view)
            return Scores(logits, starts, taps)
        own = {row: i for i, row in enumerate(rows)}
        groups = self._groups(cache, rows, bridged=view is None)
        parts: dict[int, tuple[torch.Tensor, dict[int, torch.Tensor]]] = {}
        for group in groups:
            new = [nodes[own[row]] if row in own else Nodes.none() for row in group]
            logits, taps, starts = self._pass(cache, group, new, hidden, view)
            if group == list(rows):
                return Scores(logits, starts, taps)
            for j, row in enumerate(group):
                if row in own:
                    span = slice(starts[j], starts[j + 1])
                    parts[own[row]] = logits[span], {layer: h[span] for layer, h in taps.items()}
        starts = starts_of(nodes)
        ordered = [parts[i] for i in range(len(rows))]
        taps = {layer: torch.cat([part[1][layer] for part in ordered]) for layer in hidden}
        return Scores(torch.cat([part[0] for part in ordered]), starts, taps)

    @torch.inference_mode()
    def read_out(self, states: torch.Tensor) -> torch.Tensor:
        """What the last norm and the head make of inner states; for models that offer views.

        Args:
            states: `[n, d]`, as in `Scores.hidden` of any layer before the last.

        Returns:
            `[n, V]` float32 logits.
        """
        count = len(states)
        blank = torch.zeros(1, count, dtype=torch.long, device=self.device)
        mask = torch.zeros(1, 1, count, count, device=self.device)
        masks: Mask = dict.fromkeys(self.windows, mask) if len(self.windows) > 1 else mask
        view = {"view": Resume(self.num_layers, states[None])}
        return self.forward(blank, blank, masks, None, None, (), **view)[0]  # type: ignore[arg-type]

    @torch.inference_mode()
    def prefill(
        self, cache: TrieCache, row: Row, tokens: Seq[int], chunk: int = 512, logits: bool = False
    ) -> list[torch.Tensor]:
        """Commit a stretch of known tokens, `chunk` at a time; with `logits`, returns `[chunk, V]` float32 pieces."""
        pieces = []
        for at in range(0, len(tokens), chunk):
            part = list(tokens[at : at + chunk])
            tree = TokenTree.chain(part[-1], ()) if not logits else TokenTree.chain(part[0], part[1:])
            scores = self.score(cache, [row], [tree], [part[:-1]] if not logits else None)
            cache.keep(row, range(len(part)))
            if logits:
                pieces.append(scores.logits)
        return pieces

    def _pass(
        self, cache: TrieCache, rows: Seq[Row], nodes: Seq[Nodes], hidden: tuple[int, ...], view: View | ViewRule | None
    ) -> tuple[torch.Tensor, dict[int, torch.Tensor], list[int]]:
        extension = cache.extend(rows, [new.parents for new in nodes])
        tokens, wanted = laid_out(nodes, extension.width)
        logits, taps = self.forward(
            tokens.to(self.device),
            torch.from_numpy(extension.positions).to(self.device),
            self._mask(extension),
            cache,
            None if wanted is None else wanted.to(self.device),
            hidden,
            **self._steered(view, rows, extension),
        )
        return logits, taps, starts_of(nodes)

    def _groups(self, cache: TrieCache, rows: Seq[Row], bridged: bool) -> list[list[Row]]:
        """Which rows share a pass, by index. A few that are not asked may come along to bridge a gap, without nodes."""
        groups: list[list[Row]] = []
        for row in sorted(rows, key=lambda row: row.index):
            last = groups[-1] if groups else []
            between = cache.live[last[-1].index + 1 : row.index] if last else []
            near = bool(last) and (bridged or not between) and len(between) <= len(last)
            if near and all(self._together(*pair) for pair in pairwise([last[-1], *between, row])):
                last += [*between, row]
            else:
                groups.append([row])
        return groups

    def _together(self, before: Row, row: Row) -> bool:
        """Whether a row may share the pass of its neighbour, which stands before it."""
        return True

    def _steered(self, view: View | ViewRule | None, rows: Seq[Row], extension: Extension) -> dict[str, Any]:
        """The view of one pass, if any: the one asked for, or that of the model's own rule."""
        rule = self._watched if view is None else view
        if isinstance(rule, ViewRule):
            prompts = np.array([row.prompt for row in rows])[:, None]
            return {"view": rule.view((extension.positions - prompts).ravel(), self.num_layers)}
        return {} if view is None else {"view": view}

    def _mask(self, extension: Extension) -> Mask:
        """Additive masks `[B, 1, T, S]` float32: one for all layers, or one a layer type."""
        kinds: dict[str, torch.Tensor] = {}
        for kind, window in self.windows.items():
            visible = extension.visible if window is None else extension.window(window)
            additive = np.where(visible, np.float32(0), np.float32(-np.inf))[:, None]
            kinds[kind] = torch.from_numpy(additive).to(self.device)
        return next(iter(kinds.values())) if len(kinds) == 1 else kinds
