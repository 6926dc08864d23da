"""What a pass under a view computes, in both forward passes and many architectures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from models.architectures import SUPPORTED, build

from paceline.errors import BadRequest, Unsupported
from paceline.models.loading import load_model
from paceline.models.views import Chosen, Exit, Grouped, Resume, Skip, View, require_views
from paceline.tree import TokenTree
from tests.views.support import LAYERS, PASSES, model_of, scored, tapering

PROMPT, TOKENS = [5, 6, 7, 8], [9, 10, 11]
#: Architectures whose sub-blocks are not laid out in a known way.
WITHOUT = {"OPT", "Gemma 3n, shared keys"}


def silenced(attention: frozenset[int], mlp: frozenset[int]) -> Any:
    """The module with the sub-blocks' last matrices set to zero."""
    module = tapering()
    with torch.no_grad():
        for number, layer in enumerate(module.model.layers):
            if number in attention:
                layer.self_attn.o_proj.weight.zero_()
            if number in mlp:
                layer.mlp.down_proj.weight.zero_()
    return load_model(module, fast=False)


@pytest.mark.parametrize("path", PASSES)
@pytest.mark.parametrize(
    ("attention", "mlp"), [({1}, set()), (set(), {2, 3}), ({0, 4}, {0, 4}), ({1, 2, 3}, {1}), (set(range(5)), {0})]
)
def test_a_skipped_sub_block_adds_nothing(path: str, attention: set[int], mlp: set[int]) -> None:
    """No prompt: its keys would be those of the whole model."""
    skip = Skip(frozenset(attention), frozenset(mlp))
    got = scored(model_of(path), [], TOKENS, view=skip).logits
    torch.testing.assert_close(got, scored(silenced(skip.attention, skip.mlp), [], TOKENS).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("path", PASSES)
def test_layers_split_at_any_place_are_the_whole_model(path: str) -> None:
    model = model_of(path)
    whole = scored(model, PROMPT, TOKENS, hidden=tuple(range(LAYERS + 1)))
    for layer in range(1, LAYERS):
        cache = model.new_cache(1)
        row = cache.allocate()
        model.prefill(cache, row, PROMPT)
        tree = TokenTree.chain(TOKENS[0], TOKENS[1:])
        first = model.score(cache, [row], [tree], view=Exit(layer), hidden=(layer,))
        torch.testing.assert_close(first.hidden[layer], whole.hidden[layer], rtol=0, atol=0)
        cache.crop(row, len(PROMPT))
        rest = model.score(cache, [row], [tree], view=Resume(layer, first.hidden[layer][None]))
        torch.testing.assert_close(rest.logits, whole.logits, rtol=0, atol=1e-10)


@pytest.mark.parametrize("path", PASSES)
def test_an_exit_is_the_shorter_model(path: str) -> None:
    short = tapering(layers=2)
    whole = tapering()
    short.model.layers.load_state_dict(whole.model.layers[:2].state_dict())
    short.model.norm, short.lm_head, short.model.embed_tokens = (
        whole.model.norm,
        whole.lm_head,
        whole.model.embed_tokens,
    )
    expected = scored(load_model(short, fast=False), PROMPT, TOKENS).logits
    torch.testing.assert_close(
        scored(model_of(path), PROMPT, TOKENS, view=Exit(2)).logits, expected, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("name", [name for name in SUPPORTED if name not in WITHOUT])
def test_every_architecture_with_known_sub_blocks(name: str) -> None:
    model = load_model(build(*SUPPORTED[name]), fast=False)
    whole = scored(model, PROMPT, TOKENS, hidden=(1,))
    inner = scored(model, PROMPT, TOKENS, hidden=(1,), view=Exit(1))
    torch.testing.assert_close(inner.hidden[1], whole.hidden[1], rtol=0, atol=0)
    others = frozenset(range(1, model.num_layers))
    skipped = scored(model, PROMPT, TOKENS, view=Skip(others, others))
    torch.testing.assert_close(skipped.logits, inner.logits, rtol=1e-5, atol=1e-5)
    for view in (View(), Grouped(1), Skip()):
        torch.testing.assert_close(scored(model, PROMPT, TOKENS, view=view).logits, whole.logits, rtol=0, atol=0)
    torch.testing.assert_close(scored(model, PROMPT, TOKENS).logits, whole.logits, rtol=0, atol=0)


@pytest.mark.parametrize("name", sorted(WITHOUT))
def test_other_layouts_are_refused(name: str) -> None:
    model = load_model(build(*SUPPORTED[name]), fast=False)
    with pytest.raises(Unsupported, match="does not offer views"):
        require_views(model, "drafter 'x'")


class Marked(View):
    """Attention of layer 1 and the feed-forward sub-block of layer 2 run for some tokens only."""

    def __init__(self, marks: list[bool]) -> None:
        self.marks = torch.tensor(marks)
        self.seen: list[tuple[int, torch.Tensor, torch.Tensor]] = []

    def attends(self, layer: int) -> bool | torch.Tensor:
        return self.marks if layer == 1 else True

    def feeds(self, layer: int) -> bool | torch.Tensor:
        return self.marks if layer == 2 else layer != 3

    def fed(self, layer: int, before: torch.Tensor, after: torch.Tensor) -> None:
        self.seen.append((layer, before, after))


@pytest.mark.parametrize("path", PASSES)
def test_each_token_may_run_other_sub_blocks(path: str) -> None:
    """The first two tokens run everything, the third one what it would run alone behind them."""
    model = model_of(path)
    marked = Marked([True, True, False])
    got = scored(model, PROMPT, TOKENS, view=marked)
    one = frozenset({3})
    torch.testing.assert_close(
        got.logits[:2], scored(model, PROMPT, TOKENS, view=Skip(mlp=one)).logits[:2], rtol=1e-5, atol=1e-5
    )
    cache = model.new_cache(1)
    row = cache.allocate()
    model.prefill(cache, row, PROMPT)
    model.score(cache, [row], [TokenTree.chain(TOKENS[0], TOKENS[1:2])], view=Skip(mlp=one))
    cache.keep(row, [0, 1])
    alone = Skip(frozenset({1}), frozenset({2, 3}))
    last = model.score(cache, [row], [TokenTree.empty(TOKENS[2])], view=alone).logits
    torch.testing.assert_close(got.logits[2:], last, rtol=1e-5, atol=1e-5)
    assert [layer for layer, _, _ in marked.seen] == [0, 1, 2, 4]


def test_both_passes_report_the_same_residual_streams() -> None:
    views = [Marked([True, True, True]) for _ in PASSES]
    for path, view in zip(PASSES, views, strict=True):
        scored(model_of(path), PROMPT, TOKENS, view=view)
    for (_, *ours), (_, *theirs) in zip(views[0].seen, views[1].seen, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("path", PASSES)
def test_groups_read_the_input_of_their_first_layer(path: str) -> None:
    """Against a plain loop over the module's own sub-blocks, on one token without a past."""
    module = tapering()
    x = module.model.embed_tokens(torch.tensor([[9]]))
    where = module.model.rotary_emb(x, torch.zeros(1, 1, dtype=torch.long))
    for number, layer in enumerate(module.model.layers):
        if number in (0, 1, 3):  # layer 0 is exact; then groups of two: 1 and 2, 3 and 4
            entered = x
        x = x + layer.self_attn(layer.input_layernorm(entered), position_embeddings=where, attention_mask=None)[0]
        x = x + layer.mlp(layer.post_attention_layernorm(x))
    expected = module.lm_head(module.model.norm(x))[0]
    got = scored(model_of(path), [], [9], view=Grouped(2, frozenset({0}))).logits
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_a_module_is_left_as_it_was() -> None:
    model = load_model(tapering(), fast=False)
    plain = scored(model, PROMPT, TOKENS).logits
    broken = Marked([True])

    def fail(layer: int) -> bool:
        raise RuntimeError("view failed")

    broken.feeds = fail  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="view failed"):
        scored(model, PROMPT, TOKENS, view=broken)
    assert not any("forward" in vars(part) for part in model.module.modules())
    np.testing.assert_array_equal(scored(model, PROMPT, TOKENS).logits, plain)


@pytest.mark.parametrize("path", PASSES)
@pytest.mark.parametrize(
    ("view", "message"),
    [
        (Skip(frozenset({5})), "layer 5 cannot be skipped; the model has layers 0 to 4"),
        (Skip(mlp=frozenset({-1})), "layer -1 cannot be skipped"),
        (Skip(frozenset(range(5)), frozenset(range(5))), "all 5 layers"),
        (Exit(0), "no exit behind 0 layers; the model has 5, 1 to 5 may run"),
        (Exit(99), "no exit behind 99 layers"),
        (Resume(6, torch.zeros(1, 3, 32)), "no layer 6 to resume from"),
        (Grouped(0), "groups of 0 layers"),
        (Chosen(np.ones((4, 3), bool)), "4 layers are told apart; the model has 5"),
        (Chosen(np.zeros((5, 3), bool)), "all 5 layers"),
    ],
)
def test_views_that_do_not_suit_a_model_are_refused_before_it_runs(view: View, message: str, path: str) -> None:
    model = model_of(path)
    cache = model.new_cache(1)
    row = cache.allocate()
    with pytest.raises(BadRequest, match=message):
        model.score(cache, [row], [TokenTree.chain(TOKENS[0], TOKENS[1:])], view=view)
    assert (row.parents, cache.nbytes) == ([], 0)


@pytest.mark.parametrize("name", sorted(WITHOUT))
def test_a_model_without_views_is_asked_for_none(name: str) -> None:
    model = load_model(build(*SUPPORTED[name]), fast=False)
    with pytest.raises(Unsupported, match=r"Skip runs only some layers of .* does not offer views"):
        scored(model, PROMPT, TOKENS, view=Skip())


@pytest.mark.parametrize("name", ["Llama", "Gemma 2", "GPT-2", "Cohere 2", "fused"])
def test_inner_states_are_read_out_as_an_exit_reads_them(name: str) -> None:
    model = model_of("fused") if name == "fused" else load_model(build(*SUPPORTED[name]), fast=False)
    inner = scored(model, PROMPT, TOKENS, hidden=(1,), view=Exit(1))
    torch.testing.assert_close(model.read_out(inner.hidden[1]), inner.logits, rtol=0, atol=0)
