"""Models with recurrent layers: greedy text equals transformers', drafts are taken back, trees are refused."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from models.architectures import ABSENT, EXPERTS, VOCABULARY, build
from paceline import Engine
from paceline.drafters.draft import DraftModel
from paceline.errors import Unsupported
from paceline.models.loading import load_model
from paceline.models.recurrent import RecurrentModel
from paceline.testing.drafters import Fixed, Hostile, Oracle
from paceline.testing.running import finish, submit
from paceline.tree import TokenTree

NEW = 10
PROMPTS = [[7], [5, 9, 5, 9, 5], [(3 * i) % 50 + 2 for i in range(23)]]
EXPERT = {**EXPERTS, "shared_expert_intermediate_size": 16}
SSM = {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 8}
#: Name: configuration class, what differs from `SIZE`, and whether a pass may go on by several tokens.
MODELS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "Mamba": ("MambaConfig", {}, False),
    "Mamba 2": (
        "Mamba2Config",
        {"num_heads": 8, "head_dim": 8, "n_groups": 2, "state_size": 8, "chunk_size": 8, "num_key_value_heads": ABSENT},
        True,
    ),
    "Jamba": (
        "JambaConfig",
        {**EXPERT, "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 4, "mamba_d_state": 8},
        False,
    ),
    "Falcon-H1": ("FalconH1Config", {**SSM, "mamba_d_ssm": 32, "mamba_n_groups": 1}, True),
    "Qwen3-Next": (
        "Qwen3NextConfig",
        {
            **EXPERT,
            "linear_num_value_heads": 2,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "layer_types": ["linear_attention", "full_attention"],
        },
        True,
    ),
    "LFM 2": ("Lfm2Config", {"full_attn_idxs": [1]}, True),
}


@cache
def model_of(name: str) -> Any:
    config, changes, _ = MODELS[name]
    return load_model(build(config, changes))


def generated(name: str, prompt: list[int], **options: Any) -> list[int]:
    """What transformers generates."""
    ids = torch.tensor([prompt])
    text = model_of(name).module.generate(ids, do_sample=False, max_new_tokens=NEW, pad_token_id=0, **options)
    return text[0, len(prompt) :].tolist()


@cache
def wanted(name: str) -> dict[tuple[int, ...], list[int]]:
    return {tuple(prompt): generated(name, prompt) for prompt in PROMPTS}


@cache
def engine_of(name: str) -> Engine:
    return Engine(model_of(name), drafter="none", max_rows=2, nodes=4)


@cache
def draft() -> Any:
    return load_model(build("LlamaConfig", {"num_hidden_layers": 1}), fast=False)


def drafters(name: str) -> dict[str, Any]:
    return {
        "none": "none",
        "ngram": "ngram(confidence=0)",
        "draft": DraftModel(draft(), confidence=0),
        "knowing": Oracle(wanted(name), VOCABULARY, depth=4, wrong=False, shape="chain"),
        "hostile": Hostile(VOCABULARY, chain=True, shape="chain"),
    }


@pytest.mark.parametrize("name", MODELS)
def test_greedy_text_equals_transformers(name: str) -> None:
    engine = engine_of(name)
    for label, drafter in drafters(name).items():
        part = engine._part("drafter", drafter) if isinstance(drafter, str) else drafter
        for prompts in ([PROMPTS[2]], PROMPTS):
            sequences = [s for prompt in prompts for s in submit(engine, prompt, drafter=part, max_new_tokens=NEW)]
            finish(engine)
            for sequence in sequences:
                assert sequence.error is None
                assert sequence.tokens[sequence.prompt_length :] == wanted(name)[tuple(sequence.request.prompt)], label
                if label == "knowing":
                    assert sequence.stats.forward_passes <= 3
    assert engine.decoder.cache.live == []


#: Chains of every origin, with a length where the default may be none at all.
CHAINS = (
    "copyspec(gamma=1, copy=4)",
    "copyspec(gamma=1, fallback=ngram(confidence=0))",
    "aggressive(confidence=0)",
    "suffix(tree=false, confidence=0)",
    "jacobi(block=3)",
    "sjd(block=3)",
    "lexical(pads=2, placeholder=3)",
    "rapid(chunk=4, query=3, retrieved=8, length=3, confidence=0)",
    "turns(ngram(confidence=0), suffix(tree=false))",
)


@pytest.mark.parametrize("name", ["Mamba", "Falcon-H1", "Qwen3-Next"])
@pytest.mark.parametrize("spec", CHAINS)
def test_chains_of_every_drafter_are_judged(spec: str, name: str) -> None:
    results = engine_of(name).generate(PROMPTS, drafter=spec, max_new_tokens=NEW)
    assert [r.tokens for r in results] == [wanted(name)[tuple(prompt)] for prompt in PROMPTS]
    assert sum(r.stats.drafted for r in results) > 0


@pytest.mark.parametrize("name", ["Mamba", "Falcon-H1"])
def test_a_prediction_is_followed(name: str) -> None:
    prompt, text = PROMPTS[2], wanted(name)[tuple(PROMPTS[2])]
    for prediction, most in ((text, 3), ([*text[:4], (text[4] + 1) % VOCABULARY, *text[5:]], 5)):
        result = engine_of(name).generate(prompt, prediction=prediction, max_new_tokens=NEW)
        assert result.tokens == text
        assert result.stats.accepted > 0
        assert result.stats.forward_passes <= most


@pytest.mark.parametrize("name", ["Mamba", "Falcon-H1"])
@pytest.mark.parametrize("spec", ["early_exit", "self_speculative(exit(layer=1))", "del", "swift", "easyspec"])
def test_views_are_refused_with_the_reason(spec: str, name: str) -> None:
    with pytest.raises(
        Unsupported, match="does not offer views: every token goes into the state of its recurrent layers"
    ):
        engine_of(name).generate(PROMPTS[0], drafter=spec)


def test_a_lossy_view_and_a_quantised_copy_are_refused() -> None:
    with pytest.raises(Unsupported, match="every token goes into the state of its recurrent layers"):
        Engine.load(model_of("Falcon-H1").module, view="exit(layer=1)")
    with pytest.raises(Unsupported, match="cannot be quantised for drafting: FalconH1ForCausalLM is not laid out"):
        engine_of("Falcon-H1").generate(PROMPTS[0], drafter="quantised")


@pytest.mark.parametrize("name", ["Mamba", "Falcon-H1", "Qwen3-Next"])
def test_penalties_are_those_of_transformers(name: str) -> None:
    options: dict[str, Any] = {"repetition_penalty": 1.6, "no_repeat_ngram_size": 2}
    expected = [generated(name, prompt, **options) for prompt in PROMPTS]
    assert expected != [generated(name, prompt) for prompt in PROMPTS]
    for spec in ("none", "suffix(tree=false, confidence=0)", "jacobi(block=3)"):
        results = engine_of(name).generate(PROMPTS, drafter=spec, max_new_tokens=NEW, **options)
        assert [r.tokens for r in results] == expected
    spread = {"presence_penalty": 0.6, "frequency_penalty": 0.9, "temperature": 0.8, "seed": 2, "max_new_tokens": NEW}
    plain = engine_of(name).generate(PROMPTS, **spread)
    drafted = engine_of(name).generate(PROMPTS, drafter="suffix(tree=false, confidence=0)", **spread)
    assert [r.tokens for r in drafted] == [r.tokens for r in plain]


@pytest.mark.parametrize("name", ["Mamba", "Falcon-H1"])
@pytest.mark.parametrize("spec", ["none", "knowing"])
def test_stop_strings_and_logprobs(spec: str, name: str) -> None:
    """A stop string in the middle of an accepted draft, and the log-probabilities of a fresh pass."""
    prompt, text = PROMPTS[2], wanted(name)[tuple(PROMPTS[2])]
    words = Tokenizer(models.WordLevel({f"w{i} ": i for i in range(VOCABULARY)}, unk_token="w0 "))
    words.decoder = decoders.Fuse()
    engine = Engine(model_of(name), PreTrainedTokenizerFast(tokenizer_object=words), drafter="none", nodes=4)
    part = engine._part("drafter", "none") if spec == "none" else drafters(name)[spec]
    stop = f"w{text[5]} "
    sequence = submit(engine, prompt, drafter=part, max_new_tokens=NEW, stop=[stop], logprobs=2)[0]
    finish(engine)
    count = text.index(text[5]) + 1
    assert (sequence.finish_reason, sequence.stop_reason) == ("stop", stop)
    assert sequence.tokens[len(prompt) :] == text[:count]
    laws = model_of(name).module(input_ids=torch.tensor([prompt + text])).logits[0].log_softmax(-1)
    expected = [float(laws[len(prompt) - 1 + i, token]) for i, token in enumerate(text[:count])]
    assert [entry.logprob for entry in sequence.logprobs] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_how_it_goes_on_is_found_out(name: str) -> None:
    model = model_of(name)
    assert isinstance(model, RecurrentModel)
    assert model.continues == MODELS[name][2]
    assert model.spare == (5 if model.continues else 0)


@pytest.mark.parametrize("name", ["Mamba", "Qwen3-Next"])
def test_sampled_text_depends_on_the_seed_alone(name: str) -> None:
    engine, settings = engine_of(name), {"max_new_tokens": NEW, "temperature": 0.9, "seed": 3}
    plain = [[r.tokens for r in engine.generate(prompt, n=2, **settings)] for prompt in PROMPTS]
    assert plain[1][0] != plain[1][1]
    for spec in ("ngram(confidence=0)", "jacobi(block=3)"):
        mixed = engine.generate(PROMPTS, drafter=spec, n=2, **settings)
        assert [r.tokens for r in mixed] == [tokens for pair in plain for tokens in pair]


@pytest.mark.parametrize("name", ["Mamba 2", "Falcon-H1", "Jamba"])
def test_logits_after_refused_drafts_are_those_of_a_fresh_text(name: str) -> None:
    model, text = model_of(name), PROMPTS[2]
    cache = model.new_cache(2)
    cache.allocate()
    row = cache.allocate()
    at = 0
    for accepted, refused in ((3, 0), (1, 3), (0, 4), (2, 2), (0, 1), (0, 0), (4, 4), (0, 3)):
        guess = [*text[at + 1 : at + 1 + accepted], *[(text[at] + 1) % VOCABULARY] * refused]
        logits = model.score(cache, [row], [TokenTree.chain(text[at], guess)]).logits
        whole = model.module(input_ids=torch.tensor([text[: at + 1 + accepted]])).logits[0, at:]
        torch.testing.assert_close(logits[: accepted + 1], whole, rtol=1e-3, atol=1e-4)
        cache.keep(row, range(accepted + 1))
        at += accepted + 1
        assert (row.trunk, row.parents) == (at, [])
    assert cache.nbytes > 0
    cache.crop(row, 5)
    logits = model.score(cache, [row], [TokenTree.empty(text[6])], [[text[5]]]).logits
    whole = model.module(input_ids=torch.tensor([text[:7]])).logits[0, -1:]
    torch.testing.assert_close(logits, whole, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("target", ["Llama", "Mamba 2"])
def test_it_drafts_for_others(target: str) -> None:
    """A draft's model is taken back by every token that did not hold."""
    module = build("LlamaConfig", {}) if target == "Llama" else model_of(target).module
    engine = Engine.load(module, drafter="none", max_rows=2)
    expected = [engine.generate(prompt, max_new_tokens=NEW).tokens for prompt in PROMPTS]
    drafter = DraftModel(model_of("Mamba 2"), length=3, confidence=0)
    results = engine.generate(PROMPTS, drafter=drafter, max_new_tokens=NEW)
    assert [r.tokens for r in results] == expected
    if target == "Mamba 2":
        assert all(r.stats.accepted == r.stats.drafted for r in results)


