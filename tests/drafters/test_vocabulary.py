"""Tables that differ by padding rows, on either side, with tokenizers given by hand or found beside the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from paceline import Engine
from paceline.drafters.draft import DraftModel
from paceline.errors import BadRequest
from tests.drafters.support import llama

WORDS = [f"w{i}" for i in range(40)]
VERIFIERS = ((0.0, "coupled"), (0.9, "coupled"), (0.9, "rejection"))


def tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    model = models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[0])
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model))


def saved(module: Any, folder: Path, words: list[str]) -> str:
    module.save_pretrained(folder)
    tokenizer(words).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(("target", "draft"), [(40, 64), (64, 40), (48, 64), (64, 48)])
def test_padding_rows_on_either_side(target: int, draft: int, tmp_path: Path) -> None:
    engine = Engine.load(llama(vocabulary=target), tokenizer=tokenizer(WORDS), drafter="none")
    drafter = DraftModel(saved(llama(seed=1, layers=1, vocabulary=draft), tmp_path, WORDS), confidence=0)
    for temperature, verifier in VERIFIERS:
        options = {"max_new_tokens": 15, "temperature": temperature, "verifier": verifier, "ignore_eos": True}
        for prompt in ([5, 6, 7], [target - 1, 3]):
            result = engine.generate(prompt, drafter=drafter, **options)
            assert result.stats.drafted > 15
            assert len(result.tokens) == 15
            if verifier == "coupled":
                assert result.tokens == engine.generate(prompt, **options).tokens


def test_a_tokenizer_given_by_hand_is_compared(tmp_path: Path) -> None:
    swapped = [*WORDS[:-2], WORDS[-1], WORDS[-2]]
    engine = Engine.load(llama(vocabulary=40), tokenizer=tokenizer(WORDS), drafter="none")
    with pytest.raises(BadRequest, match="2 of them mean something else"):
        engine.generate([1], drafter=DraftModel(saved(llama(vocabulary=40), tmp_path, swapped)))
