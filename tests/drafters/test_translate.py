"""Drafts of a model with another tokenizer: spelling, following the text, and texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from paceline import Engine
from paceline.drafters.translate import Speller, Translate
from paceline.errors import BadRequest
from paceline.policies.base import Pipeline
from paceline.testing import TabularModel, autoregressive, decoded, distance, random_table
from paceline.verifiers.coupled import Coupled
from paceline.verifiers.rejection import Rejection
from tests.drafters.support import llama, results, start

TEXT = (
    "def area(width, height):\n    # größer: 面積 = 幅 × 高さ 🚲\n    return width * height\n\n" * 2
    + "print(area(3, 4))\n"
)


def byte_level(size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of `size` tokens, trained on the text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<end>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")


def metaspace() -> PreTrainedTokenizerFast:
    """A BPE in the manner of SentencePiece: a space is put before the text, and taken away again."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.train_from_iterator([TEXT], trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>"]))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


COARSE, FINE, SPACED = byte_level(420), byte_level(280), metaspace()
SIZE = 430


def knowing(tokenizer: PreTrainedTokenizerFast, name: str, sure: float = 9.0) -> TabularModel:
    """A model that writes the text on, wherever in it it stands; elsewhere it starts over."""
    ids, size = tokenizer(TEXT)["input_ids"], len(tokenizer)

    def table(prefix: tuple[int, ...]) -> torch.Tensor:
        text = tokenizer.decode(prefix, clean_up_tokenization_spaces=False)
        left = TEXT[len(text) :] if TEXT.startswith(text) else ""
        follows = tokenizer(left)["input_ids"] if left else ids
        if list(prefix) == ids[: len(prefix)]:
            follows = ids[len(prefix) :] or ids
        logits = torch.zeros(size, dtype=torch.float64)
        logits[follows[0]] = sure
        return logits.log_softmax(-1)

    model = TabularModel(table, size, name=name, context=400)
    model.tokenizer = tokenizer
    return model


# -- spelling -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokenizer", [COARSE, FINE, SPACED], ids=["coarse", "fine", "metaspace"])
def test_a_text_that_grows_is_encoded_as_it_would_be_at_once(tokenizer: PreTrainedTokenizerFast) -> None:
    speller, ids, text = Speller(tokenizer), [], ""
    for at in range(0, len(TEXT), 3):
        added = TEXT[at : at + 3]
        text += added
        start, new = speller.extended(ids, text, added)
        ids[start:] = new
        assert speller.decode(ids) == speller.decode(speller.whole(text))


@pytest.mark.parametrize("tokenizer", [COARSE, FINE, SPACED], ids=["coarse", "fine", "metaspace"])
def test_what_follows_some_ids_is_spelled_behind_them(tokenizer: PreTrainedTokenizerFast) -> None:
    speller, ids = Speller(tokenizer), tokenizer(TEXT)["input_ids"]
    spelled = 0
    for at in range(1, len(ids)):
        context = ids[max(0, at - 8) : at]
        added = speller.behind(context, ids[at : at + 4])
        if added is None or added.endswith("\ufffd") or "<unk>" in added:
            continue
        new = speller.continued(context, added)
        assert speller.behind(context, new) == added
        spelled += new == ids[at : at + 4]
    assert spelled > len(ids) // 2


def test_a_seam_inside_a_character_is_seen() -> None:
    bike = COARSE("🚲")["input_ids"]
    speller = Speller(byte_level(257))
    bytes_ = speller.encode("🚲")
    assert len(bytes_) == 4
    assert speller.behind(bytes_[:2], bytes_[2:]) is None
    assert Speller(COARSE).behind([], bike) == "🚲"


# -- texts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("target", "draft"), [(COARSE, FINE), (FINE, COARSE), (COARSE, SPACED), (FINE, FINE)])
def test_a_draft_that_knows_the_text_saves_passes(target: Any, draft: Any) -> None:
    engine = Engine(knowing(target, "target"), target, drafter="none", nodes=8)
    drafter = Translate(knowing(draft, "draft"), length=8)
    prompt = target(TEXT[:30])["input_ids"]
    wanted = engine.generate(prompt, max_new_tokens=44)
    assert TEXT.startswith(TEXT[:30] + wanted.text.rstrip("\ufffd"))
    for verifier in ("coupled", "rejection"):
        result = engine.generate(prompt, max_new_tokens=44, drafter=drafter, verifier=verifier)
        assert result.tokens == wanted.tokens
        assert result.stats.forward_passes < 25