def test_prompt_logprobs_are_those_of_the_text() -> None:
    for name in ("Mamba", "Falcon-H1"):
        result = engine_of(name).generate(PROMPTS[2], max_new_tokens=3, logprobs=0, echo=True)
        logits = model_of(name).module(input_ids=torch.tensor([PROMPTS[2]])).logits[0].log_softmax(-1)
        expected = [float(logits[i, token]) for i, token in enumerate(PROMPTS[2][1:])]
        found = [entry.logprob for entry in result.prompt_logprobs]
        assert found[-len(expected) :] == pytest.approx(expected, abs=1e-4)


def test_a_long_prompt_is_read_in_chunks() -> None:
    prompt = [(5 * i) % 53 + 2 for i in range(90)]
    for name in ("Mamba", "Qwen3-Next"):
        engine = Engine(model_of(name), drafter="ngram", nodes=3)
        engine.decoder.prefill_chunk = 32
        ids = model_of(name).module.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=5, pad_token_id=0)
        assert engine.generate(prompt, max_new_tokens=5).tokens == ids[0, 90:].tolist()


def test_trees_are_refused_with_the_reason() -> None:
    engine = engine_of("Mamba 2")
    with pytest.raises(
        Unsupported, match=r"cannot score a tree, .*'recycling' drafts: the state of its recurrent layers"
    ):
        engine.generate(PROMPTS[0], drafter="recycling")
    sequence = submit(engine, PROMPTS[0], drafter=Fixed((1, 2), (0, 0)), max_new_tokens=3)[0]
    finish(engine)
    assert isinstance(sequence.error, Unsupported)


