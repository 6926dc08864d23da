"""Round trips, indentation, special tokens."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from paceline.training.corpus import Document
from paceline.training.tokenizer import END_OF_TEXT, train_tokenizer

from .conftest import source

TOKENIZER = train_tokenizer([source(i) for i in range(20)], vocabulary=300)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.one_of(st.sampled_from(" \t\r\n_.(x9"), st.characters(codec="utf-8"))))
def test_round_trip_is_lossless(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER(text).input_ids) == text


def test_vocabulary_counts_special_tokens(documents: list[Document]) -> None:
    tokenizer = train_tokenizer([d.text for d in documents], vocabulary=290)
    assert len(tokenizer) == 290
    assert tokenizer.convert_tokens_to_ids(END_OF_TEXT) == tokenizer.eos_token_id == 0


def test_line_end_with_indentation_is_one_token(tokenizer: PreTrainedTokenizerFast) -> None:
    with_indent = tokenizer("value):\n    return").input_ids
    assert len(with_indent) == len(tokenizer("value):").input_ids) + 1 + len(tokenizer("return").input_ids)


def test_nothing_is_added_and_end_token_is_special(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer("").input_ids == []
    assert tokenizer(END_OF_TEXT).input_ids == [tokenizer.eos_token_id]
    assert tokenizer.decode([tokenizer.eos_token_id], skip_special_tokens=True) == ""


def test_saved_folder_loads_through_auto_tokenizer(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded(source(1)).input_ids == tokenizer(source(1)).input_ids
    assert loaded.decode(loaded(source(1)).input_ids) == source(1)
