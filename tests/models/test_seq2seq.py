"""Encoder-decoder models: greedy text equals transformers', a source is read once and its slots stay as they are."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from e2e.test_matrix import tokenizer
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5Model

from models.architectures import SIZE
from models.seq2seq import PAD, REFUSED, START, SUPPORTED, VOCABULARY, build, written
from paceline import Engine, registry
from paceline.drafters.draft import DraftModel
from paceline.drafters.pearl import Pearl
from paceline.drafters.rapid import Rapid
from paceline.drafters.translate import Translate
from paceline.errors import BadRequest, ModelError, Unsupported
from paceline.models import positions, seq2seq
from paceline.models.fast import speed_up
from paceline.models.inflate import inflate
from paceline.models.loading import load_model, load_tokenizer
from paceline.models.packing import PackedLinear
from paceline.models.seq2seq import Seq2SeqModel
from paceline.testing.drafters import Hostile, Oracle
from paceline.testing.methods import RELAXED, VERIFIERS, drafters
from paceline.testing.running import finish, submit
from paceline.tree import TokenTree

NEW = 16
#: Of different lengths; one is longer than a block of the cache.
SOURCES = [[7], [5, 9, 5, 9, 5], [(3 * i) % 50 + 3 for i in range(23)], [(i * i) % 47 + 4 for i in range(140)]]
#: A relative bias and a table of positions; they meet every drafter.
THOROUGH = ("T5, gated", "BART")
#: Drafters that meet all others.
BRIEFLY = ("ngram(candidates=4, confidence=0)", "recycling", "aggressive(confidence=0)")
#: Drafters that run only some layers of the target, or a copy of a Llama.
REFUSING = ("quantised", "early_exit", "self_speculative", "swift", "del", "easyspec")


@cache
def module_of(name: str) -> Any:
    config, options, seed = SUPPORTED[name]
    return build(config, options, seed)


@cache
def engine_of(name: str) -> Engine:
    return Engine.load(module_of(name), drafter="none", max_rows=3, nodes=12)


@cache
def wanted(name: str) -> list[list[int]]:
    return [written(module_of(name), source, NEW) for source in SOURCES]


def known(name: str) -> Oracle:
    """The drafter that knows the text and hides it among wrong siblings."""
    prompts = [(*source, *engine_of(name).model.opening) for source in SOURCES]
    return Oracle(dict(zip(prompts, wanted(name), strict=True)), VOCABULARY)


def tokens(results: Any) -> list[list[int]]:
    assert [result.error for result in results] == [None] * len(results)
    return [result.tokens for result in results]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of every thorough model, which then is its own draft."""
    found = {name: str(tmp_path_factory.mktemp("draft")) for name in THOROUGH}
    for name, folder in found.items():
        module_of(name).save_pretrained(folder)
    return found


# -- equality -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SUPPORTED)
def test_greedy_text_equals_transformers(name: str) -> None:
    engine = engine_of(name)
    assert tokens([engine.generate(source, max_new_tokens=NEW) for source in SOURCES]) == wanted(name)
    for drafter in (
        *BRIEFLY,
        DraftModel(module_of(name), fast=False),
        DraftModel(module_of(name), tree="rsd_s(width=2)"),
    ):
        assert tokens(engine.generate(SOURCES, drafter=drafter, max_new_tokens=NEW)) == wanted(name), drafter
    assert len({tuple(text) for text in wanted(name)}) == len(SOURCES), "the text depends on the source"
    assert max(len(set(text)) for text in wanted(name)) > 4, "it is more than one token over and over"


@pytest.mark.parametrize("name", THOROUGH)
def test_every_drafter_writes_the_same_text_or_is_refused(name: str, folders: dict[str, str]) -> None:
    engine = engine_of(name)
    for spec in drafters(folders[name], thorough=name == THOROUGH[0]):
        if spec.startswith(REFUSING):
            with pytest.raises(
                Unsupported, match=r"laid out like a Llama|runs only some layers.*encoder-decoder model"
            ):
                engine.generate(SOURCES, drafter=spec)
            continue
        assert tokens(engine.generate(SOURCES, drafter=spec, max_new_tokens=NEW)) == wanted(name), spec