@pytest.mark.parametrize("verifier", [Coupled(), Rejection()])
def test_the_law_is_kept(verifier: Any) -> None:
    """By enumeration: three letters here, the same in another order there."""

    def letters(order: str) -> PreTrainedTokenizerFast:
        tokenizer = Tokenizer(models.WordLevel({letter: i for i, letter in enumerate(order)}, unk_token=order[0]))
        tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
        tokenizer.decoder = decoders.Fuse()
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer)

    engine = Engine(TabularModel(random_table(3, seed=1), 3), letters("abc"), drafter="none", nodes=4)
    other = TabularModel(random_table(3, seed=2), 3)
    other.tokenizer = letters("bca")
    law = Pipeline((), greedy=False)
    found = decoded(engine, [0, 1], 3, lambda: Translate(other, length=2, confidence=0.0), verifier, law)
    assert found.drafted > 1
    assert distance(found.law, autoregressive(engine.model, law, [0, 1], 3)) < 1e-10


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_text_is_that_of_plain_decoding(temperature: float) -> None:
    """Random models: their texts are noise, full of broken characters."""
    module, draft = llama(vocabulary=len(COARSE)), llama(seed=1, layers=1, vocabulary=len(FINE))
    loaded = Engine.load(draft, tokenizer=FINE, drafter="none").model
    engine = Engine.load(module, tokenizer=COARSE, drafter="none", max_rows=3)
    prompts = [TEXT[:20], "print", "größer", "🚲 🚲"]
    settings = {"max_new_tokens": 30, "temperature": temperature, "seed": 5, "ignore_eos": True}
    drafter = Translate(loaded, confidence=0)
    wanted = results(engine, prompts, **settings)  # type: ignore[arg-type]
    mixed = results(engine, prompts, drafter=drafter, **settings)  # type: ignore[arg-type]
    assert [r.tokens for r in mixed] == [r.tokens for r in wanted]
    assert sum(r.stats.drafted for r in mixed) > 40
    assert engine.generate(prompts[2], drafter=drafter, **settings).tokens == wanted[2].tokens
    assert drafter._inner._cache.live == []


def test_the_draft_model_reads_each_token_once() -> None:
    """What it guessed right is not read again, and what it reads is the text."""
    engine = Engine(knowing(COARSE, "target"), COARSE, drafter="none", nodes=8)
    draft = knowing(FINE, "draft")
    drafter = Translate(draft, length=6)
    sequence = start(engine, COARSE(TEXT[:30])["input_ids"], max_new_tokens=50, drafter=drafter)
    read, plain = [0], draft.score

    def score(cache: Any, rows: Any, trees: Any, pending: Any = None, **options: Any) -> Any:
        read[0] += sum(map(len, trees)) + sum(map(len, pending or []))
        return plain(cache, rows, trees, pending, **options)

    draft.score = score  # type: ignore[method-assign]
    while engine.decoder.busy:
        engine.decoder.step()
        if sequence.drafts is not None and sequence.drafts.own.tokens:
            assert FINE.decode(sequence.drafts.own.tokens) == sequence.drafts.text
    assert read[0] < 2 * len(FINE(TEXT[:30])["input_ids"]) + 150


# -- mistakes -------------------------------------------------------------------------------------------------


def test_both_tokenizers_are_needed() -> None:
    bare = Engine(TabularModel(lambda prefix: torch.zeros(5), 5), drafter="none")
    with pytest.raises(BadRequest, match=r"the target table has no tokenizer; give Engine.load\(tokenizer=...\)"):
        bare.generate([1], drafter=Translate(knowing(FINE, "draft")))
    engine = Engine(knowing(COARSE, "target"), COARSE, drafter="none")
    with pytest.raises(BadRequest, match="its model table has no tokenizer beside it"):
        engine.generate("print", drafter=Translate(TabularModel(lambda prefix: torch.zeros(5), 5)))


@pytest.mark.parametrize(("knobs", "message"), [({"length": 0}, "length=0"), ({"confidence": 2.0}, "confidence=2.0")])
def test_knobs_are_checked(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        Translate(**knobs)


def test_plain_drafting_points_here(tmp_path: Path) -> None:
    for name, tokenizer in (("target", COARSE), ("draft", FINE)):
        llama(vocabulary=len(tokenizer)).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    engine = Engine.load(str(tmp_path / "target"), dtype="float32", fast=False, drafter="none")
    with pytest.raises(BadRequest, match=r"mean something else.*drafter 'translate' takes any"):
        engine.generate("print", drafter=f"draft(model='{tmp_path / 'draft'}')")
    prompt = {"max_new_tokens": 8, "ignore_eos": True}
    spec = f"translate(model='{tmp_path / 'draft'}')"
    assert engine.generate("print", drafter=spec, **prompt).tokens == engine.generate("print", **prompt).tokens