def test_it_drafts_no_trees_for_others() -> None:
    engine = Engine.load(build("LlamaConfig", {}), drafter="none")
    drafter = DraftModel(model_of("Mamba 2"), tree="fixed")
    with pytest.raises(Unsupported, match=r"cannot draft a tree: the state of its recurrent layers .* draft a chain"):
        engine.generate(PROMPTS[0], drafter=drafter)


def test_nothing_is_drafted_by_default_where_each_token_costs_a_pass() -> None:
    result = Engine(model_of("Mamba"), drafter="ngram(confidence=0)").generate(PROMPTS[1], max_new_tokens=NEW)
    assert result.stats.drafted == 0
    assert result.tokens == wanted("Mamba")[tuple(PROMPTS[1])]


def test_a_pass_that_fails_half_way_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The state may hold tokens that were never committed; the next pass starts from a checkpoint."""
    model, engine = model_of("Falcon-H1"), engine_of("Falcon-H1")
    sequence = submit(engine, PROMPTS[1], max_new_tokens=NEW)[0]
    for _ in range(4):
        engine.decoder.step()
    last, calls = model.module.model.layers[-1], [0]
    plain = last.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == 1:
            raise RuntimeError("out of luck")
        return plain(*args, **kwargs)

    monkeypatch.setattr(last, "forward", forward)
    row, text = sequence.row, list(sequence.tokens)
    with pytest.raises(RuntimeError, match="out of luck"):
        model.score(engine.decoder.cache, [row], [TokenTree.chain(text[-1], [1])])
    engine.decoder.cache.crop(row, len(text) - 1)
    finish(engine)
    assert sequence.tokens[5:] == wanted("Falcon-H1")[tuple(PROMPTS[1])]


def test_a_state_kept_elsewhere_is_refused() -> None:
    config = {"num_hidden_layers": 3, "lru_width": 32, "attention_window_size": 8}
    with pytest.raises(Unsupported, match="does not go on from a stored state as it should"):
        load_model(build("RecurrentGemmaConfig", config))