@pytest.mark.parametrize("name", SUPPORTED)
def test_trees_are_really_exercised(name: str) -> None:
    """Every true token stands among wrong siblings; all are accepted, in about a quarter of the passes."""
    engine, knowing = engine_of(name), known(name)
    sequences = [s for source in SOURCES for s in submit(engine, source, drafter=knowing, max_new_tokens=NEW)]
    finish(engine)
    for sequence, text in zip(sequences, wanted(name), strict=True):
        assert sequence.error is None
        assert sequence.tokens[sequence.prompt_length :] == text
        assert sequence.stats.accepted >= NEW * 2 // 3
        assert sequence.stats.drafted >= 3 * sequence.stats.accepted
        assert sequence.stats.forward_passes <= NEW // 4 + 1


@pytest.mark.parametrize("name", ["T5", "T5, gated", "BART", "Pegasus", "T5Gemma"])
def test_packed_layers_write_the_same_text(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config, options, seed = SUPPORTED[name]
    engine = Engine.load(build(config, options, seed), drafter="none", fast=True)
    assert "linear layers packed" in engine.model.path
    monkeypatch.setattr(PackedLinear, "_plain", None)  # no pass unpacks a weight
    assert tokens(engine.generate(SOURCES, drafter="ngram(candidates=4, confidence=0)", max_new_tokens=NEW)) == wanted(
        name
    )


@pytest.mark.parametrize("name", ["T5", "BART"])
def test_packing_can_be_undone(name: str) -> None:
    config, options, seed = SUPPORTED[name]
    module = build(config, options, seed)
    before = {name: weight.clone() for name, weight in module.state_dict().items()}
    speed_up(Seq2SeqModel(module))()
    assert all(torch.equal(weight, before[name]) for name, weight in module.state_dict().items())


@pytest.mark.parametrize("name", ["T5", "mBART"])
def test_sampled_text_depends_on_the_seed_alone(name: str, folders: dict[str, str]) -> None:
    engine, settings = engine_of(name), {"max_new_tokens": NEW, "temperature": 0.9, "top_p": 0.95, "seed": 3}
    plain = [result for source in SOURCES for result in engine.generate(source, n=2, **settings)]
    assert len({tuple(result.tokens) for result in plain}) == 2 * len(SOURCES)
    draft = DraftModel(module_of(name), confidence=0.0)
    for drafter in ("ngram(candidates=4, confidence=0)", "aggressive(confidence=0)", draft, "sjd", "recycling"):
        assert tokens(engine.generate(SOURCES, drafter=drafter, n=2, **settings)) == tokens(plain), drafter


# -- the source -----------------------------------------------------------------------------------------------


def counted(part: Any, calls: list[tuple[int, ...]], argument: str = "input_ids") -> Any:
    """Notes the shape of what a module is called with."""
    return part.register_forward_pre_hook(
        lambda _, args, given: calls.append(tuple(given[argument].shape)), with_kwargs=True
    )


@pytest.mark.parametrize("name", ["T5", "BART"])
def test_the_encoder_reads_a_source_once_and_the_decoder_takes_no_extra_pass(name: str) -> None:
    engine, read, scored = Engine.load(module_of(name), drafter="ngram", max_rows=3, nodes=12), [], []
    engine.decoder.prefill_chunk = 8
    hooks = [counted(module_of(name).get_encoder(), read), counted(module_of(name).get_decoder(), scored)]
    try:
        for source in SOURCES:
            read.clear()
            scored.clear()
            result = engine.generate(source, max_new_tokens=NEW)
            assert read == [(1, len(source))]
            assert len(scored) == result.stats.forward_passes
        read.clear()
        engine.generate(SOURCES, max_new_tokens=NEW, drafter="recycling")
        assert read == [(1, len(source)) for source in SOURCES]
        read.clear()
        samples = engine.generate(SOURCES[2], n=3, temperature=0.8, max_new_tokens=NEW)
        assert read == [(1, len(SOURCES[2]))], "further samples copy it"
    finally:
        for hook in hooks:
            hook.remove()
    assert tokens(samples) == tokens(
        engine.generate(SOURCES[2], n=3, temperature=0.8, max_new_tokens=NEW, drafter="none")
    )


@pytest.mark.parametrize("name", ["T5", "BART"])
def test_what_cross_attention_reads_never_changes(name: str) -> None:
    engine, source = engine_of(name), SOURCES[2]
    (sequence,) = submit(engine, source, drafter=Hostile(VOCABULARY), max_new_tokens=NEW)
    cache, row, held = engine.decoder.cache, None, []
    while sequence.finish_reason is None:
        engine.decoder.step()
        row = sequence.row or row
        stores = [store[row.index, :, : len(source)] for layer in cache.layers for store in (layer.keys, layer.values)]
        held.append(torch.cat([store.flatten() for store in stores]).clone() if sequence.row else held[-1])
    assert held[0].abs().min() > 0
    assert all(torch.equal(held[0], later) for later in held)
    assert sequence.tokens[sequence.prompt_length :] == wanted(name)[2]


def test_positions_are_told_for_the_time_of_a_pass_alone() -> None:
    for name in THOROUGH:
        module = module_of(name)
        engine_of(name).generate(SOURCES[0], max_new_tokens=2)
        for seam in positions.seams(module.get_decoder()):
            assert seam.name not in vars(seam.part)
        assert written(module, SOURCES[1], NEW) == wanted(name)[1], "the module is as it was"


def test_a_row_starts_with_its_whole_source() -> None:
    model = engine_of("T5").model
    cache = model.new_cache(1)
    row = cache.allocate()
    with pytest.raises(ValueError, match="whole source of 0 tokens"):
        model.score(cache, [row], [TokenTree.empty(START)], [[5, 6]])
    row.prompt = 4
    assert model.prefill(cache, row, [5, 6]) == []
    assert (row.trunk, row.parents) == (0, []), "it waits for the first pass"
    with pytest.raises(ValueError, match="whole source of 3 tokens"):
        model.score(cache, [row], [TokenTree.empty(6)], [[5]])
    model.prefill(cache, row, [5, 6, 7, START, 8, 9], chunk=1)
    assert (row.trunk, row.parents) == (6, [])
    logits = model.score(cache, [row], [TokenTree.empty(10)]).logits[0]
    torch.testing.assert_close(logits, model.says([5, 6, 7, START, 8, 9, 10], 4), rtol=1e-3, atol=1e-4)
    with pytest.raises(Unsupported, match="no log-probabilities of a prompt"):
        model.prefill(cache, cache.live[0], [5], logits=True)


# -- requests -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"repetition_penalty": 1.7}, {"repetition_penalty": 1.7}),
        ({"no_repeat_ngram_size": 2}, {"no_repeat_ngram_size": 2}),
        ({"banned_tokens": [PAD, 12]}, {"suppress_tokens": [PAD, 12]}),
    ],
)
def test_policies_see_the_output_alone_as_in_transformers(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    for name in ("T5", "mBART"):
        texts = [written(module_of(name), source, NEW, **theirs) for source in SOURCES]
        for spec in ("none", "ngram(confidence=0)"):
            assert tokens(engine_of(name).generate(SOURCES, drafter=spec, max_new_tokens=NEW, **ours)) == texts
    assert texts != wanted(name)


@pytest.mark.parametrize("name", ["T5, gated", "mBART"])
def test_texts_end_with_the_end_token(name: str) -> None:
    config, options, seed = SUPPORTED[name]
    module = build(config, options, seed)
    module.generation_config.eos_token_id = wanted(name)[2][6]
    texts = [written(module, source, NEW) for source in SOURCES]
    assert len({len(text) for text in texts}) > 1
    for spec in ("none", "recycling", "aggressive(confidence=0)"):
        assert tokens(Engine.load(module, drafter=spec).generate(SOURCES, max_new_tokens=NEW)) == texts


@pytest.mark.parametrize("name", ["T5", "BART"])
def test_hidden_states_are_the_decoders(name: str) -> None:
    model, source = engine_of(name).model, SOURCES[1]
    cache = model.new_cache(1)
    row = cache.allocate()
    row.prompt = len(source) + 1
    scores = model.score(cache, [row], [TokenTree.chain(START, [8, 9])], [source], hidden=(0, 1, 2))
    ids = torch.tensor([[START, 8, 9]])
    out = model.module(input_ids=torch.tensor([source]), decoder_input_ids=ids, output_hidden_states=True)
    for layer in (0, 1, 2):
        torch.testing.assert_close(scores.hidden[layer], out.decoder_hidden_states[layer][0], rtol=1e-3, atol=1e-4)


def test_a_prescribed_first_token_opens_the_output() -> None:
    config, options, seed = SUPPORTED["mBART"]
    module = build(config, options, seed)
    module.generation_config.forced_bos_token_id = 33
    engine = Engine.load(module, drafter="ngram(confidence=0)")
    assert engine.model.opening == (START, 33)
    texts = [written(module, source, NEW + 1, forced_bos_token_id=33) for source in SOURCES]
    assert [text[0] for text in texts] == [33] * len(SOURCES)
    assert tokens(engine.generate(SOURCES, max_new_tokens=NEW)) == [text[1:] for text in texts]


def test_texts_end_where_the_models_positions_do() -> None:
    config, options, seed = SUPPORTED["BART"]
    module = build(config, {**options, "max_position_embeddings": 24}, seed)
    engine = Engine.load(module, drafter="none", nodes=7)
    for source in SOURCES[:3]:
        for spec in ("none", "ngram(confidence=0)", "jacobi"):
            result = engine.generate(source, drafter=spec, max_new_tokens=99)
            assert (result.finish_reason, len(result.tokens)) == ("length", 24)
            assert result.tokens[:23] == written(module, source, 23)
    assert engine.generate(SOURCES[3][:24], max_new_tokens=3).tokens == written(module, SOURCES[3][:24], 3)
    with pytest.raises(BadRequest, match="prompt: 25 tokens exceed the context of 24; shorten the prompt"):
        engine.generate(SOURCES[3][:25])
    long = engine_of("T5").generate([5, 6, 7] * 400, max_new_tokens=3)
    assert long.tokens == written(module_of("T5"), [5, 6, 7] * 400, 3), "a relative bias has no end"


def test_texts_stops_logprobs_and_samples() -> None:
    words = tokenizer()
    engine = Engine.load(module_of("BART"), tokenizer=words, drafter="ngram(confidence=0)", nodes=7)
    source = words.decode(SOURCES[2])
    assert words(source)["input_ids"] == SOURCES[2]
    plain = engine.generate(source, max_new_tokens=NEW, logprobs=2)
    assert plain.tokens == wanted("BART")[2]
    assert plain.text == words.decode(plain.tokens, skip_special_tokens=True)
    assert "".join(event.text for event in engine.stream(source, max_new_tokens=NEW)) == plain.text
    assert engine.generate(source, max_new_tokens=NEW, echo=True).text == source + words.decode([START]) + plain.text
    assert plain.logprobs is not None
    assert [entry.token for entry in plain.logprobs] == plain.tokens
    law = engine.model.says([*SOURCES[2], START], len(SOURCES[2]) + 1).log_softmax(-1)
    assert plain.logprobs[0].logprob == pytest.approx(float(law.max()), abs=1e-4)
    stop = plain.text[5:9]
    stopped = engine.generate(source, max_new_tokens=NEW, stop=stop)
    assert (stopped.text, stopped.stop_reason) == (plain.text[: plain.text.find(stop)], stop)
    assert tokens(engine.generate(source, n=2, max_new_tokens=NEW)) == [plain.tokens] * 2


@pytest.mark.parametrize("verifier", VERIFIERS)
def test_every_verifier_judges_its_texts(verifier: str) -> None:
    engine = engine_of("mBART")
    draft = DraftModel(module_of("mBART"), length=3, confidence=0.0, fast=False)
    settings: dict[str, dict[str, Any]] = {"greedy": {}, "sampled": {"temperature": 0.9, "top_k": 9}}
    for choice in registry.build("verifier", verifier).choices:
        results = engine.generate(SOURCES, drafter=draft, verifier=verifier, max_new_tokens=NEW, **settings[choice])
        assert [len(text) for text in tokens(results)] == [NEW] * len(SOURCES)
        assert choice == "sampled" or verifier in RELAXED or tokens(results) == wanted("mBART")


def test_a_cancelled_request_leaves_the_others_alone() -> None:
    engine = engine_of("mBART")
    (first,), (second,) = (submit(engine, source, max_new_tokens=NEW) for source in SOURCES[1:3])
    engine.decoder.step()
    engine.decoder.step()
    engine.decoder.cancel(first.request.id)
    finish(engine)
    assert first.finish_reason == "cancelled"
    assert second.tokens[second.prompt_length :] == wanted("mBART")[2]
    assert engine.decoder.cache.live == []


def test_a_failed_first_pass_is_the_fault_of_one_request(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of("BART")
    encoder, length = module_of("BART").get_encoder(), len(SOURCES[1])
    plain = encoder.forward

    def failing(input_ids: torch.Tensor, **options: Any) -> Any:
        if input_ids.shape[1] == length:
            raise RuntimeError("no")
        return plain(input_ids=input_ids, **options)

    with monkeypatch.context() as patch:
        patch.setattr(encoder, "forward", failing)
        results = engine.generate(SOURCES, max_new_tokens=NEW)
    assert [str(result.error) for result in results if result.error] == ["no"]
    assert [result.tokens for result in results if not result.error] == [*wanted("BART")[:1], *wanted("BART")[2:]]
    assert tokens(engine.generate(SOURCES, max_new_tokens=NEW)) == wanted("BART")


def test_what_is_asked_for_wrongly_is_refused_by_name() -> None:
    engine = engine_of("BART")
    with pytest.raises(BadRequest, match="prompt: it is empty"):
        engine.generate([[]])
    with pytest.raises(BadRequest, match="prompt: token id 61 is not allowed"):
        engine.generate([5, 61])
    with pytest.raises(Unsupported, match=r"echo=True with logprobs .* its encoder reads a prompt and says nothing"):
        engine.generate([5, 6], echo=True, logprobs=1)
    with pytest.raises(Unsupported, match=r"does not offer views.*encoder-decoder"):
        Engine.load(module_of("BART"), view="unified(speedup=2)")
    with pytest.raises(Unsupported, match="inflate: BartForConditionalGeneration is not laid out like a Llama"):
        inflate(module_of("BART"), hidden=64, layers=4)


# -- drafts ---------------------------------------------------------------------------------------------------


def test_a_smaller_encoder_decoder_drafts() -> None:
    """The larger model's first layers say what it says, where the others add little."""
    config, options, seed = SUPPORTED["mBART"]
    target = build(config, options, seed)
    small = build(config, {**options, "decoder_layers": 1}, seed)
    small.load_state_dict({k: v for k, v in target.state_dict().items() if k in small.state_dict()})
    with torch.no_grad():
        for name in ("fc2", "encoder_attn.out_proj", "self_attn.out_proj"):
            target.get_submodule(f"model.decoder.layers.1.{name}").weight.mul_(0.1)
    engine = Engine.load(target, drafter="none", max_rows=3)
    texts = [written(target, source, NEW) for source in SOURCES]
    for options in ({"confidence": 0.0}, {"tree": "dyspec(threshold=0.1)", "budget": 7}):
        results = engine.generate(SOURCES, drafter=DraftModel(small, **options), max_new_tokens=NEW)
        assert tokens(results) == texts
        assert sum(result.stats.accepted for result in results) > NEW


def test_a_drafts_context_ends_before_the_targets() -> None:
    config, options, seed = SUPPORTED["mBART"]
    short = build(config, {**options, "max_position_embeddings": 12}, seed)
    engine = engine_of("mBART")
    chain, tree, pearl = DraftModel(short, confidence=0.0), DraftModel(short, tree="fixed"), Pearl(short, length=3)
    for drafter in (chain, tree, pearl, Rapid(short, confidence=0.0)):
        results = engine.generate(SOURCES, drafter=drafter, max_new_tokens=NEW)
        assert tokens(results) == wanted("mBART")
        assert results[0].stats.drafted > 0 or drafter is pearl
        assert results[2].stats.drafted == 0, "it cannot read so long a source"


def test_models_of_either_kind_draft_where_they_can() -> None:
    torch.manual_seed(1)
    llama = LlamaForCausalLM(LlamaConfig(**{**SIZE, "num_hidden_layers": 1})).eval()
    results = engine_of("T5").generate(SOURCES, drafter=DraftModel(llama, confidence=0.0), max_new_tokens=NEW)
    assert tokens(results) == wanted("T5"), "a decoder-only draft reads source and output as one text"
    worded = Engine.load(module_of("T5"), tokenizer=tokenizer())
    llama.config.eos_token_id = None
    small = load_model(llama)
    small.tokenizer = tokenizer()
    assert tokens(worded.generate(SOURCES, drafter=Translate(small, confidence=0.0), max_new_tokens=NEW)) == wanted(
        "T5"
    )
    with pytest.raises(Unsupported, match=r"has an encoder, and its output begins with the tokens \[2\].* with \[\]"):
        Engine.load(llama, drafter=DraftModel(module_of("T5")))
    config, options, seed = SUPPORTED["BART"]
    other = build(config, {**options, "decoder_start_token_id": 3}, seed)
    with pytest.raises(Unsupported, match=r"begins with the tokens \[2\], that of .* with \[3\]"):
        Engine.load(other, drafter=DraftModel(module_of("T5")))
    with pytest.raises(Unsupported, match=r"translate: .* has an encoder; a decoder-only model is needed"):
        Engine.load(llama, tokenizer=tokenizer(), drafter=Translate(module_of("T5")))


# -- loading --------------------------------------------------------------------------------------------------


def test_a_folder_is_loaded(folders: dict[str, str]) -> None:
    for name in THOROUGH:
        engine = Engine.load(folders[name], drafter="aggressive", dtype="float32")
        assert isinstance(engine.model, Seq2SeqModel)
        assert tokens(engine.generate(SOURCES, max_new_tokens=NEW)) == wanted(name)


def test_a_folder_without_all_weights_is_refused(tmp_path: Path, folders: dict[str, str]) -> None:
    weights = load_file(f"{folders['BART']}/model.safetensors")
    lost = next(name for name in weights if "encoder_attn.k_proj.weight" in name)
    save_file({k: v for k, v in weights.items() if k != lost}, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text(Path(folders["BART"], "config.json").read_text())
    with pytest.raises(ModelError, match=r"lacks .*encoder_attn\.k_proj\.weight"):
        load_model(str(tmp_path))


def test_a_tokenizer_that_cannot_be_read_is_an_error_and_not_none(tmp_path: Path) -> None:
    """Marian's needs a package, and files that this folder lacks."""
    module_of("Marian").config.save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "MarianTokenizer"}')
    with pytest.raises(BadRequest, match=r"tokenizer: .* cannot be loaded"):
        load_tokenizer(str(tmp_path))


def test_sizes_and_costs_are_those_of_a_decoders_pass() -> None:
    model = load_model(module_of("BART"))
    decoder = sum(p.nbytes for p in model.module.get_decoder().parameters())
    head, table = (part.weight.nbytes for part in (model.module.lm_head, model.module.get_decoder().embed_tokens))
    assert model.nbytes in (decoder + head, decoder + head - table)
    assert (model.context, model.longest, model.encoded(9)) == (400, 201, 8)
    assert (model.limit(9), model.limit(201), model.limit(202)) == (208, 400, 0)
    assert model.costs(1) > 0
    short = build(*SUPPORTED["BART"][:2], max_position_embeddings=40)
    assert max(load_model(short).costs.seconds) <= 40


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_driven_is_refused_with_the_reason(name: str) -> None:
    config, options, reason = REFUSED[name]
    with pytest.raises(Unsupported, match=reason):
        Engine.load(build(config, options), drafter="none")


def test_a_model_without_a_start_token_is_refused() -> None:
    config, options, _ = SUPPORTED["T5"]
    module = build(config, {**options, "decoder_start_token_id": None, "bos_token_id": None})
    module.generation_config.decoder_start_token_id = None
    with pytest.raises(Unsupported, match="names one decoder_start_token_id"):
        load_model(module)
    module.generation_config.decoder_start_token_id = [5, 6]
    with pytest.raises(Unsupported, match="names one decoder_start_token_id"):
        load_model(module)


def test_a_model_without_a_head_is_refused() -> None:
    with pytest.raises(Unsupported, match="has no language-model head"):
        load_model(T5Model(T5Config(**SUPPORTED["T5"][1])))


@pytest.mark.parametrize("name", ["T5", "UMT5", "BART", "Marian", "M2M100, NLLB"])
def test_uncorrected_positions_are_found_at_loading(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seq2seq, "seams", lambda decoder: [])
    with pytest.raises(Unsupported, match="does not honour tree masks and position_ids"):
        load_model(module_of(name))


@pytest.mark.parametrize("name", ["T5", "BART"])
def test_an_ignored_source_mask_is_found_at_loading(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sources of different lengths are tried together."""
    monkeypatch.setattr(
        np, "where", lambda test, hidden, seen, where=np.where: where(test, seen if test.ndim == 2 else hidden, seen)
    )
    with pytest.raises(Unsupported, match="does not honour tree masks and position_ids"):
        load_model(module_of(name))
